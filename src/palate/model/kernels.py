"""Faster arithmetic between the attentions: layers compiled by torch, kernels by Liger."""

import importlib.util

import torch

from palate.errors import PalateError
from palate.model.last_layer import last_layer
from palate.model.reward_model import RewardModel


def compile_layers(model: RewardModel) -> None:
    """Compile each layer once, for all shapes; attention stays what it is.

    The last layer is left out where it is computed at the ends alone, which takes two calls of it.
    """
    last = last_layer(model.body)
    layers = next(m for m in model.body.modules() if last in m.children())
    for layer in layers.children():
        if not (layer is last and model.shortened):
            layer.compile(dynamic=True)


def apply_liger(model: RewardModel) -> None:
    """Liger's norms, rotary embeddings and gated MLPs, through `transformers`' own integration.

    Raises PalateError without CUDA, without the package, or for a body that Liger doesn't know.
    """
    if not torch.cuda.is_available():
        raise PalateError("training.liger needs a CUDA device; leave it out")
    if importlib.util.find_spec("liger_kernel") is None:
        raise PalateError("training.liger needs Liger: pip install 'palate[liger]'")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    from transformers.integrations.liger import apply_liger_kernel

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise PalateError(f"training.liger: Liger has no kernels for {kind}; leave it out")
    # A reward model has no cross-entropy.
    options = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    apply_liger_kernel(model.transformer, options)

"""From a body with adapters to a plain model, and the proof that its rewards are the same.

Legend: N sequences, D width of the body.
"""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from palate.errors import PalateError
from palate.model.lora import ADAPTER, cast_inputs, trained_whole
from palate.model.lora_targets import probe
from palate.model.reward_model import Output, RewardModel

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 2e-2}
"""Largest change of pooled states by merging, relative to their largest entry."""
TOLERANCE_8BIT = 0.2
"""The same for leaving 8 bit: its products round the activations too, plain layers don't."""
CANCELLATION = 3.0
"""A reward is a sum of terms that cancel: it may change by so many times as much."""


@torch.no_grad()
def merge_adapters(model: RewardModel) -> None:
    """Add every adapter to the weight it goes with and remove it: a plain model is left.

    Each sum W + (alpha / rank) B A is taken in float32 and rounded once, to the body's dtype; what
    was trained whole goes back to that dtype too. A quantised body is dequantised first, since an
    adapter is trained on the rounded weights: added to the unrounded ones it gives other rewards.

    Raises PalateError when states or rewards of random sequences change by more than rounding, or
    the dequantised body does not fit in memory.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    transformer = model.transformer
    dtype = transformer.dtype
    before = probe(model)
    transposed: list[str] = []
    if model.quantized:
        eight_bit = getattr(transformer, "is_loaded_in_8bit", False)
        transposed = _dequantize(transformer, dtype)
        plain = probe(model)
        limit = TOLERANCE_8BIT if eight_bit else TOLERANCE[torch.bfloat16]
        _refuse_difference(before, plain, limit, "dequantising")
        before = plain
    layers = {n: m for n, m in transformer.named_modules() if isinstance(m, BaseTunerLayer)}
    for name, layer in layers.items():
        if not any(name.startswith(f"{outer}.") for outer in layers):
            transformer.set_submodule(name, _merged(layer))
    del transformer.peft_config
    for name in transposed:
        transformer.set_submodule(name, _conv1d(transformer.get_submodule(name)))
    for name in trained_whole(model):
        hooks = transformer.get_submodule(name).to(dtype)._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is cast_inputs]:
            del hooks[key]
    _refuse_difference(before, probe(model), TOLERANCE[dtype], "merging")


def _dequantize(transformer: Any, dtype: torch.dtype) -> list[str]:
    """Plain linear layers instead of quantised ones; names of those that GPT-2 keeps transposed."""
    transposed = [
        name.removesuffix(".base_layer")
        for name, module in transformer.named_modules()
        if getattr(module, "source_cls", None) is Conv1D
    ]
    try:
        transformer.dequantize(dtype=dtype)
    except torch.OutOfMemoryError as error:
        raise PalateError(
            f"merging needs room for the whole body in {str(dtype).removeprefix('torch.')} where it"
            " was trained; the training checkpoints are kept: run the same command again with"
            " CUDA_VISIBLE_DEVICES= to merge in the machine's own memory"
        ) from error
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(transformer, name):
            delattr(transformer, name)
    return transposed


def _merged(layer: Any) -> Any:
    """The layer that was adapted, its weights changed; wrappers of several weights are nested."""
    base = layer.get_base_layer()
    while layer is not base:
        weight = getattr(base, getattr(layer, "parameter_name", "weight"))
        delta = layer.get_delta_weight(ADAPTER)
        weight.copy_((weight.float() + delta.float()).to(weight.dtype))
        layer = layer.base_layer
    return base


def _conv1d(layer: Any) -> Any:
    """The same product by the class whose weight is the transposed one."""
    conv1d = Conv1D(layer.out_features, layer.in_features)
    conv1d.weight = nn.Parameter(layer.weight.T.contiguous())
    conv1d.bias = layer.bias
    return conv1d


def _refuse_difference(before: Output, after: Output, limit: float, action: str) -> None:
    for what, old, new, bound in (
        ("pooled states", before.hidden_ND, after.hidden_ND, limit),
        ("rewards", before.reward_N, after.reward_N, CANCELLATION * limit),
    ):
        difference = float((new - old).abs().max() / old.abs().max().clamp_min(1e-6))
        if not difference <= bound:
            raise PalateError(
                f"{action} changed the {what} by {difference:.1e} of their largest (limit"
                f" {bound:.0e}); the training checkpoints are kept. Report it, with the model's"
                " name"
            )


def check_head(trained: RewardModel, reloaded: RewardModel) -> None:
    """Refuse a saved model whose head, or other part that is new in it, is not the trained one, bit
    for bit: a head that is lost on saving comes back random, and nothing else says so."""
    beside = tuple(f"transformer.{name}." for name in trained_whole(trained))
    found = reloaded.state_dict()
    for name, parameter in trained.named_parameters():
        if name.startswith((*trained.head_prefixes, *beside)) and not name.startswith("learned."):
            own = found.get(name)
            if own is None or not torch.equal(own.cpu(), parameter.to(own.dtype).cpu()):
                raise PalateError(
                    f"{name} did not come back from the saved model as it was trained; keep the"
                    " run's directory and report it"
                )

"""What a body is made of, read from its configuration and from modules without weights.

The modules are built on PyTorch's meta device, where a tensor has a shape and no memory, so a body
of any size takes a second and the checkpoint's weights need not be there.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModel,
    AutoModelForSequenceClassification,
)
from transformers.pytorch_utils import Conv1D

from palate.errors import PalateError
from palate.forest.cost import LastLayer, LayerCost, Method, Window
from palate.forest.plan import Layout
from palate.model.attention import layer_windows
from palate.model.forms import is_own_form, pooling_of_class
from palate.model.head_file import StoredHead
from palate.model.heads import MlpHead
from palate.model.layer_shape import LayerShape, expert_stacks, layer_shape, sides
from palate.model.lora import LoraSettings
from palate.model.lora_targets import POOLER, Found, choose_targets
from palate.model.reward_model import find_head
from palate.model.selfcheck import in_words
from palate.model.settings import BodySettings


@dataclass(frozen=True)
class BodyShape:
    """A reward model's body and head, without weights."""

    class_name: str
    width: int
    layers: tuple[LayerShape, ...]
    windows: tuple[Window, ...]
    """Different windows among the layers."""
    causal: bool
    layout: Layout
    pooling: str
    eager: bool
    """Whether attention keeps its matrices of scores, as with capped scores."""
    capped: bool
    activation: str
    num_parameters: int
    num_embedding_weights: int
    num_head_weights: int
    num_whole_weights: int
    """Weights that are trained beside adapters: the head and layers between it and the body."""
    num_other_weights: int
    """Weights that every token meets outside embeddings, layers and head."""
    num_adapter_weights: int
    largest_parameter: int
    dtype: torch.dtype
    """That the checkpoint says, float32 where it says none."""
    rotary: bool
    """Whether queries and keys are turned by position, which makes new tensors of them."""
    unknown: tuple[str, ...]
    """What is not counted, in words."""

    @property
    def head_width(self) -> int:
        """Width of one query."""
        return max(layer.query_width // max(1, layer.num_heads) for layer in self.layers)

    def costs(self, method: Method) -> list[LayerCost]:
        """Of each layer; adapters count only where they are trained."""
        costs = [layer.cost for layer in self.layers]
        if method == "lora":
            return costs
        none = {"num_adapter_weights": 0, "num_key_value_adapter_weights": 0}
        return [replace(cost, **none) for cost in costs]

    @property
    def last_layer(self) -> LastLayer:
        """Where the last layer is expected to be computed; the loaded model's own check decides.

        At the ends alone where these are all that is read: of a tree, pooled at its last tokens. A
        loss of experts reads the choices of all tokens.
        """
        has_experts = any(layer.num_dispatched for layer in self.layers)
        at_ends = self.layout == "tree" and self.pooling == "last" and self.rotary
        return "ends" if at_ends and not has_experts else "all"

    @property
    def num_matrix_weights(self) -> int:
        """Weights of the layers' matrices."""
        return sum(layer.num_matrix_weights for layer in self.layers)


def body_shape(
    name: str,
    config: Any,
    settings: BodySettings,
    lora: LoraSettings = LoraSettings(),
    stored: StoredHead | None = None,
) -> BodyShape:
    """The shape of the reward model that training makes of this configuration.

    Raises PalateError where transformers can't build the body, and for adapters on layers that it
    doesn't have.
    """
    text = config.get_text_config()
    own_pooling = None if stored is not None else pooling_of_class(name, config, settings)
    own_form = stored is None and is_own_form(settings, own_pooling)
    transformer = empty_transformer(name, config, settings, own_form)
    body = transformer.base_model
    modules = _layer_modules(body, text)
    adapted = _adapted(transformer, body, lora)
    found, unknown = _windows(text, len(modules))
    costs = [
        layer_shape(module, text, window, lora.rank, adapted)
        for module, window in zip(modules, found, strict=True)
    ]
    if any(layer.cost.pair_width == 0 for layer in costs):
        unknown.append("what state-space and other layers without attention do besides matrices")
    causal = _is_causal(config)
    pooling = _pooling(settings, own_pooling, stored, causal)
    num_head = _head_weights(transformer, text.hidden_size, settings, stored, own_form)
    all_parameters = sum(p.numel() for p in transformer.parameters())
    embeddings = {id(m.weight): m.weight.numel() for m in body.modules() if _is_embedding(m)}
    in_layers = sum(p.numel() for module in modules for p in module.parameters())
    outside = all_parameters - (num_head if own_form else 0)
    return BodyShape(
        class_name=type(transformer).__name__,
        width=text.hidden_size,
        layers=tuple(costs),
        windows=tuple(sorted({c.cost.window for c in costs}, key=lambda w: (w is None, w or 0))),
        causal=causal,
        layout=_layout(settings, causal, pooling, text, costs),
        pooling=pooling,
        eager=transformer.config.get_text_config()._attn_implementation == "eager",
        capped=bool(getattr(text, "attn_logit_softcapping", None)),
        activation=str(
            getattr(text, "hidden_act", None)
            or getattr(text, "hidden_activation", None)
            or getattr(text, "activation_function", "")
        ),
        num_parameters=outside + num_head,
        num_embedding_weights=sum(embeddings.values()),
        num_head_weights=num_head,
        num_whole_weights=_beside(transformer, pooling) if own_form else num_head,
        num_other_weights=outside - sum(embeddings.values()) - in_layers,
        num_adapter_weights=sum(lora.rank * sum(sides(module)) for module in adapted.values()),
        largest_parameter=max(p.numel() for p in transformer.parameters()),
        dtype=getattr(config, "dtype", None) or torch.float32,
        rotary=bool(getattr(text, "rope_parameters", None)),
        unknown=tuple(dict.fromkeys(unknown)),
    )


def empty_transformer(name: str, config: Any, settings: BodySettings, own_form: bool) -> Any:
    """The body's class with its head (`own_form`), or the body alone, on the meta device."""
    auto = AutoModelForSequenceClassification if own_form else AutoModel
    config = copy.deepcopy(config)
    config.num_labels = 1
    try:
        with torch.device("meta"):
            return auto.from_config(config, trust_remote_code=settings.trust_remote_code)
    except Exception as error:  # the code of many models, which fails in many ways
        raise PalateError(
            f"{name}: {config.model_type} cannot be built from its configuration:"
            f" {in_words(error)}; choose another body"
        ) from error


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)


def _layer_modules(body: nn.Module, text: Any) -> Sequence[nn.Module]:
    """The stack of layers: the list of modules that is as long as the configuration says."""
    lists = [module for module in body.modules() if isinstance(module, nn.ModuleList)]
    stacks = [found for found in lists if len(found) == getattr(text, "num_hidden_layers", 0)]
    stacks = stacks or sorted(lists, key=len)[-1:]
    return list(stacks[0]) if stacks else [body]


def _windows(text: Any, num_layers: int) -> tuple[list[Window], list[str]]:
    """The window of each layer (0: no attention), and what of it is not known."""
    types = getattr(text, "layer_types", None)
    try:
        by_type = layer_windows(text)
    except LookupError as error:
        window = getattr(text, "sliding_window", None)
        by_type = {"full_attention": None, "sliding_attention": window}
        unknown = [str(error)]
    else:
        unknown = []
    if not types or len(types) != num_layers:
        return [next(iter(by_type.values()))] * num_layers, unknown
    return [by_type.get(kind, 0) for kind in types], unknown


def _is_causal(config: Any) -> bool:
    """Whether the class is one of language models that read from left to right only."""
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return causal and type(config) not in MODEL_FOR_MASKED_LM_MAPPING


def _pooling(
    settings: BodySettings, own: str | None, stored: StoredHead | None, causal: bool
) -> str:
    if settings.pooling != "auto":
        return settings.pooling
    if stored is not None:
        return stored.pooling
    return own or ("last" if causal else "mean")


def _layout(
    settings: BodySettings, causal: bool, pooling: str, text: Any, layers: Sequence[LayerShape]
) -> Layout:
    """The layout that the configuration lets expect; at load a self-check decides.

    Raises PalateError where a tree is asked for and can't be exact.
    """
    if settings.layout == "rows":
        return "rows"
    try:
        layer_windows(text)
        known = True
    except LookupError:
        known = False
    attends = all(layer.cost.pair_width for layer in layers)
    if causal and pooling != "cls" and attends and known:
        return "tree"
    if settings.layout == "tree":
        raise PalateError(
            f"body.layout tree is not exact for {text.model_type}: it needs causal attention in all"
            " layers, full or with a sliding window; leave it out"
        )
    return "rows"


def _head_weights(
    transformer: nn.Module,
    width: int,
    settings: BodySettings,
    stored: StoredHead | None,
    own_form: bool,
) -> int:
    if own_form:
        return sum(p.numel() for p in find_head(transformer)[1].parameters())
    if stored is not None:
        return sum(tensor.numel() for tensor in stored.tensors.values())
    head: nn.Module = nn.Linear(width, 1, bias=False)
    if settings.head == "mlp":
        head = MlpHead(width, settings.head_width or width)
    query = width if settings.pooling == "attention" else 0
    return query + sum(p.numel() for p in head.parameters())


def _beside(transformer: Any, pooling: str) -> int:
    """Weights outside the body, and of its pooler where that is read."""
    body = transformer.base_model
    modules = [m for m in transformer.children() if m is not body]
    if pooling == "cls":
        modules += [m for name, m in body.named_modules() if name.split(".")[-1] == POOLER]
    return sum(p.numel() for module in modules for p in module.parameters())


def _adapted(transformer: Any, body: nn.Module, lora: LoraSettings) -> dict[int, nn.Module]:
    """Matrices that get an adapter, by identity."""
    in_body = {id(module) for module in body.modules()}
    matrices = {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and id(module) in in_body
        and POOLER not in name.split(".")
    }
    found = Found(
        whole=[], layers=list(matrices), experts=[name for name, _ in expert_stacks(body)]
    )
    layers, _ = choose_targets(transformer, found, lora.targets)
    return {id(matrices[name]): matrices[name] for name in layers}

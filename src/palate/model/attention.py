"""The one seam through which a plan reaches a body.

The reference is a dense mask. The faster paths go through `transformers`' table of attention
functions: a body is told to use ours, and each forward pass hands it a `ForestAttention`, which
computes only what the trees need.

Legend: R rows, T tokens of a row (as queries Q and keys K too), H heads, D width of a head.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

Attention = Literal["auto", "dense", "blocks", "varlen", "flex"]
LAYER_TYPES = ("full_attention", "sliding_attention")
OWN_WINDOWS = ("window_size", "keep_window_size", "attention_chunk_size")
"""Configuration fields of windows that layers apply themselves, whatever mask they are given."""
KEYWORD = "palate_forest"
"""Under which a forward pass hands its ForestAttention through the body to every layer."""
NAMES = {"sdpa": "palate_sdpa", "eager": "palate_eager"}
"""What a body's own implementation is called once ours stands before it."""
NOT_EXPRESSED = ("s_aux", "sinks", "position_bias", "indices")
"""Arguments of layers whose attention is more than a softmax over visible keys."""


class ForestAttention(Protocol):
    """The attention of one plan."""

    def attend(
        self,
        query_1HQD: Tensor,
        key_1HKD: Tensor,
        value_1HKD: Tensor,
        scale: float,
        layer_type: str,
        softcap: float | None,
    ) -> Tensor:
        """States 1 Q H D. Keys and values may have fewer heads than the queries."""


def visible(reach_RT: Tensor) -> Tensor:
    """Boolean R Q K: key not later, and the query within its reach.

    Padding (reach 0) sees itself only, since an attention over nothing is NaN on some kernels.
    """
    column_T = torch.arange(reach_RT.shape[1], device=reach_RT.device)
    not_later_QK = column_T[:, None] >= column_T[None, :]
    within_RQK = column_T[None, :, None] < reach_RT[:, None, :]
    itself_QK = torch.eye(len(column_T), dtype=torch.bool, device=reach_RT.device)
    padding_RQK = (reach_RT == 0)[:, :, None]
    return torch.where(padding_RQK, itself_QK, not_later_QK & within_RQK)


def layer_windows(config: Any) -> dict[str, int | None]:
    """Layer type -> sliding window in tokens (None: unlimited), as the configuration says.

    Raises LookupError, naming type or field, for layers whose attention a tree can't express.
    """
    config = config.get_text_config()
    for name in OWN_WINDOWS:
        if getattr(config, name, None):
            raise LookupError(f"a window that its layers apply themselves ({name})")
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        return {"sliding_attention": window} if window else {"full_attention": None}
    unknown = sorted(set(types) - set(LAYER_TYPES))
    if unknown:
        raise LookupError(f"layers of type {', '.join(unknown)}")
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(set(types))}


def attention_masks(
    config: Any, position_RT: Tensor, reach_RT: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """The 4D mask that `transformers` bodies take as it is, or a dict of them by layer type.

    A body applies no window of its own to a 4D mask, so it is put in here, by distance in position
    (branches restart at the prefix's end; the distance in the row would be wrong). SDPA takes a
    boolean mask; eager attention adds it to the scores, so it must be additive there.
    """
    seen_RQK = visible(reach_RT)
    distance_RQK = position_RT[:, :, None] - position_RT[:, None, :]
    additive = config.get_text_config()._attn_implementation in ("eager", NAMES["eager"])
    masks: dict[str, Tensor] = {}
    for kind, window in layer_windows(config).items():
        mask_RQK = seen_RQK if window is None else seen_RQK & (distance_RQK < window)
        mask = mask_RQK[:, None]
        if additive:
            lowest = torch.finfo(dtype).min
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
                ~mask, lowest
            )
        masks[kind] = mask
    return masks if len(masks) > 1 else next(iter(masks.values()))


def stand_before(transformer: Any) -> None:
    """Have the body call our function, which calls its own wherever no ForestAttention is given.

    Raises LookupError where the body does not look it up in the table.
    """
    former = transformer.config.get_text_config()._attn_implementation
    if not transformer._can_set_attn_implementation():
        raise LookupError("its attention is written into its layers")
    if former in NAMES:
        transformer.set_attn_implementation(NAMES[former])
    if transformer.config.get_text_config()._attn_implementation not in NAMES.values():
        raise LookupError(f"its attention {former} can't be replaced")


def step_aside(transformer: Any) -> None:
    """Undo `stand_before`."""
    ours = transformer.config.get_text_config()._attn_implementation
    own = next((name for name, taken in NAMES.items() if taken == ours), None)
    if own is not None:
        transformer.set_attn_implementation(own)


def given_to_body(forest: ForestAttention, device: torch.device) -> dict[str, Any]:
    """The body's arguments that bring a ForestAttention to its layers.

    Any 4D mask is handed on as it is, so that no mask is built from the positions.
    """
    return {"attention_mask": torch.ones(1, 1, 1, 1, device=device).bool(), KEYWORD: forest}


def _ours(own: Callable[[nn.Module], Callable[..., Any]]) -> Callable[..., Any]:
    # A plan's blocks are no constants to compile into a layer.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def attend(
        module: nn.Module,
        query_1HQD: Tensor,
        key_1HKD: Tensor,
        value_1HKD: Tensor,
        attention_mask: Tensor | None,
        **arguments: Any,
    ) -> tuple[Tensor, None]:
        forest: ForestAttention | None = arguments.pop(KEYWORD, None)
        if forest is None:
            if attention_mask is not None and attention_mask.shape[-1] != key_1HKD.shape[2]:
                # The mask of `given_to_body` without its forest.
                raise LookupError("it does not hand arguments on to its layers")
            return own(module)(  # type: ignore[no-any-return]
                module, query_1HQD, key_1HKD, value_1HKD, attention_mask, **arguments
            )
        extra = [name for name in NOT_EXPRESSED if arguments.get(name) is not None]
        if extra or arguments.get("dropout"):
            raise LookupError(f"attention with {', '.join(extra) or 'dropout'}")
        scale = arguments.get("scaling")
        state_1QHD = forest.attend(
            query_1HQD,
            key_1HKD,
            value_1HKD,
            query_1HQD.shape[-1] ** -0.5 if scale is None else scale,
            _layer_type(module),
            arguments.get("softcap"),
        )
        return state_1QHD, None

    function: Callable[..., Any] = attend
    return function


def _layer_type(module: Any) -> str:
    config = module.config.get_text_config()
    types = getattr(config, "layer_types", None)
    if types is not None:
        return str(types[module.layer_idx])
    return next(iter(layer_windows(config)))


def _sdpa(_: nn.Module) -> Callable[..., Any]:
    function: Callable[..., Any] = AttentionInterface._global_mapping["sdpa"]
    return function


def _eager(module: nn.Module) -> Callable[..., Any]:
    function: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    return function


_TABLE: Mapping[str, tuple[Callable[[nn.Module], Callable[..., Any]], Callable[..., Any]]] = {
    "sdpa": (_sdpa, sdpa_mask),
    "eager": (_eager, eager_mask),
}
for _name, (_own, _mask) in _TABLE.items():
    AttentionInterface.register(NAMES[_name], _ours(_own))
    AttentionMaskInterface.register(NAMES[_name], _mask)

"""The one seam through which a plan reaches a body: dense masks, the reference.

Legend: R rows, T tokens of a row (as queries Q and keys K too).
"""

from typing import Any

import torch
from torch import Tensor

LAYER_TYPES = ("full_attention", "sliding_attention")
OWN_WINDOWS = ("window_size", "keep_window_size", "attention_chunk_size")
"""Configuration fields of windows that layers apply themselves, whatever mask they are given."""


def visible(tree_RT: Tensor, branch_RT: Tensor) -> Tensor:
    """Boolean R Q K: key not later, same tree, and in the prefix or in the query's own branch.

    Padding sees itself only, since an attention over nothing is NaN on some kernels.
    """
    order_T = torch.arange(tree_RT.shape[1], device=tree_RT.device)
    not_later_QK = order_T[:, None] >= order_T[None, :]
    same_tree_RQK = tree_RT[:, :, None] == tree_RT[:, None, :]
    prefix_key_RQK = (branch_RT == 0)[:, None, :]
    same_branch_RQK = branch_RT[:, :, None] == branch_RT[:, None, :]
    padding_RQK = (tree_RT < 0)[:, :, None]
    itself_QK = torch.eye(tree_RT.shape[1], dtype=torch.bool, device=tree_RT.device)
    seen_RQK = not_later_QK & same_tree_RQK & (prefix_key_RQK | same_branch_RQK)
    return torch.where(padding_RQK, itself_QK, seen_RQK)


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
    config: Any, position_RT: Tensor, tree_RT: Tensor, branch_RT: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """The 4D mask that `transformers` bodies take as it is, or a dict of them by layer type.

    A body applies no window of its own to a 4D mask, so it is put in here, by distance in position
    (branches restart at the prefix's end; the distance in the row would be wrong). SDPA takes a
    boolean mask; eager attention adds it to the scores, so it must be additive there.
    """
    seen_RQK = visible(tree_RT, branch_RT)
    distance_RQK = position_RT[:, :, None] - position_RT[:, None, :]
    additive = config.get_text_config()._attn_implementation == "eager"
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

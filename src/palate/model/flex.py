"""Attention of a forest through FlexAttention: one compiled kernel, told which tiles to skip.

Legend: Q queries, T columns (as keys), H heads, D width of a head; I, J tiles of queries and keys.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from palate.forest.sight import Sight
from palate.model.blocks import alike

TILE = 128


class FlexAttention:
    """The mask as a function of columns, and of the tiles those that hold a visible pair."""

    def __init__(self, sight: Sight, windows: dict[str, int | None], device: torch.device) -> None:
        self.sight = sight
        self.windows = windows
        self.device = device
        self._masks: dict[int | None, BlockMask] = {}

    def attend(
        self,
        query_1HQD: Tensor,
        key_1HKD: Tensor,
        value_1HKD: Tensor,
        scale: float,
        layer_type: str,
        softcap: float | None,
    ) -> Tensor:
        """States 1 Q H D."""
        query, key, value = alike(query_1HQD, key_1HKD, value_1HKD)
        window = self.windows[layer_type]
        if window not in self._masks:
            self._masks[window] = block_mask(self.sight, window, self.device)
        times = query.shape[1] // key.shape[1]
        is_power_of_two = times & (times - 1) == 0
        if not is_power_of_two:  # the kernel divides heads by shifts
            key, value = (one.repeat_interleave(times, dim=1) for one in (key, value))
        state_1HQD: Tensor = _kernel(query.device.type)(
            query,
            key,
            value,
            score_mod=_capped(softcap),
            block_mask=self._masks[window],
            scale=scale,
            enable_gqa=is_power_of_two,
        )
        return state_1HQD.transpose(1, 2)


@cache
def _kernel(device: str) -> Callable[..., Any]:
    # With dynamic shapes one compilation serves all plans. On a CPU the plain function is the
    # reference: it has no backward pass there.
    plain: Callable[..., Any] = flex_attention
    return torch.compile(plain, dynamic=True) if device == "cuda" else plain


@cache
def _capped(softcap: float | None) -> Callable[..., Tensor] | None:
    if softcap is None:
        return None

    def score_mod(score: Tensor, *_: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return score_mod


def block_mask(sight: Sight, window: int | None, device: torch.device) -> BlockMask:
    """The mask of one row; tiles are found from integers, without a matrix of all pairs."""
    reach_T = np.empty(sight.num_keys, np.int64)
    for span in sight.spans:
        reach_T[span.start : span.stop] = span.reach
    partial_IJ, full_IJ = _tiles(sight.column_Q, reach_T, window is None)
    column_Q, reach, position = (
        torch.from_numpy(one).to(device, non_blocking=True)
        for one in (sight.column_Q, reach_T, sight.position_T)
    )

    def mask_mod(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        column = column_Q[query]
        seen = (key <= column) & (column < reach[key])
        return seen if window is None else seen & (position[column] - position[key] < window)

    return BlockMask.from_kv_blocks(
        *_ordered(partial_IJ, device),
        *_ordered(full_IJ, device),
        BLOCK_SIZE=TILE,
        mask_mod=mask_mod,
        seq_lengths=(len(sight.column_Q), sight.num_keys),
    )


def _tiles(
    column_Q: np.ndarray, reach_T: np.ndarray, may_be_full: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Boolean I J: tiles in which some pair may be visible, and those in which every pair is."""
    starts_I = np.arange(0, len(column_Q), TILE)
    starts_J = np.arange(0, len(reach_T), TILE)
    first_I, last_I = (f.reduceat(column_Q, starts_I) for f in (np.minimum, np.maximum))
    least_J, most_J = (f.reduceat(reach_T, starts_J) for f in (np.minimum, np.maximum))
    some_IJ = (starts_J[None] <= last_I[:, None]) & (most_J[None] > first_I[:, None])
    whole_I = starts_I + TILE <= len(column_Q)
    whole_J = starts_J + TILE <= len(reach_T)
    full_IJ = (
        (starts_J[None] + TILE - 1 <= first_I[:, None])
        & (least_J[None] > last_I[:, None])
        & whole_I[:, None]
        & whole_J[None]
        & may_be_full
    )
    return some_IJ & ~full_IJ, full_IJ


def _ordered(tile_IJ: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Number of a row's tiles, and their indices first."""
    order_IJ = np.argsort(~tile_IJ, axis=1, kind="stable")
    arrays = (tile_IJ.sum(1), order_IJ)
    counts, indices = (
        torch.from_numpy(one.astype(np.int32))[None, None].to(device, non_blocking=True)
        for one in arrays
    )
    return counts, indices

"""Attention in rectangular blocks: no query meets a key that it may not see.

Legend: Q queries, K keys, T columns, H heads (of keys and values: fewer, or as many), D width.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from palate.forest.sight import Block, Sight

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
Cut = tuple[Block, Tensor | None]
"""A block, and what is added to its scores where a window cuts it."""


class BlockAttention:
    """Exact attention of one row of trees, on any device.

    On a CPU each block is one call of the fused kernel, and the parts of a query's softmax are
    joined by their log-sum-exp; nothing is copied, and the prompt's keys meet all answers at once.
    Elsewhere, and with capped scores, each answer meets a copy of its prompt's keys.
    """

    def __init__(self, sight: Sight, windows: dict[str, int | None]) -> None:
        self.sight = sight
        self.windows = windows
        self._cuts: dict[tuple[int | None, torch.dtype], list[Cut]] = {}

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
        window = self.windows[layer_type]
        query_1HQD, key_1HKD, value_1HKD = alike(query_1HQD, key_1HKD, value_1HKD)
        fused = softcap is None and query_1HQD.shape[-1] == value_1HKD.shape[-1]
        if fused and query_1HQD.device.type == "cpu":
            cuts = self._cut(window, query_1HQD.dtype)
            state: Tensor = _Joined.apply(query_1HQD, key_1HKD, value_1HKD, cuts, scale)  # type: ignore[no-untyped-call]
        else:
            state = _composed(query_1HQD, key_1HKD, value_1HKD, self.sight, window, scale, softcap)
        return state.transpose(1, 2)

    def _cut(self, window: int | None, dtype: torch.dtype) -> list[Cut]:
        if (window, dtype) not in self._cuts:
            cuts = (_windowed(block, self.sight, window, dtype) for block in self.sight.blocks)
            self._cuts[window, dtype] = [cut for cut in cuts if cut is not None]
        return self._cuts[window, dtype]


def alike(*tensors: Tensor) -> list[Tensor]:
    """In one type: autocast's where it is on, as norms of queries and keys leave theirs wider."""
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        return [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]
    return [tensor.to(tensors[-1].dtype) for tensor in tensors]


def _windowed(block: Block, sight: Sight, window: int | None, dtype: torch.dtype) -> Cut | None:
    """The block without the keys that no query sees; None when nothing is left.

    A query sees the keys whose position is less than `window` before its own.
    """
    if window is None or block.distance < window:
        return block, None
    query_Q = sight.position_T[sight.column_Q[block.query : block.query_stop]]
    key_K = sight.position_T[block.key : block.key_stop]
    if block.is_causal:
        cut = block
    else:
        # Positions rise along a span, so the keys out of sight of all queries come first.
        first = int((key_K <= query_Q.min() - window).sum())
        if first == len(key_K):
            return None
        cut = Block(
            block.query,
            block.query_stop,
            block.key + first,
            block.key_stop,
            is_causal=False,
            distance=int(query_Q.max() - key_K[first]),
        )
        if cut.distance < window:
            return cut, None
        key_K = key_K[first:]
    distance_QK = torch.from_numpy(query_Q[:, None] - key_K[None, :])
    hidden_QK = distance_QK >= window
    if block.is_causal:
        hidden_QK |= distance_QK < 0
        cut = Block(block.query, block.query_stop, block.key, block.key_stop, False, block.distance)
    added_QK = torch.zeros(hidden_QK.shape, dtype=dtype).masked_fill(hidden_QK, -math.inf)
    return cut, added_QK


class _Joined(torch.autograd.Function):
    """softmax(scale q k') v over the union of a query's blocks, block by block.

    With L_b the log-sum-exp of the scores in block b and L that of all, the state is the sum over
    blocks of exp(L_b - L) times the block's own state. The kernel's backward pass computes the
    probabilities as exp(score - L), so given L and the joined state it returns the block's exact
    share of the gradients (as in ring attention, arXiv 2310.01889).
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, cuts: list[Cut], scale: float
    ) -> Tensor:
        batch, num_heads, num_queries, width = query.shape
        # Laid out as the projection that follows reads it.
        state = query.new_zeros(batch, num_queries, num_heads, width).transpose(1, 2)
        wide = torch.promote_types(query.dtype, torch.float32)
        total = query.new_full((batch, num_heads, num_queries), -math.inf, dtype=wide)
        for block, added in cuts:
            part, own = _forward(
                query[:, :, block.query : block.query_stop],
                key[:, :, block.key : block.key_stop],
                value[:, :, block.key : block.key_stop],
                0.0,
                block.is_causal,
                attn_mask=added,
                scale=scale,
            )
            if added is not None:
                # The kernel reports 0 for a query that sees no key of the block.
                own = own.masked_fill(added.isneginf().all(1), -math.inf)
            _join(state, total, block, part, own)
        ctx.save_for_backward(query, key, value, state, total)
        ctx.cuts, ctx.scale = cuts, scale
        return state

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, state, total = ctx.saved_tensors
        grads = [torch.zeros_like(tensor) for tensor in (query, key, value)]
        for block, added in ctx.cuts:
            queries = slice(block.query, block.query_stop)
            keys = slice(block.key, block.key_stop)
            parts = _backward(
                grad[:, :, queries],
                query[:, :, queries],
                key[:, :, keys],
                value[:, :, keys],
                state[:, :, queries],
                total[:, :, queries],
                0.0,
                block.is_causal,
                attn_mask=added,
                scale=ctx.scale,
            )
            for whole, part, place in zip(grads, parts, (queries, keys, keys), strict=True):
                whole[:, :, place] += part
        return (*grads, None, None)


def _join(state: Tensor, total: Tensor, block: Block, part: Tensor, own: Tensor) -> None:
    """Add a block's state to what its queries have, in place."""
    queries = slice(block.query, block.query_stop)
    former = total[:, :, queries]
    joined = torch.logaddexp(former, own)
    # A query that has seen nothing in any block so far, as padding would, keeps 0.
    shares = [(one - joined).exp().nan_to_num(0.0)[..., None] for one in (former, own)]
    state[:, :, queries] = state[:, :, queries] * shares[0] + part * shares[1]
    total[:, :, queries] = joined


def _composed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sight: Sight,
    window: int | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """The same from plain operations: each run of queries against a copy of the keys it sees."""
    states = []
    for first, last, runs in sight.keys_of_spans():
        if first == last:
            continue
        keys = torch.cat([key[:, :, start:stop] for start, stop in runs], dim=2)
        values = torch.cat([value[:, :, start:stop] for start, stop in runs], dim=2)
        # Positions of the keys follow one another, and the last query sees the last key.
        age_Q = torch.arange(last - first, device=query.device) + keys.shape[2] - (last - first)
        distance_QK = age_Q[:, None] - torch.arange(keys.shape[2], device=query.device)
        hidden_QK = (
            distance_QK < 0 if window is None else (distance_QK < 0) | (distance_QK >= window)
        )
        asked = query[:, :, first:last]
        if softcap is None:
            mask = ~hidden_QK
            states.append(
                scaled_dot_product_attention(
                    asked, keys, values, attn_mask=mask, scale=scale, enable_gqa=True
                )
            )
        else:
            states.append(_capped(asked, keys, values, hidden_QK, scale, softcap))
    return torch.cat(states, dim=2)


def _capped(
    query: Tensor, key: Tensor, value: Tensor, hidden_QK: Tensor, scale: float, softcap: float
) -> Tensor:
    """softmax(c tanh(scale q k' / c)) v, as Gemma 2 has it."""
    times = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(times, dim=1) for one in (key, value))
    score = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    score = score.masked_fill(hidden_QK, -math.inf)
    return nn.functional.softmax(score, dim=-1, dtype=torch.float32).to(query.dtype) @ value

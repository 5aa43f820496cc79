"""Attention of a forest through kernels for sequences of different lengths, on CUDA.

Legend: Q queries, K keys, S runs of queries, H heads, D width of a head.
"""

from importlib.util import find_spec
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from palate.forest.sight import Sight
from palate.model.blocks import BlockAttention, alike

HALF = (torch.float16, torch.bfloat16)
MAX_WIDTH = 256
"""Of a head, in the kernel."""


class VarlenAttention:
    """Each run of queries is a sequence whose keys are those of its prompt, gathered, and its own.

    The kernel aligns the last query with the last key, so causality and windows hold as in a row of
    its own. Types other than 16 bit, capped scores and wide heads go through `BlockAttention`.
    """

    def __init__(self, sight: Sight, windows: dict[str, int | None], device: torch.device) -> None:
        self.windows = windows
        self.blocks = BlockAttention(sight, windows)
        runs = [run for run in sight.keys_of_spans() if run[0] < run[1]]
        key_K = np.concatenate(
            [np.arange(start, stop) for start, stop in chain(*(keys for _, _, keys in runs))]
        )
        query_lengths = [last - first for first, last, _ in runs]
        key_lengths = [sum(stop - start for start, stop in keys) for _, _, keys in runs]
        self.max_query, self.max_key = max(query_lengths), max(key_lengths)
        self.key_K = torch.from_numpy(key_K).to(device, non_blocking=True)
        self.query_end_S, self.key_end_S = (
            torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32).to(device, non_blocking=True)
            for lengths in (query_lengths, key_lengths)
        )

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
        narrow = query.shape[-1] == value.shape[-1] <= MAX_WIDTH
        if query.dtype not in HALF or softcap is not None or not narrow:
            return self.blocks.attend(query, key, value, scale, layer_type, softcap)
        from torch.nn.attention.varlen import varlen_attn

        window = self.windows[layer_type]
        key_KHD, value_KHD = (
            one[0].transpose(0, 1).index_select(0, self.key_K) for one in (key, value)
        )
        state_QHD = varlen_attn(
            query[0].transpose(0, 1).contiguous(),
            key_KHD,
            value_KHD,
            self.query_end_S,
            self.key_end_S,
            self.max_query,
            self.max_key,
            scale=scale,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=True,
        )
        assert isinstance(state_QHD, Tensor)
        return state_QHD[None]


def has_varlen(device: torch.device) -> bool:
    """Whether this torch and this GPU have the kernel (Ampere or newer)."""
    if find_spec("torch.nn.attention.varlen") is None:
        return False
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)

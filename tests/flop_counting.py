"""FLOPs that PyTorch counts while something runs, fused attention on the CPU included."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def _pairs(query: Any, key: Any, is_causal: bool) -> int:
    """Pairs that the kernel computes, over all heads: with a causal mask the lower triangle."""
    rows, heads, num_queries, _ = query
    seen = num_queries * (num_queries + 1) // 2 if is_causal else num_queries * key[2]
    return int(rows * heads * seen)


def _forward(
    query: Any, key: Any, value: Any, dropout: float = 0.0, causal: bool = False, **_: Any
) -> int:
    """Two products, scores and states."""
    return 2 * _pairs(query, key, causal) * (query[3] + value[3])


def _backward(
    grad: Any,
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    logsumexp: Any,
    dropout: float,
    causal: bool,
    *_: Any,
    **__: Any,
) -> int:
    """Five: the scores again, and the gradients of value, probabilities, query and key."""
    return 2 * _pairs(query, key, causal) * (3 * query[3] + 2 * value[3])


KERNELS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


def counted_flops(run: Callable[[], object]) -> int:
    """What `run` executes in matrix products and attention."""
    with FlopCounterMode(display=False, custom_mapping=KERNELS) as counter:
        run()
    return int(counter.get_total_flops())

"""One layer of a body in numbers of values a token, read from modules without weights."""

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from palate.forest.cost import LayerCost, Window

KEY_VALUE = ("k_proj", "v_proj", "key", "value")
"""Last parts of the names of matrices that make keys or values alone."""
WIDE_NORMS = ("Gemma", "Olmo2", "Olmo3")
"""Beginnings of the names of RMSNorm classes that multiply in float32."""


@dataclass(frozen=True)
class Norm:
    """A normalisation: values a token, groups of them that are normalised by themselves."""

    num_values: int
    num_groups: int
    fused: bool
    """Whether it is PyTorch's own LayerNorm, which keeps its input alone."""
    of_projection: bool
    """Of queries or keys; all others are of the states between layers."""
    wide: bool = False
    """Whether the normalised values meet the weight in float32, before they are cast back."""


@dataclass(frozen=True)
class LayerShape:
    """One layer, in numbers of values a token."""

    cost: LayerCost
    norms: tuple[Norm, ...]
    query_width: int
    key_width: int
    value_width: int
    num_heads: int
    fused_projection: bool
    """Whether queries, keys and values come from one matrix, whose output is then kept whole."""
    num_attention_inputs: int
    """Matrices of the attention that read the states between layers."""
    num_mlp_inputs: int
    mlp_width: int
    """Of the MLP's inner states, experts left out."""
    gated: bool
    num_dispatched: int
    """Experts that a token is sent to; 0 in a dense layer."""
    expert_width: int
    """Of one expert's inner states."""
    num_adapters: int
    adapter_rank: int
    num_matrix_weights: int
    """Weights of all matrices, experts left out."""


def _is_attention(name: str) -> bool:
    return "attn" in name or "attention" in name


def layer_shape(
    module: nn.Module, text: Any, window: Window, rank: int, adapted: Container[int]
) -> LayerShape:
    """The shape of a layer of a body with the text configuration `text`.

    `window` 0 says that it has no attention over pairs; `adapted` holds the identities of the
    matrices that get an adapter.
    """
    matrices = {
        name: part for name, part in module.named_modules() if isinstance(part, nn.Linear | Conv1D)
    }
    attention = {name: m for name, m in matrices.items() if _is_attention(name)}
    routers = [name for name in matrices if name.endswith((".gate", "router"))]
    mlp = [m for n, m in matrices.items() if n not in attention and n not in routers]
    attends = bool(attention) and window != 0
    heads, query, key, value = _head_widths(text) if attends else (0, 0, 0, 0)
    pairs = query + heads * (value // _num_key_value_heads(text)) if attends else 0
    mlp_width, gated, num_mlp_inputs, last = _mlp(mlp)
    top_k, expert_width, unused = _experts(module, text)
    with_adapter = {name: m for name, m in matrices.items() if id(m) in adapted}
    from_states = [m for m in attention.values() if sides(m)[0] == text.hidden_size]
    cost = LayerCost(
        num_weights=sum(p.numel() for p in module.parameters()) - unused,
        num_key_value_weights=text.hidden_size * (key + value),
        pair_width=pairs,
        window=window or None,
        num_last_weights=last,
        num_adapter_weights=sum(rank * sum(sides(m)) for m in with_adapter.values()),
        num_key_value_adapter_weights=sum(
            rank * sum(sides(m)) for n, m in with_adapter.items() if n.split(".")[-1] in KEY_VALUE
        ),
    )
    return LayerShape(
        cost=cost,
        norms=tuple(_norms(module, text)),
        query_width=query,
        key_width=key,
        value_width=value,
        num_heads=heads,
        fused_projection=attends and any(sides(m)[1] >= query + key + value for m in from_states),
        num_attention_inputs=max(1, len(from_states) - (query == text.hidden_size)),
        num_mlp_inputs=num_mlp_inputs,
        mlp_width=mlp_width,
        gated=gated,
        num_dispatched=top_k,
        expert_width=expert_width,
        num_adapters=len(with_adapter),
        adapter_rank=rank,
        num_matrix_weights=sum(math.prod(sides(m)) for m in matrices.values()),
    )


def _num_key_value_heads(text: Any) -> int:
    if getattr(text, "kv_lora_rank", None):  # latent keys and values, made for every head
        return int(text.num_attention_heads)
    return int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)


def _head_widths(text: Any) -> tuple[int, int, int, int]:
    """Heads, and widths of all queries, all keys and all values of a token."""
    heads = int(text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    if getattr(text, "kv_lora_rank", None):
        key = int(text.qk_nope_head_dim) + int(text.qk_rope_head_dim)
        value = int(text.v_head_dim)
    else:
        key = value = width
    groups = _num_key_value_heads(text)
    return heads, heads * key, groups * key, groups * value


def _mlp(matrices: Sequence[nn.Module]) -> tuple[int, bool, int, int]:
    """Inner width, whether it is gated, matrices that read the states, weights of the last one."""
    if len(matrices) < 2:
        return 0, False, 0, 0
    *first, last = matrices
    inner = sides(last)[0]
    gated = sum(sides(m)[1] for m in first) >= 2 * inner
    return inner, gated, len(first), math.prod(sides(last))


def _experts(module: nn.Module, text: Any) -> tuple[int, int, int]:
    """Experts that a token meets, width of each, and weights of those that it doesn't meet."""
    stacks = [parameter for _, parameter in expert_stacks(module)]
    if not stacks:
        return 0, 0, 0
    num_experts = len(stacks[0])
    chosen = getattr(text, "num_experts_per_tok", None) or num_experts
    size = sum(stack.numel() for stack in stacks)
    width = min(side for stack in stacks for side in stack.shape[1:] if side != text.hidden_size)
    return chosen, width, size * (num_experts - chosen) // num_experts


def _norms(module: nn.Module, text: Any) -> Iterator[Norm]:
    for name, part in module.named_modules():
        kind = type(part).__name__
        weight = getattr(part, "weight", None)
        if "Norm" not in kind or weight is None:
            continue
        last = name.split(".")[-1]
        of_query = last.startswith(("q_", "query"))
        of_key = last.startswith(("k_", "key"))
        size, groups = weight.numel(), 1
        if (of_query or of_key) and hasattr(text, "num_attention_heads"):
            heads, query, key, _ = _head_widths(text)
            widest = query if of_query else key
            groups = 1 if size == widest else widest * heads // query
            size = widest
        fused = isinstance(part, nn.LayerNorm | nn.RMSNorm)
        yield Norm(size, groups, fused, of_query or of_key, kind.startswith(WIDE_NORMS))


def expert_stacks(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Fused weights of experts: parameters of three dimensions, experts first."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 3 and len(parameter) > 1:
            yield name, parameter


def sides(module: nn.Module) -> tuple[int, int]:
    """Width in and width out of a matrix."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    assert isinstance(module, nn.Linear)
    return module.in_features, module.out_features

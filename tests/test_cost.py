"""Token and FLOP counts: by hand, against brute force, and against what PyTorch counts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palate.forest.cost import (
    Flops,
    LayerCost,
    Work,
    forward_flops,
    padded_pairs_work,
    recomputed_flops,
    rows_work,
    total,
    training_flops,
    tree_work,
    visible_pairs,
)
from palate.forest.tree import grow_tree
from tests.flop_counting import counted_flops

_short = st.lists(st.integers(0, 2), min_size=1, max_size=30)
_groups = st.lists(_short, min_size=1, max_size=5)
_windows = st.none() | st.integers(1, 12)


# Tokens and pairs


def test_a_tree_by_hand() -> None:
    """Prompt of 10 tokens, answers of 3 and 5 that differ at once: 10 + 3 + 5 = 18 tokens instead
    of 28. Pairs: 10 * 11 / 2 = 55 in the prompt, 11 + 12 + 13 = 36 and 11 + ... + 15 = 65 in the
    answers. With a window of 4: 1 + 2 + 3 + 7 * 4 = 34 and 8 * 4 = 32. The ends see 13 and 15 keys,
    or 4 each."""
    prompt = list(range(100, 110))
    work = tree_work([[*prompt, 1, 2, 3], [*prompt, 4, 5, 6, 7, 8]], (None, 4))
    assert work == Work(18, 0, 2, (55 + 36 + 65, 34 + 32), (28, 8))


def test_padded_pairs_by_hand() -> None:
    """Three answers of 4, 6 and 9 tokens, each compared with each: six rows of 9, 54 slots, of
    which each answer fills two rows: 54 - 2 * 19 = 16 padding."""
    work = padded_pairs_work([(4, 6, 9)], [[(0, 1), (0, 2), (1, 2)]])
    assert work == Work(54, 16, 6, (6 * 45,), (6 * 9,))


@given(st.integers(0, 40), _windows)
def test_pairs_are_those_of_a_mask(num_tokens: int, window: int | None) -> None:
    order = torch.arange(num_tokens)
    distance = order[:, None] - order[None, :]
    seen = (distance >= 0) & (distance < (window or num_tokens + 1))
    assert visible_pairs(num_tokens, window) == int(seen.sum())


@given(_groups, _windows)
def test_a_tree_costs_no_more_than_its_rows(group: list[list[int]], window: int | None) -> None:
    """Equal where nothing is shared, and one sequence's cost where all are equal."""
    windows = (None, window)
    tree = tree_work(group, windows)
    rows = rows_work([len(sequence) for sequence in group], windows)
    assert tree.num_tokens <= rows.num_tokens
    assert all(t <= r for t, r in zip(tree.pairs, rows.pairs, strict=True))
    assert tree_work([group[0]] * 3, windows) == rows_work([len(group[0])], windows)
    apart = [[100 + number, *sequence] for number, sequence in enumerate(group)]
    assert tree_work(apart, windows) == rows_work([len(s) for s in apart], windows)


@given(_groups)
def test_pairs_by_position_are_pairs_by_key(group: list[list[int]]) -> None:
    """Counted from the queries: each sees as many keys as its position says. Counted from the keys:
    each is seen by all that hangs below it. Long common openings make deep trees."""
    deep = [[7] * 9 + ([8] * 9 if n % 2 else []) + sequence for n, sequence in enumerate(group)]
    work = tree_work(deep)
    assert work.pairs[0] == grow_tree(deep).num_pairs
    assert work.end_pairs[0] == sum(len(sequence) for sequence in {tuple(s) for s in deep})


def test_works_add_up() -> None:
    one, other = rows_work([3, 4], (None, 2)), rows_work([5], (None, 2))
    assert one + other == rows_work([3, 4, 5], (None, 2))
    assert total([]) == Work()
    assert total([one, other]) == one + other


# FLOPs


def test_six_n_d_and_its_shares() -> None:
    """100 weights, 7 tokens: 2 * 700 forward, 4 * 700 backward. Frozen below adapters the body
    lacks the product for its weights' gradient: 4 * 700 altogether."""
    work = rows_work([7])
    forward = forward_flops(work, (None,), [LayerCost(100, num_adapter_weights=10)])
    assert forward == Flops(1400, 140, 0)
    assert training_flops(forward, "full").weights == 6 * 100 * 7
    assert training_flops(forward, "lora") == Flops(2800, 420, 0)
    assert training_flops(forward, "frozen") == forward
    layers = [LayerCost(100, num_last_weights=30)]
    assert recomputed_flops(forward, work, layers, "full", True) == forward.total - 2 * 30 * 7
    assert recomputed_flops(forward, work, layers, "lora", True) == forward.total
    assert recomputed_flops(forward, work, layers, "frozen", True) == 0


def test_the_last_layer_at_the_ends_alone() -> None:
    """Two sequences of 5 tokens, layers of 100 weights of which 20 make keys and values, pair width
    3. The first layer costs 2 * 100 * 10 and 2 * 3 * 30; the last 2 * (20 * 10 + 80 * 2) and
    2 * 3 * 10."""
    work = rows_work([5, 5])
    layers = [LayerCost(100, 20, 3)] * 2
    assert forward_flops(work, (None,), layers, last_layer="ends") == Flops(2000 + 720, 0, 180 + 60)
    assert forward_flops(work, (None,), layers) == Flops(4000, 0, 360)


class _Block(torch.nn.Module):
    """Attention and an MLP, in matrices alone: what the count is about and nothing else."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
        self.out = torch.nn.Linear(width, width, bias=False)
        self.up = torch.nn.Linear(width, 4 * width, bias=False)
        self.down = torch.nn.Linear(4 * width, width, bias=False)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(state).chunk(3, dim=-1)
        )
        seen = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        state = state + self.out(seen.transpose(1, 2).flatten(2))
        return state + self.down(torch.relu(self.up(state)))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_pytorch_counts(checkpointing: bool) -> None:
    """Exactly, on matrices and fused attention alone."""
    width, heads, num_tokens = 32, 4, 24
    blocks = torch.nn.ModuleList(_Block(width, heads) for _ in range(2))
    state = torch.randn(2, num_tokens, width, requires_grad=True)

    def run() -> None:
        hidden = state
        for block in blocks:
            if checkpointing:
                hidden = torch.utils.checkpoint.checkpoint(block, hidden, use_reentrant=False)
            else:
                hidden = block(hidden)
        hidden.sum().backward()

    work = rows_work([num_tokens, num_tokens])
    layers = [LayerCost(12 * width**2, pair_width=2 * width, num_last_weights=4 * width**2)] * 2
    forward = forward_flops(work, (None,), layers)
    expected = training_flops(forward, "full").total
    expected += recomputed_flops(forward, work, layers, "full", checkpointing)
    assert counted_flops(run) == expected

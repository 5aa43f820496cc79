"""Trees and plans: every token stands once where it belongs and sees what it should."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.forest import Packing, Plan, grow_tree, plan_groups, plan_rows, plan_trees
from palate.forest.plan import PADDING, _best_fit
from palate.forest.sight import Sight
from palate.forest.tree import MIN_SHARED_TOKENS, shared_length
from palate.model.attention import visible

short = st.lists(st.integers(1, 3), min_size=1, max_size=8)
opening = st.sampled_from([[], [7] * 5, [7] * MIN_SHARED_TOKENS, [7] * 9 + [8] * 9])
sequence = st.builds(lambda start, rest: start + rest, opening, short)
group = st.lists(sequence, min_size=1, max_size=9)
groups_of_ids = st.lists(group, min_size=1, max_size=6)
PAD = 0
PackingOf = Callable[[int], Packing]
PACKINGS: dict[str, PackingOf] = {
    "rows": lambda budget: Packing("rows", budget, PAD),
    "tree": lambda budget: Packing("tree", budget, PAD),
    "one row": lambda budget: Packing("tree", budget, PAD, one_row=True),
    "one row of 16": lambda budget: Packing("tree", budget, PAD, one_row=True, multiple_of=16),
}


@given(sequence, sequence)
def test_shared_length_counts_the_common_beginning(first: list[int], second: list[int]) -> None:
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    assert shared_length(first, second) == count


@given(group)
def test_a_path_from_root_to_end_gives_the_sequence_back(sequences: list[list[int]]) -> None:
    """Nodes stand in depth-first order: above a column are those whose subtree holds it."""
    tree = grow_tree(sequences)
    for ids, end in zip(sequences, tree.end_N, strict=True):
        start, path = 0, []
        for node in tree.nodes:
            stop = start + len(node.ids)
            if start <= end < stop + node.num_below:
                assert node.position == len(path)
                path += node.ids
                assert end >= stop - 1, "a sequence ends where a node ends"
            start = stop
        assert path == ids


@given(group)
def test_openings_of_enough_tokens_stand_once(sequences: list[list[int]]) -> None:
    """No two nodes right below one node begin with `MIN_SHARED_TOKENS` equal tokens; the root holds
    what all share; equal sequences, and they alone, end in one place."""
    tree = grow_tree(sequences)
    shared = min(shared_length(a, b) for a in sequences for b in sequences)
    assert len(tree.nodes[0].ids) == shared
    assert len({tuple(ids) for ids in sequences}) == len(set(tree.end_N))
    seen: set[tuple[int, tuple[int, ...]]] = set()
    above: list[tuple[int, int]] = []
    start = 0
    for number, node in enumerate(tree.nodes):
        stop = start + len(node.ids)
        while above and above[-1][1] <= start:
            above.pop()
        if above and len(node.ids) >= MIN_SHARED_TOKENS:
            child = (above[-1][0], node.ids[:MIN_SHARED_TOKENS])
            assert child not in seen
            seen.add(child)
        above.append((number, stop + node.num_below))
        start = stop


def test_answers_that_open_alike_share_the_opening() -> None:
    """A prompt of 4; answers A A, A B and C with |A| = 10, |B| = 3, |C| = 5, A A of 20 tokens.
    Shared once: 4 + 10 (A) + 10 + 3 + 5 = 32 tokens; with one level 4 + 20 + 13 + 5 = 42.
    Pairs, node by node as n (n + 1) / 2 + n below: 10 + 4 * 28, 55 + 10 * 13, 55, 6, 15."""
    prompt, a = [1, 2, 3, 4], list(range(10, 20))
    tree = grow_tree([[*prompt, *a, *a], [*prompt, *a, 30, 31, 32], [*prompt, 40, 41, 42, 43, 44]])
    assert tree.num_tokens == 32
    assert tree.num_pairs == 122 + 185 + 55 + 6 + 15
    assert [(len(n.ids), n.position, n.num_below) for n in tree.nodes] == [
        (4, 0, 28),
        (10, 4, 13),
        (10, 14, 0),
        (3, 14, 0),
        (5, 4, 0),
    ]


def test_equal_answers_and_one_that_begins_another_end_in_one_node() -> None:
    tree = grow_tree([[1, 2, 3], [1, 2, 3, 4], [1, 2, 3]])
    assert [node.ids for node in tree.nodes] == [(1, 2, 3), (4,)]
    assert tree.end_N == (2, 3, 2)


def seen_by_each_end(plan: Plan) -> list[list[int]]:
    """For each sequence, the ids that its last token sees, in order of position."""
    mask = visible(torch.from_numpy(plan.reach_RT)).numpy()
    found = []
    for row, column in zip(plan.end_row_N, plan.end_column_N, strict=True):
        keys = np.flatnonzero(mask[row, column])
        assert plan.position_RT[row, keys].tolist() == list(range(len(keys)))
        found.append(plan.input_ids_RT[row, keys].tolist())
    return found


@pytest.mark.parametrize("packing", PACKINGS)
@given(groups=groups_of_ids, budget=st.integers(1, 60))
@settings(max_examples=60)
def test_each_last_token_sees_exactly_its_own_sequence(
    packing: str, groups: list[list[list[int]]], budget: int
) -> None:
    """In each layout, for any budget: positions 0, 1, 2, ... and the ids of its sequence."""
    found: dict[int, list[list[int]]] = {}
    for plan in plan_groups(groups, PACKINGS[packing](budget)):
        ends = iter(seen_by_each_end(plan))
        for index in plan.groups:
            assert index not in found
            found[index] = [next(ends) for _ in groups[index]]
    assert found == dict(enumerate(groups))


@given(groups=groups_of_ids, budget=st.integers(1, 60), chosen=st.integers(0, 2**16))
@settings(max_examples=100)
def test_blocks_are_the_mask(groups: list[list[list[int]]], budget: int, chosen: int) -> None:
    """Every pair that the mask allows stands in one block and no other does, for all columns as
    queries and for some of them; and the runs of keys are the same pairs."""
    packing = Packing("tree", budget, PAD, one_row=True, multiple_of=4)
    for plan in plan_groups(groups, packing):
        mask = visible(torch.from_numpy(plan.reach_RT)).numpy()[0]
        padding = plan.reach_RT[0] == PADDING
        assert plan.sight is not None
        random = np.random.default_rng(chosen)
        some = np.flatnonzero(random.random(len(padding)) < 0.4)
        for sight in (plan.sight, plan.sight.of_queries(some)):
            real_Q = ~padding[sight.column_Q]
            for pairs in (pairs_of_blocks(sight), pairs_of_runs(sight)):
                assert pairs.max(initial=0) <= 1
                assert (pairs.astype(bool)[real_Q] == mask[sight.column_Q][real_Q]).all()
                assert not pairs[real_Q][:, padding].any()


def pairs_of_blocks(sight: Sight) -> np.ndarray:
    pairs = np.zeros((len(sight.column_Q), sight.num_keys), int)
    for block in sight.blocks:
        shape = (block.query_stop - block.query, block.key_stop - block.key)
        inside = np.tri(*shape, dtype=int) if block.is_causal else np.ones(shape, int)
        pairs[block.query : block.query_stop, block.key : block.key_stop] += inside
        query_Q = sight.position_T[sight.column_Q[block.query : block.query_stop]]
        distance = query_Q[:, None] - sight.position_T[None, block.key : block.key_stop]
        if sight.position_T.any():
            assert (distance * inside).max() <= block.distance
    return pairs


def pairs_of_runs(sight: Sight) -> np.ndarray:
    pairs = np.zeros((len(sight.column_Q), sight.num_keys), int)
    for first, last, runs in sight.keys_of_spans():
        keys = np.concatenate([np.arange(start, stop) for start, stop in runs])
        for query in range(first, last):
            pairs[query, keys[: len(keys) - (last - 1 - query)]] += 1
    return pairs


@pytest.mark.parametrize("packing", PACKINGS)
@given(groups=groups_of_ids, budget=st.integers(1, 60))
@settings(max_examples=60)
def test_the_budget_bounds_the_slots_unless_one_group_exceeds_it(
    packing: str, groups: list[list[list[int]]], budget: int
) -> None:
    chosen = PACKINGS[packing](budget)
    for plan in plan_groups(groups, chosen):
        if plan.num_slots > budget + chosen.multiple_of - 1:
            assert len(plan.groups) == 1 or (packing == "tree" and len(plan.reach_RT) == 1)


def test_a_tree_of_nine_answers_processes_the_prompt_once() -> None:
    """A prompt of 50 tokens and nine answers of 10: 50 + 9 * 10 = 140 tokens, row by row 540."""
    prompt = list(range(1, 51))
    answers = [[100 + k, *([7] * 9)] for k in range(9)]
    groups = [[prompt + answer for answer in answers]]
    (tree,) = plan_trees(groups, 10_000, PAD)
    (rows,) = plan_rows(groups, 10_000, PAD)
    assert (tree.num_tokens, rows.num_tokens) == (140, 540)
    assert (tree.reach_RT == 140).sum() == 50 + 10, "the prompt's tokens and the last answer's"


def test_groups_of_one_prompt_share_it_and_others_do_not() -> None:
    """Two pairs on a prompt of 20, one answer in both, answers of 5: 20 + 3 * 5 = 35 tokens. A
    third pair shares 6 tokens of its 26 only, and stands alone."""
    prompt = list(range(1, 21))
    answers = [[100 + k] * 5 for k in range(3)]
    other = [*prompt[:6], *range(50, 65)]
    groups = [
        [prompt + answers[0], prompt + answers[1]],
        [other + answers[0], other + answers[1]],
        [prompt + answers[1], prompt + answers[2]],
    ]
    (plan,) = plan_groups(groups, Packing("tree", 1000, PAD, one_row=True))
    assert plan.num_tokens == 35 + 21 + 10
    assert plan.groups == (1, 0, 2) or plan.groups == (0, 2, 1)
    assert len(set(plan.end_column_N.tolist())) == 5, "the answer in both pairs ends in one place"
    apart = plan_groups(groups, Packing("tree", 30, PAD, one_row=True))
    assert sum(len(plan.groups) for plan in apart) == 3
    assert max(plan.num_slots for plan in apart) <= 31, "joined they would exceed the budget"


def test_padding_sees_itself_and_nobody_sees_padding() -> None:
    plan = plan_trees([[[1, 2, 3, 4, 5], [1, 2, 6]], [[1], [2]]], 10_000, PAD)[0]
    mask = visible(torch.from_numpy(plan.reach_RT)).numpy()
    padding = plan.reach_RT == PADDING
    assert padding.any()
    for row, column in zip(*np.nonzero(padding), strict=True):
        assert np.flatnonzero(mask[row, column]).tolist() == [column]
        others = mask[row, :, column].copy()
        others[column] = False
        assert not others.any()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 60))
def test_best_fit_fills_bins_within_the_capacity(sizes: list[int], capacity: int) -> None:
    """Each item once; a bin over the capacity holds one item; two bins never fit into one."""
    bins = _best_fit(sizes, capacity)
    assert sorted(index for members in bins for index in members) == list(range(len(sizes)))
    loads = sorted(sum(sizes[index] for index in members) for members in bins)
    for members in bins:
        assert len(members) == 1 or sum(sizes[index] for index in members) <= capacity
    if len(loads) > 1:
        assert loads[0] + loads[1] > capacity


def test_best_fit_takes_the_fullest_bin() -> None:
    """Capacity 10, sizes 5 8 4 2 1. By falling size: 8 and 5 open a bin each; 4 fits beside 5 only
    (9); 2 fits beside 8 only (10); 1 completes the second to 10. Capacity 12: 8, then 5 opens a
    second bin, 4 completes the first to 12, 2 and 1 go to the second, though it is the emptier."""
    assert _best_fit([5, 8, 4, 2, 1], 10) == [[1, 3], [0, 2, 4]]
    assert _best_fit([5, 8, 4, 2, 1], 12) == [[1, 2], [0, 3, 4]]
    # 3 fits both 6 (4 left) and 4 (6 left): the fuller one takes it.
    assert _best_fit([6, 5, 3], 10) == [[0, 2], [1]]

"""Trees and plans: every token stands once where it belongs and sees what it should."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.forest import Plan, grow_tree, plan_rows, plan_trees
from palate.forest.plan import PADDING, PREFIX
from palate.model.attention import visible

sequence = st.lists(st.integers(1, 3), min_size=1, max_size=8)
group = st.lists(sequence, min_size=1, max_size=9)
groups_of_ids = st.lists(group, min_size=1, max_size=6)
PAD = 0


@given(group)
def test_prefix_and_branches_give_the_sequences_back(sequences: list[list[int]]) -> None:
    tree = grow_tree(sequences)
    assert [[*tree.prefix, *branch] for branch in tree.branches] == sequences
    assert all(tree.branches)


@given(group)
def test_the_prefix_is_the_longest_that_leaves_a_token_to_each(sequences: list[list[int]]) -> None:
    length = len(grow_tree(sequences).prefix)
    longer = {tuple(s[: length + 1]) for s in sequences}
    assert len(longer) > 1 or min(map(len, sequences)) == length + 1


def test_a_response_that_begins_another_keeps_one_token() -> None:
    tree = grow_tree([[1, 2, 3], [1, 2, 3, 4]])
    assert tree.prefix == (1, 2)
    assert tree.branches == ((3,), (3, 4))


def seen_by_each_end(plan: Plan) -> list[list[int]]:
    """For each sequence, the ids that its last token sees, in order of position."""
    mask = visible(torch.from_numpy(plan.tree_RT), torch.from_numpy(plan.branch_RT)).numpy()
    found = []
    for row, column in zip(plan.end_row_N, plan.end_column_N, strict=True):
        keys = np.flatnonzero(mask[row, column])
        assert plan.position_RT[row, keys].tolist() == list(range(len(keys)))
        found.append(plan.input_ids_RT[row, keys].tolist())
    return found


@pytest.mark.parametrize("lay_out", [plan_trees, plan_rows])
@given(groups=groups_of_ids, budget=st.integers(1, 60))
@settings(max_examples=60)
def test_each_last_token_sees_exactly_its_own_sequence(
    lay_out: object, groups: list[list[list[int]]], budget: int
) -> None:
    """In both layouts, for any budget: positions 0, 1, 2, ... and the ids of its sequence."""
    assert callable(lay_out)
    plans = lay_out(groups, budget, PAD)
    found: dict[int, list[list[int]]] = {}
    for plan in plans:
        ends = iter(seen_by_each_end(plan))
        for index in plan.groups:
            assert index not in found
            found[index] = [next(ends) for _ in groups[index]]
    assert found == dict(enumerate(groups))


@given(groups=groups_of_ids, budget=st.integers(1, 60))
@settings(max_examples=60)
def test_the_budget_bounds_the_slots_unless_one_group_exceeds_it(
    groups: list[list[list[int]]], budget: int
) -> None:
    for plan in [*plan_trees(groups, budget, PAD), *plan_rows(groups, budget, PAD)]:
        assert plan.num_slots <= budget or len(plan.groups) == 1 or plan.layout == "tree"
        if plan.num_slots > budget:
            assert plan.input_ids_RT.shape[0] == 1 or plan.layout == "rows"


def test_a_tree_of_nine_answers_processes_the_prompt_once() -> None:
    """A prompt of 50 tokens and nine answers of 10: 50 + 9 * 10 = 140 tokens, row by row 540."""
    prompt = list(range(1, 51))
    answers = [[100 + k, *([7] * 9)] for k in range(9)]
    groups = [[prompt + answer for answer in answers]]
    (tree,) = plan_trees(groups, 10_000, PAD)
    (rows,) = plan_rows(groups, 10_000, PAD)
    assert (tree.num_tokens, rows.num_tokens) == (140, 540)
    assert (tree.branch_RT == PREFIX).sum() == 50


def test_padding_sees_itself_and_nobody_sees_padding() -> None:
    plan = plan_trees([[[1, 2, 3, 4, 5], [1, 2, 6]], [[1], [2]]], 10_000, PAD)[0]
    mask = visible(torch.from_numpy(plan.tree_RT), torch.from_numpy(plan.branch_RT)).numpy()
    padding = plan.tree_RT == PADDING
    assert padding.any()
    for row, column in zip(*np.nonzero(padding), strict=True):
        assert np.flatnonzero(mask[row, column]).tolist() == [column]
        others = mask[row, :, column].copy()
        others[column] = False
        assert not others.any()


def test_two_trees_in_a_row_do_not_see_each_other() -> None:
    packed = plan_trees([[[1, 2, 3, 4, 5, 6, 7]], [[1, 2], [1, 3]], [[9, 8], [9, 7]]], 7, PAD)
    assert sorted(len(p.groups) for p in packed) == [1, 2]
    for p in packed:
        mask = visible(torch.from_numpy(p.tree_RT), torch.from_numpy(p.branch_RT)).numpy()
        other = p.tree_RT[:, :, None] != p.tree_RT[:, None, :]
        assert not (mask & other).any()

"""Plans: where each token stands, what it sees, and where each answer ends.

Legend: R rows, T tokens of a row, N sequences (answers) of the plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from palate.forest.tree import Ids, Tree, grow_tree

PREFIX = 0
PADDING = -1
Layout = Literal["tree", "rows"]


@dataclass(frozen=True)
class Plan:
    """One microbatch as integers.

    A query sees a key when the key is not later in its row, has the same `tree_RT`, and is in the
    prefix (`branch_RT` 0) or in the query's branch (1, 2, ...). Padding has tree and branch -1.
    In layout `rows` each row is one sequence, padded on the right.
    """

    layout: Layout
    input_ids_RT: np.ndarray
    position_RT: np.ndarray
    tree_RT: np.ndarray
    branch_RT: np.ndarray
    end_row_N: np.ndarray
    """Row of each sequence's last token; sequences in the order of the groups given."""
    end_column_N: np.ndarray
    groups: tuple[int, ...]
    """Indices of the groups in this plan, in the order of their sequences."""

    @property
    def num_slots(self) -> int:
        """Token slots the body processes, padding included."""
        return int(self.input_ids_RT.size)

    @property
    def num_tokens(self) -> int:
        """Real tokens among them."""
        return int((self.tree_RT != PADDING).sum())


def plan_rows(
    groups: Sequence[Sequence[Ids]], tokens_per_microbatch: int, pad_id: int
) -> list[Plan]:
    """Layout `rows`: each sequence in a row of its own; groups of like length together.

    R*T stays within `tokens_per_microbatch`, except that a group is never divided: a larger one
    stands alone.
    """
    plans: list[Plan] = []
    batch: list[int] = []
    num_rows = width = 0
    for index in _longest_first([max(map(len, group)) for group in groups]):
        widest = max(width, *map(len, groups[index]))
        if batch and (num_rows + len(groups[index])) * widest > tokens_per_microbatch:
            plans.append(_rows_plan(groups, batch, pad_id))
            batch, num_rows, widest = [], 0, max(map(len, groups[index]))
        batch.append(index)
        num_rows, width = num_rows + len(groups[index]), widest
    return [*plans, _rows_plan(groups, batch, pad_id)] if batch else plans


def plan_trees(
    groups: Sequence[Sequence[Ids]], tokens_per_microbatch: int, pad_id: int
) -> list[Plan]:
    """Layout `tree`: each group a tree, trees packed into rows no longer than the largest.

    First-fit decreasing. R*T stays within `tokens_per_microbatch`, except that a tree is never
    divided: a larger one stands alone.
    """
    trees = [grow_tree(group) for group in groups]
    rows: list[list[int]] = []
    used: list[int] = []
    capacity = max((tree.num_tokens for tree in trees), default=0)
    for index in _longest_first([tree.num_tokens for tree in trees]):
        size = trees[index].num_tokens
        row = next((r for r, taken in enumerate(used) if taken + size <= capacity), len(rows))
        if row == len(rows):
            rows.append([])
            used.append(0)
        rows[row].append(index)
        used[row] += size
    plans: list[Plan] = []
    batch: list[list[int]] = []
    width = 0
    for index in _longest_first(used):
        # Rows come by falling width, so a batch is as wide as its first row.
        if batch and (len(batch) + 1) * width > tokens_per_microbatch:
            plans.append(_tree_plan(trees, batch, width, pad_id))
            batch = []
        width = width if batch else used[index]
        batch.append(rows[index])
    return [*plans, _tree_plan(trees, batch, width, pad_id)] if batch else plans


def _longest_first(sizes: Sequence[int]) -> list[int]:
    return sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))


def _empty(num_rows: int, width: int, pad_id: int) -> dict[str, np.ndarray]:
    shape = (num_rows, width)
    return {
        "input_ids_RT": np.full(shape, pad_id, dtype=np.int64),
        "position_RT": np.zeros(shape, dtype=np.int64),
        "tree_RT": np.full(shape, PADDING, dtype=np.int64),
        "branch_RT": np.full(shape, PADDING, dtype=np.int64),
    }


def _place(
    arrays: dict[str, np.ndarray],
    at: tuple[int, int],
    ids: Ids,
    position: int,
    tree: int,
    branch: int,
) -> int:
    """Write one run of tokens; return the column after it."""
    row, start = at
    stop = start + len(ids)
    arrays["input_ids_RT"][row, start:stop] = ids
    arrays["position_RT"][row, start:stop] = np.arange(position, position + len(ids))
    arrays["tree_RT"][row, start:stop] = tree
    arrays["branch_RT"][row, start:stop] = branch
    return stop


def _rows_plan(groups: Sequence[Sequence[Ids]], batch: Sequence[int], pad_id: int) -> Plan:
    sequences = [sequence for index in batch for sequence in groups[index]]
    arrays = _empty(len(sequences), max(map(len, sequences)), pad_id)
    for row, sequence in enumerate(sequences):
        _place(arrays, (row, 0), sequence, 0, row, 1)
    return Plan(
        layout="rows",
        end_row_N=np.arange(len(sequences)),
        end_column_N=np.array([len(sequence) - 1 for sequence in sequences]),
        groups=tuple(batch),
        **arrays,
    )


def _tree_plan(
    trees: Sequence[Tree], rows: Sequence[Sequence[int]], width: int, pad_id: int
) -> Plan:
    arrays = _empty(len(rows), width, pad_id)
    ends: list[tuple[int, int]] = []
    for row, members in enumerate(rows):
        column = 0
        for number, index in enumerate(members):
            tree = trees[index]
            column = _place(arrays, (row, column), tree.prefix, 0, number, PREFIX)
            for branch, ids in enumerate(tree.branches, start=1):
                column = _place(arrays, (row, column), ids, len(tree.prefix), number, branch)
                ends.append((row, column - 1))
    return Plan(
        layout="tree",
        end_row_N=np.array([row for row, _ in ends]),
        end_column_N=np.array([column for _, column in ends]),
        groups=tuple(index for members in rows for index in members),
        **arrays,
    )

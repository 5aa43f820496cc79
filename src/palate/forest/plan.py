"""Plans: where each token stands, what it sees, and where each answer ends.

Legend: R rows, T tokens of a row, N sequences (answers) of the plan.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from palate.forest.sight import Sight
from palate.forest.tree import Ids, Tree, grow_tree, shared_length

Layout = Literal["tree", "rows"]
PADDING = 0
"""The reach of a slot that holds no token."""


@dataclass(frozen=True)
class Plan:
    """One microbatch as integers.

    A query sees a key of its row when the key is not later and reaches it: `key <= query <
    reach_RT[row, key]`, in columns. A token reaches to the end of all that hangs below its node;
    in layout `rows`, where each row is one sequence, padded on the right, to that sequence's end.
    """

    layout: Layout
    input_ids_RT: np.ndarray
    position_RT: np.ndarray
    reach_RT: np.ndarray
    end_row_N: np.ndarray
    """Row of each sequence's last token; sequences in the order of the groups given."""
    end_column_N: np.ndarray
    groups: tuple[int, ...]
    """Indices of the groups in this plan, in the order of their sequences."""

    @property
    def num_slots(self) -> int:
        """Token slots the body processes, padding included."""
        return int(self.input_ids_RT.size)

    @cached_property
    def num_tokens(self) -> int:
        """Real tokens among them."""
        return int((self.reach_RT != PADDING).sum())

    @cached_property
    def sight(self) -> Sight | None:
        """What the tokens of a forest in one row see, run by run; None for several rows."""
        if self.layout == "rows" or len(self.reach_RT) != 1:
            return None
        return Sight.of_row(self.reach_RT[0], self.position_RT[0])


@dataclass(frozen=True)
class Packing:
    """How groups are laid out in microbatches."""

    layout: Layout
    tokens_per_microbatch: int
    """Bound on R*T; a group is never divided, so a larger one stands alone."""
    pad_id: int
    one_row: bool = False
    """Layout tree: all trees of a microbatch in one row, without padding, as attention by blocks
    takes them; otherwise in rows no longer than the largest tree, as a dense mask wants them."""
    multiple_of: int = 1
    """One row: padded to a multiple of so many slots, so that few shapes are compiled."""


def plan_groups(groups: Sequence[Sequence[Ids]], packing: Packing) -> list[Plan]:
    """Plans that hold every group once."""
    if packing.layout == "rows":
        return plan_rows(groups, packing.tokens_per_microbatch, packing.pad_id)
    if packing.one_row:
        return _plan_one_row(groups, packing)
    return plan_trees(groups, packing.tokens_per_microbatch, packing.pad_id)


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
    """Layout `tree`: each group a tree, trees packed into rows no longer than the largest."""
    stands = _stands(groups, tokens_per_microbatch)
    capacity = max((stand.tree.num_tokens for stand in stands), default=0)
    rows = _best_fit([stand.tree.num_tokens for stand in stands], capacity)
    used = [sum(stands[index].tree.num_tokens for index in row) for row in rows]
    plans: list[Plan] = []
    batch: list[list[_Stand]] = []
    width = 0
    for index in _longest_first(used):
        # Rows come by falling width, so a batch is as wide as its first row.
        if batch and (len(batch) + 1) * width > tokens_per_microbatch:
            plans.append(_tree_plan(batch, width, pad_id))
            batch = []
        width = width if batch else used[index]
        batch.append([stands[member] for member in rows[index]])
    return [*plans, _tree_plan(batch, width, pad_id)] if batch else plans


def _plan_one_row(groups: Sequence[Sequence[Ids]], packing: Packing) -> list[Plan]:
    stands = _stands(groups, packing.tokens_per_microbatch)
    sizes = [stand.tree.num_tokens for stand in stands]
    plans = []
    for row in _best_fit(sizes, packing.tokens_per_microbatch):
        width = sum(sizes[index] for index in row)
        width += -width % packing.multiple_of
        plans.append(_tree_plan([[stands[index] for index in row]], width, packing.pad_id))
    return plans


@dataclass(frozen=True)
class _Stand:
    """A tree with the groups whose sequences end in it, in their order."""

    tree: Tree
    groups: tuple[int, ...]


def _stands(groups: Sequence[Sequence[Ids]], tokens_per_microbatch: int) -> list[_Stand]:
    """A tree for each group; groups that begin alike share one while it stays within the budget.

    Alike is: their first sequences begin with the same tokens for half of the shorter one or more,
    which is so for groups of one long prompt and not for those that share a system prompt.
    """
    order = sorted(range(len(groups)), key=lambda index: min(map(tuple, groups[index])))
    stands: list[_Stand] = []
    for index in order:
        own = grow_tree(groups[index])
        if stands:
            former = stands[-1]
            first = groups[former.groups[-1]][0]
            shared = shared_length(tuple(first), tuple(groups[index][0]))
            if 2 * shared >= min(len(first), len(groups[index][0])):
                members = (*former.groups, index)
                joined = grow_tree([ids for member in members for ids in groups[member]])
                saves = joined.num_tokens < former.tree.num_tokens + own.num_tokens
                if saves and joined.num_tokens <= tokens_per_microbatch:
                    stands[-1] = _Stand(joined, members)
                    continue
        stands.append(_Stand(own, (index,)))
    # The order of the groups given, so that plans don't depend on what the texts say.
    return sorted(stands, key=lambda stand: stand.groups[0])


def _best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of at most `capacity`, by best-fit decreasing: the fullest bin that still takes an item.

    An item over the capacity has a bin of its own. At most 11/9 of the fewest bins possible, and
    one more (Johnson 1974).
    """
    bins: list[list[int]] = []
    space: list[tuple[int, int]] = []  # (free, bin), rising
    for index in _longest_first(sizes):
        place = bisect_left(space, (sizes[index], -1))
        if place < len(space):
            free, chosen = space.pop(place)
        else:
            free, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(index)
        insort(space, (free - sizes[index], chosen))
    return bins


def _longest_first(sizes: Sequence[int]) -> list[int]:
    return sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))


def _empty(num_rows: int, width: int, pad_id: int) -> dict[str, np.ndarray]:
    shape = (num_rows, width)
    return {
        "input_ids_RT": np.full(shape, pad_id, dtype=np.int64),
        "position_RT": np.zeros(shape, dtype=np.int64),
        "reach_RT": np.full(shape, PADDING, dtype=np.int64),
    }


def _place(
    arrays: dict[str, np.ndarray], at: tuple[int, int], ids: Ids, position: int, num_below: int
) -> int:
    """Write one run of tokens; return the column after it."""
    row, start = at
    stop = start + len(ids)
    arrays["input_ids_RT"][row, start:stop] = ids
    arrays["position_RT"][row, start:stop] = np.arange(position, position + len(ids))
    arrays["reach_RT"][row, start:stop] = stop + num_below
    return stop


def _rows_plan(groups: Sequence[Sequence[Ids]], batch: Sequence[int], pad_id: int) -> Plan:
    sequences = [sequence for index in batch for sequence in groups[index]]
    arrays = _empty(len(sequences), max(map(len, sequences)), pad_id)
    for row, sequence in enumerate(sequences):
        _place(arrays, (row, 0), sequence, 0, 0)
    return Plan(
        layout="rows",
        end_row_N=np.arange(len(sequences)),
        end_column_N=np.array([len(sequence) - 1 for sequence in sequences]),
        groups=tuple(batch),
        **arrays,
    )


def _tree_plan(rows: Sequence[Sequence[_Stand]], width: int, pad_id: int) -> Plan:
    arrays = _empty(len(rows), width, pad_id)
    ends: list[tuple[int, int]] = []
    for row, stands in enumerate(rows):
        column = 0
        for stand in stands:
            ends += [(row, column + end) for end in stand.tree.end_N]
            for node in stand.tree.nodes:
                column = _place(arrays, (row, column), node.ids, node.position, node.num_below)
    return Plan(
        layout="tree",
        end_row_N=np.array([row for row, _ in ends]),
        end_column_N=np.array([column for _, column in ends]),
        groups=tuple(index for stands in rows for stand in stands for index in stand.groups),
        **arrays,
    )

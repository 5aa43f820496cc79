"""A tree: what several sequences begin with is computed once.

Legend: N sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

Ids = Sequence[int]
MIN_SHARED_TOKENS = 8
"""Answers share an opening of their own from so many tokens on: a shorter one saves less than the
further node costs."""


@dataclass(frozen=True)
class Node:
    """A run of tokens, and how many tokens hang below it."""

    ids: tuple[int, ...]
    position: int
    """Of its first token, counted from the beginning of the sequences."""
    num_below: int
    """Tokens of all nodes below; they follow this node's own in the tree's order."""


@dataclass(frozen=True)
class Tree:
    """N sequences as nodes in depth-first order; a sequence is the path from root to end."""

    nodes: tuple[Node, ...]
    end_N: tuple[int, ...]
    """Place of each sequence's last token, counted along the nodes; equal sequences have one."""

    @cached_property
    def num_tokens(self) -> int:
        return sum(len(node.ids) for node in self.nodes)

    @property
    def num_pairs(self) -> int:
        """Pairs of a query and a key that it sees, over all tokens, without a window."""
        return sum(
            len(node.ids) * (len(node.ids) + 1) // 2 + len(node.ids) * node.num_below
            for node in self.nodes
        )


def grow_tree(sequences: Sequence[Ids]) -> Tree:
    """The tree of N >= 1 non-empty sequences.

    What all begin with is the root; among what remains, openings of `MIN_SHARED_TOKENS` or more are
    shared again, and equal sequences are one. Common beginnings are those of full tokenisations, so
    token boundaries are exact by construction.
    """
    assert sequences and all(sequences), "a tree needs sequences, none of them empty"
    order = sorted(range(len(sequences)), key=lambda n: tuple(sequences[n]))
    nodes: list[Node] = []
    ends = [0] * len(sequences)
    _grow([(tuple(sequences[n]), n) for n in order], 0, 0, nodes, ends)
    return Tree(tuple(nodes), tuple(ends))


def shared_length(first: Ids, second: Ids) -> int:
    """Number of tokens that two sequences begin with in common."""
    limit = min(len(first), len(second))
    if first[:limit] == second[:limit]:
        return limit
    low, high = 0, limit
    # A slice is compared at the speed of memory, a loop over tokens isn't.
    while low + 1 < high:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _grow(
    ordered: Sequence[tuple[tuple[int, ...], int]],
    position: int,
    start: int,
    nodes: list[Node],
    ends: list[int],
) -> int:
    """Append the nodes of sequences (in dictionary order, equal up to `position`) that stand from
    `start` on; return where they end."""
    first, last = ordered[0][0], ordered[-1][0]
    # In dictionary order the first and the last share what all share.
    stop = shared_length(first, last)
    here = len(nodes)
    nodes.append(Node((), 0, 0))
    column = start + stop - position
    rest = 0
    while rest < len(ordered) and len(ordered[rest][0]) == stop:
        ends[ordered[rest][1]] = column - 1
        rest += 1
    below = column
    runs = _by_opening(ordered[rest:], stop)
    # Answers keep the order in which they were given.
    for members in sorted(runs, key=lambda run: min(n for _, n in run)):
        below = _grow(members, stop, below, nodes, ends)
    nodes[here] = Node(first[position:stop], position, below - column)
    return below


def _by_opening(
    ordered: Sequence[tuple[tuple[int, ...], int]], position: int
) -> list[Sequence[tuple[tuple[int, ...], int]]]:
    """Runs of sequences that go on with an opening long enough to share, or are equal."""
    runs: list[Sequence[tuple[tuple[int, ...], int]]] = []
    start = 0
    for index in range(1, len(ordered) + 1):
        if index < len(ordered):
            one, other = ordered[start][0], ordered[index][0]
            shared = shared_length(one, other) - position
            if one == other or shared >= MIN_SHARED_TOKENS:
                continue
        runs.append(ordered[start:index])
        start = index
    return runs

"""A tree: one prompt computed once, and a branch for each answer."""

from collections.abc import Sequence
from dataclasses import dataclass

Ids = Sequence[int]


@dataclass(frozen=True)
class Tree:
    """The longest common token prefix of K sequences, and their K remainders."""

    prefix: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        return len(self.prefix) + sum(map(len, self.branches))


def grow_tree(sequences: Sequence[Ids]) -> Tree:
    """The tree of K >= 1 non-empty sequences; each branch keeps at least one token.

    The prefix is common to the full tokenisations, so token boundaries are exact by construction.
    When one sequence is the beginning of another, the prefix ends one token before its end.
    """
    assert sequences and all(sequences), "a tree needs sequences, none of them empty"
    first, last = min(map(tuple, sequences)), max(map(tuple, sequences))
    limit = min(map(len, sequences)) - 1
    length = 0
    # Of all sequences the least and the greatest in dictionary order share the shortest prefix.
    while length < limit and first[length] == last[length]:
        length += 1
    prefix = tuple(sequences[0][:length])
    return Tree(prefix, tuple(tuple(sequence[length:]) for sequence in sequences))

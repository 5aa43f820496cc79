"""Judgements of the same two answers brought together, wherever in the data they stand.

Legend: P judgements as in the columns, J those that are used, I pairs of answers, A annotators,
V values, Q pairs of judgements of one item.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from palate.audit.columns import NO_ANNOTATOR, Columns
from palate.audit.hashes import mixed

SAID = (-1, 0, 1)
"""What a judgement says of an item, in the order of the values V: the second is better, neither,
the first."""
MAX_STEP = 30
"""Of more judgements of one item each is paired with the next 30 alone."""


@dataclass(frozen=True)
class Judgements:
    """Judgements by item: two answers to one prompt, in whatever row and order they stand.

    Where somebody judged an item several times the first counts. Judgements without a name are each
    somebody else's. Sorted by item.
    """

    row_J: np.ndarray
    """Index into the columns' judgements (P)."""
    item_J: np.ndarray
    annotator_J: np.ndarray
    value_J: np.ndarray
    """Index into SAID; which answer is the first of an item is as in its first row."""
    strength_J: np.ndarray
    """NaN where none was stated."""
    group_J: np.ndarray
    cluster_J: np.ndarray
    num_items: int

    @property
    def counts(self) -> np.ndarray:
        """How often each value was given to each item, shape I, V."""
        cells = self.item_J * len(SAID) + self.value_J
        counts = np.bincount(cells, minlength=self.num_items * len(SAID))
        return counts.reshape(self.num_items, len(SAID))

    @property
    def item_clusters(self) -> np.ndarray:
        """Prompt cluster of each item."""
        clusters = np.zeros(self.num_items, dtype=self.cluster_J.dtype)
        clusters[self.item_J] = self.cluster_J
        return clusters

    @property
    def item_groups(self) -> np.ndarray:
        """A group that each item stands in."""
        groups = np.zeros(self.num_items, dtype=np.int64)
        groups[self.item_J[::-1]] = self.group_J[::-1]
        return groups

    def only(self, keep_J: np.ndarray) -> "Judgements":
        """Some of them; items are numbered anew, and keep their order."""
        items, item_J = np.unique(self.item_J[keep_J], return_inverse=True)
        kept = {
            name: getattr(self, name)[keep_J]
            for name in ("row_J", "annotator_J", "value_J", "strength_J", "group_J", "cluster_J")
        }
        return Judgements(item_J=item_J, num_items=len(items), **kept)

    def shared(self) -> "Judgements":
        """Those of items that somebody else judged too."""
        several = np.bincount(self.item_J, minlength=self.num_items) >= 2
        return self.only(several[self.item_J])

    def pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions of two judgements of one item, a block for each distance in their order; of
        items with more than MAX_STEP + 1 not all."""
        here = np.arange(len(self.item_J))
        for step in range(1, MAX_STEP + 1):
            here = here[here + step < len(self.item_J)]
            here = here[self.item_J[here] == self.item_J[here + step]]
            if not here.size:
                return
            yield here, here + step


def judgements(columns: Columns) -> Judgements:
    """The columns' judgements by item. Those of an answer with itself are left out."""
    texts = columns.text_N
    first_P, second_P = texts[columns.first_P], texts[columns.second_P]
    group_P = columns.group_N[columns.first_P]
    row_J = np.flatnonzero(first_P != second_P)
    first_J, second_J, group_J = first_P[row_J], second_P[row_J], group_P[row_J]
    low_J, high_J = np.minimum(first_J, second_J), np.maximum(first_J, second_J)
    key_J = mixed(columns.prompt_G[group_J], low_J, high_J)
    _, start_I, item_J = np.unique(key_J, return_index=True, return_inverse=True)
    same_way_J = first_J == first_J[start_I][item_J]
    outcome_J = columns.outcome_P[row_J].astype(np.int64)
    annotator_J = columns.annotator_P[row_J].astype(np.int64)
    found = Judgements(
        row_J=row_J,
        item_J=item_J.astype(np.int64),
        annotator_J=annotator_J,
        value_J=np.where(same_way_J, outcome_J, -outcome_J) + 1,
        strength_J=columns.strength_P[row_J].astype(float),
        group_J=group_J,
        cluster_J=columns.cluster_G[group_J],
        num_items=len(start_I),
    )
    order = np.lexsort((row_J, annotator_J, item_J))
    same = np.zeros(len(order), dtype=bool)
    item, annotator = found.item_J[order], annotator_J[order]
    same[1:] = (item[1:] == item[:-1]) & (annotator[1:] == annotator[:-1])
    same &= annotator != NO_ANNOTATOR
    return found.only(order[~same])

"""What the tokens of a forest in one row see, as runs of columns instead of a matrix.

Legend: S spans, T columns of the row (as keys), Q queries.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Span:
    """Columns `start` to `stop` that are seen alike: by each other, when not later, and whole by
    all that hangs below them, the columns from `stop` to `reach`."""

    start: int
    stop: int
    reach: int
    position: int
    """Of the first token; those of the others follow."""


@dataclass(frozen=True)
class Block:
    """Queries `query` to `query_stop` (places among the queries) against keys `key` to `key_stop`
    (columns)."""

    query: int
    query_stop: int
    key: int
    key_stop: int
    is_causal: bool
    """As many queries as keys, each sees the keys up to its own; otherwise all see all, but for a
    window."""
    distance: int
    """Largest distance in position of a query and a key that it sees in this block, window apart:
    no window from `distance + 1` on cuts anything."""


@dataclass(frozen=True, eq=False)
class Sight:
    """A row of trees and the queries that look into it: all of its columns, or some."""

    spans: tuple[Span, ...]
    position_T: np.ndarray
    column_Q: np.ndarray
    """Columns of the queries, rising."""

    @classmethod
    def of_row(cls, reach_T: np.ndarray, position_T: np.ndarray) -> "Sight":
        """Of a row whose queries are all its columns. A run of padding (reach 0) is a span that
        nothing else sees."""
        # A new span begins where the reach changes, or where positions don't go on.
        breaks = np.flatnonzero(
            (np.diff(reach_T) != 0) | ((np.diff(position_T) != 1) & (reach_T[1:] != 0))
        )
        starts = np.concatenate([[0], breaks + 1])
        stops = np.concatenate([breaks + 1, [len(reach_T)]])
        spans = tuple(
            Span(start, stop, max(stop, reach), position)
            for start, stop, reach, position in zip(
                starts.tolist(),
                stops.tolist(),
                reach_T[starts].tolist(),
                position_T[starts].tolist(),
                strict=True,
            )
        )
        return cls(spans, position_T, np.arange(len(reach_T)))

    def of_queries(self, column_Q: np.ndarray) -> "Sight":
        """The same row, looked into from some of its columns."""
        return Sight(self.spans, self.position_T, column_Q)

    def behind(self, column: int) -> "Sight":
        """The same row, looked into from all columns from `column` on."""
        spans: list[Span] = []
        for span in self.spans:
            if span.start < column < span.stop:
                # What is cut off goes on seeing what it saw: it hangs below the first part.
                spans.append(replace(span, stop=column))
                span = replace(span, start=column, position=span.position + column - span.start)
            spans.append(span)
        return Sight(tuple(spans), self.position_T, np.arange(column, self.num_keys))

    @property
    def num_keys(self) -> int:
        return len(self.position_T)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Every query's keys, each once; first the blocks in which queries see their own spans."""
        own: list[Block] = []
        below: list[Block] = []
        for span in self.spans:
            first, last, end = np.searchsorted(
                self.column_Q, [span.start, span.stop, span.reach]
            ).tolist()
            if last - first == span.stop - span.start:
                distance = last - first - 1
                own.append(Block(first, last, span.start, span.stop, True, distance))
            else:
                for query in range(first, last):
                    stop = int(self.column_Q[query]) + 1
                    distance = stop - span.start - 1
                    own.append(Block(query, query + 1, span.start, stop, False, distance))
            if end > last and span.stop > span.start:
                furthest = int(self.position_T[self.column_Q[last:end]].max())
                distance = furthest - span.position
                below.append(Block(last, end, span.start, span.stop, False, distance))
        return (*own, *below)

    def keys_of_spans(self) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """(first query, last query + 1, runs of keys) for runs of queries that see the same keys
        but for their own span's later ones: the spans above, outermost first, then their own up to
        the last query. Positions of the keys, taken together, follow one another."""
        above: list[Span] = []
        for span in self.spans:
            while above and above[-1].reach <= span.start:
                above.pop()
            first, last = np.searchsorted(self.column_Q, [span.start, span.stop]).tolist()
            runs = [(one.start, one.stop) for one in above]
            if last - first == span.stop - span.start:
                yield first, last, [*runs, (span.start, span.stop)]
            else:
                for query in range(first, last):
                    yield query, query + 1, [*runs, (span.start, int(self.column_Q[query]) + 1)]
            above.append(span)

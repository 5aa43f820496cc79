"""What a benchmark is made of: how a row is read, what an item earns, which means are published.

Legend: I items.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from palate.errors import PalateError
from palate.evaluation.benchmarks.items import BenchmarkItem, ScoredItem
from palate.preferences import Comparison, Message, Response, ScoringItem, prompt_cluster
from palate.preferences.formats.fields import Row, list_field, messages_of, require, text_of


class Column(NamedTuple):
    """What each item earns by one rule."""

    earned_I: np.ndarray
    """NaN where the rule does not apply to the item."""
    num_ties_I: np.ndarray
    """Comparisons with equal values that the rule looked at."""


class Part(NamedTuple):
    """`coefficient` times the mean of a column over the items of some subsets."""

    coefficient: float
    column: str
    subsets: frozenset[str]


Number = tuple[Part, ...]
"""The sum of its parts."""
Values = Sequence[np.ndarray]
"""Of each item, a value of each answer: its reward, or its length."""


@dataclass(frozen=True, kw_only=True)
class Definition:
    """One benchmark as it was published."""

    name: str
    title: str
    fields: str
    """The fields of a row, for messages."""
    item_of: Callable[[Row, str], BenchmarkItem]
    """From a row and its file's name. Raises PalateError."""
    columns: Callable[[Sequence[ScoredItem], Values, bool], Mapping[str, Column]]
    """From items, values, and whether ties earn half instead of what was published."""
    numbers: Mapping[str, Number]
    headline: str
    version: int = 1
    """Raised when the same rewards would get another number."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Published number of items of each subset."""
    remedy: str = ""
    """What to do about a subset of more items than were published."""


def won(value_N: np.ndarray, better: int, worse: int, half: bool) -> float:
    """1 for a higher value; for an equal one 0, or a half."""
    gap = value_N[better] - value_N[worse]
    return float(gap > 0) + (0.5 if half and gap == 0 else 0.0)


def num_equal(item: ScoredItem, value_N: np.ndarray) -> int:
    """Comparisons with equal values."""
    return sum(value_N[i] == value_N[j] for i, j, _ in item.comparisons)


def pair_column(items: Sequence[ScoredItem], values: Values, half: bool) -> dict[str, Column]:
    """Of each item the weighted share of its comparisons that are won, in the column `accuracy`."""
    earned = [
        np.average(
            [won(value_N, i, j, half) for i, j, _ in item.comparisons],
            weights=[weight for _, _, weight in item.comparisons],
        )
        for item, value_N in zip(items, values, strict=True)
    ]
    ties = [num_equal(item, value_N) for item, value_N in zip(items, values, strict=True)]
    return {"accuracy": Column(np.array(earned), np.array(ties))}


def mean_of(column: str, *subsets: str, coefficient: float = 1.0) -> Part:
    return Part(coefficient, column, frozenset(subsets))


def mean_of_subsets(column: str, weights: Mapping[str, float]) -> Number:
    """The mean of subsets' means by weight."""
    total = sum(weights.values())
    return tuple(mean_of(column, s, coefficient=w / total) for s, w in weights.items())


def scaled(number: Number, factor: float) -> Number:
    return tuple(part._replace(coefficient=part.coefficient * factor) for part in number)


def mean_of_numbers(numbers: Sequence[Number]) -> Number:
    return tuple(part for number in numbers for part in scaled(number, 1 / len(numbers)))


def make_item(
    subset: str,
    prompt: Any,
    correct: Sequence[Any],
    wrong: Sequence[Any],
    *,
    id: Any = None,
    cluster: str = "",
) -> BenchmarkItem:
    """An item in which each correct answer beats each wrong one; texts are taken as they are."""
    turns: tuple[Message, ...] = messages_of(prompt, "prompt")
    named = [("correct", text) for text in correct] + [("wrong", text) for text in wrong]
    responses = tuple(Response(text_of(text, f"a {what} answer")) for what, text in named)
    ScoringItem(turns, responses[0])  # refuses an empty prompt
    pairs = [(i, len(correct) + j) for i in range(len(correct)) for j in range(len(wrong))]
    return BenchmarkItem(
        id="" if id is None else str(id),
        subset=subset,
        prompt=turns,
        responses=responses,
        comparisons=tuple(Comparison(i, j) for i, j in pairs),
        cluster=cluster or prompt_cluster(turns),
    )


def known(value: Any, what: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    """The value where it is one of the names; PalateError otherwise."""
    if not isinstance(value, str) or value not in names:
        raise PalateError(f"{what} is {value!r:.60}, none of {', '.join(names)}", "unknown subset")
    return value


def texts(row: Row, name: str) -> Sequence[Any]:
    """The list in a required field."""
    require(row, name)
    return list_field(row, name)

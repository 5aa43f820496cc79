"""RewardBench 2 (Malik et al. 2025, 2506.01937): best of four in five subsets, and Ties.

Legend: I items.
"""

import re
from collections.abc import Sequence

import numpy as np

from palate.errors import PalateError
from palate.evaluation.benchmarks.definition import (
    Column,
    Definition,
    Number,
    Values,
    known,
    make_item,
    mean_of,
    mean_of_numbers,
    num_equal,
    texts,
)
from palate.evaluation.benchmarks.items import BenchmarkItem, ScoredItem
from palate.preferences.formats.fields import Row, require

SIZES = {"Factuality": 475, "Precise IF": 160, "Math": 183, "Safety": 450, "Focus": 495}
SIZES["Ties"] = 102
_TIES_ID = re.compile(r"(ref|tied):(\d+)")


def _item(row: Row, _: str) -> BenchmarkItem:
    subset = known(require(row, "subset"), "subset", SIZES)
    correct, wrong = texts(row, "chosen"), texts(row, "rejected")
    stated = {"num_correct": len(correct), "total_completions": len(correct) + len(wrong)}
    for name, size in stated.items():
        if require(row, name) != size:
            raise PalateError(f"{name} is {row[name]!r:.20} for {size} answers", "wrong count")
    identifier = require(row, "id")
    if subset != "Ties":
        if (len(correct), len(wrong)) != (1, 3):
            raise PalateError(
                f"{len(correct)} chosen and {len(wrong)} rejected in {subset}, not 1 and 3",
                "wrong count",
            )
        return make_item(subset, require(row, "prompt"), correct, wrong, id=identifier)
    found = _TIES_ID.fullmatch(str(identifier))
    if found is None or not correct or not wrong:
        raise PalateError(
            f"id {identifier!r:.40} of {len(correct)} chosen and {len(wrong)} rejected; an item of"
            " Ties is called ref:N or tied:N and has both",
            "wrong id",
        )
    # The two prompts of a number are compared with each other, so they are resampled together.
    return make_item(
        subset, require(row, "prompt"), correct, wrong, id=identifier, cluster=f"ties {found[2]}"
    )


def _columns(items: Sequence[ScoredItem], values: Values, half: bool) -> dict[str, Column]:
    """`credit` of best-of-four, and the five terms of Ties (`_TIES`)."""
    columns = {
        name: Column(np.full(len(items), np.nan), np.zeros(len(items), int))
        for name in ("credit", *_TIES)
    }
    margin: dict[tuple[str, str], tuple[int, float, float]] = {}
    for index, (item, value_N) in enumerate(zip(items, values, strict=True)):
        num_ties = num_equal(item, value_N)
        if item.subset != "Ties":
            best = value_N == value_N.max()
            columns["credit"].earned_I[index] = best[0] / best.sum()
            columns["credit"].num_ties_I[index] = num_ties
            continue
        kind, number = str(item.id).split(":")
        correct, wrong = value_N[: item.num_correct], value_N[item.num_correct :]
        gap = float(correct.min() - wrong.max())
        margin[kind, number] = (index, gap, float(np.ptp(correct)))
        columns[kind].earned_I[index] = _above(gap, 0.0, half)
        columns[kind].num_ties_I[index] = num_ties
    for (kind, number), (index, gap, spread) in margin.items():
        if kind == "ref" or ("ref", number) not in margin:
            continue
        least = min(gap, margin["ref", number][1])
        columns["preferred"].earned_I[index] = _above(gap, spread, half)
        columns["preferred, hard"].earned_I[index] = _above(least, spread, half)
        with np.errstate(divide="ignore", invalid="ignore"):
            term = np.tanh(np.divide(least, spread) - 1)
        columns["margin"].earned_I[index] = np.nan_to_num(term, nan=0.0)
    return columns


def _above(value: float, other: float, half: bool) -> float:
    return float(value > other) + (0.5 if half and value == other else 0.0)


_TIES = {"tied": 0.3, "ref": 0.3, "preferred": 0.2, "preferred, hard": 0.2, "margin": 0.01}
"""Column to its weight. They sum to 1.01, the highest score."""
_numbers: dict[str, Number] = {
    **{subset: (mean_of("credit", subset),) for subset in SIZES if subset != "Ties"},
    "Ties": tuple(mean_of(name, "Ties", coefficient=c) for name, c in _TIES.items()),
}
REWARDBENCH2 = Definition(
    name="rewardbench2",
    title="RewardBench 2",
    fields="id, prompt, chosen, rejected (lists of texts), num_correct, total_completions, subset",
    item_of=_item,
    columns=_columns,
    numbers={"overall": mean_of_numbers(list(_numbers.values())), **_numbers},
    headline="overall",
    sizes=SIZES,
    remedy="take the split test",
)

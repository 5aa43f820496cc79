"""RM-Bench (Liu et al. 2025, 2410.16184): three styles of a correct and of a wrong answer."""

import re
from collections.abc import Sequence
from pathlib import Path

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
    scaled,
    texts,
    won,
)
from palate.evaluation.benchmarks.items import BenchmarkItem, ScoredItem
from palate.preferences.formats.fields import Row, require

SIZES = {"chat": 129, "code": 228, "math": 529, "safety-refuse": 284, "safety-response": 157}
DOMAINS = {
    "chat": ("chat",),
    "code": ("code",),
    "math": ("math",),
    "safety": ("safety-refuse", "safety-response"),
}
"""A domain is the mean over all of its items, so that the two of safety are pooled."""
STYLES = ("concise", "detailed", "markdown")
LEVELS = {
    "easy": ((1, 0), (2, 0), (2, 1)),
    "normal": ((0, 0), (1, 1), (2, 2)),
    "hard": ((0, 1), (0, 2), (1, 2)),
}
"""Cells (style of the correct answer, of the wrong one). In hard the wrong answer is the fancier
one."""


def cell(correct: int, wrong: int) -> str:
    """Name of a cell of the matrix."""
    return f"{STYLES[correct]} correct, {STYLES[wrong]} wrong"


def _item(row: Row, file: str) -> BenchmarkItem:
    correct, wrong = texts(row, "chosen"), texts(row, "rejected")
    if (len(correct), len(wrong)) != (3, 3):
        raise PalateError(
            f"{len(correct)} chosen and {len(wrong)} rejected, not 3 and 3 (concise, detailed,"
            " markdown); lists of other sizes are RewardBench 2's, whose rows have num_correct",
            "wrong count",
        )
    # Only the file of all domains has the field; the others are called after theirs.
    domain = row.get("domain") or re.split(r"[_.\s]", Path(file).name)[0]
    domain = known(domain, "domain (of the row, or the start of the file's name)", SIZES)
    return make_item(domain, require(row, "prompt"), correct, wrong, id=row.get("id"))


def _columns(items: Sequence[ScoredItem], values: Values, half: bool) -> dict[str, Column]:
    """A column for each cell and for each level, the mean of its three cells."""
    cells = [(i, j) for i in range(3) for j in range(3)]
    columns = {
        cell(i, j): Column(
            np.array([won(value_N, i, 3 + j, half) for value_N in values]),
            np.array([int(value_N[i] == value_N[3 + j]) for value_N in values]),
        )
        for i, j in cells
    }
    for level, members in LEVELS.items():
        of_level = [columns[cell(i, j)] for i, j in members]
        columns[level] = Column(
            np.mean([column.earned_I for column in of_level], axis=0),
            np.sum([column.num_ties_I for column in of_level], axis=0),
        )
    return columns


def _over_domains(column: str) -> Number:
    return mean_of_numbers([(mean_of(column, *subsets),) for subsets in DOMAINS.values()])


def _numbers() -> dict[str, Number]:
    levels = {level: _over_domains(level) for level in LEVELS}
    of_domain = {
        f"{domain}, {level}": (mean_of(level, *subsets),)
        for domain, subsets in DOMAINS.items()
        for level in LEVELS
    }
    domains = {
        domain: mean_of_numbers([of_domain[f"{domain}, {level}"] for level in LEVELS])
        for domain in DOMAINS
    }
    cells = {cell(i, j): _over_domains(cell(i, j)) for i in range(3) for j in range(3)}
    return {
        "overall": mean_of_numbers(list(levels.values())),
        **levels,
        "easy minus hard": (*levels["easy"], *scaled(levels["hard"], -1)),
        **domains,
        **of_domain,
        **cells,
    }


RM_BENCH = Definition(
    name="rm_bench",
    title="RM-Bench",
    fields="id, prompt, chosen, rejected (three texts each: concise, detailed, markdown), domain",
    item_of=_item,
    columns=_columns,
    numbers=_numbers(),
    headline="overall",
    sizes=SIZES,
    remedy="total_dataset.json holds all that the files of one domain hold; give one or the others",
)

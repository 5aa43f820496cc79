"""Pairs with a label: JudgeBench (Tan et al. 2025, 2410.12784), LLMBar (Zeng et al. 2024,
2310.07641), and the human preferences of PPE (Frick et al. 2025, 2410.14872)."""

import re
from collections.abc import Sequence
from typing import Any

from palate.errors import PalateError
from palate.evaluation.benchmarks.definition import (
    Column,
    Definition,
    Values,
    known,
    make_item,
    mean_of,
    mean_of_subsets,
    pair_column,
)
from palate.evaluation.benchmarks.items import BenchmarkItem, ScoredItem
from palate.preferences.formats.fields import Row, require
from palate.preferences.formats.judged import better_of

SOURCES = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")
LLMBAR_ADVERSARIAL = {"Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}
LLMBAR_SIZES = {"Natural": 100, **LLMBAR_ADVERSARIAL}
ALL = "all"
TIE_VOTE = "vote for neither"


def _ordered(row: Row, names: tuple[str, str], better: int) -> tuple[list[Any], list[Any]]:
    first, second = (require(row, name) for name in names)
    return ([first], [second]) if better == 0 else ([second], [first])


def _judgebench(row: Row, _: str) -> BenchmarkItem:
    source = str(require(row, "source"))
    subset = next((name for name in SOURCES if source.startswith(name)), source)
    known(subset, "source", SOURCES)
    label = str(require(row, "label"))
    if label not in ("A>B", "B>A"):
        raise PalateError(f"label is {label!r:.40}, neither A>B nor B>A", "unknown label")
    right, wrong = _ordered(row, ("response_A", "response_B"), int(label == "B>A"))
    identifier = require(row, "pair_id")
    return make_item(subset, require(row, "question"), right, wrong, id=identifier)


def _llmbar(row: Row, file: str) -> BenchmarkItem:
    label = str(require(row, "label"))
    if label not in ("1", "2"):
        raise PalateError(f"label is {label!r:.40}, neither 1 nor 2", "unknown label")
    right, wrong = _ordered(row, ("output_1", "output_2"), int(label) - 1)
    subset = _llmbar_subset(str(row.get("subset") or file))
    return make_item(subset, require(row, "input"), right, wrong, id=row.get("id"))


def _llmbar_subset(name: str) -> str:
    """The subset that a field or a path names: LLMBar's rows don't, its folders do."""
    words = set(re.split("[^a-z]+", "/".join(name.lower().split("/")[-2:])))
    found = [subset for subset in LLMBAR_SIZES if subset.lower() in words]
    if len(found) != 1:
        raise PalateError(
            f"neither the row's subset nor the path says which of {', '.join(LLMBAR_SIZES)} it is"
            " of; keep LLMBar's folders (Natural/dataset.json, Adversarial/Neighbor/dataset.json)",
            "unknown subset",
        )
    return found[0]


def _ppe(row: Row, _: str) -> BenchmarkItem:
    better = better_of(require(row, "winner"), "winner", "one_two")
    if better is None:
        raise PalateError(f"winner is {row['winner']}", TIE_VOTE)
    right, wrong = _ordered(row, ("response_1", "response_2"), better)
    return make_item(ALL, require(row, "prompt"), right, wrong, id=row.get("question_id"))


def _in_both_orders(items: Sequence[ScoredItem], values: Values, _: bool) -> dict[str, Column]:
    """Whatever a tie is called, it is right in one of the two orders."""
    return pair_column(items, values, True)


JUDGEBENCH = Definition(
    name="judgebench",
    title="JudgeBench",
    fields="pair_id, source, question, response_A, response_B, label (A>B or B>A)",
    item_of=_judgebench,
    columns=pair_column,
    numbers={
        "micro": (mean_of("accuracy", *SOURCES),),
        "macro": mean_of_subsets("accuracy", dict.fromkeys(SOURCES, 1)),
        **{source: (mean_of("accuracy", source),) for source in SOURCES},
    },
    headline="micro",
)
LLMBAR = Definition(
    name="llmbar",
    title="LLMBar",
    fields="input, output_1, output_2, label (1 or 2)",
    item_of=_llmbar,
    columns=_in_both_orders,
    numbers={
        "overall": mean_of_subsets("accuracy", dict.fromkeys(LLMBAR_SIZES, 1)),
        "Adversarial": mean_of_subsets("accuracy", dict.fromkeys(LLMBAR_ADVERSARIAL, 1)),
        **{subset: (mean_of("accuracy", subset),) for subset in LLMBAR_SIZES},
    },
    headline="overall",
    sizes=LLMBAR_SIZES,
    remedy="give each file of LLMBar once",
)
PPE = Definition(
    name="ppe",
    title="PPE human preference",
    fields="question_id, prompt, response_1, response_2, winner (model_a, model_b, tie)",
    item_of=_ppe,
    columns=pair_column,
    numbers={"accuracy": (mean_of("accuracy", ALL),)},
    headline="accuracy",
)

"""Files of benchmarks: RewardBench 1 and 2 and RM-Bench (JudgeBench and LLMBar: judged.py)."""

from itertools import combinations
from typing import Any

from palate.errors import PalateError
from palate.preferences.formats.fields import Parsed, Row, common_fields, list_field, require
from palate.preferences.formats.pairs import pairs
from palate.preferences.formats.responses import list_responses
from palate.preferences.formats.transcripts import prompt_of
from palate.preferences.settings import ReadSettings
from palate.preferences.types import Comparison
from palate.preferences.votes import tie_between


def rewardbench(row: Row, settings: ReadSettings) -> Parsed:
    """RewardBench 1: a pair, with its `subset` and the answers' models."""
    require(row, "subset")
    return pairs(row, settings)


def rewardbench2(row: Row, settings: ReadSettings) -> Parsed:
    """RewardBench 2: lists of correct (`chosen`) and wrong (`rejected`) answers, one correct except
    in the subset Ties. Every correct one beats every wrong one; correct ones are equal."""
    counts = [row.get("num_correct"), row.get("num_rejected")]
    sizes = [len(list_field(row, "chosen")), len(list_field(row, "rejected"))]
    for name, count, size in zip(("num_correct", "num_rejected"), counts, sizes, strict=True):
        if count is not None and count != size:
            raise PalateError(f"{name} is {count!r:.20} for {size} answers", "wrong count")
    return _correct_and_wrong(row, settings)


def rm_bench(row: Row, settings: ReadSettings) -> Parsed:
    """RM-Bench: three correct and three wrong answers, each concise, detailed and in markdown: one
    group of six with the nine comparisons of its matrix. Their styles are in the responses'
    meta, so that the easy, normal and hard parts can be told apart."""
    sizes = [len(list_field(row, name)) for name in ("chosen", "rejected")]
    if sizes != [3, 3]:
        raise PalateError(f"{sizes[0]} chosen and {sizes[1]} rejected, not 3 and 3", "wrong count")
    return _correct_and_wrong(row, settings, ("concise", "detailed", "markdown"))


def _correct_and_wrong(row: Row, settings: ReadSettings, styles: tuple[str, ...] = ()) -> Parsed:
    items: list[Any] = []
    for name in ("chosen", "rejected"):
        require(row, name)
        for place, text in enumerate(list_field(row, name)):
            if not isinstance(text, str):
                raise PalateError(f"{name} holds {type(text).__name__}, not text", "wrong type")
            items.append({"text": text, **({"style": styles[place]} if styles else {})})
    num_correct = len(list_field(row, "chosen"))
    listed = list_responses(items)
    correct = [new for old, new in listed.position.items() if old < num_correct]
    wrong = [new for old, new in listed.position.items() if old >= num_correct]
    stated = [Comparison(better, worse) for better in correct for worse in wrong]
    if stated and settings.votes.equal == "tie":
        stated += [tie_between(*pair) for pair in combinations(correct, 2)]
    return Parsed(
        prompt_of(require(row, "prompt")),
        listed.responses,
        tuple(stated),
        fields=common_fields(row, ("prompt", "chosen", "rejected")),
        notes=listed.notes,
        heeds=frozenset({"equal"} if len(correct) > 1 else ()),
    )

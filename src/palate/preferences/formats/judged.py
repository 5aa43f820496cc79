"""Rows of two answers with several people's votes, a strength, or a label for the better one."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from palate.errors import PalateError, SourceError
from palate.preferences.formats.fields import (
    Note,
    Parsed,
    Row,
    common_fields,
    list_field,
    number,
    optional,
    require,
    require_one,
    text_of,
)
from palate.preferences.formats.responses import answer
from palate.preferences.formats.transcripts import helpsteer_prompt, prompt_of
from palate.preferences.settings import ReadSettings
from palate.preferences.types import Comparison, Message, Response, Vote
from palate.preferences.votes import (
    HEEDED_BY_STRENGTH,
    MISSING_CELLS,
    Labels,
    VoteSettings,
    comparison_of_strength,
    tie_between,
)

RESPONSE_COLUMN = re.compile(r"response_?([0-9]{1,9})")
ANNOTATOR_COLUMN = re.compile(r"annotator_?([0-9]{1,9})")
OVERALL = ("overall_preference", "preference_strength")
INDIVIDUAL = (
    "individual_preference",
    "three_most_similar_preferences",
    "all_preferences_unprocessed",
)
"""Single votes of HelpSteer 3, and of HelpSteer 2's preferences: those that its overall preference
was made of, or all. The first that is there is read; the others stay in the meta."""
MAX_STRENGTH = 3
"""HelpSteer's scale runs from -3 (the first is much better) to 3 (the second is)."""

_WORDS: dict[str, int | None] = {
    **dict.fromkeys(("a", "a>b", "left", "model_a", "response_a", "response1"), 0),
    **dict.fromkeys(("b", "b>a", "right", "model_b", "response_b", "response2"), 1),
    **dict.fromkeys(("tie", "a=b", "equal"), None),
    **dict.fromkeys(("tie (bothbad)", "tie (both bad)", "both_bad", "bothbad", "both bad"), None),
}
"""What a label may say, in lower case: the index of the better answer, None for a tie."""
_NUMBERS: dict[Labels, dict[int, int | None]] = {
    "one_two": {1: 0, 2: 1},
    "zero_one": {0: 0, 1: 1},
    "one_zero": {1: 0, 0: 1},
    "tie_one_two": {0: None, 1: 0, 2: 1},
}
"""The same for a number, in each coding."""
_ALL_NUMBERS = frozenset(number for coding in _NUMBERS.values() for number in coding)


def annotated(row: Row, settings: ReadSettings) -> Parsed:
    """Two responses, a column for each annotator: 0 tie, 1 the first, 2 the second, empty no vote.

    The prompt is `prompt`, or `instruction` and, where there is one, `input` after a blank line.
    PandaLM's `cmp_key` names the models of both answers; it is kept in the meta too.
    """
    columns = sorted(
        (int(m[1]), name) for name in row if (m := RESPONSE_COLUMN.fullmatch(str(name)))
    )
    if len(columns) != 2:
        raise PalateError(f"{len(columns)} response columns, expected two", "missing field")
    texts = [text_of(row[name], name) for _, name in columns]
    responses = _two(*map(Response, texts, _models(row.get("cmp_key"))))
    annotators = [name for name in row if ANNOTATOR_COLUMN.fullmatch(str(name))]
    cells = {name: _voted(row, name) for name in annotators}
    if settings.votes.missing == "tie":
        cells = {name: 0 if cell is None else cell for name, cell in cells.items()}
    rankings = {0: ((0, 1),), 1: ((0,), (1,)), 2: ((1,), (0,))}
    votes = []
    for name, cell in cells.items():
        if cell is None:
            continue
        choice = number(cell, name)
        if choice not in rankings:
            raise PalateError(f"{name} is {cell!r}; expected 0, 1 or 2", "invalid vote")
        votes.append(Vote(name, rankings[int(choice)]))
    asked = ["prompt"] if optional(row, "prompt") is not None else ["instruction", "input"]
    if asked == ["prompt"]:
        prompt = prompt_of(row["prompt"])
    else:
        instruction = text_of(require(row, "instruction"), "instruction")
        context = text_of(row.get("input") or "", "input")
        prompt = (Message("user", f"{instruction}\n\n{context}" if context else instruction),)
    used = [*asked, *(name for _, name in columns), *annotators]
    return Parsed(
        prompt,
        responses,
        votes=tuple(votes),
        fields=common_fields(row, used),
        heeds=frozenset({"missing"}),
    )


def _models(key: Any) -> tuple[str | None, str | None]:
    """The models that FIRST_SECOND names; none where a name may hold the sign between them."""
    names = key.split("_") if isinstance(key, str) else []
    return (names[0], names[1]) if len(names) == 2 and all(names) else (None, None)


def _voted(row: Row, name: str) -> Any:
    """An annotator's cell; None where it says that there is no vote."""
    value = optional(row, name)
    if isinstance(value, str) and value.strip().lower() in MISSING_CELLS:
        return None
    return None if isinstance(value, float) and math.isnan(value) else value


def _two(first: Response, second: Response) -> tuple[Response, Response]:
    if first.text == second.text:
        raise PalateError("both responses are the same text", "identical responses")
    return first, second


def helpsteer(row: Row, settings: ReadSettings) -> Parsed:
    """HelpSteer 3 and HelpSteer 2's preferences: two responses, an overall preference from -3 (the
    first is much better) over 0 to 3, and single votes on the same scale with their reasons. The
    overall preference is kept in the meta as well: a comparison holds its strength only where the
    settings make a margin or a weight of it."""
    value = require_one(row, ("context", "prompt"))
    prompt = helpsteer_prompt(value, "context" if "context" in row else "prompt")
    responses = _two(
        *(
            answer(require_one(row, (f"response{n}", f"response_{n}")), f"response {n}")
            for n in (1, 2)
        )
    )
    notes: list[Note] = []
    source = next((name for name in INDIVIDUAL if row.get(name)), None)
    votes = _single_votes(list_field(row, source), settings.votes, notes) if source else ()
    used = ["context", "prompt", *(f"response{s}{n}" for s in ("", "_") for n in (1, 2))]
    stated = next((name for name in OVERALL if optional(row, name) is not None), None)
    heeds = frozenset({"missing"} if votes else ())
    used += [source] if source else []
    comparisons: tuple[Comparison, ...] = ()
    if stated is not None:
        heeds |= {"recount"} if votes else set()
        if not (votes and settings.votes.recount):
            comparisons = (_from_strength(number(row[stated], stated), stated, settings.votes),)
            heeds |= HEEDED_BY_STRENGTH | {"equal"}
    return Parsed(
        prompt,
        responses,
        stated=comparisons,
        votes=() if comparisons else votes,
        beside=votes if comparisons else (),
        fields=common_fields(row, used),
        notes=tuple(notes),
        heeds=heeds,
    )


def _from_strength(strength: float, name: str, settings: VoteSettings) -> Comparison:
    """A comparison from a signed strength: below 0 the first is better, above 0 the second."""
    if abs(strength) > MAX_STRENGTH:
        raise PalateError(f"{name} is {strength:g}, not from -3 to 3", "invalid strength")
    if strength == 0:
        return _equal(f"{name} is 0", settings)
    better = int(strength > 0)
    return comparison_of_strength(better, 1 - better, abs(strength), settings)


def _equal(what: str, settings: VoteSettings) -> Comparison:
    if settings.equal == "leave_out":
        raise PalateError(
            f"{what}: neither is better; read.votes.equal: tie keeps it", "equal answers"
        )
    return tie_between(0, 1)


def _single_votes(
    items: Sequence[Any], settings: VoteSettings, notes: list[Note]
) -> tuple[Vote, ...]:
    """Votes of people without names: nothing says that a place in the list is one person's."""
    votes = []
    for place, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise PalateError(f"a vote is {type(item).__name__}, not an object", "wrong type")
        name = "score" if "score" in item else "strength"
        score = _voted(item, name)
        if score is None and settings.missing == "tie":
            score = 0
        signed = None if score is None else number(score, name)
        if signed is None or abs(signed) > MAX_STRENGTH:
            # HelpSteer 2 writes -100 where an annotator found neither answer fit to be compared.
            notes.append(("vote", "no preference in it", f"vote {place}: {name} {score!r:.20}"))
            continue
        order = ((0, 1),) if signed == 0 else ((0,), (1,)) if signed < 0 else ((1,), (0,))
        meta = {key: value for key, value in item.items() if key != name and value is not None}
        votes.append(Vote("", order, abs(signed), meta=meta))
    return tuple(votes)


def labelled(row: Row, settings: ReadSettings) -> Parsed:
    """`prompt`, `response1`, `response2` and `preferred`: a number as `read.votes.labels` says, or
    any of `_WORDS`."""
    return _labelled(row, ("prompt", "response1", "response2", "preferred"), settings)


def judgebench(row: Row, settings: ReadSettings) -> Parsed:
    """JudgeBench: `question`, `response_A`, `response_B`, `label` "A>B" or "B>A"."""
    return _labelled(row, ("question", "response_A", "response_B", "label"), settings)


def llmbar(row: Row, settings: ReadSettings) -> Parsed:
    """LLMBar: `input`, `output_1`, `output_2`, `label` 1 or 2."""
    return _labelled(row, ("input", "output_1", "output_2", "label"), settings)


def _labelled(row: Row, names: Sequence[str], settings: ReadSettings) -> Parsed:
    prompt, first, second, label = (require(row, name) for name in names)
    responses = _two(answer(first, names[1]), answer(second, names[2]))
    better = better_of(label, names[3], settings.votes.labels)
    comparison = (
        _equal(f"{names[3]} is {label!r}", settings.votes)
        if better is None
        else Comparison(better, 1 - better)
    )
    fields = common_fields(row, names)
    turns = prompt_of(prompt, names[0])
    heeds = frozenset({"equal", *heeded_by_labels([label])})
    return Parsed(turns, responses, (comparison,), fields=fields, heeds=heeds)


def better_of(label: Any, what: str, labels: Labels) -> int | None:
    """The index of the better of two answers that a label names, None for a tie.

    Raises SourceError for a number of another coding than `labels`: one 0 shows that every 1 of the
    source means something else than it seems. PalateError for what no coding knows.
    """
    number = _number_of(label)
    coding = _NUMBERS[labels]
    if number in coding:
        return coding[number]
    if number in _ALL_NUMBERS:
        raise SourceError(
            f"{what} is {label!r:.40}, which is no label where read.votes.labels is {labels}. What"
            " the other numbers mean is then unknown, so that nothing of the source is used; set"
            " read.votes.labels to one_two (1 the first is better, 2 the second), zero_one (0 the"
            " first, 1 the second), one_zero (1 the first, 0 the second) or tie_one_two (0 neither)"
        )
    key = str(label).strip().lower()
    if key not in _WORDS or isinstance(label, bool):
        known = [*map(str, coding), *_WORDS]
        raise PalateError(f"{what} is {label!r:.40}, none of {', '.join(known)}", "unknown label")
    return _WORDS[key]


def heeded_by_labels(labels: Iterable[Any]) -> frozenset[str]:
    """`labels` where one of these is a number."""
    return frozenset({"labels"} if any(_number_of(x) is not None for x in labels) else ())


def _number_of(label: Any) -> int | None:
    """The whole number that a label is, also as text ("1", and "1.0" of a table with gaps)."""
    if isinstance(label, bool) or not isinstance(label, int | float | str):
        return None
    try:
        value = float(label)
    except (ValueError, OverflowError):
        return None
    return int(value) if value.is_integer() else None

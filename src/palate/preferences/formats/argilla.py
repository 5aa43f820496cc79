"""Records exported from Argilla: rankings, and labels that name the better of two answers."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from palate.errors import PalateError, SourceError
from palate.preferences.formats.fields import Note, Parsed, Row, field_names, list_field, require
from palate.preferences.formats.judged import better_of, heeded_by_labels
from palate.preferences.formats.responses import Listed, list_responses
from palate.preferences.formats.tasks import (
    Judgement,
    answer_columns,
    natural_order,
    of_judgements,
    prompt_shown,
    tiers_of_two,
    with_mapped_answers,
)
from palate.preferences.settings import ReadSettings
from palate.preferences.votes import Labels

ANSWERS = re.compile(r"(.+)\.responses")
"""The column of a question's answers where a record was flattened, as on the hub."""
_BESIDE_ANSWERS = re.compile(r".+\.responses(\.users|\.status)?")


@dataclass(frozen=True)
class _Answer:
    """What one annotator said to one question."""

    annotator: str
    question: str
    value: Any


def argilla(row: Row, settings: ReadSettings) -> Parsed:
    """An Argilla record, nested (`fields`, `responses`) or flattened (`QUESTION.responses`, ...).

    A ranking question's values name the fields that hold the answers; a label question names the
    better one (or says left, tie, "1"). A number is a rating, and 1 does not say that the first is
    better, unless `read.rating` names its question: then `read.votes.labels` says what it means.
    Where several questions order the answers `read.rating` names the one that counts, and where one
    does it is that of the source (`question_of_source`); what an annotator said to the others is
    kept with the vote. Answers not submitted are left out.
    """
    notes: list[Note] = []
    nested = isinstance(row.get("fields"), Mapping)
    said = _nested(row, notes) if nested else _flat(row, notes)
    rest = {k: v for k, v in row.items() if not _BESIDE_ANSWERS.fullmatch(str(k))}
    shown = with_mapped_answers(row, row["fields"]) if nested else rest
    asked = _question(said, shown, settings)
    answers = [answer for answer in said if answer.question == asked]
    labels = settings.votes.labels
    columns = _columns([answer.value for answer in answers], shown, labels)
    listed = list_responses([shown[column] for column in columns])
    prompt, prompt_column = prompt_shown(row, shown)
    judgements = [
        Judgement(
            answer.annotator,
            _tiers(answer.value, columns, listed, labels),
            {
                other.question: other.value
                for other in said
                if other.annotator == answer.annotator and other.question != asked
            },
        )
        for answer in answers
    ]
    unused = {k: v for k, v in shown.items() if k not in (*columns, prompt_column)}
    if nested:
        taken = ("fields", "responses", "prompt", "response1", "response2")
        rest = {k: v for k, v in row.items() if k not in taken}
        unused = {**rest, **({"fields": unused} if unused else {})}
    parsed = of_judgements(prompt, listed, judgements, unused, notes)
    chosen = [answer.value for answer in answers if not isinstance(answer.value, list)]
    return replace(parsed, heeds=frozenset({"rating"}) | heeded_by_labels(chosen))


def question_of_source(rows: Iterable[Row], settings: ReadSettings) -> str:
    """The question that orders the answers in the first rows of a source, where there is one.

    Each row alone could tell otherwise, when its annotators have not answered all questions. A
    question counts where most rows that answer it can be read so. Empty where none does, which the
    rows then say one by one. Raises SourceError where several do.
    """
    tried: Counter[str] = Counter()
    able: Counter[str] = Counter()
    for row in rows:
        try:
            nested = isinstance(row.get("fields"), Mapping)
            said = _nested(row, []) if nested else _flat(row, [])
            shown = with_mapped_answers(row, row["fields"]) if nested else row
            questions = {answer.question for answer in said}
            tried.update(questions)
            able.update(q for q in questions if _compares(q, said, shown, settings.votes.labels))
        except PalateError:
            continue
    found = [question for question in tried if 2 * able[question] > tried[question]]
    if len(found) > 1:
        raise SourceError(
            f"{' and '.join(sorted(found))} order the responses; read.rating names the one that"
            " counts",
            "unclear question",
        )
    return found[0] if found else ""


def _nested(row: Row, notes: list[Note]) -> list[_Answer]:
    by_question = require(row, "responses")
    if not isinstance(by_question, Mapping):
        raise PalateError(f"responses is {type(by_question).__name__}, not an object", "wrong type")
    items: list[tuple[str, Mapping[str, Any]]] = []
    for question in by_question:
        for item in list_field(by_question, question):
            if not isinstance(item, Mapping):
                raise PalateError(f"an answer is {type(item).__name__}", "wrong type")
            items.append((str(question), item))
    return _submitted(items, notes)


def _flat(row: Row, notes: list[Note]) -> list[_Answer]:
    items: list[tuple[str, Mapping[str, Any]]] = []
    for column in row:
        if not (match := ANSWERS.fullmatch(str(column))):
            continue
        values = list_field(row, column)
        users = list_field(row, f"{column}.users") or [None] * len(values)
        states = list_field(row, f"{column}.status") or [None] * len(values)
        if not len(values) == len(users) == len(states):
            raise PalateError(f"{column}, .users and .status differ in length", "wrong count")
        for value, user, status in zip(values, users, states, strict=True):
            items.append((match[1], {"value": value, "user_id": user, "status": status}))
    return _submitted(items, notes)


def _submitted(items: Sequence[tuple[str, Mapping[str, Any]]], notes: list[Note]) -> list[_Answer]:
    said = []
    for question, item in items:
        annotator = "" if item.get("user_id") is None else str(item["user_id"])
        if item.get("value") is None or item.get("status") not in (None, "submitted"):
            what = f"{question} of {annotator!r}: {item.get('status') or 'empty'}"
            notes.append(("vote", "not submitted", what))
        else:
            said.append(_Answer(annotator, question, item["value"]))
    return said


def _question(said: Sequence[_Answer], shown: Mapping[str, Any], settings: ReadSettings) -> str:
    """The question that compares answers: the wanted one, or the only one that can."""
    wanted = settings.rating
    questions = list(dict.fromkeys(answer.question for answer in said))
    if wanted in questions:
        return wanted
    labels = settings.votes.labels
    able = [] if wanted else [q for q in questions if _compares(q, said, shown, labels)]
    if len(able) == 1:
        return able[0]
    there = ", ".join(questions) or "none submitted"
    why = (
        f"no answer to {wanted!r}"
        if wanted
        else f"{' and '.join(able) or 'no question'} orders the responses; read.rating names it"
    )
    raise PalateError(f"{why} (questions: {there})", "unclear question" if said else "no vote")


def _compares(
    question: str, said: Sequence[_Answer], shown: Mapping[str, Any], labels: Labels
) -> bool:
    values = [answer.value for answer in said if answer.question == question]
    if any(isinstance(value, int | float) for value in values):
        return False
    try:
        _columns(values, shown, labels)
    except SourceError:
        # It orders them, in a coding that reading it will complain about.
        return True
    except PalateError:
        return False
    return True


def _columns(values: Sequence[Any], shown: Mapping[str, Any], labels: Labels) -> list[str]:
    """The fields that hold the answers: those that rankings name, or the two that labels mean."""
    named = {name for value in values if isinstance(value, list) for name, _ in _ranks(value)}
    if not named:
        columns = answer_columns(shown)
        for value in values:
            _better(value, columns, labels)
        return columns
    missing = sorted(named - set(shown))
    if missing:
        raise PalateError(
            f"the ranking names {', '.join(missing)}, no field of the record: {field_names(shown)}",
            "missing field",
        )
    return sorted(named, key=natural_order)


def _ranks(value: Sequence[Any]) -> list[tuple[str, int]]:
    """(name, rank) of a ranking: names, best first, or objects with a value and its rank."""
    found = []
    for place, item in enumerate(value, start=1):
        is_object = isinstance(item, Mapping)
        name, rank = (item.get("value"), item.get("rank")) if is_object else (item, place)
        if not isinstance(name, str) or isinstance(rank, bool) or not isinstance(rank, int):
            raise PalateError(f"ranking {value!r:.60} is not of names and ranks", "wrong type")
        found.append((name, rank))
    return found


def _tiers(
    value: Any, columns: Sequence[str], listed: Listed, labels: Labels
) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list):
        return tiers_of_two(_better(value, columns, labels))
    by_rank: dict[int, list[int]] = {}
    for name, rank in _ranks(value):
        index = listed.position.get(columns.index(name))
        if index is not None:
            by_rank.setdefault(rank, []).append(index)
    return tuple(tuple(by_rank[rank]) for rank in sorted(by_rank))


def _better(value: Any, columns: Sequence[str], labels: Labels) -> int | None:
    return columns.index(value) if value in columns else better_of(value, "label", labels)

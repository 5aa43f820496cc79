"""What annotation tools' exports share: fields as shown to annotators, and votes about them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from palate.errors import PalateError
from palate.preferences.formats.fields import Note, Parsed, Row, common_fields, field_names
from palate.preferences.formats.responses import Listed
from palate.preferences.formats.transcripts import prompt_of
from palate.preferences.types import Message, Vote

PROMPTS = ("prompt", "instruction", "question", "query", "input", "context")
"""Names under which a task shows its prompt."""
_ANSWER = re.compile(
    r"(response|answer|completion|output|reply|generation|text)[-_ ]?([0-9]+|[a-z])", re.IGNORECASE
)


@dataclass(frozen=True)
class Judgement:
    """One annotator's order of the responses, best first, as indices of the usable ones."""

    annotator: str
    tiers: tuple[tuple[int, ...], ...]
    meta: Mapping[str, Any] = field(default_factory=dict)


def with_mapped_answers(row: Row, shown: Mapping[str, Any]) -> dict[str, Any]:
    """What was shown, with the answers that `read.columns` has put beside it."""
    mapped = {n: row[n] for n in ("response1", "response2") if row.get(n) is not None}
    return {**shown, **mapped}


def answer_columns(shown: Mapping[str, Any]) -> list[str]:
    """The two fields that hold the answers: response1 and response2 where `read.columns` or the
    task itself says so, otherwise two with such names; PalateError where there are not two."""
    if {"response1", "response2"} <= set(shown):
        return ["response1", "response2"]
    columns = sorted((str(n) for n in shown if _ANSWER.fullmatch(str(n))), key=natural_order)
    if len(columns) != 2:
        raise PalateError(
            f"{len(columns)} fields hold answers ({', '.join(columns) or 'none'}), expected two;"
            f" name them in read.columns (response1, response2); found {field_names(shown)}",
            "missing field",
        )
    return columns


def natural_order(name: str) -> list[tuple[int, str]]:
    """A key by which answer_9 stands before answer_10."""
    parts = re.findall(r"0*([0-9]+)|([^0-9]+)", name.lower())
    return [(len(number), number) if number else (0, word) for number, word in parts]


def prompt_shown(row: Row, shown: Mapping[str, Any]) -> tuple[tuple[Message, ...], str]:
    """The prompt and the name of its field; PalateError where it is not clear which it is."""
    if row.get("prompt") is not None:
        return prompt_of(row["prompt"]), "prompt"
    names = [name for name in PROMPTS if shown.get(name) is not None]
    if len(names) != 1:
        what = " and ".join(names) if names else "no field"
        raise PalateError(
            f"{what} may be the prompt (looked for {', '.join(PROMPTS)}); read.columns says which,"
            f" as in prompt: fields.question; found {field_names(shown)}",
            "missing field",
        )
    return prompt_of(shown[names[0]], names[0]), names[0]


def tiers_of_two(better: int | None) -> tuple[tuple[int, ...], ...]:
    """The order of two responses of which one, or neither, is better."""
    return ((0, 1),) if better is None else ((better,), (1 - better,))


def of_judgements(
    prompt: tuple[Message, ...],
    listed: Listed,
    judgements: Sequence[Judgement],
    rest: Row,
    notes: Sequence[Note],
) -> Parsed:
    """What the judgements say; `rest` is what the row holds besides."""
    notes = [*listed.notes, *notes]
    votes = []
    for said in judgements:
        if sum(map(len, said.tiers)) < 2:
            what = f"that of {said.annotator!r} orders fewer than two usable responses"
            notes.append(("vote", "vote that compares nothing", what))
        else:
            votes.append(Vote(said.annotator, said.tiers, meta=dict(said.meta)))
    if not votes:
        raise PalateError("nobody has said which answer is better", "no vote")
    return Parsed(
        prompt,
        listed.responses,
        votes=tuple(votes),
        fields=common_fields(rest, ()),
        notes=tuple(notes),
    )

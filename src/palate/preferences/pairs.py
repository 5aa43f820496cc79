"""Rows of two answers, one preferred: pairs, whole conversations, HH transcripts."""

import re
from collections.abc import Sequence
from typing import Any

from palate.errors import PalateError
from palate.preferences.fields import (
    Parsed,
    Row,
    common_fields,
    messages_of,
    number,
    optional,
    require,
)
from palate.preferences.types import Comparison, Message, PreferenceGroup, Response
from palate.preferences.votes import VoteSettings

TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLE_OF = {"Human": "user", "Assistant": "assistant"}


def _answer(value: Any, what: str) -> Response:
    """A response from text, or from a list that holds one assistant message."""
    if isinstance(value, str):
        return Response(value)
    turns = messages_of(value, what)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise PalateError(f"{what} must be text or one assistant message", "not one answer")
    if turns[0].extra.get("tool_calls"):
        raise PalateError(f"{what} calls a tool; only text can be compared", "tool call as answer")
    return Response(turns[0].content)


def _pair(
    prompt: tuple[Message, ...], chosen: Any, rejected: Any, row: Row, settings: VoteSettings
) -> Parsed:
    responses = (_answer(chosen, "chosen"), _answer(rejected, "rejected"))
    if responses[0].text == responses[1].text:
        raise PalateError("chosen and rejected are the same text", "identical responses")
    margin, weight = optional(row, "margin"), optional(row, "weight")
    if margin is None and optional(row, "strength") is not None:
        margin = settings.margin_per_strength * abs(number(row["strength"], "strength"))
    comparison = Comparison(
        0,
        1,
        margin=number(0.0 if margin is None else margin, "margin"),
        weight=number(1.0 if weight is None else weight, "weight"),
    )
    used = ("prompt", "chosen", "rejected", "margin", "strength", "weight")
    return Parsed(PreferenceGroup(prompt, responses, (comparison,), **common_fields(row, used)))


def pairs(row: Row, settings: VoteSettings) -> Parsed:
    """`prompt`, `chosen`, `rejected`: text or messages; the latter two may repeat the prompt."""
    prompt, chosen, rejected = (require(row, key) for key in ("prompt", "chosen", "rejected"))
    if isinstance(prompt, str) and TURN.match(prompt) and prompt.rstrip().endswith("Assistant:"):
        turns = transcript(prompt.rstrip()[: -len("Assistant:")].rstrip(), "prompt")
    else:
        turns = messages_of(prompt, "prompt")
    if isinstance(chosen, list) and len(chosen) > 1:
        turns_full, chosen, rejected = _divide(
            messages_of(chosen, "chosen"), messages_of(rejected, "rejected")
        )
        # The conversation may hold more than `prompt` does (a system turn), never less or other.
        if _spoken(turns_full)[-len(turns) :] != _spoken(turns):
            raise PalateError("prompt differs from the conversation in chosen", "prompts differ")
        turns = turns_full
    return _pair(turns, chosen, rejected, row, settings)


def _spoken(turns: Sequence[Message]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in turns]


def implicit(row: Row, settings: VoteSettings) -> Parsed:
    """`chosen` and `rejected` as conversations in messages; all but the last turn is the prompt."""
    prompt, chosen, rejected = _divide(
        messages_of(require(row, "chosen"), "chosen"),
        messages_of(require(row, "rejected"), "rejected"),
    )
    return _pair(prompt, chosen, rejected, row, settings)


def transcript(text: str, what: str) -> tuple[Message, ...]:
    """Turns of an HH transcript: "\\n\\nHuman: ...\\n\\nAssistant: ...", ends of turns stripped."""
    pieces = TURN.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise PalateError(
            f"{what} does not start with '\\n\\nHuman:': {text[:40]!r}", "not a transcript"
        )
    return tuple(
        Message(_ROLE_OF[speaker], content.strip())
        for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True)
    )


def hh(row: Row, settings: VoteSettings) -> Parsed:
    """HH-RLHF: `chosen` and `rejected` are transcripts that share all turns but the last."""
    sides = []
    for name in ("chosen", "rejected"):
        value = require(row, name)
        if not isinstance(value, str):
            raise PalateError(f"{name} is {type(value).__name__}, not a transcript", "wrong type")
        sides.append(transcript(value, name))
    prompt, chosen, rejected = _divide(*sides)
    return _pair(prompt, chosen, rejected, row, settings)


def _divide(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], Any, Any]:
    """Two conversations to (prompt, chosen answer, rejected answer); each answer is one turn."""
    if chosen[:-1] != rejected[:-1] or not chosen[:-1]:
        raise PalateError(
            f"chosen ({len(chosen)} turns) and rejected ({len(rejected)} turns) differ before"
            " their last turn",
            "conversations differ before the last turn",
        )
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise PalateError("the last turn is not the assistant's", "last turn is not an answer")
    return chosen[:-1], [chosen[-1].as_dict()], [rejected[-1].as_dict()]

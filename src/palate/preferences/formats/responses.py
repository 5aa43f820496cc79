"""A list of responses as rows hold it: bad ones are left out, the others keep their places."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palate.errors import PalateError
from palate.preferences.formats.fields import Note, messages_of, number, object_of, require, text_of
from palate.preferences.formats.message_texts import messages_in, refuse_python_text
from palate.preferences.formats.transcripts import is_transcript
from palate.preferences.types import Response

TEXT_FIELDS = ("text", "content", "response", "answer")
RATING_FIELDS = ("rating", "score", "win_rate_vs_reference", "rank")
"""Fields that rate a response, in order of preference; in `rank` the lowest is best."""


@dataclass(frozen=True)
class Listed:
    """The usable responses of a row, and where each stood in its list."""

    responses: tuple[Response, ...]
    position: Mapping[int, int]
    """Index in the row's list to index in `responses`."""
    num_listed: int
    notes: tuple[Note, ...] = ()


def list_responses(
    items: Sequence[Any],
    rated_by: Sequence[str] = RATING_FIELDS,
    prepared: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda item: item,
) -> Listed:
    """Read texts or objects (`TEXT_FIELDS`, model, finished, meta, a rating in the first of
    `rated_by` that is there; what else they hold becomes the response's meta).

    `prepared` makes such an object of a format's own. Raises PalateError when fewer than two are
    usable.
    """
    kept: list[Response] = []
    position: dict[int, int] = {}
    notes: list[Note] = []
    for index, item in enumerate(items):
        try:
            response = _response(item, rated_by, prepared)
        except PalateError as error:
            notes.append(("response", error.reason, f"response {index}: {error}"))
            continue
        position[index] = len(kept)
        kept.append(response)
    if len(kept) < 2:
        why = f"; left out: {notes[0][2]}" if notes else ""
        reason = notes[0][1] if notes and len(items) >= 2 else "fewer than two responses"
        raise PalateError(f"{len(kept)} usable response(s), a comparison needs two{why}", reason)
    return Listed(tuple(kept), position, len(items), tuple(notes))


def answer_text(value: Any, what: str) -> str:
    """The text of an answer: text, or a list of one assistant message without tool calls."""
    return answer(value, what).text


def answer(value: Any, what: str) -> Response:
    """A response from text, or from a list of one assistant message; other fields of the message
    (a reasoning text, a name) are kept as the response's meta."""
    if isinstance(value, str):
        if is_transcript(value):
            raise PalateError(
                f"{what} is a transcript ({value[:40]!r}), not one answer; cut it after the last"
                " 'Assistant:'",
                "transcript as answer",
            )
        return Response(value)
    turns = messages_of(value, what)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise PalateError(f"{what} must be text or one assistant message", "not one answer")
    if turns[0].extra.get("tool_calls"):
        raise PalateError(f"{what} calls a tool; only text can be compared", "tool call as answer")
    rest = {key: value for key, value in turns[0].extra.items() if key != "tool_calls"}
    return Response(turns[0].content, meta=rest)


def rating_field(item: Any, rated_by: Sequence[str] = RATING_FIELDS) -> str | None:
    """The field that rates a response, or None."""
    if not isinstance(item, Mapping):
        return None
    return next((name for name in rated_by if item.get(name) is not None), None)


def _response(
    item: Any,
    rated_by: Sequence[str],
    prepared: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> Response:
    if isinstance(item, str):
        refuse_python_text(item, "it")
        item = messages_in(item)
    if isinstance(item, str | list):
        return answer(item, "it")
    if not isinstance(item, Mapping):
        raise PalateError(f"it is {type(item).__name__} {item!r:.60}", "wrong type")
    item = prepared(item)
    held_by = next((name for name in TEXT_FIELDS if item.get(name) is not None), None)
    text = require(item, held_by or "text")
    finished = item.get("finished")
    if finished is not None and not isinstance(finished, bool):
        raise PalateError(f"finished is {finished!r:.20}, not true or false", "wrong type")
    name = rating_field(item, rated_by)
    rating = None if name is None else number(item[name], name)
    if name == "rank" and rating is not None:
        rating = -rating
    used = {held_by, "model", "finished", "meta", name}
    rest = {k: v for k, v in item.items() if k not in used and v is not None}
    meta = object_of(item.get("meta"))
    if meta is not None and not isinstance(meta, Mapping):
        meta = {"meta": meta}
    return Response(
        text_of(text, str(held_by)),
        model=None if item.get("model") is None else str(item["model"]),
        finished=finished is not False,
        rating=rating,
        meta={**rest, **(meta or {})},
    )

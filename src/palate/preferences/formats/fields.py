"""Fields of raw rows to typed values. Nothing is guessed: what does not fit raises PalateError."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from palate.errors import PalateError
from palate.preferences.types import Comparison, Message, Response, Vote

Row = Mapping[str, Any]
_KNOWN_CONTENT = ("image", "image_url", "audio", "input_audio", "audio_url", "video", "video_url")


Note = tuple[str, str, str]
"""Something left out: (kind, reason, detail) of a ledger entry."""


@dataclass(frozen=True)
class Parsed:
    """What a row says, or several of one prompt, before votes and ratings are counted."""

    prompt: tuple[Message, ...]
    responses: tuple[Response, ...]
    stated: tuple[Comparison, ...] = ()
    """Comparisons that the row states itself."""
    votes: tuple[Vote, ...] = ()
    """Votes that make comparisons."""
    beside: tuple[Vote, ...] = ()
    """Votes beside stated comparisons, which are only kept."""
    rated_by: str = ""
    """The field whose ratings make comparisons; empty where ratings make none."""
    rated: frozenset[int] = frozenset()
    """Responses whose ratings make comparisons with each other."""
    rated_apart: tuple[Mapping[int, float], ...] = ()
    """Ratings of each row, where rows that were merged rate one response differently: then they
    make comparisons within each row, in place of those of `rated`."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """tools, template_arguments, id and meta of the group."""
    lines: tuple[int, ...] = ()
    notes: tuple[Note, ...] = ()
    """What was left out of the row."""
    heeds: frozenset[str] = frozenset()
    """Settings (fields of `VoteSettings`, and `rating`) that reading the row has heeded."""


def field_names(row: Row) -> str:
    """The row's fields for a message: quoted, since a name may hold anything, and cut."""
    return f"{', '.join(map(repr, row)):.300}"


def require(row: Row, name: str) -> Any:
    """The field's value; PalateError where it is missing or null."""
    if row.get(name) is None:
        raise PalateError(f"no field {name!r}; found {field_names(row)}", "missing field")
    return row[name]


def require_one(row: Row, names: Sequence[str]) -> Any:
    """The value of the first of these fields that is there; PalateError where none is."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise PalateError(f"no field {' or '.join(names)}; found {field_names(row)}", "missing field")


def number(value: Any, name: str) -> float:
    """A finite number, also from its CSV text; PalateError for anything else."""
    try:
        if isinstance(value, bool):
            raise TypeError
        converted = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise PalateError(f"{name} is {value!r:.60}, not a number", "wrong type") from error
    if not math.isfinite(converted):
        raise PalateError(f"{name} is {converted}", f"invalid {name}")
    return converted


def text_of(content: Any, what: str) -> str:
    """A message's text, from a string or a list of text parts; images and audio are refused."""
    if isinstance(content, list):
        pieces: list[str] = []
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            if kind != "text":
                raise PalateError(
                    f"{what} has content of type {str(kind)!r:.40}; palate reads text only",
                    f"{kind} content" if kind in _KNOWN_CONTENT else "content that is not text",
                )
            pieces.append(part.get("text"))
        if not all(isinstance(piece, str) for piece in pieces):
            raise PalateError(f"{what} has a text part without text", "wrong type")
        return "".join(pieces)
    if not isinstance(content, str):
        raise PalateError(f"{what} is {type(content).__name__} {content!r:.60}", "wrong type")
    return content


def messages_of(value: Any, what: str) -> tuple[Message, ...]:
    """A conversation from a list of messages, or one user message from a string."""
    if isinstance(value, str):
        return (Message("user", value),)
    if not isinstance(value, Sequence) or not all(isinstance(turn, Mapping) for turn in value):
        raise PalateError(f"{what} is {type(value).__name__}, not text or messages", "wrong type")
    turns: list[Message] = []
    for turn in value:
        role = turn.get("role")
        # A turn that calls a tool may have no content of its own.
        content = turn.get("content")
        if content is None and turn.get("tool_calls"):
            content = ""
        extra = {k: v for k, v in turn.items() if k not in ("role", "content") and v is not None}
        turns.append(Message(str(role), text_of(content, f"{what}: content"), extra))
    return tuple(turns)


def json_field(row: Row, name: str) -> Any:
    value = optional(row, name)
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError) as error:
            raise PalateError(f"{name} is a string but not JSON: {error}", "wrong type") from error
    return value


def object_of(value: Any) -> Any:
    """The object whose JSON text a table's cell holds; any other value as it is."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return parsed if isinstance(parsed, dict) else value
    return value


def optional(row: Row, name: str) -> Any:
    """The field's value; None where it is missing, null or an empty cell of a CSV file."""
    value = row.get(name)
    return None if isinstance(value, str) and not value.strip() else value


def list_field(row: Row, name: str) -> Sequence[Any]:
    """The list in a field, also from its JSON text in a CSV cell; empty where there is none."""
    value = json_field(row, name)
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise PalateError(
            f"{name} is {type(value).__name__} {value!r:.60}, not a list", "wrong type"
        )
    return value


def common_fields(row: Row, used: Sequence[str]) -> dict[str, Any]:
    """tools, template arguments, id and meta of a row; meta holds what the format did not use."""
    tools = list_field(row, "tools")
    stated = [
        json_field(row, name) or {} for name in ("template_arguments", "chat_template_kwargs")
    ]
    if all(stated) and stated[0] != stated[1]:
        raise PalateError(
            f"template_arguments {stated[0]!r:.60} and chat_template_kwargs {stated[1]!r:.60} are"
            " two names of one thing and differ",
            "template arguments differ",
        )
    arguments = stated[0] or stated[1]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise PalateError(f"tools is {tools!r:.60}, not a list of objects", "wrong type")
    if not isinstance(arguments, Mapping):
        raise PalateError(f"template_arguments is {arguments!r:.60}, not an object", "wrong type")
    taken = {*used, "tools", "template_arguments", "chat_template_kwargs", "id", "meta"}
    rest = {key: value for key, value in row.items() if key not in taken}
    meta = object_of(row.get("meta"))
    if meta is not None and not isinstance(meta, Mapping):
        meta = {"meta": meta}
    identifier = optional(row, "id")
    return {
        "tools": tuple(tools),
        "template_arguments": dict(arguments),
        "id": None if identifier is None else str(identifier),
        "meta": {**rest, **(meta or {})},
    }

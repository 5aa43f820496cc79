"""Fields of raw rows to typed values. Nothing is guessed: what does not fit raises PalateError."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from palate.errors import PalateError
from palate.preferences.types import Message, PreferenceGroup

Row = Mapping[str, Any]
_KNOWN_CONTENT = ("image", "image_url", "audio", "input_audio", "audio_url", "video", "video_url")


@dataclass
class Parsed:
    """A group and what was left out of its row on the way: (kind, reason, detail)."""

    group: PreferenceGroup
    notes: list[tuple[str, str, str]] = field(default_factory=list)


def field_names(row: Row) -> str:
    """The row's fields for a message: quoted, since a name may hold anything, and cut."""
    return f"{', '.join(map(repr, row)):.300}"


def require(row: Row, name: str) -> Any:
    """The field's value; PalateError where it is missing or null."""
    if row.get(name) is None:
        raise PalateError(f"no field {name!r}; found {field_names(row)}", "missing field")
    return row[name]


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
    arguments = json_field(row, "template_arguments") or json_field(row, "chat_template_kwargs")
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise PalateError(f"tools is {tools!r:.60}, not a list of objects", "wrong type")
    if not isinstance(arguments or {}, Mapping):
        raise PalateError(f"template_arguments is {arguments!r:.60}, not an object", "wrong type")
    taken = {*used, "tools", "template_arguments", "chat_template_kwargs", "id", "meta"}
    rest = {key: value for key, value in row.items() if key not in taken}
    meta = row.get("meta")
    if meta is not None and not isinstance(meta, Mapping):
        meta = {"meta": meta}
    identifier = optional(row, "id")
    return {
        "tools": tuple(tools),
        "template_arguments": dict(arguments or {}),
        "id": None if identifier is None else str(identifier),
        "meta": {**rest, **(meta or {})},
    }

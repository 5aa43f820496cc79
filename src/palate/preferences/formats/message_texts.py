"""Messages and turns that a file holds as text: JSON is read, Python's notation is refused."""

import json
import re
from collections.abc import Mapping
from typing import Any

from palate.errors import PalateError
from palate.preferences.formats.fields import Row

_PROMPTS = ("prompt", "context", "instruction", "question")
_ANSWER = re.compile(r"chosen|rejected|response(_?([0-9]{1,9}|[AB]))?|output_[12]")
_OF_ANNOTATORS = ("fields", "data")
"""Objects of annotation tools that hold what was shown, under any names."""
_NOT_OF_TURNS = ("rewardbench2", "rm_bench", "argilla", "label_studio")
"""Formats in which a list of texts has a meaning of its own."""
_BRACKET = re.compile(r"\s*[\[{]")
_LIKE_MESSAGES = re.compile(
    r"\s*(?:array\(\s*)?[\[(]?\s*\{\s*(['\"])(?:role|content|from|value)\1\s*:"
)
_ROLE = re.compile(r"(['\"])(?:role|from)\1\s*:")
_CONTENT = re.compile(r"(['\"])(?:content|value)\1\s*:")
_AS_A_MESSAGE = 'an answer that is meant so as text: [{"role": "assistant", "content": ...}]'


def with_messages(row: Row) -> dict[str, Any]:
    """The row with each field's JSON text of messages as those messages."""
    found = {name: messages_in(value) for name, value in row.items()}
    for name in _OF_ANNOTATORS:
        if isinstance(shown := found.get(name), Mapping):
            found[name] = {key: messages_in(value) for key, value in shown.items()}
    return found


def messages_in(value: Any) -> Any:
    """The messages whose JSON text this is (a list of them, or one); any other value as it is."""
    if not isinstance(value, str) or not _BRACKET.match(value) or not _ROLE.search(value):
        return value
    parsed = _json(value)
    items = parsed if isinstance(parsed, list) else [parsed]
    return parsed if items and all(map(_is_message, items)) else value


def _json(text: str) -> Any:
    """The list or object whose JSON text this is, otherwise None."""
    if not _BRACKET.match(text):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and (
        ("role" in item and ("content" in item or "tool_calls" in item))
        or {"from", "value"} <= set(item)
    )


def texts_in(value: Any) -> list[str | None]:
    """The texts of a list, or of its JSON text; empty for any other value."""
    parsed = _json(value) if isinstance(value, str) else value
    if not isinstance(parsed, list) or not any(isinstance(item, str) for item in parsed):
        return []
    return parsed if all(isinstance(item, str | None) for item in parsed) else []


def refuse_python_text(value: Any, name: str) -> None:
    """Raise PalateError for text that starts as messages do and is no JSON: Python's notation, as
    tables of lists are written by mistake, or JSON that was cut."""
    if (
        isinstance(value, str)
        and _LIKE_MESSAGES.match(value)
        and _ROLE.search(value)
        and _CONTENT.search(value)
        and _json(value) is None
    ):
        raise PalateError(
            f"{name} holds messages as text that is not JSON ({value[:40]!r}; Python's notation,"
            " or cut): write the column with json.dumps, or the table as Parquet or JSONL;"
            f" {_AS_A_MESSAGE}",
            "messages as text that is not JSON",
        )


def without_turn_lists(row: Row, format: str) -> Row:
    """The row with its prompt and answers out of their lists of turns, each of one text.

    Lists (or their JSON text) are of turns where the prompt and all answers are lists of one length
    (LMSYS's arena). Raises PalateError for several turns, which two answers don't share, where only
    the prompt or only all of several answers are lists, and for Python's notation of messages.
    """
    answers = [name for name in row if _ANSWER.fullmatch(str(name)) and row[name] is not None]
    asked = next((name for name in _PROMPTS if row.get(name) is not None), None)
    for name in [*([asked] if asked else []), *answers]:
        refuse_python_text(row[name], str(name))
    if format in _NOT_OF_TURNS or asked is None:
        return row
    prompt, turns = texts_in(row[asked]), [texts_in(row[name]) for name in answers]
    if not prompt and not (len(turns) > 1 and all(turns)):
        return row
    if not prompt or not all(turns):
        lists = [asked] if prompt else answers
        raise PalateError(
            f"{' and '.join(lists)}: lists of texts, {'answers' if prompt else asked} not; write"
            f" each as text or messages; {_AS_A_MESSAGE}",
            "lists of texts",
        )
    if {len(prompt), *map(len, turns)} != {1}:
        raise PalateError(
            f"{asked} and answers are lists of {len(prompt)} turns; two answers are compared on one"
            " prompt: keep rows of one turn, or write messages whose last turn alone differs",
            "conversations of several turns",
        )
    unwrapped = dict(zip([asked, *answers], [prompt[0], *(t[0] for t in turns)], strict=True))
    return {**row, **unwrapped}

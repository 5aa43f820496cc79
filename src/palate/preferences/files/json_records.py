"""JSON lines and JSON lists, record by record in bounded memory; damaged records are stepped over.

Works on bytes: the signs that give JSON its structure are ASCII, and so one record that is not
UTF-8 does not hide the others.
"""

import json
import re
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

from palate.preferences.files import records
from palate.preferences.files.records import (
    CONVERT,
    CUT,
    DAMAGED_STREAM,
    NOT_UTF8,
    Damage,
    Records,
    over_long,
)

CHUNK_BYTES = 1 << 18
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SEPARATORS = re.compile(rb"[ \t\r\n,]*+")
_OUTSIDE = re.compile(rb'["\[\]{}]')
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_SCALAR = re.compile(rb'[^,\[\]{}"]*+')
_FIRST_KEY = re.compile(rb'\{[ \t\r\n]*+("(?:[^"\\]++|\\.)*+")[ \t\r\n]*+:', re.DOTALL)
_ANY_START = re.compile(rb",[ \t\r\n]*+(" + _FIRST_KEY.pattern + rb")", re.DOTALL)
NUM_LOOKED_AT = 16
_LONGEST_START = 4096
"""Bytes in which a record's comma, brace and first key stand."""
_PAIR_OF = {ord("]"): ord("["), ord("}"): ord("{")}


@dataclass(frozen=True)
class Unusable(Damage):
    """Of a record that is whole as JSON, so that its end is certain."""


def parse_json(raw: bytes | bytearray) -> Any:
    """The value, or a `Damage` of its row: not UTF-8, malformed, or a field that stands twice."""
    repeated: list[str] = []

    def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            repeated.extend(name for name in found if names.count(name) > 1)
        return found

    try:
        value = json.loads(raw.decode(), object_pairs_hook=as_object)
    except UnicodeDecodeError as error:
        mended = parse_json(raw.decode(errors="replace").encode())
        kind = Damage if type(mended) is Damage else Unusable
        return kind("row", NOT_UTF8, f"{error}; {CONVERT}")
    except (ValueError, RecursionError) as error:
        return Damage("row", "malformed JSON", str(error))
    if repeated:
        detail = f"field {repeated[0]!r:.60} stands twice in one object; keep one of them"
        return Unusable("row", "repeated field", detail)
    return value


def json_lines(handle: IO[bytes]) -> Records:
    """Each line that is not blank."""
    line = 0
    while raw := handle.readline(records.MAX_RECORD_BYTES + 1):
        line += 1
        if len(raw) > records.MAX_RECORD_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = handle.readline(CHUNK_BYTES)
            yield line, over_long()
            continue
        raw = (raw.removeprefix(_BYTE_ORDER_MARK) if line == 1 else raw).strip()
        if raw:
            yield line, parse_json(raw)


def json_list_or_lines(handle: IO[bytes]) -> Records:
    """Each element of the list that a .json file holds; many hold one object a line instead."""
    window = _Window(handle)
    while len(window.data) < len(_BYTE_ORDER_MARK) and window.grow():
        pass
    if window.data.startswith(_BYTE_ORDER_MARK):
        window.forget(len(_BYTE_ORDER_MARK))
    if _skip_separators(window) and window.data[0] == ord("["):
        window.forget(1)
        return _json_list(window)
    handle.seek(0)
    return json_lines(handle)


class _Window:
    """The part of a stream that is being looked at; it grows at its end, its start is forgotten."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle = handle
        self.data = bytearray()
        self.damage: Exception | None = None
        self._at_end = False

    def grow(self) -> bool:
        """Whether there was more. What ends a damaged stream is kept until all else is read."""
        if self._at_end:
            return False
        try:
            chunk: bytes = self.handle.read1(CHUNK_BYTES)  # type: ignore[attr-defined]
        except DAMAGED_STREAM as error:
            chunk, self.damage = b"", error
        self.data += chunk
        self._at_end = not chunk
        return bool(chunk)

    def forget(self, num_bytes: int) -> None:
        del self.data[:num_bytes]


class _Shape(NamedTuple):
    """What records have in common: the key that they start with, as it is written, and fields."""

    key: bytes | None = None
    names: frozenset[str] = frozenset()

    def fits(self, value: Any) -> bool:
        return isinstance(value, dict) and 2 * len(self.names & set(value)) >= len(self.names)


def _json_list(window: _Window) -> Records:
    """Elements of the list whose opening bracket stands before the window.

    A damaged element is stepped over: to the next object that starts with the same key as the
    records before it and has half of their fields, or, where the element's brackets close and
    another follows, no further than that. Where nothing is found, the rest is given up.
    """
    number = 0
    shape = _Shape()
    is_searching = False
    while _skip_separators(window):
        if window.data[0] == ord("]"):
            window.forget(1)
            if not _skip_separators(window):
                break
            yield number, Damage("file", CUT, "text after the end of the list")
            is_searching = True
        end, value = _element(window, 0)
        if not isinstance(value, dict | Damage) and not _goes_on(window, end, None):
            value = Damage("row", "malformed JSON", "no comma after it")
        if isinstance(value, Damage) and not shape.names:
            shape = _look_ahead(window)
        is_part = is_searching and isinstance(value, dict) and not shape.fits(value)
        following = None
        if not is_part:
            number += 1
            yield number, value
            following = _following(window, end, value, shape)
        if following is not None:
            if shape.fits(value) and (start := _FIRST_KEY.match(window.data)):
                shape = _Shape(start[1], frozenset(value))
            window.forget(following)
        elif shape.key is None or not _find_start(window, shape.key):
            yield number, Damage("file", CUT, "no further record is found in the list")
            break
        is_searching = following is None
    else:
        if window.damage is None:
            yield number, Damage("file", CUT, "the list is not closed")
    if window.damage is not None:
        raise window.damage


def _look_ahead(window: _Window) -> _Shape:
    """That of the longest of the next objects, as long as no record was whole (the others may be
    parts of records); without any, the first key of the damaged one."""
    if len(window.data) < CHUNK_BYTES:
        window.grow()
    longest, size, names = 0, 0, frozenset[str]()
    for found in [*_ANY_START.finditer(window.data)][:NUM_LOOKED_AT]:
        start = found.start(1)
        end, value = _element(window, start)
        if end is not None and isinstance(value, dict) and end - start > size:
            longest, size, names = start, end - start, frozenset(value)
    key = _FIRST_KEY.match(window.data, longest)
    return _Shape(key[1] if key else None, names)


def _following(window: _Window, end: int | None, value: Any, shape: _Shape) -> int | None:
    """Index from which to go on after an element; None where that has to be searched for."""
    if end is None or type(value) is not Damage:
        return end
    if not _goes_on(window, end, shape.key):
        return None
    # A damaged quote may hide a whole record before that end.
    if shape.key is not None and shape.names:
        pattern = _start_after_comma(shape.key)
        for start in [found.start(1) for found in pattern.finditer(window.data, 0, end)]:
            if shape.fits(_element(window, start)[1]):
                return start
    return end


def _skip_separators(window: _Window) -> bool:
    """Whether anything but white space and commas is left; the window then starts with it."""
    while True:
        found = _SEPARATORS.match(window.data)
        window.forget(found.end() if found else 0)
        if window.data:
            return True
        if not window.grow():
            return False


def _element(window: _Window, start: int) -> tuple[int | None, Any]:
    """(index after the element at `start`, its value); no index where it has no end."""
    end, is_closed = _end_of_value(window, start)
    if end - start > records.MAX_RECORD_BYTES:
        return None, over_long()
    if not is_closed and len(window.data) == end:
        return None, Damage("row", "malformed JSON", "its brackets or strings are not closed")
    return end if is_closed else None, parse_json(window.data[start:end])


def _end_of_value(window: _Window, start: int) -> tuple[int, bool]:
    """(index after the value at `start`, whether its strings and brackets are closed); for a value
    that is not, the index of where that shows."""
    position = start
    if window.data[start] not in b'[{"':
        while (position := _match_end(_SCALAR, window, position)) == len(window.data):
            if position - start > records.MAX_RECORD_BYTES or not window.grow():
                break
        return max(start + 1, position), True
    open_brackets = bytearray()
    in_string = False
    while True:
        if in_string:
            position = _match_end(_IN_STRING, window, position)
            if position < len(window.data) and window.data[position] == ord('"'):
                position += 1
                in_string = False
                if not open_brackets:
                    return position, True
                continue
        elif found := _OUTSIDE.search(window.data, position):
            sign, position = window.data[found.start()], found.end()
            in_string = sign == ord('"')
            if sign in b"[{":
                open_brackets.append(sign)
            elif sign in _PAIR_OF:
                if open_brackets.pop() != _PAIR_OF[sign]:
                    return position, False
                if not open_brackets:
                    return position, True
            continue
        else:
            position = len(window.data)
        if len(window.data) - start > records.MAX_RECORD_BYTES or not window.grow():
            return len(window.data), False


def _match_end(pattern: re.Pattern[bytes], window: _Window, position: int) -> int:
    found = pattern.match(window.data, position)
    assert found is not None  # every pattern of this file matches the empty text
    return found.end()


def _goes_on(window: _Window, end: int | None, key: bytes | None) -> bool:
    """Whether what stands after an element shows that it ends there: another that starts with
    `key`, where that is known, or the end of the list."""
    if end is None:
        return False
    while len(window.data) < end + _LONGEST_START and window.grow():
        pass
    rest = bytes(window.data[end : end + _LONGEST_START]).lstrip(b" \t\r\n")
    if key is not None and rest[:1] == b",":
        return bool(_start_after_comma(key).match(rest))
    return rest[:1] in (b"", b"]", b",")


def _find_start(window: _Window, key: bytes) -> bool:
    """Move the window to the next object that stands after a comma and starts with `key`."""
    pattern = _start_after_comma(key)
    while True:
        if found := pattern.search(window.data):
            window.forget(found.start(1))
            return True
        window.forget(max(0, len(window.data) - _LONGEST_START))
        if not window.grow():
            return False


def _start_after_comma(key: bytes) -> re.Pattern[bytes]:
    space = rb"[ \t\r\n]*+"
    return re.compile(rb"," + space + rb"(\{" + space + re.escape(key) + space + rb":)")

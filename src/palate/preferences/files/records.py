"""What readers of files hand on: one value a record, or what is wrong with it."""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_RECORD_BYTES = 64 * 2**20
"""A longer record (line, element of a list, CSV record) goes to the ledger and is never held whole;
in a CSV file, where text is decoded first, it counts characters."""
DAMAGED_STREAM = (EOFError, gzip.BadGzipFile, zlib.error)
"""What reading from a cut or damaged gzip raises."""
CUT = "cut or damaged after this line"
OVER_LONG = "over-long record"
NOT_UTF8 = "not UTF-8"
CONVERT = "convert the file to UTF-8 (a table from a spreadsheet is often in Latin-1)"


@dataclass(frozen=True)
class Damage:
    """A record that can't be read (kind `row`), or a place after which none can be (`file`)."""

    kind: str
    reason: str
    detail: str


Record = tuple[int, Any | Damage]
"""Line of a JSONL or CSV file where the record ends, otherwise the record's number; and its value.
"""
Records = Iterator[Record]


def over_long() -> Damage:
    return Damage("row", OVER_LONG, f"more than {MAX_RECORD_BYTES} bytes; shorten or divide it")

"""CSV and Parquet, record by record in bounded memory."""

import csv
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from palate.artifacts.files import describe_os_error
from palate.errors import PalateError
from palate.preferences.files import records
from palate.preferences.files.records import CONVERT, CUT, NOT_UTF8, Damage, Records, over_long

ROWS_PER_BATCH = 64
"""Rows of a Parquet file that are held at once."""
PARQUET_BUFFER_BYTES = 1 << 20
"""Of each column: without it, a row group's whole column is read at once."""
SPOOL_BYTES = 1 << 20
"""A gzipped Parquet file that is larger, unpacked, lies on the disk while it is read."""


def csv_records(handle: IO[bytes], source: str) -> Records:
    """Each record under its header, as a mapping. Raises PalateError for a header that is damaged
    or names a column twice."""
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="", errors="surrogateescape")
    lines = _CsvLines(text)
    reader = csv.reader(lines, strict=True)
    header = _csv_header(reader, source)
    while True:
        first_line, lines.num_characters = lines.number + 1, 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (csv.Error, _OverLong) as error:
            where = f"lines {first_line} to {lines.number}: " if lines.number > first_line else ""
            damage = Damage("row", "malformed CSV", f"{where}{error}")
            yield lines.number, over_long() if isinstance(error, _OverLong) else damage
            if lines.ended_in_record and lines.number > first_line:
                detail = f"a quote opened in line {first_line} or later is never closed"
                yield first_line - 1, Damage("file", CUT, detail)
            continue
        if not cells:
            continue
        if len(cells) != len(header):
            detail = f"{len(cells)}; the header has {len(header)}"
            yield lines.number, Damage("row", "wrong number of cells", detail)
        elif bad := next(filter(_ESCAPED_BYTE.search, cells), None):
            yield lines.number, Damage("row", NOT_UTF8, f"{_in_bytes(bad)}; {CONVERT}")
        else:
            yield lines.number, dict(zip(header, map(_messages_or_text, cells), strict=True))


_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
"""A byte that is not UTF-8, as `surrogateescape` keeps it."""


def _in_bytes(text: str) -> str:
    """Where the first byte is that is not UTF-8, and what stands before it."""
    found = _ESCAPED_BYTE.search(text)
    assert found is not None
    before = text[max(0, found.start() - 20) : found.start()]
    return f"byte 0x{ord(found[0]) - 0xDC00:02x} after {before!r}"


class _OverLong(Exception):
    pass


@dataclass
class _CsvLines:
    """Lines for `csv.reader`, which joins those of one record without any limit of its own."""

    text: io.TextIOWrapper
    number: int = 0
    num_characters: int = 0
    """Of the record so far; its reader sets it back."""
    ended_in_record: bool = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.text.readline(records.MAX_RECORD_BYTES + 1)
        if not line:
            self.ended_in_record = self.num_characters > 0
            raise StopIteration
        self.number += 1
        in_quotes = self.num_characters > 0
        self.num_characters += len(line)
        if self.num_characters > records.MAX_RECORD_BYTES:
            self._skip_record(line, in_quotes)
            raise _OverLong
        return line

    def _skip_record(self, line: str, in_quotes: bool) -> None:
        """Read up to the end of a line outside quotes: quotes inside quotes come in pairs."""
        while True:
            in_quotes ^= line.count('"') % 2 == 1
            if not line:
                self.ended_in_record = in_quotes
                return
            if line.endswith(("\n", "\r")):
                if not in_quotes:
                    return
                self.number += 1
            line = self.text.readline(SPOOL_BYTES)


def _csv_header(reader: Any, source: str) -> list[str]:
    try:
        header: list[str] = next(filter(None, reader), [])
    except csv.Error as error:
        raise PalateError(
            f"{source}:1: malformed CSV header: {error}; mend its first line"
        ) from error
    except _OverLong as error:
        raise PalateError(
            f"{source}:1: the CSV header is longer than {records.MAX_RECORD_BYTES} bytes; mend its"
            " first line"
        ) from error
    if bad := next(filter(_ESCAPED_BYTE.search, header), None):
        raise PalateError(f"{source}:1: the CSV header is {NOT_UTF8}: {_in_bytes(bad)}; {CONVERT}")
    if len(set(header)) < len(header):
        raise PalateError(f"{source}:1: {header!r:.200} names a column twice; rename one")
    return header


def _messages_or_text(cell: str) -> Any:
    """A cell that holds a JSON list of messages as that list; any other cell as its text."""
    if not cell.startswith("["):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return value if _are_messages(value) else cell


def parquet_records(handle: IO[bytes], source: str) -> Records:
    """Each row, read a few at a time. Raises PalateError when there is no readable table.

    The rows of a row group after the first that can't be read are given up, and said to be: their
    number is known from the file's own index.
    """
    import pyarrow
    import pyarrow.parquet

    with _seekable(handle, source) as whole:
        try:
            table = pyarrow.parquet.ParquetFile(whole, buffer_size=PARQUET_BUFFER_BYTES)
            names = table.schema_arrow.names
        except (pyarrow.ArrowException, ValueError, OSError) as error:
            raise PalateError(
                f"{source}: not readable as Parquet: {error}; get the file again"
            ) from error
        if len(set(names)) < len(names):
            raise PalateError(f"{source}: {names!r:.200} names a column twice; rename one")
        before = 0
        for group in range(table.num_row_groups):
            number = before
            try:
                # A thread that still reads a damaged file when Python exits aborts the process.
                for batch in table.iter_batches(
                    ROWS_PER_BATCH, row_groups=[group], use_threads=False
                ):
                    for row in _parquet_rows(batch):
                        number += 1
                        yield number, without_filled_fields(row)
            except (pyarrow.ArrowException, ValueError, OSError) as error:
                before += table.metadata.row_group(group).num_rows
                detail = f"rows {number + 1} to {before} can't be read: {error}"
                yield number, Damage("file", CUT, detail)
            else:
                before = number


def without_filled_fields(row: Any) -> Any:
    """The row without the nulls that a table adds to messages and tools, on which templates act.

    Objects of one column have one set of fields there: a call of one tool comes back with the
    arguments of all others, null. Which nulls were written can't be told from those filled in.
    """
    if not isinstance(row, dict):
        return row
    return {
        name: _without_nulls(value) if name == "tools" or _are_messages(value) else value
        for name, value in row.items()
    }


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and "role" in item for item in value)
    )


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _parquet_rows(batch: Any) -> Iterator[Any]:
    """Rows of a batch; a value without a counterpart in Python spoils its own row only."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for index in range(batch.num_rows):
            try:
                (row,) = batch.slice(index, 1).to_pylist()
            except (ValueError, OverflowError) as error:
                row = Damage("row", "unreadable value", f"{type(error).__name__}: {error}")
            yield row


@contextmanager
def _seekable(handle: IO[bytes], source: str) -> Iterator[IO[bytes]]:
    """The file itself, or what its gzip holds: a table is read from its end."""
    if not source.endswith(".gz"):
        yield handle
        return
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
        while chunk := handle.read(SPOOL_BYTES):
            try:
                spool.write(chunk)
            except OSError as error:
                raise describe_os_error(error, tempfile.gettempdir(), "write") from error
        spool.seek(0)
        yield spool  # type: ignore[misc]

"""Files to raw rows: JSONL, JSON, CSV and Parquet, plain or gzipped, and hub data sets.

Each row read is counted in the ledger; one that can't be parsed stands there with its line.
"""

import csv
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from palate.artifacts.files import describe_os_error, open_binary
from palate.artifacts.hub import hub_is_reachable, looks_like_hub_id
from palate.artifacts.ledger import Ledger
from palate.errors import PalateError

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)


def iter_rows(source: str, ledger: Ledger, hub_split: str = "train") -> Iterator[tuple[int, Row]]:
    """Yield (line, row) of a file or hub data set; unreadable rows go to the ledger.

    Raises PalateError when there is no such file, no permission, an unknown suffix, or no row.
    """
    num_read = ledger.num_rows_read
    path = Path(source)
    # Path.exists raises where a directory on the way may not be searched; os.path.exists doesn't.
    exists = os.path.exists(source)
    if not exists and looks_like_hub_id(source, with_folder=True) and _suffix(path) not in SUFFIXES:
        yield from _hub_rows(source, ledger, hub_split)
    else:
        readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
        reader = readers.get(_suffix(path))
        if reader is None:
            if not exists:
                raise PalateError(f"{source}: no such file; check the path")
            if os.path.isdir(source):
                raise PalateError(f"{source}: it is a directory; name a file")
            raise PalateError(
                f"{source}: unknown kind of file; expected {', '.join(SUFFIXES)}, plain or .gz"
            )
        with open_binary(path) as handle:
            line = 0
            try:
                for line, row in reader(handle, source, ledger):
                    yield line, row
            except OSError as error:
                if not isinstance(error, gzip.BadGzipFile):
                    raise describe_os_error(error, source, "read") from error
                ledger.add(source, 0, "file", "damaged gzip", str(error))
            except _DAMAGED as error:
                last = max([line, *(e.line for e in ledger.entries if e.file == source)])
                ledger.add(source, last, "file", "cut or damaged after this line", str(error))
    if ledger.num_rows_read == num_read:
        damage = [e.detail for e in ledger.entries if e.file == source and e.kind == "file"]
        why = (
            f" ({damage[0]}); get the file again"
            if damage
            else "; it is empty: look at what wrote it"
        )
        raise PalateError(f"{source}: no rows in it{why}")


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _accept(value: Any, source: str, line: int, ledger: Ledger) -> Iterator[tuple[int, Row]]:
    ledger.num_rows_read += 1
    if isinstance(value, dict):
        yield line, value
    else:
        detail = f"{type(value).__name__} where an object was expected"
        ledger.add(source, line, "row", "not an object", detail)


def _jsonl(handle: IO[bytes], source: str, ledger: Ledger) -> Iterator[tuple[int, Row]]:
    for line, raw in enumerate(handle, start=1):
        if not raw.strip():
            continue
        try:
            value = json.loads(raw.decode("utf-8-sig" if line == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            ledger.num_rows_read += 1
            ledger.add(source, line, "row", "not UTF-8", str(error))
        except (ValueError, RecursionError) as error:
            ledger.num_rows_read += 1
            ledger.add(source, line, "row", "malformed JSON", str(error))
        else:
            yield from _accept(value, source, line, ledger)


def _json(handle: IO[bytes], source: str, ledger: Ledger) -> Iterator[tuple[int, Row]]:
    data = handle.read()
    if not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        # Many files called .json hold one object a line.
        yield from _jsonl(io.BytesIO(data), source, ledger)
        return
    try:
        rows = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise PalateError(
            f"{source}: not valid JSON: {error}; mend it, or write one object a line (.jsonl)"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield from _accept(row, source, number, ledger)


def _csv(handle: IO[bytes], source: str, ledger: Ledger) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="", errors="surrogateescape")
    reader = csv.reader(text, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise PalateError(
            f"{source}:1: malformed CSV header: {error}; mend its first line"
        ) from error
    if len(set(header)) < len(header):
        raise PalateError(f"{source}:1: {header!r:.200} names a column twice; rename one")
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            ledger.num_rows_read += 1
            ledger.add(source, reader.line_num, "row", "malformed CSV", str(error))
            continue
        if not cells:
            continue
        if len(cells) != len(header):
            ledger.num_rows_read += 1
            detail = f"{len(cells)}; the header has {len(header)}"
            ledger.add(source, reader.line_num, "row", "wrong number of cells", detail)
            continue
        row = dict(zip(header, map(_messages_or_text, cells), strict=True))
        yield from _accept(row, source, reader.line_num, ledger)


def _messages_or_text(cell: str) -> Any:
    """A cell that holds a JSON list of messages as that list; any other cell as its text."""
    if not cell.startswith("["):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    are_messages = value and all(isinstance(v, dict) and "role" in v for v in value)
    return value if are_messages else cell


def _parquet(handle: IO[bytes], source: str, ledger: Ledger) -> Iterator[tuple[int, Row]]:
    import pyarrow
    import pyarrow.parquet

    whole = io.BytesIO(handle.read()) if source.endswith(".gz") else handle
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(whole).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield from _accept(row, source, number, ledger)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise PalateError(
            f"{source}: not readable as Parquet after row {number}: {error}; get the file again"
        ) from error


def _hub_rows(source: str, ledger: Ledger, split: str) -> Iterator[tuple[int, Row]]:
    """Rows of `owner/name`, or of one folder of it, `owner/name/folder`."""
    import datasets

    reachable = hub_is_reachable()
    if not reachable:
        # The library would retry for a minute; offline it looks into its cache and answers.
        datasets.config.HF_HUB_OFFLINE = True
    try:
        owner, name, *folder = source.split("/")
        rows = datasets.load_dataset(
            f"{owner}/{name}", data_dir="/".join(folder) or None, split=split
        )
    except Exception as error:  # the library raises a dozen unrelated classes here
        network = "" if reachable else ", and the hub cannot be reached from here"
        raise PalateError(
            f"{source}: not a file here, and not loadable as a hub data set (split {split!r})"
            f"{network}; pass a local file with --data. {type(error).__name__}: {error}"
        ) from error
    for number, row in enumerate(rows, start=1):
        yield from _accept(row, source, number, ledger)

"""Files to raw rows: JSONL, JSON, CSV and Parquet, plain or gzipped, and hub data sets.

Each row read is counted in the ledger; one that can't be parsed stands there with its line. Nothing
is held whole: memory is bounded by the longest record (`records.MAX_RECORD_BYTES`), whatever the
size of the file, packed or unpacked.
"""

import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from palate.artifacts.files import describe_os_error, open_binary
from palate.artifacts.hub import hub_is_reachable, looks_like_hub_id
from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.preferences.files.json_records import json_lines, json_list_or_lines
from palate.preferences.files.records import CUT, DAMAGED_STREAM, Damage, Records
from palate.preferences.files.tables import (
    csv_records,
    parquet_records,
    without_filled_fields,
)

Row = dict[str, Any]
READERS: dict[str, Callable[[IO[bytes], str], Records]] = {
    ".jsonl": lambda handle, _: json_lines(handle),
    ".json": lambda handle, _: json_list_or_lines(handle),
    ".csv": csv_records,
    ".parquet": parquet_records,
}
SUFFIXES = tuple(READERS)
NOT_FROM_HUB = "not to be had from the hub"
"""Reason of the error for a hub data set that can't be loaded."""
_OTHER_KINDS = {
    b"\x1f\x8b": "gzipped; let its name end in .gz",
    b"\xff\xfe": "in UTF-16; convert it to UTF-8",
    b"\xfe\xff": "in UTF-16; convert it to UTF-8",
    b"PAR1": "a Parquet file; let its name end in .parquet",
}
"""First bytes that no file of text has, and what to say of them."""


def iter_rows(source: str, ledger: Ledger, hub_split: str = "train") -> Iterator[tuple[int, Row]]:
    """Yield (line, row) of a file or hub data set; unreadable rows go to the ledger.

    Where a file is cut or damaged so that no further row can be found, the rows before stand and
    the ledger has an entry of kind `file`. Raises PalateError when there is no such file, no
    permission, an unknown suffix, another kind of file than its name says, or no row.
    """
    num_read = ledger.num_rows_read
    damage = ""
    for line, value in _records(source, hub_split):
        if isinstance(value, Damage):
            ledger.num_rows_read += value.kind == "row"
            damage = damage or (value.detail if value.kind == "file" else "")
            ledger.add(source, line, value.kind, value.reason, value.detail)
            continue
        ledger.num_rows_read += 1
        if isinstance(value, dict):
            yield line, value
        else:
            detail = f"{type(value).__name__} where an object was expected"
            ledger.add(source, line, "row", "not an object", detail)
    if ledger.num_rows_read == num_read:
        why = f" ({damage}); get the file again" if damage else "; it is empty: see what wrote it"
        raise PalateError(f"{source}: no rows in it{why}")


def _records(source: str, hub_split: str) -> Records:
    path = Path(source)
    # Path.exists raises where a directory on the way may not be searched; os.path.exists doesn't.
    exists = os.path.exists(source)
    if not exists and looks_like_hub_id(source, with_folder=True) and _suffix(path) not in READERS:
        yield from _hub_records(source, hub_split)
        return
    reader = READERS.get(_suffix(path))
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
            _refuse_other_kind(handle, source)
            for line, value in reader(handle, source):
                yield line, value
        except DAMAGED_STREAM as error:
            # A wrong checksum shows after the rows that it is of, which may all be right.
            reason = "damaged gzip" if isinstance(error, gzip.BadGzipFile) else CUT
            yield line, Damage("file", reason, str(error))
        except OSError as error:
            raise describe_os_error(error, source, "read") from error


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _refuse_other_kind(handle: Any, source: str) -> None:
    """Raise PalateError when the first bytes are of another kind of file than its name says."""
    if source.endswith(".gz"):
        start = handle.fileobj.peek(2)
        if start and not start.startswith(b"\x1f\x8b"):
            raise PalateError(f"{source}: it is not gzipped; take .gz off its name")
    start = handle.peek(4)
    for mark, what in _OTHER_KINDS.items():
        if start.startswith(mark) and not (mark == b"PAR1" and ".parquet" in Path(source).suffixes):
            raise PalateError(f"{source}: it is {what}")


def _hub_records(source: str, split: str) -> Records:
    """Rows of `owner/name`, or of one folder of it, `owner/name/folder`.

    Not with the library's streaming: its table is mapped from the disk's cache, which bounds memory
    as well, can be read again without a network, and does not break where a connection does.
    """
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
            f"{network}; name a local file in its place. {type(error).__name__}: {error}",
            NOT_FROM_HUB,
        ) from error
    for number, row in enumerate(rows, start=1):
        yield number, without_filled_fields(row)

"""The ledger: every row, response, comparison, vote and token that was left out or cut, and why."""

import json
import operator
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, overload

import numpy as np

from palate.artifacts.files import atomic_path, describe_os_error
from palate.errors import PalateError

KINDS = ("row", "response", "comparison", "vote", "token", "file")
MAX_ENTRIES_IN_MEMORY = 10_000
MAX_DETAIL_CHARACTERS = 500


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One thing that did not go through as it came."""

    file: str
    line: int
    """Line of a JSONL or CSV file (where the record ends), otherwise the number of the record; both
    count from 1. 0 = whole file."""
    kind: str
    """What was left out or cut: one of `KINDS`. Only `row` counts against the rows read."""
    reason: str
    """A short fixed phrase, the same for all rows that share it."""
    detail: str = ""
    """The value or position, for a person who wants to mend the row."""
    row_id: str | None = None


def place(file: str, line: int) -> str:
    """Where an entry's row stands: `FILE:LINE` of files with lines, `FILE, row N` of others."""
    if not line:
        return file
    has_lines = file.removesuffix(".gz").endswith((".jsonl", ".csv"))
    return f"{file}:{line}" if has_lines else f"{file}, row {line}"


def _as_line(entry: LedgerEntry) -> bytes:
    return (json.dumps(asdict(entry), ensure_ascii=True) + "\n").encode()


class LedgerEntries(Sequence[LedgerEntry]):
    """The entries in the order they came; all after the first `MAX_ENTRIES_IN_MEMORY` lie in a
    temporary file, so that a source of nothing but damage is accounted for in bounded memory."""

    def __init__(self) -> None:
        self._first: list[LedgerEntry] = []
        self._spilled: IO[bytes] | None = None
        self._offsets = array("Q")

    def append(self, entry: LedgerEntry) -> None:
        if len(self._first) < MAX_ENTRIES_IN_MEMORY:
            self._first.append(entry)
            return
        try:
            if self._spilled is None:
                self._spilled = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this)
            self._offsets.append(self._spilled.seek(0, os.SEEK_END))
            self._spilled.write(_as_line(entry))
        except OSError as error:
            raise describe_os_error(error, tempfile.gettempdir(), "write") from error

    def __len__(self) -> int:
        return len(self._first) + len(self._offsets)

    @overload
    def __getitem__(self, index: int) -> LedgerEntry: ...
    @overload
    def __getitem__(self, index: slice) -> list[LedgerEntry]: ...
    def __getitem__(self, index: int | slice) -> LedgerEntry | list[LedgerEntry]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if self._spilled is None or index < len(self._first):
            return self._first[index]
        self._spilled.seek(self._offsets[index - len(self._first)])
        return LedgerEntry(**json.loads(self._spilled.readline()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LedgerEntries | list):
            return NotImplemented
        return len(self) == len(other) and all(map(operator.eq, self, other))

    def __repr__(self) -> str:
        return f"<{len(self)} entries>" if self._spilled else repr(self._first)


@dataclass
class Ledger:
    """Counts rows in and keeps the entries; `check` holds the sum: read = kept + in the ledger."""

    num_rows_read: int = 0
    entries: LedgerEntries = field(default_factory=LedgerEntries, init=False)
    _counts: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    first: dict[str, LedgerEntry] = field(default_factory=dict, init=False, repr=False)
    """The first entry of each "kind: reason"."""
    _row_lines: "dict[str, array[int]]" = field(default_factory=dict, init=False, repr=False)
    """Lines of the rows left out, by file."""

    def add(
        self,
        file: str,
        line: int,
        kind: str,
        reason: str,
        detail: str = "",
        row_id: str | None = None,
    ) -> None:
        assert kind in KINDS, kind
        self._append(
            LedgerEntry(
                file=file,
                line=line,
                kind=kind,
                reason=reason,
                detail=detail[:MAX_DETAIL_CHARACTERS],
                row_id=row_id and row_id[:MAX_DETAIL_CHARACTERS],
            )
        )

    def _append(self, entry: LedgerEntry) -> None:
        self.entries.append(entry)
        named = f"{entry.kind}: {entry.reason}"
        self._counts[named] += 1
        self.first.setdefault(named, entry)
        if entry.kind == "row":
            self._row_lines.setdefault(entry.file, array("Q")).append(entry.line)

    @property
    def num_rows_left_out(self) -> int:
        return sum(map(len, self._row_lines.values()))

    def check(self, num_rows_kept: int) -> None:
        """Raise AssertionError unless every row read is kept or in the ledger, exactly once."""
        for lines in self._row_lines.values():
            assert len(np.unique(lines)) == len(lines), "a row stands in the ledger twice"
        assert self.num_rows_read == num_rows_kept + self.num_rows_left_out, (
            f"{self.num_rows_read} rows read, {num_rows_kept} kept,"
            f" {self.num_rows_left_out} in the ledger"
        )

    def extend(self, other: "Ledger") -> None:
        self.num_rows_read += other.num_rows_read
        for entry in other.entries:
            self._append(entry)

    def by_reason(self) -> dict[str, int]:
        """Number of entries for each "kind: reason", most frequent first."""
        return dict(self._counts.most_common())

    def summary(self, num_rows_kept: int) -> str:
        """The accounting in words, one reason a line with its first place."""
        lines = [
            f"{self.num_rows_read} rows in = {num_rows_kept} in groups"
            f" + {self.num_rows_left_out} in the ledger"
        ]
        for reason, count in self.by_reason().items():
            where = place(self.first[reason].file, self.first[reason].line)
            lines.append(f"  {count:>7}  {reason}  (first: {where})")
        return "\n".join(lines)

    def write(self, path: str | Path) -> None:
        """Write one JSON object an entry."""
        with atomic_path(path) as temporary, open(temporary, "wb") as handle:
            for entry in self.entries:
                handle.write(_as_line(entry))

    @staticmethod
    def load_entries(path: str | Path) -> list[LedgerEntry]:
        """Read what `write` wrote."""
        try:
            lines = Path(path).read_bytes().splitlines()
        except OSError as error:
            raise describe_os_error(error, path, "read") from error
        entries = []
        for number, line in enumerate(lines, start=1):
            try:
                entries.append(LedgerEntry(**json.loads(line)))
            except (ValueError, TypeError) as error:
                raise PalateError(
                    f"{path}:{number}: not a line of a ledger: {error}; write the ledger again"
                ) from error
        return entries

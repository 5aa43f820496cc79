"""The ledger: every row, response, comparison and token that was left out or cut, and why."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from palate.artifacts.files import describe_os_error, write_text
from palate.errors import PalateError

KINDS = ("row", "response", "comparison", "token", "file")


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


@dataclass
class Ledger:
    """Counts rows in and keeps the entries; `check` holds the sum: read = kept + in the ledger."""

    num_rows_read: int = 0
    entries: list[LedgerEntry] = field(default_factory=list)

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
        self.entries.append(
            LedgerEntry(
                file=file, line=line, kind=kind, reason=reason, detail=detail[:500], row_id=row_id
            )
        )

    @property
    def num_rows_left_out(self) -> int:
        return sum(entry.kind == "row" for entry in self.entries)

    def check(self, num_rows_kept: int) -> None:
        """Raise AssertionError unless every row read is kept or in the ledger, exactly once."""
        rows = [(e.file, e.line) for e in self.entries if e.kind == "row"]
        assert len(rows) == len(set(rows)), "a row stands in the ledger twice"
        assert self.num_rows_read == num_rows_kept + len(rows), (
            f"{self.num_rows_read} rows read, {num_rows_kept} kept, {len(rows)} in the ledger"
        )

    def extend(self, other: "Ledger") -> None:
        self.num_rows_read += other.num_rows_read
        self.entries.extend(other.entries)

    def by_reason(self) -> dict[str, int]:
        """Number of entries for each "kind: reason", most frequent first."""
        counts = Counter(f"{entry.kind}: {entry.reason}" for entry in self.entries)
        return dict(counts.most_common())

    def summary(self, num_rows_kept: int) -> str:
        """The accounting in words, one reason a line with its first place."""
        lines = [
            f"{self.num_rows_read} rows in = {num_rows_kept} in groups"
            f" + {self.num_rows_left_out} in the ledger"
        ]
        first: dict[str, LedgerEntry] = {}
        for entry in self.entries:
            first.setdefault(f"{entry.kind}: {entry.reason}", entry)
        for reason, count in self.by_reason().items():
            where = f"{first[reason].file}:{first[reason].line}"
            lines.append(f"  {count:>7}  {reason}  (first: {where})")
        return "\n".join(lines)

    def write(self, path: str | Path) -> None:
        """Write one JSON object an entry."""
        text = "".join(json.dumps(asdict(e), ensure_ascii=True) + "\n" for e in self.entries)
        write_text(path, text)

    @staticmethod
    def load_entries(path: str | Path) -> list[LedgerEntry]:
        """Read what `write` wrote."""
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
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

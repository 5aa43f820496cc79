"""Read preferences from files and hub data sets; every row ends as a group or in the ledger."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.preferences.fields import field_names
from palate.preferences.formats import FORMATS, detect_format
from palate.preferences.rows import iter_rows
from palate.preferences.types import PreferenceGroup
from palate.preferences.votes import VoteSettings

NUM_ROWS_TO_DETECT = 100


@dataclass(frozen=True)
class Reading:
    """What was read: `.groups`, the `.ledger` of what was left out, `.formats` by source."""

    groups: tuple[PreferenceGroup, ...]
    ledger: Ledger
    formats: dict[str, str]

    def summary(self) -> str:
        named = ", ".join(f"{source}: {name}" for source, name in self.formats.items())
        return f"format {named}\n{self.ledger.summary(len(self.groups))}"


def read(
    sources: str | Sequence[str],
    *,
    format: str = "auto",
    votes: VoteSettings = VoteSettings(),
    hub_split: str = "train",
) -> Reading:
    """Read one or several sources (paths or hub ids) into groups and a ledger.

    `format` is a name from `FORMATS`, or "auto": most of a source's first 100 rows decide, and a
    row without that format's fields goes to the ledger. Raises PalateError when a source is
    missing, unreadable, empty, in no known format, or leaves not a single group.
    """
    if format != "auto" and format not in FORMATS:
        raise PalateError(f"format {format!r} is none of auto, {', '.join(FORMATS)}")
    groups: list[PreferenceGroup] = []
    ledger = Ledger()
    formats: dict[str, str] = {}
    for source in [str(sources)] if not isinstance(sources, list | tuple) else map(str, sources):
        if source in formats:
            raise PalateError(f"{source}: named twice among the data")
        formats[source] = _read_source(source, format, votes, hub_split, groups, ledger)
    ledger.check(len(groups))
    if not groups:
        raise PalateError(
            f"{', '.join(formats)}: none of {ledger.num_rows_read} rows is usable:\n"
            + ledger.summary(0)
        )
    return Reading(tuple(groups), ledger, formats)


def _read_source(
    source: str,
    format: str,
    votes: VoteSettings,
    hub_split: str,
    groups: list[PreferenceGroup],
    ledger: Ledger,
) -> str:
    rows = iter_rows(source, ledger, hub_split)
    first: list[tuple[int, dict[str, Any]]] = []
    name = None if format == "auto" else format
    if name is None:
        first = list(islice(rows, NUM_ROWS_TO_DETECT))
        if not first:
            raise PalateError(f"{source}: no readable row in it:\n" + ledger.summary(len(groups)))
        # The most frequent one: a single damaged row at the top must not decide for all others.
        known = Counter(found for _, row in first if (found := detect_format(row)) is not None)
        name = known.most_common(1)[0][0] if known else None
    if name is None:
        found = field_names(first[0][1])
        raise PalateError(
            f"{source}: in no known format; its fields are: {found}. Known: canonical (prompt,"
            " responses, comparisons or votes), ranked (prompt, responses with ratings or a"
            " ranking), pairs (prompt, chosen, rejected), implicit (chosen, rejected as messages),"
            " hh (transcripts), annotated (response1, response2, annotator1, ...)"
        )
    for line, row in chain(first, rows):
        try:
            parsed = FORMATS[name](row, votes)
        except PalateError as error:
            ledger.add(source, line, "row", error.reason, str(error), _row_id(row))
            continue
        for kind, reason, detail in parsed.notes:
            ledger.add(source, line, kind, reason, detail, parsed.group.id)
        groups.append(replace(parsed.group, file=source, line=line))
    return name


def _row_id(row: dict[str, Any]) -> str | None:
    return None if row.get("id") is None else str(row["id"])

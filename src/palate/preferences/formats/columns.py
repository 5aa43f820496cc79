"""Tables with columns of any name: a mapping from the fields that palate reads to the columns."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from palate.errors import PalateError
from palate.preferences.formats.fields import Row, field_names

TARGETS = (
    *("prompt", "chosen", "rejected", "margin", "strength", "weight", "probability", "system"),
    *("score_chosen", "score_rejected", "chosen_model", "rejected_model"),
    *("responses", "ranking", "ratings", "comparisons", "votes"),
    *("response1", "response2", "preferred", "overall_preference", "individual_preference"),
    *("response", "rating", "model", "instruction", "input", "context", "completions"),
    *("tools", "template_arguments", "id", "meta"),
)
"""Fields that a column can stand for; besides these annotator1, annotator2, and so on."""
_ANNOTATOR = re.compile(r"annotator_?[0-9]{1,9}")


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise PalateError for a target that palate does not read, naming the nearest one, or a column
    that has its target's name already."""
    for target, column in columns.items():
        if target not in TARGETS and not _ANNOTATOR.fullmatch(target):
            near = difflib.get_close_matches(target, TARGETS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise PalateError(
                f"read.columns: {target!r} is no field that palate reads; {hint}known are"
                f" {', '.join(TARGETS)}, annotator1, ... (the mapping goes from palate's field to"
                " your column)"
            )
        if target == column:
            raise PalateError(f"read.columns: {target}: {column} has no effect; leave it out")


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with its columns under palate's names.

    A column with dots that the row does not have as it stands is a path into nested objects, as in
    `fields.question`. A column that this row lacks is left to the format, which knows whether it
    needs it. A target may have the name of the object that a path starts in, as in
    `chosen: chosen.text`; what else is in that object is kept as `chosen.score`, and so on. Raises
    PalateError where the row has a field of the target's name besides.
    """
    taken = {column for column in columns.values() if column in row}
    paths = [c for c in columns.values() if c not in row and _look_up(row, c) is not None]
    opened = {path.split(".")[0] for path in paths} & set(columns)
    found = {}
    for target, column in columns.items():
        value = _look_up(row, column)
        if value is None:
            continue
        if row.get(target) is not None and target not in taken | opened:
            raise PalateError(
                f"read.columns: {target}: {column}, but the row has a field {target!r} too; leave"
                " the mapping out, or rename that field",
                "column clash",
            )
        found[target] = value
    rest = {
        f"{name}.{key}": value
        for name in sorted(opened & set(found))
        for key, value in row[name].items()
        if f"{name}.{key}" not in paths
    }
    return {**{name: value for name, value in row.items() if name not in taken}, **rest, **found}


def _look_up(row: Row, column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def check_rows(source: str, rows: Iterable[Row], columns: Mapping[str, str]) -> None:
    """Raise PalateError, with the columns that there are, where none of the rows has one of those
    mapped, or where they have the target itself as well."""
    rows = list(rows)
    for target, column in columns.items():
        if rows and all(_look_up(row, column) is None for row in rows):
            raise PalateError(
                f"{source}: read.columns: {target}: {column}, but none of the first {len(rows)}"
                f" rows has a column {column!r}; the first has {field_names(rows[0])}"
            )
    for row in rows:
        renamed(row, columns)

"""The formats by name, and which one a row shows."""

from collections.abc import Callable

from palate.preferences.fields import Parsed, Row
from palate.preferences.kway import ANNOTATOR_COLUMN, annotated, canonical, ranked
from palate.preferences.pairs import TURN, hh, implicit, pairs
from palate.preferences.votes import VoteSettings

FORMATS: dict[str, Callable[[Row, VoteSettings], Parsed]] = {
    "canonical": canonical,
    "ranked": ranked,
    "pairs": pairs,
    "implicit": implicit,
    "hh": hh,
    "annotated": annotated,
}
"""Format name to the function that reads one of its rows."""


def detect_format(row: Row) -> str | None:
    """The format that a row's fields show, or None."""
    keys = set(row)
    if "responses" in keys:
        return "canonical" if keys & {"comparisons", "votes"} else "ranked"
    if {"chosen", "rejected"} <= keys:
        if "prompt" in keys:
            return "pairs"
        if isinstance(row["chosen"], str):
            return "hh" if TURN.match(row["chosen"]) else None
        return "implicit" if isinstance(row["chosen"], list) else None
    if any(ANNOTATOR_COLUMN.fullmatch(str(key)) for key in keys):
        return "annotated"
    return None

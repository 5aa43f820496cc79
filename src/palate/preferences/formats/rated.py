"""One rated response a row, as in HelpSteer 2; the readers put the rows of a prompt together."""

from dataclasses import replace
from typing import Any

from palate.errors import PalateError
from palate.preferences.formats.fields import Parsed, Row, common_fields, number, optional, require
from palate.preferences.formats.responses import answer
from palate.preferences.formats.transcripts import helpsteer_prompt
from palate.preferences.settings import ReadSettings

HELPSTEER_RATINGS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
RATINGS = ("rating", "score", HELPSTEER_RATINGS[0])
"""What rates a response where `read.rating` does not say: the first that is there."""


def rated(row: Row, settings: ReadSettings) -> Parsed:
    """`prompt`, `response`, and ratings: a number, or a list with one of each annotator (their mean
    counts). The ratings that are not chosen are kept as the response's meta."""
    names = (settings.rating,) if settings.rating else RATINGS
    rated_by = next((name for name in names if optional(row, name) is not None), None)
    if rated_by is None:
        raise PalateError(f"no rating {' or '.join(names)}", "missing rating")
    others = {name: row[name] for name in HELPSTEER_RATINGS if row.get(name) is not None}
    stated = row[rated_by]
    if not isinstance(stated, list):
        others.pop(rated_by, None)
    response = answer(require(row, "response"), "response")
    model = optional(row, "model")
    response = replace(
        response,
        rating=_mean(stated, rated_by),
        model=None if model is None else str(model),
        meta={**response.meta, **others},
    )
    return Parsed(
        helpsteer_prompt(require(row, "prompt"), "prompt"),
        (response,),
        rated_by=rated_by,
        rated=frozenset({0}),
        fields=common_fields(row, ("prompt", "response", "model", rated_by, *HELPSTEER_RATINGS)),
        heeds=frozenset({"rating"}),
    )


def _mean(value: Any, name: str) -> float:
    values = value if isinstance(value, list) and value else [value]
    return sum(number(item, name) for item in values) / len(values)

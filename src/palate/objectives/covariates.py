"""What people may go by besides an answer's quality, read from its text."""

import math
import re
from collections.abc import Callable, Mapping

from palate.text.features import STYLE_FEATURES
from palate.text.perturb import has_markdown

FIRST_SHOWN = "first_shown"
"""The one covariate that is read from the votes: whether the answer was displayed first."""
_MARKS = re.compile(r"^[ \t]*(?:[-*•+]|\d{1,2}[.)]|#{1,6})[ \t]+|\*\*\S", re.MULTILINE)
_AGREEMENT = re.compile(
    r"\byou(?:'re| are) (?:\w+ )?(?:right|correct)\b|\bI (?:\w+ )?(?:agree|share your)\b"
    r"|\b(?:as|like) you (?:say|said|think|thought|believed?)\b|\byour (?:view|understanding)\b",
    re.IGNORECASE,
)
_OPENER = re.compile(
    r"\b(?:great|excellent|fantastic|good|wonderful) (?:question|point|idea|choice)"
    r"|\bthank(?:s| you)\b|\b(?:glad|happy) (?:that )?you (?:asked|raised)|^(?:sure|of course)\b",
    re.IGNORECASE,
)
_OPENING_CHARACTERS = 120
"""In which an opener or an agreement has to stand; later the same words are content."""

COVARIATES: Mapping[str, Callable[[str], float]] = {
    "log_length": STYLE_FEATURES["log words"],
    "markdown": lambda text: float(has_markdown(text)),
    "markdown_amount": lambda text: math.log1p(len(_MARKS.findall(text))),
    "closing": STYLE_FEATURES["closing"],
    "opener": lambda text: float(bool(_OPENER.search(text[:_OPENING_CHARACTERS]))),
    "agreement": lambda text: float(bool(_AGREEMENT.search(text[:_OPENING_CHARACTERS]))),
    "hedge": STYLE_FEATURES["hedge"],
    "confidence": STYLE_FEATURES["absolute"],
}
"""From an answer's text: log(1 + words); has lists, headings or bold; log(1 + marks of them); has a
courtesy of closings, of openings; agrees with the reader at its start; hedges; sounds certain."""
NUISANCES = (*COVARIATES, FIRST_SHOWN)

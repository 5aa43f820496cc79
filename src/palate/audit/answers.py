"""Facts about answers that need their texts: made once, then the texts can go.

Legend: N answers, F features.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palate.text import STYLE_FEATURES, normalise, style_features

MIN_WORDS_OF_OPENING = 8
"""An answer of fewer words is hardly more than its opening."""
NUM_OPENING_WORDS = 3
MAX_CHARACTERS = 400
"""Characters at an end of an answer in which its opening or last sentence is looked for."""
_BOUNDARY = re.compile(r"[.!?][\"'’”)\]*_]*\s+|\n\s*")
_OUTER_SIGNS = re.compile(r"^[\W_]+|[\W_]+$")


@dataclass(frozen=True)
class AnswerFacts:
    """Columns of answers; see `palate.audit.columns.Columns`."""

    text_N: np.ndarray
    opening_N: np.ndarray
    ending_N: np.ndarray
    chars_N: np.ndarray
    features_NF: np.ndarray


def digest(text: str) -> int:
    """64 bits that stand for a text; 0 stands for none."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def opening(text: str) -> str:
    """The first three words, normalised, or the first sentence where that is shorter; signs
    around it left out, so that "Certainly!" and "certainly." are one. Empty for fewer than eight
    words."""
    words = normalise(text[:MAX_CHARACTERS]).split(" ", MIN_WORDS_OF_OPENING)
    if len(words) < MIN_WORDS_OF_OPENING:
        return ""
    first = words[:NUM_OPENING_WORDS]
    for count, word in enumerate(first, start=1):
        # "1." and "a)" end no sentence.
        if word[-1] in ".!?" and len(word) > 2 and any(map(str.isalpha, word)):
            first = first[:count]
            break
    return _OUTER_SIGNS.sub("", " ".join(first))


def ending(text: str) -> str:
    """The last sentence or line, normalised, signs around it left out. Empty where it is the only
    one, longer than `MAX_CHARACTERS`, or has no letter."""
    tail = text.rstrip()[-MAX_CHARACTERS:]
    end = 0
    for boundary in _BOUNDARY.finditer(tail):
        end = boundary.end()
    if not end:
        return ""
    last = _OUTER_SIGNS.sub("", normalise(tail[end:]))
    return last if any(map(str.isalpha, last)) else ""


def answer_facts(texts: Sequence[str]) -> AnswerFacts:
    """The facts of some answers, in their order."""
    openings, endings = map(opening, texts), map(ending, texts)
    return AnswerFacts(
        text_N=np.array([digest(normalise(text)) for text in texts], np.uint64),
        opening_N=np.array([digest(part) if part else 0 for part in openings], np.uint64),
        ending_N=np.array([digest(part) if part else 0 for part in endings], np.uint64),
        chars_N=np.array([len(text) for text in texts], np.int32),
        features_NF=np.array(list(map(style_features, texts)), np.float32).reshape(
            len(texts), len(STYLE_FEATURES)
        ),
    )

"""Style features of an answer: what can be seen without reading the prompt."""

import math
import re
from collections.abc import Callable

Feature = Callable[[str], float]


def _has(pattern: str, flags: int = re.IGNORECASE) -> Feature:
    compiled = re.compile(pattern, flags)
    return lambda text: float(bool(compiled.search(text)))


def _sentences(text: str) -> int:
    return max(1, len(re.findall(r"[.!?](?:\s|$)", text)))


STYLE_FEATURES: dict[str, Feature] = {
    "log words": lambda text: math.log1p(len(text.split())),
    "sentences": lambda text: float(_sentences(text)),
    "words per sentence": lambda text: len(text.split()) / _sentences(text),
    "letters per word": lambda text: len(text) / max(1, len(text.split())),
    "lines": lambda text: float(text.count("\n")),
    "list": _has(r"^\s*([-*•]|\d+[.)])\s", re.MULTILINE),
    "code": _has(r"`"),
    "bold": _has(r"\*\*"),
    "exclamation marks": lambda text: float(text.count("!")),
    "question": _has(r"\?"),
    "ends in a question": _has(r"\?\s*$"),
    "log digits": lambda text: math.log1p(sum(character.isdigit() for character in text)),
    "commas per word": lambda text: text.count(",") / max(1, len(text.split())),
    "parentheses": _has(r"\("),
    "quotation": _has(r"\""),
    "colon": _has(r":"),
    "dash": _has(r"—|–| - "),
    "first person": _has(r"\b(I|I'm|I'd|I've|I'll|my)\b", 0),
    "second person": _has(r"\b(you|your|you're)\b"),
    "hedge": _has(
        r"\b(may|might|perhaps|probably|usually|often|generally|possibly|likely|roughly"
        r"|depends?|sometimes)\b"
    ),
    "absolute": _has(
        r"\b(always|every|definitely|certainly|clearly|obviously|absolutely|guaranteed?)\b"
    ),
    "negation": _has(r"\b(no|not|never|cannot)\b|n't\b"),
    "apology": _has(r"\b(sorry|apolog\w*|unfortunately|afraid)\b"),
    "closing": _has(
        r"let me know|hope (this|that) helps|feel free|happy to help|anything else|good luck"
    ),
    "praise": _has(r"\b(great|excellent|fantastic|good|wonderful) (question|point|idea|choice)"),
    "reason": _has(r"\b(because|since|so that|which means)\b"),
    "contrast": _has(r"\b(but|however|although|though)\b"),
}
"""Name to function; each takes the answer's text alone."""


def style_features(text: str) -> list[float]:
    """The values of `STYLE_FEATURES`, in their order."""
    return [feature(text) for feature in STYLE_FEATURES.values()]

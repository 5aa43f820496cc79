"""Normal forms of text."""

import re
import unicodedata

_SURROGATE = re.compile("[\ud800-\udfff]")


def normalise(text: str) -> str:
    """NFKC, case-folded, each run of white space one space, ends stripped: to compare prompts."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def first_surrogate(text: str) -> int | None:
    """Index of the first lone surrogate (not valid Unicode, so no tokenizer takes it), or None."""
    found = _SURROGATE.search(text)
    return found.start() if found else None


def plural(number: int, noun: str) -> str:
    """A count with its noun, whose plural ends in s: "1 group", "2 groups"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

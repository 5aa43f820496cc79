"""Style features of an answer: what can be seen without reading the prompt."""

import math
import re
from collections.abc import Callable
from functools import cached_property

_WORD = re.compile(r"\w+")
_END_OF_SENTENCE = re.compile(r"[.!?](?:\s|$)")
_FIRST_PERSON = re.compile(r"\b(I|my)\b")
_ASCII_DIGIT = re.compile(r"[0-9]")
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_SPACES_FOR_SIGNS = str.maketrans(
    {chr(code): " " for code in range(128) if not (chr(code).isalnum() or chr(code) == "_")}
)
# What `re.IGNORECASE` takes for i and s, and `str.lower` leaves or takes apart.
_ODD_LETTERS = {"İ": "i", "ı": "i", "ſ": "s"}


class _Seen:
    """A text with what several features read of it, made once. A feature that asks for a whole word
    looks into the set of words, which is ten times as fast as a pattern that ignores case."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_words = len(text.split())
        self.num_sentences = max(1, len(_END_OF_SENTENCE.findall(text)))

    @cached_property
    def folded(self) -> str:
        text = self.text
        if not text.isascii():
            for letter, plain in _ODD_LETTERS.items():
                text = text.replace(letter, plain)
        return text.lower()

    @cached_property
    def words(self) -> set[str]:
        """Runs of letters and digits, in lower case."""
        if self.folded.isascii():
            return set(self.folded.translate(_SPACES_FOR_SIGNS).split())
        return set(_WORD.findall(self.folded))

    @cached_property
    def num_digits(self) -> int:
        num_digits = len(_ASCII_DIGIT.findall(self.text))
        if not self.text.isascii():
            num_digits += sum(map(str.isdigit, _BEYOND_ASCII.findall(self.text)))
        return num_digits


_Feature = Callable[[_Seen], float]


def _has(pattern: str, flags: int = 0) -> _Feature:
    search = re.compile(pattern, flags).search
    return lambda seen: float(search(seen.text) is not None)


def _first_person(seen: _Seen) -> float:
    if seen.words.isdisjoint(("i", "my")):
        return 0.0
    return float(_FIRST_PERSON.search(seen.text) is not None)


def _has_sign(*signs: str) -> _Feature:
    return lambda seen: float(any(sign in seen.text for sign in signs))


def _has_phrase(*phrases: str) -> _Feature:
    return lambda seen: float(any(phrase in seen.folded for phrase in phrases))


def _has_word(words: str, *, beside: str = "", where: tuple[str, ...] = ()) -> _Feature:
    """One of the words, in any case; or the pattern `beside`, which is only tried on texts that
    hold one of `where`."""
    wanted = frozenset(words.split())
    search = re.compile(beside).search if beside else None

    def feature(seen: _Seen) -> float:
        if not wanted.isdisjoint(seen.words):
            return 1.0
        if search is None or not any(part in seen.folded for part in where):
            return 0.0
        return float(search(seen.folded) is not None)

    return feature


_PRAISING = ("great", "excellent", "fantastic", "good", "wonderful")
_PRAISE = re.compile(rf"\b({'|'.join(_PRAISING)}) (question|point|idea|choice)")


def _praise(seen: _Seen) -> float:
    if seen.words.isdisjoint(_PRAISING):
        return 0.0
    return float(_PRAISE.search(seen.folded) is not None)


_FEATURES: dict[str, _Feature] = {
    "log words": lambda seen: math.log1p(seen.num_words),
    "sentences": lambda seen: float(seen.num_sentences),
    "words per sentence": lambda seen: seen.num_words / seen.num_sentences,
    "letters per word": lambda seen: len(seen.text) / max(1, seen.num_words),
    "lines": lambda seen: float(seen.text.count("\n")),
    "list": _has(r"^\s*([-*•]|\d+[.)])\s", re.MULTILINE),
    "code": _has_sign("`"),
    "bold": _has_sign("**"),
    "exclamation marks": lambda seen: float(seen.text.count("!")),
    "question": _has_sign("?"),
    "ends in a question": lambda seen: float(seen.text.rstrip().endswith("?")),
    "log digits": lambda seen: math.log1p(seen.num_digits),
    "commas per word": lambda seen: seen.text.count(",") / max(1, seen.num_words),
    "parentheses": _has_sign("("),
    "quotation": _has_sign('"'),
    "colon": _has_sign(":"),
    "dash": _has_sign("—", "–", " - "),
    "first person": _first_person,
    "second person": _has_word("you your"),
    "hedge": _has_word(
        "may might perhaps probably usually often generally possibly likely roughly depend depends"
        " sometimes"
    ),
    "absolute": _has_word(
        "always every definitely certainly clearly obviously absolutely guarantee guaranteed"
    ),
    "negation": _has_word("no not never cannot", beside=r"n't\b", where=("n't",)),
    "apology": _has_word("sorry unfortunately afraid", beside=r"\bapolog", where=("apolog",)),
    "closing": _has_phrase(
        *("let me know", "hope this helps", "hope that helps", "feel free", "happy to help"),
        *("anything else", "good luck"),
    ),
    "praise": _praise,
    "reason": _has_word(
        "because since", beside=r"\b(so that|which means)\b", where=("so that", "which means")
    ),
    "contrast": _has_word("but however although though"),
}


def _of_text(feature: _Feature) -> Callable[[str], float]:
    return lambda text: feature(_Seen(text))


STYLE_FEATURES: dict[str, Callable[[str], float]] = {
    name: _of_text(feature) for name, feature in _FEATURES.items()
}
"""Name to function; each takes the answer's text alone."""


def style_features(text: str) -> list[float]:
    """The values of `STYLE_FEATURES`, in their order."""
    seen = _Seen(text)
    return [feature(seen) for feature in _FEATURES.values()]

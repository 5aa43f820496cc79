"""Phrases that the data themselves say often, found by frequency; labels have no part in it."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from palate.text import normalise
from palate.text.perturb import put_after, put_before, sentences

MIN_FREQUENCY = 0.02
"""Share of the answers from which on an ending or opener is frequent."""
MIN_ANSWERS = 20
MAX_PHRASES = 3

Change = Callable[[str, np.random.Generator], str]
"""From an answer to the same answer said otherwise."""


def frequent_phrases(texts: Sequence[str], at_end: bool) -> list[str]:
    """The most frequent last sentences (or first ones) of answers of several sentences, each in the
    spelling in which it comes first."""
    parts = (sentences(text) for text in texts)
    said = [part[-1 if at_end else 0].strip() for part in parts if len(part) > 1]
    spelled: dict[str, str] = {}
    for sentence in said:
        spelled.setdefault(normalise(sentence), sentence)
    counts = Counter(normalise(sentence) for sentence in said)
    least = max(MIN_ANSWERS, MIN_FREQUENCY * len(texts))
    frequent = [key for key, number in counts.most_common() if number >= least]
    # A list's number or mark is no phrase.
    return [spelled[key] for key in frequent if any(map(str.isalpha, key))][:MAX_PHRASES]


def added(phrase: str, at_end: bool) -> Change:
    """The phrase put after the answer (or before it), unless it is in it already."""
    put = put_after if at_end else put_before

    def change(text: str, random: np.random.Generator) -> str:
        return text if normalise(phrase) in normalise(text) else put(text, phrase)

    return change

"""Near-duplicate texts: candidates by MinHash and locality-sensitive hashing, checked exactly.

Two texts are as alike as the Jaccard index of their shingles: runs of five words, or of five
characters where either text has fewer than eight words and word shingles would be too few to say.
Candidates come from `datasketch` (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3)
and each is measured on the shingles themselves, so nothing is called alike that isn't. A pair
that is exactly at the threshold is missed with a probability of `MAX_MISS` at most, more similar
ones far less often. The hashes' seed is fixed: the same texts give the same pairs everywhere.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from palate.errors import PalateError
from palate.text.normal import normalise

SHINGLE = 5
"""Words, or characters, in a shingle."""
FEW_WORDS = 8
"""Texts of fewer words are compared by characters."""
NUM_PERMUTATIONS = 128
MAX_MISS = 0.005
MIN_THRESHOLD = 0.3
"""Below it unrelated texts that share a phrase would chain into one cluster."""

# Scripts without spaces: each character counts as a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True)
class NearPair:
    """Indices of two texts that are alike, and their Jaccard index."""

    first: int
    second: int
    similarity: float


@lru_cache(maxsize=4096)
def _shingles(text: str, by_words: bool) -> frozenset[str]:
    normal = normalise(text)
    if not by_words:
        starts = range(max(1, len(normal) - SHINGLE + 1))
        return frozenset(normal[start : start + SHINGLE] for start in starts)
    words = _WORD.findall(normal)
    starts = range(max(1, len(words) - SHINGLE + 1))
    return frozenset(" ".join(words[start : start + SHINGLE]) for start in starts)


@lru_cache(maxsize=4096)
def _num_words(text: str) -> int:
    return len(_WORD.findall(normalise(text)))


def similarity(first: str, second: str) -> float:
    """Jaccard index of the two texts' shingles, 0 to 1: shared shingles over all of both."""
    by_words = min(_num_words(first), _num_words(second)) >= FEW_WORDS
    ours, theirs = _shingles(first, by_words), _shingles(second, by_words)
    shared = len(ours & theirs)
    return shared / (len(ours) + len(theirs) - shared)


def _rows_a_band(threshold: float) -> int:
    """The most rows, and so the fewest idle candidates, that miss `MAX_MISS` of pairs at most.

    b bands of r rows miss a pair of Jaccard index s with probability (1 - s^r)^b.
    """
    allowed = [
        rows
        for rows in range(1, 17)
        if (1 - threshold**rows) ** (NUM_PERMUTATIONS // rows) <= MAX_MISS
    ]
    return max(allowed)


class _Index:
    """Texts by the hashes of their shingles; texts of middling length stand in both indices, since
    they are compared by characters with short ones and by words with long ones."""

    def __init__(self, threshold: float) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError as error:
            raise PalateError(
                "near-duplicates need datasketch; install palate[near]", "missing extra"
            ) from error
        rows = _rows_a_band(threshold)
        self._blank = MinHash(num_perm=NUM_PERMUTATIONS, seed=1)
        self._by = {
            by_words: MinHashLSH(num_perm=NUM_PERMUTATIONS, params=(NUM_PERMUTATIONS // rows, rows))
            for by_words in (True, False)
        }

    def signatures(self, text: str) -> dict[bool, Any]:
        """MinHash of the word shingles (True) and of the character shingles (False), where used."""
        num_words = _num_words(text)
        # Shorter texts may be alike to it that are compared by characters; those of J = 0.3 or
        # more have about a third of its length.
        kinds = [num_words >= FEW_WORDS] + [False] * (FEW_WORDS <= num_words <= FEW_WORDS * 3)
        found = {}
        for by_words in kinds:
            found[by_words] = self._blank.copy()
            shingles = [shingle.encode() for shingle in _shingles(text, by_words)]
            found[by_words].update_batch(shingles)
        return found

    def add(self, key: int, signatures: dict[bool, Any]) -> None:
        for by_words, signature in signatures.items():
            self._by[by_words].insert(key, signature, check_duplication=False)

    def candidates(self, signatures: dict[bool, Any]) -> Iterable[int]:
        found: set[int] = set()
        for by_words, signature in signatures.items():
            found.update(self._by[by_words].query(signature))
        return sorted(found)


def _check(threshold: float) -> None:
    if not MIN_THRESHOLD <= threshold <= 1:
        raise PalateError(
            f"the Jaccard index of near-duplicates is {threshold}, must be in [{MIN_THRESHOLD}, 1]"
        )


def near_pairs(
    texts: Sequence[str], threshold: float, against: Sequence[str] | None = None
) -> Iterator[NearPair]:
    """Pairs whose Jaccard index is `threshold` or more: of a text with one before it, or, with
    `against`, of a text (first) with one of those (second).

    Raises PalateError without the extra `near` and for a threshold outside [0.3, 1].
    """
    _check(threshold)
    index = _Index(threshold)
    for key, text in enumerate(against or ()):
        index.add(key, index.signatures(text))
    others = texts if against is None else against
    for number, text in enumerate(texts):
        signatures = index.signatures(text)
        for key in index.candidates(signatures):
            alike = similarity(text, others[key])
            if alike >= threshold:
                yield NearPair(number, key, alike)
        if against is None:
            index.add(number, signatures)


def near_clusters(texts: Sequence[str], threshold: float) -> list[int]:
    """For each text the number of its cluster: the lowest index among the texts that a chain of
    pairs of `threshold` or more joins to it.

    Which texts share a cluster does not depend on their order. Memory: some kilobytes a text.
    Raises PalateError without the extra `near` and for a threshold outside [0.3, 1].
    """
    _check(threshold)
    index = _Index(threshold)
    parent = list(range(len(texts)))

    def root(member: int) -> int:
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    for number, text in enumerate(texts):
        signatures = index.signatures(text)
        for key in index.candidates(signatures):
            ours, theirs = root(number), root(key)
            if ours != theirs and similarity(text, texts[key]) >= threshold:
                parent[max(ours, theirs)] = min(ours, theirs)
        index.add(number, signatures)
    return [root(number) for number in range(len(texts))]

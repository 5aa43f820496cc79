"""Which words and pairs of words a text has, hashed: features for small models.

Legend: N texts, B buckets, T terms (words or pairs of words, all texts in a row), D distinct terms
of each text, in a row.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?|[^\w\s]")
DEFAULT_BUCKETS = 1 << 14
_PAIR_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth's multiplicative hash)
_LOW_BITS = np.uint64(0xFFFFFFFF)


def words_of(text: str) -> list[str]:
    """The words of a text, case-folded; each mark of punctuation is a word."""
    return _WORD.findall(text.casefold())


def hashed_words(
    texts: Sequence[str], num_buckets: int = DEFAULT_BUCKETS, *, pairs: bool = True
) -> csr_matrix:
    """How often words (and, with `pairs`, neighbouring pairs of words) occur: NB, float32.

    Case is folded and marks of punctuation are words; log(1 + count), signed by a second hash so
    that collisions cancel (Weinberger et al. 2009, 0902.2206). The same on every machine.
    """
    words = [words_of(text) for text in texts]
    found = hashed_terms(words, num_buckets)
    return found + hashed_pairs(words, num_buckets) if pairs else found


def hashed_terms(terms: Sequence[Sequence[str]], num_buckets: int = DEFAULT_BUCKETS) -> csr_matrix:
    """`hashed_words` without pairs, of texts that are cut into their terms already."""
    code_T, row_T = _codes(terms)
    return _counted(code_T, row_T, len(terms), num_buckets)


def hashed_pairs(terms: Sequence[Sequence[str]], num_buckets: int = DEFAULT_BUCKETS) -> csr_matrix:
    """The same of each two neighbouring terms."""
    code_T, row_T = _codes(terms)
    follows_T = row_T[1:] == row_T[:-1]
    mixed_T = (code_T[:-1] * _PAIR_FACTOR + code_T[1:]) * _PAIR_FACTOR
    pair_T = (mixed_T >> np.uint64(32))[follows_T]
    return _counted(pair_T, row_T[1:][follows_T], len(terms), num_buckets)


def _codes(terms: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    """A 32-bit hash of each term, and the number of its text (T each, uint64)."""
    code_of: dict[str, int] = {}
    for text_terms in terms:
        for term in text_terms:
            if term not in code_of:
                # A lone surrogate has no UTF-8.
                code_of[term] = zlib.crc32(term.encode(errors="replace"))
    count_N = np.array([len(text_terms) for text_terms in terms], np.int64)
    codes = (code_of[term] for text_terms in terms for term in text_terms)
    code_T = np.fromiter(codes, np.uint64, int(count_N.sum()))
    return code_T, np.repeat(np.arange(len(terms), dtype=np.uint64), count_N)


def _counted(code_T: np.ndarray, row_T: np.ndarray, num_texts: int, num_buckets: int) -> csr_matrix:
    key_D, count_D = np.unique((row_T << np.uint64(32)) | code_T, return_counts=True)
    code_D = key_D & _LOW_BITS
    sign_D = np.where(code_D >> np.uint64(31), np.float32(1), np.float32(-1))
    value_D = np.log1p(count_D).astype(np.float32) * sign_D
    place_D = (
        (key_D >> np.uint64(32)).astype(np.int64),
        (code_D % np.uint64(num_buckets)).astype(np.int64),
    )
    return csr_matrix((value_D, place_D), (num_texts, num_buckets))

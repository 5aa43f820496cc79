"""Hashed words: what is counted, that it is the same everywhere, and that a pair has an order."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.text.hashed import hashed_pairs, hashed_terms, hashed_words, words_of

BUCKETS = 1 << 14


def test_marks_are_words_and_case_is_folded() -> None:
    assert words_of("It's 2 BIRDS, isn't it?") == ["it's", "2", "birds", ",", "isn't", "it", "?"]


def test_each_word_has_its_bucket_and_the_log_of_its_count() -> None:
    """`a` twice and `b` once: two buckets, of size log 3 and log 2."""
    row = hashed_words(["a b A"], BUCKETS, pairs=False)
    assert sorted(np.abs(row.data)) == pytest.approx([math.log(2), math.log(3)])
    assert row.dtype == np.float32
    assert row.shape == (1, BUCKETS)


def test_pairs_have_an_order_and_stay_within_their_text() -> None:
    """`a b` and `b a` are different pairs; two texts of a word each have none."""
    ordered = hashed_pairs([["a", "b"], ["b", "a"]]).toarray()
    assert (ordered[0] != ordered[1]).any()
    assert np.count_nonzero(ordered[0]) == np.count_nonzero(ordered[1]) == 1
    assert hashed_pairs([["a"], ["b"], []]).nnz == 0


def test_words_and_pairs_add_up() -> None:
    texts = ["one two three", "three two", ""]
    words = [words_of(text) for text in texts]
    together = hashed_terms(words).toarray() + hashed_pairs(words).toarray()
    np.testing.assert_array_equal(hashed_words(texts).toarray(), together)


def test_the_hash_is_the_same_on_every_machine() -> None:
    """crc32("the") = 0x3C456DE6: bucket 0x2DE6 of 2^14, its highest bit 0, so the sign is minus."""
    row = hashed_words(["the"], BUCKETS, pairs=False)
    assert row.indices.tolist() == [0x3C456DE6 % BUCKETS]
    assert row.data.tolist() == pytest.approx([-math.log(2)])


@given(st.lists(st.text(), max_size=5))
def test_a_text_has_the_same_features_alone_and_among_others(texts: list[str]) -> None:
    together = hashed_words(texts).toarray()
    for text, row in zip(texts, together, strict=True):
        np.testing.assert_array_equal(hashed_words([text]).toarray()[0], row)


def test_a_lone_surrogate_is_a_word_like_others() -> None:
    assert hashed_words(["a\ud800b"]).nnz > 0

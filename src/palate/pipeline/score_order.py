"""The order in which answers are scored: equal beginnings together, wherever they stand.

Legend: A answers.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from palate.pipeline.score_answers import AnswerStore, Ids

SEGMENT_TOKENS = 2**24
"""Token ids (64 MiB of them) that are sorted in memory at once."""
TOKENS_FOR_AN_OBJECT = 32
"""What a Python object takes more than the ids in it, in tokens, at the least."""
MICROBATCHES_PER_CHUNK = 16
"""An answer's neighbours in a microbatch are of its chunk: longer chunks pack better, and a kill
loses at most one."""
MAX_ANSWERS_PER_CHUNK = 4096
MAX_REPEATS_OF_A_TOKEN = 16
"""Ids in a chunk, each answer's prompt counted again, are at most so many times its budget: each
takes 36 bytes in memory."""


def dictionary_order(store: AnswerStore, segment_tokens: int = SEGMENT_TOKENS) -> np.ndarray:
    """Places of the answers (int64 A) in dictionary order of their ids, equal ones by place.

    Equal prompts come together in it, and prompts with equal beginnings. The ids stay on the disk:
    segments are sorted by themselves, then merged. Memory: 24 bytes an answer, and what one segment
    takes (a few hundred MiB).
    """
    return _order(store, lambda place: store[place].tobytes(), segment_tokens)


def length_order(store: AnswerStore, segment_tokens: int = SEGMENT_TOKENS) -> np.ndarray:
    """The same by length, then in dictionary order: for layout `rows`, which shares no prompt and
    pads to the longest."""

    def key(place: int) -> bytes:
        ids = store[place]
        return len(ids).to_bytes(4, "big") + ids.tobytes()

    return _order(store, key, segment_tokens)


def _order(store: AnswerStore, key: Callable[[int], bytes], segment_tokens: int) -> np.ndarray:
    runs = [
        np.array(sorted(range(start, stop), key=key), np.int64)
        for start, stop in _segments(store.end_A, segment_tokens)
    ]
    if len(runs) == 1:
        return runs[0]
    return np.fromiter(heapq.merge(*runs, key=key), np.int64, len(store))


def _segments(end_A: np.ndarray, segment_tokens: int) -> Iterator[tuple[int, int]]:
    size_A = end_A // TOKENS_FOR_AN_OBJECT
    size_A += np.arange(len(end_A), dtype=size_A.dtype)
    size_A //= max(1, segment_tokens // TOKENS_FOR_AN_OBJECT)
    starts = [0, *(np.flatnonzero(size_A[1:] != size_A[:-1]) + 1).tolist(), len(end_A)]
    return pairwise(starts)


@dataclass
class Chunk:
    """Neighbours in the order: distinct sequences, and which of them each place has."""

    sequences: list[Ids] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    which: list[int] = field(default_factory=list)
    num_fresh: int = 0
    """Tokens that the sequence before does not share: what a forest computes, about."""
    num_ids: int = 0


def chunks(
    store: AnswerStore, order_A: Sequence[int] | np.ndarray, budget: int, shares_prompts: bool
) -> Iterator[Chunk]:
    """Divide answers in the given order into chunks of at least `budget` tokens to compute.

    A chunk ends where a sequence shares no more than half with the one before, so a prompt is not
    computed in two chunks, unless its answers are twice the budget. Equal sequences stay together,
    and where a chunk starts depends on nothing before it.
    """
    chunk = Chunk()
    last = np.empty(0, ">u4")
    for place in order_A:
        ids = store[int(place)]
        if not (chunk.places and np.array_equal(last, ids)):
            num_shared = _num_shared(last, ids) if shares_prompts and chunk.places else 0
            if _ends_before(chunk, min(len(last), len(ids)), len(ids), num_shared, budget):
                yield chunk
                chunk, num_shared = Chunk(), 0
            chunk.num_fresh += len(ids) - num_shared
            chunk.num_ids += len(ids)
            chunk.sequences.append(tuple(ids.tolist()))
        chunk.places.append(int(place))
        chunk.which.append(len(chunk.sequences) - 1)
        last = ids
    if chunk.places:
        yield chunk


def _ends_before(chunk: Chunk, shorter: int, num_ids: int, num_shared: int, budget: int) -> bool:
    is_over = (
        chunk.num_fresh + num_ids - num_shared > 2 * budget
        or chunk.num_ids + num_ids > MAX_REPEATS_OF_A_TOKEN * budget
        or len(chunk.sequences) == MAX_ANSWERS_PER_CHUNK
    )
    is_between_prompts = 2 * num_shared <= shorter
    return bool(chunk.places) and (is_over or (chunk.num_fresh >= budget and is_between_prompts))


def _num_shared(first: np.ndarray, second: np.ndarray) -> int:
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    return int(differs.argmax()) if differs.any() else length

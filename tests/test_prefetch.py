"""Items made ahead of their use."""

import threading
import time
from collections.abc import Iterator

import pytest

from palate.training.prefetch import prefetched


def test_the_items_come_in_order_and_once() -> None:
    assert list(prefetched(range(50))) == list(range(50))
    assert list(prefetched([])) == []


def test_the_next_ones_are_made_while_the_first_is_used() -> None:
    """Two wait in the queue and one in the thread's hand, never more."""
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    ahead = prefetched(items())
    assert next(ahead) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]
    assert list(ahead) == list(range(1, 10))


def test_an_error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("two")

    ahead = prefetched(items())
    assert next(ahead) == 1
    with pytest.raises(KeyError, match="two"):
        next(ahead)


def test_the_thread_ends_with_the_iterator() -> None:
    def names() -> list[str]:
        return [thread.name for thread in threading.enumerate()]

    ahead = prefetched(iter(int, 1))
    next(ahead)
    assert "prefetch" in names()
    ahead.close()  # type: ignore[attr-defined]
    assert "prefetch" not in names()

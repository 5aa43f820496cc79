"""The next items, made while the present one is used."""

import threading
from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from typing import Any, TypeVar

Item = TypeVar("Item")
WAKE_SECONDS = 0.1


def prefetched(items: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """The items in their order, up to `depth` of them made ahead in a thread.

    What the thread raises is raised here, in its place; the thread ends when this iterator does.
    """
    ready: Queue[tuple[str, Any]] = Queue(depth)
    stopped = threading.Event()

    def hand_over(kind: str, value: Any) -> None:
        while not stopped.is_set():
            try:
                ready.put((kind, value), timeout=WAKE_SECONDS)
                return
            except Full:
                continue

    def make() -> None:
        try:
            for item in items:
                hand_over("item", item)
                if stopped.is_set():
                    return
            hand_over("end", None)
        except BaseException as error:
            hand_over("error", error)

    thread = threading.Thread(target=make, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            try:
                kind, value = ready.get(timeout=WAKE_SECONDS)
            except Empty:
                continue
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join()

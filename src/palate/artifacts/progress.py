"""A progress bar on stderr for whatever takes more than two seconds."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
DELAY_SECONDS = 2.0


def progress(items: Iterable[T], what: str) -> Iterator[T]:
    """The items; rate and time left are shown after `DELAY_SECONDS`, on terminals only."""
    yield from tqdm(
        items, desc=what, file=sys.stderr, delay=DELAY_SECONDS, leave=False, disable=None
    )

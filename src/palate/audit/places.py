"""Where a check saw something: examples with file, line and a few words.

Legend: X places.
"""

from collections.abc import Callable

import numpy as np

from palate.audit.columns import Audited
from palate.audit.findings import MAX_EXAMPLES, Example
from palate.preferences import PreferenceGroup

MAX_CHARACTERS = 160


def shortened(text: str) -> str:
    """One line of at most `MAX_CHARACTERS`."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_CHARACTERS else line[: MAX_CHARACTERS - 1] + "…"


def place_of(group: PreferenceGroup, text: str) -> Example:
    """An example at a group that is at hand."""
    return Example(group.file, group.line, shortened(text))


def at_hand(audited: Audited, group_X: np.ndarray, number: int) -> np.ndarray:
    """Where in `group_X` (groups of the columns, worst first) `number` different ones first stand:
    those in the sample where it holds so many, since others are read again from their file."""
    _, first = np.unique(group_X, return_index=True)
    first = np.sort(first)
    sampled = first[np.isin(group_X[first], audited.sample_G)]
    return (sampled if len(sampled) >= number else first)[:number]


def places(
    audited: Audited, group_X: np.ndarray, text_of: Callable[[int, PreferenceGroup], str]
) -> tuple[Example, ...]:
    """Examples at the first ten of these groups (`at_hand`); `text_of` says what is seen there, by
    the index into `group_X` and the group.

    A group that can't be read again (its file changed meanwhile) is left out.
    """
    wanted = {int(group_X[x]): int(x) for x in at_hand(audited, group_X, MAX_EXAMPLES)}
    found = audited.fetch(list(wanted)) if wanted else {}
    return tuple(
        place_of(found[index], text_of(x, found[index]))
        for index, x in wanted.items()
        if index in found
    )


def last_turn(group: PreferenceGroup) -> str:
    """What the answers answer, for an example."""
    return group.prompt[-1].content


def share(count: int, of: int) -> float:
    """A share, 0 of nothing."""
    return count / of if of else 0.0

"""Which sequences are scored together, so that what they begin with is computed once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from palate.forest.tree import Ids, shared_length

CACHED_SHARE = 1 / 32
"""A prompt of so many tokens, as a share of the budget, is kept as keys and values once its answers
fill more than one microbatch; computing a shorter one again costs less than this share."""


@dataclass(frozen=True)
class Family:
    """Groups whose sequences all begin with `prompt`; empty where there is one group, or little to
    share."""

    prompt: Ids
    groups: tuple[Sequence[Ids], ...]


def groups_by_opening(ordered: Sequence[Ids], tokens_per_microbatch: int) -> list[Sequence[Ids]]:
    """Distinct sequences in dictionary order, divided into the trees that have the fewest tokens.

    A tree stays within the token budget and shares more than half of its shortest sequence: one of
    strangers saves little. Openings that only some of a tree share are not counted here; where
    there are any, it has still fewer tokens.
    """
    # In dictionary order, what all of a run share is the least that two neighbours in it share.
    shared = [shared_length(*pair) for pair in pairwise(ordered)]
    num_tokens = [0]
    starts: list[int] = []
    for end, last in enumerate(ordered, start=1):
        total = prefix = shortest = len(last)
        best = (num_tokens[end - 1] + total, end - 1)
        for start in range(end - 2, -1, -1):
            total += len(ordered[start])
            prefix = min(prefix, shared[start])
            shortest = min(shortest, len(ordered[start]))
            size = total - (end - 1 - start) * prefix
            if size > tokens_per_microbatch or 2 * prefix <= shortest:
                break
            best = min(best, (num_tokens[start] + size, start))
        num_tokens.append(best[0])
        starts.append(best[1])
    groups: list[Sequence[Ids]] = []
    end = len(ordered)
    while end:
        groups.append(ordered[starts[end - 1] : end])
        end = starts[end - 1]
    return groups[::-1]


def families(groups: Sequence[Sequence[Ids]], tokens_per_microbatch: int) -> list[Family]:
    """Neighbouring groups (in dictionary order) joined where they begin with one long prompt."""
    least = max(1.0, CACHED_SHARE * tokens_per_microbatch)
    found: list[Family] = []
    for group in groups:
        if found:
            former = found[-1]
            prompt = group[0][: shared_length(former.groups[0][0], group[-1])]
            # A prompt that shrinks when a group joins is another prompt.
            is_same = not former.prompt or len(prompt) == len(former.prompt)
            longer = all(len(ids) > len(prompt) for ids in (former.groups[0][0], group[0]))
            if len(prompt) >= least and is_same and longer:
                found[-1] = Family(prompt, (*former.groups, group))
                continue
        found.append(Family((), (group,)))
    return found

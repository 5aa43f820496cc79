"""What people said about three answers or more, as rankings with tiers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from palate.errors import PalateError
from palate.objectives.settings import Ties
from palate.preferences.types import Comparison, Vote
from palate.rendering import RenderedGroup

LARGEST_TIER = 9
"""A tier of m answers costs 2^m sums."""


@dataclass(frozen=True)
class Tier:
    """Answers at the same place of a ranking, as sequences of a group."""

    members: tuple[int, ...]
    tied: bool
    """True: people called them equal. False: nobody said what their order is."""


Ranking = tuple[Tier, ...]
"""Best first."""


@dataclass(frozen=True)
class Placing:
    """One tier of a ranking that a loss counts: `members` come next, before all of `below`."""

    members: tuple[int, ...]
    below: tuple[int, ...]
    averaged: bool
    """Over the orders of the members: the mean of the losses; else the loss of their sum."""
    num_choices: int
    """Choices that were made to place the members; the last answer of a ranking is no choice."""


def rankings_of(group: RenderedGroup) -> tuple[Ranking, ...]:
    """The group's rankings, all to be weighted alike; none where there are only comparisons.

    Votes that the comparisons were counted from and that rank two answers or more, each a ranking
    (one that only chose: what it left is a tier of unknown order). Without such votes the
    comparisons, where they are sure (probability 1, tie 0 or 1) and put three answers or more into
    tiers: each answer of a tier compared with each answer of the other tiers and better or worse
    than all of them. So ratings are read through the comparisons made from them: equal ratings are
    a tier of unknown order, as they make no comparison.
    """
    if len(group.sequences) < 3:
        return ()
    position = {index: sequence for sequence, index in enumerate(group.response_index)}
    votes = group.group.votes if group.group.votes_counted else ()
    voted = [_of_vote(vote, position) for vote in votes]
    rankings = [ranking for ranking in voted if num_answers(ranking) >= 2]
    if rankings:
        return tuple(rankings)
    ranking = weak_order(group.comparisons)
    return (ranking,) if ranking and num_answers(ranking) >= 3 else ()


def num_answers(ranking: Ranking) -> int:
    """Answers that it puts into tiers."""
    return sum(len(tier.members) for tier in ranking)


def _of_vote(vote: Vote, position: dict[int, int]) -> Ranking:
    tiers = [tuple(position[i] for i in members if i in position) for members in vote.ranking]
    unordered = len(tiers) - 1 if vote.rest_unordered else None
    return tuple(
        Tier(members, tied=place != unordered) for place, members in enumerate(tiers) if members
    )


def weak_order(comparisons: Sequence[Comparison]) -> Ranking | None:
    """The ranking that the comparisons make, or None: soft ones, gaps, cycles, contradictions."""
    if any(c.tie not in (0, 1) or (c.tie == 0 and c.probability < 1) for c in comparisons):
        return None
    beats = {(c.better, c.worse) for c in comparisons if c.tie == 0}
    ties = {frozenset((c.better, c.worse)) for c in comparisons if c.tie == 1}
    answers = {index for c in comparisons for index in (c.better, c.worse)}
    num_beaten = {a: sum((a, b) in beats for b in answers) for a in answers}
    tiers = [
        tuple(sorted(a for a in answers if num_beaten[a] == number))
        for number in sorted(set(num_beaten.values()), reverse=True)
    ]
    place = {a: number for number, members in enumerate(tiers) for a in members}
    for a, b in combinations(answers, 2):
        found = ((a, b) in beats, (b, a) in beats, frozenset((a, b)) in ties)
        together = place[a] == place[b]
        if found != (place[a] < place[b], place[b] < place[a], found[2] and together):
            return None
    return tuple(
        Tier(members, all(frozenset(pair) in ties for pair in combinations(members, 2)))
        for members in tiers
    )


def counted_tiers(ranking: Ranking, ties: Ties) -> list[tuple[int, Placing]]:
    """(number of answers placed above, tier) of each tier that says something.

    Answers called equal: with half every order of them counts alike, as a tie between two counts
    half a win for each; with drop their order is unknown, as where nobody said it. The last
    tier of an unknown order says nothing.
    """
    counted: list[tuple[int, Placing]] = []
    num_above = 0
    for number, tier in enumerate(ranking):
        members = tier.members
        below = tuple(index for lower in ranking[number + 1 :] for index in lower.members)
        averaged = len(members) > 1 and tier.tied and ties == "half"
        if below or averaged:
            num_choices = len(members) - (not below)
            counted.append((num_above, Placing(members, below, averaged, num_choices)))
        num_above += len(members)
    return counted


def placings_of(group: RenderedGroup, ties: Ties, top_k: int) -> list[list[Placing]]:
    """For each of the group's rankings the tiers that begin within the first `top_k` places (0 =
    all). Raises PalateError when one of them is too large."""
    found = [
        [
            placing
            for num_above, placing in counted_tiers(ranking, ties)
            if not 0 < top_k <= num_above
        ]
        for ranking in rankings_of(group)
    ]
    largest = max((len(placing.members) for tiers in found for placing in tiers), default=0)
    if largest > LARGEST_TIER:
        raise PalateError(
            f"{group.group.file}:{group.group.line}: a ranking has {largest} answers at one place;"
            f" objective.kind plackett-luce takes {LARGEST_TIER} at most. Use objective.kind"
            " bradley-terry, or leave this row out"
        )
    return found

"""Votes and ratings to comparisons."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from palate.errors import PalateError
from palate.preferences.types import Comparison, Vote


@dataclass(frozen=True, kw_only=True)
class VoteSettings:
    """How votes, strengths and ratings become comparisons."""

    target: Literal["probability", "majority"] = "probability"
    """probability: k of n votes become (k + prior) / (n + 2 prior). majority: the side with more
    votes is right with probability 1; pairs without a majority are left out."""
    prior: float = 0.5
    """Pseudo-votes added to each side (0.5 is Jeffreys' prior); no effect with majority."""
    margin_per_strength: float = 0.0
    """Margin in logits for one unit of stated strength, as Llama 2 did; 0 = no margin from it.
    Needs hard labels: rows without votes, or target majority."""
    min_gap: float = 0.0
    """Smallest difference of ratings, on their own scale, that makes a comparison; equal ratings
    never do."""

    def __post_init__(self) -> None:
        for name in ("prior", "margin_per_strength", "min_gap"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise PalateError(f"read.votes.{name} is {value}, must be a number of 0 or more")
        if self.target == "majority" and self.prior != 0.5:
            raise PalateError(
                f"read.votes.prior {self.prior} has no effect with read.votes.target majority"
            )


def vote_probability(num_for: float, num_against: float, prior: float = 0.5) -> float:
    """(k + prior) / (n + 2 prior): the posterior mean of a Beta(prior, prior) prior.

    7 of 10 with the default prior: 7.5 / 11 = 0.682. Without votes and prior it is 0.5.
    """
    total = num_for + num_against + 2 * prior
    return (num_for + prior) / total if total > 0 else 0.5


def _tally(first: int, second: int, votes: Sequence[Vote]) -> tuple[int, int, int, list[float]]:
    """Votes for `first`, for `second`, ties, and strengths signed towards `first`."""
    num_first = num_second = num_ties = 0
    strengths: list[float] = []
    for vote in votes:
        place = {index: tier for tier, members in enumerate(vote.ranking) for index in members}
        if first not in place or second not in place:
            continue
        if place[first] == place[second]:
            num_ties += 1
            continue
        sign = 1 if place[first] < place[second] else -1
        num_first += sign > 0
        num_second += sign < 0
        # Strength is about the first of a ranking; it says nothing on a pair further down.
        if vote.strength is not None and 0 in (place[first], place[second]):
            strengths.append(sign * abs(vote.strength))
    return num_first, num_second, num_ties, strengths


def comparisons_from_votes(
    num_responses: int, votes: Sequence[Vote], settings: VoteSettings
) -> tuple[Comparison, ...]:
    """One comparison for each pair that at least one vote ranks.

    Contradictory votes are kept as a probability near 0.5. `tie` is the share of tie votes.
    """
    made: list[Comparison] = []
    for first, second in combinations(range(num_responses), 2):
        num_first, num_second, num_ties, strengths = _tally(first, second, votes)
        if num_first + num_second + num_ties == 0:
            continue
        better, worse = (first, second) if num_first >= num_second else (second, first)
        if settings.target == "majority":
            if num_first == num_second or num_ties > max(num_first, num_second):
                continue
            towards_first = sum(strengths) / len(strengths) if strengths else 0.0
            # Few strong votes against many weak ones leave the majority without a margin.
            strength = max(0.0, towards_first if better == first else -towards_first)
            made.append(Comparison(better, worse, margin=settings.margin_per_strength * strength))
            continue
        made.append(
            Comparison(
                better,
                worse,
                probability=vote_probability(
                    max(num_first, num_second), min(num_first, num_second), settings.prior
                ),
                tie=num_ties / (num_first + num_second + num_ties),
            )
        )
    return tuple(made)


def comparisons_from_ranking(ranking: Sequence[Sequence[int]]) -> tuple[Comparison, ...]:
    """All pairs from different tiers, the earlier tier better with probability 1."""
    return tuple(
        Comparison(better, worse)
        for high, low in combinations(range(len(ranking)), 2)
        for better in ranking[high]
        for worse in ranking[low]
    )


def comparisons_from_ratings(
    ratings: Mapping[int, float], min_gap: float
) -> tuple[Comparison, ...]:
    """All pairs whose ratings differ, by at least `min_gap`; the higher rating is better."""
    made: list[Comparison] = []
    for first, second in combinations(sorted(ratings), 2):
        gap = ratings[first] - ratings[second]
        if gap == 0 or abs(gap) < min_gap:
            continue
        made.append(Comparison(first, second) if gap > 0 else Comparison(second, first))
    return tuple(made)

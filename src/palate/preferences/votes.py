"""Votes and ratings to comparisons."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

from palate.errors import PalateError
from palate.preferences.types import Comparison, Vote

Equal = Literal["leave_out", "tie"]

Labels = Literal["one_two", "zero_one", "one_zero", "tie_one_two"]

ROUNDING = 8 * sys.float_info.epsilon
"""Relative to the ratings: 0.3 - 0.2 is below 0.1, and a mean of decimals beside its own value."""
MISSING_CELLS = frozenset({"", "na", "n/a", "#n/a", "nan", "none", "null", "-"})
"""What tables write, in any case, where an annotator has not voted."""
HEEDED_BY_NAMED_VOTES = frozenset({"annotator_cap", "reliability"})
HEEDED_BY_VOTES = frozenset({"target", "prior", "annotator_weights"}) | HEEDED_BY_NAMED_VOTES
"""Settings that change what is made of votes."""
HEEDED_BY_STRENGTH = frozenset({"margin_per_strength", "scale_by_strength"})
HEEDED_BY_RATINGS = HEEDED_BY_STRENGTH | {"min_gap", "equal"}


@dataclass(frozen=True, kw_only=True)
class VoteSettings:
    """How votes, strengths and ratings become comparisons."""

    target: Literal["probability", "majority"] = "probability"
    """probability: k of n votes become (k + prior) / (n + 2 prior). majority: the side with more
    votes is right with probability 1; pairs without a majority are left out."""
    prior: float = 0.5
    """Pseudo-votes added to each side (0.5 is Jeffreys' prior); no effect with majority."""
    annotator_weights: dict[str, float] = field(default_factory=dict)
    """Votes that one vote of this annotator counts as; annotators not named count 1, 0 leaves an
    annotator out."""
    annotator_cap: float = 0.0
    """Largest share of a source's votes that one annotator's may be, counted with their weights: of
    those above it each vote counts less, so that they come down to it exactly (0.2: a fifth). 0 =
    no cap. Reads the source twice."""
    reliability: bool = False
    """Weigh annotators by how reliable they have been: by the log-odds that their vote is right,
    from one-coin Dawid-Skene over the source. Reads the source twice, and holds its votes."""
    weigh: Literal["votes", "comparisons"] = "votes"
    """What annotator_weights change. votes: k and n are sums of weights, and a lone light vote
    makes a softer label. comparisons: the label is that of as many equal votes as the weights are
    worth, and the comparison's weight is the mean of its votes' weights (each by itself weighted):
    a lone vote's label stays, and its loss counts less. annotator_cap and reliability always do
    that."""
    missing: Literal["no_vote", "tie"] = "no_vote"
    """What an annotator's empty cell or empty score means: nothing, or that neither was better."""
    labels: Labels = "one_two"
    """What a number means that labels one of two answers: one_two: 1 the first is better, 2 the
    second; zero_one: 0 the first, 1 the second (PKU-SafeRLHF); one_zero: 1 the first, 0 the second
    (SHP); tie_one_two: 0 neither, 1 the first, 2 the second. A source with a number that its coding
    does not have, though another has it, is refused as a whole."""
    recount: bool = False
    """Where a row holds votes and comparisons (or an overall preference), make the comparisons from
    the votes; otherwise those stated stand, and the votes are kept beside them."""
    margin_per_strength: float = 0.0
    """Margin in logits for one unit of stated strength, as Llama 2 did, or of the ratings'
    difference; 0 = no margin from it. Needs hard labels: rows without votes, or target majority."""
    scale_by_strength: bool = False
    """A comparison's weight is its strength, as in HelpSteer2-Preference, or the difference of its
    ratings; one without either keeps weight 1."""
    min_gap: float = 0.0
    """Smallest difference of ratings, on their own scale, that makes a comparison."""
    equal: Equal = "leave_out"
    """What is made of two answers with equal ratings, in one place of a ranking, with strength 0,
    labelled a tie, or both correct in a benchmark: no comparison, or a tie. Votes count ties by
    themselves."""

    def __post_init__(self) -> None:
        for name in ("prior", "margin_per_strength", "min_gap"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise PalateError(f"read.votes.{name} is {value}, must be a number of 0 or more")
        if self.target == "majority" and self.prior != 0.5:
            raise PalateError(
                f"read.votes.prior {self.prior} has no effect with read.votes.target majority"
            )
        for annotator, weight in self.annotator_weights.items():
            if not 0 <= weight < math.inf:
                raise PalateError(
                    f"read.votes.annotator_weights: {annotator!r} has weight {weight}, must be a"
                    " number of 0 or more"
                )
        if self.annotator_weights and set(self.annotator_weights.values()) == {1.0}:
            raise PalateError(
                "read.votes.annotator_weights has no effect: every weight is 1, as without it"
            )
        self._check_weighing()

    def _check_weighing(self) -> None:
        if not 0 <= self.annotator_cap < 1:
            raise PalateError(
                f"read.votes.annotator_cap is {self.annotator_cap}, must be 0 (no cap) or a share"
                " below 1"
            )
        finds = "annotator_cap" if self.annotator_cap else "reliability" if self.reliability else ""
        if finds and self.annotator_weights:
            raise PalateError(
                f"read.votes: annotator_weights states the weights that {finds} would find; set one"
                " of them"
            )
        if finds and self.weigh != "votes":
            raise PalateError(
                f"read.votes.weigh {self.weigh} has no effect with {finds}, which weighs"
                " comparisons by itself; leave it out"
            )


def vote_probability(num_for: float, num_against: float, prior: float = 0.5) -> float:
    """(k + prior) / (n + 2 prior): the posterior mean of a Beta(prior, prior) prior.

    7 of 10 with the default prior: 7.5 / 11 = 0.682. Without votes and prior it is 0.5.
    """
    total = num_for + num_against + 2 * prior
    return (num_for + prior) / total if total > 0 else 0.5


@dataclass(frozen=True)
class Tally:
    """Votes on a pair, each times its annotator's weight."""

    num_first: float
    num_second: float
    num_ties: float
    strength: float | None
    """Mean strength, signed towards the first (weighted as the votes); None where no vote on the
    pair states one."""
    sum_squares: float
    """Of the weights."""

    @property
    def num_votes(self) -> float:
        return self.num_first + self.num_second + self.num_ties

    @property
    def weight(self) -> float:
        """sum w^2 / sum w, the mean weight, each weighted by itself: w for a lone vote, and a vote
        whose weight goes to 0 goes out of it as if it weren't there."""
        return self.sum_squares / self.num_votes

    def as_equal_votes(self) -> "Tally":
        """The same as (sum w)^2 / sum w^2 votes, the number of equal ones that are worth as much
        (effective sample size, Kish 1965)."""
        num_first, num_second, num_ties = (
            number / self.weight for number in (self.num_first, self.num_second, self.num_ties)
        )
        return replace(self, num_first=num_first, num_second=num_second, num_ties=num_ties)


def tally(first: int, second: int, votes: Sequence[Vote], weights: Mapping[str, float]) -> Tally:
    """Count the votes that compare two responses, of which `first` is the lower index."""
    num_first = num_second = num_ties = sum_squares = 0.0
    strength_sum = strength_weight = 0.0
    for vote in votes:
        sign = vote.outcomes().get((first, second))
        if sign is None:
            continue
        weight = weights.get(vote.annotator, 1.0)
        num_first += weight * (sign > 0)
        num_second += weight * (sign < 0)
        num_ties += weight * (sign == 0)
        sum_squares += weight**2
        # Strength is about the first of a ranking; it says nothing on a pair further down.
        if vote.strength is not None and {first, second} & set(vote.ranking[0]):
            strength_sum += weight * sign * abs(vote.strength)
            strength_weight += weight
    strength = strength_sum / strength_weight if strength_weight else None
    return Tally(num_first, num_second, num_ties, strength, sum_squares)


def comparisons_from_votes(
    num_responses: int, votes: Sequence[Vote], settings: VoteSettings
) -> tuple[Comparison, ...]:
    """One comparison for each pair that at least one vote with a weight ranks.

    Contradictory votes are kept as a probability near 0.5. `tie` is the share of tie votes. A
    pair's strength is the mean over its votes, signed towards the better side and at least 0: few
    strong votes against many weak ones leave the winner without any. Where all votes are ties there
    is no strength to scale a weight by, and it is 1 as that of any tie. With `weigh` comparisons
    the weight is times the mean weight of the votes (`Tally.weight`).
    """
    made: list[Comparison] = []
    for first, second in combinations(range(num_responses), 2):
        count = tally(first, second, votes, settings.annotator_weights)
        if count.sum_squares == 0:  # nobody with a weight
            continue
        factor = 1.0
        if settings.weigh == "comparisons":
            factor, count = count.weight, count.as_equal_votes()
        first_leads = count.num_first >= count.num_second
        better, worse = (first, second) if first_leads else (second, first)
        most, fewest = sorted((count.num_first, count.num_second), reverse=True)
        towards_first = count.strength or 0.0
        strength = max(0.0, towards_first if first_leads else -towards_first)
        only_ties = count.num_first == count.num_second == 0
        scaled = settings.scale_by_strength and count.strength is not None and not only_ties
        weight = factor * (strength if scaled else 1.0)
        if settings.target == "majority":
            if most == fewest or count.num_ties > most:
                continue
            margin = settings.margin_per_strength * strength
            made.append(Comparison(better, worse, margin=margin, weight=weight))
            continue
        probability = vote_probability(most, fewest, settings.prior)
        made.append(
            Comparison(
                better,
                worse,
                probability=probability,
                tie=count.num_ties / count.num_votes,
                weight=weight,
            )
        )
    return tuple(made)


def heeded_by_votes(votes: Sequence[Vote], settings: VoteSettings) -> frozenset[str]:
    """Names of the settings that could change what `comparisons_from_votes` makes of these."""
    if not votes:
        return frozenset()
    heeded = HEEDED_BY_VOTES | ({"weigh"} if settings.annotator_weights else set())
    if not any(vote.annotator for vote in votes):
        heeded -= HEEDED_BY_NAMED_VOTES
    if all(vote.strength is None for vote in votes):
        return heeded
    # A probability takes no margin.
    without = set() if settings.target == "majority" else {"margin_per_strength"}
    return heeded | (HEEDED_BY_STRENGTH - without)


def tie_between(first: int, second: int) -> Comparison:
    """Two responses that people found equal."""
    return Comparison(first, second, probability=0.5, tie=1.0)


def comparison_of_strength(
    better: int, worse: int, strength: float, settings: VoteSettings
) -> Comparison:
    """A stated preference with its strength (0 or more) as margin, weight or neither."""
    return Comparison(
        better,
        worse,
        margin=settings.margin_per_strength * strength,
        weight=strength if settings.scale_by_strength else 1.0,
    )


def comparisons_from_ranking(
    ranking: Sequence[Sequence[int]], equal: Equal = "leave_out"
) -> tuple[Comparison, ...]:
    """All pairs from different tiers, the earlier tier better with probability 1; pairs of one
    tier as `equal` says."""
    made = [
        Comparison(better, worse)
        for high, low in combinations(range(len(ranking)), 2)
        for better in ranking[high]
        for worse in ranking[low]
    ]
    if equal == "tie":
        made += [tie_between(*pair) for tier in ranking for pair in combinations(tier, 2)]
    return tuple(made)


def comparisons_from_ranks(
    ranks: Mapping[int, float], equal: Equal = "leave_out"
) -> tuple[Comparison, ...]:
    """All pairs whose ranks differ; here too the higher number is better. How far they differ says
    nothing."""
    return comparisons_from_ratings(ranks, VoteSettings(equal=equal))


def rating_gap(first: float, second: float) -> float:
    """first - second; 0 where they differ by no more than rounding."""
    gap = first - second
    return 0.0 if abs(gap) <= ROUNDING * max(abs(first), abs(second)) else gap


def is_wide(gap: float, rating: float, min_gap: float) -> bool:
    """Whether a gap, of which one side is `rating`, is at least `min_gap`, up to rounding."""
    return abs(gap) >= min_gap - ROUNDING * max(abs(rating), abs(gap))


def comparisons_from_ratings(
    ratings: Mapping[int, float], settings: VoteSettings
) -> tuple[Comparison, ...]:
    """All pairs whose ratings differ, by at least `min_gap`; the higher rating is better.

    The gap is the comparison's strength. Equal ratings are left out or a tie, as `equal` says; a
    gap above 0 and below `min_gap` makes nothing in both cases, since it says neither that one is
    better nor that they are equal. Gaps are compared up to rounding (`ROUNDING`).
    """
    made: list[Comparison] = []
    for first, second in combinations(sorted(ratings), 2):
        gap = rating_gap(ratings[first], ratings[second])
        if gap == 0:
            made += [tie_between(first, second)] if settings.equal == "tie" else []
        elif is_wide(gap, ratings[first], settings.min_gap):
            better, worse = (first, second) if gap > 0 else (second, first)
            made.append(comparison_of_strength(better, worse, abs(gap), settings))
    return tuple(made)

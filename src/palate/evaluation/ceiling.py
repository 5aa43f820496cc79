"""How far annotators agree with each other: what accuracy can be asked for.

Only votes that prefer one of two answers count, and of a named annotator the first on a pair. In a
prompt the mean over its pairs is taken, over prompts the plain mean; intervals resample clusters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from palate.evaluation.outcomes import Outcome
from palate.statistics import Estimate, cluster_mean

MIN_VOTES = 2


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """Agreement on the pairs of scored answers that two or more votes decide."""

    agreement: Estimate
    """How often an annotator says what the majority of the others says, a majority of none counting
    half: a person's accuracy, to be read beside the model's."""
    majority_against_votes: Estimate
    """How often the majority of all agrees with a single vote: no predictor does better against
    these single votes. With few votes a pair it is too high, since each vote is in its own
    majority."""
    model_against_votes: Estimate
    """How often the model agrees with a single vote, equal rewards counting half: what the line
    above bounds."""
    num_pairs: int
    num_votes: int
    num_tie_votes: int
    """On any pair of scored answers; left out."""

    def metrics(self) -> dict[str, Estimate]:
        """By the names under which they stand beside accuracy."""
        return {
            "agreement of annotators": self.agreement,
            "majority against single votes": self.majority_against_votes,
            "accuracy against single votes": self.model_against_votes,
        }


@dataclass(frozen=True)
class _Pair:
    """Votes for the first and the second of two answers, and the model's margin of the first."""

    num_first: int
    num_second: int
    margin: float

    @property
    def num_votes(self) -> int:
        return self.num_first + self.num_second

    @property
    def agreement(self) -> float:
        """Mean over its voters of 1, 1/2 or 0: the majority of the others says the same, is
        undecided, or says the other."""
        lead = self.num_first - self.num_second
        with_first = (np.sign(lead - 1) + 1) / 2
        with_second = (np.sign(-lead - 1) + 1) / 2
        return float(self.num_first * with_first + self.num_second * with_second) / self.num_votes

    @property
    def majority(self) -> float:
        return max(self.num_first, self.num_second) / self.num_votes

    @property
    def model(self) -> float:
        right = (np.sign(self.margin) + 1) / 2
        return float(self.num_first * right + self.num_second * (1 - right)) / self.num_votes


def agreement_ceiling(outcomes: Sequence[Outcome]) -> Ceiling | None:
    """None where no pair of scored answers has two votes that prefer one."""
    rows: list[tuple[float, float, float]] = []
    clusters: list[str] = []
    num_pairs = num_votes = num_ties = 0
    for outcome in outcomes:
        pairs, num_tied = _pairs(outcome)
        num_ties += num_tied
        if not pairs:
            continue
        means = np.mean([(p.agreement, p.majority, p.model) for p in pairs], axis=0)
        rows.append(tuple(means.tolist()))
        clusters.append(outcome.cluster)
        num_pairs += len(pairs)
        num_votes += sum(pair.num_votes for pair in pairs)
    if not rows:
        return None
    agreement, majority, model = (cluster_mean(column, clusters) for column in np.array(rows).T)
    return Ceiling(
        agreement=agreement,
        majority_against_votes=majority,
        model_against_votes=model,
        num_pairs=num_pairs,
        num_votes=num_votes,
        num_tie_votes=num_ties,
    )


def _pairs(outcome: Outcome) -> tuple[list[_Pair], int]:
    """Pairs with two deciding votes or more, and how many votes were ties."""
    place = {response: n for n, response in enumerate(outcome.group.response_index)}
    counts: dict[tuple[int, int], list[int]] = {}
    num_ties = 0
    for pair, sign in _first_votes(outcome):
        if pair[0] in place and pair[1] in place:
            counts.setdefault(pair, [0, 0])
            if sign:
                counts[pair][sign < 0] += 1
            else:
                num_ties += 1
    found = [
        _Pair(first, second, float(outcome.reward_N[place[i]]) - float(outcome.reward_N[place[j]]))
        for (i, j), (first, second) in counts.items()
        if first + second >= MIN_VOTES
    ]
    return found, num_ties


def _first_votes(outcome: Outcome) -> Iterator[tuple[tuple[int, int], int]]:
    """Each vote on each pair, those that an annotator repeats left out."""
    seen: set[tuple[str, tuple[int, int]]] = set()
    for vote in outcome.group.group.votes:
        for pair, sign in vote.outcomes().items():
            if vote.annotator and (vote.annotator, pair) in seen:
                continue
            seen.add((vote.annotator, pair))
            yield pair, sign

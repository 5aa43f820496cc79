"""Shares with an interval that rests on whole prompt clusters, in bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from palate.preferences import Comparison, PreferenceGroup, Vote, prompt_cluster
from palate.statistics import Estimate, cluster_mean

MAX_SAMPLED = 200_000
"""Comparisons, agreements and votes in the sample, together."""


@dataclass(frozen=True)
class Decided:
    """A comparison that has a better side."""

    longer: float
    """1 where the better answer is the longer one (in characters), 0 the shorter, 1/2 neither."""
    gap: float | None
    """Difference of the two ratings, where both have one."""
    models: tuple[str, str] | None
    """Models of the better and of the worse answer, where both are named and differ."""


@dataclass(frozen=True)
class SampledGroup:
    """What the intervals need of a group."""

    cluster: str
    decided: tuple[Decided, ...]
    agreements: tuple[float, ...]
    """For each two votes on two answers: 1 where they say the same."""
    first_won: tuple[float, ...]
    """For each vote with one winner: 1 where that stands first (see `place_of_winner`)."""

    @property
    def size(self) -> int:
        return 1 + len(self.decided) + len(self.agreements) + len(self.first_won)


@dataclass
class ClusterSample:
    """All groups, or, when they are too many, those of the clusters with the lowest hashes."""

    groups: list[SampledGroup] = field(default_factory=list)
    size: int = 0
    limit: int = 1 << 64

    def add(self, group: PreferenceGroup) -> None:
        cluster = prompt_cluster(group.prompt)
        if int(cluster, 16) >= self.limit:
            return
        sampled = _sampled(group, cluster)
        self.groups.append(sampled)
        self.size += sampled.size
        while self.size > MAX_SAMPLED and len(self.groups) > 1:
            self.limit //= 2
            self.groups = [g for g in self.groups if int(g.cluster, 16) < self.limit]
            self.size = sum(g.size for g in self.groups)

    def mean(self, values: Sequence[Sequence[float]]) -> Estimate | None:
        """Mean over groups of the mean of each one's values; None without any value."""
        filled = [
            (np.mean(own), g.cluster) for own, g in zip(values, self.groups, strict=True) if own
        ]
        if not filled:
            return None
        return cluster_mean([float(mean) for mean, _ in filled], [cluster for _, cluster in filled])


def is_decided(c: Comparison) -> bool:
    """Whether a comparison counts and has a better side."""
    return c.probability > 0.5 and c.tie < 1 and c.weight > 0


def _sampled(group: PreferenceGroup, cluster: str) -> SampledGroup:
    said = [vote.outcomes() for vote in group.votes]
    agreements = [
        float(one[pair] == other[pair])
        for one, other in combinations(said, 2)
        for pair in one.keys() & other.keys()
    ]
    places = [place_of_winner(vote) for vote in group.votes]
    return SampledGroup(
        cluster,
        tuple(_decided(group, c) for c in group.comparisons if is_decided(c)),
        tuple(agreements),
        tuple(float(place == 0) for place in places if place is not None),
    )


def _decided(group: PreferenceGroup, c: Comparison) -> Decided:
    better, worse = group.responses[c.better], group.responses[c.worse]
    difference = len(better.text) - len(worse.text)
    gap = None
    if better.rating is not None and worse.rating is not None:
        gap = abs(better.rating - worse.rating)
    models = None
    if better.model and worse.model and better.model != worse.model:
        models = (better.model, worse.model)
    return Decided(((difference > 0) - (difference < 0) + 1) / 2, gap, models)


def place_of_winner(vote: Vote) -> int | None:
    """Place of the one best response among those ranked, as shown if that is known, otherwise as
    listed, from 0; None where several are best."""
    (winner, *others) = vote.ranking[0]
    ranked = {index for tier in vote.ranking for index in tier}
    order = [i for i in vote.shown or sorted(ranked) if i in ranked]
    return order.index(winner) if not others and winner in order else None

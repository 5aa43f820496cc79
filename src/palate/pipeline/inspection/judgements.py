"""Counts over comparisons and votes, taken while a source streams by."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from palate.pipeline.inspection.sample import (
    ClusterSample,
    is_decided,
    place_of_winner,
)
from palate.preferences import PreferenceGroup
from palate.statistics import Estimate

MAX_NAMES = 1000
"""Annotators, or models, that are counted each; those after go into one count of others."""
MAX_PAIRED_ANNOTATORS = 12
OTHERS = "(others)"


@dataclass
class Range:
    """Lowest and highest of what was seen."""

    low: float = float("inf")
    high: float = float("-inf")

    def add(self, value: float) -> None:
        self.low, self.high = min(self.low, value), max(self.high, value)

    def facts(self) -> tuple[float, float] | None:
        return (self.low, self.high) if self.low <= self.high else None


@dataclass(frozen=True)
class ComparisonFacts:
    """Comparisons, by what they say."""

    num: int
    num_hard: int
    """Probability 1, no tie votes."""
    num_soft: int
    """Probability below 1."""
    num_with_ties: int
    """Some of the votes on them are ties."""
    num_undecided: int
    """Evenly split, all ties, or without weight: no better side."""
    num_with_margin: int
    margins: tuple[float, float] | None
    """Lowest and highest above 0."""
    num_weighted: int
    """With a weight other than 1."""
    weights: tuple[float, float] | None
    """Lowest and highest other than 1."""


@dataclass
class ComparisonTally:
    counts: Counter[str] = field(default_factory=Counter)
    margins: Range = field(default_factory=Range)
    weights: Range = field(default_factory=Range)

    def add(self, group: PreferenceGroup) -> None:
        for c in group.comparisons:
            self.counts["num"] += 1
            self.counts["num_hard"] += c.probability == 1 and c.tie == 0
            self.counts["num_soft"] += c.probability < 1
            self.counts["num_with_ties"] += c.tie > 0
            self.counts["num_undecided"] += not is_decided(c)
            if c.margin:
                self.counts["num_with_margin"] += 1
                self.margins.add(c.margin)
            if c.weight != 1:
                self.counts["num_weighted"] += 1
                self.weights.add(c.weight)

    def facts(self) -> ComparisonFacts:
        counts = {
            name: self.counts[name] for name in ComparisonFacts.__annotations__ if "num" in name
        }
        return ComparisonFacts(**counts, margins=self.margins.facts(), weights=self.weights.facts())


@dataclass(frozen=True)
class AnnotatorFacts:
    """One person's votes."""

    num_votes: int
    num_ties: int
    """Votes in which several answers are best."""
    usual_answer: str
    """Place of the answer that wins most often (1st, 2nd, ...), or a tie."""
    usual_share: float


@dataclass(frozen=True)
class VoteFacts:
    """Votes, and how far people agree."""

    num_votes: int
    votes_per_group: Mapping[int, int]
    num_ties: int
    """Votes in which several answers are best."""
    num_unnamed: int
    """Votes that don't say whose they are."""
    num_with_strength: int
    num_with_shown: int
    """Votes that say in which order the answers were shown."""
    annotators: Mapping[str, AnnotatorFacts]
    """By name; of more than 1,000 the later ones are one, "(others)"."""
    agreement: Estimate | None
    """Share of two votes on the same two answers that say the same (first, second or tie)."""
    agreement_by_chance: float | None
    """The same if each vote were dealt from all of them, regardless of the answers."""
    pairs: Mapping[str, float]
    """Agreement of each two annotators, up to 12 of them."""
    first_wins: Estimate | None
    """Share of votes with one winner that the answer in the first place wins."""


@dataclass
class VoteTally:
    counts: Counter[str] = field(default_factory=Counter)
    votes_per_group: Counter[int] = field(default_factory=Counter)
    places: dict[str, Counter[int | None]] = field(default_factory=dict)
    said: Counter[int] = field(default_factory=Counter)
    pairs: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def add(self, group: PreferenceGroup) -> None:
        self.votes_per_group[len(group.votes)] += 1
        named = []
        for vote in group.votes:
            known = vote.annotator in self.places or len(self.places) < MAX_NAMES
            name = vote.annotator if known else OTHERS
            self.counts["votes"] += 1
            self.counts["ties"] += len(vote.ranking[0]) > 1
            self.counts["unnamed"] += not name
            if name:
                self.places.setdefault(name, Counter())[place_of_winner(vote)] += 1
            self.counts["strength"] += vote.strength is not None
            self.counts["shown"] += vote.shown is not None
            outcome = vote.outcomes()
            self.said.update(outcome.values())
            if name:
                named.append((name, outcome))
        if len(self.places) > MAX_PAIRED_ANNOTATORS:
            self.pairs = {}
            return
        for i, (one, first) in enumerate(named):
            for other, second in named[i + 1 :]:
                for two in first.keys() & second.keys():
                    low, high = sorted((one, other))
                    pair = self.pairs.setdefault((low, high), [0, 0])
                    pair[0] += first[two] == second[two]
                    pair[1] += 1

    def facts(self, sample: ClusterSample) -> VoteFacts | None:
        counts = self.counts
        if not counts["votes"]:
            return None
        total = self.said.total()
        by_chance = sum((number / total) ** 2 for number in self.said.values()) if total else None
        return VoteFacts(
            *(counts["votes"], dict(sorted(self.votes_per_group.items())), counts["ties"]),
            *(counts["unnamed"], counts["strength"], counts["shown"]),
            {name: _annotator(places) for name, places in self.places.items()},
            sample.mean([group.agreements for group in sample.groups]),
            by_chance,
            {f"{one} and {other}": same / n for (one, other), (same, n) in self.pairs.items()},
            sample.mean([group.first_won for group in sample.groups]),
        )


def _annotator(places: Counter[int | None]) -> AnnotatorFacts:
    place, number = places.most_common(1)[0]
    usual = "tie" if place is None else f"answer {place + 1}"
    return AnnotatorFacts(places.total(), places[None], usual, number / places.total())

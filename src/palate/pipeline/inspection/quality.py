"""What goes along with winning: length, rating, model. Counted while a source streams by."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from palate.pipeline.inspection.judgements import MAX_NAMES, OTHERS, Range
from palate.pipeline.inspection.sample import ClusterSample, Decided, is_decided
from palate.preferences import PreferenceGroup
from palate.statistics import Estimate
from palate.statistics.comparison_model import fit_comparison_model

MAX_FITTED_MODELS = 100
MIN_COMPARISONS_PER_MODEL = 20
CLEAR_GAP_SHARE = 0.1
"""A gap of ratings is clear from this share of their range on."""
EDGE_SHARE = 0.01
"""A rating is at an end of the scale within this share of their range."""


@dataclass(frozen=True)
class ModelFacts:
    """Answers of one model."""

    num_answers: int
    num_compared: int
    """Comparisons with another model's answer."""
    win_share: float | None
    """Of these; one without a better side counts half."""
    ratings: tuple[float, float] | None
    """Lowest and highest."""


@dataclass(frozen=True)
class QualityFacts:
    """What goes along with winning: length, rating, model."""

    longer_wins: Estimate | None
    """Share of decided comparisons that the longer answer wins; equal lengths count half."""
    clear_gap: float | None
    """A tenth of the ratings' range; "where clear" means a gap of at least so much."""
    longer_wins_where_clear: Estimate | None
    share_at_lowest: float | None
    """Ratings within a hundredth of their range from the lowest."""
    share_at_highest: float | None
    models: Mapping[str, ModelFacts]
    model_predicts: Estimate | None
    """Share of decided comparisons between models that the models' order predicts, fitted on the
    other half of the prompt clusters."""
    model_predicts_where_clear: Estimate | None


@dataclass
class QualityTally:
    ratings: Counter[float] = field(default_factory=Counter)
    """To three digits, so that the number of different ones is bounded."""
    range: Range = field(default_factory=Range)
    models: dict[str, Counter[str]] = field(default_factory=dict)
    model_ratings: dict[str, Range] = field(default_factory=dict)

    def add(self, group: PreferenceGroup) -> None:
        for response in group.responses:
            if response.rating is not None:
                self.ratings[float(f"{response.rating:.3g}")] += 1
                self.range.add(response.rating)
            if response.model is not None:
                self._of(response.model)["answers"] += 1
                if response.rating is not None:
                    name = response.model if response.model in self.models else OTHERS
                    self.model_ratings.setdefault(name, Range()).add(response.rating)
        for c in group.comparisons:
            better, worse = group.responses[c.better].model, group.responses[c.worse].model
            if c.weight and better and worse and better != worse:
                won = 2 if is_decided(c) else 1
                for name, half_wins in ((better, won), (worse, 2 - won)):
                    self._of(name)["half wins"] += half_wins
                    self._of(name)["compared"] += 1

    def _of(self, model: str) -> Counter[str]:
        known = model in self.models or len(self.models) < MAX_NAMES
        return self.models.setdefault(model if known else OTHERS, Counter())

    def facts(self, sample: ClusterSample) -> QualityFacts:
        spanned = self.range.facts()
        width = spanned[1] - spanned[0] if spanned else 0.0
        gap = CLEAR_GAP_SHARE * width if width else None
        groups = [group.decided for group in sample.groups]
        clear = [tuple(d for d in own if gap and (d.gap or 0) >= gap) for own in groups]
        at_ends: tuple[float | None, float | None] = (None, None)
        if spanned and width:
            total = self.ratings.total()
            low, high = spanned[0] + EDGE_SHARE * width, spanned[1] - EDGE_SHARE * width
            at_ends = (
                sum(n for rating, n in self.ratings.items() if rating < low) / total,
                sum(n for rating, n in self.ratings.items() if rating > high) / total,
            )
        return QualityFacts(
            longer_wins=sample.mean([[d.longer for d in own] for own in groups]),
            clear_gap=gap,
            longer_wins_where_clear=sample.mean([[d.longer for d in own] for own in clear]),
            share_at_lowest=at_ends[0],
            share_at_highest=at_ends[1],
            models={name: self._model(name, counts) for name, counts in self.models.items()},
            model_predicts=model_predicts(sample, groups),
            model_predicts_where_clear=model_predicts(sample, clear),
        )

    def _model(self, name: str, counts: Counter[str]) -> ModelFacts:
        compared = counts["compared"]
        share = counts["half wins"] / (2 * compared) if compared else None
        ratings = self.model_ratings[name].facts() if name in self.model_ratings else None
        return ModelFacts(counts["answers"], compared, share, ratings)


def model_predicts(sample: ClusterSample, groups: list[tuple[Decided, ...]]) -> Estimate | None:
    """How often the better answer's model is also the stronger one.

    Strengths are those of a Bradley-Terry model of the models' names, fitted on the other half of
    the clusters; equal ones count half. None with fewer than two models, or too few comparisons of
    each to tell.
    """
    halves = [int(group.cluster, 16) % 2 for group in sample.groups]
    counted: tuple[Counter[tuple[str, str]], ...] = (Counter(), Counter())
    for half, own in zip(halves, groups, strict=True):
        counted[half].update(d.models for d in own if d.models)
    frequent = Counter(name for counts in counted for pair in counts.elements() for name in pair)
    names = [name for name, _ in frequent.most_common(MAX_FITTED_MODELS)]
    num_compared = counted[0].total() + counted[1].total()
    if len(names) < 2 or num_compared < MIN_COMPARISONS_PER_MODEL * len(names):
        return None
    index = {name: i for i, name in enumerate(names)}
    strengths = [_strengths(counts, index) for counts in counted]
    values = [
        [
            (
                float(
                    np.sign(
                        strengths[1 - half][index[d.models[0]]]
                        - strengths[1 - half][index[d.models[1]]]
                    )
                )
                + 1
            )
            / 2
            for d in own
            if d.models and d.models[0] in index and d.models[1] in index
        ]
        for half, own in zip(halves, groups, strict=True)
    ]
    return sample.mean(values)


def _strengths(counts: Counter[tuple[str, str]], index: Mapping[str, int]) -> np.ndarray:
    pairs = [pair for pair in counts if pair[0] in index and pair[1] in index]
    if not pairs:
        return np.zeros(len(index))
    difference_CF = np.zeros((len(pairs), len(index)))
    for row, (better, worse) in enumerate(pairs):
        difference_CF[row, index[better]] += 1
        difference_CF[row, index[worse]] -= 1
    return fit_comparison_model(difference_CF, np.array([float(counts[pair]) for pair in pairs]))

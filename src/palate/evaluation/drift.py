"""Drift: how far a policy's answers have moved from what its reward model was trained on.

Legend: N answers of one side or both, M of the policy, B resamples, D width of the pooled states.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from palate.errors import PalateError
from palate.evaluation.two_sample import classifier_auc
from palate.model.support import OUTER_LEVELS, Trust
from palate.preferences import ScoringItem, prompt_cluster
from palate.scoring.length_correction import log_length
from palate.scoring.scorer import Scorer
from palate.scoring.states import rewards_and_states
from palate.statistics import Estimate, cluster_mean, wilson
from palate.statistics.resampling import (
    percentile_interval,
    resampled_sums,
    resampling_units,
    sums_by_unit,
)

Verdict = Literal["pass", "warn", "fail"]
MAX_CLASSIFIED = 2_000
"""Answers of each side that the classifier sees, those of the prompts with the lowest hashes."""
MIN_CLUSTERS = 20
"""Of each side, for a classifier that is fitted and tested on different prompts."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where a finding begins to warn and to fail; None: it never does."""

    expected: float
    """The value without drift."""
    warn: float
    fail: float | None


TAIL_95 = Thresholds(expected=0.05, warn=0.10, fail=0.20)
TAIL_99 = Thresholds(expected=0.01, warn=0.02, fail=0.05)
CLASSIFIER = Thresholds(expected=0.5, warn=0.60, fail=0.75)
OUTSIDE = Thresholds(expected=0.002, warn=0.01, fail=0.05)
REWARD_SHIFT = Thresholds(expected=0.0, warn=0.5, fail=None)
"""A policy that is trained on a reward should raise it, so a rise alone is no failure."""
REWARD_SPREAD = Thresholds(expected=1.0, warn=1.5, fail=None)
LENGTH_SHIFT = Thresholds(expected=0.0, warn=0.5, fail=None)


@dataclass(frozen=True, kw_only=True)
class DriftFinding:
    """One way in which the policy's answers may differ from the training data."""

    name: str
    estimate: Estimate
    """95 % interval clustered by prompt."""
    thresholds: Thresholds
    verdict: Verdict
    """warn and fail need a value beyond the threshold and an interval that leaves out what chance
    makes of it without drift."""
    message: str


@dataclass(frozen=True, kw_only=True)
class DriftReport:
    """All findings, and what they rest on."""

    findings: tuple[DriftFinding, ...]
    skipped: tuple[tuple[str, str], ...]
    """Findings that could not be made, each with the reason."""
    left_out: tuple[tuple[int, str], ...]
    """Items of the policy that can't be scored, by index, each with the reason; an over-long answer
    is one. They are in no finding."""
    num_answers: int
    num_prompts: int
    """Prompt clusters of the answers that were scored."""

    @property
    def verdict(self) -> Verdict:
        """The worst of the findings."""
        found = {finding.verdict for finding in self.findings}
        return "fail" if "fail" in found else "warn" if "warn" in found else "pass"


@dataclass(frozen=True)
class _Side:
    """Scored answers of the policy, or of the training data."""

    reward_N: np.ndarray
    state_ND: np.ndarray
    log_words_N: np.ndarray
    cluster_N: np.ndarray


def drift(
    scorer: Scorer,
    trust: Trust,
    items: Sequence[ScoringItem],
    reference: Sequence[ScoringItem] = (),
) -> DriftReport:
    """Findings about a file of policy outputs, held against the training data that `trust` saw.

    - tail: share of answers beyond the 0.95 and 0.99 quantile of the reference distances.
    - classifier two-sample test, with `reference` (answers of the training's kind, better ones that
      the model was not trained on): AUC of a logistic regression on pooled states, each answer
      scored by the fit on other folds of prompts (Lopez-Paz and Oquab 2017, 1610.06545). `trust`
      keeps no states of training texts, since texts can be read out of them, so without `reference`
      it is skipped.
    - reward: mean shift in standard deviations, ratio of standard deviations, and the share outside
      the 0.1 to 99.9 % range of the reference answers.
    - length: shift of mean log(1 + words), in standard deviations.

    Rewards of different prompts are no common scale: with other prompts than the training's, reward
    and classifier answer for the prompts as well. States of all items are in memory.

    Raises PalateError where no item can be scored, and for a reward or state that is no finite
    number, naming the item.
    """
    ours, left_out = _scored(scorer, items, "item")
    if not len(ours.reward_N):
        why = f"; the first: {left_out[0][1]}" if left_out else ""
        raise PalateError(f"none of {len(items)} items can be scored{why}")
    findings = [
        *_tails(trust, ours),
        *_reward_findings(trust, ours),
        _length_finding(trust, ours),
    ]
    theirs, _ = _scored(scorer, reference, "reference item")
    skipped = []
    few = min(len(set(side.cluster_N)) for side in (ours, theirs))
    if few >= MIN_CLUSTERS:
        findings.insert(2, _classifier_finding(trust, ours, theirs))
    else:
        what = f"{few} prompts on one side" if len(reference) else "no reference answers were given"
        skipped.append(("classifier", f"{what}; it takes {MIN_CLUSTERS} prompts of each side"))
    return DriftReport(
        findings=tuple(findings),
        skipped=tuple(skipped),
        left_out=tuple(left_out),
        num_answers=len(ours.reward_N),
        num_prompts=len(set(ours.cluster_N)),
    )


def _scored(
    scorer: Scorer, items: Sequence[ScoringItem], what: str
) -> tuple[_Side, list[tuple[int, str]]]:
    sequences: list[tuple[int, ...]] = []
    kept: list[int] = []
    left_out: list[tuple[int, str]] = []
    for index, item in enumerate(items):
        try:
            sequences.append(scorer.render(item)[0])
            kept.append(index)
        except PalateError as error:
            left_out.append((index, str(error)))
    value_NV = scorer.read_ids(sequences, rewards_and_states(scorer.model))
    bad = np.flatnonzero(~np.isfinite(value_NV).all(axis=1))
    if len(bad):
        raise PalateError(
            f"{what} {kept[bad[0]]} has a pooled state or reward that is no finite number; the"
            " model's weights or its dtype are at fault"
        )
    chosen = [items[index] for index in kept]
    side = _Side(
        value_NV[:, 0].astype(np.float64),
        value_NV[:, 1:],
        np.array([log_length(item.response.text) for item in chosen]),
        np.array([prompt_cluster(item.prompt) for item in chosen], dtype=object),
    )
    return side, left_out


def _tails(trust: Trust, ours: _Side) -> list[DriftFinding]:
    distance_M = trust.distances(ours.state_ND)
    found = []
    for level, thresholds in ((0.95, TAIL_95), (0.99, TAIL_99)):
        beyond_M = distance_M > trust.facts.distance.quantile(level)
        share = share_of(beyond_M, ours.cluster_N)
        found.append(
            DriftFinding(
                name=f"tail {level:g}",
                estimate=share,
                thresholds=thresholds,
                verdict=_of_share(share, thresholds, trust.facts.num_reference_clusters),
                message=(
                    f"{share.value:.1%} of the answers lie farther from the training data than"
                    f" {level:.0%} of the {trust.facts.reference}; {thresholds.expected:.0%} would"
                    " without drift"
                ),
            )
        )
    return found


def _reward_findings(trust: Trust, ours: _Side) -> list[DriftFinding]:
    spread = trust.facts.reward
    low, high = (spread.quantile(level) for level in OUTER_LEVELS)
    scale = max(spread.std, 1e-12)
    shift = cluster_mean((ours.reward_N - spread.mean) / scale, ours.cluster_N.tolist())
    ratio = _spread_ratio(ours, scale)
    outside = share_of((ours.reward_N < low) | (ours.reward_N > high), ours.cluster_N)
    return [
        DriftFinding(
            name="reward mean",
            estimate=shift,
            thresholds=REWARD_SHIFT,
            verdict=_of_shift(shift, REWARD_SHIFT),
            message=(
                f"the mean reward differs by {shift.value:+.2f} standard deviations from that of"
                f" the {trust.facts.reference}"
            ),
        ),
        DriftFinding(
            name="reward spread",
            estimate=ratio,
            thresholds=REWARD_SPREAD,
            verdict=_of_ratio(ratio, REWARD_SPREAD),
            message=f"rewards spread {ratio.value:.2f} times as wide as there",
        ),
        DriftFinding(
            name="reward outside",
            estimate=outside,
            thresholds=OUTSIDE,
            verdict=_of_share(outside, OUTSIDE, trust.facts.num_reference_clusters),
            message=(
                f"{outside.value:.1%} of the rewards lie outside {low:.3f} to {high:.3f}, the 0.1"
                " to 99.9 % range there"
            ),
        ),
    ]


def _length_finding(trust: Trust, ours: _Side) -> DriftFinding:
    spread = trust.facts.log_words
    scale = max(spread.std, 1e-12)
    shift = cluster_mean((ours.log_words_N - spread.mean) / scale, ours.cluster_N.tolist())
    words, before = (math.expm1(m) for m in (ours.log_words_N.mean(), spread.mean))
    return DriftFinding(
        name="length",
        estimate=shift,
        thresholds=LENGTH_SHIFT,
        verdict=_of_shift(shift, LENGTH_SHIFT),
        message=(
            f"answers have {words:.0f} words (geometric mean), {before:.0f} there:"
            f" {shift.value:+.2f} standard deviations"
        ),
    )


def _classifier_finding(trust: Trust, ours: _Side, theirs: _Side) -> DriftFinding:
    sides = [_sampled(side) for side in (ours, theirs)]
    white_ND = np.concatenate([trust.whitened(side.state_ND) for side in sides])
    is_ours_N = np.repeat([True, False], [len(side.reward_N) for side in sides])
    cluster_N = np.concatenate([side.cluster_N for side in sides])
    auc = classifier_auc(white_ND, is_ours_N, cluster_N)
    return DriftFinding(
        name="classifier",
        estimate=auc,
        thresholds=CLASSIFIER,
        verdict=_of_share(auc, CLASSIFIER, math.inf),
        message=(
            f"a classifier of pooled states tells these answers from the reference with an AUC of"
            f" {auc.value:.2f}; 0.50 is chance"
        ),
    )


def _sampled(side: _Side) -> _Side:
    digests = np.array([hashlib.sha256(str(c).encode()).hexdigest() for c in side.cluster_N])
    chosen = np.argsort(digests, kind="stable")[:MAX_CLASSIFIED]
    return _Side(
        side.reward_N[chosen],
        side.state_ND[chosen],
        side.log_words_N[chosen],
        side.cluster_N[chosen],
    )


def share_of(is_so_N: np.ndarray, cluster_N: np.ndarray) -> Estimate:
    """A share with its interval by cluster; Wilson's over clusters where all answers are alike,
    since resamples of equal values tell nothing."""
    found = cluster_mean(is_so_N.astype(float), list(cluster_N))
    if 0 < found.value < 1:
        return found
    return Estimate(found.value, *wilson(found.value, len(set(cluster_N))), found.n)


def _spread_ratio(ours: _Side, scale: float) -> Estimate:
    """Standard deviation of the rewards over `scale`."""
    unit_N, num_units = resampling_units(ours.cluster_N.astype(str))
    columns = [np.ones(len(ours.reward_N)), ours.reward_N, ours.reward_N**2]
    sum_B3 = resampled_sums(sums_by_unit(columns, unit_N, num_units))
    mean_B = sum_B3[:, 1] / sum_B3[:, 0]
    ratio_B = np.sqrt(np.maximum(sum_B3[:, 2] / sum_B3[:, 0] - mean_B**2, 0)) / scale
    value = float(ours.reward_N.std()) / scale
    return percentile_interval(value, ratio_B, num_units, len(ours.reward_N))


def _of_share(share: Estimate, limits: Thresholds, num_reference: float) -> Verdict:
    """The reference's own quantiles are known as well as `num_reference` clusters say."""
    chance = limits.expected
    if math.isfinite(num_reference):
        chance = wilson(limits.expected, num_reference)[1]
    return _verdict(share.value, limits, is_sure=share.low > chance)


def _of_shift(shift: Estimate, limits: Thresholds) -> Verdict:
    return _verdict(abs(shift.value), limits, is_sure=not shift.low <= 0 <= shift.high)


def _of_ratio(ratio: Estimate, limits: Thresholds) -> Verdict:
    factor = max(ratio.value, 1 / max(ratio.value, 1e-12))
    return _verdict(factor, limits, is_sure=not ratio.low <= 1 <= ratio.high)


def _verdict(value: float, limits: Thresholds, is_sure: bool) -> Verdict:
    if limits.fail is not None and value > limits.fail and is_sure:
        return "fail"
    return "warn" if value > limits.warn and is_sure else "pass"

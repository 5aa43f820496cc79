"""Label noise: what share of the labels is as if drawn by a coin, beyond what close calls explain.

Legend: C comparisons, E lapse rates tried, T temperatures tried, K clusters, B bootstrap resamples.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from palate.audit.columns import Audited
from palate.audit.feature_model import (
    Comparisons,
    TextFeatures,
    default_l2,
    out_of_fold_margins,
)
from palate.audit.findings import MAX_EXAMPLES, Finding, Severity, Skipped
from palate.audit.places import place_of
from palate.audit.settings import AuditSettings
from palate.statistics import Estimate

CHECK = "label noise"
MAX_RATE, SURE = 0.05, 0.6
"""A warning needs an estimate above the first, in more than this share of the resamples. A 95 %
interval would ask for more than 6,000 pairs can say: of 16 worlds with a quarter of the labels
reversed its low end was above 0.05 in 7, where the estimates were 0.14 to 0.31 and 0.77 or more of
the resamples above 0.05; in the clean twins the estimates were 0.03 at most, the resamples none."""
MIN_COMPARISONS = 300
MAX_COMPARISONS = 20_000
NUM_FOLDS = 5
NUM_RESAMPLES = 200
RATES = np.arange(0, 0.5, 0.01)
SCALES = np.geomspace(0.25, 8, 24)
INSPECTED = 0.01


@dataclass(frozen=True, kw_only=True)
class NoiseFit:
    """P(label) = e + (1 - 2 e) s(scale * margin), fitted by maximum likelihood."""

    rate: Estimate
    """e: share of the labels that are reversed whatever the answers."""
    scale: float
    sure: float
    """Share of the resamples in which the rate is above MAX_RATE."""


def fit_noise(margin_C: np.ndarray, cluster_C: np.ndarray, seed: int = 0) -> NoiseFit:
    """Rate and scale over a grid, out-of-fold margins of the better side given.

    A logistic model explains every label that is close; what it can't explain is a label against a
    wide margin, at whatever scale. The interval resamples prompt clusters.
    """
    _, index_C = np.unique(cluster_C, return_inverse=True)
    clipped_C = np.clip(margin_C, -30, 30)
    likelihood_TC = expit(SCALES[:, None] * clipped_C)
    sums = [
        [
            np.bincount(index_C, np.log(rate + (1 - 2 * rate) * likelihood_C + 1e-12))
            for likelihood_C in likelihood_TC
        ]
        for rate in RATES
    ]
    by_cluster_EK = np.array(sums).reshape(len(RATES) * len(SCALES), -1)
    num_clusters = by_cluster_EK.shape[1]
    random = np.random.default_rng(seed)
    drawn_KB = random.multinomial(
        num_clusters, np.full(num_clusters, 1 / num_clusters), NUM_RESAMPLES
    ).T
    best_B = (by_cluster_EK @ drawn_KB).argmax(axis=0)
    best = int(by_cluster_EK.sum(axis=1).argmax())
    rates_B = RATES[best_B // len(SCALES)]
    low, high = np.quantile(rates_B, [0.025, 0.975])
    rate = Estimate(float(RATES[best // len(SCALES)]), float(low), float(high), len(margin_C))
    return NoiseFit(
        rate=rate,
        scale=float(SCALES[best % len(SCALES)]),
        sure=float((rates_B > MAX_RATE + 1e-9).mean()),
    )


def noise_of(
    audited: Audited, features: TextFeatures, comparisons: Comparisons, settings: AuditSettings
) -> list[Finding | Skipped]:
    """Confident learning (Northcutt et al. 2021, 1911.00068) on out-of-fold predictions of a small
    model of words and style: `features` of the sample's answers, and its comparisons."""
    kept = np.argsort(comparisons.cluster_C, kind="stable")[:MAX_COMPARISONS]
    comparisons = comparisons.where(kept)
    if len(comparisons) < MIN_COMPARISONS:
        return [Skipped(CHECK, f"fewer than {MIN_COMPARISONS} comparisons with a better side")]
    margin_C = out_of_fold_margins(
        features.matrix_NF, comparisons, default_l2(), NUM_FOLDS, settings.seed
    )
    fitted = fit_noise(margin_C, comparisons.cluster_C, settings.seed)
    rate = fitted.rate
    severity: Severity = "warn" if rate.value > MAX_RATE and fitted.sure > SURE else "note"
    order = np.argsort(margin_C, kind="stable")[:MAX_EXAMPLES]
    examples = tuple(
        place_of(
            audited.sample[int(comparisons.group_C[c])],
            f"the model gives the label {expit(fitted.scale * margin_C[c]):.0%}; preferred:"
            f" {features.texts[int(comparisons.better_C[c])]}",
        )
        for c in order
        if margin_C[c] < 0
    )
    return [
        Finding(
            check=CHECK,
            severity=severity,
            statistic=rate.value,
            low=rate.low,
            high=rate.high,
            threshold=MAX_RATE,
            n=len(comparisons),
            what="share of labels reversed whatever the answers, beyond close calls",
            message=(
                f"Held-out predictions of a small word model fit the labels best if"
                f" {rate.value:.0%} [{rate.low:.0%}, {rate.high:.0%}] of them are reversed; it"
                f" agrees with {(margin_C > 0).mean():.0%} of {len(comparisons)}, and"
                f" {fitted.sure:.0%} of the resamples say more than {MAX_RATE:.0%}. What it can't"
                " read looks like noise to it: an upper guess, where answers need knowledge."
            ),
            examples=examples,
            fix=(
                f"Have the top {INSPECTED:.0%} of the contradicted labels judged again, never drop"
                " them unread; collect two or three votes on each pair, so that labels become soft"
                " (read.votes.target probability)."
                if severity != "note"
                else ""
            ),
            effect=2 * rate.value,
        )
    ]

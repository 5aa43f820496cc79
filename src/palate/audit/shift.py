"""Distribution shift: can a small classifier tell the audited data from those it is held against?

Legend: N texts of both sides, F features, B buckets of words.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from palate.audit.columns import Audited
from palate.audit.findings import Finding, Severity, Skipped
from palate.audit.places import last_turn, shortened
from palate.audit.settings import AuditSettings
from palate.preferences import PreferenceGroup
from palate.statistics import Estimate, cluster_mean
from palate.statistics.comparison_model import fit_comparison_model
from palate.text.hashed import hashed_terms, words_of

CHECK = "distribution shift"
AUC_NOTE, AUC_WARN = 0.60, 0.75
"""From research that the design rests on: .5 is no difference, above .75 the two are worlds apart.
Warn only: data that differ can both be right."""
MAX_GROUPS = 4_000
"""Prompts of each side that the classifier sees: those of the clusters with the lowest hashes."""
MIN_GROUPS = 50
WORD_L2 = 3.0
NUM_BUCKETS = 1 << 14
MAX_WORDS = 8
MIN_TEXTS_OF_WORD = 10


def shift_findings(
    audited: Audited, settings: AuditSettings, against: Audited
) -> list[Finding | Skipped]:
    """A classifier two-sample test (Lopez-Paz and Oquab 2017, 1610.06545): a logistic model of the
    words of prompt and first answer is fitted on half of the prompt clusters of both sides, and the
    area under its ROC curve measured on the other half."""
    sides = [_sampled(audited), _sampled(against)]
    if min(len(groups) for groups, _ in sides) < MIN_GROUPS:
        return [Skipped(CHECK, f"fewer than {MIN_GROUPS} prompts on one side")]
    words = [_words(group) for groups, _ in sides for group in groups]
    ours_N = np.repeat([True, False], [len(groups) for groups, _ in sides])
    cluster_N = np.concatenate([clusters for _, clusters in sides])
    half_N = _halves(cluster_N, settings.seed)
    matrix_NB = hashed_terms(words, NUM_BUCKETS)
    weights_B = fit_comparison_model(
        matrix_NB[half_N],
        np.where(ours_N, 0.5 / ours_N[half_N].mean(), 0.5 / (~ours_N)[half_N].mean())[half_N],
        WORD_L2,
        ours_N[half_N].astype(float),
        100,
    )
    score_N = matrix_NB[~half_N] @ weights_B
    auc = area_under_curve(score_N, ours_N[~half_N], cluster_N[~half_N])
    severity: Severity = "warn" if auc.low > AUC_WARN else "note"
    telling = ", ".join(_telling_words(words, ours_N)) or "none stands out"
    found = (
        "The two are hard to tell apart."
        if auc.value < AUC_NOTE
        else f"Words that tell them apart: {telling}."
    )
    return [
        Finding(
            check=CHECK,
            severity=severity,
            statistic=auc.value,
            low=auc.low,
            high=auc.high,
            threshold=AUC_WARN,
            n=auc.n,
            what="area under the ROC curve of a classifier of words, on prompts held out from it",
            message=(
                f"A classifier of words tells these data from {', '.join(against.columns.files)}"
                f" with an AUC of {auc.value:.2f} [{auc.low:.2f}, {auc.high:.2f}], 0.50 being"
                f" chance ({len(sides[0][0])} and {len(sides[1][0])} prompts seen). {found}"
            ),
            fix=(
                "Measure the model on fresh labels of these data, and train on some of them:"
                " accuracy and calibration elsewhere say little about them."
                if severity != "note"
                else ""
            ),
            effect=max(0.0, 2 * auc.value - 1),
        )
    ]


def area_under_curve(score_N: np.ndarray, is_ours_N: np.ndarray, cluster_N: np.ndarray) -> Estimate:
    """Probability that a text of ours scores above one of theirs, ties half; the interval is
    DeLong's (1988) with placements averaged by cluster, cut at 0 and 1."""
    ranks_N = rankdata(score_N)
    num_ours, num_theirs = int(is_ours_N.sum()), int((~is_ours_N).sum())
    within_ours = rankdata(score_N[is_ours_N])
    within_theirs = rankdata(score_N[~is_ours_N])
    above_theirs = (ranks_N[is_ours_N] - within_ours) / num_theirs
    below_ours = 1 - (ranks_N[~is_ours_N] - within_theirs) / num_ours
    halves = [
        cluster_mean(above_theirs, cluster_N[is_ours_N]),
        cluster_mean(below_ours, cluster_N[~is_ours_N]),
    ]
    value = halves[0].value
    low = value - math.hypot(*(half.value - half.low for half in halves))
    high = value + math.hypot(*(half.high - half.value for half in halves))
    return Estimate(value, max(0.0, low), min(1.0, high), len(score_N))


def _sampled(audited: Audited) -> tuple[list[PreferenceGroup], np.ndarray]:
    cluster_G = audited.columns.cluster_G[audited.sample_G]
    chosen = np.argsort(cluster_G, kind="stable")[:MAX_GROUPS]
    return [audited.sample[index] for index in chosen], cluster_G[chosen]


def _words(group: PreferenceGroup) -> list[str]:
    return words_of(f"{last_turn(group)} {group.responses[0].text}")


def _halves(cluster_N: np.ndarray, seed: int) -> np.ndarray:
    clusters, index_N = np.unique(cluster_N, return_inverse=True)
    drawn = np.random.default_rng(seed).permutation(len(clusters)) % 2 == 0
    halves: np.ndarray = drawn[index_N]
    return halves


def _telling_words(words: Sequence[Sequence[str]], ours_N: np.ndarray) -> list[str]:
    """The words whose share of texts differs most between the sides, in standard errors."""
    counts: dict[str, list[int]] = {}
    for terms, ours in zip(words, ours_N.tolist(), strict=True):
        for term in set(terms):
            counts.setdefault(term, [0, 0])[0 if ours else 1] += 1
    num = np.array([ours_N.sum(), (~ours_N).sum()], dtype=float)
    frequent = {t: np.array(c) for t, c in counts.items() if sum(c) >= MIN_TEXTS_OF_WORD}
    if not frequent:
        return []
    share_T2 = np.array(list(frequent.values())) / num
    pooled_T = np.array([c.sum() for c in frequent.values()]) / num.sum()
    error_T = np.sqrt(pooled_T * (1 - pooled_T) * (1 / num).sum()) + 1e-12
    apart_T = (share_T2[:, 0] - share_T2[:, 1]) / error_T
    terms = list(frequent)
    worst = np.argsort(-np.abs(apart_T))[:MAX_WORDS]
    return [
        f"{shortened(terms[t])!r} ({share_T2[t, 0]:.0%} of these, {share_T2[t, 1]:.0%} of those)"
        for t in worst
    ]

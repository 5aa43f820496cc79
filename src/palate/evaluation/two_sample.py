"""Can a small classifier tell two sets of pooled states apart?

Legend: N answers of both sides, D width of the pooled states.
"""

import hashlib
import math

import numpy as np
from scipy.stats import rankdata

from palate.statistics import Estimate, cluster_mean
from palate.statistics.comparison_model import fit_comparison_model

NUM_FOLDS = 5


def classifier_auc(value_ND: np.ndarray, is_ours_N: np.ndarray, cluster_N: np.ndarray) -> Estimate:
    """Cross-fitted AUC of a logistic regression between two sides, 0.5 where they are alike.

    Both sides weigh the same. The penalty D |w|^2 / 2 is a normal prior that gives scores of white
    values a variance of 1, so that a few hundred answers do for any width. A prompt is in one fold
    with all its answers, of both sides. The AUC is the mean over folds of the share of pairs, one
    of each side, both of the fold, that are in the right order, ties half; the interval is
    DeLong's (1988), with placements averaged by prompt, the classifiers taken as given.
    """
    fold_N = _folds(is_ours_N, cluster_N)
    placement_N = np.zeros(len(value_ND))
    weight_N = np.zeros(len(value_ND))
    with_one = np.column_stack([value_ND, np.ones(len(value_ND))])
    l2 = np.append(np.full(value_ND.shape[1], float(value_ND.shape[1])), 1e-6)
    for fold in range(NUM_FOLDS):
        here_N = fold_N == fold
        ours_N = is_ours_N[~here_N]
        balance_N = np.where(ours_N, 0.5 / ours_N.mean(), 0.5 / (~ours_N).mean())
        coefficient = fit_comparison_model(
            with_one[~here_N], balance_N, l2, ours_N.astype(float), 200
        )
        score_N = with_one[here_N] @ coefficient
        placement_N[here_N] = _placements(score_N, is_ours_N[here_N])
        for side in (True, False):
            members = here_N & (is_ours_N == side)
            weight_N[members] = 1 / members.sum()
    halves = [
        cluster_mean(placement_N[side], cluster_N[side], weight_N[side])
        for side in (is_ours_N, ~is_ours_N)
    ]
    value = halves[0].value
    low = value - math.hypot(*(half.value - half.low for half in halves))
    high = value + math.hypot(*(half.high - half.value for half in halves))
    return Estimate(value, max(0.0, low), min(1.0, high), len(value_ND))


def _folds(is_ours_N: np.ndarray, cluster_N: np.ndarray) -> np.ndarray:
    """Clusters on both sides are dealt out, then those on one, so that every fold has both."""
    sides = [set(cluster_N[is_ours_N]), set(cluster_N[~is_ours_N])]
    dealt = sorted(
        sides[0] | sides[1],
        key=lambda c: (c in sides[0], c in sides[1], hashlib.sha256(str(c).encode()).digest()),
    )
    fold_of = {cluster: index % NUM_FOLDS for index, cluster in enumerate(dealt)}
    return np.array([fold_of[cluster] for cluster in cluster_N])


def _placements(score_N: np.ndarray, is_ours_N: np.ndarray) -> np.ndarray:
    """Of an answer of ours the share of theirs below it; of theirs, the share of ours above it."""
    rank_N = rankdata(score_N)
    placement_N = np.empty(len(score_N))
    for is_ours, side in ((True, is_ours_N), (False, ~is_ours_N)):
        below_N = (rank_N[side] - rankdata(score_N[side])) / (~side).sum()
        placement_N[side] = below_N if is_ours else 1 - below_N
    return placement_N

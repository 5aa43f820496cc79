"""The comparisons that have a better side, and one model of all style features on them.

Legend: C decided comparisons, N answers, F features, K prompt clusters.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from palate.audit.columns import Columns
from palate.audit.settings import AuditSettings
from palate.audit.shares import WonShare, won_share
from palate.statistics.comparison_model import fit_comparison_model
from palate.statistics.intervals import NORMAL_95

RIDGE = 1.0


@dataclass(frozen=True)
class Decided:
    """The comparisons that have a better side. Each prompt counts the same."""

    columns: Columns
    better_C: np.ndarray
    worse_C: np.ndarray
    group_C: np.ndarray
    cluster_C: np.ndarray
    weight_C: np.ndarray

    def __len__(self) -> int:
        return len(self.better_C)

    def difference_C(self, feature: str) -> np.ndarray:
        """The feature of the better answer minus that of the worse."""
        values_N = self.columns.feature_N(feature)
        difference_C: np.ndarray = values_N[self.better_C] - values_N[self.worse_C]
        return difference_C

    def won_by_more(self, difference_C: np.ndarray) -> WonShare:
        """How often the side with more of something wins, where the two sides differ."""
        differs_C = difference_C != 0
        won_C = (difference_C[differs_C] > 0).astype(float)
        return won_share(won_C, self.cluster_C[differs_C], self.weight_C[differs_C])


def decided_comparisons(columns: Columns) -> Decided:
    """Of a comparison the sides, and 1 / (decided comparisons of its group)."""
    kept_C = np.flatnonzero(columns.is_decided_C)
    group_C = columns.group_C[kept_C]
    counts_G = np.bincount(group_C, minlength=columns.num_groups)
    return Decided(
        columns=columns,
        better_C=columns.better_C[kept_C],
        worse_C=columns.worse_C[kept_C],
        group_C=group_C,
        cluster_C=columns.cluster_G[group_C],
        weight_C=1.0 / counts_G[group_C],
    )


@dataclass(frozen=True)
class Joint:
    """The coefficients of all style features together, each for one standard deviation."""

    coefficient_F: np.ndarray
    error_F: np.ndarray
    """Standard errors that hold under any dependence within a prompt cluster."""
    num_comparisons: int

    def interval(self, feature: int) -> tuple[float, float, float]:
        value, half = float(self.coefficient_F[feature]), NORMAL_95 * float(self.error_F[feature])
        return value, value - half, value + half


def joint_model(decided: Decided, settings: AuditSettings) -> Joint:
    """log-odds of winning = sum over features of coefficient * difference / deviation.

    The deviation is the root mean square of the difference, which has no sign to lose when sides
    are swapped. Errors by the sandwich H^-1 M H^-1, M summed over clusters of scores (Liang and
    Zeger 1986). At most `max_modelled_comparisons` are used, those of the clusters with the lowest
    hashes.
    """
    kept_C = np.arange(len(decided))
    if len(decided) > settings.max_modelled_comparisons:
        bound = np.partition(decided.cluster_C, settings.max_modelled_comparisons)
        kept_C = np.flatnonzero(decided.cluster_C < bound[settings.max_modelled_comparisons])
    features_NF = decided.columns.features_NF
    difference_CF = features_NF[decided.better_C[kept_C]].astype(float)
    difference_CF -= features_NF[decided.worse_C[kept_C]]
    deviation_F = np.sqrt((difference_CF**2).mean(axis=0)) if len(kept_C) else np.ones(1)
    difference_CF /= np.where(deviation_F > 0, deviation_F, 1.0)
    weight_C = decided.weight_C[kept_C]
    # The sum of the weights is the number of prompts, so that the ridge is worth one of them.
    coefficient_F = fit_comparison_model(difference_CF, weight_C, RIDGE)
    lost_C = expit(-(difference_CF @ coefficient_F))
    score_CF = difference_CF * (weight_C * lost_C)[:, None]
    curvature_CF = difference_CF * (weight_C * lost_C * (1 - lost_C))[:, None]
    hessian_FF = curvature_CF.T @ difference_CF + RIDGE * np.eye(len(coefficient_F))
    order = np.argsort(decided.cluster_C[kept_C], kind="stable")
    sorted_C = decided.cluster_C[kept_C][order]
    starts = np.flatnonzero(np.r_[True, sorted_C[1:] != sorted_C[:-1]])
    score_KF = np.add.reduceat(score_CF[order], starts, axis=0)
    inverse_FF = np.linalg.inv(hessian_FF)
    covariance_FF = inverse_FF @ (score_KF.T @ score_KF) @ inverse_FF
    covariance_FF *= len(starts) / max(1, len(starts) - 1)
    return Joint(coefficient_F, np.sqrt(np.diag(covariance_FF)), len(kept_C))

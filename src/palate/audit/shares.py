"""Shares of comparisons won, with what it takes to call one different from a half.

Legend: C comparisons, K prompt clusters, T tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, false_discovery_control

from palate.statistics import wilson


@dataclass(frozen=True)
class WonShare:
    """How often a side wins."""

    value: float
    low: float
    high: float
    """95 % interval."""
    p_value: float
    """Of an exact sign test over prompt clusters that each side wins as often."""
    num_comparisons: int
    num_clusters: int

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out one half."""
        return self.sure_lift > 0

    @property
    def sure_lift(self) -> float:
        """Distance from one half to the nearer end of the interval, negative where that holds one
        half."""
        return max(self.low - 0.5, 0.5 - self.high)


def won_share(won_C: np.ndarray, cluster_C: np.ndarray, weight_C: np.ndarray) -> WonShare:
    """Weighted mean of wins (1, 0, or a half for neither) with its interval.

    The variance is that of a ratio whose observations are clusters, sum_k (sum_c w (won - mean))^2
    / (sum w)^2 (Cochran 1977, section 6.3); it gives the number of independent comparisons that
    would have it, mean (1 - mean) / variance, and with that Wilson's interval (1927), which holds
    for shares near 0 and 1 too. For one comparison a cluster it is Wilson's interval as it stands.
    The p-value counts the clusters in which the side wins more than it loses, against as many fair
    coins. Raises ValueError where there is nothing to take a mean of.
    """
    if not len(won_C) or weight_C.sum() <= 0:
        raise ValueError("a share of no comparisons")
    _, cluster_index_C = np.unique(cluster_C, return_inverse=True)
    total = float(weight_C.sum())
    value = float(weight_C @ won_C) / total
    weight_K = np.bincount(cluster_index_C, weight_C)
    score_K = np.bincount(cluster_index_C, weight_C * (won_C - value))
    excess_K = np.bincount(cluster_index_C, weight_C * (won_C - 0.5))
    num_clusters = len(weight_K)
    variance = float(score_K @ score_K) / total**2
    as_many = total**2 / float(weight_K @ weight_K)
    if variance > 0:
        as_many = value * (1 - value) / variance
    as_many = min(max(as_many, 1.0), float(len(won_C)))
    low, high = wilson(value, as_many)
    num_won, num_lost = int((excess_K > 1e-9).sum()), int((excess_K < -1e-9).sum())
    return WonShare(
        value,
        low,
        high,
        sign_test(num_won, num_lost),
        num_comparisons=len(won_C),
        num_clusters=num_clusters,
    )


def sign_test(num_won: int, num_lost: int) -> float:
    """Two-sided exact p-value of so uneven a count under a fair coin."""
    return min(1.0, 2 * float(binom.cdf(min(num_won, num_lost), num_won + num_lost, 0.5)))


def discoveries(p_values: Sequence[float], rate: float) -> np.ndarray:
    """Which tests to call significant so that at most a share `rate` of the called is expected to
    be false: T, bool (Benjamini and Hochberg 1995)."""
    if not len(p_values):
        return np.zeros(0, bool)
    called_T: np.ndarray = false_discovery_control(p_values) <= rate
    return called_T

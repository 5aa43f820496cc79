"""Resamples of clusters for statistics that are functions of sums, also over millions of rows.

Legend: N observations, F columns, G resampled units, B resamples.
"""

from collections.abc import Sequence

import numpy as np

from palate.statistics.intervals import Estimate

MAX_UNITS = 5000
NUM_RESAMPLES = 1000


def resampling_units(cluster_N: np.ndarray, seed: int = 0) -> tuple[np.ndarray, int]:
    """(unit of each observation, number of units G).

    Each cluster is a unit. More than MAX_UNITS clusters are dealt at random into MAX_UNITS groups,
    equal in number of clusters up to one, and a group is a unit: sums of random groups have the
    variance that resampling the clusters would have, known within 1 / sqrt(2 G), 1 % (random
    groups: Wolter 2007, Introduction to Variance Estimation, chapter 2).
    """
    _, index_N = np.unique(cluster_N, return_inverse=True)
    num_clusters = int(index_N.max()) + 1 if index_N.size else 0
    if num_clusters <= MAX_UNITS:
        return index_N, num_clusters
    dealt = np.random.default_rng(seed).permutation(num_clusters) % MAX_UNITS
    return dealt[index_N], MAX_UNITS


def resampled_sums(sum_GF: np.ndarray, seed: int = 0) -> np.ndarray:
    """Sums over B resamples of G units with replacement, shape B, F; `sum_GF` are a unit's sums."""
    sums: np.ndarray = times_drawn(len(sum_GF), NUM_RESAMPLES, seed) @ sum_GF
    return sums


def times_drawn(num_units: int, num_resamples: int, seed: int) -> np.ndarray:
    """How often each unit is in each resample of as many with replacement, shape B, G."""
    drawn_BG = np.random.default_rng(seed).integers(num_units, size=(num_resamples, num_units))
    drawn_BG += np.arange(num_resamples)[:, None] * num_units
    times_B = np.bincount(drawn_BG.ravel(), minlength=num_resamples * num_units)
    times: np.ndarray = times_B.reshape(num_resamples, num_units).astype(float)
    return times


def sums_by_unit(columns: Sequence[np.ndarray], unit_N: np.ndarray, num_units: int) -> np.ndarray:
    """Sums of each column over the observations of each unit, shape G, F."""
    return np.stack(
        [np.bincount(unit_N, weights=column, minlength=num_units) for column in columns], axis=1
    )


def percentile_interval(value: float, resampled_B: np.ndarray, num_units: int, n: int) -> Estimate:
    """The 95 % percentile interval around a value; none, (-inf, inf), where fewer than two units
    were resampled or no resample has a value."""
    finite_B = resampled_B[np.isfinite(resampled_B)]
    if num_units < 2 or not finite_B.size:
        return Estimate(value, -np.inf, np.inf, n)
    low, high = np.quantile(finite_B, [0.025, 0.975])
    return Estimate(value, float(low), float(high), n)


def ratio_of_sums(
    numerator_N: np.ndarray, denominator_N: np.ndarray, cluster_N: np.ndarray, seed: int = 0
) -> Estimate:
    """sum(numerator) / sum(denominator) with its 95 % interval, resampled by cluster.

    With a denominator of ones it is the mean, as `cluster_mean` gives it, in a time that grows with
    the observations alone. `n` counts those with a denominator. Raises ValueError when it sums to
    nothing.
    """
    total = float(denominator_N.sum())
    if total <= 0:
        raise ValueError("a ratio to nothing")
    unit_N, num_units = resampling_units(cluster_N, seed)
    sum_G2 = sums_by_unit([numerator_N, denominator_N], unit_N, num_units)
    sum_B2 = resampled_sums(sum_G2, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_B = sum_B2[:, 0] / sum_B2[:, 1]
    value = float(numerator_N.sum()) / total
    return percentile_interval(value, ratio_B, num_units, int((denominator_N > 0).sum()))

"""Means with bootstrap intervals whose unit is the prompt cluster.

Legend: N observations, C clusters, B bootstrap resamples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

NUM_RESAMPLES = 2000
MAX_DRAWS_AT_ONCE = 2_000_000
NORMAL_95 = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and the number of observations it rests on."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        known = math.isfinite(self.low) and math.isfinite(self.high)
        interval = f"[{self.low:.3f}, {self.high:.3f}]" if known else "[no interval: one cluster]"
        return f"{self.value:.3f} {interval} (n = {self.n})"

    def as_json(self) -> dict[str, float | None]:
        """value, low, high, n; null for what is no finite number, since JSON has none."""
        return {key: v if math.isfinite(v) else None for key, v in asdict(self).items()}


def _resampled_means(
    value_N: np.ndarray, weight_N: np.ndarray, cluster_N: Sequence[str], seed: int
) -> np.ndarray:
    """Weighted means of B resamples of whole clusters (cluster bootstrap, Field and Welsh 2007)."""
    _, index_N = np.unique(np.asarray(cluster_N), return_inverse=True)
    num_clusters = int(index_N.max()) + 1
    total_C = np.bincount(index_N, weights=value_N * weight_N, minlength=num_clusters)
    weight_C = np.bincount(index_N, weights=weight_N, minlength=num_clusters)
    generator = np.random.default_rng(seed)
    means: list[np.ndarray] = []
    # In blocks: all draws at once would be B x C numbers, gigabytes for a large evaluation.
    num_rows = max(1, MAX_DRAWS_AT_ONCE // num_clusters)
    for start in range(0, NUM_RESAMPLES, num_rows):
        shape = (min(num_rows, NUM_RESAMPLES - start), num_clusters)
        drawn_BC = generator.integers(num_clusters, size=shape)
        resampled_weight_B = weight_C[drawn_BC].sum(axis=1)
        keep_B = resampled_weight_B > 0
        means.append(total_C[drawn_BC].sum(axis=1)[keep_B] / resampled_weight_B[keep_B])
    return np.concatenate(means)


def cluster_mean(
    value_N: Sequence[float] | np.ndarray,
    cluster_N: Sequence[str],
    weight_N: Sequence[float] | np.ndarray | None = None,
    seed: int = 0,
) -> Estimate:
    """Weighted mean with a 95 % percentile interval from resampling whole clusters.

    `cluster_N` names the cluster of each observation. With a single cluster there is nothing to
    resample and the interval is (-inf, inf). Raises ValueError when there are no observations.
    """
    values = np.asarray(value_N, dtype=float)
    weights = np.ones_like(values) if weight_N is None else np.asarray(weight_N, dtype=float)
    if values.size == 0 or weights.sum() <= 0:
        raise ValueError("a mean of no observations")
    value = float(np.average(values, weights=weights))
    if len(set(cluster_N)) < 2:
        return Estimate(value, -np.inf, np.inf, values.size)
    means_B = _resampled_means(values, weights, cluster_N, seed)
    low, high = np.quantile(means_B, [0.025, 0.975])
    return Estimate(value, float(low), float(high), values.size)


def cluster_difference(
    first_N: Sequence[float] | np.ndarray,
    second_N: Sequence[float] | np.ndarray,
    cluster_N: Sequence[str],
    weight_N: Sequence[float] | np.ndarray | None = None,
    seed: int = 0,
) -> Estimate:
    """Paired difference of means (first minus second) over the same observations, by cluster."""
    difference_N = np.asarray(first_N, dtype=float) - np.asarray(second_N, dtype=float)
    return cluster_mean(difference_N, cluster_N, weight_N, seed)


def wilson(share: float, number: float) -> tuple[float, float]:
    """95 % interval of a share of `number` independent observations (Wilson 1927), which holds near
    0 and 1 too; `number` may be an effective one."""
    z2 = NORMAL_95**2
    centre = (share + z2 / (2 * number)) / (1 + z2 / number)
    half = math.sqrt(z2 * (share * (1 - share) / number + z2 / (4 * number**2)))
    half /= 1 + z2 / number
    return max(0.0, centre - half), min(1.0, centre + half)


def as_json(metrics: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    """value, low, high and n of each metric; where there is no interval its ends are null."""
    return {name: estimate.as_json() for name, estimate in metrics.items()}

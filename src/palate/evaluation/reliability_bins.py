"""Bins of the reliability diagram.

Legend: U comparisons with unequal rewards, G clusters.
"""

from dataclasses import dataclass

import numpy as np

from palate.statistics import wilson

NUM_BINS = 10


@dataclass(frozen=True, kw_only=True)
class Bin:
    """One point of the reliability diagram."""

    predicted: float
    """Mean probability of the predicted winners."""
    observed: float
    """Share of them that won."""
    low: float
    high: float
    """The 95 % interval of `observed`: Wilson's, for as many independent comparisons as these,
    weighted and clustered, are worth."""
    num_comparisons: int


def equal_width_bins(confidence_U: np.ndarray) -> np.ndarray:
    """Ten twentieths from 1/2 to 1, whose right ends belong to them, as scikit-learn has it."""
    edges = np.linspace(0.5, 1, NUM_BINS + 1)
    found: np.ndarray = np.searchsorted(edges[1:-1], confidence_U)
    return found


def equal_mass_bins(confidence_U: np.ndarray, weight_U: np.ndarray) -> np.ndarray:
    """Tenths of the weight in the order of confidence. Equal confidences are in one bin, so
    that bins may be unequal, or empty."""
    order = np.argsort(confidence_U, kind="stable")
    share_U = np.cumsum(weight_U[order]) / weight_U.sum()
    # Sums of weights end a rounding beside the tenths.
    ends = np.searchsorted(share_U, np.arange(1, NUM_BINS) / NUM_BINS - 1e-9)
    found: np.ndarray = np.searchsorted(confidence_U[order][ends], confidence_U)
    return found


def diagram(
    confidence_U: np.ndarray,
    excess_U: np.ndarray,
    weight_U: np.ndarray,
    cluster_U: np.ndarray,
    bin_U: np.ndarray,
) -> tuple[Bin, ...]:
    """The points of bins that are not empty. `excess_U` is the confidence less what came of it."""
    points = []
    for number in np.unique(bin_U):
        here_U = bin_U == number
        weights, confidence = weight_U[here_U], confidence_U[here_U]
        hits = confidence - excess_U[here_U]
        observed = float(np.clip(np.average(hits, weights=weights), 0, 1))
        low, high = wilson(observed, _effective_number(hits, weights, cluster_U[here_U], observed))
        points.append(
            Bin(
                predicted=float(np.average(confidence, weights=weights)),
                observed=observed,
                low=low,
                high=high,
                num_comparisons=int(here_U.sum()),
            )
        )
    return tuple(points)


def _effective_number(
    hits: np.ndarray, weights: np.ndarray, clusters: np.ndarray, observed: float
) -> float:
    """Independent comparisons that these are worth: variance of one over the variance of their
    mean by clusters, at most (sum w)^2 / sum w^2 (Kish 1965); where all won or all lost, the same
    of the clusters' weights."""
    _, unit = np.unique(clusters, return_inverse=True)
    weight_G = np.bincount(unit, weights=weights)
    if observed in (0.0, 1.0):
        return float(weight_G.sum() ** 2 / (weight_G @ weight_G))
    largest = float(weights.sum() ** 2 / (weights @ weights))
    moved_G = np.bincount(unit, weights=weights * (hits - observed))
    variance = float(moved_G @ moved_G) / float(weights.sum()) ** 2
    return min(largest, observed * (1 - observed) / variance) if variance else largest

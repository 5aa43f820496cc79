"""Laplace approximation of a linear head's weights.

Legend: K answers of one prompt, C its comparisons, D width of the pooled states, V = 1 + D.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from palate.objectives import Ties, soft_target
from palate.rendering import RenderedGroup

LOG_PRECISION_RANGE = (-25.0, 25.0)
"""Of the prior, relative to the mean eigenvalue of the likelihood's Hessian."""


def scaled_differences(
    group: RenderedGroup, value_KV: np.ndarray, temperature: float, ties: Ties
) -> np.ndarray:
    """f sqrt(w p (1 - p)) / T of each comparison, C D: their products sum to the Hessian."""
    better = [c.better for c in group.comparisons]
    worse = [c.worse for c in group.comparisons]
    share_C = [c.weight * soft_target(c.probability, c.tie, ties)[1] for c in group.comparisons]
    difference_CV = value_KV[better].astype(np.float64) - value_KV[worse]
    probability_C = expit(difference_CV[:, 0] / temperature)
    weight_C = np.array(share_C) / len(share_C) * probability_C * (1 - probability_C)
    scaled: np.ndarray = difference_CV[:, 1:] * np.sqrt(weight_C)[:, None] / temperature
    return scaled


def head_posterior(hessian_DD: np.ndarray, weight_D: np.ndarray) -> tuple[np.ndarray, float, bool]:
    """(R with R R' = (l I + H)^-1, l, whether l is at a bound of its search).

    The Laplace approximation's log evidence is, up to a constant, D/2 log l - l |w|^2 / 2 -
    1/2 log det(l I + H). Its slope in log l is half of sum e / (e + l) - l |w|^2, which falls
    throughout, so it has one maximum.
    """
    value_D, vector_DD = np.linalg.eigh(hessian_DD)
    value_D = np.maximum(value_D, 0.0)
    square = float(weight_D @ weight_D)
    level = float(value_D.mean())

    def slope(log_ratio: float) -> float:
        precision = level * np.exp(log_ratio)
        return float((value_D / (value_D + precision)).sum() - precision * square)

    low, high = LOG_PRECISION_RANGE
    at_bound = not slope(low) > 0 > slope(high)
    if not at_bound:
        low = high = brentq(slope, low, high)
    precision = level * float(np.exp(high if slope(high) >= 0 else low))
    root: np.ndarray = vector_DD / np.sqrt(value_D + precision)
    return root, precision, at_bound

"""One temperature, so that s(margin / T) means what it says."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from palate.evaluation.metrics import Outcome
from palate.objectives import Ties, soft_target

LOG_RANGE = (-5.0, 5.0)
"""Temperatures from 0.0067 to 148; published reward models need up to 15."""
BOUND_TOLERANCE = 1e-3
"""In log temperature: the search comes within 1e-5 of a bound and never reaches it."""


def is_at_bound(temperature: float) -> bool:
    """Whether the fit ended at a bound of its range: the loss would fall further beyond it, so the
    value calibrates nothing. At the upper one margins say nothing of the labels, or the opposite;
    at the lower one no label contradicts them."""
    return min(abs(math.log(temperature) - bound) for bound in LOG_RANGE) < BOUND_TOLERANCE


def fit_temperature(outcomes: Sequence[Outcome], ties: Ties = "half") -> float:
    """The T > 0 that minimises the loss of margin / T, each prompt weighing the same.

    Guo et al. 2017 (1706.04599), for pairs. It changes no ranking. Margins of the labels take no
    part: they shape training, not what a probability means.
    """
    margins: list[float] = []
    targets: list[float] = []
    weights: list[float] = []
    for outcome in outcomes:
        for c in outcome.group.comparisons:
            target, share = soft_target(c.probability, c.tie, ties)
            margins.append(float(outcome.reward_N[c.better] - outcome.reward_N[c.worse]))
            targets.append(target)
            weights.append(c.weight * share / len(outcome.group.comparisons))
    margin_C, target_C, weight_C = map(np.asarray, (margins, targets, weights))

    def loss(log_temperature: float) -> float:
        scaled_C = margin_C * np.exp(-log_temperature)
        losses_C = target_C * np.logaddexp(0, -scaled_C) + (1 - target_C) * np.logaddexp(
            0, scaled_C
        )
        return float(weight_C @ losses_C)

    found = minimize_scalar(loss, bounds=LOG_RANGE, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))

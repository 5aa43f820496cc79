"""One temperature, so that s(margin / T) means what it says.

Legend: C comparisons, G resampled units, B resamples, P points of the grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize_scalar

from palate.errors import PalateError
from palate.evaluation.outcomes import Outcome
from palate.objectives import Ties, soft_target
from palate.preferences import fold_of
from palate.statistics import Estimate
from palate.statistics.resampling import percentile_interval, resampled_sums, resampling_units

LOG_RANGE = (-5.0, 5.0)
"""Temperatures from 0.0067 to 148; published reward models need up to 15."""
BOUND_TOLERANCE = 1e-3
"""In log temperature: the search comes within 1e-5 of a bound and never reaches it."""
NUM_POINTS = 401
"""Of the grid on which resamples are minimised; a parabola through the three lowest points then
is right within 1e-4 of log T."""


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
    margin_C, target_C, weight_C, _ = _table(outcomes, ties)

    def loss(log_temperature: float) -> float:
        return float(weight_C @ _losses(margin_C, target_C, log_temperature))

    found = minimize_scalar(loss, bounds=LOG_RANGE, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def temperature_estimate(
    outcomes: Sequence[Outcome], ties: Ties = "half", seed: int = 0
) -> Estimate:
    """`fit_temperature` with its 95 % interval: percentiles of the fits of 1,000 resamples of
    prompt clusters. `n` counts the prompts. An end of the interval may lie at a bound of the range
    (`is_at_bound`): the prompts are then too few to say where it ends."""
    margin_C, target_C, weight_C, prompt_C = _table(outcomes, ties)
    unit_of_prompt, num_units = resampling_units(np.array([o.cluster for o in outcomes]), seed)
    unit_C = unit_of_prompt[prompt_C]
    log_P = np.linspace(*LOG_RANGE, NUM_POINTS)
    loss_GP = np.empty((num_units, NUM_POINTS))
    for point, log_temperature in enumerate(log_P):
        weighted_C = weight_C * _losses(margin_C, target_C, log_temperature)
        loss_GP[:, point] = np.bincount(unit_C, weights=weighted_C, minlength=num_units)
    fitted_B = np.exp(_lowest(resampled_sums(loss_GP, seed), log_P))
    return percentile_interval(fit_temperature(outcomes, ties), fitted_B, num_units, len(outcomes))


@dataclass(frozen=True, kw_only=True)
class CrossFitted:
    """Temperatures of two halves of the prompt clusters, each for use on the other half."""

    temperatures: tuple[float, float]
    """As fitted on half 0 and on half 1."""
    outcomes: tuple[Outcome, ...]
    """In the order given, with rewards divided by the temperature of the half that they are not
    in: to be judged at temperature 1."""
    num_prompts: tuple[int, int]
    """Of each half."""

    @property
    def is_at_bound(self) -> bool:
        """Whether one of the fits calibrates nothing."""
        return any(map(is_at_bound, self.temperatures))


def cross_fitted_temperature(
    outcomes: Sequence[Outcome], ties: Ties = "half", salt: str = "cross-fitted temperature"
) -> CrossFitted:
    """For a model without a stored temperature: fit on one half of the evaluation's own prompt
    clusters, judge on the other, and the other way round.

    A temperature that is judged where it was fitted looks better than it is. The salted hash of a
    cluster says which half it is in. Raises PalateError where one half is empty.
    """
    fold_of_prompt = [fold_of(outcome.group.group, 2, salt) for outcome in outcomes]
    halves = [
        [o for o, fold in zip(outcomes, fold_of_prompt, strict=True) if fold == half]
        for half in (0, 1)
    ]
    if not all(halves):
        raise PalateError(
            f"{len({o.cluster for o in outcomes})} prompt clusters are too few to fit a temperature"
            " on one half of them and judge it on the other; give more prompts"
        )
    first, second = (fit_temperature(half, ties) for half in halves)
    scaled = tuple(
        replace(outcome, reward_N=outcome.reward_N / (second if fold == 0 else first))
        for outcome, fold in zip(outcomes, fold_of_prompt, strict=True)
    )
    return CrossFitted(
        temperatures=(first, second),
        outcomes=scaled,
        num_prompts=(len(halves[0]), len(halves[1])),
    )


def _table(
    outcomes: Sequence[Outcome], ties: Ties
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """margin, target, weight and number of the prompt of every comparison (C each). The weight is
    the comparison's over the number of its prompt's, as in the loss of training."""
    rows = []
    for number, outcome in enumerate(outcomes):
        for c in outcome.group.comparisons:
            target, share = soft_target(c.probability, c.tie, ties)
            margin = float(outcome.reward_N[c.better] - outcome.reward_N[c.worse])
            weight = c.weight * share / len(outcome.group.comparisons)
            rows.append((margin, target, weight, number))
    margin_C, target_C, weight_C, prompt_C = np.array(rows, dtype=float).reshape(-1, 4).T
    return margin_C, target_C, weight_C, prompt_C.astype(int)


def _losses(margin_C: np.ndarray, target_C: np.ndarray, log_temperature: float) -> np.ndarray:
    scaled_C = margin_C * np.exp(-log_temperature)
    # -[t log s(m) + (1 - t) log s(-m)] = log(1 + e^-m) + (1 - t) m
    losses: np.ndarray = np.logaddexp(0, -scaled_C) + (1 - target_C) * scaled_C
    return losses


def _lowest(loss_BP: np.ndarray, log_P: np.ndarray) -> np.ndarray:
    """Where each row is lowest: the vertex of the parabola through its lowest point and that
    point's neighbours, or the end of the grid."""
    lowest_B = loss_BP.argmin(axis=1)
    inner_B = np.clip(lowest_B, 1, len(log_P) - 2)
    row_B = np.arange(len(loss_BP))
    left_B, middle_B, right_B = (loss_BP[row_B, inner_B + step] for step in (-1, 0, 1))
    bend_B = left_B - 2 * middle_B + right_B
    with np.errstate(divide="ignore", invalid="ignore"):
        shift_B = np.where(bend_B > 0, (left_B - right_B) / (2 * bend_B), 0.0)
    vertex_B = log_P[inner_B] + np.clip(shift_B, -0.5, 0.5) * (log_P[1] - log_P[0])
    found: np.ndarray = np.where(lowest_B == inner_B, vertex_B, log_P[lowest_B])
    return found

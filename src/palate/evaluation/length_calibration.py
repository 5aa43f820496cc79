"""Post-hoc length calibration: a smooth curve of reward on length, and how much of it to take off.

reward' = reward - alpha * f(log length). f is the curve along which the model's rewards run with
length within prompts; alpha, from 0 to 1, is what held-out labels ask for.

Legend: G prompts, N answers of all prompts, B spline functions, P points, C comparisons.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.interpolate import BSpline
from scipy.optimize import minimize_scalar

from palate.errors import PalateError
from palate.evaluation.calibration import LOG_RANGE
from palate.evaluation.outcomes import Outcome
from palate.objectives import Ties, soft_target
from palate.preferences import fold_of
from palate.scoring.length_correction import log_length
from palate.statistics import Estimate, cluster_difference

NUM_FUNCTIONS = 10
NUM_POINTS = 33
"""Points at which the curve is stored; between them straight lines."""
TAIL = 0.01
"""Share of answers at each end, beyond which the curve is constant."""
PENALTIES = tuple(10.0**power for power in range(-3, 7))
NUM_FOLDS = 5
ALPHAS = tuple(step / 20 for step in range(21))
MIN_COMPARISONS = 100
NUM_LENGTH_BINS = 10


@dataclass(frozen=True, kw_only=True)
class Curve:
    """f at points of log(1 + words), with mean 0 over the answers it was fitted on."""

    knots: tuple[float, ...]
    values: tuple[float, ...]

    def at(self, length_N: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.interp(length_N, self.knots, self.values)
        return found


@dataclass(frozen=True, kw_only=True)
class LengthCalibration:
    """A curve, the share of it to subtract, and what the choice rests on."""

    curve: Curve
    alpha: float
    temperature: float
    """Of the corrected margins."""
    gain: Estimate
    """Loss without minus loss with the correction, each prompt held out of its own curve, at the
    alpha with the least loss; an interval that holds 0 makes alpha 0."""
    best_alpha: float
    """That alpha, before it had to prove itself."""
    num_clusters: int
    num_comparisons: int
    length_balanced: bool

    def as_json(self) -> dict[str, Any]:
        """For the sidecar: knots and values at the top, as scoring reads them."""
        fields = asdict(self)
        return {**fields.pop("curve"), **fields}


@dataclass(frozen=True)
class _Pool:
    """The comparisons of all outcomes; margins and lengths as better minus worse."""

    margin_C: np.ndarray
    better_length_C: np.ndarray
    worse_length_C: np.ndarray
    won_C: np.ndarray
    """Weight of `better` won, and below of the opposite."""
    lost_C: np.ndarray
    group_C: np.ndarray


def fit_length_calibration(
    outcomes: Sequence[Outcome],
    ties: Ties = "half",
    *,
    length_balanced: bool = False,
) -> LengthCalibration:
    """The curve on all outcomes, and the alpha of least loss on labels.

    For each alpha the loss is -log s(margin'/T), T fitted for it, each prompt weighing the same; a
    prompt's curve is fitted on the other folds, which are made of whole prompt clusters. alpha is 0
    unless the loss falls by more than chance (95 % interval over clusters).

    The labels decide, so they must not have the bias themselves: where annotators prefer what is
    longer, length predicts their labels and alpha is 0. `length_balanced` weighs, among comparisons
    of about the same difference, those that the longer answer won as much as those that it lost:
    then length predicts nothing, whether that was a bias or quality. It is for labels known to be
    biased, harms where length is legitimate, and takes less off than the bias added: odds averaged
    over qualities are weaker than those at one quality.

    Raises PalateError with fewer than 100 comparisons of answers of unlike length, or too few
    clusters for the folds.
    """
    pool = _pool(outcomes, ties)
    unlike_C = pool.better_length_C != pool.worse_length_C
    if unlike_C.sum() < MIN_COMPARISONS:
        raise PalateError(
            f"{int(unlike_C.sum())} comparisons of answers of unlike length are too few for a"
            f" length calibration; {MIN_COMPARISONS} are the least"
        )
    if length_balanced:
        pool = _balanced(pool)
    fold_G = np.array([fold_of(o.group.group, NUM_FOLDS, "length calibration") for o in outcomes])
    if len(np.unique(fold_G)) < NUM_FOLDS:
        raise PalateError(
            f"the pool has {len({o.cluster for o in outcomes})} prompt clusters, too few for"
            f" {NUM_FOLDS} folds; give more prompts"
        )
    excess_C = np.zeros(len(pool.margin_C))
    for fold in range(NUM_FOLDS):
        curve = fit_curve([o for o, f in zip(outcomes, fold_G, strict=True) if f != fold])
        here_C = fold_G[pool.group_C] == fold
        excess_C[here_C] = curve.at(pool.better_length_C[here_C]) - curve.at(
            pool.worse_length_C[here_C]
        )
    tried = {alpha: _fit_temperature(pool, alpha * excess_C) for alpha in ALPHAS}
    best = min(tried, key=lambda alpha: tried[alpha][1])
    loss_G = [_loss_by_group(pool, a * excess_C, tried[a][0], len(outcomes)) for a in (0.0, best)]
    clusters = [o.cluster for o in outcomes]
    gain = cluster_difference(loss_G[0], loss_G[1], clusters)
    alpha = best if gain.low > 0 else 0.0
    return LengthCalibration(
        curve=fit_curve(outcomes),
        alpha=alpha,
        temperature=tried[alpha][0],
        gain=gain,
        best_alpha=best,
        num_clusters=len(set(clusters)),
        num_comparisons=int(unlike_C.sum()),
        length_balanced=length_balanced,
    )


def fit_curve(outcomes: Sequence[Outcome]) -> Curve:
    """f of reward = a_g + f(log length) + error, a_g a constant for each prompt.

    The constants are taken out by subtracting each prompt's means: rewards of different prompts
    say nothing of each other, and prompts that ask for long answers have levels of their own. f is
    a cubic spline on equal knots with a penalty on second differences of its coefficients (Eilers
    and Marx 1996, Stat. Sci. 11),

        min over b of |R - S b|^2 + p |D b|^2,

    R rewards and S spline functions less their prompt's means; p by generalised cross-validation.
    A straight line costs nothing, so little data gives a line. Beyond the lengths of 1 % of the
    answers at each end, which have no part in the fit, f is constant. Smoothing rewards on length
    and subtracting it is Huang et al. 2024 (2409.17407): LOWESS over all prompts and alpha 1.
    """
    lengths = [lengths_of(outcome) for outcome in outcomes]
    length_N = np.concatenate(lengths)
    low, high = np.quantile(length_N, [TAIL, 1 - TAIL])
    if not low < high:
        raise PalateError("all answers are of the same length; there is no length to calibrate")
    group_N = np.repeat(np.arange(len(outcomes)), [len(part) for part in lengths])
    reward_N = np.concatenate([outcome.reward_N.astype(float) for outcome in outcomes])
    # An answer beyond the range would bend the end towards its reward.
    inside_N = (low <= length_N) & (length_N <= high)
    _, group_N = np.unique(group_N[inside_N], return_inverse=True)
    target_N = _less_means(reward_N[inside_N, None], group_N)[:, 0]
    centred_NB = _less_means(_splines(length_N[inside_N], low, high), group_N)
    degrees = len(target_N) - int(group_N.max()) - 1
    coefficient_B = _penalised(centred_NB, target_N, degrees)
    knots_P = np.linspace(low, high, NUM_POINTS)
    values_P = _splines(knots_P, low, high) @ coefficient_B
    values_P -= np.interp(length_N, knots_P, values_P).mean()
    return Curve(knots=tuple(knots_P.tolist()), values=tuple(values_P.tolist()))


def within_prompt_slope(outcomes: Sequence[Outcome]) -> float:
    """Units of reward per unit of log(1 + words), by least squares within prompts."""
    lengths = [lengths_of(outcome) for outcome in outcomes]
    group_N = np.repeat(np.arange(len(outcomes)), [len(part) for part in lengths])
    reward_N = np.concatenate([outcome.reward_N.astype(float) for outcome in outcomes])
    length_N1 = _less_means(np.concatenate(lengths)[:, None], group_N)
    return float(reward_N @ length_N1[:, 0] / (length_N1[:, 0] @ length_N1[:, 0]))


def _penalised(centred_NB: np.ndarray, target_N: np.ndarray, degrees: int) -> np.ndarray:
    """Coefficients at the penalty of least residual / (degrees - trace of the smoother)^2."""
    product_BB = centred_NB.T @ centred_NB
    right_B = centred_NB.T @ target_N
    second_B = np.diff(np.eye(NUM_FUNCTIONS), n=2, axis=0)
    scale = np.trace(product_BB) / NUM_FUNCTIONS
    # The sum of all functions is constant, which the prompts' constants hold already.
    ridge_BB = 1e-9 * scale * np.eye(NUM_FUNCTIONS)
    found: list[tuple[float, np.ndarray]] = []
    for penalty in PENALTIES:
        matrix_BB = product_BB + penalty * scale * second_B.T @ second_B + ridge_BB
        coefficient_B = np.linalg.solve(matrix_BB, right_B)
        trace = float(np.trace(np.linalg.solve(matrix_BB, product_BB)))
        residual = float(np.square(target_N - centred_NB @ coefficient_B).sum())
        found.append((residual / max(degrees - trace, 1.0) ** 2, coefficient_B))
    return min(found, key=lambda pair: pair[0])[1]


def _splines(length_N: np.ndarray, low: float, high: float) -> np.ndarray:
    """Cubic B-splines on equal knots, shape NB."""
    step = (high - low) / (NUM_FUNCTIONS - 3)
    knots = low + step * np.arange(-3, NUM_FUNCTIONS + 1)
    inside_N = np.clip(length_N, low, high - 1e-9 * (high - low))
    dense: np.ndarray = BSpline.design_matrix(inside_N, knots, 3).toarray()
    return dense


def _less_means(value_NF: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    count_G = np.bincount(group_N)
    means = [np.bincount(group_N, weights=column) / count_G for column in value_NF.T]
    less: np.ndarray = value_NF - np.stack(means, axis=1)[group_N]
    return less


def lengths_of(outcome: Outcome) -> np.ndarray:
    """log(1 + words) of each answer."""
    return np.array([log_length(response.text) for response in outcome.group.responses])


def _pool(outcomes: Sequence[Outcome], ties: Ties) -> _Pool:
    rows: list[tuple[float, ...]] = []
    for number, outcome in enumerate(outcomes):
        length_N = lengths_of(outcome)
        for c in outcome.group.comparisons:
            target, share = soft_target(c.probability, c.tie, ties)
            weight = c.weight * share / len(outcome.group.comparisons)
            margin = float(outcome.reward_N[c.better]) - float(outcome.reward_N[c.worse])
            lengths = (length_N[c.better], length_N[c.worse])
            rows.append((margin, *lengths, weight * target, weight * (1 - target), number))
    table = np.array(rows, dtype=float).reshape(-1, 6)
    margin_C, better_C, worse_C, won_C, lost_C, group_C = table.T
    return _Pool(margin_C, better_C, worse_C, won_C, lost_C, group_C.astype(int))


def _balanced(pool: _Pool) -> _Pool:
    """Weights changed so that in each bin of difference in length both sides win as much."""
    difference_C = pool.better_length_C - pool.worse_length_C
    edges = np.quantile(np.abs(difference_C), np.linspace(0, 1, NUM_LENGTH_BINS + 1)[1:-1])
    bin_C = np.searchsorted(edges, np.abs(difference_C))
    longer_C = difference_C > 0
    longer_won_C = np.where(longer_C, pool.won_C, pool.lost_C)
    shorter_won_C = np.where(longer_C, pool.lost_C, pool.won_C)
    for number in np.unique(bin_C):
        here_C = (bin_C == number) & (difference_C != 0)
        sums = longer_won_C[here_C].sum(), shorter_won_C[here_C].sum()
        if min(sums) > 0:
            longer_won_C[here_C] *= sum(sums) / 2 / sums[0]
            shorter_won_C[here_C] *= sum(sums) / 2 / sums[1]
        else:
            longer_won_C[here_C] = shorter_won_C[here_C] = 0.0
    return _Pool(
        pool.margin_C,
        pool.better_length_C,
        pool.worse_length_C,
        np.where(longer_C, longer_won_C, shorter_won_C),
        np.where(longer_C, shorter_won_C, longer_won_C),
        pool.group_C,
    )


def _losses(pool: _Pool, excess_C: np.ndarray, temperature: float) -> np.ndarray:
    scaled_C = (pool.margin_C - excess_C) / temperature
    losses: np.ndarray = pool.won_C * np.logaddexp(0, -scaled_C) + pool.lost_C * np.logaddexp(
        0, scaled_C
    )
    return losses


def _fit_temperature(pool: _Pool, excess_C: np.ndarray) -> tuple[float, float]:
    """(temperature, loss) at the least loss of the corrected margins."""
    found = minimize_scalar(
        lambda log_t: float(_losses(pool, excess_C, float(np.exp(log_t))).sum()),
        bounds=LOG_RANGE,
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x)), float(found.fun)


def _loss_by_group(
    pool: _Pool, excess_C: np.ndarray, temperature: float, num_groups: int
) -> np.ndarray:
    losses_C = _losses(pool, excess_C, temperature)
    return np.bincount(pool.group_C, weights=losses_C, minlength=num_groups)

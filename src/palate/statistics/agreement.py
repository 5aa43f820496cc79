"""How far people agree beyond chance, with intervals that resample clusters.

Legend: J judgements of two people on one unit, U units, V values, G resampled units, B resamples.
"""

from typing import Literal

import numpy as np

from palate.statistics.intervals import Estimate
from palate.statistics.resampling import (
    percentile_interval,
    resampled_sums,
    resampling_units,
    sums_by_unit,
)

Level = Literal["nominal", "ordinal", "interval"]
Weights = Literal["none", "linear", "quadratic"]
MAX_VALUES = 32
"""Different values that alpha keeps apart: the work grows with their square."""


def count_values(value_J: np.ndarray, unit_J: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(how often each value was given to each unit, shape U, V; the values in ascending order).

    Units are numbers from 0. A judgement that is missing is no row here.
    """
    values_V, index_J = np.unique(value_J, return_inverse=True)
    num_units = int(unit_J.max()) + 1 if unit_J.size else 0
    cells = unit_J.astype(np.int64) * len(values_V) + index_J
    count_UV = np.bincount(cells, minlength=num_units * len(values_V))
    return count_UV.reshape(num_units, len(values_V)), values_V


def disagreement_weights(num_values: int, weights: Weights) -> np.ndarray:
    """How far two values are apart for Cohen's kappa: 0 or 1, |i - j|, or (i - j)^2 in steps of the
    scale."""
    steps = np.arange(num_values)
    apart_VV: np.ndarray = np.abs(steps[:, None] - steps[None, :]).astype(float)
    power = {"none": 0, "linear": 1, "quadratic": 2}[weights]
    return np.where(apart_VV > 0, apart_VV**power, 0.0)


def kappa_of_tables(table_VV: np.ndarray, weights: Weights = "none") -> np.ndarray:
    """Cohen's kappa of tables (first's value by second's), which may have leading axes.

    NaN where no disagreement is expected, since both always say the same one thing.
    """
    apart_VV = disagreement_weights(table_VV.shape[-1], weights)
    total = table_VV.sum(axis=(-2, -1))
    expected_VV = table_VV.sum(axis=-1)[..., :, None] * table_VV.sum(axis=-2)[..., None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = (table_VV * apart_VV).sum(axis=(-2, -1)) / total
        expected = (expected_VV * apart_VV).sum(axis=(-2, -1)) / total**2
        kappa: np.ndarray = 1 - observed / np.where(expected > 0, expected, np.nan)
    return kappa


def cohen_kappa(
    first_J: np.ndarray,
    second_J: np.ndarray,
    weights: Weights = "none",
    cluster_J: np.ndarray | None = None,
    seed: int = 0,
) -> Estimate:
    """Agreement of two people who judged the same J units: 1 - sum(w o) / sum(w e).

    o are the shares of each pair of values, e what both people's own shares make of them by chance,
    w how far the values are apart (Cohen 1960, 1968). `n` is J. Each unit is a cluster of its own
    unless `cluster_J` says otherwise.
    """
    values_V, index = np.unique(np.concatenate([first_J, second_J]), return_inverse=True)
    num_values, num_judged = len(values_V), len(first_J)
    cell_J = index[:num_judged] * num_values + index[num_judged:]
    clusters = np.arange(num_judged) if cluster_J is None else cluster_J
    unit_J, num_units = resampling_units(clusters, seed)
    table_GF = np.bincount(unit_J * num_values**2 + cell_J, minlength=num_units * num_values**2)
    table_GF = table_GF.reshape(num_units, num_values**2).astype(float)
    shape = (-1, num_values, num_values)
    kappa = kappa_of_tables(table_GF.sum(axis=0).reshape(shape), weights)[0]
    resampled_B = kappa_of_tables(resampled_sums(table_GF, seed).reshape(shape), weights)
    return percentile_interval(float(kappa), resampled_B, num_units, num_judged)


def fleiss_kappa(
    count_UV: np.ndarray, cluster_U: np.ndarray | None = None, seed: int = 0
) -> Estimate:
    """Agreement of a fixed number m of raters on each unit, whoever they are (Fleiss 1971).

    (P - Pe) / (1 - Pe): P is the mean over units of the share of pairs of raters who agree, Pe the
    sum of squared shares of the values. `n` is the number of units. Raises ValueError where units
    have fewer than two raters, or not all the same number.
    """
    raters_U = count_UV.sum(axis=1)
    num_raters = int(raters_U[0]) if raters_U.size else 0
    if num_raters < 2 or (raters_U != num_raters).any():
        raise ValueError("Fleiss' kappa needs the same number of raters, two or more, on each unit")
    agree_U = ((count_UV.astype(float) ** 2).sum(axis=1) - num_raters) / (
        num_raters * (num_raters - 1)
    )
    unit_U, num_units = _units(cluster_U, len(count_UV), seed)
    columns = [agree_U, np.ones(len(agree_U)), *count_UV.T.astype(float)]
    sum_GF = sums_by_unit(columns, unit_U, num_units)

    def kappa(sum_F: np.ndarray) -> np.ndarray:
        observed = sum_F[:, 0] / sum_F[:, 1]
        shares_V = sum_F[:, 2:] / sum_F[:, 2:].sum(axis=1, keepdims=True)
        left = 1 - (shares_V**2).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            found: np.ndarray = 1 - (1 - observed) / np.where(left > 1e-12, left, np.nan)
        return found

    value = float(kappa(sum_GF.sum(axis=0, keepdims=True))[0])
    return percentile_interval(value, kappa(resampled_sums(sum_GF, seed)), num_units, len(count_UV))


def krippendorff_alpha(
    count_UV: np.ndarray,
    values_V: np.ndarray,
    level: Level = "nominal",
    cluster_U: np.ndarray | None = None,
    seed: int = 0,
) -> Estimate:
    """Agreement of any number of raters, with judgements missing: 1 - (n - 1) sum(o d) / sum(e d).

    o_vw = sum over units of (c_v c_w, or c_v (c_v - 1) where v = w) / (m - 1), c the unit's counts,
    m their sum; n_v the row sums of o, n their sum, e_vw = n_v n_w; d_vw = [v != w], the squared
    difference of the values, or of their mid-ranks (Krippendorff 2011, Computing Krippendorff's
    Alpha-Reliability). `values_V` are the numbers that interval differences are of, ascending.

    Units with one judgement say nothing and are left out; `n` counts the judgements in the others.
    NaN where all of these are the same. Raises ValueError for more than MAX_VALUES values, and
    where no unit has two judgements.
    """
    num_values = len(values_V)
    if num_values > MAX_VALUES:
        raise ValueError(f"{num_values} different values; at most {MAX_VALUES} are kept apart")
    pairable_U = count_UV.sum(axis=1) >= 2
    if not pairable_U.any():
        raise ValueError("no unit has two judgements")
    unit_U, num_units = _units(cluster_U, len(count_UV), seed)
    counts_UV = count_UV[pairable_U].astype(float)
    coincidence_GF = _coincidences(counts_UV, unit_U[pairable_U], num_units)
    # Clusters whose units all stand alone can't be drawn.
    coincidence_GF = coincidence_GF[coincidence_GF.any(axis=1)]
    shape = (-1, num_values, num_values)
    total = alpha_of_coincidences(coincidence_GF.sum(axis=0).reshape(shape), values_V, level)
    resampled_B = alpha_of_coincidences(
        resampled_sums(coincidence_GF, seed).reshape(shape), values_V, level
    )
    num_judgements = int(counts_UV.sum())
    return percentile_interval(float(total[0]), resampled_B, len(coincidence_GF), num_judgements)


def alpha_of_coincidences(
    coincidence_BVV: np.ndarray, values_V: np.ndarray, level: Level
) -> np.ndarray:
    """Krippendorff's alpha of coincidence matrices, shape B; NaN where only one value occurs."""
    number_BV = coincidence_BVV.sum(axis=2)
    total_B = number_BV.sum(axis=1)
    if level == "nominal":
        apart_BVV = (1 - np.eye(len(values_V)))[None]
    else:
        # Ordinal differences, sums of counts between two values, are differences of mid-ranks.
        point_BV = (
            np.cumsum(number_BV, axis=1) - number_BV / 2
            if level == "ordinal"
            else values_V.astype(float)[None]
        )
        apart_BVV = (point_BV[:, :, None] - point_BV[:, None, :]) ** 2
    observed_B = (coincidence_BVV * apart_BVV).sum(axis=(1, 2))
    expected_B = (number_BV[:, :, None] * number_BV[:, None, :] * apart_BVV).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha_B: np.ndarray = 1 - (total_B - 1) * observed_B / np.where(
            expected_B > 0, expected_B, np.nan
        )
    return alpha_B


def _units(cluster_U: np.ndarray | None, num_all: int, seed: int) -> tuple[np.ndarray, int]:
    return resampling_units(np.arange(num_all) if cluster_U is None else cluster_U, seed)


def _coincidences(count_UV: np.ndarray, unit_U: np.ndarray, num_units: int) -> np.ndarray:
    """Coincidence matrices, laid flat, summed over each unit of resampling."""
    num_values = count_UV.shape[1]
    others_U = count_UV.sum(axis=1) - 1
    flat_GF = np.zeros((num_units, num_values * num_values))
    for v in range(num_values):
        for w in range(v, num_values):
            pairs_U = count_UV[:, v] * (count_UV[:, w] - (v == w)) / others_U
            sum_G = np.bincount(unit_U, weights=pairs_U, minlength=num_units)
            flat_GF[:, v * num_values + w] = sum_G
            flat_GF[:, w * num_values + v] = sum_G
    return flat_GF

"""Bradley-Terry on features: the small convex model behind baselines and audits.

Legend: C comparisons, F features, K directions, G clusters.
"""

from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import issparse
from scipy.special import expit

MAX_SOLVER_STEPS = 100
SOLVER_TOLERANCE = 0.05
"""Size of the residual, as a share of the direction's, at which the solver of
`comparison_model_errors` stops: errors of standard errors by then are under 2 %."""


def fit_comparison_model(
    difference_CF: Any,
    weight_C: np.ndarray | None = None,
    l2: float | np.ndarray = 1.0,
    target_C: np.ndarray | None = None,
    max_iterations: int = 1000,
) -> np.ndarray:
    """Weights (F) that maximise sum weight * log s(w . difference) - sum l2 w^2 / 2.

    Each row is features(better) - features(worse), so there is no intercept: swapping the two
    answers flips the sign. `difference_CF` is dense or a scipy sparse matrix; `l2` one number or
    one for each feature; with `target_C` (probability that the first is better; default 1) the
    likelihood is target * log s(m) + (1 - target) * log s(-m). Convex; solved with L-BFGS, in the
    matrix's own precision where that is float32.
    """
    if issparse(difference_CF):
        used_F = _used(difference_CF)
        coefficient_F = np.zeros(len(used_F))
        penalty_F = l2 if np.isscalar(l2) else np.asarray(l2)[used_F]
        used_CF = difference_CF[:, used_F]
        coefficient_F[used_F] = _fit(used_CF, weight_C, penalty_F, target_C, max_iterations)
        return coefficient_F
    return _fit(difference_CF, weight_C, l2, target_C, max_iterations)


def _used(difference_CF: Any) -> np.ndarray:
    """Features that are not 0 everywhere (F, bool). The others' weights are 0: leaving them out
    makes hashed words twice as fast."""
    used: np.ndarray = difference_CF.getnnz(axis=0) > 0
    return used


def _fit(
    difference_CF: Any,
    weight_C: np.ndarray | None,
    l2: Any,
    target_C: np.ndarray | None,
    max_iterations: int,
) -> np.ndarray:
    num_comparisons = difference_CF.shape[0]
    # A product of float32 and float64 copies the whole sparse matrix at each call.
    dtype = np.float32 if difference_CF.dtype == np.float32 else np.float64
    transposed_FC = difference_CF.T
    weights_C = np.ones(num_comparisons) if weight_C is None else weight_C
    targets_C = np.ones(num_comparisons) if target_C is None else target_C

    def objective(coefficient_F: np.ndarray) -> tuple[float, np.ndarray]:
        margin_C = (difference_CF @ coefficient_F.astype(dtype)).astype(np.float64)
        # -[t log s(m) + (1 - t) log s(-m)] = log(1 + e^-m) + (1 - t) m
        losses_C = np.logaddexp(0, -margin_C) + (1 - targets_C) * margin_C
        loss = float(weights_C @ losses_C + (l2 * coefficient_F) @ coefficient_F / 2)
        slope_C = weights_C * (expit(margin_C) - targets_C)
        gradient_F = transposed_FC @ slope_C.astype(dtype)
        return loss, gradient_F + l2 * coefficient_F

    start = np.zeros(difference_CF.shape[1])
    options = {"maxiter": max_iterations}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    coefficients: np.ndarray = found.x
    return coefficients


def comparison_model_errors(
    difference_CF: Any,
    coefficient_F: np.ndarray,
    direction_FK: np.ndarray,
    cluster_C: np.ndarray,
    weight_C: np.ndarray,
    target_C: np.ndarray,
    l2: np.ndarray,
) -> np.ndarray:
    """Standard error of each direction . coefficient (K) of a model fitted on these comparisons.

    The infinitesimal jackknife (sandwich; Huber 1967), by cluster: with H the Hessian of the
    penalised loss and z = H^-1 direction, a comparison moves the value by z . difference times its
    residual; moves are summed within clusters, then squared. `difference_CF` is a sparse float32
    matrix. What the penalty takes off the coefficients is no part of the error.
    """
    used_F = _used(difference_CF)
    if not used_F.any():
        return np.zeros(direction_FK.shape[1])
    used_CF = difference_CF[:, used_F]
    margin_C = (used_CF @ coefficient_F[used_F].astype(np.float32)).astype(np.float64)
    probability_C = expit(margin_C)
    curvature_C = weight_C * probability_C * (1 - probability_C)
    solved_FK = _solved(used_CF, curvature_C, l2[used_F], direction_FK[used_F])
    move_CK = (used_CF @ solved_FK) * (weight_C * (target_C - probability_C))[:, None]
    _, index_C = np.unique(cluster_C, return_inverse=True)
    move_KG = [np.bincount(index_C, weights=move_C) for move_C in move_CK.T]
    return np.sqrt([float(move_G @ move_G) for move_G in move_KG])


def _solved(
    difference_CF: Any, curvature_C: np.ndarray, l2: np.ndarray, direction_FK: np.ndarray
) -> np.ndarray:
    """H^-1 direction, H = X^T diag(curvature) X + diag(l2), by conjugate gradients on all K at
    once, preconditioned by H's diagonal."""
    squared = difference_CF.copy()
    squared.data **= 2
    diagonal_F1 = (squared.T @ curvature_C.astype(np.float32) + l2)[:, None].astype(np.float32)
    l2_F1 = l2[:, None].astype(np.float32)
    curvature_C1 = curvature_C[:, None].astype(np.float32)
    transposed_FC = difference_CF.T
    solved_FK = np.zeros_like(direction_FK, np.float32)
    residual_FK = direction_FK.astype(np.float32)
    step_FK = scaled_FK = residual_FK / diagonal_F1
    size_K = (residual_FK * scaled_FK).sum(axis=0)
    goal_K = SOLVER_TOLERANCE**2 * size_K
    for _ in range(MAX_SOLVER_STEPS):
        if bool((size_K <= goal_K).all()):
            break
        image_FK = transposed_FC @ (curvature_C1 * (difference_CF @ step_FK)) + l2_F1 * step_FK
        length_K = size_K / np.maximum((step_FK * image_FK).sum(axis=0), 1e-30)
        solved_FK += length_K * step_FK
        residual_FK = residual_FK - length_K * image_FK
        scaled_FK = residual_FK / diagonal_F1
        next_K = (residual_FK * scaled_FK).sum(axis=0)
        step_FK = scaled_FK + next_K / np.maximum(size_K, 1e-30) * step_FK
        size_K = next_K
    return solved_FK

"""Bradley-Terry on features: the small convex model behind baselines.

Legend: C comparisons, F features.
"""

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit


def fit_comparison_model(
    difference_CF: np.ndarray, weight_C: np.ndarray | None = None, l2: float = 1.0
) -> np.ndarray:
    """Weights (F) that maximise sum weight * log s(w . difference) - l2 |w|^2 / 2.

    Each row is features(better) - features(worse), so there is no intercept: swapping the two
    answers flips the sign. Convex; solved with L-BFGS.
    """
    weights_C = np.ones(len(difference_CF)) if weight_C is None else weight_C

    def objective(coefficient_F: np.ndarray) -> tuple[float, np.ndarray]:
        margin_C = difference_CF @ coefficient_F
        loss = float(
            weights_C @ np.logaddexp(0, -margin_C) + l2 * coefficient_F @ coefficient_F / 2
        )
        gradient_F = -difference_CF.T @ (weights_C * expit(-margin_C)) + l2 * coefficient_F
        return loss, gradient_F

    start = np.zeros(difference_CF.shape[1])
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    coefficients: np.ndarray = found.x
    return coefficients

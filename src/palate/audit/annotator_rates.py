"""A share for each annotator, with its interval, and which of them are apart.

Legend: J judgements, A annotators with enough of them.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import false_discovery_control, norm

from palate.audit.columns import NO_ANNOTATOR
from palate.statistics import wilson

MIN_JUDGEMENTS = 20
"""Judgements of one annotator from which a number is told of them."""
FALSE_DISCOVERIES = 0.01
"""Expected share of false ones among the annotators that are called apart; where nobody is, the
probability that somebody is called so."""


@dataclass(frozen=True)
class Rates:
    """A share for each annotator with enough judgements, with its 95 % interval."""

    annotator_A: np.ndarray
    rate_A: np.ndarray
    number_A: np.ndarray
    effective_A: np.ndarray
    """Independent observations that these, clustered, are worth."""

    def interval(self, index: int) -> tuple[float, float]:
        """Wilson's, with the effective number of observations (Korn and Graubard 1998 in kind)."""
        return wilson(float(self.rate_A[index]), float(self.effective_A[index]))

    def below(self, other_A: np.ndarray) -> np.ndarray:
        """Adjusted p-values (Benjamini and Hochberg 1995) that a rate is below another's."""
        spread_A = np.sqrt(np.maximum(other_A * (1 - other_A), 1e-9) / self.effective_A)
        adjusted: np.ndarray = false_discovery_control(norm.cdf((self.rate_A - other_A) / spread_A))
        return adjusted

    def apart(self, value: float) -> np.ndarray:
        """The same that a rate is not `value`."""
        spread_A = np.sqrt(value * (1 - value) / self.effective_A)
        adjusted: np.ndarray = false_discovery_control(
            2 * norm.sf(np.abs(self.rate_A - value) / spread_A)
        )
        return adjusted


def rates_by_annotator(
    value_J: np.ndarray, annotator_J: np.ndarray, cluster_J: np.ndarray
) -> Rates:
    """Mean value of each named annotator with MIN_JUDGEMENTS judgements or more.

    Effective observations are n / d, d the variance of the mean by clusters over that of n
    independent ones, at least 1 (Kish 1965).
    """
    named = annotator_J != NO_ANNOTATOR
    value_J, annotator_J, cluster_J = value_J[named], annotator_J[named], cluster_J[named]
    number_A = np.bincount(annotator_J)
    known = np.flatnonzero(number_A >= MIN_JUDGEMENTS)
    total_A = np.bincount(annotator_J, weights=value_J)
    rate_A = total_A / np.maximum(number_A, 1)
    _, cluster_index = np.unique(cluster_J, return_inverse=True)
    cells, cell_J = np.unique(
        annotator_J * (int(cluster_index.max(initial=0)) + 1) + cluster_index, return_inverse=True
    )
    residual = np.bincount(cell_J, weights=value_J - rate_A[annotator_J])
    owner = cells // (int(cluster_index.max(initial=0)) + 1)
    squares_A = np.bincount(owner, weights=residual**2, minlength=len(number_A))
    clusters_A = np.bincount(owner, minlength=len(number_A))
    independent_A = rate_A * (1 - rate_A) * number_A
    design_A = np.where(
        independent_A > 0,
        squares_A / np.maximum(independent_A, 1e-12),
        number_A / np.maximum(clusters_A, 1),
    )
    effective_A = number_A / np.maximum(design_A, 1)
    return Rates(known, rate_A[known], number_A[known], effective_A[known])

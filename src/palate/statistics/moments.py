"""Mean and covariance of vectors that come in blocks, and the covariance shrunk.

Legend: N vectors, D their width.
"""

import numpy as np


class Moments:
    """Sums over all vectors added so far, in float64; memory D^2, whatever their number.

    They are taken about the mean of the first block: about 0 the covariance of vectors far from it
    would be a small difference of large sums.
    """

    def __init__(self) -> None:
        self.num = 0

    def add(self, value_ND: np.ndarray) -> None:
        """One block, N of 1 or more."""
        value_ND = value_ND.astype(np.float64)
        if not self.num:
            width = value_ND.shape[1]
            self._origin_D = value_ND.mean(axis=0)
            self._sum_D = np.zeros(width)
            self._product_DD = np.zeros((width, width))
            self._squared_sum_D = np.zeros(width)
            self._fourth = 0.0
        value_ND = value_ND - self._origin_D
        square_N = np.einsum("nd,nd->n", value_ND, value_ND)
        self.num += len(value_ND)
        self._sum_D += value_ND.sum(axis=0)
        self._product_DD += value_ND.T @ value_ND
        self._squared_sum_D += square_N @ value_ND
        self._fourth += float(square_N @ square_N)

    @property
    def mean_D(self) -> np.ndarray:
        mean: np.ndarray = self._origin_D + self._sum_D / self.num
        return mean

    @property
    def covariance_DD(self) -> np.ndarray:
        """Divided by N, as the shrinkage below has it."""
        shift_D = self._sum_D / self.num
        covariance: np.ndarray = self._product_DD / self.num - np.outer(shift_D, shift_D)
        return covariance

    def shrunk(self) -> tuple[np.ndarray, float]:
        """(1 - s) S + s m I and s: S the covariance, m the mean of its diagonal.

        s is what minimises the expected squared error of the result, estimated from the data
        (Ledoit and Wolf 2004, J. Multivariate Analysis 88, section 3.2):

            s = min(b, d) / d,  d = |S - m I|^2,  b = sum over n of |x x' - S|^2 / N^2,

        x less the mean, | |^2 sums of squares; the sum in b is that of |x|^4 less N |S|^2. With
        d = 0 (S is a multiple of I already, as with D = 1) s is 0.
        """
        covariance_DD = self.covariance_DD
        level = float(np.trace(covariance_DD)) / len(covariance_DD)
        squares = float(np.square(covariance_DD).sum())
        distance = squares - len(covariance_DD) * level**2
        error = (self._central_fourth() / self.num - squares) / self.num
        # Below rounding of the sums there is no distance to shrink.
        is_apart = distance > 1e-14 * squares
        shrinkage = min(max(error, 0.0), distance) / distance if is_apart else 0.0
        shrunk_DD = (1 - shrinkage) * covariance_DD
        shrunk_DD[np.diag_indices_from(shrunk_DD)] += shrinkage * level
        return shrunk_DD, shrinkage

    def _central_fourth(self) -> float:
        """sum |y - a|^4 with y the vectors about the origin and a their mean, from

        |y - a|^4 = |y|^4 + 4 (a.y)^2 + |a|^4 - 4 |y|^2 a.y + 2 |y|^2 |a|^2 - 4 |a|^2 a.y.
        """
        shift_D = self._sum_D / self.num
        square = float(shift_D @ shift_D)
        return (
            self._fourth
            + 4 * float(shift_D @ self._product_DD @ shift_D)
            - 3 * self.num * square**2
            - 4 * float(shift_D @ self._squared_sum_D)
            + 2 * square * float(np.trace(self._product_DD))
        )

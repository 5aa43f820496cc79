"""The hinge loss of ranking machines, for comparison with likelihoods.

Legend: N responses, C comparisons.
"""

from torch import Tensor

from palate.objectives.bradley_terry import ComparisonBatch, reward_difference


def hinge_losses(reward_N: Tensor, margin: float, batch: ComparisonBatch) -> Tensor:
    """p max(0, h - d) + (1 - p) max(0, h + d), h = margin + the comparison's own. Shape C.

    d = reward(better) - reward(worse), p the target (Herbrich et al. 1999; Joachims 2002). For
    1/2 < p < 1 the optimum is d = h whatever p is: the hinge learns who wins, not how surely, and
    its rewards are no log-odds. For p = 1 every d >= h is optimal.
    """
    difference_C = reward_difference(reward_N, batch)
    margin_C = margin + batch.margin_C
    won_C = batch.target_C * (margin_C - difference_C).relu()
    return won_C + (1 - batch.target_C) * (margin_C + difference_C).relu()

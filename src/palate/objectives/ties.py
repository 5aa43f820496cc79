"""Two models of comparisons that may end in a tie, each with one learned width.

With d = reward(better) - reward(worse) (+ nuisance terms), p the probability that `better` wins
given no tie and t the share of tie votes, the loss of a comparison is

    -[(1 - t) p log P(win) + (1 - t) (1 - p) log P(loss) + t log P(tie)].

Legend: N responses, C comparisons.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from palate.objectives.bradley_terry import ComparisonBatch, reward_difference


def davidson_losses(
    reward_N: Tensor, log_width: Tensor, batch: ComparisonBatch, shift_C: Tensor | None = None
) -> Tensor:
    """P(win) : P(loss) : P(tie) = exp(d / 2) : exp(-d / 2) : v, v = exp(log_width). Shape C.

    Davidson 1970, J. Am. Stat. Assoc. 65, with worth = exp(reward). Given no tie, `better`
    wins with probability s(d), as in Bradley-Terry, so rewards mean the same. Optimum for shares
    w, l, t of one pair: d = log(w / l), v = t / sqrt(w l).
    """
    half_C = reward_difference(reward_N, batch, shift_C) / 2
    logits_C3 = torch.stack([half_C, -half_C, log_width.expand_as(half_C)], dim=-1)
    log_won_C, log_lost_C, log_tied_C = logits_C3.log_softmax(-1).unbind(-1)
    return _cross_entropy(batch, log_won_C, log_lost_C, log_tied_C)


def rao_kupper_losses(
    reward_N: Tensor, log_width: Tensor, batch: ComparisonBatch, shift_C: Tensor | None = None
) -> Tensor:
    """P(win) = s(d - h), P(loss) = s(-d - h), h = exp(log_width); the rest is a tie. Shape C.

    Rao and Kupper 1967, J. Am. Stat. Assoc. 62, with theta = exp(h). The rest is exactly
    (exp(2 h) - 1) P(win) P(loss), which is what is computed: 1 - P(win) - P(loss) would lose all
    digits for large d. Optimum for shares w, l, t of one pair: d = (logit w - logit l) / 2,
    h = -(logit w + logit l) / 2. Given no tie `better` wins more often than s(d): rewards are on a
    smaller scale than Bradley-Terry's, the more so the more ties there are.
    """
    difference_C = reward_difference(reward_N, batch, shift_C)
    width = log_width.exp()
    log_won_C, log_lost_C = logsigmoid(difference_C - width), logsigmoid(-difference_C - width)
    log_tied_C = log_won_C + log_lost_C + 2 * width + torch.log(-torch.expm1(-2 * width))
    return _cross_entropy(batch, log_won_C, log_lost_C, log_tied_C)


def _cross_entropy(
    batch: ComparisonBatch, log_won_C: Tensor, log_lost_C: Tensor, log_tied_C: Tensor
) -> Tensor:
    decided_C = batch.target_C * log_won_C + (1 - batch.target_C) * log_lost_C
    return -((1 - batch.tie_C) * decided_C + batch.tie_C * log_tied_C)


def davidson_log_width(tie_share: float) -> float:
    """The log width that fits a share of ties while all rewards are equal: P(tie) = v / (2 + v)."""
    return math.log(2 * tie_share / (1 - tie_share))


def rao_kupper_log_width(tie_share: float) -> float:
    """As above: 1 - 2 s(-h) = tanh(h / 2)."""
    return math.log(2 * math.atanh(tie_share))


def davidson_tie_probability(log_width: float) -> float:
    """Of two answers with the same reward."""
    return 1 / (1 + 2 * math.exp(-log_width))


def rao_kupper_tie_probability(log_width: float) -> float:
    """Of two answers with the same reward."""
    return math.tanh(math.exp(log_width) / 2)

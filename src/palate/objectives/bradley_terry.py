"""The Bradley-Terry loss over all comparisons of a prompt.

Legend: N responses, C comparisons.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from palate.objectives.settings import Ties
from palate.preferences.types import Comparison

Row = tuple[float, float, float, float, float, float]
"""better, worse, target, tie, margin, weight of one comparison."""


@dataclass(frozen=True)
class ComparisonBatch:
    """Comparisons among N responses of several prompts, as tensors."""

    better_C: Tensor
    """Index into the N rewards."""
    worse_C: Tensor
    target_C: Tensor
    """Probability that `better` wins; given no tie where `tie_C` says how many votes were ties."""
    tie_C: Tensor
    """Share of tie votes that are still to be accounted for."""
    margin_C: Tensor
    weight_C: Tensor
    """The comparison's weight, divided by the number of comparisons of its prompt."""

    @classmethod
    def gather(
        cls,
        groups: Sequence[tuple[int, Sequence[Comparison]]],
        ties: Ties | None = "half",
        label_smoothing: float = 0.0,
    ) -> "ComparisonBatch":
        """From (number of responses, comparisons) of each prompt, in the order of the rewards.

        `ties` turns tie votes into targets or weights; with None they stay apart, in `tie_C`.
        Smoothing gives its share of each target to the other side.
        """
        rows: list[Row] = []
        offset = 0
        for num_responses, comparisons in groups:
            for c in comparisons:
                target, share, tie = c.probability, 1.0, c.tie
                if ties is not None:
                    target, share = soft_target(c.probability, c.tie, ties)
                    tie = 0.0
                target = smoothed(target, label_smoothing)
                weight = c.weight * share / len(comparisons)
                rows.append((offset + c.better, offset + c.worse, target, tie, c.margin, weight))
            offset += num_responses
        return cls.from_rows(rows)

    @classmethod
    def from_rows(cls, rows: Iterable[Row]) -> "ComparisonBatch":
        """Indices and weights already in terms of the whole batch."""
        table = torch.tensor(list(rows), dtype=torch.float64).reshape(-1, 6)
        return cls(
            table[:, 0].long(), table[:, 1].long(), *(column.float() for column in table[:, 2:].T)
        )

    def counted_responses(self) -> Tensor:
        """Indices into the N rewards: one of each comparison with a weight."""
        return self.better_C[self.weight_C > 0]

    def to(self, device: torch.device) -> "ComparisonBatch":
        return ComparisonBatch(*(getattr(self, name).to(device) for name in self.__annotations__))


def soft_target(probability: float, tie: float, ties: Ties) -> tuple[float, float]:
    """(target, share of the weight): half gives ((1 - tie) p + tie / 2, 1), drop (p, 1 - tie)."""
    if ties == "half":
        return (1 - tie) * probability + tie / 2, 1.0
    return probability, 1 - tie


def smoothed(target: float, label_smoothing: float) -> float:
    """(1 - e) p + e (1 - p): the target if a share e of the labels were turned round."""
    return target + label_smoothing * (1 - 2 * target)


def at_least_float32(reward_N: Tensor) -> Tensor:
    """Losses need float32; float64 stays, so that gradients can be checked."""
    return reward_N if reward_N.dtype == torch.float64 else reward_N.float()


def reward_difference(
    reward_N: Tensor, batch: ComparisonBatch, shift_C: Tensor | None = None
) -> Tensor:
    """reward(better) - reward(worse) of each comparison, shape C; plus `shift_C`, what the logit
    has besides."""
    reward_N = at_least_float32(reward_N)
    difference_C = reward_N[batch.better_C] - reward_N[batch.worse_C]
    return difference_C if shift_C is None else difference_C + shift_C


def comparison_losses(
    reward_N: Tensor,
    batch: ComparisonBatch,
    scale_C: Tensor | float = 1.0,
    shift_C: Tensor | None = None,
) -> Tensor:
    """Unweighted loss of each comparison, shape C: -[p log s(d - m) + (1 - p) log s(-d)].

    d = scale * (reward(better) - reward(worse) + shift), s the logistic function, p the target, m
    the margin (Bradley and Terry 1952; margin as in Llama 2, 2307.09288, eq. 2). In float32
    with logsigmoid, which stays finite for any d. The derivative in d is (1 - p) s(d) - p s(m - d).

    Optimum of one comparison: without margin d = log(p / (1 - p)); with a margin and p = 1 none is
    finite, and the loss is that of d - m without one. Label smoothing e of a sure label gives
    d = log((1 - e) / e) (Szegedy et al. 2016, 1512.00567). Weights move no optimum of one
    comparison; of two that contradict each other, with weights u and v, it is d = log(u / v).
    """
    difference_C = scale_C * reward_difference(reward_N, batch, shift_C)
    won_C = batch.target_C * logsigmoid(difference_C - batch.margin_C)
    lost_C = (1 - batch.target_C) * logsigmoid(-difference_C)
    return -(won_C + lost_C)


def bradley_terry(
    reward_N: Tensor, batch: ComparisonBatch, shift_C: Tensor | None = None
) -> Tensor:
    """Sum over prompts of (sum of weight * loss over the prompt's comparisons / their number).

    The caller divides by the number of prompts of the whole step, so any division into
    microbatches and processes gives the same gradient. A prompt with 36 comparisons weighs as much
    as one with 1.
    """
    return (batch.weight_C * comparison_losses(reward_N, batch, shift_C=shift_C)).sum()

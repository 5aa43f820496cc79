"""The Bradley-Terry loss over all comparisons of a prompt.

Legend: N responses, C comparisons.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from palate.preferences.types import Comparison

Ties = Literal["half", "drop"]
"""What Bradley-Terry, which knows no ties, makes of tie votes: half a win each, or nothing."""


@dataclass(frozen=True)
class ComparisonBatch:
    """Comparisons among N responses of several prompts, as tensors."""

    better_C: Tensor
    """Index into the N rewards."""
    worse_C: Tensor
    target_C: Tensor
    """Probability that `better` wins, ties included."""
    margin_C: Tensor
    weight_C: Tensor
    """The comparison's weight, divided by the number of comparisons of its prompt."""

    @classmethod
    def gather(
        cls, groups: Sequence[tuple[int, Sequence[Comparison]]], ties: Ties = "half"
    ) -> "ComparisonBatch":
        """From (number of responses, comparisons) of each prompt, in the order of the rewards."""
        columns: list[tuple[float, ...]] = []
        offset = 0
        for num_responses, comparisons in groups:
            for c in comparisons:
                target, share = soft_target(c.probability, c.tie, ties)
                weight = c.weight * share / len(comparisons)
                columns.append((offset + c.better, offset + c.worse, target, c.margin, weight))
            offset += num_responses
        table = torch.tensor(columns, dtype=torch.float64).reshape(-1, 5)
        return cls(
            table[:, 0].long(), table[:, 1].long(), *(column.float() for column in table[:, 2:].T)
        )

    def to(self, device: torch.device) -> "ComparisonBatch":
        return ComparisonBatch(*(getattr(self, name).to(device) for name in self.__annotations__))


def soft_target(probability: float, tie: float, ties: Ties) -> tuple[float, float]:
    """(target, share of the weight): half gives ((1 - tie) p + tie / 2, 1), drop (p, 1 - tie)."""
    if ties == "half":
        return (1 - tie) * probability + tie / 2, 1.0
    return probability, 1 - tie


def comparison_losses(reward_N: Tensor, batch: ComparisonBatch) -> Tensor:
    """Unweighted loss of each comparison, shape C: -[p log s(d - m) + (1 - p) log s(-d)].

    d = reward(better) - reward(worse), s the logistic function, p the target, m the margin
    (Bradley and Terry 1952; margin as in Llama 2, 2307.09288, eq. 2). Computed in float32 with
    logsigmoid, which stays finite for any d. The derivative in d is (1 - p) s(d) - p s(m - d).
    """
    difference_C = reward_N.float()[batch.better_C] - reward_N.float()[batch.worse_C]
    won_C = batch.target_C * logsigmoid(difference_C - batch.margin_C)
    lost_C = (1 - batch.target_C) * logsigmoid(-difference_C)
    return -(won_C + lost_C)


def bradley_terry(reward_N: Tensor, batch: ComparisonBatch) -> Tensor:
    """Sum over prompts of (sum of weight * loss over the prompt's comparisons / their number).

    The caller divides by the number of prompts of the whole step, so any division into
    microbatches and processes gives the same gradient. A prompt with 36 comparisons weighs as much
    as one with 1.
    """
    return (batch.weight_C * comparison_losses(reward_N, batch)).sum()

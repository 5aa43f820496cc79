"""Least squares on ratings: a baseline.

Legend: N responses, M rated ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from palate.errors import PalateError
from palate.objectives.bradley_terry import at_least_float32
from palate.rendering import RenderedGroup

ASSUMPTIONS = (
    "objective.kind regression takes all ratings as one scale with equal steps, which every prompt"
    " and every annotator uses alike. Where they don't, it learns how hard the prompt and how"
    " strict the annotator was, and comparisons within a prompt suffer; bradley-terry on the same"
    " ratings needs their order alone"
)


@dataclass(frozen=True)
class RatingScale:
    """Mean and standard deviation of the training ratings."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, groups: Sequence[RenderedGroup]) -> "RatingScale":
        """Raises PalateError when there are no ratings or all are equal."""
        ratings = [rating for group in groups for _, rating in rated(group)]
        if not ratings:
            raise PalateError(
                "objective.kind regression needs ratings, and no training response has one; give"
                " each response a `rating`, or use objective.kind bradley-terry"
            )
        if min(ratings) == max(ratings):
            raise PalateError(
                f"objective.kind regression: all {len(ratings)} ratings of the training data are"
                f" {ratings[0]:g}; use objective.kind bradley-terry"
            )
        return cls(float(np.mean(ratings)), float(np.std(ratings)))


def rated(group: RenderedGroup) -> Iterator[tuple[int, float]]:
    """(sequence, rating) of the group's rated answers."""
    for sequence, index in enumerate(group.response_index):
        rating = group.group.responses[index].rating
        if rating is not None:
            yield sequence, rating


@dataclass(frozen=True)
class RatingBatch:
    """Standardised ratings of M of the N responses of several prompts."""

    response_M: Tensor
    """Index into the N rewards."""
    target_M: Tensor
    weight_M: Tensor
    """Mean weight of the prompt's comparisons, divided by the number of its rated answers."""

    @classmethod
    def gather(cls, groups: Sequence[RenderedGroup], scale: RatingScale) -> "RatingBatch":
        """Prompts without ratings have no part in the loss."""
        rows: list[tuple[float, float, float]] = []
        offset = 0
        for group in groups:
            ratings = list(rated(group))
            weight = sum(c.weight for c in group.comparisons) / len(group.comparisons)
            for sequence, rating in ratings:
                target = (rating - scale.mean) / scale.deviation
                rows.append((offset + sequence, target, weight / len(ratings)))
            offset += len(group.sequences)
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)
        return cls(table[:, 0].long(), table[:, 1].float(), table[:, 2].float())

    def counted_responses(self) -> Tensor:
        """Indices into the N rewards: those of ratings with a weight."""
        return self.response_M[self.weight_M > 0]

    def to(self, device: torch.device) -> "RatingBatch":
        return RatingBatch(*(getattr(self, name).to(device) for name in self.__annotations__))


def regression(reward_N: Tensor, offset: Tensor, batch: RatingBatch) -> Tensor:
    """Sum over prompts of weight * mean over its rated answers of (reward + offset - z)^2.

    z = (rating - mean) / deviation over the training ratings (as HelpSteer 2's regression head,
    2406.08673, but with one scalar). The offset is learned, since the reward head has no bias; it
    stays out of the exported reward. Optimum: reward + offset = z for every answer; with rewards
    held equal within a prompt, reward + offset is the prompt's mean z.
    """
    error_M = at_least_float32(reward_N)[batch.response_M] + offset - batch.target_M
    return (batch.weight_M * error_M.square()).sum()

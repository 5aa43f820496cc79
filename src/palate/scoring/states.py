"""Pooled states of groups of token ids, a microbatch at a time.

Legend: N sequences of a microbatch, V values kept of each.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from palate.artifacts.progress import progress
from palate.forest import plan_groups
from palate.forest.tree import Ids
from palate.model.reward_model import RewardModel

Take = Callable[[Tensor], Tensor]
"""From pooled states (N D, float32) to what is kept of them (N, or N V)."""


def rewards_and_states(model: RewardModel) -> Take:
    """Keeps N V with V = 1 + D: the reward, then the state that the head read."""
    return lambda hidden_ND: torch.cat([model.reward_of(hidden_ND)[:, None], hidden_ND], dim=1)


def taken_by_plan(
    model: RewardModel,
    groups: Sequence[Sequence[Ids]],
    tokens_per_microbatch: int,
    pad_id: int,
    take: Take,
) -> Iterator[tuple[tuple[int, ...], list[np.ndarray]]]:
    """Of each microbatch: the indices of its groups, and what `take` keeps of each group's
    sequences. Nothing else stays in memory; no gradients."""
    for plan in progress(
        plan_groups(groups, model.packing(tokens_per_microbatch, pad_id)), "score"
    ):
        with model.scoring_mode():
            value = take(model.run(plan).hidden_ND).cpu()
        pieces = torch.split(value, [len(groups[index]) for index in plan.groups])
        yield plan.groups, [piece.numpy() for piece in pieces]


def taken_of_groups(
    model: RewardModel,
    groups: Sequence[Sequence[Ids]],
    tokens_per_microbatch: int,
    pad_id: int,
    take: Take,
) -> list[np.ndarray]:
    """What `take` keeps of each group's sequences, in order."""
    found: dict[int, np.ndarray] = {}
    for indices, pieces in taken_by_plan(model, groups, tokens_per_microbatch, pad_id, take):
        found.update(zip(indices, pieces, strict=True))
    return [found[index] for index in range(len(groups))]

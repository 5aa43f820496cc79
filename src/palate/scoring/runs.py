"""Rewards of groups of token ids."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from palate.artifacts.progress import progress
from palate.forest import Plan, plan_groups
from palate.forest.tree import Ids
from palate.model.reward_model import RewardModel


def rewards_of_groups(
    model: RewardModel, groups: Sequence[Sequence[Ids]], tokens_per_microbatch: int, pad_id: int
) -> list[np.ndarray]:
    """Rewards of each group's sequences, in order."""
    plans = plan_groups(groups, model.packing(tokens_per_microbatch, pad_id))
    rewards = run_plans(model, plans, [len(group) for group in groups])
    return [rewards[index] for index in range(len(groups))]


def run_plans(
    model: RewardModel, plans: Sequence[Plan], num_responses: Sequence[int]
) -> Mapping[int, np.ndarray]:
    """Rewards (float32, one for each sequence) by index of the group; no gradients.

    `num_responses` holds the number of sequences of every group.
    """
    rewards: dict[int, np.ndarray] = {}
    with model.scoring_mode():
        for plan in progress(plans, "score"):
            reward_N = model.run(plan).reward_N
            sizes = [num_responses[group] for group in plan.groups]
            pieces = torch.split(reward_N.cpu(), sizes)
            rewards.update(
                (group, piece.numpy()) for group, piece in zip(plan.groups, pieces, strict=True)
            )
    return rewards

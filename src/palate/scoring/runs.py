"""Rewards of groups of token ids."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from palate.artifacts.progress import progress
from palate.forest import Plan, plan_rows, plan_trees
from palate.forest.plan import Layout
from palate.forest.tree import Ids
from palate.model.reward_model import RewardModel


def plan_groups(
    groups: Sequence[Sequence[Ids]], layout: Layout, tokens_per_microbatch: int, pad_id: int
) -> list[Plan]:
    """Plans for all groups in the given layout."""
    plan = plan_trees if layout == "tree" else plan_rows
    return plan(groups, tokens_per_microbatch, pad_id)


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

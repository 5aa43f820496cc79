"""The loss of a step's microbatches, as training and the measurements before it take it.

Legend: N sequences of a microbatch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from palate.forest import Plan
from palate.model.reward_model import Output, plan_tensors
from palate.objectives.objective import Objective, ObjectiveBatch


def sum_over_prompts(
    objective: Objective, output: Output, batch: ObjectiveBatch, step_mean: Tensor | None
) -> Tensor:
    """The objective, and the load-balancing loss of experts: mean over a prompt's answers."""
    loss = objective.loss(output.reward_N, batch, output.learned or {}, step_mean)
    if output.auxiliary_N is not None:
        loss = loss + (batch.share_N * output.auxiliary_N).sum()
    return loss


def sum_of_means(
    model: nn.Module,
    microbatches: Sequence[tuple[Plan, ObjectiveBatch | None]],
    device: torch.device,
) -> Tensor:
    """Sum over the prompts of their mean reward, without gradient; microbatches without a batch are
    run and count nothing."""
    total = torch.zeros((), device=device)
    with torch.no_grad():
        for plan, batch in microbatches:
            reward_N = model(**plan_tensors(plan, device)).reward_N
            if batch is not None:
                total += (batch.to(device).share_N * reward_N).sum()
    return total

"""Terms beside the data: rewards of a prompt or of a step are kept around zero.

Losses of comparisons leave one constant per prompt free; centring fixes all of them, sum-to-zero
their mean over the step.

Legend: N responses, C comparisons.
"""

from torch import Tensor

from palate.objectives.bradley_terry import ComparisonBatch, at_least_float32


def centring(reward_N: Tensor, batch: ComparisonBatch) -> Tensor:
    """Sum of weight * (reward(better) + reward(worse))^2, weighted as the comparisons' losses.

    Eisenstein et al. 2023, 2312.09244; called `center_rewards_coefficient` elsewhere. For a pair
    with target p the optimum is better = -worse = log(p / (1 - p)) / 2, whatever the coefficient.
    Over all pairs of K answers the sum is (K - 2) sum r^2 + (sum r)^2: for K > 2 it also pulls the
    rewards together.
    """
    reward_N = at_least_float32(reward_N)
    return (batch.weight_C * (reward_N[batch.better_C] + reward_N[batch.worse_C]).square()).sum()


def sum_to_zero(sum_of_means: Tensor, num_prompts: int, step_mean: Tensor) -> Tensor:
    """This microbatch's part of num_prompts(step) * m^2, m the step's mean reward.

    `sum_of_means` is the sum of the mean rewards of this microbatch's prompts, `step_mean` the
    value of m without gradient, from all microbatches and processes. Summed over them and divided
    by the prompts of the step, 2 m sum_of_means - num_prompts m^2 has the value m^2 and its exact
    gradient.

    Batch-wise sum-to-zero regularisation (Hong et al. 2025, 2505.07271) constrains the batch's sum
    of rewards. The authors' code squares the mean reward of one device's batch and multiplies it by
    the coefficient and the number of that batch's pairs. Here the batch is the whole step, each
    prompt counts once, and the coefficient is not multiplied, so that it means the same for any
    step size, microbatch or number of processes: theirs times their pairs per device is ours.
    For a pair with target p the optimum is better = -worse = log(p / (1 - p)) / 2.
    """
    return 2 * step_mean * sum_of_means - num_prompts * step_mean.square()

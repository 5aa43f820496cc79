"""Metrics of rewards on held-out comparisons, beside the baselines that need no model.

The unit is the prompt: within a prompt comparisons are averaged, over prompts the mean is taken,
as in the loss. Intervals resample prompt clusters.

Legend: G prompts, N answers of one prompt, C comparisons of one prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from palate.objectives import ComparisonBatch, Ties, comparison_losses
from palate.preferences import Comparison, prompt_cluster
from palate.rendering import RenderedGroup
from palate.statistics import Estimate, cluster_difference, cluster_mean

Predictor = Callable[[RenderedGroup], np.ndarray]
"""A value for each answer of a group; higher is better."""


@dataclass(frozen=True)
class Outcome:
    """One prompt with the rewards of its answers."""

    group: RenderedGroup
    reward_N: np.ndarray

    @property
    def cluster(self) -> str:
        return prompt_cluster(self.group.group.prompt)


def quick_metrics(
    groups: Sequence[RenderedGroup], rewards: Sequence[np.ndarray], ties: Ties = "half"
) -> dict[str, float]:
    """loss, accuracy, margin and spread as plain means over prompts, for use during training."""
    outcomes = [Outcome(group, reward) for group, reward in zip(groups, rewards, strict=True)]
    compared = [o for o in outcomes if decided(o.group)]
    return {
        "loss": float(np.mean([prompt_loss(o, ties) for o in outcomes])),
        "accuracy": float(np.mean([prompt_accuracy(o.group, o.reward_N) for o in compared]))
        if compared
        else float("nan"),
        "margin": float(np.mean([prompt_margin(o) for o in outcomes])),
        "spread": float(np.mean([np.std(o.reward_N) for o in outcomes])),
    }


def decided(group: RenderedGroup) -> list[Comparison]:
    """Comparisons that have a better side at all: evenly split votes have none."""
    return [c for c in group.comparisons if c.probability > 0.5 and c.tie < 1]


def prompt_accuracy(group: RenderedGroup, value_N: np.ndarray) -> float:
    """Share of decided comparisons in which the better answer's value is higher; equal counts half."""
    difference_C = np.array([value_N[c.better] - value_N[c.worse] for c in decided(group)])
    return float(np.mean((np.sign(difference_C) + 1) / 2))


def prompt_margin(outcome: Outcome) -> float:
    """Mean of reward(better) - reward(worse) over the comparisons."""
    r = outcome.reward_N
    return float(np.mean([r[c.better] - r[c.worse] for c in outcome.group.comparisons]))


def prompt_loss(outcome: Outcome, ties: Ties) -> float:
    """The prompt's share of the training loss."""
    batch = ComparisonBatch.gather([(len(outcome.reward_N), outcome.group.comparisons)], ties)
    losses_C = comparison_losses(torch.as_tensor(outcome.reward_N), batch)
    return float((batch.weight_C * losses_C).sum())


def answer_lengths(group: RenderedGroup) -> np.ndarray:
    """Length of each answer in characters."""
    responses = group.group.responses
    return np.array([len(responses[index].text) for index in group.response_index], dtype=float)


BASELINES: dict[str, Predictor] = {
    "longer wins": answer_lengths,
    "shorter wins": lambda group: -answer_lengths(group),
    "random": lambda group: np.zeros(len(group.sequences)),
}
"""Predictors that never read; random ties every comparison, so it scores exactly one half."""


def evaluate_outcomes(
    outcomes: Sequence[Outcome],
    ties: Ties = "half",
    baselines: Mapping[str, Predictor] = BASELINES,
) -> dict[str, Estimate]:
    """All metrics with 95 % cluster intervals.

    loss, accuracy, margin, spread; the accuracy of each baseline and the paired difference of the
    model's accuracy to it; accuracy where the better answer is longer, where it is shorter, and
    the mean of the two. Raises ValueError without outcomes.
    """
    compared = [o for o in outcomes if decided(o.group)]
    clusters_all = [o.cluster for o in outcomes]
    clusters = [o.cluster for o in compared]
    accuracy_G = [prompt_accuracy(o.group, o.reward_N) for o in compared]
    found = {
        "loss": cluster_mean([prompt_loss(o, ties) for o in outcomes], clusters_all),
        "accuracy": cluster_mean(accuracy_G, clusters),
        "margin": cluster_mean([prompt_margin(o) for o in outcomes], clusters_all),
        "spread": cluster_mean([float(np.std(o.reward_N)) for o in outcomes], clusters_all),
    }
    for name, predict in baselines.items():
        baseline_G = [prompt_accuracy(o.group, predict(o.group)) for o in compared]
        found[name] = cluster_mean(baseline_G, clusters)
        found[f"accuracy minus {name}"] = cluster_difference(accuracy_G, baseline_G, clusters)
    return {**found, **accuracy_by_length(compared)}


def accuracy_by_length(outcomes: Sequence[Outcome]) -> dict[str, Estimate]:
    """Accuracy where the better answer is longer, where it is shorter, and their mean.

    The mean is 0.5 for any rule that reads lengths alone. Its interval comes from resampling
    clusters of both strata together: each prompt enters with its share of either stratum.
    """
    rows: list[tuple[float, float, str]] = []
    strata: dict[str, list[tuple[float, str]]] = {"better is longer": [], "better is shorter": []}
    for outcome in outcomes:
        length_N = answer_lengths(outcome.group)
        correct: dict[str, list[float]] = {name: [] for name in strata}
        for c in decided(outcome.group):
            gap = length_N[c.better] - length_N[c.worse]
            if gap == 0:
                continue
            margin = outcome.reward_N[c.better] - outcome.reward_N[c.worse]
            name = "better is longer" if gap > 0 else "better is shorter"
            correct[name].append((np.sign(margin) + 1) / 2)
        for name, values in correct.items():
            if values:
                strata[name].append((float(np.mean(values)), outcome.cluster))
    if not all(strata.values()):
        return {}
    found = {
        f"accuracy, {name}": cluster_mean([v for v, _ in values], [c for _, c in values])
        for name, values in strata.items()
    }
    total = sum(map(len, strata.values()))
    for values in strata.values():
        # Each stratum weighs one half in the mean, whatever its number of prompts.
        rows += [(value, total / (2 * len(values)), cluster) for value, cluster in values]
    found["accuracy, mean of longer and shorter"] = cluster_mean(
        [row[0] for row in rows], [row[2] for row in rows], [row[1] for row in rows]
    )
    return found

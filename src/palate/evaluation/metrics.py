"""Metrics of rewards on held-out comparisons, beside the baselines that need no model.

The unit is the prompt: within a prompt comparisons are averaged, over prompts the mean is taken,
as in the loss. Intervals resample prompt clusters.

Legend: G prompts, N answers of one prompt, C comparisons of one prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from palate.objectives import ComparisonBatch, Ties, comparison_losses
from palate.preferences import Comparison, prompt_cluster
from palate.rendering import RenderedGroup
from palate.statistics import Estimate, cluster_difference, cluster_mean
from palate.statistics import as_json as as_json  # of metrics, for those who measure

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
        "spread": float(np.mean([prompt_spread(o) for o in outcomes])),
    }


def decided(group: RenderedGroup) -> list[Comparison]:
    """Comparisons that count and have a better side at all: evenly split votes have none."""
    return [c for c in group.comparisons if c.probability > 0.5 and c.tie < 1 and c.weight > 0]


def prompt_accuracy(group: RenderedGroup, value_N: np.ndarray) -> float:
    """Weighted share of decided comparisons in which the better answer's value is higher; equal
    values count half."""
    members = decided(group)
    return float(
        np.average([_won(value_N, c) for c in members], weights=[c.weight for c in members])
    )


def _won(value_N: np.ndarray, c: Comparison) -> float:
    return float(np.sign(value_N[c.better] - value_N[c.worse]) + 1) / 2


def prompt_margin(outcome: Outcome) -> float:
    """Weighted mean of reward(better) - reward(worse) over the comparisons; 0 without weight."""
    r = outcome.reward_N.astype(float)
    members = [c for c in outcome.group.comparisons if c.weight > 0]
    margins = [r[c.better] - r[c.worse] for c in members]
    return float(np.average(margins, weights=[c.weight for c in members])) if members else 0.0


def prompt_spread(outcome: Outcome) -> float:
    """Standard deviation of the rewards."""
    return float(np.std(outcome.reward_N.astype(float)))


def prompt_loss(outcome: Outcome, ties: Ties = "half") -> float:
    """Weighted mean Bradley-Terry loss of the prompt's comparisons; 0 without weight.

    Unlike the objective it is divided by their weight, not their number: a source that counts twice
    in training has no higher loss for it.
    """
    weight = sum(c.weight for c in outcome.group.comparisons)
    if not weight:
        return 0.0
    batch = ComparisonBatch.gather([(len(outcome.reward_N), outcome.group.comparisons)], ties)
    losses_C = comparison_losses(torch.as_tensor(outcome.reward_N), batch)
    total = float((batch.weight_C * losses_C).sum()) * len(outcome.group.comparisons)
    return total / weight


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
    the mean of the two; accuracy by source where there are several. Without a decided comparison
    there is no accuracy. Raises ValueError without outcomes.
    """
    compared = [o for o in outcomes if decided(o.group)]
    clusters_all = [o.cluster for o in outcomes]
    clusters = [o.cluster for o in compared]
    found = {
        "loss": cluster_mean([prompt_loss(o, ties) for o in outcomes], clusters_all),
        "margin": cluster_mean([prompt_margin(o) for o in outcomes], clusters_all),
        "spread": cluster_mean([prompt_spread(o) for o in outcomes], clusters_all),
    }
    if not compared:
        return found
    accuracy_G = [prompt_accuracy(o.group, o.reward_N) for o in compared]
    found["accuracy"] = cluster_mean(accuracy_G, clusters)
    for name, predict in baselines.items():
        baseline_G = [prompt_accuracy(o.group, predict(o.group)) for o in compared]
        found[name] = cluster_mean(baseline_G, clusters)
        found[f"accuracy minus {name}"] = cluster_difference(accuracy_G, baseline_G, clusters)
    return {**found, **accuracy_by_length(compared), **accuracy_by_source(compared)}


def accuracy_by_source(outcomes: Sequence[Outcome]) -> dict[str, Estimate]:
    """Accuracy on the prompts of each source, where there is more than one."""
    sources = sorted({outcome.group.group.source for outcome in outcomes})
    if len(sources) < 2:
        return {}
    members = {name: [o for o in outcomes if o.group.group.source == name] for name in sources}
    return {
        f"accuracy, source {name}": cluster_mean(
            [prompt_accuracy(o.group, o.reward_N) for o in part], [o.cluster for o in part]
        )
        for name, part in members.items()
    }


def accuracy_by_length(outcomes: Sequence[Outcome]) -> dict[str, Estimate]:
    """Accuracy where the better answer is longer, where it is shorter, and their mean.

    The mean is 0.5 for any rule that reads lengths alone. Its interval comes from resampling
    clusters of both strata together.
    """
    strata: dict[str, list[tuple[float, str]]] = {"better is longer": [], "better is shorter": []}
    num_prompts = 0
    for outcome in outcomes:
        length_N = answer_lengths(outcome.group)
        correct: dict[str, list[float]] = {name: [] for name in strata}
        for c in decided(outcome.group):
            gap = length_N[c.better] - length_N[c.worse]
            if gap != 0:
                name = "better is longer" if gap > 0 else "better is shorter"
                correct[name].append(_won(outcome.reward_N, c))
        for name, correct_C in correct.items():
            if correct_C:
                strata[name].append((float(np.mean(correct_C)), outcome.cluster))
        num_prompts += any(correct.values())
    if not all(strata.values()):
        return {}
    found = {
        f"accuracy, {name}": cluster_mean([v for v, _ in values], [c for _, c in values])
        for name, values in strata.items()
    }
    both = sum(estimate.value for estimate in found.values()) / 2
    rows: list[tuple[float, float, str]] = []
    for values, stratum in zip(strata.values(), found.values(), strict=True):
        # Each stratum weighs one half, whatever its number of prompts. Its distance from the mean
        # of both is taken out: a resample with other numbers of prompts would change its weight.
        shift = both - stratum.value
        rows += [(value + shift, 1 / len(values), cluster) for value, cluster in values]
    mean = cluster_mean(
        [row[0] for row in rows], [row[2] for row in rows], [row[1] for row in rows]
    )
    if np.isfinite(mean.low):
        mean = replace(mean, low=max(0.0, mean.low), high=min(1.0, mean.high))
    found["accuracy, mean of longer and shorter"] = replace(mean, n=num_prompts)
    return found

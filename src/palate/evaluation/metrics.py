"""Metrics of rewards on held-out comparisons, beside the baselines that need no model.

The unit is the prompt: within a prompt comparisons are averaged, over prompts the mean is taken,
as in the loss. Intervals resample prompt clusters.

Legend: G prompts.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from palate.evaluation.outcomes import (
    BASELINES,
    Outcome,
    Predictor,
    decided,
    prompt_accuracy,
    prompt_loss,
    prompt_margin,
    prompt_spread,
    won,
)
from palate.evaluation.ranking import ranking_metrics
from palate.evaluation.strata import accuracy_by_length, accuracy_by_source
from palate.objectives import Ties
from palate.statistics import Estimate, cluster_difference, cluster_mean


def evaluate_outcomes(
    outcomes: Sequence[Outcome],
    ties: Ties = "half",
    baselines: Mapping[str, Predictor] = BASELINES,
) -> dict[str, Estimate]:
    """All metrics with 95 % cluster intervals that cost next to nothing.

    loss, accuracy, margin, spread, the share of tied rewards; the accuracy of each baseline and the
    paired difference of the model's accuracy to it; accuracy where the better answer is longer,
    where it is shorter, their mean, their gap and what it is at equal length; accuracy by source
    where there are several; how whole rankings agree where prompts have more than two answers.
    Without a decided comparison there is no accuracy. Raises ValueError without outcomes.
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
    found["tied rewards"] = cluster_mean([_tied(o) for o in compared], clusters)
    for name, predict in baselines.items():
        baseline_G = [prompt_accuracy(o.group, predict(o.group)) for o in compared]
        found[name] = cluster_mean(baseline_G, clusters)
        found[f"accuracy minus {name}"] = cluster_difference(accuracy_G, baseline_G, clusters)
    return {
        **found,
        **accuracy_by_length(compared),
        **accuracy_by_source(compared),
        **ranking_metrics(outcomes, ties),
    }


def _tied(outcome: Outcome) -> float:
    """Weighted share of decided comparisons whose two rewards are equal, which count half."""
    members = decided(outcome.group)
    tied = [won(outcome.reward_N, c) == 0.5 for c in members]
    return float(np.average(tied, weights=[c.weight for c in members]))

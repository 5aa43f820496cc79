"""One prompt with the rewards of its answers, and what is read off it; baselines without a model.

The unit is the prompt: within a prompt comparisons are averaged, over prompts the mean is taken,
as in the loss.

Legend: G prompts, N answers of one prompt, C comparisons of one prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from palate.artifacts.ledger import place
from palate.errors import PalateError
from palate.objectives import ComparisonBatch, Ties, comparison_losses
from palate.objectives.covariates import COVARIATES
from palate.preferences import Comparison, prompt_cluster
from palate.rendering import RenderedGroup

Predictor = Callable[[RenderedGroup], np.ndarray]
"""A value for each answer of a group; higher is better."""


@dataclass(frozen=True)
class Outcome:
    """One prompt with the rewards of its answers."""

    group: RenderedGroup
    reward_N: np.ndarray

    @cached_property
    def cluster(self) -> str:
        return prompt_cluster(self.group.group.prompt)


def check_finite(outcomes: Sequence[Outcome]) -> None:
    """Raise PalateError, naming file, line and answer, for a reward that is no finite number."""
    bad = [(o, at) for o in outcomes for at in np.flatnonzero(~np.isfinite(o.reward_N)).tolist()]
    if not bad:
        return
    outcome, at = bad[0]
    group, index = outcome.group.group, outcome.group.response_index[at]
    num_answers = sum(len(o.reward_N) for o in outcomes)
    raise PalateError(
        f"{place(group.file, group.line)}: the reward of answer {index}, counted from 0, is"
        f" {outcome.reward_N[at]}: {group.responses[index].text!r:.60} ({len(bad)} of"
        f" {num_answers} answers). Nothing is averaged over it; check the weights, or load the"
        " model in float32"
    )


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
        np.average([won(value_N, c) for c in members], weights=[c.weight for c in members])
    )


def won(value_N: np.ndarray, c: Comparison) -> float:
    """1 where the better answer's value is higher, one half where both are equal, else 0."""
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
    return np.array([len(response.text) for response in group.responses], dtype=float)


def markdown_marks(group: RenderedGroup) -> np.ndarray:
    """log(1 + list items, headings and bold runs) of each answer."""
    count = COVARIATES["markdown_amount"]
    return np.array([count(response.text) for response in group.responses])


BASELINES: dict[str, Predictor] = {
    "longer wins": answer_lengths,
    "shorter wins": lambda group: -answer_lengths(group),
    "more markdown": markdown_marks,
    "random": lambda group: np.zeros(len(group.sequences)),
}
"""Predictors that never read; random ties every comparison, so it scores exactly one half."""

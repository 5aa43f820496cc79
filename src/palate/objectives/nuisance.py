"""Nuisance terms: what people may have gone by besides the answer's quality, given weights of its
own in training and left out of the reward.

Legend: K answers of a prompt, N responses, C comparisons, F covariates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from palate.errors import PalateError
from palate.objectives.bradley_terry import ComparisonBatch, at_least_float32
from palate.objectives.covariates import COVARIATES, FIRST_SHOWN
from palate.objectives.settings import ObjectiveSettings
from palate.preferences.types import Comparison
from palate.rendering import RenderedGroup
from palate.statistics.comparison_model import fit_comparison_model

PRIOR_DEVIATION = 10.0
"""Of each weight, in logits for a typical difference: no more than a guard. Where a covariate
always wins the likelihood has no optimum; this gives it one."""
MADE = "made by"
"""Key in the meta of a group that an augmentation made: its labels are ours, and no annotator's
habit is in them."""


@dataclass(frozen=True)
class Nuisance:
    """The covariates of an objective, their typical differences in the training data, and the
    weights to start from."""

    names: tuple[str, ...]
    scale_F: np.ndarray
    """Root mean square of the difference between the two answers of a training comparison, each
    comparison weighing as in the loss."""
    initial_F: np.ndarray
    """Weights for differences divided by `scale_F`, that fit the training labels while all rewards
    are equal."""
    num_groups: int
    """Of the training data."""

    @classmethod
    def of(cls, settings: ObjectiveSettings, groups: Sequence[RenderedGroup]) -> "Nuisance":
        """Raises PalateError for a covariate in which no two compared answers differ.

        The start is the minimum of a convex function: the loss and prior of `nuisance_penalty` with
        all rewards 0. A weight that had to come there by the optimiser's steps would leave the
        reward the time to learn the covariate in its place.
        """
        difference_CF = _raw_differences(settings.nuisance, groups)
        ties = "half" if settings.kind in ("davidson", "rao-kupper") else settings.ties
        batch = ComparisonBatch.gather(
            [(len(group.sequences), group.comparisons) for group in groups],
            ties,
            settings.label_smoothing,
        )
        weight_C, target_C = batch.weight_C.double().numpy(), batch.target_C.double().numpy()
        # A made pair has no difference; it says nothing of how large one is.
        told_C = weight_C * np.repeat(
            [not is_made(group) for group in groups], [len(group.comparisons) for group in groups]
        )
        scale_F = np.sqrt(told_C @ difference_CF**2 / max(told_C.sum(), 1e-12))
        for name, scale in zip(settings.nuisance, scale_F, strict=True):
            if scale == 0:
                raise PalateError(_without_effect(name))
        initial_F = fit_comparison_model(
            difference_CF / scale_F, told_C, 1 / PRIOR_DEVIATION**2, target_C
        )
        return cls(settings.nuisance, scale_F, initial_F, len(groups))

    def differences(self, groups: Sequence[RenderedGroup]) -> Tensor:
        """Covariate(better) - covariate(worse), divided by `scale_F`; shape CF, float32."""
        return torch.from_numpy(_raw_differences(self.names, groups) / self.scale_F).float()

    def describe(self, weight_F: Tensor) -> dict[str, dict[str, float]]:
        """Weights by name: per typical difference, and per unit of the covariate."""
        values_F = weight_F.double().numpy()
        per_unit_F = values_F / self.scale_F
        return {
            "logits of nuisance terms, left out of the reward, at a typical difference": dict(
                zip(self.names, values_F.tolist(), strict=True)
            ),
            "logits of nuisance terms per unit of the covariate": dict(
                zip(self.names, per_unit_F.tolist(), strict=True)
            ),
        }


def nuisance_shift(weight_F: Tensor, difference_CF: Tensor, like: Tensor) -> Tensor:
    """What the covariates add to each comparison's logit, shape C.

    logit P(better) = reward(better) - reward(worse) + sum_f w_f (x_f(better) - x_f(worse)) / s_f:
    the covariates are part of why people chose, and not of what is rewarded. Where quality and
    covariate go together by themselves the joint maximum of the likelihood gives each its own
    part, as in any regression with a confounder (for length: the length-controlled win rates of
    Dubois et al. 2024, 2404.04475, which drop the term in the same way).
    """
    kind = torch.float64 if like.dtype == torch.float64 else torch.float32
    return difference_CF.to(kind) @ at_least_float32(weight_F).to(kind)


def nuisance_penalty(weight_F: Tensor, num_groups: int) -> Tensor:
    """sum(w^2) / (2 PRIOR_DEVIATION^2 num_groups), for each prompt.

    Minus the log density of a Gaussian prior, divided as the mean loss is: with 6,000 prompts and a
    weight of 1 it is 8e-7.
    """
    return at_least_float32(weight_F).square().sum() / (2 * PRIOR_DEVIATION**2 * num_groups)


def is_made(group: RenderedGroup) -> bool:
    """Whether an augmentation made the group: it stands for no row, and nobody voted on it."""
    return MADE in group.group.meta


def _raw_differences(names: Sequence[str], groups: Sequence[RenderedGroup]) -> np.ndarray:
    """Covariate(better) - covariate(worse) of each comparison; CF, float64."""
    rows = [_of_group(names, group) for group in groups]
    return np.concatenate(rows) if rows else np.zeros((0, len(names)))


def _of_group(names: Sequence[str], group: RenderedGroup) -> np.ndarray:
    # The label of a made pair says what the reward should be, whatever annotators go by.
    if is_made(group):
        return np.zeros((len(group.comparisons), len(names)))
    texts = [response.text for response in group.responses]
    value_KF = np.array(
        [[0.0 if n == FIRST_SHOWN else COVARIATES[n](text) for n in names] for text in texts]
    )
    difference_CF = np.array([value_KF[c.better] - value_KF[c.worse] for c in group.comparisons])
    if FIRST_SHOWN in names:
        place = names.index(FIRST_SHOWN)
        difference_CF[:, place] = [first_shown(group, c) for c in group.comparisons]
    return difference_CF


def first_shown(group: RenderedGroup, comparison: Comparison) -> float:
    """How the two answers were displayed, over the votes that compare them and say so: 1 where all
    saw `better` before `worse`, -1 where all saw it after; 0 without such votes."""
    better, worse = (group.response_index[i] for i in (comparison.better, comparison.worse))
    pair = (min(better, worse), max(better, worse))
    seen = [
        1.0 if vote.shown.index(better) < vote.shown.index(worse) else -1.0
        for vote in group.group.votes
        if vote.shown is not None and {better, worse} <= {*vote.shown} and pair in vote.outcomes()
    ]
    return sum(seen) / len(seen) if seen else 0.0


def _without_effect(name: str) -> str:
    if name == FIRST_SHOWN:
        return (
            f"objective.nuisance {name} has no effect: no vote of the training data says in which"
            " order its answers were `shown`, or each comparison's orders balance; leave it out"
        )
    return (
        f"objective.nuisance {name} has no effect: in no comparison of the training data do the two"
        " answers differ in it; leave it out"
    )

"""An objective: what it needs from the training data, its batches and its loss.

Legend: N responses, C comparisons, A annotators, G prompts, F covariates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from palate.errors import PalateError
from palate.objectives.annotators import (
    FEW_VOTES,
    Annotators,
    VoteBatch,
    centred,
    num_beside_votes,
    scale_penalty,
    scaled_bradley_terry,
)
from palate.objectives.bradley_terry import ComparisonBatch, at_least_float32, bradley_terry
from palate.objectives.checks import check_data, tie_share
from palate.objectives.hinge import hinge_losses
from palate.objectives.nuisance import Nuisance, nuisance_penalty, nuisance_shift
from palate.objectives.plackett_luce import RankingBatch, plackett_luce
from palate.objectives.rankings import num_answers, rankings_of
from palate.objectives.regression import ASSUMPTIONS, RatingBatch, RatingScale, rated, regression
from palate.objectives.regularisers import centring, sum_to_zero
from palate.objectives.settings import Kind, ObjectiveSettings
from palate.objectives.ties import (
    davidson_log_width,
    davidson_losses,
    davidson_tie_probability,
    rao_kupper_log_width,
    rao_kupper_losses,
    rao_kupper_tie_probability,
)
from palate.rendering import RenderedGroup


@dataclass(frozen=True)
class TieModel:
    """A loss with a learned width, and what the width means."""

    losses: Callable[[Tensor, Tensor, ComparisonBatch, Tensor | None], Tensor]
    log_width: Callable[[float], float]
    """From the share of ties."""
    tie_probability: Callable[[float], float]
    """From the log width, of two answers with the same reward."""


TIE_MODELS: dict[Kind, TieModel] = {
    "davidson": TieModel(davidson_losses, davidson_log_width, davidson_tie_probability),
    "rao-kupper": TieModel(rao_kupper_losses, rao_kupper_log_width, rao_kupper_tie_probability),
}
TIE_WIDTH, SCALES, OFFSET = "tie_log_width", "annotator_log_scale", "rating_offset"
NUISANCE = "nuisance_weight"
"""Names of the learned parameters."""


@dataclass(frozen=True)
class ObjectiveBatch:
    """What people said about N responses of several prompts, as tensors."""

    num_prompts: int
    num_counted: int
    """Prompts with a part in the loss of the data: in regression those with a rating, with ties
    dropped those with more than ties. What validation divides by; training divides by all."""
    share_N: Tensor
    """1 / K of its prompt for each response."""
    comparisons: ComparisonBatch
    other: VoteBatch | RankingBatch | RatingBatch | None = None
    """What the loss reads where that isn't the comparisons."""
    covariate_CF: Tensor | None = None
    """Differences of the nuisance covariates, standardised; None without nuisance terms."""

    def to(self, device: torch.device) -> "ObjectiveBatch":
        return ObjectiveBatch(
            self.num_prompts,
            self.num_counted,
            self.share_N.to(device),
            self.comparisons.to(device),
            None if self.other is None else self.other.to(device),
            None if self.covariate_CF is None else self.covariate_CF.to(device),
        )


class Objective:
    """An objective with what it needs from the training data.

    Raises PalateError, naming key and remedy, when the objective or one of its settings can have no
    effect on these data.
    """

    def __init__(self, settings: ObjectiveSettings, groups: Sequence[RenderedGroup]) -> None:
        check_data(settings, groups)
        self.settings = settings
        self.needs_mean = settings.sum_to_zero > 0
        """Whether `loss` needs the mean reward of the step."""
        self.initial: dict[str, Tensor] = {}
        """Learned parameters by name, at their first values, float32."""
        self.warnings: tuple[str, ...] = ()
        """What a person should know of this objective on these data."""
        if settings.kind in TIE_MODELS:
            # At the best width for equal rewards: it learns at the rate of the other parameters,
            # which may be too small to bring it far.
            log_width = TIE_MODELS[settings.kind].log_width(tie_share(groups))
            self.initial = {TIE_WIDTH: torch.tensor(log_width)}
        elif settings.kind == "plackett-luce":
            self.warnings = (*_ranking_warnings(groups), *_beside_warnings(groups))
        elif settings.kind == "regression":
            self.scale = RatingScale.of(groups)
            self.initial = {OFFSET: torch.zeros(())}
            self.warnings = (ASSUMPTIONS, *_rating_warnings(groups))
        elif settings.annotators == "scaled":
            self.annotators = Annotators.of(groups)
            self.initial = {SCALES: torch.zeros(len(self.annotators.num_votes))}
            self.warnings = (*_annotator_warnings(self.annotators), *_beside_warnings(groups))
        self.nuisance = Nuisance.of(settings, groups) if settings.nuisance else None
        if self.nuisance is not None:
            self.initial[NUISANCE] = torch.from_numpy(self.nuisance.initial_F).float()

    def batch(self, groups: Sequence[RenderedGroup]) -> ObjectiveBatch:
        """Rewards are in the order of the groups' sequences."""
        settings = self.settings
        sizes = [len(group.sequences) for group in groups]
        other: VoteBatch | RankingBatch | RatingBatch | None = None
        if settings.kind == "plackett-luce":
            other = RankingBatch.gather(groups, settings.ties, settings.top_k)
        elif settings.kind == "regression":
            other = RatingBatch.gather(groups, self.scale)
        elif settings.annotators == "scaled":
            other = VoteBatch.gather(
                groups, self.annotators, settings.ties, settings.label_smoothing
            )
        comparisons = ComparisonBatch.gather(
            [(size, group.comparisons) for size, group in zip(sizes, groups, strict=True)],
            None if settings.kind in TIE_MODELS else settings.ties,
            settings.label_smoothing,
        )
        share_N = torch.tensor([1 / size for size in sizes for _ in range(size)])
        size_G = torch.tensor(sizes, dtype=torch.long)
        prompt_N = torch.arange(len(groups)).repeat_interleave(size_G)
        counted = (comparisons if other is None else other).counted_responses()
        num_counted = len(set(prompt_N[counted].tolist()))
        covariate_CF = self.nuisance.differences(groups) if self.nuisance else None
        return ObjectiveBatch(len(groups), num_counted, share_N, comparisons, other, covariate_CF)

    def check_validation(self, sets: Mapping[str, Sequence[RenderedGroup]]) -> None:
        """Raises PalateError for a set that this objective can't measure or that says nothing to
        it: its loss would be 0 at every evaluation."""
        for name, groups in sets.items():
            if self.batch(groups).num_counted == 0:
                what = {"regression": "a rating"}.get(self.settings.kind, "a comparison")
                ties = " other than a tie (objective.ties drop)" * (self.settings.ties == "drop")
                raise PalateError(
                    f"validation set {name}: none of its {len(groups)} prompts has {what}{ties}"
                    f" that objective.kind {self.settings.kind} counts, so no loss can choose among"
                    " models; give it such data, or use another objective.kind"
                )

    def loss(
        self,
        reward_N: Tensor,
        batch: ObjectiveBatch,
        learned: Mapping[str, Tensor] = {},
        step_mean: Tensor | None = None,
    ) -> Tensor:
        """Sum over prompts of the prompt's loss, regularisers and prior, a float32 scalar.

        The caller divides by the number of prompts of the whole step, so any microbatches and
        processes give the same gradient. `step_mean` is the mean over the step's prompts of their
        mean reward, sum(share * reward) / prompts, without gradient; needed where `needs_mean`.
        """
        loss = self.data_loss(reward_N, batch, learned)
        if self.settings.centring:
            loss = loss + self.settings.centring * centring(reward_N, batch.comparisons)
        if self.needs_mean:
            assert step_mean is not None
            sum_of_means = (batch.share_N * at_least_float32(reward_N)).sum()
            term = sum_to_zero(sum_of_means, batch.num_prompts, step_mean)
            loss = loss + self.settings.sum_to_zero * term
        if isinstance(batch.other, VoteBatch):
            votes = self.annotators.num_all
            penalty = scale_penalty(learned[SCALES], batch.other.share_A, votes)
            loss = loss + batch.num_prompts * penalty
        if self.nuisance is not None:
            prior = nuisance_penalty(learned[NUISANCE], self.nuisance.num_groups)
            loss = loss + batch.num_prompts * prior
        return loss

    def mean_loss(
        self, reward_N: Tensor, batch: ObjectiveBatch, learned: Mapping[str, Tensor] = {}
    ) -> Tensor:
        """Mean over prompts of `loss`, where the batch is a whole step."""
        num_prompts = batch.num_prompts
        mean = (batch.share_N * reward_N.detach()).sum() / num_prompts if self.needs_mean else None
        return self.loss(reward_N, batch, learned, mean) / num_prompts

    def data_loss(
        self, reward_N: Tensor, batch: ObjectiveBatch, learned: Mapping[str, Tensor] = {}
    ) -> Tensor:
        """The loss without regularisers and prior: what validation compares. Nuisance terms are in
        it: the labels of a validation set are biased as those of training are, and without the
        terms it would choose the checkpoint whose reward has learned the bias."""
        settings, comparisons = self.settings, batch.comparisons
        shift_C = None
        if batch.covariate_CF is not None:
            shift_C = nuisance_shift(learned[NUISANCE], batch.covariate_CF, reward_N)
        match batch.other:
            case VoteBatch() as votes:
                return scaled_bradley_terry(reward_N, learned[SCALES], votes)
            case RankingBatch() as rankings:
                return plackett_luce(reward_N, rankings)
            case RatingBatch() as ratings:
                return regression(reward_N, learned[OFFSET], ratings)
        if settings.kind in TIE_MODELS:
            losses = TIE_MODELS[settings.kind].losses
            losses_C = losses(reward_N, learned[TIE_WIDTH], comparisons, shift_C)
        elif settings.kind == "hinge":
            losses_C = hinge_losses(reward_N, settings.hinge_margin, comparisons)
        else:
            return bradley_terry(reward_N, comparisons, shift_C)
        return (comparisons.weight_C * losses_C).sum()

    def mean_square_scale(self, learned: Mapping[str, Tensor]) -> Tensor:
        """Mean over training votes of the squared number that rewards are multiplied by; 1 where
        there are no annotators' scales. A penalty on squared weights times this is one on the
        weights that the votes see: without it, weights and scales could evade it together."""
        if SCALES not in learned:
            return torch.ones((), dtype=torch.float64)
        share_A = self.annotators.vote_share.to(learned[SCALES].device)
        return (share_A * (2 * centred(learned[SCALES], share_A)).exp()).sum()

    def describe(self, learned: Mapping[str, Tensor]) -> dict[str, Any]:
        """The learned parameters for people, by names in words; JSON can hold the values."""
        found: dict[str, Any] = {}
        if TIE_WIDTH in learned:
            log_width = float(learned[TIE_WIDTH])
            model = TIE_MODELS[self.settings.kind]
            found = {
                "tie width": float(learned[TIE_WIDTH].exp()),
                "probability of a tie at equal rewards": model.tie_probability(log_width),
            }
        if SCALES in learned:
            scale_A = centred(learned[SCALES], self.annotators.vote_share).exp()
            names = self.annotators.num_votes
            found = {"annotators' scales": dict(zip(names, scale_A.tolist(), strict=True))}
        if OFFSET in learned:
            found = {
                "rating of reward 0": self.scale.mean
                + float(learned[OFFSET]) * self.scale.deviation,
                "rating per unit of reward": self.scale.deviation,
            }
        if self.nuisance is not None:
            found |= self.nuisance.describe(learned[NUISANCE])
        return found


def _ranking_warnings(groups: Sequence[RenderedGroup]) -> tuple[str, ...]:
    found = [rankings_of(group) for group in groups if len(group.sequences) > 2]
    num_without = sum(not rankings for rankings in found)
    sizes = [num_answers(ranking) for rankings in found for ranking in rankings]
    num_of_two = sum(size == 2 for size in sizes)
    warnings = []
    if num_without:
        warnings.append(
            f"objective.kind plackett-luce: {num_without} of {len(found)} prompts with three"
            " answers or more have no ranking (comparisons with soft labels, gaps or cycles); each"
            " of their comparisons counts as a ranking of two"
        )
    if num_of_two:
        warnings.append(
            f"objective.kind plackett-luce: {num_of_two} of {len(sizes)} rankings of prompts with"
            " three answers or more rank two of them, which counts as in bradley-terry"
        )
    return tuple(warnings)


def _rating_warnings(groups: Sequence[RenderedGroup]) -> tuple[str, ...]:
    num_without = sum(not any(True for _ in rated(group)) for group in groups)
    if not num_without:
        return ()
    return (
        f"objective.kind regression: {num_without} of {len(groups)} prompts have no rating and no"
        " part in the loss",
    )


def _beside_warnings(groups: Sequence[RenderedGroup]) -> tuple[str, ...]:
    num_beside = num_beside_votes(groups)
    if not num_beside:
        return ()
    return (
        f"objective: {num_beside} of {len(groups)} prompts have votes beside stated comparisons;"
        " the comparisons stand and these votes are not read. read.votes.recount makes the"
        " comparisons from the votes",
    )


def _annotator_warnings(annotators: Annotators) -> tuple[str, ...]:
    few = [name for name, number in annotators.num_votes.items() if number < FEW_VOTES]
    if not few:
        return ()
    return (
        f"objective.annotators scaled: {len(few)} of {len(annotators.num_votes)} annotators voted"
        f" on fewer than {FEW_VOTES} comparisons; their scales are mostly noise",
    )

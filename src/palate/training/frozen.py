"""Train a head on a body that stays as it is: features once, then seconds.

A linear head under a smooth objective is solved by L-BFGS for a range of L2 penalties, and the
validation loss chooses among them. An MLP head, and any head under the hinge, which is not smooth,
takes AdamW steps until the validation loss falls no more.

Legend: N sequences, B distinct sequences of a shard.
"""

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from palate.errors import PalateError
from palate.model.heads import Head, MlpHead, rewards
from palate.model.reward_model import RewardModel
from palate.objectives.objective import Objective
from palate.objectives.settings import ObjectiveSettings
from palate.rendering import RenderedGroup
from palate.training.candidates import Candidate
from palate.training.features import Features, body_key, cached_features, default_cache_directory
from palate.training.linear_head import L2_GRID, solve
from palate.training.settings import Solver, TrainingSettings, refuse_unheeded
from palate.training.stepped_head import train_steps

Measure = Callable[[Sequence[RenderedGroup], Sequence[np.ndarray]], Mapping[str, float]]
"""(groups, rewards of each) -> metrics."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Groups with the features of their sequences."""

    groups: Sequence[RenderedGroup]
    features: Features

    def rewards(self, reward_of: Callable[[Tensor], Tensor]) -> list[np.ndarray]:
        """Rewards of each group, float32; `reward_of` reads pooled states."""
        with torch.inference_mode():
            pieces = [reward_of(torch.from_numpy(s_BD)).cpu() for s_BD in self.features.read()]
        reward_N = torch.cat(pieces).numpy()[self.features.distinct_N]
        ends = np.cumsum([len(group.sequences) for group in self.groups])[:-1]
        return np.split(reward_N, ends)


@dataclass(frozen=True)
class FrozenResult:
    """How the training of the head went; the head itself is in the model."""

    history: Sequence[Mapping[str, float]]
    """An entry for each penalty or epoch: step, loss (mean over the training prompts, without the
    penalty), l2 or epoch, and the metrics of the validation sets, eval_loss among them."""
    num_steps: int
    """L-BFGS iterations or AdamW steps, all together."""
    chosen: Candidate
    rewards_of: Callable[[Sequence[RenderedGroup]], list[np.ndarray]]
    """Rewards of each group under the trained head; features that the cache lacks are computed."""

    @property
    def best(self) -> str:
        """What was chosen, in words."""
        return ", ".join(f"{name} {value:g}" for name, value in self.chosen.about.items())


def train_frozen(
    model: RewardModel,
    settings: TrainingSettings,
    objective: Objective,
    train_groups: Sequence[RenderedGroup],
    validation_sets: Mapping[str, Sequence[RenderedGroup]],
    measure: Measure,
    pad_id: int,
) -> FrozenResult:
    """Train a new head alone; leave it in `model`, and what the objective learned in
    `model.learned`.

    The first validation set chooses, by its loss. Raises PalateError for attention pooling, for
    several processes, for settings without effect, and where nothing is there to choose by.
    """
    check_frozen(model, settings, objective.settings, bool(validation_sets))
    solver = choose_solver(model, objective.settings)
    objective.check_validation(validation_sets)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    cache = Path(settings.features_cache or default_cache_directory()).expanduser()
    folder = cache / body_key(model)

    def part(groups: Sequence[RenderedGroup]) -> Part:
        sequences = [group.sequences for group in groups]
        return Part(
            groups,
            cached_features(model, sequences, folder, settings.tokens_per_microbatch, pad_id),
        )

    train = part(train_groups)
    held_out = {name: part(groups) for name, groups in validation_sets.items()}
    _say_where(folder, [train, *held_out.values()])
    choice = _Choice(objective, held_out, measure)
    if solver == "lbfgs":
        penalties = [settings.head_l2] if settings.head_l2 else L2_GRID
        batch = objective.batch(train_groups)
        solve(train.features, batch, objective, penalties, choice.judge)
    else:
        train_steps(model.head, train.features, train_groups, objective, settings, choice.judge)
    best = choice.best
    assert best is not None
    if solver == "lbfgs" and len(choice.history) > 1 and best.about["l2"] == L2_GRID[0]:
        warnings.warn(_nothing_learned(objective), stacklevel=2)
    _install(model, best)

    def reward_of(state_BD: Tensor) -> Tensor:
        return model.reward_of(state_BD.to(model.device))

    return FrozenResult(
        choice.history,
        int(choice.history[-1]["step"]),
        best,
        lambda groups: part(groups).rewards(reward_of),
    )


def _nothing_learned(objective: Objective) -> str:
    found = f"the strongest penalty, head_l2 {L2_GRID[0]:g}, had the least validation loss"
    if objective.settings.annotators == "scaled":
        return (
            f"{found}: either the annotators' scales do not carry over to the validation data, or"
            " this body's features say next to nothing about these preferences. Run once with"
            " objective.annotators pooled to tell which"
        )
    return (
        f"{found}: this body's features say next to nothing about these preferences. Train the body"
        " (training.method full or lora), or choose another pooling"
    )


def choose_solver(model: RewardModel, objective: ObjectiveSettings) -> Solver:
    """L-BFGS for a linear head where the objective has a gradient everywhere, otherwise AdamW."""
    is_linear = not isinstance(model.head, MlpHead)
    return "lbfgs" if is_linear and objective.kind != "hinge" else "adamw"


def check_frozen(
    model: RewardModel,
    settings: TrainingSettings,
    objective: ObjectiveSettings,
    has_validation: bool,
) -> None:
    """Raise PalateError for what `train_frozen` refuses, before any data are read."""
    solver = choose_solver(model, objective)
    if model.pooling == "attention":
        raise PalateError(
            "body.pooling attention can't be trained with training.method frozen: its query reads"
            " the states of all tokens, and one state a text is kept; use mean, or method lora"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise PalateError(
            f"training.method frozen runs in one process, not {os.environ['WORLD_SIZE']}; start"
            " palate without torchrun or accelerate launch"
        )
    refuse_unheeded(settings, (solver,))
    if not has_validation and not settings.head_l2:
        what = "training.head_l2" if solver == "lbfgs" else "the epoch to stop at"
        remedy = ", or set training.head_l2" if solver == "lbfgs" else ""
        raise PalateError(
            f"training.method frozen chooses {what} by the validation loss, and there are no"
            f" validation data; set split.validation_share above 0{remedy}"
        )


def _say_where(folder: Path, parts: Sequence[Part]) -> None:
    num_sequences = sum(len(part.features.distinct_N) for part in parts)
    num_computed = sum(part.features.num_computed for part in parts)
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    logger.info(
        "features  %d of %d answers computed, the others known; %s holds %.1f MB",
        num_computed,
        num_sequences,
        folder,
        num_bytes / 1e6,
    )


class _Choice:
    """Judges candidates by the loss on the first validation set, and keeps the log."""

    def __init__(self, objective: Objective, sets: Mapping[str, Part], measure: Measure) -> None:
        self.objective = objective
        self.sets = sets
        self.batches = {name: objective.batch(part.groups) for name, part in sets.items()}
        self.measure = measure
        self.best: Candidate | None = None
        self.least = float("inf")
        self.history: list[dict[str, float]] = []

    def judge(self, candidate: Candidate) -> bool:
        entry = {"step": candidate.num_steps, **candidate.about, "loss": candidate.loss}
        self.history.append({**entry, **self._metrics(candidate)})
        loss = self.history[-1].get("eval_loss", 0.0)
        is_better = self.best is None or loss < self.least
        if is_better:
            self.best, self.least = candidate, loss
        logger.info("%s", "  ".join(f"{k} {v:.4g}" for k, v in self.history[-1].items()))
        return is_better

    def _metrics(self, candidate: Candidate) -> dict[str, float]:
        """Of every validation set; those of the first also without its name."""
        metrics: dict[str, float] = {}
        for number, (name, part) in enumerate(self.sets.items()):
            found = part.rewards(lambda state_BD: rewards(candidate.head, state_BD))
            reward_N = torch.from_numpy(np.concatenate(found))
            loss = self.objective.data_loss(reward_N, self.batches[name], candidate.learned)
            mean_loss = float(loss) / self.batches[name].num_counted
            measured = {**self.measure(part.groups, found), "loss": mean_loss}
            if number == 0:
                metrics |= {f"eval_{key}": value for key, value in measured.items()}
            if len(self.sets) > 1:
                metrics |= {f"eval_{name}_{key}": value for key, value in measured.items()}
        return metrics


def _install(model: RewardModel, candidate: Candidate) -> None:
    """Copy the candidate's head into the model's, whose bias, where its class has one, is zero."""
    _copy(candidate.head, model.head)
    model.learned = nn.ParameterDict(
        {name: nn.Parameter(value.float()) for name, value in candidate.learned.items()}
    )


def _copy(source: Head, target: Head) -> None:
    found = dict(source.named_parameters())
    with torch.no_grad():
        for name, parameter in target.named_parameters():
            if name in found:
                parameter.copy_(found[name])
            else:
                parameter.zero_()

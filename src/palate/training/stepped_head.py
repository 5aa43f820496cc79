"""A head on fixed features by AdamW steps, where L-BFGS does not apply.

Legend: M sequences of a step, D width of the body.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palate.artifacts.progress import progress
from palate.errors import PalateError
from palate.model.heads import Head, MlpHead, init_head, rewards
from palate.objectives.objective import NUISANCE, Objective
from palate.rendering import RenderedGroup
from palate.training.candidates import Candidate, Judge
from palate.training.defaults import LEARNED_RATE
from palate.training.features import Features, moments
from palate.training.settings import TrainingSettings

LEARNING_RATE = 3e-4
"""Where `training.learning_rate` is 0. Constant: the validation loss says when it is over."""
PATIENCE = 10
"""Epochs without a better validation loss, where `training.early_stopping_patience` is 0."""
MAX_EPOCHS = 200


def train_steps(
    head: Head,
    features: Features,
    groups: Sequence[RenderedGroup],
    objective: Objective,
    settings: TrainingSettings,
    judge: Judge,
) -> None:
    """Train a new head of the same kind as `head`, on standardised features, in float32.

    Every epoch is judged; the training ends when as many in a row as the patience allows were no
    better, or after `MAX_EPOCHS`. Raises PalateError when a loss is not finite.
    """
    mean_D, deviation_D = map(torch.from_numpy, _standardisation(head, features))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        head = copy.deepcopy(head).cpu().float()
        init_head(head, "zero")
    learned = {name: nn.Parameter(value.clone()) for name, value in objective.initial.items()}
    optimizer = _optimizer(head, learned, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    starts = np.cumsum([0, *(len(group.sequences) for group in groups)])
    num_steps = num_worse = 0
    for number in progress(range(1, MAX_EPOCHS + 1), "epochs"):
        total = 0.0
        for step in _steps(len(groups), settings.prompts_per_step, generator):
            sequences = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in step])
            state_MD = (torch.from_numpy(features.take(sequences)) - mean_D) / deviation_D
            batch = objective.batch([groups[i] for i in step])
            loss = objective.mean_loss(rewards(head, state_MD), batch, learned)
            if not loss.isfinite():
                raise PalateError(
                    f"loss is {float(loss.detach())} at step {num_steps + 1}; lower"
                    " training.learning_rate"
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach()) * len(step)
            num_steps += 1
        now = {name: value.detach().clone() for name, value in learned.items()}
        folded = _folded(head, mean_D, deviation_D)
        loss_of_epoch = total / len(groups)
        is_better = judge(Candidate(folded, now, loss_of_epoch, num_steps, {"epoch": number}))
        num_worse = 0 if is_better else num_worse + 1
        if num_worse == (settings.early_stopping_patience or PATIENCE):
            return


def _standardisation(head: Head, features: Features) -> tuple[np.ndarray, np.ndarray]:
    """What is subtracted from the features, and what they are then divided by; float32, shape D."""
    mean_D, deviation_D = moments(features)
    if not isinstance(head, MlpHead):
        mean_D = np.zeros_like(mean_D)  # it would become a bias, and a linear head has none
    return mean_D.astype(np.float32), deviation_D.astype(np.float32)


def _folded(head: Head, mean_D: Tensor, deviation_D: Tensor) -> Head:
    """The same function of the features as they are."""
    folded = copy.deepcopy(head)
    first = folded.hidden if isinstance(folded, MlpHead) else folded
    with torch.no_grad():
        first.weight.div_(deviation_D)
        if isinstance(folded, MlpHead):
            first.bias.sub_(first.weight @ mean_D)
    return folded


def _optimizer(
    head: Head, learned: Mapping[str, nn.Parameter], settings: TrainingSettings
) -> torch.optim.Optimizer:
    """AdamW; weights decay, biases and what the objective learns do not. Nuisance weights have a
    rate of their own: where length is part of quality they have to leave their start before the
    head has learned around them."""
    trained = [p for p in head.parameters() if p.requires_grad]
    at_rate = [value for name, value in learned.items() if name != NUISANCE]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [*(p for p in trained if p.ndim == 1), *at_rate], "weight_decay": 0.0},
    ]
    if NUISANCE in learned:
        groups.append({"params": [learned[NUISANCE]], "weight_decay": 0.0, "lr": LEARNED_RATE})
    return torch.optim.AdamW(groups, lr=settings.learning_rate or LEARNING_RATE)


def _steps(num_groups: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    order = torch.randperm(num_groups, generator=generator).tolist()
    for start in range(0, num_groups, size):
        yield order[start : start + size]

"""What the measurements before a run share: gradients, a borrowed model, optimiser steps."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from palate.errors import PalateError
from palate.model.reward_model import RewardModel, plan_tensors
from palate.objectives.objective import Objective
from palate.rendering import RenderedGroup
from palate.training.defaults import Role, rates_by_role, role_of, uses_bfloat16
from palate.training.loss import sum_of_means, sum_over_prompts
from palate.training.settings import TrainingSettings
from palate.training.steps import step_batch

AddGradient = Callable[[Sequence[int]], float]
"""Adds the gradient of the mean loss over these prompts to the parameters'; returns the loss."""


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How long `palate tune` looks, and where it writes."""

    lowest_rate: float = 1e-7
    """First learning rate of the range test."""
    highest_rate: float = 1.0
    """Its last one; the test stops before it when the loss diverges."""
    rate_steps: int = 100
    """Optimiser steps of the range test, each with a higher rate."""
    warm_steps: int = 20
    """Steps trained before the gradient noise is measured."""
    noise_steps: int = 20
    """Steps over which the gradient noise is averaged."""
    output: str = "runs/tune.json"
    """JSON file for the results."""

    def __post_init__(self) -> None:
        if not 0 < self.lowest_rate < self.highest_rate < math.inf:
            raise PalateError(
                f"tune.lowest_rate {self.lowest_rate} and tune.highest_rate {self.highest_rate}"
                " must be rising numbers above 0"
            )
        for name, least in (("rate_steps", 20), ("warm_steps", 0), ("noise_steps", 2)):
            if getattr(self, name) < least:
                raise PalateError(f"tune.{name} is {getattr(self, name)}, must be {least} or more")


def prompt_gradients(
    model: RewardModel,
    groups: Sequence[RenderedGroup],
    settings: TrainingSettings,
    objective: Objective,
    pad_id: int,
) -> AddGradient:
    """The gradient that training would compute on a step of these prompts."""

    def cast() -> torch.autocast:
        return torch.autocast(model.device.type, torch.bfloat16, enabled=uses_bfloat16(settings))

    def add_gradient(indices: Sequence[int]) -> float:
        members = [groups[index] for index in indices]
        packing = model.packing(settings.tokens_per_microbatch, pad_id)
        step = step_batch(members, len(members), packing, objective)
        step_mean = None
        if objective.needs_mean:
            with cast():
                step_mean = sum_of_means(model, step.microbatches, model.device) / len(members)
        total = 0.0
        for plan, batch in step.microbatches:
            with cast():
                output = model(**plan_tensors(plan, model.device))
                loss = sum_over_prompts(objective, output, batch.to(model.device), step_mean)
                loss = loss / len(members)
            torch.autograd.backward(loss)
            total += float(loss.detach())
        return total

    return add_gradient


@contextlib.contextmanager
def borrowed(model: nn.Module) -> Iterator[None]:
    """Train the model inside; after it weights, buffers, mode and random state are as before, and
    no gradient is left. Costs a second copy of what is trained."""
    kept = [
        (tensor, tensor.detach().clone())
        for tensor in (*trained_parameters(model), *model.buffers())
    ]
    was_training = model.training
    devices = {tensor.device for tensor, _ in kept if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=[device.index for device in devices]):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, before in kept:
                    tensor.copy_(before)
            model.zero_grad(set_to_none=True)
            model.train(was_training)


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def optimiser_for(model: nn.Module, training: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW whose groups are those of training; `take_step` sets their rates."""
    prefixes = model.head_prefixes if isinstance(model, RewardModel) else ()
    groups: dict[Role, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(role_of(name, prefixes), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": members, "role": role} for role, members in groups.items()],
        lr=0.0,
        weight_decay=0.0,
    )


def take_step(
    model: nn.Module, optimiser: torch.optim.Optimizer, training: TrainingSettings, rate: float
) -> bool:
    """One clipped step at this rate with the gradients that are there; False, and no step, when
    they are not finite. The gradients are then gone."""
    norm = nn.utils.clip_grad_norm_(trained_parameters(model), training.max_grad_norm)
    if not bool(torch.isfinite(norm)):
        return False
    rates = rates_by_role(replace(training, learning_rate=rate))
    for group in optimiser.param_groups:
        group["lr"] = rates[group["role"]]
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return True

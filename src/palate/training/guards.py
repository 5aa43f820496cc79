"""Guards of a training run: before its first step, at its first loss, and at every step.

docs/guards.md lists them, with thresholds and what was measured.

Legend: N sequences of a microbatch, C comparisons.
"""

import math
import warnings
from collections import deque
from collections.abc import Sequence
from itertools import islice
from statistics import mean, median
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from palate.errors import PalateError
from palate.model.guards import (
    check_head,
    check_padding,
    check_repeats,
    last_layer,
    why_not_rendered,
)
from palate.model.reward_model import Output, RewardModel
from palate.objectives.bradley_terry import reward_difference
from palate.objectives.objective import Objective, ObjectiveBatch
from palate.rendering import RenderedGroup, Renderer
from palate.rendering.group_ids import text_of, tokenise
from palate.training.loss import sum_over_prompts
from palate.training.settings import GuardSettings, TrainingSettings

NUM_RENDERED_AGAIN = 4
"""Training prompts whose ids are made again before the first step."""
FIRST_LOSS_TOLERANCE = 1e-3
"""Of a head of zeros, relative to the expected loss: all its rewards are 0."""
FIRST_LOSS_BAND = (0.5, 3.0)
"""Of a new head that isn't zero, as a multiple of the expected loss."""
WINDOW = 50
"""Steps whose median a step is compared with."""
LEAST_HISTORY = 10
PATIENCE = 3
"""Steps in a row."""
EXPLOSION_FACTOR = 10.0
MARGIN_LIMIT = 16.0
"""Root mean square of the margins of a step, in logits: the odds are ten million to one."""
LEAST_MARGIN = 5.0
"""Below it no growth of the margins is an explosion: they start at 0."""
REWARD_LIMIT = 100.0
DEAD_STEPS = 10
DEAD_SPREAD = 1e-6
"""Standard deviation of a step's rewards, relative to the largest above 1: float32's rounding."""
REMEDY = (
    "Lower training.learning_rate ({rate:g}), train for fewer epochs, or hold rewards together"
    " with objective.centring 0.01 or objective.label_smoothing"
)


def check_before_training(
    name: str, model: RewardModel, settings: GuardSettings, pad_id: int
) -> None:
    """The guards of `palate.model.guards` that are switched on. Raises PalateError."""
    if settings.head:
        check_head(name, model)
    with torch.compiler.set_stance("force_eager"):
        if settings.repeat:
            check_repeats(name, model, pad_id)
        if settings.padding:
            check_padding(name, model, pad_id)


def check_rendered(groups: Sequence[RenderedGroup], renderer: Renderer) -> None:
    """The first prompts to train on: the ids are those that the renderer makes now, whose template
    the checkpoint will carry, with one start token and the end of the turn.

    Raises PalateError, naming the row.
    """
    for group in islice(groups, NUM_RENDERED_AGAIN):
        again = tokenise(text_of(group.group), renderer)
        where = f"{group.group.file}:{group.group.line}"
        for ids, index in zip(group.sequences, group.response_index, strict=True):
            if index >= len(again.sequences) or ids != again.sequences[index]:
                raise PalateError(
                    f"{where}: response {index} was rendered to other token ids than the"
                    " checkpoint's template gives now, so it would be scored otherwise than it was"
                    " trained. Empty token_cache, or render with the template that is saved"
                )
            is_whole = group.group.responses[index].finished and not again.num_over[index]
            reason = why_not_rendered(ids, renderer, is_whole)
            if reason is not None:
                raise PalateError(f"{where}: {reason}")


def refuse_non_finite(value: Any, what: str, step: int) -> None:
    """Raises PalateError before the optimiser steps: after it the weights, and all checkpoints to
    come, are lost."""
    number = float(value.detach() if isinstance(value, Tensor) else value)
    if not math.isfinite(number):
        raise PalateError(
            f"{what} is {number} at step {step}; the weights are still those of the step before."
            " Lower training.learning_rate, or use precision float32"
        )


def first_loss_fault(loss: float, expected: float, is_zero: bool) -> str | None:
    """What is wrong with a first loss, naming both numbers; None when nothing is.

    `expected` is the objective's loss when all rewards are 0, ln 2 for Bradley-Terry. A head of
    zeros has it exactly, any other new head within `FIRST_LOSS_BAND`.
    """
    if is_zero:
        if abs(loss - expected) <= FIRST_LOSS_TOLERANCE * max(1.0, expected):
            return None
        return (
            f"the first loss is {loss:.4f}, and with a head of zeros it must be {expected:.4f}: the"
            " loss that is trained is not the objective's"
        )
    low, high = (factor * expected for factor in FIRST_LOSS_BAND)
    if low <= loss <= high:
        return None
    return (
        f"the first loss is {loss:.4f}; with equal rewards it is {expected:.4f}, and a new head"
        f" should begin between {low:.4f} and {high:.4f}. The body's states or the head are out of"
        " scale; set body.head_init zero"
    )


def is_spike(values: Sequence[float], floor: float = 0.0) -> bool:
    """Whether the last `PATIENCE` values are all above `EXPLOSION_FACTOR` times the median of the
    `WINDOW` before them, and above the floor."""
    before = list(values)[-WINDOW - PATIENCE : -PATIENCE]
    if len(before) < LEAST_HISTORY:
        return False
    limit = max(floor, EXPLOSION_FACTOR * median(before))
    return all(value > limit for value in list(values)[-PATIENCE:])


def explosion(
    norms: Sequence[float],
    margins: Sequence[float],
    rewards: Sequence[float],
    max_grad_norm: float = 1.0,
) -> str:
    """What explodes, in words; empty when nothing does.

    Of each step, the last one last: the gradient's norm before clipping (one that isn't clipped is
    no explosion), the root mean square of the margins beyond those that the data ask for, the
    largest absolute reward.
    """
    if is_spike(norms, max_grad_norm):
        return f"the gradient's norm is {norms[-1]:.3g}, over ten times its median before"
    if is_spike(margins, LEAST_MARGIN):
        return f"margins are {margins[-1]:.1f} logits, over ten times their median before"
    if len(margins) < PATIENCE:
        return ""
    margin = math.sqrt(mean(value**2 for value in list(margins)[-PATIENCE:]))
    if margin > MARGIN_LIMIT:
        return f"margins are {margin:.1f} logits (root mean square, limit {MARGIN_LIMIT:g})"
    if min(list(rewards)[-PATIENCE:]) > REWARD_LIMIT:
        return f"a reward is {rewards[-1]:.0f} from 0 (limit {REWARD_LIMIT:g})"
    return ""


class StepGuard(TrainerCallback):  # type: ignore[misc]
    """Looks at every step before its optimiser moves the weights; warns once of each fault.

    The trainer tells what it has at hand anyway: rewards, loss, the gradient's norm. Nothing is
    kept between checkpoints: after a resume the medians begin anew.
    """

    def __init__(self, settings: TrainingSettings, objective: Objective, is_fresh: bool) -> None:
        self.settings = settings
        self.guards = settings.guards
        self.objective = objective
        self.expects_first_loss = is_fresh and self.guards.first_loss
        """Until the first step is over; a head that is trained already has no expected loss."""
        self.norms: deque[float] = deque(maxlen=WINDOW + PATIENCE)
        self.margins: deque[float] = deque(maxlen=WINDOW + PATIENCE)
        self.largest: deque[float] = deque(maxlen=PATIENCE)
        self.num_steps = self.num_equal = self.num_idle = 0
        self.first_head: Tensor | None = None
        self.warned: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """A new step."""
        self.rewards: list[Tensor] = []
        self.beyond: list[Tensor] = []
        self.expected = self.loss = torch.zeros(())
        self.num_prompts = 0
        self.gradient_norm = 0.0

    def saw(self, output: Output, batch: ObjectiveBatch) -> None:
        """A microbatch's rewards."""
        with torch.no_grad():
            reward_N = output.reward_N.detach().float()
            self.rewards.append(reward_N)
            asked = self.objective.settings
            floor = asked.hinge_margin if asked.kind == "hinge" else 0.0
            comparisons = batch.comparisons
            margin_C = reward_difference(reward_N, comparisons).abs()
            self.beyond.append((margin_C - comparisons.margin_C - floor).relu())
            if self.expects_first_loss:
                equal = output._replace(reward_N=torch.zeros_like(reward_N))
                zero = torch.zeros((), device=reward_N.device)
                self.expected = self.expected.to(reward_N.device) + sum_over_prompts(
                    self.objective, equal, batch, zero if self.objective.needs_mean else None
                )
                self.num_prompts += batch.num_prompts

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step:
            self.expects_first_loss = False
        self.first_head = _head_weight(kwargs["model"])

    def on_pre_optimizer_step(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        step = state.global_step + 1
        self.num_steps += 1
        if self.expects_first_loss:
            self._judge_first_loss(kwargs["model"])
            self.expects_first_loss = False
        if self.rewards:
            reward_N = torch.cat(self.rewards)
            beyond_C = torch.cat(self.beyond)
            self.norms.append(float(self.gradient_norm))
            self.margins.append(float(beyond_C.square().mean().sqrt()) if len(beyond_C) else 0.0)
            self.largest.append(float(reward_N.abs().max()))
            if self.guards.explosion:
                self._judge_explosion(step)
            if self.guards.dead_head:
                spread = float(reward_N.std()) if len(reward_N) > 1 else math.inf
                self._judge_head(step, state.max_steps, spread, kwargs["model"])

    def _judge_first_loss(self, model: RewardModel) -> None:
        weight = _head_weight(model)
        is_zero = weight is not None and not weight.any()
        here = torch.stack([self.loss.detach().cpu(), self.expected.cpu()]).double()
        sums = torch.cat([here, torch.tensor([self.num_prompts, 1], dtype=torch.float64)])
        # Each process's loss is its share times the number of processes, which averages them.
        loss, expected, num_prompts, num_processes = reduce(
            sums.float().to(model.device), "sum"
        ).tolist()
        if not num_prompts:
            return
        fault = first_loss_fault(loss / num_processes, expected / num_prompts, is_zero)
        if fault is not None and is_zero:
            raise PalateError(f"step 1: {fault}")
        self._warn("first loss", fault)

    def _judge_explosion(self, step: int) -> None:
        found = explosion(self.norms, self.margins, self.largest, self.settings.max_grad_norm)
        if not found:
            return
        message = (
            f"step {step}: training may be exploding: over the last {PATIENCE} steps {found}."
            f" {REMEDY.format(rate=self.settings.learning_rate)}"
        )
        if self.guards.on_explosion == "stop":
            raise PalateError(f"{message}. Stopped (training.guards.on_explosion stop)")
        self._warn("explosion", message)

    def _judge_head(self, step: int, max_steps: int, spread: float, model: RewardModel) -> None:
        patience = min(DEAD_STEPS, max(PATIENCE, max_steps))
        is_equal = spread < DEAD_SPREAD * max(1.0, self.largest[-1])
        self.num_equal = self.num_equal + 1 if is_equal else 0
        if self.num_equal == patience:
            self._warn(
                "equal rewards",
                f"step {step}: all rewards have been equal for {patience} steps. A learning rate"
                f" that is too high ({self.settings.learning_rate:g}) may have made the body lose"
                " the difference between texts: lower it and start again. Or the rate is 0, the"
                " head frozen, or what is pooled is the same in every text: look at their ends",
            )
        gradient = last_layer(model.head).weight.grad
        has_none = gradient is not None and gradient.numel() and not _local(gradient).any()
        self.num_idle = self.num_idle + 1 if has_none else 0
        if self.num_idle == PATIENCE:
            self._warn(
                "head gradient",
                f"step {step}: the head's gradient has been exactly 0 for {PATIENCE} steps: the"
                " rewards of compared answers are no function of it, or every margin is so large"
                " that the loss has no slope. Look at the margins, and at what is pooled",
            )
        if self.num_steps == patience + 1 and self.first_head is not None:
            now = _head_weight(model)
            if now is not None and torch.equal(now, self.first_head):
                self._warn(
                    "head weights",
                    f"step {step}: the head's weights have not moved in {patience} steps."
                    f" training.learning_rate is {self.settings.learning_rate:g}, times"
                    f" {self.settings.head_learning_rate_factor:g} for the head; the rate may be 0"
                    " or too small for the weights' dtype, or the head frozen",
                )
            self.first_head = None

    def _warn(self, kind: str, message: str | None) -> None:
        if message is not None and kind not in self.warned:
            self.warned.add(kind)
            warnings.warn(message, stacklevel=2)


def _head_weight(model: RewardModel) -> Tensor | None:
    """A copy of this process's part of the head's last weight; None where it holds nothing of it,
    as in engines that shard."""
    weight = last_layer(model.head).weight
    part = _local(weight.detach())
    return part.clone() if part.numel() else None


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; others as they are."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local

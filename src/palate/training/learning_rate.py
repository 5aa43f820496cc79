"""A learning-rate range test."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from palate.artifacts.progress import progress
from palate.errors import PalateError
from palate.training.settings import TrainingSettings
from palate.training.tuning import AddGradient, TuneSettings, borrowed, optimiser_for, take_step

DIVERGED = 4.0
"""A loss above so many times its lowest value, and above its first, has diverged."""
MIN_FALL = 3.0
"""Standard errors by which the loss must fall; the lowest of many means falls by two on its own."""


@dataclass(frozen=True)
class RateTest:
    """How the loss answers to a rising learning rate."""

    first_loss: float
    """Before any step."""
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """On the next batch after the step with each rate."""
    smoothed: tuple[float, ...]
    diverged_at: float | None
    """The rate after which the test was stopped; None when the highest one went well."""
    suggested: float | None
    """None when no rate lowered the loss by more than the noise of its batches."""


def find_learning_rate(
    model: nn.Module,
    add_gradient: AddGradient,
    num_prompts: int,
    training: TrainingSettings,
    settings: TuneSettings,
) -> RateTest:
    """A learning-rate range test (Smith 2015, 1506.01186): the rate grows geometrically from step
    to step, from the lowest to the highest one or until the loss diverges.

    AdamW as in training, the head at its multiple of the rate, gradients clipped, no weight decay.
    The suggestion is one tenth of the rate with the lowest smoothed loss, as fastai has it: at the
    minimum itself steps begin to overshoot. Smoothing is a mean over 5 % of the steps to either
    side, so that it does not lag. Raises PalateError when the first gradient is not finite.
    """
    steps = settings.rate_steps
    rates = np.geomspace(settings.lowest_rate, settings.highest_rate, steps).tolist()
    batches = _batches(num_prompts, training.prompts_per_step, training.seed)
    losses: list[float] = []
    diverged_at: float | None = None
    with borrowed(model):
        model.train()
        optimiser = optimiser_for(model, training)
        first_loss = add_gradient(next(batches))
        for rate in progress(rates, "learning rates"):
            moved = take_step(model, optimiser, training, rate)
            loss = add_gradient(next(batches)) if moved else math.nan
            if math.isfinite(loss):
                losses.append(loss)
            if not math.isfinite(loss) or _has_diverged(losses, first_loss, steps):
                diverged_at = rate
                break
    if not losses:
        raise PalateError(
            f"loss or gradient is not finite at the first step (first loss {first_loss}): no"
            " learning rate mends that; try precision float32"
        )
    tested = rates[: len(losses)]
    smoothed = _smoothed(losses, steps)
    return RateTest(
        first_loss,
        tuple(tested),
        tuple(losses),
        tuple(smoothed),
        diverged_at,
        _suggested_rate(tested, losses, smoothed, steps),
    )


def _has_diverged(losses: Sequence[float], first_loss: float, steps: int) -> bool:
    width = _width(steps)
    ends = range(1, len(losses) + 1)
    trailing = [float(np.mean(losses[max(0, end - width) : end])) for end in ends]
    return trailing[-1] > max(DIVERGED * min(trailing), first_loss)


def _width(steps: int) -> int:
    return max(2, steps // 20)


def _smoothed(losses: Sequence[float], steps: int) -> list[float]:
    width = _width(steps)
    return [
        float(np.mean(losses[max(0, place - width) : place + width + 1]))
        for place in range(len(losses))
    ]


def _suggested_rate(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], steps: int
) -> float | None:
    """One tenth of the rate with the lowest smoothed loss, if that is below the mean loss of the
    first fifth of the steps, in which next to nothing is learned, by more than noise."""
    width, num_at_rest = _width(steps), steps // 5
    # Means over fewer losses, at the ends, are noisier: one of them would often be the lowest.
    lowest = min(range(width, len(losses) - width), key=smoothed.__getitem__, default=0)
    if lowest <= num_at_rest:
        return None
    noise = float(np.std(np.subtract(losses, smoothed)[:lowest]))
    error = noise * math.sqrt(1 / (2 * width + 1) + 1 / num_at_rest)
    fell = float(np.mean(losses[:num_at_rest])) - smoothed[lowest]
    return rates[lowest] / 10 if fell > MIN_FALL * error else None


def _batches(num_prompts: int, prompts_per_step: int, seed: int) -> Iterator[list[int]]:
    """Prompts of one step after the other, epoch after epoch, without end."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(num_prompts).tolist()
        for start in range(0, num_prompts, prompts_per_step):
            yield order[start : start + prompts_per_step]

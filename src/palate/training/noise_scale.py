"""The gradient noise scale: how many prompts a step is worth.

In comments and equations: B prompts of a batch, G the mean gradient, S the covariance of one
prompt's gradient.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from palate.artifacts.progress import progress
from palate.errors import PalateError
from palate.statistics import Estimate
from palate.training.settings import TrainingSettings
from palate.training.tuning import (
    AddGradient,
    TuneSettings,
    borrowed,
    optimiser_for,
    take_step,
    trained_parameters,
)

MAX_PARTS = 8
"""Small batches into which a step is divided, at most."""
MIN_STEPS_AN_EPOCH = 10
NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class NoiseScale:
    """The simple noise scale tr(S) / |G|^2 (McCandlish et al. 2018, 1812.06162, section 2.2): the
    number of prompts at which noise and signal of a step's gradient are equal."""

    prompts: Estimate
    """Value and interval in prompts; `n` counts steps. Infinite where |G|^2 is not told from 0."""
    signal: float
    """Estimate of |G|^2."""
    noise: float
    """Estimate of tr(S), for one prompt."""
    suggested: int | None
    """The nearest power of two, as far as an epoch keeps `MIN_STEPS_AN_EPOCH` steps; None where the
    noise scale is infinite."""


def measure_noise(
    model: nn.Module,
    add_gradient: AddGradient,
    num_prompts: int,
    training: TrainingSettings,
    settings: TuneSettings,
) -> NoiseScale:
    """The gradient noise scale while training at `training.learning_rate`; 0 = at fixed weights.

    Each step draws its prompts with replacement, divides them into small batches, and compares the
    squared norm of their gradients with that of the whole step's, as in appendix A.1 of the paper.
    Signal and noise are averaged over the steps before they are divided; the interval (95 %)
    resamples steps. Raises PalateError where a step has too few prompts to divide.
    """
    per_step = training.prompts_per_step
    divisors = (parts for parts in range(MAX_PARTS, 1, -1) if per_step % parts == 0)
    num_parts = next(divisors, min(MAX_PARTS, per_step))
    if num_parts < 2:
        raise PalateError(
            f"training.prompts_per_step is {per_step}: the gradient noise needs 2 or more"
        )
    small = per_step // num_parts
    generator = np.random.default_rng(training.seed)
    found: list[tuple[float, float]] = []
    with borrowed(model):
        model.train()
        optimiser = optimiser_for(model, training)
        steps = range(settings.warm_steps + settings.noise_steps)
        for number in progress(steps, "gradient noise"):
            drawn = generator.integers(num_prompts, size=(num_parts, small)).tolist()
            norms = _norms(model, add_gradient, drawn)
            if number >= settings.warm_steps:
                found.append(signal_and_noise(*norms, small, small * num_parts))
            if not take_step(model, optimiser, training, training.learning_rate):
                raise PalateError(
                    f"training diverges at learning rate {training.learning_rate:g}; name a lower"
                    " training.learning_rate"
                )
    return _noise_scale(np.array(found), num_prompts)


def signal_and_noise(
    small_square: float, large_square: float, small: int, large: int
) -> tuple[float, float]:
    """Unbiased estimates of |G|^2 and tr(S) from squared norms of gradients over `small` and
    `large` prompts.

    E|G_B|^2 = |G|^2 + tr(S) / B, at two sizes, solved for both (1812.06162, equation A.2). Either
    can come out negative.
    """
    signal = (large * large_square - small * small_square) / (large - small)
    noise = (small_square - large_square) / (1 / small - 1 / large)
    return signal, noise


def _norms(
    model: nn.Module, add_gradient: AddGradient, parts: Sequence[Sequence[int]]
) -> tuple[float, float]:
    """(mean squared norm of the parts' gradients, that of their mean); the mean is left in the
    parameters."""
    trained = trained_parameters(model)
    mean = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in trained]
    squares = []
    for part in parts:
        model.zero_grad(set_to_none=True)
        add_gradient(part)
        gradients = [p.grad.float() if p.grad is not None else None for p in trained]
        squares.append(sum(float(g.square().sum()) for g in gradients if g is not None))
        for total, gradient in zip(mean, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient, alpha=1 / len(parts))
    for parameter, gradient in zip(trained, mean, strict=True):
        parameter.grad = gradient.to(parameter.dtype)
    return float(np.mean(squares)), sum(float(g.square().sum()) for g in mean)


def _noise_scale(found: np.ndarray, num_prompts: int) -> NoiseScale:
    """`found` holds (signal, noise) of each step."""

    def ratio(steps: np.ndarray) -> float:
        signal, noise = steps.mean(axis=0)
        return max(0.0, float(noise)) / float(signal) if signal > 0 else math.inf

    generator = np.random.default_rng(0)
    drawn = generator.integers(len(found), size=(NUM_RESAMPLES, len(found)))
    ratios = [ratio(found[places]) for places in drawn]
    # Between two infinite values the usual interpolation is not a number.
    low = float(np.quantile(ratios, 0.025, method="lower"))
    high = float(np.quantile(ratios, 0.975, method="higher"))
    value = ratio(found)
    signal, noise = found.mean(axis=0)
    return NoiseScale(
        Estimate(value, low, high, len(found)),
        float(signal),
        float(noise),
        suggested_prompts(value, num_prompts),
    )


def suggested_prompts(noise_scale: float, num_prompts: int) -> int | None:
    """The power of two nearest to the noise scale, by ratio, of which an epoch over `num_prompts`
    has `MIN_STEPS_AN_EPOCH` steps or more."""
    if not math.isfinite(noise_scale):
        return None
    most = max(1, num_prompts // MIN_STEPS_AN_EPOCH)
    exponent = round(math.log2(max(1.0, noise_scale)))
    return 1 << min(exponent, most.bit_length() - 1)

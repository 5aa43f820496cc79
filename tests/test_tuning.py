"""Learning-rate range test and gradient noise scale: closed forms, and a model left as it was."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from palate.cli.main import main
from palate.errors import PalateError
from palate.objectives import ObjectiveSettings
from palate.objectives.objective import Objective
from palate.preferences import Comparison
from palate.training.learning_rate import find_learning_rate
from palate.training.noise_scale import measure_noise, signal_and_noise, suggested_prompts
from palate.training.trainer import RewardTrainer
from palate.training.tuning import (
    AddGradient,
    TuneSettings,
    borrowed,
    optimiser_for,
    prompt_gradients,
    take_step,
)
from tests.runs import (
    load_tiny,
    pair_groups,
    quick_training,
    ranked_group,
    rendered,
    tiny_renderer,
    tiny_run,
    tiny_trainer,
    weights,
)

PAD = tiny_renderer().pad_id


def linear_toy(slope_GD: np.ndarray) -> tuple[nn.Module, AddGradient]:
    """Loss of prompt g at weights w: slope_g · w, so its gradient is slope_g wherever w is."""
    model = nn.Linear(slope_GD.shape[1], 1, bias=False)
    slope = torch.tensor(slope_GD, dtype=torch.float32)

    def add_gradient(indices: Sequence[int]) -> float:
        loss = model(slope[list(indices)]).mean()
        loss.backward()
        return float(loss.detach())

    return model, add_gradient


# Gradient noise


def test_signal_and_noise_are_unbiased() -> None:
    """Two prompts with gradients (3, 1) and (1, -1): G = (2, 0), |G|^2 = 4, tr(S) = (2 + 2)/2 = 2.
    Of a step of two prompts drawn with replacement the four draws are equally likely. Mean squared
    norm of the single gradients, and squared norm of the mean: (1,1) 10, 10; (2,2) 2, 2; (1,2) and
    (2,1) 6, 4. Signal 2 large - small: 10, 2, 2, 2, mean 4. Noise (small - large)/(1 - 1/2): 0, 0,
    4, 4, mean 2."""
    draws = [(10, 10), (2, 2), (6, 4), (6, 4)]
    found = [signal_and_noise(small, large, 1, 2) for small, large in draws]
    assert found == [(10, 0), (2, 0), (2, 4), (2, 4)]
    assert np.mean(found, axis=0).tolist() == [4, 2]


@pytest.mark.parametrize(("mean", "deviation"), [(1.0, 1.0), (0.2, 1.0), (1.0, 0.2)])
def test_the_noise_scale_of_a_linear_loss_is_found(mean: float, deviation: float) -> None:
    """Gradients that don't depend on the weights: G is their mean over the prompts, tr(S) the sum
    of their variances, both known exactly."""
    slope_GD = np.random.default_rng(1).normal(mean, deviation, size=(300, 20))
    signal = float((slope_GD.mean(axis=0) ** 2).sum())
    noise = float(slope_GD.var(axis=0).sum())
    model, add_gradient = linear_toy(slope_GD)
    found = measure_noise(
        model,
        add_gradient,
        len(slope_GD),
        quick_training(prompts_per_step=32, max_grad_norm=1e9),
        TuneSettings(warm_steps=3, noise_steps=300),
    )
    assert found.prompts.low < noise / signal < found.prompts.high
    assert found.prompts.value == pytest.approx(noise / signal, rel=0.1)
    assert found.signal == pytest.approx(signal, rel=0.1)
    assert found.noise == pytest.approx(noise, rel=0.1)
    assert found.prompts.n == 300


def test_the_interval_of_the_noise_scale_holds_what_it_promises() -> None:
    """Of 60 intervals of 95 % over 40 steps each, 57 should hold the truth; 50 must (the bootstrap
    is a little too narrow on few steps)."""
    slope_GD = np.random.default_rng(2).normal(0.5, 1.0, size=(200, 10))
    truth = slope_GD.var(axis=0).sum() / (slope_GD.mean(axis=0) ** 2).sum()
    model, add_gradient = linear_toy(slope_GD)
    settings = TuneSettings(warm_steps=0, noise_steps=40)
    held = 0
    for seed in range(60):
        training = quick_training(prompts_per_step=16, seed=seed)
        scale = measure_noise(model, add_gradient, 200, training, settings).prompts
        held += scale.low <= truth <= scale.high
    assert held >= 50


def test_gradients_without_a_common_direction_have_no_finite_noise_scale() -> None:
    """Every slope with its opposite: G is exactly 0, and no number of prompts is suggested."""
    half_GD = np.random.default_rng(3).normal(size=(50, 10))
    model, add_gradient = linear_toy(np.concatenate([half_GD, -half_GD]))
    found = measure_noise(
        model, add_gradient, 100, quick_training(prompts_per_step=8), TuneSettings(warm_steps=0)
    )
    assert found.prompts.high == math.inf
    assert found.signal == pytest.approx(0, abs=0.1 * found.noise)


def test_equal_gradients_have_no_noise() -> None:
    model, add_gradient = linear_toy(np.ones((20, 4)))
    found = measure_noise(
        model, add_gradient, 20, quick_training(prompts_per_step=6), TuneSettings(warm_steps=0)
    )
    assert found.prompts.value == pytest.approx(0, abs=1e-6)
    assert found.suggested == 1


@pytest.mark.parametrize(
    ("noise_scale", "num_prompts", "expected"),
    [
        (0.0, 1000, 1),
        (5.0, 1000, 4),  # log2 5 = 2.32
        (6.0, 1000, 8),  # log2 6 = 2.58
        (1e9, 1000, 64),  # ten steps an epoch are 100 prompts at most
        (1e9, 5, 1),
        (math.inf, 1000, None),
    ],
)
def test_prompts_are_suggested_as_a_power_of_two(
    noise_scale: float, num_prompts: int, expected: int | None
) -> None:
    assert suggested_prompts(noise_scale, num_prompts) == expected


def test_a_step_of_one_prompt_can_not_be_divided() -> None:
    model, add_gradient = linear_toy(np.ones((4, 2)))
    with pytest.raises(PalateError, match=r"prompts_per_step is 1: .* needs 2 or more"):
        measure_noise(model, add_gradient, 4, quick_training(prompts_per_step=1), TuneSettings())


# Learning rate


def test_the_suggestion_is_a_tenth_of_the_rate_with_the_lowest_mean_loss() -> None:
    """Losses by step k: 0.7 up to 40, down by 0.02 a step to 0.3 at 60, up by 0.1 a step after it.

    The mean over k - 5 to k + 5 falls while loss(k + 6) < loss(k - 5): 0.4 < 0.5 at k = 55, but
    0.5 > 0.48 at k = 56, where it is lowest. The lowest mean of five losses in a row is 0.34 (56 to
    60), so the test stops where such a mean exceeds 1.36: 0.3 + 0.1 (k - 62) does at k = 73."""
    model = nn.Linear(1, 1)
    falling = [0.7] * 40 + [0.7 - 0.02 * k for k in range(20)]
    losses = iter([0.7, *falling, *(0.3 + 0.1 * k for k in range(40))])

    def add_gradient(_: Sequence[int]) -> float:
        (model.weight.sum() * 0.0 + model.bias.sum() * 0.0).backward()
        return next(losses)

    settings = TuneSettings(lowest_rate=1e-6, highest_rate=1.0)
    found = find_learning_rate(model, add_gradient, 64, quick_training(), settings)
    assert found.first_loss == 0.7
    assert found.suggested == pytest.approx(1e-6 * 1e6 ** (56 / 99) / 10)
    assert found.diverged_at == pytest.approx(1e-6 * 1e6 ** (73 / 99))
    assert len(found.rates) == len(found.losses) == len(found.smoothed) == 74
    assert min(found.smoothed) == found.smoothed[56] == pytest.approx(4.3 / 11)


def test_a_loss_that_no_rate_lowers_suggests_nothing() -> None:
    """The gradient is zero, the losses are noise: their lowest mean must not be taken for a
    success. Over 20 seeds one may be."""
    model = nn.Linear(3, 1)
    num_suggested = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)

        def add_gradient(_: Sequence[int], generator: np.random.Generator = generator) -> float:
            (model.weight.sum() * 0.0 + model.bias.sum() * 0.0).backward()
            return float(generator.normal(0.7, 0.05))

        test = find_learning_rate(model, add_gradient, 64, quick_training(), TuneSettings())
        assert test.diverged_at is None
        assert len(test.losses) == 100
        num_suggested += test.suggested is not None
    assert num_suggested <= 1


def test_a_gradient_that_is_not_finite_from_the_start_is_told() -> None:
    model = nn.Linear(1, 1)

    def add_gradient(_: Sequence[int]) -> float:
        (model.weight.sum() * math.inf).backward()
        return math.inf

    with pytest.raises(PalateError, match="not finite at the first step"):
        find_learning_rate(model, add_gradient, 4, quick_training(), TuneSettings())


def trained_loss(model: Any, add_gradient: AddGradient, rate: float, num_prompts: int) -> float:
    """Loss over all prompts after 25 steps at a rate."""
    training = quick_training()
    with borrowed(model):
        model.train()
        optimiser = optimiser_for(model, training)
        for step in range(25):
            add_gradient([(4 * step + k) % num_prompts for k in range(4)])
            take_step(model, optimiser, training, rate)
        return add_gradient(range(num_prompts))


def test_the_suggested_rate_trains_a_model_and_the_diverging_one_does_not(tmp_path: Path) -> None:
    groups = pair_groups(32)
    model = load_tiny(tmp_path).model
    training = quick_training()
    objective = Objective(ObjectiveSettings(), groups)
    add_gradient = prompt_gradients(model, groups, training, objective, PAD)
    found = find_learning_rate(model, add_gradient, 32, training, TuneSettings(highest_rate=10))
    assert found.suggested is not None
    assert found.diverged_at is not None
    suggested = trained_loss(model, add_gradient, found.suggested, 32)
    assert suggested < found.first_loss / 2
    # Where a diverging run stands after 25 steps is chance; that it learned as much is not.
    assert trained_loss(model, add_gradient, found.diverged_at, 32) > 1.5 * suggested


# Gradients, and the model given back


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize(
    "objective", [ObjectiveSettings(), ObjectiveSettings(kind="davidson", sum_to_zero=0.1)]
)
def test_the_gradient_is_that_of_a_training_step(
    tmp_path: Path, kind: str, objective: ObjectiveSettings
) -> None:
    groups = rendered([ranked_group(number, 2 + number % 3) for number in range(8)])
    if objective.kind == "davidson":
        tied = (Comparison(0, 1, 0.5, tie=0.4),)
        groups = [*groups, *(replace(group, comparisons=tied) for group in pair_groups(2))]
    model = load_tiny(tmp_path, kind).model
    trainer: RewardTrainer = tiny_trainer(
        model, tmp_path, groups, prompts_per_step=len(groups), tokens_per_microbatch=200
    )
    trainer.objective = Objective(objective, groups)
    model.learned = nn.ParameterDict(
        {name: nn.Parameter(value.clone()) for name, value in trainer.objective.initial.items()}
    )
    (batch,) = trainer.get_train_dataloader()
    loss = float(trainer.training_step(model, batch))
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    add_gradient = prompt_gradients(model, groups, trainer.settings, trainer.objective, PAD)
    assert add_gradient(range(len(groups))) == pytest.approx(loss, rel=1e-5)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_model_is_given_back_bit_for_bit(tmp_path: Path) -> None:
    """Both measurements, on a body with dropout; also when they break off."""
    groups = pair_groups(16)
    model = load_tiny(tmp_path, "bert", dropout=True).model
    model.eval()
    before, random_state = weights(model), torch.get_rng_state()
    training = quick_training()
    add_gradient = prompt_gradients(
        model, groups, training, Objective(ObjectiveSettings(), groups), PAD
    )
    settings = TuneSettings(rate_steps=20, warm_steps=2, noise_steps=2)
    rates = find_learning_rate(model, add_gradient, 16, training, settings)
    measure_noise(model, add_gradient, 16, training, settings)
    assert len(set(rates.losses)) > 1
    calls = iter(range(3))

    def breaks_off(indices: Sequence[int]) -> float:
        next(calls)
        return add_gradient(indices)

    with pytest.raises((RuntimeError, StopIteration)):
        find_learning_rate(model, breaks_off, 16, training, settings)
    for name, value in weights(model).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


# The verb


def test_tune_suggests_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tiny_run(tmp_path)
    output = tmp_path / "out" / "tune.json"
    flags = [
        *("--model", run["model"], "--data", run["data"], "--training.prompts_per_step", "4"),
        *("--body.head_init", "normal", "--tune.rate_steps", "40", "--tune.warm_steps", "2"),
        *("--tune.noise_steps", "6", "--tune.output", str(output)),
    ]
    assert main(["tune", *flags, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads(output.read_text())
    assert written.pop("configuration")["model"] == run["model"]
    assert printed == written
    assert 1e-7 < printed["learning_rate"] < 1
    assert printed["noise_scale"]["n"] == 6
    assert len(printed["rate_test"]["rates"]) == len(printed["rate_test"]["losses"])
    assert main(["tune", *flags]) == 0
    text = capsys.readouterr().out
    assert f"learning rate     {printed['learning_rate']:.1e} (one tenth" in text
    assert text.count("lowest\n") == 1
    assert f"written to {output}" in text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--training.method", "frozen"], "there is nothing to tune"),
        (["--tune.rate_steps", "5"], "tune.rate_steps is 5, must be 20 or more"),
        (["--tune.lowest_rate", "2"], "must be rising numbers above 0"),
        (["--tune.rate_step", "50"], "did you mean 'tune.rate_steps'"),
    ],
)
def test_what_tune_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    run = tiny_run(tmp_path)
    assert main(["tune", "--model", run["model"], "--data", run["data"], *flags]) in (1, 2)
    assert message in capsys.readouterr().err

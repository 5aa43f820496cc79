"""Learning rate and prompts a step for a training run, measured on its own model and data."""

import logging
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from palate.artifacts.files import write_json
from palate.artifacts.rundir import versions
from palate.errors import PalateError
from palate.objectives.objective import Objective
from palate.pipeline.config import TrainConfig
from palate.pipeline.train import open_model, prepare_where_asked
from palate.training.defaults import with_rates
from palate.training.learning_rate import RateTest, find_learning_rate
from palate.training.noise_scale import NoiseScale, measure_noise
from palate.training.settings import TrainingSettings
from palate.training.trainer import enable_gradient_checkpointing
from palate.training.tuning import TuneSettings, prompt_gradients

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TuneConfig(TrainConfig):
    """A training run's configuration, and how long to look."""

    tune: TuneSettings = field(default_factory=TuneSettings)


@dataclass(frozen=True)
class TuneResult:
    """What was measured, for which settings."""

    training: TrainingSettings
    """The run's, with the rates that it left open filled in."""
    rate_test: RateTest
    noise_scale: NoiseScale


def tune(config: TuneConfig) -> TuneResult:
    """Test learning rates at `training.prompts_per_step`, then measure the gradient noise while
    training at the suggested rate (without one, at the configured).

    The training part only; the model is left as it was and nothing but `tune.output` is written.
    Raises PalateError for the frozen method, which has no learning rate to find.
    """
    if config.training.method == "frozen":
        raise PalateError(
            "training.method frozen: its head is solved or takes seconds, there is nothing to tune"
        )
    set_seed(config.training.seed)
    loaded, renderer = open_model(config)
    prepared = prepare_where_asked(config, renderer, None)
    model = loaded.model
    if torch.cuda.is_available():
        model.to("cuda")
    objective = Objective(config.objective, prepared.train)
    for warning in objective.warnings:
        warnings.warn(warning, stacklevel=2)
    model.learned = nn.ParameterDict(
        {
            name: nn.Parameter(value.clone().to(model.device))
            for name, value in objective.initial.items()
        }
    )
    if config.training.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    training = with_rates(config.training, model.num_parameters())
    add_gradient = prompt_gradients(model, prepared.train, training, objective, renderer.pad_id)
    num_prompts = len(prepared.train)
    logger.info("testing %d learning rates", config.tune.rate_steps)
    rates = find_learning_rate(model, add_gradient, num_prompts, training, config.tune)
    rate = rates.suggested or training.learning_rate
    logger.info("measuring the gradient noise at learning rate %.1e", rate)
    noise = measure_noise(
        model, add_gradient, num_prompts, replace(training, learning_rate=rate), config.tune
    )
    result = TuneResult(training, rates, noise)
    write_json(config.tune.output, {**as_values(result), "configuration": asdict(config)})
    return result


def as_values(result: TuneResult) -> Mapping[str, Any]:
    """The result as JSON holds it."""
    rates, noise = result.rate_test, result.noise_scale
    return {
        "learning_rate": rates.suggested,
        "prompts_per_step": noise.suggested,
        "noise_scale": noise.prompts.as_json(),
        "gradient": {"signal": noise.signal, "noise": noise.noise},
        "rate_test": asdict(rates),
        "measured_with": {
            "prompts_per_step": result.training.prompts_per_step,
            "head_learning_rate_factor": result.training.head_learning_rate_factor,
        },
        "versions": {**versions(), "written": time.strftime("%Y-%m-%d")},
    }

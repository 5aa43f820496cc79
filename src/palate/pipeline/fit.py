"""Fit a loaded model to prepared groups, by the method that the configuration names."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from palate.artifacts.rundir import LOG, run_name
from palate.errors import Interrupted
from palate.evaluation.outcomes import Outcome, quick_metrics
from palate.model.loading import Loaded
from palate.model.lora import save_adapter
from palate.model.merging import merge_adapters
from palate.model.reward_model import RewardModel
from palate.objectives.objective import Objective
from palate.pipeline.config import TrainConfig
from palate.pipeline.guards import check_inputs
from palate.pipeline.prepare import Prepared
from palate.pipeline.processes import decided_by_main, processes
from palate.pipeline.training_battery import NO_BATTERY, BatteryAtCheckpoints, BatteryPlan
from palate.rendering import RenderedGroup, Renderer
from palate.training.callbacks import LogWriter
from palate.training.checkpoints import newest_complete
from palate.training.frozen import train_frozen
from palate.training.guards import check_before_training
from palate.training.trackers import tracked
from palate.training.trainer import Measure, RewardTrainer

logger = logging.getLogger(__name__)
RewardsOf = Callable[[Sequence[RenderedGroup]], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Fitted:
    """A trained model and how it went."""

    model: RewardModel
    device: str
    outcomes: Mapping[str, list[Outcome]]
    """Held-out parts by name, the validation part first."""
    history: Sequence[Mapping[str, Any]]
    """Entries of the training log."""
    num_steps: int
    best: str | None = None
    """The checkpoint that was taken, where there was a choice."""
    learned: Mapping[str, Any] = field(default_factory=dict)
    """What the objective learned beside the rewards, in words."""


def fit(
    config: TrainConfig,
    loaded: Loaded,
    renderer: Renderer,
    prepared: Prepared,
    objective: Objective,
    directory: Path,
    battery: BatteryPlan = NO_BATTERY,
) -> Fitted:
    """Train, and score the held-out parts; adapters are in the model already.

    Raises Interrupted once a checkpoint is written.
    """
    check_inputs(config, renderer, prepared)
    if config.training.method == "frozen":
        return _fit_frozen(config, loaded, renderer, prepared, objective)
    return _fit_steps(config, loaded, renderer, prepared, objective, directory, battery)


def _fit_steps(
    config: TrainConfig,
    loaded: Loaded,
    renderer: Renderer,
    prepared: Prepared,
    objective: Objective,
    directory: Path,
    battery: BatteryPlan,
) -> Fitted:
    model = loaded.model
    checkpoints = directory / "training"
    measure: Measure = partial(quick_metrics, ties=config.objective.ties)
    logged = BatteryAtCheckpoints(battery.pairs, config.objective.ties) if battery.pairs else None
    trainer = RewardTrainer(
        model,
        config.training,
        prepared.train,
        prepared.validation,
        logged.beside(measure, prepared.validation.values()) if logged else measure,
        renderer.pad_id,
        checkpoints,
        objective,
        is_warm_start=loaded.has_trained_head,
    )
    resume = decided_by_main(lambda: newest_complete(checkpoints))
    if resume is not None:
        logger.info("resuming from %s", resume)
    if logged is not None:
        logged.trainer = trainer
        trainer.add_callback(logged)
    trainer.add_callback(LogWriter(directory / LOG))
    with tracked(trainer, directory, run_name(directory), asdict(config)):
        with trainer.interrupt.installed():
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        if trainer.interrupt.signal is not None:
            raise Interrupted(
                f"stopped at step {trainer.state.global_step}; a checkpoint is in {checkpoints}."
                " The same command goes on from it",
                trainer.interrupt.signal,
            )
    # Without the casts of mixed precision: measured and stored is what `load` will give.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if config.training.method == "lora":
        if config.lora.keep_adapter and processes().is_main_process:
            save_adapter(model, directory / "adapter", config.model)
        merge_adapters(model)
    best = trainer.state.best_model_checkpoint
    return Fitted(
        model,
        str(trainer.args.device),
        _outcomes(trainer.rewards_of, prepared),
        trainer.state.log_history,
        trainer.state.global_step,
        Path(best).name if best else None,
        _described(objective, model),
    )


def _fit_frozen(
    config: TrainConfig,
    loaded: Loaded,
    renderer: Renderer,
    prepared: Prepared,
    objective: Objective,
) -> Fitted:
    model = loaded.model
    check_before_training(config.model, model, config.training.guards, renderer.pad_id)
    result = train_frozen(
        model,
        config.training,
        objective,
        prepared.train,
        prepared.validation,
        partial(quick_metrics, ties=config.objective.ties),
        renderer.pad_id,
    )
    return Fitted(
        model,
        str(model.device),
        _outcomes(result.rewards_of, prepared),
        result.history,
        result.num_steps,
        result.best,
        _described(objective, model),
    )


def _outcomes(rewards_of: RewardsOf, prepared: Prepared) -> dict[str, list[Outcome]]:
    """Rewards of every held-out part that has prompts."""
    return {
        name: [Outcome(g, r) for g, r in zip(groups, rewards_of(groups), strict=True)]
        for name, groups in {**prepared.validation, "test": prepared.test}.items()
        if groups
    }


def _described(objective: Objective, model: RewardModel) -> Mapping[str, Any]:
    return objective.describe({name: value.detach().cpu() for name, value in model.learned.items()})

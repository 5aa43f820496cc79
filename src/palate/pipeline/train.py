"""Train a reward model: from preference files to a checkpoint, metrics and a report."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import set_seed
from transformers.integrations import get_available_reporting_integrations

from palate.errors import PalateError
from palate.evaluation.metrics import (
    Outcome,
    quick_metrics,
)
from palate.model.checkpoint import check_fingerprint, read_sidecar
from palate.model.loading import load_model
from palate.model.reward_model import RewardModel
from palate.model.selfcheck import check_positions, max_positions
from palate.pipeline.config import TrainConfig
from palate.pipeline.directory import run_directory, write_inputs
from palate.pipeline.dry_run import describe_dry_run
from palate.pipeline.finish import finish
from palate.pipeline.prepare import Prepared, prepare
from palate.rendering import RenderedGroup, Renderer
from palate.scoring.scorer import Scorer
from palate.statistics import Estimate
from palate.training.checkpoints import newest_complete
from palate.training.trainer import RewardTrainer

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Interrupted(Exception):
    """The run was stopped by a signal after writing a checkpoint."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


@dataclass(frozen=True)
class TrainResult:
    """Where the run is, its metrics, and the scorer of the saved model (None after a dry run)."""

    directory: Path
    metrics: Mapping[str, Estimate]
    measured_on: str
    scorer: Scorer | None
    summary: str


def train(config: TrainConfig, *, dry_run: bool = False) -> TrainResult:
    """Train as configured; resume where an unfinished run with the same configuration lies.

    Raises PalateError on bad input and Interrupted after Ctrl-C, once a checkpoint is written.
    """
    _check_trackers(config.training.report_to)
    directory = _decided_by_main(lambda: run_directory(config, dry_run))
    set_seed(config.training.seed)
    loaded = load_model(config.model, config.body, for_training=True)
    if loaded.has_trained_head and config.body.head_init != "zero":
        raise PalateError(
            f"body.head_init {config.body.head_init} has no effect: {config.model} has a head of"
            " its own; leave it out"
        )
    lengths = config.lengths.resolved(max_positions(loaded.model.config))
    check_positions(loaded.model.config, lengths.max_prompt_tokens + lengths.max_response_tokens)
    sidecar = read_sidecar(loaded.directory)
    inherited = sidecar.template_arguments if sidecar else {}
    renderer = Renderer(loaded.tokenizer, lengths, {**inherited, **config.template_arguments})
    if sidecar is not None:
        check_fingerprint(config.model, loaded.directory, renderer, sidecar, config.allow_changed)
    elif config.allow_changed:
        raise PalateError(f"allow_changed has no effect: {config.model} is no palate checkpoint")
    prepared = prepare(config, renderer)
    summary = describe_dry_run(config, loaded.model, renderer, prepared, loaded.has_trained_head)
    if dry_run:
        return TrainResult(directory, {}, "", None, summary)
    state = _processes()
    if state.is_main_process:
        logger.info("%s", summary)
        write_inputs(directory, config, prepared)
    state.wait_for_everyone()
    trainer = _run_trainer(config, loaded.model, renderer, prepared, directory)
    outcomes = {
        name: _outcomes(trainer, groups)
        for name, groups in {**prepared.validation, "test": prepared.test}.items()
        if groups
    }
    if not state.is_main_process:
        return TrainResult(directory, {}, "", None, summary)
    done = finish(config, trainer, renderer, prepared, outcomes, directory)
    metrics = done.results.get(done.measured_on, {})
    return TrainResult(directory, metrics, done.measured_on, done.scorer, summary)


def _check_trackers(names: Sequence[str]) -> None:
    installed = get_available_reporting_integrations()
    for name in names:
        if name not in installed:
            found = ", ".join(installed) or "none"
            raise PalateError(
                f"training.report_to {name!r} is not installed or not known; installed: {found}"
            )


def _processes() -> PartialState:
    # Without `cpu` and without a GPU each of several processes takes itself for the only one.
    return PartialState(cpu=not torch.cuda.is_available())


def _decided_by_main(decide: Callable[[], T]) -> T:
    """What the main process decides, known to all: files change while the others look at them."""
    decided: list[Any] = [decide() if _processes().is_main_process else None]
    broadcast_object_list(decided)
    return cast(T, decided[0])


def _run_trainer(
    config: TrainConfig,
    model: RewardModel,
    renderer: Renderer,
    prepared: Prepared,
    directory: Path,
) -> RewardTrainer:
    checkpoints = directory / "training"
    trainer = RewardTrainer(
        model,
        config.training,
        prepared.train,
        prepared.validation,
        partial(quick_metrics, ties=config.training.ties),
        renderer.pad_id,
        checkpoints,
    )
    resume = _decided_by_main(lambda: newest_complete(checkpoints))
    if resume is not None:
        logger.info("resuming from %s", resume)
    with trainer.interrupt.installed():
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if trainer.interrupt.signal is not None:
        raise Interrupted(
            f"stopped at step {trainer.state.global_step}; a checkpoint is in {checkpoints}. The"
            " same command goes on from it",
            trainer.interrupt.signal,
        )
    # Without the casts of mixed precision: measured and stored is what `load` will give.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return trainer


def _outcomes(trainer: RewardTrainer, groups: Sequence[RenderedGroup]) -> list[Outcome]:
    rewards = trainer.rewards_of(groups)
    return [Outcome(group, reward) for group, reward in zip(groups, rewards, strict=True)]

"""Train a reward model: from preference files to a checkpoint, metrics and a report."""

import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import set_seed
from transformers.integrations import get_available_reporting_integrations

from palate.errors import PalateError
from palate.model.checkpoint import check_fingerprint, read_sidecar
from palate.model.loading import Loaded, load_model
from palate.model.lora import add_adapters
from palate.model.selfcheck import check_positions, max_positions
from palate.objectives.objective import Objective
from palate.pipeline.config import TrainConfig
from palate.pipeline.directory import STORE, run_directory, write_inputs
from palate.pipeline.dry_run import describe_dry_run
from palate.pipeline.finish import finish
from palate.pipeline.fit import fit
from palate.pipeline.prepare import Prepared, prepare
from palate.pipeline.prepare_stream import prepare_on_disk
from palate.pipeline.processes import decided_by_main, processes
from palate.pipeline.training_battery import plan_battery
from palate.rendering import Renderer
from palate.scoring.scorer import Scorer
from palate.statistics import Estimate
from palate.training.frozen import check_frozen

logger = logging.getLogger(__name__)


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
    directory = decided_by_main(lambda: run_directory(config, dry_run))
    set_seed(config.training.seed)
    loaded, renderer = open_model(config)
    if config.training.method == "frozen":
        has_validation = bool(config.split.validation_share or config.validation)
        check_frozen(loaded.model, config.training, config.objective, has_validation)
    prepared = prepare_where_asked(config, renderer, None if dry_run else directory / STORE)
    objective = Objective(config.objective, prepared.train)
    objective.check_validation(prepared.validation)
    for warning in objective.warnings:
        warnings.warn(warning, stacklevel=2)
    summary = describe_dry_run(
        config, loaded.model, renderer, prepared, objective, loaded.has_trained_head
    )
    battery = plan_battery(config, prepared, renderer)
    summary += f"\nbattery   {battery.why}"
    if dry_run:
        return TrainResult(directory, {}, "", None, summary)
    state = processes()
    if state.is_main_process:
        logger.info("%s", summary)
        write_inputs(directory, config, prepared, loaded.model.num_parameters())
    state.wait_for_everyone()
    fitted = fit(config, loaded, renderer, prepared, objective, directory, battery)
    if not state.is_main_process:
        return TrainResult(directory, {}, "", None, summary)
    done = finish(config, fitted, renderer, prepared, directory, battery)
    metrics = done.results.get(done.measured_on, {})
    return TrainResult(directory, metrics, done.measured_on, done.scorer, summary)


def prepare_where_asked(config: TrainConfig, renderer: Renderer, store: Path | None) -> Prepared:
    """In memory, or on disk in `store`; without one, in a folder that is gone by itself."""
    if config.store == "memory":
        return prepare(config, renderer, config.rendering)
    # One process writes what all read.
    place = store or Path(tempfile.mkdtemp())
    try:
        return decided_by_main(lambda: prepare_on_disk(config, renderer, place, config.rendering))
    finally:
        if store is None:  # what is mapped stays readable
            shutil.rmtree(place)


def open_model(config: TrainConfig) -> tuple[Loaded, Renderer]:
    """The model to train, with adapters where they are asked for, and the renderer of its texts."""
    is_frozen = config.training.method == "frozen"
    loaded = load_model(config.model, config.body, for_training=True, new_head=is_frozen)
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
    if config.training.method == "lora":
        add_adapters(loaded.model, config.lora)
    return loaded, renderer


def _check_trackers(names: Sequence[str]) -> None:
    installed = get_available_reporting_integrations()
    for name in names:
        if name not in installed:
            found = ", ".join(installed) or "none"
            raise PalateError(
                f"training.report_to {name!r} is not installed or not known; installed: {found}"
            )

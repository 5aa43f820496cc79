"""Train a reward model: from preference files to a checkpoint, metrics and a report."""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import set_seed

from palate.artifacts.files import write_json, write_text
from palate.artifacts.rundir import describe_run, next_run_directory, refuse_overwrite, versions
from palate.errors import PalateError
from palate.evaluation.blind import fit_prompt_blind
from palate.evaluation.calibration import fit_temperature
from palate.evaluation.metrics import (
    BASELINES,
    Outcome,
    as_json,
    evaluate_outcomes,
    quick_metrics,
)
from palate.model.checkpoint import Sidecar, save_checkpoint, write_sidecar
from palate.model.loading import load_model
from palate.model.reward_model import RewardModel
from palate.model.selfcheck import check_positions, max_positions
from palate.pipeline.config import TrainConfig
from palate.pipeline.dry_run import describe_dry_run
from palate.pipeline.prepare import Prepared, prepare
from palate.preferences import prompt_cluster
from palate.rendering import RenderedGroup, Renderer
from palate.report.card import model_card
from palate.report.html import html_report
from palate.scoring.scorer import Scorer, load
from palate.statistics import Estimate
from palate.training.checkpoints import newest_complete
from palate.training.trainer import RewardTrainer

RUN = "run.json"
METRICS = "metrics.json"
MAX_BLIND_GROUPS = 20_000
REFERENCE_TEXTS = (
    ("How do birds fly?", "They push air down with their wings, and the air pushes them up."),
    ("What is 12 times 12?", "144"),
    ("Say hello to my neighbour.", "I am not able to help with that request."),
)
"""Texts of our own, so that no training data travels inside a published checkpoint."""

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
    directory = _decided_by_main(lambda: _run_directory(config, dry_run))
    set_seed(config.training.seed)
    loaded = load_model(config.model, config.body, for_training=True)
    if loaded.has_trained_head and config.body.head_init != "zero":
        raise PalateError(
            f"body.head_init {config.body.head_init} has no effect: {config.model} has a head of"
            " its own; leave it out"
        )
    lengths = config.lengths.resolved(max_positions(loaded.model.config))
    check_positions(loaded.model.config, lengths.max_prompt_tokens + lengths.max_response_tokens)
    renderer = Renderer(loaded.tokenizer, lengths)
    prepared = prepare(config, renderer)
    summary = describe_dry_run(config, loaded.model, renderer, prepared, loaded.has_trained_head)
    if dry_run:
        return TrainResult(directory, {}, "", None, summary)
    state = _processes()
    if state.is_main_process:
        logger.info("%s", summary)
        _write_inputs(directory, config, prepared)
    state.wait_for_everyone()
    trainer = _run_trainer(config, loaded.model, renderer, prepared, directory)
    outcomes = {
        name: _outcomes(trainer, groups)
        for name, groups in {**prepared.validation, "test": prepared.test}.items()
        if groups
    }
    if not state.is_main_process:
        return TrainResult(directory, {}, "", None, summary)
    return _finish(config, loaded.model, renderer, prepared, trainer, outcomes, directory, summary)


def _run_directory(config: TrainConfig, dry_run: bool) -> Path:
    """The directory of this run. Foreign files and another configuration's run are refused."""
    directory = (
        Path(config.output) if config.output else default_directory(Path(config.model).name, config)
    )
    if dry_run:
        return directory
    refuse_overwrite(directory, METRICS)
    stored = directory / RUN
    if stored.exists():
        differing = _differences(stored, config)
        if differing:
            raise PalateError(
                f"{directory}: holds an unfinished run with another {', '.join(differing)}; resume"
                f" it with its own configuration ({RUN}), or choose another --output"
            )
    elif directory.exists():
        if not directory.is_dir():
            raise PalateError(f"{directory}: is a file; choose another --output")
        # Directories that look like checkpoints would be resumed from or deleted.
        foreign = sorted(p.name for p in directory.iterdir() if not p.name.startswith("."))
        if foreign:
            raise PalateError(
                f"{directory}: holds {foreign[0]!r} and no {RUN}, so it is no run of palate; choose"
                " another --output"
            )
    return directory


def default_directory(name: str, config: TrainConfig) -> Path:
    """`runs/NAME` or the next free name; an unfinished run with this configuration goes on."""

    def goes_on(directory: Path) -> bool:
        stored = directory / RUN
        unfinished = stored.exists() and not (directory / METRICS).exists()
        return unfinished and not _differences(stored, config)

    return next_run_directory(name, goes_on=goes_on)


def _differences(stored: Path, config: TrainConfig) -> list[str]:
    """Settings in which a stored run differs from this one, in words."""
    before = _flat(json.loads(stored.read_text())["configuration"])
    now = _flat(json.loads(json.dumps(asdict(config))))
    # The directory itself may be named in several ways, or not at all in the first command.
    return [
        f"{key} ({before.get(key, 'nothing')!r} there, {now.get(key, 'nothing')!r} now)"
        for key in sorted({*before, *now} - {"output"})
        if before.get(key) != now.get(key)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found


def _processes() -> PartialState:
    # Without `cpu` and without a GPU each of several processes takes itself for the only one.
    return PartialState(cpu=not torch.cuda.is_available())


def _decided_by_main(decide: Callable[[], T]) -> T:
    """What the main process decides, known to all: files change while the others look at them."""
    decided: list[Any] = [decide() if _processes().is_main_process else None]
    broadcast_object_list(decided)
    return cast(T, decided[0])


def _write_inputs(directory: Path, config: TrainConfig, prepared: Prepared) -> None:
    stored = directory / RUN
    if stored.exists():
        before = json.loads(stored.read_text())["data_sha256"]
        changed = [name for name, now in prepared.data_sha256.items() if before.get(name) != now]
        if changed:
            raise PalateError(
                f"{directory}: holds an unfinished run on other data: {', '.join(changed)} changed"
                " since; restore the file, or choose another --output"
            )
    configuration = asdict(config)
    describe_run(directory, configuration, prepared.data_sha256, config.training.seed)
    write_text(directory / "config.yaml", yaml.safe_dump(configuration, sort_keys=False))
    write_json(directory / "split.json", prepared.manifest)
    prepared.ledger.write(directory / "ledger.jsonl")


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


def _finish(
    config: TrainConfig,
    model: RewardModel,
    renderer: Renderer,
    prepared: Prepared,
    trainer: RewardTrainer,
    outcomes: Mapping[str, list[Outcome]],
    directory: Path,
    summary: str,
) -> TrainResult:
    """Calibrate, measure, save, reload, report."""
    measured_on = "test" if "test" in outcomes else next(iter(outcomes), "")
    blind = fit_prompt_blind(prepared.train[:MAX_BLIND_GROUPS])
    baselines = {**BASELINES, "prompt-blind": blind}
    results = {
        name: evaluate_outcomes(part, config.training.ties, baselines)
        for name, part in outcomes.items()
    }
    model_directory = directory / "model"
    fingerprint = save_checkpoint(model_directory, model, renderer)
    reference = _reference_scores(Scorer(model.eval(), renderer))
    sidecar = _sidecar(config, model, renderer, prepared, outcomes, fingerprint, reference)
    write_sidecar(model_directory, sidecar)
    # Loading checks fingerprint and reference rewards: what was saved is what was trained.
    scorer = load(model_directory, device=str(trainer.args.device))
    facts = {
        "model": config.model,
        "data": prepared.data_sha256,
        "num_groups": {
            "train": len(prepared.train),
            **{name: len(part) for name, part in outcomes.items()},
        },
        "measured_on": measured_on,
        "temperature": sidecar.temperature,
        "ledger": prepared.ledger.by_reason(),
        "num_rows": prepared.ledger.num_rows_read,
        "left_out": prepared.left_out,
        "steps": trainer.state.global_step,
        "best": trainer.state.best_model_checkpoint
        and Path(trainer.state.best_model_checkpoint).name,
    }
    write_text(model_directory / "README.md", model_card(sidecar, results, facts))
    history = trainer.state.log_history
    write_text(directory / "report.html", html_report(sidecar, results, facts, history))
    write_json(
        directory / METRICS,
        {
            "measured_on": measured_on,
            "metrics": {name: as_json(part) for name, part in results.items()},
            "temperature": sidecar.temperature,
            # JSON has no NaN: an accuracy of undecided comparisons only is left out.
            "log": [{k: v for k, v in entry.items() if v == v} for entry in history],
        },
    )
    shutil.rmtree(directory / "training", ignore_errors=True)
    return TrainResult(directory, results.get(measured_on, {}), measured_on, scorer, summary)


def _reference_scores(scorer: Scorer) -> tuple[dict[str, Any], ...]:
    found: list[dict[str, Any]] = []
    for prompt, response in REFERENCE_TEXTS:
        # A template may refuse a bare user turn, and a limit may be shorter than these.
        with contextlib.suppress(PalateError):
            reward = scorer.score(prompt, response)
            found.append({"prompt": prompt, "response": response, "reward": reward})
    return tuple(found)


def _sidecar(
    config: TrainConfig,
    model: RewardModel,
    renderer: Renderer,
    prepared: Prepared,
    outcomes: Mapping[str, list[Outcome]],
    fingerprint: Mapping[str, str],
    reference: tuple[dict[str, Any], ...],
) -> Sidecar:
    part_name = next(iter(outcomes), None)
    reward = temperature = None
    if part_name is not None:
        part = outcomes[part_name]
        rewards = np.concatenate([outcome.reward_N for outcome in part])
        reward = {
            "mean": float(rewards.mean()),
            "std": float(rewards.std()),
            "part": part_name,
            "num_answers": int(rewards.size),
        }
        if part_name in prepared.validation:  # never on the test part, which is only measured
            temperature = {
                "value": fit_temperature(part, config.training.ties),
                "part": part_name,
                "num_prompts": len(part),
                "num_clusters": len({prompt_cluster(o.group.group.prompt) for o in part}),
            }
    return Sidecar(
        pooling=model.pooling,
        head_name=model.head_name,
        layout=model.layout,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        end_of_turn=renderer.end_of_turn,
        template_arguments=dict(renderer.template_arguments),
        lengths=asdict(renderer.lengths),
        fingerprint=dict(fingerprint),
        reward=reward,
        temperature=temperature,
        reference_scores=reference,
        data_sha256=prepared.data_sha256,
        configuration=asdict(config),
        versions={**versions(), "written": time.strftime("%Y-%m-%d")},
    )

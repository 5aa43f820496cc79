"""Where a run lies: a new directory, or that of an unfinished run with the same configuration."""

import json
from dataclasses import asdict
from pathlib import Path

import yaml

from palate.artifacts.files import write_json, write_text
from palate.artifacts.rundir import (
    METRICS,
    RUN,
    describe_run,
    flat_settings,
    next_run_directory,
    refuse_overwrite,
)
from palate.errors import PalateError
from palate.pipeline.config import TrainConfig
from palate.pipeline.prepare import Prepared
from palate.training.checkpoints import checkpoints, is_complete
from palate.training.defaults import with_rates

ANY_TIME = frozenset({"output", "render_workers", "token_cache"})
"""Settings that change nothing of a run's result, so that it goes on with others. The directory
itself may be named in several ways, or not at all in the first command."""
STORE = ".store"
"""Rendered prompts of a run that keeps them on disk; gone when it is finished."""


def run_directory(config: TrainConfig, dry_run: bool) -> Path:
    """The directory of this run. Foreign files are refused, and so is the run of another
    configuration once it has trained anything."""
    directory = (
        Path(config.output) if config.output else default_directory(Path(config.model).name, config)
    )
    if dry_run:
        return directory
    refuse_overwrite(directory, METRICS)
    stored = directory / RUN
    if stored.exists():
        differing = _differences(stored, config)
        if differing and _has_trained(directory):
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


def _has_trained(directory: Path) -> bool:
    """Whether a checkpoint or a model is there, made by the stored configuration."""
    is_written = (directory / "model").exists()
    return is_written or any(is_complete(path) for path in checkpoints(directory / "training"))


def default_directory(name: str, config: TrainConfig) -> Path:
    """`runs/NAME` or the next free name; an unfinished run with this configuration goes on."""

    def goes_on(directory: Path) -> bool:
        stored = directory / RUN
        unfinished = stored.exists() and not (directory / METRICS).exists()
        return unfinished and not _differences(stored, config)

    return next_run_directory(name, goes_on=goes_on)


def _differences(stored: Path, config: TrainConfig) -> list[str]:
    """Settings in which a stored run differs from this one, in words."""
    before = flat_settings(json.loads(stored.read_text())["configuration"])
    now = flat_settings(json.loads(json.dumps(asdict(config))))
    return [
        f"{key} ({before.get(key, 'nothing')!r} there, {now.get(key, 'nothing')!r} now)"
        for key in sorted({*before, *now} - ANY_TIME)
        if before.get(key) != now.get(key)
    ]


def write_inputs(
    directory: Path, config: TrainConfig, prepared: Prepared, num_parameters: int
) -> None:
    """Write what the run is made of. Raises PalateError where it goes on with other data.

    `num_parameters` of the model decides about learning rates that are left open.
    """
    stored = directory / RUN
    if stored.exists() and _has_trained(directory):
        before = json.loads(stored.read_text())["data_sha256"]
        changed = [name for name, now in prepared.data_sha256.items() if before.get(name) != now]
        if changed:
            raise PalateError(
                f"{directory}: holds an unfinished run on other data: {', '.join(changed)} changed"
                " since; restore the file, or choose another --output"
            )
    configuration = asdict(config)
    num_voted = len(prepared.train) - prepared.num_made
    num_prompts = {"train": num_voted, "test": len(prepared.test)}
    num_prompts |= {name: len(groups) for name, groups in prepared.validation.items()}
    resolved = {}
    if config.training.method != "frozen":
        rates = with_rates(config.training, num_parameters)
        resolved = {
            f"training.{name}": getattr(rates, name)
            for name in ("learning_rate", "head_learning_rate_factor")
        }
    describe_run(
        directory,
        configuration,
        prepared.data_sha256,
        config.training.seed,
        num_prompts,
        resolved,
    )
    write_text(directory / "config.yaml", yaml.safe_dump(configuration, sort_keys=False))
    write_json(directory / "split.json", prepared.manifest)
    prepared.ledger.write(directory / "ledger.jsonl")

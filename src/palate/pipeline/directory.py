"""Where a run lies: a new directory, or that of an unfinished run with the same configuration."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from palate.artifacts.files import write_json, write_text
from palate.artifacts.rundir import describe_run, next_run_directory, refuse_overwrite
from palate.errors import PalateError
from palate.pipeline.config import TrainConfig
from palate.pipeline.prepare import Prepared

RUN = "run.json"
METRICS = "metrics.json"


def run_directory(config: TrainConfig, dry_run: bool) -> Path:
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


def write_inputs(directory: Path, config: TrainConfig, prepared: Prepared) -> None:
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

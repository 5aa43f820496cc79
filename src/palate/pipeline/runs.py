"""The runs below a folder, read back from their files: which are finished, and how good."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from palate.artifacts.files import describe_os_error
from palate.artifacts.rundir import LOG, METRICS, RUN, read_log
from palate.errors import PalateError
from palate.statistics import Estimate

SPLIT = "split.json"
MIN_HASH_DIGITS = 6


@dataclass(frozen=True)
class Run:
    """What the files of one run say."""

    directory: Path
    state: Literal["finished", "unfinished", "damaged"]
    reason: str = ""
    """What is wrong with a damaged run, with the file."""
    step: int | None = None
    """Of an unfinished run: the last step in its log."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """`run.json`; empty when it can't be read."""
    split: Mapping[str, Any] = field(default_factory=dict)
    """`split.json`."""
    measured_on: str = ""
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    """On the part `measured_on`; empty unless the run is finished and held something out."""

    @property
    def configuration(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.record.get("configuration", {})
        return found

    @property
    def model(self) -> str:
        return str(self.configuration.get("model", ""))

    @property
    def data_sha256(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.record.get("data_sha256", {})
        return found

    @property
    def started(self) -> str:
        """UTC, as in 2026-11-20T22:44:00Z; empty when the run does not say."""
        return str(self.record.get("started", ""))

    @property
    def num_trained(self) -> int | None:
        """Prompts of the training part."""
        counts = self.record.get("num_prompts")
        return counts.get("train") if isinstance(counts, Mapping) else None


def list_runs(
    directories: Sequence[str | Path], *, model: str = "", data: str = "", sort: str = ""
) -> list[Run]:
    """Runs in and below the directories, oldest first, or by rising `sort`, a metric.

    `model` is a part of the model's name, `data` the first digits of the SHA-256 of a data file.
    Runs without the metric come first. Raises PalateError for a directory that is not there and for
    a metric that no run has.
    """
    if data and len(data) < MIN_HASH_DIGITS:
        raise PalateError(
            f"--data {data}: give {MIN_HASH_DIGITS} digits or more of the data's SHA-256"
        )
    found = [read_run(path) for path in _run_directories(directories)]
    runs = [
        run
        for run in found
        if model in run.model
        and (not data or any(str(d).startswith(data) for d in run.data_sha256.values()))
    ]
    runs.sort(key=lambda run: (run.started, str(run.directory)))
    if sort:
        known = sorted({name for run in runs for name in run.metrics})
        if runs and sort not in known:
            raise PalateError(
                f"--sort {sort}: no run has it; metrics: {', '.join(known) or 'none'}"
            )
        runs.sort(key=lambda run: run.metrics[sort].value if sort in run.metrics else -float("inf"))
    return runs


def _run_directories(directories: Sequence[str | Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for name in directories:
        directory = Path(name)
        if not directory.is_dir():
            raise PalateError(f"{directory}: no such directory; name one that holds runs")
        yield from _below(directory, seen)


def _below(directory: Path, seen: set[Path]) -> Iterator[Path]:
    """Runs at and below a directory. Links are followed, each place is looked at once, and nothing
    below a run is."""
    if (place := directory.resolve()) in seen:
        return
    seen.add(place)
    if is_run(directory):
        yield directory
        return
    try:
        children = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir())
    except OSError as error:
        warnings.warn(str(describe_os_error(error, directory, "read")), stacklevel=2)
        return
    for child in children:
        if not child.startswith("."):
            yield from _below(directory / child, seen)


def is_run(directory: Path) -> bool:
    """Whether a directory is a run of palate, whole or damaged. Other tools have a `run.json` too:
    it, or a split beside it, must be ours."""
    if (directory / SPLIT).is_file():
        return (directory / RUN).is_file() or (directory / METRICS).is_file()
    try:
        record = json.loads((directory / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, Mapping) and "data_sha256" in record


def read_run(directory: Path) -> Run:
    """What a run's files say; what is missing or unreadable makes it a damaged one."""
    read: dict[str, Any] = {}
    try:
        read["record"] = _read(directory / RUN, ("configuration", "data_sha256", "versions"))
        is_finished = (directory / METRICS).exists()
        if is_finished or (directory / SPLIT).exists():  # a new run has none yet
            read["split"] = _read(directory / SPLIT, ("clusters", "num_groups"))
        if not is_finished:
            step = max((entry["step"] for entry in read_log(directory / LOG)), default=0)
            return Run(directory, "unfinished", step=step, **read)
        results = _read(directory / METRICS, ("metrics",))
        read["measured_on"] = str(results.get("measured_on", ""))
        read["metrics"] = _estimates(directory / METRICS, results, read["measured_on"])
        if not (directory / "model" / "config.json").exists():
            raise PalateError(f"{directory / 'model' / 'config.json'}: is missing")
    except PalateError as error:
        return Run(directory, "damaged", str(error), **read)
    return Run(directory, "finished", **read)


def _read(path: Path, mappings: Sequence[str]) -> Mapping[str, Any]:
    """A JSON object in which the named keys hold objects."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PalateError(f"{path}: is missing") from None
    except OSError as error:
        raise describe_os_error(error, path, "read") from error
    except ValueError as error:
        raise PalateError(f"{path}: is no JSON: {error}") from error
    for name in mappings:
        if not isinstance(value, Mapping) or not isinstance(value.get(name), Mapping):
            raise PalateError(f"{path}: has no {name!r}, or not as an object")
    found: Mapping[str, Any] = value
    return found


def _estimates(path: Path, results: Mapping[str, Any], part: str) -> dict[str, Estimate]:
    if not part:
        return {}
    try:
        return {
            name: Estimate(
                float(entry["value"]),
                -float("inf") if entry["low"] is None else float(entry["low"]),
                float("inf") if entry["high"] is None else float(entry["high"]),
                int(entry["n"]),
            )
            for name, entry in results["metrics"][part].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PalateError(f"{path}: metrics of the {part} part can't be read: {error!r}") from error

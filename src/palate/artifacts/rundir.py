"""Run directories: each holds its configuration, versions, data hashes and seed."""

import json
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from palate.artifacts.files import describe_os_error, write_json, write_text
from palate.errors import PalateError

RUN = "run.json"
METRICS = "metrics.json"
LOG = "log.jsonl"
EVALUATION = "evaluation.json"
FILES = {
    RUN: "configuration, SHA-256 of the data, prompts of each part, seed, start (UTC), versions",
    "config.yaml": "the configuration alone: `palate train config.yaml --output ELSEWHERE` repeats"
    " the run",
    "split.json": "how the prompts were divided: salt, shares, the prompt clusters of each part",
    "ledger.jsonl": "one line for each row, answer, comparison or token left out or cut: file,"
    " line, reason",
    LOG: "the training log, one line an entry, written as training goes on: step, epoch, loss,"
    " learning rate, validation metrics",
    "training/": "checkpoints from which the same command goes on; deleted when the run is"
    " finished",
    "model/": "the reward model: safetensors, configuration, tokenizer, a card (README.md)",
    "adapter/": "LoRA adapters beside the merged model, where the configuration keeps them",
    "report.html": "the results as a page for a browser",
    EVALUATION: "what the page shows of the measured part: verdict, findings, metrics, calibration,"
    " battery, the training log, the protocol",
    METRICS: "results on each held-out part, each metric with its 95 % interval and n; temperature;"
    " what the objective learned beside the rewards; written last",
    "tensorboard/": "event files, with `training.report_to: [tensorboard]`",
    "wandb/": "W&B's files, with `training.report_to: [wandb]`",
}
"""What a run directory may hold."""
_README = """# {name}

A training run of palate. All but weights, checkpoints and trackers' files is plain text; nothing
needs palate to be read. A run without `metrics.json` is not finished. Not every run has all of
these:

| file | what it holds |
|---|---|
{rows}

The metrics, and a table of them and of the training log with pandas:

```sh
python -m json.tool metrics.json
```

```python
import json

import pandas

for part, metrics in json.load(open("metrics.json"))["metrics"].items():
    print(part)
    print(pandas.DataFrame(metrics).T[["value", "low", "high", "n"]])
print(pandas.read_json("log.jsonl", lines=True))
```
"""

PACKAGES = ("palate", "torch", "transformers", "tokenizers", "accelerate", "datasets", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def next_run_directory(
    name: str, root: str | Path = "runs", goes_on: Callable[[Path], bool] = lambda _: False
) -> Path:
    """The first of `root/name`, `root/name-2`, ... that is free, or of which `goes_on` says that
    its run is to be gone on with. Creates nothing."""
    stem = _plain_name(name)
    candidate, number = Path(root) / stem, 2
    while not goes_on(candidate) and (
        candidate.is_file() or (candidate.exists() and any(candidate.iterdir()))
    ):
        candidate, number = Path(root) / f"{stem}-{number}", number + 1
    return candidate


def describe_run(
    directory: Path,
    configuration: dict[str, Any],
    data_hashes: dict[str, str],
    seed: int,
    num_prompts: Mapping[str, int],
    resolved: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write `run.json`, from which the run can be repeated, and README.md, the table of its files.

    `num_prompts` counts the rendered prompts of each part; `resolved` holds, by dotted key, what
    took the place of settings that the configuration leaves open. A run that goes on keeps the
    date of its first start.
    """
    write_json(
        directory / RUN,
        {
            "configuration": configuration,
            "data_sha256": data_hashes,
            "num_prompts": dict(num_prompts),
            "resolved": dict(resolved),
            "seed": seed,
            "started": _started(directory),
            "versions": versions(),
        },
    )
    # After run.json: a directory that holds other files and no run.json is taken for no run.
    rows = "\n".join(f"| `{name}` | {what} |" for name, what in FILES.items())
    write_text(directory / "README.md", _README.format(name=directory.name, rows=rows))


def _started(directory: Path) -> str:
    stored = directory / RUN
    known = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    return str(known.get("started") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def run_name(directory: Path) -> str:
    """What trackers call the run: its folder and when it began, so that a run that goes on keeps
    its name and another one in the same folder has one of its own."""
    folder = _plain_name(directory.resolve().name)
    return f"{folder}-{re.sub(r'[^0-9TZ]', '', _started(directory))}"


def _plain_name(name: str) -> str:
    """Letters, digits, `_`, `.` and `-` only; never empty, never a step up in a path."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"


def without_folders(value: Any) -> Any:
    """The same with absolute paths shortened to their last part: checkpoints are published."""
    if isinstance(value, Mapping):
        return {without_folders(key): without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    if not isinstance(value, str) or not Path(value).is_absolute():
        return value
    path = Path(value)
    # Runs and wheels keep their weights in a folder called model, which says nothing.
    return f"{path.parent.name}/{path.name}" if path.name == "model" else path.name


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        found |= flat_settings(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found


def write_log(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write a training log, one JSON object a line, over what was there."""
    write_text(path, "".join(_log_line(entry) for entry in entries))


def append_log(path: Path, entry: Mapping[str, Any]) -> None:
    """Add a line to a training log, so that a run that is killed has left it."""
    try:
        with open(path, "a", encoding="utf-8") as log:
            log.write(_log_line(entry))
    except OSError as error:
        raise describe_os_error(error, path, "write") from error


def _log_line(entry: Mapping[str, Any]) -> str:
    # JSON has no NaN: an accuracy of undecided comparisons only is left out.
    return json.dumps({key: value for key, value in entry.items() if value == value}) + "\n"


def read_log(path: Path) -> list[dict[str, Any]]:
    """Entries of a training log, none when there is no file; a last line that was cut off while it
    was written is passed over. Raises PalateError for another line that is no entry."""
    if not path.exists():
        return []
    *whole, _ = path.read_bytes().split(b"\n")
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(whole, start=1):
        try:
            entry = json.loads(line)
            assert isinstance(entry["step"], int)
        except (ValueError, TypeError, KeyError, AssertionError) as error:
            raise PalateError(f"{path}:{number}: not a line of a training log") from error
        entries.append(entry)
    return entries


def refuse_overwrite(directory: Path, marker: str) -> None:
    """Raise PalateError when `directory` already holds a finished run."""
    if (directory / marker).exists():
        raise PalateError(
            f"{directory}: already holds a finished run ({marker}); choose another --output"
        )

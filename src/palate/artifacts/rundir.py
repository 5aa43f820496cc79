"""Run directories: each holds its configuration, versions, data hashes and seed."""

import platform
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from palate.artifacts.files import write_json
from palate.errors import PalateError

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
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    candidate, number = Path(root) / stem, 2
    while not goes_on(candidate) and (
        candidate.is_file() or (candidate.exists() and any(candidate.iterdir()))
    ):
        candidate, number = Path(root) / f"{stem}-{number}", number + 1
    return candidate


def describe_run(
    directory: Path, configuration: dict[str, Any], data_hashes: dict[str, str], seed: int
) -> None:
    """Write `run.json`, from which the run can be repeated."""
    write_json(
        directory / "run.json",
        {
            "configuration": configuration,
            "data_sha256": data_hashes,
            "seed": seed,
            "versions": versions(),
        },
    )


def refuse_overwrite(directory: Path, marker: str) -> None:
    """Raise PalateError when `directory` already holds a finished run."""
    if (directory / marker).exists():
        raise PalateError(
            f"{directory}: already holds a finished run ({marker}); choose another --output"
        )

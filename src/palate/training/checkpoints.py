"""Training checkpoints that are known to be whole."""

import json
import logging
import re
import shutil
from pathlib import Path

from palate.artifacts.files import write_json

MANIFEST = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")
logger = logging.getLogger(__name__)


def seal(checkpoint: Path) -> None:
    """Write the manifest, last: a checkpoint without it was cut off while it was written."""
    sizes = {
        path.relative_to(checkpoint).as_posix(): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    write_json(checkpoint / MANIFEST, {"bytes": sizes})


def is_complete(checkpoint: Path) -> bool:
    """Whether the manifest is there and every file it names has its size."""
    try:
        sizes = json.loads((checkpoint / MANIFEST).read_text())["bytes"]
    except (OSError, ValueError, KeyError):
        return False
    return all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == size
        for name, size in sizes.items()
    )


def checkpoints(directory: Path) -> list[Path]:
    """All checkpoint directories, oldest first, whole or not."""
    found = [p for p in directory.glob("checkpoint-*") if _NAME.fullmatch(p.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def newest_complete(directory: Path) -> Path | None:
    """The newest whole checkpoint; unfinished ones are deleted, with a word about it."""
    newest = None
    for path in checkpoints(directory):
        if is_complete(path):
            newest = path
        else:
            logger.warning("%s was cut off while it was written; deleted", path)
            shutil.rmtree(path)
    return newest


def rotate(directory: Path, keep: int, best: str | None) -> None:
    """Delete all whole checkpoints but the newest `keep` and the best."""
    for path in checkpoints(directory)[:-keep]:
        if best is None or path.resolve() != Path(best).resolve():
            shutil.rmtree(path)

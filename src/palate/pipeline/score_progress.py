"""How far a run of `palate score` has come: kept after a kill, and from strangers."""

import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from palate.artifacts.files import describe_os_error, write_json
from palate.errors import PalateError

TOKENS, ENDS, ROWS = "tokens.u32", "ends.u64", "rows.jsonl"
ORDER, SCORED = "order.u64", "scored.jsonl"
REWARDS, DISTANCES = "rewards.f32", "distances.f32"


@dataclass(frozen=True)
class Progress:
    """What is in the directory for good; bytes after it are of a step that a kill cut off."""

    identity: str
    """Hash of model, rendering and input."""
    with_support: bool = False
    """Whether support distances are written beside the rewards."""
    num_rows: int = 0
    """Rows rendered, in the order of the input."""
    num_errors: int = 0
    num_cut: int = 0
    num_bytes: int = 0
    """Of the rows file."""
    num_answers: int = 0
    """Answers that can be scored; those with an error are not counted."""
    num_tokens: int = 0
    is_rendered: bool = False
    """Whether these are all rows of the input."""
    num_scored: int = 0
    """Answers scored: the first so many of the order file."""

    def kept(self, directory: Path) -> str:
        """What a person who stops here should know."""
        if self.num_rows == 0:
            return "no row was finished"
        rewards = f" and the rewards of {self.num_scored} of {self.num_answers} answers"
        return (
            f"{self.num_rows} rows{rewards if self.num_scored else ''} are kept in {directory},"
            " the same command goes on from there"
        )


def partial_directory(output: str) -> Path:
    """Where everything lies until the output is whole."""
    return Path(output + ".partial")


def _owner(directory: Path) -> Path:
    return directory.with_name(directory.name + ".json")


def save(directory: Path, progress: Progress) -> None:
    """Record what is on the disk; it must be there already."""
    write_json(_owner(directory), asdict(progress))


def recorded(directory: Path, known: Progress) -> Progress:
    """`known`, or what is on the disk where that is further: a signal may come between a step's
    record and the news of it."""
    try:
        found = _read(_owner(directory), directory)
    except (OSError, PalateError):
        return known
    return max(known, found, key=lambda one: (one.num_rows, one.num_scored))


def forget(directory: Path) -> None:
    """Remove all files of a run whose output is in its place."""
    # A kill in the middle then leaves what the next run takes for empty. On a full disk not.
    with suppress(PalateError):
        save(directory, Progress(""))
    discard(directory)


def discard(directory: Path) -> None:
    """Remove the files of a run that has finished nothing."""
    shutil.rmtree(directory, ignore_errors=True)
    _owner(directory).unlink(missing_ok=True)


def claim(directory: Path, new: Progress) -> Progress:
    """What a run with the identity of `new` has finished already; `new` with an empty directory
    where it has nothing.

    Raises PalateError when the directory belongs to another model or other data, holds less than
    was recorded, or was not made by `palate score`.
    """
    owner = _owner(directory)
    try:
        if directory.exists() and not owner.exists():
            raise PalateError(f"{directory}: not written by palate score; remove it or rename it")
        if directory.exists():
            progress = _read(owner, directory)
            if progress.num_rows:
                if progress.identity != new.identity:
                    raise PalateError(
                        f"{directory}: left by a run with another model or other data; remove it to"
                        " start anew"
                    )
                _check_sizes(directory, progress)
                return progress
            shutil.rmtree(directory)
        # In this order, so that there is never a directory without a name to it.
        save(directory, new)
        directory.mkdir()
        return new
    except OSError as error:
        raise describe_os_error(error, directory, "write") from error


def _read(owner: Path, directory: Path) -> Progress:
    try:
        return Progress(**json.loads(owner.read_text()))
    except (TypeError, ValueError) as error:
        raise PalateError(
            f"{directory}: not written by this version of palate score; remove it and {owner.name}"
        ) from error


def _check_sizes(directory: Path, progress: Progress) -> None:
    sizes = {
        TOKENS: 4 * progress.num_tokens,
        ENDS: 8 * progress.num_answers,
        ROWS: progress.num_bytes,
    }
    if progress.num_scored:
        sizes |= {ORDER: 8 * progress.num_answers, REWARDS: 4 * progress.num_answers}
        if progress.with_support:
            sizes[DISTANCES] = 4 * progress.num_answers
    for name, num_bytes in sizes.items():
        path = directory / name
        if num_bytes and (not path.exists() or path.stat().st_size < num_bytes):
            raise PalateError(
                f"{path}: shorter than the {num_bytes} bytes that were written; remove {directory}"
                " to start anew"
            )

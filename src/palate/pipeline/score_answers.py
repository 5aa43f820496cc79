"""Rendered rows on disk, between the one pass that renders them and the one that writes them.

Three files grow row by row: `tokens.u32` (ids of all answers with their prompts, one after another,
big-endian, so that the order of the bytes is the order of the ids), `ends.u64` (where each answer
ends there, in tokens) and `rows.jsonl` (each row with what is known of its answers but rewards).
`rewards.f32`, and `distances.f32` where support is asked for, have a place for each answer. The
other numbers are little-endian.

Legend: A answers.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from palate.model.support import Trust
from palate.pipeline.score_progress import DISTANCES, ENDS, REWARDS, ROWS, TOKENS, Progress
from palate.pipeline.score_rows import PendingRow, ScoredRow

Ids = tuple[int, ...]


def append_rows(directory: Path, rows: Sequence[PendingRow], progress: Progress) -> Progress:
    """Write rows behind those of `progress`, over whatever stands there; return the progress with
    them, once they are on the disk."""
    known = [ids for row in rows for ids in row.ids if ids is not None]
    tokens = b"".join(np.asarray(ids, ">u4").tobytes() for ids in known)
    end_A = progress.num_tokens + np.cumsum([len(ids) for ids in known], dtype="<u8")
    lines = "".join(json.dumps(row.record(), default=str) + "\n" for row in rows).encode()
    with opened(directory / TOKENS, 4 * progress.num_tokens) as handle:
        handle.write(tokens)
    with opened(directory / ENDS, 8 * progress.num_answers) as handle:
        handle.write(end_A.astype("<u8").tobytes())
    with opened(directory / ROWS, progress.num_bytes) as handle:
        handle.write(lines)
    return replace(
        with_counts(progress, rows),
        num_bytes=progress.num_bytes + len(lines),
        num_answers=progress.num_answers + len(known),
        num_tokens=progress.num_tokens + len(tokens) // 4,
    )


def with_counts(progress: Progress, rows: Sequence[PendingRow]) -> Progress:
    """The progress with these rows counted, and what is to be said of them."""
    return replace(
        progress,
        num_rows=progress.num_rows + len(rows),
        num_errors=progress.num_errors + sum(bool(row.errors) for row in rows),
        num_cut=progress.num_cut + sum(row.is_cut for row in rows),
    )


class AnswerStore:
    """Token ids of the answers that were appended, by their place; the files are mapped."""

    def __init__(self, directory: Path, progress: Progress) -> None:
        self.end_A = mapped(directory / ENDS, "<u8", progress.num_answers)
        self._tokens = mapped(directory / TOKENS, ">u4", progress.num_tokens)

    def __len__(self) -> int:
        return len(self.end_A)

    def __getitem__(self, place: int) -> np.ndarray:
        """Ids of one answer with its prompt: big-endian uint32."""
        start = int(self.end_A[place - 1]) if place else 0
        return self._tokens[start : int(self.end_A[place])]


def write_values(path: Path, places: Sequence[int], value_A: np.ndarray, num_answers: int) -> None:
    """Write float32 rewards or distances to the places of their answers; on the disk when this
    returns."""
    # Not through a mapped array: a full disk would end the process instead of raising an error.
    with opened(path, 4 * num_answers) as handle:
        for place, value in zip(places, value_A.astype("<f4"), strict=True):
            os.pwrite(handle.fileno(), value.tobytes(), 4 * place)


def read_rows(
    directory: Path, progress: Progress, trust: Trust | None
) -> Iterator[tuple[ScoredRow, slice]]:
    """All rows in the order of the input, and the places of their answers that have a reward."""
    num_distances = 0 if trust is None else progress.num_answers
    reward_A = mapped(directory / REWARDS, "<f4", progress.num_answers)
    distance_A = mapped(directory / DISTANCES, "<f4", num_distances)
    place = 0
    with open(directory / ROWS, "rb") as handle:
        for line in islice(handle, progress.num_rows):
            record = json.loads(line)
            places = slice(place, place + sum(record["is_known"]))
            rewards, distances = reward_A[places].tolist(), distance_A[places].tolist()
            yield ScoredRow.of_record(record, rewards, distances, trust), places
            place = places.stop


def mapped(path: Path, dtype: str, count: int) -> np.ndarray:
    """The first numbers of a file, read page by page; none can't be mapped."""
    if count == 0:
        return np.empty(0, dtype)
    # A plain view of the map: slices of numpy's memmap class take ten times as long.
    return np.asarray(np.memmap(path, dtype, "r", shape=(count,)))


@contextmanager
def opened(path: Path, size: int) -> Iterator[IO[bytes]]:
    """The file, made to have `size` bytes, open at its end; what was written is on the disk after
    the block. An OSError has the name of the file."""
    try:
        path.touch()
        with open(path, "r+b") as handle:
            handle.truncate(size)
            handle.seek(size)
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise

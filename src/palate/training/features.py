"""Pooled states of token sequences, computed once and kept on disk.

A cache directory holds one folder for each body. A folder holds shards: safetensors files with the
SHA-256 of the token ids of U sequences and their pooled states. A state is found by what it was
computed from and by nothing else, so other data, another split, template or length limit reads
what it shares with earlier runs and computes the rest.

Legend: N sequences, U distinct ones, B of them in one shard, D width of the body.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from palate.artifacts.files import atomic_path, describe_os_error, write_json
from palate.artifacts.progress import progress
from palate.errors import PalateError
from palate.forest import plan_groups
from palate.forest.tree import Ids
from palate.model.reward_model import RewardModel

FORMAT_VERSION = 1
SHARD_SEQUENCES = 512
"""A shard is written after so many sequences: at most so much is lost when a run is killed."""
LEAST_DEVIATION = 0.01
"""Of a feature, as a share of the median over features."""
UNHASHED_CONFIG = (
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "transformers_version",
    "use_cache",
)
"""Keys of a configuration that change no state; the weights' own types are hashed with them."""
logger = logging.getLogger(__name__)


def default_cache_directory() -> Path:
    """palate/features under XDG_CACHE_HOME, or under ~/.cache where that is not set."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has relative paths ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "palate/features"


def body_key(model: RewardModel) -> str:
    """SHA-256 of all that a pooled state depends on besides its token ids.

    Class, configuration, pooling, and name, type, shape and bytes of every weight below the head,
    as they are in memory: a pooler that the checkpoint lacks is drawn when it is loaded, and the
    checkpoint's files don't know it. Layout and microbatches are no part of it, because they change
    no state beyond rounding.
    """
    # Layers between body and head take part in `cls` pooling alone.
    module = model.transformer if model.pooling == "cls" else model.body
    head = f"{model.head_name}."
    config = {
        key: value
        for key, value in model.config.to_diff_dict().items()
        if key not in UNHASHED_CONFIG
    }
    # The module's name tells apart versions of code that a checkpoint brings along.
    made_by = f"{type(module).__module__}.{type(module).__name__}"
    about = [FORMAT_VERSION, made_by, model.pooling, config]
    found = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        if name.startswith(head):
            continue
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy())
    return found.hexdigest()


def sequence_key(ids: Ids) -> bytes:
    """SHA-256 of token ids."""
    return hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).digest()


@dataclass(frozen=True)
class Block:
    """Rows of one shard."""

    path: Path
    row_B: np.ndarray


@dataclass(frozen=True)
class Features:
    """Pooled states of N sequences, float32, read from disk whenever they are asked for.

    Distinct sequences are numbered along the blocks. No more than one shard is in memory at a time.
    """

    blocks: tuple[Block, ...]
    distinct_N: np.ndarray
    """Number of each sequence among the distinct ones."""
    num_computed: int
    """Sequences that the cache did not hold before."""

    def read(self) -> Iterator[np.ndarray]:
        """Pooled states of the distinct sequences, block by block."""
        for block in self.blocks:
            with safe_open(block.path, framework="numpy") as tensors:
                yield tensors.get_tensor("state_UD")[block.row_B]

    def take(self, sequences: np.ndarray) -> np.ndarray:
        """Pooled states of some of the sequences by their index, row by row."""
        starts = np.cumsum([0, *(len(block.row_B) for block in self.blocks)])
        numbers = self.distinct_N[sequences]
        states: dict[int, np.ndarray] = {}
        for index in np.unique(np.searchsorted(starts, numbers, side="right") - 1):
            block, start = self.blocks[index], starts[index]
            inside = np.unique(numbers[(start <= numbers) & (numbers < starts[index + 1])])
            with safe_open(block.path, framework="numpy") as tensors:
                state = tensors.get_slice("state_UD")
                states.update((n, state[int(block.row_B[n - start])]) for n in inside)
        return np.stack([states[number] for number in numbers])


def moments(features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature over the distinct sequences; float64, shape D.

    A deviation below `LEAST_DEVIATION` times the median of those above 0 is raised to it: divided
    by less, rounding and texts unlike these would be blown up.
    """
    count = sum(len(block.row_B) for block in features.blocks)
    sums = (state_BD.sum(axis=0, dtype=np.float64) for state_BD in features.read())
    mean_D: np.ndarray = sum(sums, start=np.zeros(())) / count
    squares = (((state_BD - mean_D) ** 2).sum(axis=0) for state_BD in features.read())
    deviation_D: np.ndarray = np.sqrt(sum(squares, start=np.zeros(())) / count)
    if not deviation_D.any():
        raise PalateError(
            f"all {count} texts have the same pooled state: this body does not tell them apart;"
            " choose another body or pooling"
        )
    least = LEAST_DEVIATION * np.median(deviation_D[deviation_D > 0])
    return mean_D, np.maximum(deviation_D, least)


def cached_features(
    model: RewardModel,
    groups: Sequence[Sequence[Ids]],
    folder: Path,
    tokens_per_microbatch: int,
    pad_id: int,
) -> Features:
    """Pooled states of the groups' sequences, in their order; those not in `folder` are computed.

    `folder` is the cache directory joined with `body_key(model)`. Each shard appears whole or not
    at all, so a killed run goes on where it was; a damaged one is computed again.
    Raises PalateError when the folder can't be written, or when a state is not finite.
    """
    places = _read_places(folder)
    keys = [[sequence_key(ids) for ids in group] for group in groups]
    missing = _missing(groups, keys, places)
    if missing:
        _describe(folder, model)
    for part in progress(_parts(missing), "features"):
        state_UD = _compute(model, part, tokens_per_microbatch, pad_id)
        written = [sequence_key(ids) for group in part for ids in group]
        path = _write_shard(folder, written, state_UD)
        places.update((key, (path, row)) for row, key in enumerate(written))
    return _locate([places[key] for group in keys for key in group], sum(map(len, missing)))


def _missing(
    groups: Sequence[Sequence[Ids]],
    keys: Sequence[Sequence[bytes]],
    places: dict[bytes, tuple[Path, int]],
) -> list[list[Ids]]:
    """Of each group the sequences that are nowhere yet, each once; groups without one left out."""
    seen = set(places)
    missing: list[list[Ids]] = []
    for group, group_keys in zip(groups, keys, strict=True):
        new: list[Ids] = []
        for ids, key in zip(group, group_keys, strict=True):
            if key not in seen:
                seen.add(key)
                new.append(ids)
        if new:
            missing.append(new)
    return missing


def _parts(groups: Sequence[Sequence[Ids]]) -> list[list[Sequence[Ids]]]:
    """Whole groups, `SHARD_SEQUENCES` sequences or a few more at a time."""
    parts: list[list[Sequence[Ids]]] = []
    size = SHARD_SEQUENCES
    for group in groups:
        if size >= SHARD_SEQUENCES:
            parts.append([])
            size = 0
        parts[-1].append(group)
        size += len(group)
    return parts


def _compute(
    model: RewardModel, groups: Sequence[Sequence[Ids]], tokens_per_microbatch: int, pad_id: int
) -> np.ndarray:
    """Pooled states in the order of the groups' sequences, float32."""
    states: dict[int, np.ndarray] = {}
    with model.scoring_mode():
        for plan in plan_groups(groups, model.packing(tokens_per_microbatch, pad_id)):
            hidden_ND = model.run(plan).hidden_ND.cpu().numpy()
            ends = np.cumsum([len(groups[index]) for index in plan.groups])[:-1]
            states.update(zip(plan.groups, np.split(hidden_ND, ends), strict=True))
    state_UD = np.concatenate([states[index] for index in range(len(groups))])
    if not np.isfinite(state_UD).all():
        raise PalateError(
            f"the body's pooled states are not finite in {next(model.parameters()).dtype}; load it"
            " with body.dtype float32"
        )
    return state_UD


def _describe(folder: Path, model: RewardModel) -> None:
    """Say beside the shards whose they are, for the person who looks for space."""
    about = {
        "body": getattr(model.config, "_name_or_path", ""),
        "class": type(model.transformer).__name__,
        "pooling": model.pooling,
    }
    write_json(folder / "body.json", about)


def _write_shard(folder: Path, keys: Sequence[bytes], state_UD: np.ndarray) -> Path:
    path = folder / f"{hashlib.sha256(b''.join(keys)).hexdigest()[:32]}.safetensors"
    tensors = {
        "key_U": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), -1),
        "state_UD": state_UD,
    }
    with atomic_path(path) as temporary:
        # `save_file` reports a full disk with a class of its own, outside OSError.
        temporary.write_bytes(save(tensors, {"body": folder.name}))
    return path


def _read_places(folder: Path) -> dict[bytes, tuple[Path, int]]:
    """Shard and row of every sequence in the folder."""
    places: dict[bytes, tuple[Path, int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as tensors:
                metadata = tensors.metadata() or {}
                keys = [bytes(key) for key in tensors.get_tensor("key_U")]
                num_rows = tensors.get_slice("state_UD").get_shape()[0]
        except SafetensorError as error:
            logger.warning("%s is damaged (%s); its states are computed again", path, error)
            with suppress(OSError):  # in a cache that others own it may have to stay
                path.unlink()
            continue
        except OSError as error:
            raise describe_os_error(error, path, "read") from error
        if metadata.get("body") != folder.name or num_rows != len(keys):
            logger.warning("%s belongs to another body; not used", path)
            continue
        places.update((key, (path, row)) for row, key in enumerate(keys))
    return places


def _locate(places: Sequence[tuple[Path, int]], num_computed: int) -> Features:
    distinct = sorted(set(places))
    number = {place: index for index, place in enumerate(distinct)}
    rows: dict[Path, list[int]] = {}
    for path, row in distinct:
        rows.setdefault(path, []).append(row)
    blocks = tuple(Block(path, np.array(row_B)) for path, row_B in rows.items())
    return Features(blocks, np.array([number[place] for place in places]), num_computed)

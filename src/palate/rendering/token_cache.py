"""Token ids that earlier runs made, kept on disk.

A cache directory holds one folder for each renderer: all that decides the ids of a text besides the
text itself. A folder holds shards: safetensors files with the SHA-256 of the texts of U groups and
their token ids, 4 bytes a token. Ids are found by what they were made from and by nothing else, so
that other labels, another split or order, or more data, read what they share with earlier runs.

Legend: U groups of a shard, N their sequences, T their tokens, G groups of a folder.
"""

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from palate.artifacts.files import atomic_path, write_json
from palate.errors import PalateError
from palate.preferences import types
from palate.rendering import group_ids, renderer, template, tokens
from palate.rendering.group_ids import GroupIds, GroupText
from palate.rendering.renderer import Renderer
from palate.rendering.settings import RenderSettings

FORMAT_VERSION = 1
SHARD_GROUPS = 1024
SHARD_TOKENS = 1 << 20
"""A shard is written after so many groups or tokens: at most so much is lost with a killed run."""
SHARDS_IN_MEMORY = 8
_ARRAYS = ("key_U32", "num_sequences_U", "num_cut_U", "length_N", "num_over_N", "token_T")
_PLAIN = (str, int, float, bool, type(None))
logger = logging.getLogger(__name__)


def text_key(text: GroupText) -> bytes | None:
    """SHA-256 of all that a group's ids depend on besides the renderer.

    None where that is not known: for values that are not plain JSON. Order counts, because a
    template may print an object as it stands.
    """
    further: list[Any] = [list(text.tools), text.template_arguments]
    turns = [(message.role, message.content) for message in text.prompt]
    if any(message.extra for message in text.prompt):
        further.append([message.extra for message in text.prompt])
    if not _is_plain(further):
        return None
    responses = [(response.text, response.finished) for response in text.responses]
    return hashlib.sha256(json.dumps([turns, responses, further]).encode()).digest()


def renderer_key(renderer: Renderer) -> str | None:
    """SHA-256 of all else that decides ids: fingerprint, limits, palate's code, versions.

    None for template arguments that are not plain JSON.
    """
    arguments = dict(renderer.template_arguments)
    if not _is_plain(arguments):
        return None
    lengths, kind = renderer.lengths, type(renderer)
    about = [
        FORMAT_VERSION,
        _code_sha256(),
        [version(name) for name in ("tokenizers", "transformers", "Jinja2")],
        f"{kind.__module__}.{kind.__qualname__}",
        renderer.fingerprint(),
        arguments,
        # Templates read them by name, such as bos_token.
        renderer.tokenizer.special_tokens_map,
        renderer.end_of_turn,
        [lengths.max_prompt_tokens, lengths.max_response_tokens],
        [renderer.keep_template, renderer.unread_id],
    ]
    return hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()


@cache
def _code_sha256() -> str:
    """Of the modules between a text and its ids: whoever changes them need not think of caches."""
    found = hashlib.sha256()
    for module in (group_ids, renderer, template, tokens, types):
        found.update(Path(str(module.__file__)).read_bytes())
    return found.hexdigest()


def _is_plain(value: Any) -> bool:
    """Whether equal JSON means an equal value."""
    if type(value) is dict:
        return all(type(key) is str and _is_plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(_is_plain, value))
    return type(value) in _PLAIN


def open_cache(settings: RenderSettings, renderer: Renderer) -> "TokenCache | None":
    """The renderer's part of the cache; None where there is to be none, or can't be one.

    Raises PalateError when a directory that the settings name can't be written; without the default
    one a run goes on, with a warning.
    """
    directory, key = settings.cache_directory, renderer_key(renderer)
    if directory is None:
        return None
    if key is None:
        logger.warning("template_arguments are not plain JSON: token ids are not cached")
        return None
    folder = directory / key
    try:
        if not (folder / "renderer.json").exists():
            write_json(folder / "renderer.json", _description(renderer))
    except (PalateError, OSError) as error:
        if settings.cache:
            raise PalateError(f"token cache: {error}") from error
        logger.warning("token ids are not cached: %s", error)
        return None
    return TokenCache(folder)


def _description(renderer: Renderer) -> dict[str, Any]:
    """Whose the shards are, for the person who looks for space."""
    lengths = renderer.lengths
    return {
        **renderer.fingerprint(),
        "max_prompt_tokens": lengths.max_prompt_tokens,
        "max_response_tokens": lengths.max_response_tokens,
    }


class TokenCache:
    """Ids by key. Never stands in the way: what can't be read is made again, what can't be written
    is not kept, each with a warning.

    Holds 16 bytes for each group of the folder, `SHARDS_IN_MEMORY` shards, and one to be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths = sorted(folder.glob("*.safetensors"))
        self._start_G, self._place_G2 = _index(self._paths)
        self._read: OrderedDict[int, _Shard | None] = OrderedDict()
        self._new: list[tuple[bytes, GroupIds]] = []
        self._num_new_tokens = 0
        self._is_writable = True

    def get(self, key: bytes) -> GroupIds | None:
        """The ids of a key; None where there are none, or none that can be trusted."""
        start = _start_of(key)
        at = int(np.searchsorted(self._start_G, start)[0])
        while at < len(self._start_G) and self._start_G[at] == start[0]:
            shard_number, row = self._place_G2[at].tolist()
            shard = self._shard(shard_number)
            if shard is not None and shard.keys[row] == key:
                return shard.ids(row)
            at += 1
        return None

    def add(self, key: bytes, ids: GroupIds) -> None:
        """Keep ids for later runs; this one does not find them."""
        if not self._is_writable:
            return
        self._new.append((key, ids))
        self._num_new_tokens += sum(map(len, ids.sequences))
        if len(self._new) >= SHARD_GROUPS or self._num_new_tokens >= SHARD_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        new, self._new, self._num_new_tokens = self._new, [], 0
        if not new:
            return
        try:
            _write_shard(self.folder, new)
        except PalateError as error:
            self._is_writable = False
            logger.warning("further token ids are not cached: %s", error)

    def _shard(self, number: int) -> "_Shard | None":
        if number not in self._read:
            self._read[number] = _read_shard(self._paths[number])
            if len(self._read) > SHARDS_IN_MEMORY:
                self._read.popitem(last=False)
        self._read.move_to_end(number)
        return self._read[number]


@dataclass(frozen=True)
class _Shard:
    keys: Sequence[bytes]
    num_cut_U: np.ndarray
    num_over_N: np.ndarray
    token_T: np.ndarray
    sequence_starts: np.ndarray
    """Shape U + 1: the first sequence of each group, and N."""
    token_starts: np.ndarray
    """Shape N + 1: the first token of each sequence, and T."""
    failures: dict[str, tuple[str, str]]
    """By row: message and reason."""

    def ids(self, row: int) -> GroupIds:
        first, last = self.sequence_starts[row : row + 2].tolist()
        starts = self.token_starts[first : last + 1].tolist()
        failure = self.failures.get(str(row))
        return GroupIds(
            tuple(tuple(self.token_T[start:stop].tolist()) for start, stop in pairwise(starts)),
            tuple(self.num_over_N[first:last].tolist()),
            int(self.num_cut_U[row]),
            None if failure is None else (failure[0], failure[1]),
        )


def _start_of(key: bytes) -> np.ndarray:
    return np.frombuffer(key, "<u8", 1)


def _index(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """First 8 bytes of every key in the shards, sorted, and its shard and row; shapes G, G × 2."""
    starts: list[np.ndarray] = [np.empty(0, np.uint64)]
    places: list[np.ndarray] = [np.empty((0, 2), np.uint32)]
    for number, path in enumerate(paths):
        try:
            with safe_open(path, framework="numpy") as tensors:
                key_U32 = tensors.get_tensor("key_U32")
            start_U = np.ascontiguousarray(key_U32[:, :8]).view("<u8")[:, 0]
        except (SafetensorError, OSError, ValueError, IndexError) as error:
            _set_aside(path, error)
            continue
        starts.append(start_U)
        row_U = np.arange(len(start_U))
        places.append(np.stack([np.full_like(row_U, number), row_U], axis=1).astype(np.uint32))
    start_G, place_G2 = np.concatenate(starts), np.concatenate(places)
    order = np.argsort(start_G, kind="stable")
    return start_G[order], place_G2[order]


def _write_shard(folder: Path, new: Sequence[tuple[bytes, GroupIds]]) -> None:
    keys = b"".join(key for key, _ in new)
    sequences = [sequence for _, ids in new for sequence in ids.sequences]
    arrays = {
        "key_U32": np.frombuffer(keys, np.uint8).reshape(len(new), -1),
        "num_sequences_U": np.array([len(ids.sequences) for _, ids in new], "<u4"),
        "num_cut_U": np.array([ids.num_cut for _, ids in new], "<u4"),
        "length_N": np.array([len(sequence) for sequence in sequences], "<u4"),
        "num_over_N": np.array([over for _, ids in new for over in ids.num_over], "<u4"),
        "token_T": np.array([token for sequence in sequences for token in sequence], "<u4"),
    }
    failures = json.dumps({row: ids.failure for row, (_, ids) in enumerate(new) if ids.failure})
    metadata = {
        "renderer": folder.name,
        "failures": failures,
        "sha256": _contents_sha256(arrays, failures),
    }
    # Named by its keys: two runs that make the same shard write the same file.
    path = folder / f"{hashlib.sha256(keys).hexdigest()[:32]}.safetensors"
    with atomic_path(path) as temporary:
        # `save_file` reports a full disk with a class of its own, outside OSError.
        temporary.write_bytes(save(arrays, metadata))


def _contents_sha256(arrays: dict[str, np.ndarray], failures: str) -> str:
    found = hashlib.sha256(failures.encode())
    for name in _ARRAYS:
        found.update(f"{name} {arrays[name].shape} ".encode())
        found.update(arrays[name].tobytes())
    return found.hexdigest()


def _read_shard(path: Path) -> _Shard | None:
    """The shard; None when it can't be read; damaged or of another folder, it is deleted."""
    try:
        with safe_open(path, framework="numpy") as tensors:
            arrays = {name: tensors.get_tensor(name) for name in _ARRAYS}
            metadata = tensors.metadata() or {}
        failures = metadata.get("failures", "")
        if metadata.get("sha256") != _contents_sha256(arrays, failures):
            raise ValueError("its contents are not those that were written")
        if metadata.get("renderer") != path.parent.name:
            raise ValueError("it belongs to another renderer")
    except (SafetensorError, OSError, ValueError) as error:
        _set_aside(path, error)
        return None
    return _Shard(
        [bytes(key) for key in arrays["key_U32"]],
        arrays["num_cut_U"],
        arrays["num_over_N"],
        arrays["token_T"],
        np.concatenate([[0], np.cumsum(arrays["num_sequences_U"], dtype=np.int64)]),
        np.concatenate([[0], np.cumsum(arrays["length_N"], dtype=np.int64)]),
        json.loads(failures),
    )


def _set_aside(path: Path, error: Exception) -> None:
    logger.warning("%s can't be read (%s); its token ids are made again", path, error)
    if not isinstance(error, OSError):  # a file out of reach need not be damaged
        with suppress(OSError):  # in a cache that others own it may have to stay
            path.unlink()

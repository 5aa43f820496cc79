"""Rendered groups on disk: for training on more than fits in memory.

A store is a directory of plain files: `tokens.u32` (ids of all sequences, one after another),
`lengths.u32` (of each sequence), `groups.jsonl` (a line for each group: canonical row, place,
comparisons), `index.npy` and `store.json`, which is written last: without it the store is
unfinished. Numbers are little-endian.

Legend: G groups, N sequences.
"""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from palate.artifacts.files import atomic_path, describe_os_error, write_json
from palate.errors import PalateError
from palate.preferences.types import Comparison, Message, PreferenceGroup, Response, Vote
from palate.preferences.writers import to_canonical
from palate.rendering.groups import RenderedGroup

VERSION = 1
INDEX, SUMMARY = "index.npy", "store.json"
TOKENS, LENGTHS, GROUPS = "tokens.u32", "lengths.u32", "groups.jsonl"
_PLACE = ("file", "line", "further_lines", "source", "votes_counted")


class GroupStore(Sequence[RenderedGroup]):
    """The groups of a finished store, each rebuilt when asked for.

    Equal to those that were written, as far as meta and the further fields of messages are plain
    JSON (what is read from JSON files is; a date from Parquet comes back as text). Holds 32 bytes a
    group. Raises PalateError where there is no finished store, or its files don't fit together.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        summary = _read_summary(self.directory)
        self.num_rows: int = summary["num_rows"]
        """Input rows that the groups are made of."""
        try:
            self._index_G3 = np.load(self.directory / INDEX)
            self._tokens = _mapped(self.directory / TOKENS, np.uint32)
            self._lengths_N = _mapped(self.directory / LENGTHS, np.uint32)
            self._text = _mapped(self.directory / GROUPS, np.uint8)
        except (OSError, ValueError) as error:
            raise PalateError(f"{directory}: a damaged store: {error}; write it again") from error
        ends = [len(self._tokens), len(self._lengths_N), len(self._text)]
        if self._index_G3[-1].tolist() != ends or summary["num_groups"] != len(self):
            raise PalateError(
                f"{directory}: a damaged store: its files hold {ends} tokens, sequences and bytes,"
                f" its index says {self._index_G3[-1].tolist()}; write it again"
            )
        self.num_tokens_G: np.ndarray = np.diff(self._index_G3[:, 0])
        """Tokens of each group, known without loading it."""

    def __len__(self) -> int:
        return len(self._index_G3) - 1

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        # Another process opens the files, it doesn't get what they hold.
        return GroupStore, (self.directory,)

    @overload
    def __getitem__(self, index: int) -> RenderedGroup: ...
    @overload
    def __getitem__(self, index: slice) -> list[RenderedGroup]: ...
    def __getitem__(self, index: int | slice) -> RenderedGroup | list[RenderedGroup]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        (token, sequence, start), (_, last, end) = self._index_G3[place : place + 2].tolist()
        sequences = []
        for length in self._lengths_N[sequence:last].tolist():
            sequences.append(tuple(self._tokens[token : token + length].tolist()))
            token += length
        row = json.loads(self._text[start:end].tobytes())
        return RenderedGroup(
            tuple(sequences),
            tuple(Comparison(*values) for values in row["comparisons"]),
            _group(row["group"], row["place"]),
            tuple(row["response_index"]),
        )


def token_counts(groups: Sequence[RenderedGroup]) -> list[int]:
    """Tokens of each group; those of a store without loading a group."""
    if isinstance(groups, GroupStore):
        return [int(count) for count in groups.num_tokens_G]
    return [group.num_tokens for group in groups]


def num_rows(groups: Sequence[RenderedGroup]) -> int:
    """Input rows that the groups are made of; those of a store without loading a group."""
    if isinstance(groups, GroupStore):
        return groups.num_rows
    return sum(group.group.num_rows for group in groups)


class GroupWriter:
    """Appends groups to the files of a store; made by `writing`."""

    def __init__(self, directory: Path, tokens: IO[bytes], lengths: IO[bytes], text: IO[bytes]):
        self.directory = directory
        self.num_rows = 0
        self._tokens, self._lengths, self._text = tokens, lengths, text
        self._index = array("Q", [0, 0, 0])

    def __len__(self) -> int:
        return len(self._index) // 3 - 1

    def append(self, group: RenderedGroup) -> None:
        """Write one group at the end."""
        line = _line(group)
        for sequence in group.sequences:
            self._tokens.write(np.asarray(sequence, "<u4").tobytes())
        self._lengths.write(np.array([len(s) for s in group.sequences], "<u4").tobytes())
        self._text.write(line)
        tokens, sequences, end = self._index[-3:]
        self._index.extend(
            (tokens + group.num_tokens, sequences + len(group.sequences), end + len(line))
        )
        self.num_rows += group.group.num_rows

    def finish(self) -> None:
        """Write the index, then the summary that makes the store a finished one."""
        for handle in (self._tokens, self._lengths, self._text):
            handle.close()
        index_G3 = np.asarray(self._index, np.int64).reshape(-1, 3)
        with atomic_path(self.directory / INDEX) as temporary, open(temporary, "wb") as handle:
            np.save(handle, index_G3)
        summary = {"version": VERSION, "num_groups": len(self), "num_rows": self.num_rows}
        write_json(self.directory / SUMMARY, summary)


@contextmanager
def writing(directory: str | Path) -> Iterator[GroupWriter]:
    """Write a store: `with writing(path) as writer: writer.append(group)`, then `GroupStore(path)`.

    A store that lies there is replaced. When the block fails, no file of it is left.
    """
    directory = Path(directory)
    names = (SUMMARY, INDEX, TOKENS, LENGTHS, GROUPS)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in names:
            (directory / name).unlink(missing_ok=True)
        with (
            open(directory / TOKENS, "wb") as tokens,
            open(directory / LENGTHS, "wb") as lengths,
            open(directory / GROUPS, "wb") as text,
        ):
            writer = GroupWriter(directory, tokens, lengths, text)
            yield writer
            writer.finish()
    except BaseException as error:
        with suppress(OSError):
            for name in names:
                (directory / name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise describe_os_error(error, directory, "write") from error
        raise


def _read_summary(directory: Path) -> Mapping[str, Any]:
    try:
        summary = json.loads((directory / SUMMARY).read_text())
    except (OSError, ValueError) as error:
        raise PalateError(f"{directory}: no finished store of groups: {error}") from error
    if summary.get("version") != VERSION:
        raise PalateError(
            f"{directory}: a store of version {summary.get('version')}, this palate reads"
            f" {VERSION}; write it again"
        )
    return dict(summary)


def _mapped(path: Path, dtype: type) -> np.ndarray:
    """The file as an array that is read page by page; an empty file can't be mapped."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(path, np.dtype(dtype).newbyteorder("<"), "r")


def _line(group: RenderedGroup) -> bytes:
    row = {
        "group": to_canonical(group.group),
        "place": {name: getattr(group.group, name) for name in _PLACE},
        "comparisons": [astuple(c) for c in group.comparisons],
        "response_index": group.response_index,
    }
    return (json.dumps(row, default=str) + "\n").encode()


def _group(row: Mapping[str, Any], place: Mapping[str, Any]) -> PreferenceGroup:
    """The group of a canonical row that `to_canonical` made; nothing in it is judged again."""
    return PreferenceGroup(
        tuple(_message(message) for message in row["prompt"]),
        tuple(Response(**response) for response in row["responses"]),
        tuple(Comparison(**comparison) for comparison in row["comparisons"]),
        tuple(_vote(vote) for vote in row.get("votes", ())),
        tuple(row.get("tools", ())),
        row.get("template_arguments", {}),
        id=row.get("id"),
        meta=row.get("meta", {}),
        **{**place, "further_lines": tuple(place["further_lines"])},
    )


def _message(fields: Mapping[str, Any]) -> Message:
    extra = {name: value for name, value in fields.items() if name not in ("role", "content")}
    return Message(fields["role"], fields["content"], extra)


def _vote(fields: Mapping[str, Any]) -> Vote:
    lists = {"ranking": tuple(tuple(tier) for tier in fields["ranking"])}
    if fields.get("shown") is not None:
        lists["shown"] = tuple(fields["shown"])
    return Vote(**{**fields, **lists})

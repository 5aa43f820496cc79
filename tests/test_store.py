"""Groups on disk are the groups in memory, whatever their number."""

import json
import os
import resource
import signal
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.errors import PalateError
from palate.preferences import PreferenceGroup
from palate.rendering import RenderedGroup
from palate.rendering.store import GroupStore, token_counts, writing
from tests.rows import any_groups
from tests.runs import pair_groups, ranked_group, rendered


def stored(directory: Path, groups: list[RenderedGroup]) -> GroupStore:
    with writing(directory) as writer:
        for group in groups:
            writer.append(group)
    return GroupStore(directory)


def files(directory: Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.exists() else []


def test_a_store_is_equal_to_the_list_it_was_made_of(tmp_path: Path) -> None:
    groups = [*pair_groups(5), *rendered([ranked_group(i, 2 + i) for i in range(4)])]
    store = stored(tmp_path / "store", groups)
    assert list(store) == groups
    assert len(store) == 9
    assert store[-1] == groups[-1]
    assert store[2:7:2] == groups[2:7:2]
    assert groups[3] in store
    with pytest.raises(IndexError):
        store[9]
    assert token_counts(store) == token_counts(groups) == [g.num_tokens for g in groups]
    assert store.num_rows == 9


@settings(max_examples=60)
@given(any_groups(), st.data())
def test_everything_that_a_group_can_hold_comes_back(
    tmp_path_factory: pytest.TempPathFactory, group: PreferenceGroup, data: st.DataObject
) -> None:
    """Any part of the responses, any ids of 32 bits, comparisons other than the group's own."""
    ids = st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple)
    kept = data.draw(st.sets(st.integers(0, len(group.responses) - 1), min_size=1).map(sorted))
    sequences = tuple(data.draw(ids) for _ in kept)
    placed = replace(group, file="a.jsonl", line=3, further_lines=(5, 9), source="forum")
    item = RenderedGroup(sequences, group.comparisons[:1], placed, tuple(kept))
    store = stored(tmp_path_factory.mktemp("store"), [item, item])
    assert list(store) == [item, item]
    assert store.num_rows == 6


def test_a_store_of_nothing_is_empty(tmp_path: Path) -> None:
    store = stored(tmp_path, [])
    assert list(store) == []
    assert token_counts(store) == []


def test_a_store_that_was_not_finished_is_none_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        stored(tmp_path / "store", [*pair_groups(2), None])  # type: ignore[list-item]
    assert files(tmp_path / "store") == []
    with pytest.raises(PalateError, match="no finished store"):
        GroupStore(tmp_path / "store")


def test_a_store_is_replaced_as_a_whole(tmp_path: Path) -> None:
    stored(tmp_path, pair_groups(7))
    assert len(stored(tmp_path, pair_groups(3))) == 3
    assert len(GroupStore(tmp_path)) == 3


@pytest.mark.parametrize("name", ["tokens.u32", "lengths.u32", "groups.jsonl"])
def test_a_store_with_a_cut_file_is_refused(tmp_path: Path, name: str) -> None:
    stored(tmp_path, pair_groups(3))
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(PalateError, match="damaged store"):
        GroupStore(tmp_path)


def test_a_store_of_another_version_or_without_its_index_is_refused(tmp_path: Path) -> None:
    stored(tmp_path, pair_groups(3))
    summary = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**summary, "version": 99}))
    with pytest.raises(PalateError, match="version 99"):
        GroupStore(tmp_path)
    (tmp_path / "store.json").write_text(json.dumps(summary))
    (tmp_path / "index.npy").unlink()
    with pytest.raises(PalateError, match="damaged store"):
        GroupStore(tmp_path)


def test_a_full_disk_is_said_in_words(tmp_path: Path) -> None:
    """A limit of 8 kB a file stands for the full disk."""
    groups = pair_groups(200)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
        with pytest.raises(PalateError, match="the file would be larger than allowed here"):
            stored(tmp_path / "store", groups)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert files(tmp_path / "store") == []


def test_memory_does_not_grow_with_what_is_stored(tmp_path: Path) -> None:
    """20,000 groups of 1,000 tokens and 2 kB of text: 80 MB of ids and 45 MB of rows. Writing and
    reading all of them takes less than 4 MB of Python's memory: 24 bytes of index a group and a
    group at a time."""
    (small,) = rendered([ranked_group(1, 2)])
    long = replace(small.group, meta={"note": "x" * 2000})
    item = replace(small, sequences=((7,) * 500, (8,) * 500), group=long)
    tracemalloc.start()
    with writing(tmp_path) as writer:
        for _ in range(20_000):
            writer.append(item)
    store = GroupStore(tmp_path)
    num_tokens = sum(store[i].num_tokens for i in range(0, 20_000, 20))
    counts = store.num_tokens_G
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_tokens == 1_000_000
    assert np.all(counts == 1000)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) > 120e6
    assert peak_bytes < 4e6

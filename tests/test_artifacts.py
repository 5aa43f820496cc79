"""Files are whole or absent, whatever happens while they are written; the ledger adds up."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.artifacts.files import (
    atomic_path,
    describe_os_error,
    open_binary,
    sha256_file,
    sha256_json,
    write_json,
    write_text,
)
from palate.artifacts.hub import looks_like_hub_id, model_directory
from palate.artifacts.ledger import Ledger
from palate.artifacts.rundir import describe_run, next_run_directory, refuse_overwrite
from palate.errors import PalateError


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    """/dev/full answers every write as a full disk does; here the temporary file leads there."""
    path = tmp_path / "metrics.json"
    write_json(path, {"accuracy": 0.5})

    def write_to_a_full_disk() -> None:
        with atomic_path(path) as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_text("half of a new file")

    with pytest.raises(PalateError, match="cannot write: the disk is full; free space") as refusal:
        write_to_a_full_disk()
    assert str(refusal.value).startswith(f"{path}: ")
    assert json.loads(path.read_text()) == {"accuracy": 0.5}
    assert names(tmp_path) == ["metrics.json"]


def test_a_write_that_breaks_off_half_way_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    """The process may write 4,096 bytes to a file, and the ledger needs more: the system takes the
    first ones and refuses the rest."""
    path = tmp_path / "ledger.jsonl"
    path.write_text("old\n")
    script = (
        "import resource, sys\n"
        "from palate.artifacts.ledger import Ledger\n"
        "from palate.errors import PalateError\n"
        "ledger = Ledger()\n"
        "for line in range(1000):\n"
        "    ledger.add('f', line, 'row', 'empty response')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    ledger.write(sys.argv[1])\n"
        "except PalateError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{path}: cannot write: the file would be larger than allowed")
    assert path.read_text() == "old\n"
    assert names(tmp_path) == ["ledger.jsonl"]


def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text("old")
    script = (
        "import sys\n"
        "from palate.artifacts.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as temporary, open(temporary, 'w') as handle:\n"
        "    handle.write('half of a new file')\n"
        "    handle.flush()\n"
        "    print('writing', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"


def test_an_error_or_an_interrupt_while_writing_leaves_the_old_file_and_no_other(
    tmp_path: Path,
) -> None:
    path = tmp_path / "card.md"
    write_text(path, "old")

    def break_off(reason: BaseException) -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of a new file")
            raise reason

    for reason in (KeyboardInterrupt(), ZeroDivisionError()):
        with pytest.raises(type(reason)):
            break_off(reason)
    with pytest.raises(TypeError):
        write_json(path, {"not JSON": object()})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "a lone surrogate \ud800")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["card.md"]


def test_writing_makes_the_folders_on_the_way_and_keeps_every_character(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a b" / "values.json"
    value = {"ü": ["日本", "\u2028", "\x00", 0.1, None], "a": {"2": 1, "1": 2}}
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value
    assert "日本" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOENT, "no such file; check the path"),
        (errno.EACCES, "no permission to write it; change its mode or owner"),
        (errno.EPERM, "no permission to write it; change its mode or owner"),
        (errno.ENOSPC, "the disk is full; free space and run the same command again"),
        (errno.EDQUOT, "the disk quota is used up; free space"),
        (errno.EISDIR, "it is a directory; name a file"),
        (errno.ENOTDIR, "a part of its path is a file"),
        (errno.EROFS, "the file system is read-only; choose another output"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_an_error_of_the_system_becomes_path_cause_and_remedy(code: int, said: str) -> None:
    described = describe_os_error(OSError(code, os.strerror(code)), "runs/a.json", "write")
    assert str(described).startswith(f"runs/a.json: cannot write: {said}")


def test_without_permission_neither_reading_nor_writing_ends_in_a_traceback(
    tmp_path: Path,
) -> None:
    """In a process of nobody's where this one is root's, whom permissions don't stop."""
    locked = tmp_path / "locked"
    locked.mkdir()
    (locked / "votes.jsonl").write_text("{}\n")
    locked.chmod(0)
    script = (
        "import os, sys\n"
        "from palate.artifacts.files import write_json\n"
        "from palate.errors import PalateError\n"
        "from palate.preferences import read\n"
        "if os.geteuid() == 0:\n"
        "    os.setuid(65534)\n"
        "for action in (read, lambda path: write_json(path, {})):\n"
        "    try:\n"
        "        action(sys.argv[1])\n"
        "    except PalateError as error:\n"
        "        print(error)\n"
    )
    path = str(locked / "votes.jsonl")
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=False
    )
    locked.chmod(0o700)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"{path}: cannot {action}: no permission to {action} it; change its mode or owner"
        for action in ("read", "write")
    ]


def test_a_path_that_cannot_hold_a_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for path, said in (
        (tmp_path / "folder", "it is a directory; name a file"),
        (tmp_path / "file" / "deeper.json", "a part of its path is a file"),
        (tmp_path / ("x" * 300), "the name is too long"),
    ):
        with pytest.raises(PalateError) as refusal:
            write_json(path, {})
        assert str(refusal.value).startswith(f"{path}: cannot write")
        assert said in str(refusal.value)
    with pytest.raises(PalateError, match="cannot read: no such file"):
        sha256_file(tmp_path / "absent")
    with pytest.raises(PalateError, match="it is a directory"), open_binary(tmp_path / "folder"):
        pass
    assert names(tmp_path) == ["file", "folder"]


def test_hashes_are_those_of_the_bytes_and_of_the_value(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "a") == known
    assert sha256_json({"b": [1, 2], "a": "é"}) == sha256_json({"a": "é", "b": [1, 2]})
    assert sha256_json({"b": [1, 2]}) == hashlib.sha256(b'{"b":[1,2]}').hexdigest()
    assert sha256_json({"b": [2, 1]}) != sha256_json({"b": [1, 2]})


@given(
    st.lists(st.sampled_from(["empty response", "wrong type"]), max_size=8),
    st.lists(st.sampled_from(["response", "comparison", "token", "file"]), max_size=8),
    st.integers(0, 20),
)
def test_the_ledger_adds_up_exactly_or_says_so(
    rows: list[str], others: list[str], num_kept: int
) -> None:
    ledger = Ledger(num_rows_read=num_kept + len(rows))
    for line, reason in enumerate(rows, start=1):
        ledger.add("f", line, "row", reason)
    for kind in others:
        ledger.add("f", 1, kind, "cut")
    ledger.check(num_kept)
    first = f"{num_kept + len(rows)} rows in = {num_kept} in groups + {len(rows)} in the ledger"
    assert ledger.summary(num_kept).splitlines()[0] == first
    assert sum(ledger.by_reason().values()) == len(rows) + len(others)
    for wrong in (num_kept + 1, num_kept - 1):
        with pytest.raises(AssertionError, match="rows read"):
            ledger.check(wrong)


def test_a_row_that_is_ledgered_twice_is_our_mistake_and_found() -> None:
    ledger = Ledger(num_rows_read=3)
    ledger.add("f", 2, "row", "empty response")
    ledger.add("f", 2, "row", "wrong type")
    with pytest.raises(AssertionError, match="twice"):
        ledger.check(1)


def test_a_ledger_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    ledger = Ledger(num_rows_read=2)
    ledger.add("a\n.jsonl", 3, "row", "wrong type", "é \ud800 \u2028 " + "x" * 1000, "id 7")
    ledger.add("b.jsonl", 0, "file", "damaged gzip")
    ledger.write(tmp_path / "ledger.jsonl")
    entries = Ledger.load_entries(tmp_path / "ledger.jsonl")
    assert entries == ledger.entries
    assert len(entries[0].detail) == 500
    other = Ledger(num_rows_read=5)
    other.extend(ledger)
    assert (other.num_rows_read, other.num_rows_left_out) == (7, 1)
    assert "damaged gzip  (first: b.jsonl)" in other.summary(6)


def test_a_ledger_that_is_missing_or_damaged_is_refused_by_name_and_line(tmp_path: Path) -> None:
    with pytest.raises(PalateError, match="cannot read: no such file"):
        Ledger.load_entries(tmp_path / "none.jsonl")
    good = '{"file": "f", "line": 1, "kind": "row", "reason": "x"}\n'
    for bad in ("{", '{"file": "f"}', "[]", '{"unknown": 1}'):
        (tmp_path / "ledger.jsonl").write_text(good + bad + "\n")
        with pytest.raises(PalateError, match=r"ledger\.jsonl:2: not a line of a ledger"):
            Ledger.load_entries(tmp_path / "ledger.jsonl")


def test_a_run_never_moves_into_a_directory_that_holds_something(tmp_path: Path) -> None:
    first = next_run_directory("org/model: large", tmp_path)
    assert first == tmp_path / "org-model-large"
    first.mkdir()
    assert next_run_directory("org/model: large", tmp_path) == first
    (first / "run.json").write_text("{}")
    (tmp_path / "org-model-large-2").write_text("a file in the way")
    assert next_run_directory("org/model: large", tmp_path) == tmp_path / "org-model-large-3"
    assert names(tmp_path) == ["org-model-large", "org-model-large-2"]


@pytest.mark.parametrize("name", ["", "..", "../..", "/", ".", "--"])
def test_no_name_leads_a_run_out_of_its_root(tmp_path: Path, name: str) -> None:
    assert next_run_directory(name, tmp_path).parent == tmp_path
    assert next_run_directory(name, tmp_path).resolve().parent == tmp_path.resolve()


def test_a_run_says_from_what_it_can_be_repeated(tmp_path: Path) -> None:
    describe_run(tmp_path, {"model": "m"}, {"votes.jsonl": "00ff"}, 7, {"train": 3, "test": 1})
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["configuration"], run["data_sha256"], run["seed"]) == (
        {"model": "m"},
        {"votes.jsonl": "00ff"},
        7,
    )
    assert run["num_prompts"] == {"train": 3, "test": 1}
    assert {"python", "palate", "torch", "transformers"} <= set(run["versions"])


def test_a_finished_run_is_not_written_over(tmp_path: Path) -> None:
    refuse_overwrite(tmp_path, "metrics.json")
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(PalateError, match="choose another --output"):
        refuse_overwrite(tmp_path, "metrics.json")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "no such directory, and not a hub id of the form owner/name"),
        ("./no/such/folder", "no such directory"),
        ("owner--x/name", "not a hub id"),
        ("owner/name", "not in the hub cache, and the hub cannot be reached"),
    ],
)
def test_a_model_that_is_neither_here_nor_to_be_had_is_refused_by_name(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PalateError) as refusal:
        model_directory(name)
    assert str(refusal.value).startswith(f"{name}: ")
    assert said in str(refusal.value)


def test_a_directory_wins_over_a_hub_id_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert looks_like_hub_id("owner/name")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not looks_like_hub_id("owner/name")
    assert model_directory("owner/name") == Path("owner/name")


@pytest.mark.parametrize(
    ("file", "where"),
    [
        ("a.jsonl", "a.jsonl:9"),
        ("a.csv.gz", "a.csv.gz:9"),
        ("a.json", "a.json, row 9"),
        ("a.parquet", "a.parquet, row 9"),
        ("owner/name", "owner/name, row 9"),
    ],
)
def test_the_summary_counts_lines_where_there_are_lines_and_rows_elsewhere(
    file: str, where: str
) -> None:
    ledger = Ledger(num_rows_read=1)
    ledger.add(file, 9, "row", "malformed JSON")
    assert f"(first: {where})" in ledger.summary(0)

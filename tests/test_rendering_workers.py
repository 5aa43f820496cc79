"""Several processes give what one gives, in its order, and none of them is left behind."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.preferences import PreferenceGroup
from palate.rendering import Renderer, RenderSettings, Tokeniser
from palate.rendering import tokeniser as tokeniser_module
from palate.rendering.group_ids import GroupIds, text_of, tokenise
from palate.rendering.settings import NO_CACHE, num_cores
from palate.rendering.workers import Workers
from tests.odd_renderer import OddRenderer, Unforeseen
from tests.test_render_cache import LENGTHS, all_that_can_happen, group, through, uncased
from tests.tiny import byte_tokenizer


def many(count: int = 60) -> list[PreferenceGroup]:
    """Groups of which each is something else under `uncased`."""
    kinds = all_that_can_happen()
    groups = [replace(kinds[i % len(kinds)], line=100 * i) for i in range(count)]
    return [replace(g, further_lines=()) for g in groups]


def when_ready(workers: Workers) -> Workers:
    for greeting in workers._greetings:
        greeting.result()
    return workers


def ask(workers: Workers, groups: Sequence[PreferenceGroup]) -> "Future[list[GroupIds]]":
    future = when_ready(workers).try_submit([text_of(g) for g in groups])
    assert future is not None
    return future


def waiting(tokeniser: Tokeniser, groups: Sequence[PreferenceGroup]) -> Iterator[PreferenceGroup]:
    """The groups; after the first, not before the other processes are there."""
    for number, each in enumerate(groups):
        if number == 1:
            assert tokeniser._workers is not None
            when_ready(tokeniser._workers)
        yield each


@pytest.mark.parametrize("cached", [False, True])
def test_groups_and_ledger_are_those_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """A group a batch. Most are made elsewhere, since both others have a queue; none is lost."""
    monkeypatch.setattr(tokeniser_module, "BATCH_CHARACTERS", 1)
    here: list[int] = []

    def counted(text: Any, renderer: Renderer) -> GroupIds:
        here.append(1)
        return tokenise(text, renderer)

    groups = many()
    ledger, expected_ledger = Ledger(), Ledger()
    with Tokeniser(uncased()) as alone:
        expected = alone.render(groups, expected_ledger)
    monkeypatch.setattr(tokeniser_module, "tokenise", counted)
    cache = str(tmp_path) if cached else NO_CACHE
    with Tokeniser(uncased(), RenderSettings(workers=3, cache=cache)) as tokeniser:
        found = tokeniser.render(waiting(tokeniser, groups), ledger)
    assert found == expected
    assert list(ledger.entries) == list(expected_ledger.entries)
    assert tokeniser.num_tokenised == 60 > len(here)
    if cached:
        assert through(tmp_path, uncased(), groups) == (expected, list(ledger.entries), 60)


def test_small_inputs_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """By themselves none before a million characters; a number that was set is kept to."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("started")

    monkeypatch.setattr(tokeniser_module, "Workers", refuse)
    monkeypatch.setattr("palate.rendering.settings.num_cores", lambda: 8)
    renderer = Renderer(byte_tokenizer(), LENGTHS)
    with Tokeniser(renderer, RenderSettings(cache=NO_CACHE)) as tokeniser:
        assert len(list(tokeniser.ids(many(40)))) == 40
        monkeypatch.setattr(tokeniser_module, "START_AFTER_CHARACTERS", 0)
        with pytest.raises(AssertionError, match="started"):
            list(tokeniser.ids(many(1)))
    with (
        Tokeniser(renderer, RenderSettings(workers=2, cache=NO_CACHE)) as tokeniser,
        pytest.raises(AssertionError, match="started"),
    ):
        list(tokeniser.ids(many(1)))


def test_the_number_of_processes_is_that_of_cores_shared_among_the_runs_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert num_cores() >= 1
    monkeypatch.setattr("palate.rendering.settings.num_cores", lambda: 8)
    for announced, expected in (("", 8), ("1", 8), ("4", 2), ("16", 1), ("0", 8), ("many", 8)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", announced)
        assert RenderSettings().num_processes == expected
    assert RenderSettings(workers=5).num_processes == 5
    with pytest.raises(PalateError, match="render_workers is -1"):
        RenderSettings(workers=-1)


@pytest.fixture(scope="module")
def one_worker() -> Iterator[Workers]:
    workers = Workers(1, OddRenderer(byte_tokenizer(), LENGTHS))
    yield workers
    workers.close()


def test_errors_keep_their_class_and_message(one_worker: Workers) -> None:
    """One that can't be sent keeps its words; the worker lives on, also when a library prints."""
    with pytest.raises(Unforeseen) as raised:
        ask(one_worker, [group("a", "b", prompt="raise")]).result()
    assert raised.value.args == ("at this prompt", 7)
    assert "In a rendering process" in raised.value.__notes__[0]
    assert "in _encode" in raised.value.__notes__[0]
    with pytest.raises(RuntimeError, match="Unforeseen: that can't travel"):
        ask(one_worker, [group("a", "b", prompt="raise something odd")]).result()
    fine = [group("a", "b", prompt="print"), group("a", "b")]
    expected = [tokenise(text_of(g), Renderer(byte_tokenizer(), LENGTHS)) for g in fine]
    assert ask(one_worker, fine).result() == expected


def test_a_worker_that_can_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(PalateError, match="can't start 2 rendering processes"):
        Workers(2, uncased())


def test_no_more_is_taken_than_can_wait(one_worker: Workers) -> None:
    """Two for one worker; the third is refused, so that the parent does it."""
    long = [group("y" * 20_000, "n" * 20_000)]
    first, second = ask(one_worker, long), ask(one_worker, long)
    assert one_worker.try_submit([text_of(long[0])]) is None
    assert first.result() == second.result()
    ask(one_worker, long).result()


def test_a_worker_that_dies_is_an_error_that_says_so(one_worker: Workers) -> None:
    """The last that is asked of this worker."""
    with pytest.raises(PalateError, match=r"exit code -9.*render_workers"):
        ask(one_worker, [group("a", "b", prompt="die")]).result()


def processes_of(tokeniser: Tokeniser) -> "list[subprocess.Popen[bytes]]":
    assert tokeniser._workers is not None
    return tokeniser._workers._processes


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_come_in_the_order_of_the_rows(workers: int) -> None:
    """Row 3 is over-long, reading fails after row 5: the first of them is raised, and where only
    the second is one, the five groups before it have come. No process is left."""

    def rows(text: str) -> Iterator[PreferenceGroup]:
        for line in range(1, 6):
            yield group("yes", text if line == 3 else "no", line=line)
        raise OSError("the disk is gone")

    strict = uncased(lengths=replace(LENGTHS, overlong="error"))
    how = RenderSettings(workers=workers, cache=NO_CACHE)
    tokeniser = Tokeniser(strict, how)
    with pytest.raises(PalateError, match=r"a.jsonl:3"), tokeniser:
        tokeniser.render(rows("n" * 50), Ledger())
    tokeniser = Tokeniser(strict, how)
    seen: list[int] = []
    with pytest.raises(OSError, match="the disk is gone"), tokeniser:
        seen.extend(each.line for each, _ in tokeniser.ids(rows("no")))
    assert seen == [1, 2, 3, 4, 5]
    if workers > 1:
        assert all(process.poll() is not None for process in processes_of(tokeniser))


SCRIPT = """
import sys
print("started", flush=True)
from transformers import PreTrainedTokenizerFast
from palate.artifacts.ledger import Ledger
from palate.preferences import Comparison, Message, PreferenceGroup, Response
from palate.rendering import LengthSettings, Renderer, RenderSettings, Tokeniser, tokeniser
tokeniser.BATCH_CHARACTERS = 1
lengths = LengthSettings(max_prompt_tokens=60, max_response_tokens=40)
renderer = Renderer(PreTrainedTokenizerFast.from_pretrained(sys.argv[1]), lengths)
answers = (Response("yes"), Response("no"))
group = PreferenceGroup((Message("user", "how?"),), answers, (Comparison(0, 1),))
with Tokeniser(renderer, RenderSettings(workers=3, cache="off")) as tokenising:
    def groups(count):
        yield group
        for greeting in tokenising._workers._greetings:
            greeting.result()
        print(*(process.pid for process in tokenising._workers._processes), flush=True)
        for _ in range(count):
            yield group
    print(len(tokenising.render(groups(int(sys.argv[2])), Ledger())))
"""


def run_script(directory: Path, count: int) -> "subprocess.Popen[str]":
    """A script without a guard, which tokenises `count` + 1 groups in three processes."""
    byte_tokenizer().save_pretrained(directory / "tokenizer")
    (directory / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(directory / "script.py"), str(directory / "tokenizer"), str(count)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def is_running(pid: int) -> bool:
    """A process that has ended and that nobody has asked about yet does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see processes")
def test_a_killed_parent_leaves_no_process_behind(tmp_path: Path) -> None:
    with run_script(tmp_path, 10**9) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        pids = list(map(int, parent.stdout.readline().split()))
        assert len(pids) == 2
        assert all(map(is_running, pids))
        parent.kill()
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    """`multiprocessing` would run it again in each process. None is left when it ends."""
    with run_script(tmp_path, 20) as script:
        output, _ = script.communicate()
    started, pids, count = output.splitlines()
    assert (script.returncode, started, count) == (0, "started", "21")
    assert not any(map(is_running, map(int, pids.split())))

"""Run directories: readable without palate, listed, compared."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import TrainerCallback, TrainerControl, TrainerState, set_seed

from palate.artifacts.files import write_json
from palate.artifacts.ledger import Ledger
from palate.artifacts.rundir import (
    FILES,
    append_log,
    describe_run,
    read_log,
    run_name,
    without_folders,
    write_log,
)
from palate.cli.main import main
from palate.errors import PalateError
from palate.pipeline.run_diff import diff_runs
from palate.pipeline.runs import is_run, list_runs, read_run
from palate.training.callbacks import LogWriter
from palate.training.checkpoints import newest_complete
from tests.runs import load_tiny, pair_groups, tiny_trainer

HASH_1 = "11" * 32
HASH_2 = "22" * 32


def estimate(value: float, half_width: float | None = 0.05, n: int = 40) -> dict[str, Any]:
    low, high = (None, None) if half_width is None else (value - half_width, value + half_width)
    return {"value": value, "low": low, "high": high, "n": n}


def make_run(
    directory: Path,
    *,
    started: str = "2026-01-02T03:04:05Z",
    model: str = "org/body",
    data: Mapping[str, str] = {"votes.jsonl": HASH_1},
    clusters: Mapping[str, Sequence[str]] = {"train": ["a"], "test": ["b"]},
    accuracy: float | None = 0.7,
    reasons: Sequence[str] = (),
    **settings: Any,
) -> Path:
    """A run's files as training leaves them; `accuracy` None: it is not finished."""
    configuration = {"model": model, "data": list(data), "output": str(directory), **settings}
    num_prompts = {part: len(members) for part, members in clusters.items()}
    describe_run(directory, configuration, dict(data), 0, num_prompts)
    record = json.loads((directory / "run.json").read_text())
    write_json(directory / "run.json", {**record, "started": started})
    write_json(
        directory / "split.json",
        {"salt": "palate", "num_groups": num_prompts, "clusters": clusters},
    )
    ledger = Ledger()
    for line, reason in enumerate(reasons, start=1):
        ledger.add("votes.jsonl", line, "row", reason)
    ledger.write(directory / "ledger.jsonl")
    if accuracy is not None:
        metrics = {"accuracy": estimate(accuracy), "loss": estimate(1 - accuracy, None)}
        write_json(
            directory / "metrics.json", {"measured_on": "test", "metrics": {"test": metrics}}
        )
        write_json(directory / "model" / "config.json", {})
    return directory


# A directory that can be read without palate


def test_the_table_of_a_run_names_every_file_that_it_holds(trained_run: Path) -> None:
    readme = (trained_run / "README.md").read_text()
    names = set(re.findall(r"^\| `([^`]+)` \|", readme, re.MULTILINE))
    assert names == set(FILES)
    held = {p.name + "/" * p.is_dir() for p in trained_run.iterdir()} - {"README.md"}
    assert held <= names
    assert held >= {"run.json", "config.yaml", "split.json", "ledger.jsonl", "log.jsonl"}
    assert held >= {"metrics.json", "report.html", "model/"}


def test_what_the_table_says_about_reading_works(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Python of the run's README, run in the directory, prints metrics and log."""
    readme = (trained_run / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert "palate" not in code
    monkeypatch.chdir(trained_run)
    exec(code, {})
    printed = capsys.readouterr().out
    results = json.loads((trained_run / "metrics.json").read_text())
    accuracy = results["metrics"]["test"]["accuracy"]["value"]
    assert re.search(rf"^accuracy +{accuracy:.6f}", printed, re.MULTILINE), printed
    assert "eval_loss" in printed


def test_every_text_file_of_a_run_is_plain_json_or_yaml(trained_run: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for path in sorted(trained_run.rglob("*.json*")):
        text = path.read_text(encoding="utf-8")
        for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
            json.loads(part, parse_constant=refuse)
    run = json.loads((trained_run / "run.json").read_text())
    assert yaml.safe_load((trained_run / "config.yaml").read_text()) == run["configuration"]
    log = read_log(trained_run / "log.jsonl")
    assert log == json.loads((trained_run / "metrics.json").read_text())["log"]
    assert [entry["eval_loss"] for entry in log if "eval_loss" in entry]


def test_a_run_that_goes_on_keeps_its_start_and_its_name(tmp_path: Path) -> None:
    make_run(tmp_path / "my run", started="2026-01-02T03:04:05Z")
    before = run_name(tmp_path / "my run")
    assert before == "my-run-20260102T030405Z"
    describe_run(tmp_path / "my run", {}, {}, 0, {})
    assert run_name(tmp_path / "my run") == before
    shutil.rmtree(tmp_path / "my run")
    describe_run(tmp_path / "my run", {}, {}, 0, {})
    assert run_name(tmp_path / "my run") != before


class DieAfter(TrainerCallback):  # type: ignore[misc]
    """The process is killed at the end of a step, before it is logged."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def train_logged(directory: Path, dies_after: int | None = None) -> list[dict[str, Any]]:
    """Two epochs of five steps, a checkpoint every second step; the log it leaves, without the
    entry's times."""
    set_seed(0)
    model = load_tiny(directory.parent).model
    validation = {"validation": pair_groups(4, first=90)}
    trainer = tiny_trainer(model, directory, pair_groups(18), validation, evaluations_per_epoch=2)
    trainer.add_callback(LogWriter(directory / "log.jsonl"))
    if dies_after is not None:
        trainer.add_callback(DieAfter(dies_after))
    resume = newest_complete(directory / "training")
    with contextlib.suppress(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    log = read_log(directory / "log.jsonl")
    return [{k: v for k, v in e.items() if "runtime" not in k and "second" not in k} for e in log]


def test_a_killed_run_has_its_log_and_goes_on_with_it(tmp_path: Path) -> None:
    """Killed at the end of step 4, the log ends with step 3; the run goes on from the checkpoint of
    step 2 and its log ends as that of a run that was left alone. `train_loss` is a mean over the
    steps of the process that wrote it."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = train_logged(tmp_path / "whole")
    killed = train_logged(tmp_path / "parts", dies_after=4)
    assert [e["step"] for e in killed if "loss" in e] == [1, 2, 3]
    assert killed == whole[: len(killed)]
    with open(tmp_path / "parts" / "log.jsonl", "a") as log:
        log.write('{"loss": 0.5, "st')  # a line that was cut off
    resumed = train_logged(tmp_path / "parts")
    assert [e["step"] for e in resumed if "loss" in e] == list(range(1, 11))
    assert [{**e, "train_loss": 0} for e in resumed] == [{**e, "train_loss": 0} for e in whole]


def test_a_log_is_strict_json_and_an_alien_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write_log(path, [{"step": 1, "eval_accuracy": float("nan")}])
    append_log(path, {"step": 2, "loss": 0.5})
    assert read_log(path) == [{"step": 1}, {"step": 2, "loss": 0.5}]
    assert read_log(tmp_path / "none") == []
    path.write_text('{"step": 1}\n[]\n{"step": 2}\n')
    with pytest.raises(PalateError, match=r"log\.jsonl:2: not a line of a training log"):
        read_log(path)


# The list


def names(runs: Sequence[Any], root: Path) -> list[str]:
    return [str(run.directory.relative_to(root)) for run in runs]


def test_runs_are_found_at_any_depth_newest_last_and_nothing_else_is(tmp_path: Path) -> None:
    make_run(tmp_path / "late", started="2026-03-01T00:00:00Z")
    make_run(tmp_path / "exp1" / "deep" / "early", started="2026-01-01T00:00:00Z")
    make_run(tmp_path / "exp1" / "middle", started="2026-02-01T00:00:00Z")
    make_run(tmp_path / ".trash" / "hidden")
    make_run(tmp_path / "late" / "model" / "inside")
    write_json(tmp_path / "other tool" / "run.json", {"seed": 1, "configuration": {}})
    (tmp_path / "broken other").mkdir()
    (tmp_path / "broken other" / "run.json").write_text("{")
    (tmp_path / "again").symlink_to(tmp_path / "exp1")
    (tmp_path / "exp1" / "loop").symlink_to(tmp_path)
    found = list_runs([tmp_path])
    assert [run.state for run in found] == ["finished"] * 3
    assert [run.directory.name for run in found] == ["early", "middle", "late"]
    assert names(list_runs([tmp_path / "late"]), tmp_path) == ["late"]
    assert list_runs([tmp_path / "other tool"]) == []
    with pytest.raises(PalateError, match=r"nowhere: no such directory; name one that holds runs"):
        list_runs([tmp_path / "nowhere"])


def test_runs_are_sorted_and_filtered(tmp_path: Path) -> None:
    make_run(tmp_path / "a", accuracy=0.9, model="org/large")
    make_run(tmp_path / "b", accuracy=0.6, model="/models/small/model", data={"x": HASH_2})
    make_run(tmp_path / "c", accuracy=None, model="org/large", data={"x": HASH_2})
    assert names(list_runs([tmp_path]), tmp_path) == ["a", "b", "c"]
    assert names(list_runs([tmp_path], sort="accuracy"), tmp_path) == ["c", "b", "a"]
    assert names(list_runs([tmp_path], sort="loss"), tmp_path) == ["c", "a", "b"]
    assert names(list_runs([tmp_path], model="large"), tmp_path) == ["a", "c"]
    assert names(list_runs([tmp_path], data=HASH_2[:6]), tmp_path) == ["b", "c"]
    assert names(list_runs([tmp_path], data=HASH_2, model="small"), tmp_path) == ["b"]
    with pytest.raises(PalateError, match="--sort acuracy: no run has it; metrics: accuracy, loss"):
        list_runs([tmp_path], sort="acuracy")
    with pytest.raises(PalateError, match="--data 22: give 6 digits or more"):
        list_runs([tmp_path], data="22")


def test_an_unfinished_run_says_how_far_it_came(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", accuracy=None)
    assert (read_run(run).state, read_run(run).step) == ("unfinished", 0)
    write_log(run / "log.jsonl", [{"step": 10, "loss": 0.6}, {"step": 20, "loss": 0.5}])
    assert (read_run(run).state, read_run(run).step) == ("unfinished", 20)
    (run / "split.json").unlink()  # killed between the first two files
    assert read_run(run).state == "unfinished"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("run.json", "{", r"run\.json: is no JSON"),
        ("run.json", "[]", r"run\.json: has no 'configuration'"),
        ("run.json", '{"data_sha256": {}}', r"run\.json: has no 'configuration'"),
        ("run.json", None, r"run\.json: is missing"),
        ("split.json", None, r"split\.json: is missing"),
        ("split.json", '{"clusters": []}', r"split\.json: has no 'clusters', or not as an object"),
        ("metrics.json", '{"metrics": {"test": ', r"metrics\.json: is no JSON"),
        ("metrics.json", '{"measured_on": "test", "metrics": {}}', r"metrics of the test part"),
        ("model/config.json", None, r"model/config\.json: is missing"),
    ],
)
def test_a_damaged_run_is_shown_with_its_damage(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    text: str | None,
    reason: str,
) -> None:
    run = make_run(tmp_path / "run")
    twin = make_run(tmp_path / "twin")
    if text is None:
        (run / name).unlink()
    else:
        (run / name).write_text(text)
    assert is_run(run)
    damaged, whole = read_run(run), read_run(twin)
    assert (damaged.state, whole.state) == ("damaged", "finished")
    assert re.search(reason, damaged.reason)
    assert main(["runs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^\S+/run +damaged", printed, re.MULTILINE)
    assert damaged.reason in printed
    with pytest.raises(PalateError, match=r"restore the file, or repeat the run"):
        diff_runs(twin, run)


@given(
    name=st.sampled_from(["run.json", "split.json", "metrics.json", "log.jsonl", "ledger.jsonl"]),
    cut=st.floats(0, 1),
    junk=st.binary(max_size=8),
)
@hypothesis_settings(max_examples=150)
def test_no_damage_stops_the_list(
    tmp_path_factory: pytest.TempPathFactory, name: str, cut: float, junk: bytes
) -> None:
    """A file that is cut anywhere and followed by any bytes: the run is still listed."""
    root = tmp_path_factory.mktemp("damage")
    run = make_run(root / "run", reasons=["empty answer"])
    write_log(run / "log.jsonl", [{"step": 1, "loss": 0.5}])
    whole = (run / name).read_bytes()
    (run / name).write_bytes(whole[: int(cut * len(whole))] + junk)
    (found,) = list_runs([root])
    assert found.state in ("finished", "damaged")
    if found.state == "finished":
        with contextlib.suppress(PalateError):  # a damaged ledger, which only `diff` reads
            diff_runs(run, run)


def test_the_list_on_the_command_line(
    trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", str(trained_run.parent), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    results = json.loads((trained_run / "metrics.json").read_text())
    record = json.loads((trained_run / "run.json").read_text())
    assert run["directory"] == str(trained_run)
    assert (run["state"], run["measured_on"]) == ("finished", "test")
    assert run["metrics"] == results["metrics"]["test"]
    assert run["data_sha256"] == record["data_sha256"]
    assert run["num_prompts_trained"] == record["num_prompts"]["train"] > 0
    assert sum(record["num_prompts"].values()) == 40

    assert main(["runs", str(trained_run.parent)]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    accuracy = results["metrics"]["test"]["accuracy"]
    shown = f"{accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]"
    at = heading.index("accuracy")
    assert row[at:].startswith(shown)
    assert "body" in row
    assert "preferences.jsonl (" in row

    assert main(["runs", str(trained_run.parent), "--sort", "margin"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("margin")
    assert main(["runs", str(trained_run.parent), "--model", "no such"]) == 0
    assert capsys.readouterr().out.startswith("no such run below ")
    assert main(["runs", "--sorted", "accuracy"]) == 2
    assert "did you mean 'sort'" in capsys.readouterr().err


# The difference


A_CLUSTERS = {"train": [*"abcdefgh"], "validation": [], "test": ["i", "j"]}
B_CLUSTERS = {"train": [*"abcdef", "i"], "validation": ["k"], "test": ["g", "h", "j"]}


def test_clusters_that_the_other_run_trained_on_are_counted_and_told(tmp_path: Path) -> None:
    """A trains on a to h and tests i, j; B trains on a to f and i, and tests g, h, j: of B's three
    test clusters A has seen g and h, of A's two B has seen i; B's validation cluster k is new."""
    a = make_run(tmp_path / "a", clusters=A_CLUSTERS)
    b = make_run(tmp_path / "b", clusters=B_CLUSTERS)
    difference = diff_runs(a, b)
    assert [
        (shared.held_out_by, shared.part, shared.num_shared, shared.num_held_out)
        for shared in difference.shared_clusters
    ] == [("a", "test", 1, 2), ("b", "validation", 0, 1), ("b", "test", 2, 3)]
    assert not difference.same_prompts
    assert [w.split(":")[0] for w in difference.warnings] == [
        "1 of 2 clusters of A's test part are in B's training part",
        "2 of 3 clusters of B's test part are in A's training part",
        "A was measured on its test part, B on its test part, and these are not the same prompts",
    ]
    twin = make_run(tmp_path / "twin", clusters=A_CLUSTERS)
    fair = diff_runs(a, twin)
    assert fair.same_prompts
    assert fair.warnings == []
    mirrored = diff_runs(b, a)
    assert {(s.held_out_by, s.num_shared) for s in mirrored.shared_clusters} == {
        ("a", 0),
        ("a", 2),
        ("b", 1),
    }


def test_only_what_differs_is_told(tmp_path: Path) -> None:
    a = make_run(
        tmp_path / "a",
        data={"old/votes.jsonl": HASH_1, "more.jsonl": HASH_2},
        reasons=["empty answer", "empty answer", "no prompt"],
        training={"learning_rate": 1e-5, "seed": 0},
        objective={"kind": "bradley-terry"},
    )
    b = make_run(
        tmp_path / "b",
        data={"new/votes.jsonl": HASH_1},
        reasons=["empty answer", "no prompt"],
        training={"learning_rate": 2e-5, "seed": 0},
        accuracy=0.8,
    )
    record = json.loads((b / "run.json").read_text())
    record["versions"]["torch"] = "1.0"
    write_json(b / "run.json", record)
    d = diff_runs(a, b)
    assert sorted(d.data) == [
        (HASH_1, ["old/votes.jsonl"], ["new/votes.jsonl"]),
        (HASH_2, ["more.jsonl"], []),
    ]
    assert d.configuration == {
        "data": (["old/votes.jsonl", "more.jsonl"], ["new/votes.jsonl"]),
        "objective.kind": ("bradley-terry", "(absent)"),
        "training.learning_rate": (1e-5, 2e-5),
    }
    installed = json.loads((a / "run.json").read_text())["versions"]["torch"]
    assert d.versions == {"torch": (installed, "1.0")}
    assert d.ledger == {"row: empty answer": (2, 1)}
    values = {name: [side and side.value for side in sides] for name, sides in d.metrics.items()}
    assert values == {"accuracy": [0.7, 0.8], "loss": pytest.approx([0.3, 0.2])}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"data": {"renamed.jsonl": HASH_1}}, True),
        ({"data": {"votes.jsonl": HASH_2}}, False),
        ({"clusters": {"train": ["a"], "test": ["c"]}}, False),
        ({"accuracy": None}, False),
    ],
)
def test_when_two_runs_were_measured_on_the_same_prompts(
    tmp_path: Path, change: dict[str, Any], same: bool
) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", **change)
    assert diff_runs(a, b).same_prompts is diff_runs(b, a).same_prompts is same


def test_prompts_that_rendering_left_out_are_other_prompts(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    record = json.loads((b / "run.json").read_text())
    write_json(b / "run.json", {**record, "num_prompts": {"train": 1, "test": 0}})
    assert not diff_runs(a, b).same_prompts


def test_the_difference_on_the_command_line(
    tmp_path: Path, trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = make_run(tmp_path / "a", clusters=A_CLUSTERS)
    b = make_run(tmp_path / "b", clusters=B_CLUSTERS, accuracy=None)
    assert main(["runs", "diff", str(a), str(b), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["a"], found["b"]) == (str(a), str(b))
    assert found["num_prompts"]["test"] == {"a": 2, "b": 3}
    assert found["metrics"]["accuracy"] == {"a": estimate(0.7), "b": None}
    assert found["metrics"]["loss"]["a"]["low"] is None
    assert len(found["warnings"]) == 3
    assert main(["runs", "diff", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert "warning: 2 of 3 clusters of B's test part are in A's training part" in text
    assert "configuration: no difference" in text
    assert re.search(
        r"^  accuracy +0\.700 \[0\.650, 0\.750\] \(n = 40\) +not measured$", text, re.M
    )

    assert main(["runs", "diff", str(trained_run), str(trained_run)]) == 0
    text = capsys.readouterr().out
    assert "warning" not in text
    assert "metrics, on the same prompts" in text
    assert main(["runs", "diff", str(trained_run), str(trained_run.parent)]) == 1
    assert "no run of palate" in capsys.readouterr().err
    assert main(["runs", "diff", str(trained_run)]) == 2


def test_paths_are_shortened_to_what_says_something() -> None:
    given = {"/data/x/votes.jsonl": ["/models/small/model", "org/large", "runs/a"]}
    assert without_folders(given) == {"votes.jsonl": ["small/model", "org/large", "runs/a"]}


@pytest.mark.parametrize(
    "arguments", [["runs", "--help"], ["runs", "diff", "--help"], ["runs", "."]]
)
def test_listing_runs_imports_nothing_that_trains(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from palate.cli.main import main\n"
        f"main({arguments!r})\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"

"""TensorBoard, W&B and trackio, each tried offline: what they kept is the run's own log."""

import io
import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import palate
from palate.errors import PalateError
from tests.runs import quick_config, quick_training

TRAIN_TWICE = """
import sys
from pathlib import Path

import palate
from tests.runs import quick_config, quick_training

training = quick_training(report_to=("tensorboard", "wandb", "trackio"), epochs=1)
for name in ("first", "second"):
    palate.train(quick_config(Path(sys.argv[1]), name, training=training))
"""
Curves = dict[str, list[tuple[int, float]]]
"""By metric: (step, value)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, trained one after the other by one process that has no network to speak of."""
    place = tmp_path_factory.mktemp("tracked")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment = {
        **kept,
        "HOME": str(place),
        "TRACKIO_DIR": str(place / "trackio"),
        "WANDB_MODE": "offline",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_TWICE, str(place)],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return place


def own_log(run: Path) -> Curves:
    """Loss, learning rate and validation metrics of `log.jsonl`, under the trackers' names."""
    curves: Curves = {}
    for line in (run / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for key, value in entry.items():
            name = key.replace("eval_", "eval/") if key.startswith("eval_") else f"train/{key}"
            if name in ("train/loss", "train/learning_rate") or name.startswith("eval/"):
                curves.setdefault(name, []).append((entry["step"], value))
    assert len(curves["train/loss"]) == len(curves["train/learning_rate"]) == 4
    assert len(curves["eval/loss"]) == len(curves["eval/accuracy"]) == 1
    return curves


def assert_same(kept: Curves, run: Path) -> None:
    expected = own_log(run)
    assert kept.keys() >= expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in kept[name]] == [step for step, _ in points]
        # TensorBoard stores float32.
        assert [v for _, v in kept[name]] == pytest.approx([v for _, v in points], rel=1e-6)


@pytest.mark.parametrize("name", ["first", "second"])
def test_tensorboard_keeps_its_events_in_the_run_after_it_is_finished(
    folder: Path, name: str
) -> None:
    """By default they lie in the directory of the checkpoints, which is deleted at the end."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / name / "tensorboard"))
    events.Reload()
    kept = {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    assert_same(kept, folder / name)
    assert not (folder / name / "training").exists()


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of an offline run: a header of 7 bytes, then LevelDB's log format: blocks of 32 KiB
    that hold chunks with a checksum (4 bytes), a length (2) and a type (1; first, middle and last
    chunk of a record are 2, 3 and 4, a whole one is 1)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, payload = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        payload += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(payload)
            yield record
            payload = b""


@pytest.mark.parametrize("name", ["first", "second"])
def test_wandb_keeps_a_run_of_its_own_for_each_training(folder: Path, name: str) -> None:
    """`transformers` alone would log the second training of a process into the first one's run."""
    (path,) = (folder / name / "wandb").glob("offline-run-*/run-*.wandb")
    kept: Curves = {}
    configuration: dict[str, Any] = {}
    exit_codes = []
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            assert record.run.project == "palate"
            assert record.run.run_id == record.run.display_name
            assert record.run.run_id.startswith(f"{name}-20")
            configuration |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
        elif kind == "history":
            items = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            step = items["train/global_step"]
            for key, value in items.items():
                kept.setdefault(key, []).append((step, value))
        elif kind == "exit":
            exit_codes.append(record.exit.exit_code)
    assert_same(kept, folder / name)
    assert exit_codes == [0]
    # What `transformers` doesn't know: data and objective.
    assert configuration["data"] == str(folder / "pairs.jsonl")
    assert configuration["objective"]["ties"] == "half"


@pytest.mark.parametrize("name", ["first", "second"])
def test_trackio_keeps_all_runs_in_one_project(folder: Path, name: str) -> None:
    with sqlite3.connect(folder / "trackio" / "palate.db") as database:
        rows = database.execute("select run_name, metrics from metrics order by id").fetchall()
    kept: Curves = {}
    assert len({run for run, _ in rows}) == 2
    for run, metrics in rows:
        if run.startswith(f"{name}-20"):
            values = json.loads(metrics)
            for key, value in values.items():
                kept.setdefault(key, []).append((values["train/global_step"], value))
    assert_same(kept, folder / name)


def test_nothing_lies_beside_the_runs_but_trackios_database(folder: Path) -> None:
    made = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert made == {"first", "second", "trackio", "pairs.jsonl", "body-llama"}


def test_wandb_without_a_key_is_refused_with_the_way_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    config = quick_config(tmp_path, training=quick_training(report_to=("wandb",), epochs=1))
    with pytest.raises(
        PalateError, match=r"No API key.*WANDB_MODE=offline: the run is then kept in .*run/wandb"
    ):
        palate.train(config)

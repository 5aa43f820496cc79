"""Two processes do what one does, on data that can't be dealt evenly."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from palate.pipeline.config import SplitSettings, TrainConfig
from palate.pipeline.train import train
from tests.runs import quick_training, write_rows
from tests.tiny import save_tiny

NUM_PROMPTS = 25


def uneven_rows() -> list[dict[str, object]]:
    """Two to five ranked answers, short and long prompts."""
    return [
        {
            "prompt": f"question {number} " + "x" * (37 * number % 80),
            "responses": [f"{'no ' * place}yes" for place in range(2 + number % 4)],
            "ranking": list(range(2 + number % 4)),
        }
        for number in range(NUM_PROMPTS)
    ]


def config_in(folder: Path, output: str) -> TrainConfig:
    """No split, so that all 25 prompts train: steps of 8, 8, 8 and 1, in which one process idles.
    A small budget gives the processes different numbers of microbatches."""
    return TrainConfig(
        model=str(folder / "body"),
        data=str(folder / "rows.jsonl"),
        validation={"held": str(folder / "held.jsonl")},
        output=str(folder / output),
        split=SplitSettings(validation_share=0.0, test_share=0.0),
        training=quick_training(
            prompts_per_step=8,
            epochs=3,
            tokens_per_microbatch=300,
            evaluations_per_epoch=4,
        ),
    )


def configuration_file(folder: Path, output: str) -> str:
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(asdict(config_in(folder, output))))
    return str(path)


def run_two(*module: str) -> str:
    """Run a module in two processes that talk through gloo; what they printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", "-m", *module]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent.parent,
        env={**environment, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def weights_of(run: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = load_file(run / "model" / "model.safetensors")
    return found


def losses_of(run: Path) -> list[tuple[int, str, float]]:
    log = json.loads((run / "metrics.json").read_text())["log"]
    return [(e["step"], key, e[key]) for e in log for key in ("loss", "eval_loss") if key in e]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    save_tiny(folder / "body")
    rows = uneven_rows()
    write_rows(folder / "rows.jsonl", rows)
    held = [{**row, "prompt": f"another {row['prompt']}"} for row in rows[:7]]
    write_rows(folder / "held.jsonl", held)
    return folder


@pytest.fixture(scope="module")
def two(folder: Path) -> str:
    """The log of two processes that train into `two`."""
    return run_two("palate", "train", configuration_file(folder, "two"))


@pytest.mark.slow
def test_two_processes_give_the_losses_and_weights_of_one(folder: Path, two: str) -> None:
    train(config_in(folder, "one"))
    one_losses, two_losses = losses_of(folder / "one"), losses_of(folder / "two")
    assert len([entry for entry in one_losses if entry[1] == "loss"]) == 12
    assert [entry[:2] for entry in one_losses] == [entry[:2] for entry in two_losses]
    np.testing.assert_allclose(
        [entry[2] for entry in one_losses], [entry[2] for entry in two_losses], atol=1e-5
    )
    start = load_file(folder / "body" / "model.safetensors")
    one, other = weights_of(folder / "one"), weights_of(folder / "two")
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, atol=1e-5, err_msg=name)
    name = "model.layers.0.mlp.up_proj.weight"
    assert np.abs(one[name] - start[name.removeprefix("model.")]).max() > 1e-3


@pytest.mark.slow
def test_only_the_main_process_describes_and_writes_the_run(two: str) -> None:
    """Two equal sets of files would hide that two processes raced to write them."""
    assert two.count("first loss") == 1


@pytest.mark.slow
def test_a_signal_in_one_process_stops_both_after_the_same_step(folder: Path, two: str) -> None:
    """Process 1 alone gets it; both write the checkpoint of one step, both go on from it past a
    half-written one, and the weights are those of two processes that were never interrupted."""
    report = folder / "report"
    run_two("tests.interrupted_worker", configuration_file(folder, "parts"), str(report))
    found = [json.loads(Path(f"{report}.{rank}").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    assert found[0]["signal"] == 2
    step = int(re.search(r"stopped at step (\d+)", found[0]["message"])[1])
    assert 2 <= step < 12
    assert found[0]["checkpoints"][-1] == f"checkpoint-{step}"
    expected, resumed = weights_of(folder / "two"), weights_of(folder / "parts")
    for name, value in expected.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)

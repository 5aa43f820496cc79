"""Runs that are killed, interrupted or cut off go on as if nothing had happened."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, set_seed

from palate.training.checkpoints import checkpoints, newest_complete
from palate.training.trainer import RewardTrainer
from tests.runs import (
    contrary,
    load_tiny,
    pair_groups,
    pair_rows,
    tiny_trainer,
    weights,
    write_rows,
)
from tests.tiny import save_tiny

NUM_STEPS = 20
FLAGS = [
    *("--training.prompts_per_step", "4", "--training.epochs", "4"),
    *("--training.evaluations_per_epoch", "6", "--training.learning_rate", "1e-3"),
    *("--split.validation_share", "0.2", "--split.test_share", "0.0"),
]
ENVIRONMENT = {
    **os.environ,
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}


class StopAfter(TrainerCallback):  # type: ignore[misc]
    """Presses Ctrl-C while a step is computed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def run_trainer(
    directory: Path, kind: str, stop_after: int | None = None, **settings: Any
) -> RewardTrainer:
    """One process's life: load, resume where there is something to resume from, train."""
    set_seed(0)
    validation = pair_groups(6, first=90)
    if settings.pop("contrary", False):
        validation = contrary(validation)
    trainer = tiny_trainer(
        load_tiny(directory.parent, kind, dropout=True).model,
        directory,
        pair_groups(18),
        {"validation": validation},
        **settings,
    )
    if stop_after is not None:
        trainer.add_callback(StopAfter(stop_after))
    resume = newest_complete(directory / "training")
    with trainer.interrupt.installed():
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    others = weights(second)
    for name, value in weights(first).items():
        np.testing.assert_array_equal(value, others[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_run_interrupted_again_and_again_ends_with_the_same_weights(
    kind: str, tmp_path: Path
) -> None:
    """18 prompts in steps of 4 are 5 steps an epoch, 10 in all: interruptions in the first step, in
    the middle and on the end of the first epoch, twice in the second, once in the very last step.
    BERT keeps its dropout, so the random state must be restored too."""
    whole = run_trainer(tmp_path / "whole", kind, evaluations_per_epoch=2)
    for step in (1, 3, 5, 6, 9, 10):
        parts = run_trainer(tmp_path / "parts", kind, step, evaluations_per_epoch=2)
        assert parts.interrupt.signal == signal.SIGINT
        assert parts.state.global_step == step
    parts = run_trainer(tmp_path / "parts", kind, evaluations_per_epoch=2)
    assert whole.state.global_step == parts.state.global_step == 10
    assert whole.state.best_metric == parts.state.best_metric
    assert_same_weights(whole.model, parts.model)


def test_resuming_from_the_last_checkpoint_of_max_steps_trains_no_further(tmp_path: Path) -> None:
    """Seven steps end in the middle of the second epoch; three more of it lie ready."""
    whole = run_trainer(tmp_path / "run", "llama", max_steps=7)
    again = run_trainer(tmp_path / "run", "llama", max_steps=7)
    assert again.state.global_step == 7
    assert_same_weights(whole.model, again.model)


@pytest.mark.parametrize("num_lost", [0, 1, 2])
def test_early_stopping_counts_on_after_a_resume(num_lost: int, tmp_path: Path) -> None:
    """The best is step 1, so a patience of three ends the run at step 4. Cut off after the
    checkpoint of step 4, 3 or 2 and resumed, it must end there too, with the weights of step 1."""
    settings = {"contrary": True, "evaluations_per_epoch": 5, "early_stopping_patience": 3}
    whole = run_trainer(tmp_path / "run", "llama", keep_checkpoints=9, **settings)
    assert whole.state.global_step == 4
    for step in range(4, 4 - num_lost, -1):
        shutil.rmtree(tmp_path / "run" / "training" / f"checkpoint-{step}")
    again = run_trainer(tmp_path / "run", "llama", keep_checkpoints=9, **settings)
    assert again.state.global_step == 4
    assert_same_weights(whole.model, again.model)


def test_the_best_checkpoint_is_found_after_the_run_directory_has_moved(tmp_path: Path) -> None:
    settings = {"contrary": True, "evaluations_per_epoch": 5}
    whole = run_trainer(tmp_path / "here", "llama", **settings)
    assert whole.state.best_global_step == 1
    (tmp_path / "here").rename(tmp_path / "there")
    again = run_trainer(tmp_path / "there", "llama", **settings)
    assert_same_weights(whole.model, again.model)


class Job:
    """`palate train` in a process of its own."""

    def __init__(self, folder: Path, output: Path | None, log: Path) -> None:
        command = [sys.executable, "-m", "palate", "train", *FLAGS]
        command += ["--model", str(folder / "body"), "--data", str(folder / "pairs.jsonl")]
        command += [] if output is None else ["--output", str(output)]
        self.log = log
        with open(log, "wb") as stderr:
            self.process = subprocess.Popen(
                command, stdout=stderr, stderr=stderr, env=ENVIRONMENT, cwd=folder
            )

    def ended(self) -> int:
        return self.process.wait(timeout=120)

    def resumed_from(self) -> int | None:
        found = re.search(r"resuming from .*checkpoint-(\d+)", self.log.read_text())
        return int(found[1]) if found else None

    def strike_at(self, moment: Callable[[], bool], number: int) -> None:
        """Send a signal as soon as the moment is there; it must come before the process ends."""
        deadline = time.monotonic() + 120
        while not moment():
            log = self.log.read_text()
            assert self.process.poll() is None, f"ended too early:\n{log}"
            assert time.monotonic() < deadline, f"never there:\n{log}"
            # Nothing happens before the summary is printed; after it moments are short.
            time.sleep(0.0002 if "first loss" in log else 0.05)
        self.process.send_signal(number)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    save_tiny(folder / "body")
    write_rows(folder / "pairs.jsonl", pair_rows(30))
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Iterator[Job]:
    """The uninterrupted run."""
    job = Job(folder, folder / "whole", folder / "whole.log")
    yield job
    job.process.kill()
    job.process.wait()


def model_bytes(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def names_being_saved(run: Path) -> set[str]:
    """Files of a checkpoint that is not whole yet; empty when there is none."""
    for path in checkpoints(run / "training"):
        if not (path / "complete.json").exists():
            # The run that is watched may delete an old checkpoint at this very moment.
            with contextlib.suppress(FileNotFoundError):
                return {"the directory", *os.listdir(path)}
    return set()


def last_whole(run: Path) -> int:
    whole = [p for p in checkpoints(run / "training") if (p / "complete.json").exists()]
    return max((int(path.name.split("-")[1]) for path in whole), default=0)


def moments(run: Path) -> dict[str, Callable[[], bool]]:
    """Ten moments of a run, in an order in which each lies ahead of where the last one left it."""

    def saving(there: str, missing: str = "nothing") -> Callable[[], bool]:
        def moment() -> bool:
            names = names_being_saved(run)
            return there in names and missing not in names

        return moment

    def steps_later(count: int) -> Callable[[], bool]:
        found: list[int] = []

        def moment() -> bool:
            found.append(last_whole(run))
            return found[-1] >= found[0] + count

        return moment

    def after_a_while(moment: Callable[[], bool]) -> Callable[[], bool]:
        def later() -> bool:
            if not moment():
                return False
            time.sleep(0.03)
            return True

        return later

    return {
        "the inputs are written": (run / "run.json").exists,
        "the first checkpoint is begun": saving("the directory"),
        "weights without optimiser": saving("model.safetensors", "optimizer.pt"),
        "two checkpoints later": steps_later(2),
        "optimiser without state": saving("optimizer.pt", "trainer_state.json"),
        "in the step after a checkpoint": after_a_while(steps_later(3)),
        "all files, no manifest": saving("trainer_state.json"),
        "the last checkpoint is whole": lambda: last_whole(run) == NUM_STEPS,
        "the model is being written": (run / ".model.partial").exists,
        "the model is there, its metrics are not": (run / "model" / "model.safetensors").exists,
    }


def goes_on_and(job: Job, expected: int, moment: Callable[[], bool]) -> bool:
    """The moment, once the run goes on: what the last kill left half written is deleted then, and
    would be taken for the moment before."""
    return (not expected or job.resumed_from() is not None) and moment()


@pytest.mark.slow
def test_killed_at_ten_moments_a_run_ends_with_the_same_weights_bit_for_bit(
    folder: Path, whole: Job
) -> None:
    """Ten times SIGKILL in one run directory, then the same command once more. Before the fifth,
    two false checkpoints are planted that look newer than all others: one without a manifest, one
    whole but for its optimiser's state; the run must go on from the last true one."""
    run = folder / "killed"
    num_half_checkpoints = 0
    resumed = []
    for number, (name, moment) in enumerate(moments(run).items()):
        expected = last_whole(run)
        if number == 4:
            for false, lost in (("99", "complete.json"), ("98", "optimizer.pt")):
                false_path = run / "training" / f"checkpoint-{false}"
                shutil.copytree(run / "training" / f"checkpoint-{expected}", false_path)
                (false_path / lost).unlink()
        job = Job(folder, run, folder / f"killed-{number}.log")
        job.strike_at(partial(goes_on_and, job, expected, moment), signal.SIGKILL)
        assert job.ended() == -signal.SIGKILL, name
        assert not (run / "metrics.json").exists(), name
        assert job.resumed_from() == (expected or None), name
        resumed.append(job.resumed_from())
        num_half_checkpoints += bool(names_being_saved(run))
    assert num_half_checkpoints >= 2
    assert sum(step is not None for step in resumed) >= 5
    assert resumed[-1] == NUM_STEPS
    last = Job(folder, run, folder / "last.log")
    assert last.ended() == 0, last.log.read_text()
    assert whole.ended() == 0, whole.log.read_text()
    assert model_bytes(run) == model_bytes(folder / "whole")
    assert not (run / "training").exists()


@pytest.mark.slow
def test_ctrl_c_writes_a_checkpoint_exits_with_130_and_says_how_to_go_on(
    folder: Path, whole: Job
) -> None:
    """Without --output: the same command finds its run again."""
    run = folder / "runs" / "body"
    job = Job(folder, None, folder / "interrupted.log")
    job.strike_at(lambda: last_whole(run) >= 2, signal.SIGINT)
    assert job.ended() == 130
    step = last_whole(run)
    assert 2 <= step < NUM_STEPS
    log = job.log.read_text()
    assert f"stopped at step {step}" in log
    assert "The same command goes on from it" in log
    assert "Traceback" not in log
    again = Job(folder, None, folder / "again.log")
    assert again.ended() == 0, again.log.read_text()
    assert again.resumed_from() == step
    assert whole.ended() == 0
    assert model_bytes(run) == model_bytes(folder / "whole")

"""Callbacks of the trainer: signals, and when a run is over."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState

from palate.artifacts.rundir import append_log, write_log


class InterruptHandler(TrainerCallback):  # type: ignore[misc]
    """On SIGINT or SIGTERM: finish the step, write a checkpoint, stop. A second stops at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        """The signal that this process got."""
        self.signal: int | None = None
        """The signal that any process got: they all stop after the same step."""

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if self.received is not None:
                raise KeyboardInterrupt
            self.received = number

        former = {
            number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self._agree()
        if self.signal is not None:
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_train_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._agree()

    def _agree(self) -> None:
        if self.signal is None:
            self.signal = max(number or 0 for number in gather_object([self.received])) or None


class StateHandler(TrainerCallback):  # type: ignore[misc]
    """Says when a run is over and which checkpoint is best, from the state that checkpoints hold.

    So a run that was killed after its last checkpoint trains no further when it is resumed, and one
    that stops early counts on where it was (the callback of `transformers` starts again from 0).
    `patience` evaluations without a better validation loss end it; 0 = never.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.best_global_step:
            # The path in the state is wrong once the run's directory has moved.
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best)
        is_last_step = state.global_step >= state.max_steps
        control.should_training_stop = is_last_step or self._is_out_of_patience(state)

    def on_save(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Each evaluation is followed by a checkpoint, and only then is it known to be the best.
        control.should_training_stop |= self._is_out_of_patience(state)

    def _is_out_of_patience(self, state: TrainerState) -> bool:
        best = state.best_global_step or 0
        worse = [e for e in state.log_history if "eval_loss" in e and e["step"] > best]
        return 0 < self.patience <= len(worse)


class LogWriter(TrainerCallback):  # type: ignore[misc]
    """Writes each entry of the training log to a file as it comes; a run that goes on from a
    checkpoint takes back what it had logged after it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            write_log(self.path, state.log_history)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            append_log(self.path, state.log_history[-1])

"""Trackers that `transformers` reports to: where they write, and under which name."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.integrations import TensorBoardCallback

from palate.errors import PalateError

PROJECT = "palate"
"""Of W&B and trackio, unless WANDB_PROJECT names another."""


@contextlib.contextmanager
def tracked(
    trainer: Trainer, directory: Path, name: str, configuration: Mapping[str, Any]
) -> Iterator[None]:
    """While a run trains: TensorBoard and W&B write into `directory`, W&B and trackio call it
    `name`, and W&B is told the configuration.

    TENSORBOARD_LOGGING_DIR, WANDB_DIR and a W&B run that is open already are left as they are.
    trackio keeps all runs in one database of its own (TRACKIO_DIR). Raises PalateError when W&B
    can't begin.
    """
    trainer.args.run_name = name
    trainer.args.project = PROJECT
    for callback in trainer.callback_handler.callbacks:
        # By default the events lie among the checkpoints, and are deleted with them.
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(directory / "tensorboard")
    reports_to_wandb = "wandb" in trainer.args.report_to and trainer.is_world_process_zero()
    with contextlib.ExitStack() as stack:
        if reports_to_wandb:
            stack.enter_context(_wandb_run(directory, name, configuration))
        yield


@contextlib.contextmanager
def _wandb_run(directory: Path, name: str, configuration: Mapping[str, Any]) -> Iterator[None]:
    """A W&B run of its own; `transformers` would join that of an earlier training in this process,
    and begin a new one when a run goes on."""
    import wandb

    if wandb.run is not None:
        yield
        return
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            id=name,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(directory)),
            config=dict(configuration),
        )
    except wandb.Error as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise PalateError(
            f"training.report_to wandb: {reason}. Or set WANDB_MODE=offline: the run is then kept"
            f" in {directory}/wandb, and `wandb sync` sends it later"
        ) from error
    try:
        yield
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()

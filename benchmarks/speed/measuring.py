"""Instruments that both sides carry: a clock on optimiser steps, a counter of processed tokens, a
count of the bytes saved for backward. Needs torch and transformers alone.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


class StepClock(TrainerCallback):
    """Seconds of the steps after the first `warm_steps`, from the end of the last of those (or from
    before the first batch is made) to the end of the last step: batches, loss, backward, optimiser,
    logging."""

    def __init__(self, warm_steps: int) -> None:
        self.warm_steps = warm_steps
        self.num_steps = 0
        self.seconds = 0.0
        self.running = False

    def _start(self) -> None:
        self._started = time.perf_counter()
        self.running = True

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.warm_steps == 0 and not self.running:
            self._start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.running:
            self.seconds = time.perf_counter() - self._started
            self.num_steps += 1
        elif state.global_step == self.warm_steps:
            self._start()


@contextmanager
def token_counter(
    embedding: nn.Module, counts: Callable[[], bool] = lambda: True
) -> Iterator[list[list[int]]]:
    """Yields a list that gets (rows, width) of every batch of ids that is embedded while `counts`
    says so: all that the body processes, padding included."""
    shapes: list[list[int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if counts():
            ids = inputs[0]
            width = ids.shape[-1]
            shapes.append([ids.numel() // width, width])

    handle = embedding.register_forward_pre_hook(note)
    try:
        yield shapes
    finally:
        handle.remove()


def num_slots(shapes: list[list[int]]) -> int:
    """Token slots of all batches."""
    return sum(rows * width for rows, width in shapes)


def saved_bytes(trainer: Any, model: nn.Module, inputs: Any) -> int:
    """Bytes of the storages that one training step keeps for its backward pass, each once,
    parameters left out; the largest of its microbatches.

    The trainer's own step runs, forward and backward. Its accelerator says when the forward pass is
    over: what is saved after that is no longer kept for it.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    sizes: list[int] = []
    backward = trainer.accelerator.backward

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def then_backward(loss: Tensor, **options: Any) -> None:
        sizes.append(sum(storages.values()))
        backward(loss, **options)
        storages.clear()

    trainer.accelerator.backward = then_backward
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.training_step(model, inputs)
    finally:
        del trainer.accelerator.backward
    return max(sizes)


@contextmanager
def losses_of(trainer: Any) -> Iterator[list[float]]:
    """Yields a list that gets the loss of every step as the trainer returns it: not rounded, as in
    its log."""
    losses: list[float] = []
    step = trainer.training_step

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = step(*args, **kwargs)
        losses.append(float(loss))
        return loss

    trainer.training_step = noted
    try:
        yield losses
    finally:
        del trainer.training_step

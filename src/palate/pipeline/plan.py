"""What a training run will cost, before it: tokens, FLOPs, memory, time.

From the data file and the model's configuration; its weights are neither loaded nor needed, unless
the machine is to be measured.
"""

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from palate.artifacts.hub import MODEL_FILES, hub_is_reachable, looks_like_hub_id, model_directory
from palate.errors import PalateError
from palate.forest.cost import Work, training_flops
from palate.model.checkpoint import read_sidecar
from palate.model.head_file import read_head
from palate.model.loading import load_config, load_tokenizer
from palate.model.memory import Arithmetic, Memory, Microbatch, alternatives, memory, weight_bytes
from palate.model.selfcheck import check_positions, max_positions
from palate.model.shape import BodyShape, body_shape
from palate.pipeline.plan_config import GPUS, PlanConfig
from palate.pipeline.plan_flops import (
    RunFlops,
    executed_flops,
    forward_of,
    largest_microbatch,
    layouts_of,
    run_flops,
)
from palate.pipeline.plan_measure import Measured, measure_speed
from palate.pipeline.prepare import Prepared
from palate.pipeline.train import prepare_where_asked
from palate.rendering import RenderedGroup, Renderer
from palate.rendering.store import token_counts
from palate.training.defaults import uses_bfloat16
from palate.training.steps import StepSampler

CONFIGURATION_FILES = [pattern for pattern in MODEL_FILES if pattern != "*.safetensors"]
USABLE_SHARE = 0.95
"""Of a device's memory; the rest goes to its context and to gaps between tensors."""


@dataclass(frozen=True)
class Expected:
    """Time and room on one kind of device."""

    where: str
    basis: str
    """What the time rests on."""
    seconds: float
    low: float
    high: float
    memory_bytes: int
    """Of one device."""
    fits: bool


@dataclass(frozen=True)
class PlanResult:
    """What `palate plan` says."""

    config: PlanConfig
    shape: BodyShape
    arithmetic: Arithmetic
    prepared: Prepared
    layouts: Mapping[str, Work]
    """An epoch as padded pairs, as rows without padding, and as trees where they are exact."""
    epoch_flops: Mapping[str, int]
    """Of training on it, recomputation left out."""
    steps_per_epoch: int
    num_steps: int
    flops: RunFlops
    microbatch: Microbatch
    memory: Memory
    alternatives: Sequence[tuple[Arithmetic, Memory]]
    expected: Sequence[Expected]
    measured: Measured | None


def plan(config: PlanConfig) -> PlanResult:
    """Count what the run would compute and hold.

    Raises PalateError for data or a configuration that training would refuse too, as far as that
    shows without weights, and where the model to be measured doesn't fit this machine.
    """
    with configuration_directory(config.model) as directory:
        model_config = load_config(config.model, directory, config.body)
        stored = read_head(directory)
        shape = body_shape(config.model, model_config, config.body, config.lora, stored)
        renderer = _renderer(config, directory, model_config)
        prepared = prepare_where_asked(config, renderer, None)
        counted = _count(config, shape, prepared)
        if not config.measure:
            return counted
        room = machine_memory()
        if counted.memory.total > USABLE_SHARE * room:
            raise PalateError(
                f"measure: the run needs about {counted.memory.total / 1e9:.1f} GB and this machine"
                f" has {room / 1e9:.1f}; leave measure out, or set training.gradient_checkpointing"
                " or a smaller training.tokens_per_microbatch"
            )
        measured = measure_speed(
            config, directory, prepared.train, lambda groups: executed_flops(config, shape, groups)
        )
    seconds = [
        rate * counted.flops.total + counted.num_steps * measured.optimiser_seconds
        for rate in (measured.seconds_per_flop, *measured.interval)
    ]
    here = Expected(
        where=f"this machine ({measured.device})",
        basis=f"measured on {measured.num_prompts} prompts in {measured.num_passes} passes",
        seconds=seconds[0],
        low=seconds[1],
        high=seconds[2],
        memory_bytes=room,
        fits=True,
    )
    return replace(counted, expected=(*counted.expected, here), measured=measured)


@contextlib.contextmanager
def configuration_directory(name: str) -> Iterator[Path]:
    """A checkpoint's directory; of a hub id that is not in the cache only configuration and
    tokenizer are fetched, to a place of their own: the cache would take them for the whole."""
    if not looks_like_hub_id(name):
        yield model_directory(name)
        return
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with tempfile.TemporaryDirectory() as folder:
        try:
            directory = snapshot_download(name, allow_patterns=MODEL_FILES, local_files_only=True)
        except LocalEntryNotFoundError as error:
            if not hub_is_reachable():
                raise PalateError(
                    f"{name}: not a directory here, not in the hub cache, and the hub cannot be"
                    " reached; pass a directory with config.json and the tokenizer's files"
                ) from error
            try:
                directory = snapshot_download(
                    name, allow_patterns=CONFIGURATION_FILES, local_dir=folder
                )
            except OSError as failure:
                raise PalateError(
                    f"{name}: not to be had from the hub: {failure}; or pass a directory with"
                    " config.json and the tokenizer's files"
                ) from failure
        yield Path(directory)


def machine_memory() -> int:
    """Bytes of the GPU that a run here would use, otherwise of main memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _renderer(config: PlanConfig, directory: Path, model_config: Any) -> Renderer:
    lengths = config.lengths.resolved(max_positions(model_config))
    check_positions(model_config, lengths.max_prompt_tokens + lengths.max_response_tokens)
    sidecar = read_sidecar(directory)
    inherited = sidecar.template_arguments if sidecar else {}
    tokenizer = load_tokenizer(config.model, directory, config.body)
    return Renderer(tokenizer, lengths, {**inherited, **config.template_arguments})


def _count(config: PlanConfig, shape: BodyShape, prepared: Prepared) -> PlanResult:
    training = config.training
    arithmetic = _arithmetic(config, shape)
    groups = prepared.train
    sampler = StepSampler(token_counts(groups), training.prompts_per_step, training.seed)
    steps = list(sampler.steps())
    num_steps = training.max_steps or training.epochs * len(steps)
    layouts = layouts_of(shape, groups, steps)
    epoch = {
        name: training_flops(forward_of(shape, work, training.method, name), training.method).total
        for name, work in layouts.items()
    }
    microbatch = largest_microbatch(config, shape, groups, steps, layouts[shape.layout])
    devices = config.num_gpus

    def needed(how: Arithmetic) -> Memory:
        return memory(shape, config.body, how, microbatch, devices)

    run = run_flops(config, shape, prepared, layouts[shape.layout], num_steps / len(steps))
    needs = needed(arithmetic)
    return PlanResult(
        config=config,
        shape=shape,
        arithmetic=arithmetic,
        prepared=prepared,
        layouts=layouts,
        epoch_flops=epoch,
        steps_per_epoch=len(steps),
        num_steps=num_steps,
        flops=run,
        microbatch=microbatch,
        memory=needs,
        alternatives=[(how, needed(how)) for how in alternatives(arithmetic)],
        expected=_on_hardware(config, arithmetic, run, needs),
        measured=None,
    )


def _arithmetic(config: PlanConfig, shape: BodyShape) -> Arithmetic:
    """As the trainer computes: on a named GPU in bfloat16 unless float32 is asked for."""
    training = config.training
    named = config.hardware != "none" and training.precision == "auto"
    return Arithmetic(
        method=training.method,
        autocast=named or uses_bfloat16(training),
        weight_bytes=weight_bytes(config.body.dtype, shape),
        checkpointing=training.gradient_checkpointing,
    )


def _on_hardware(
    config: PlanConfig, arithmetic: Arithmetic, run: RunFlops, needs: Memory
) -> tuple[Expected, ...]:
    if config.hardware == "none":
        return ()
    gpu = GPUS[config.hardware]
    in_bfloat16 = arithmetic.autocast or arithmetic.weight_bytes < 4
    peak = gpu.bfloat16_flops if in_bfloat16 else gpu.float32_flops
    seconds = run.total / (peak * config.utilisation * config.num_gpus)
    kind = "bfloat16" if in_bfloat16 else "float32"
    basis = (
        f"assumed, not measured: {config.utilisation:.0%} of {peak / 1e12:g} TFLOP/s in {kind},"
        " matrix products alone"
    )
    where = f"{config.num_gpus} x {config.hardware}"
    fits = needs.total <= USABLE_SHARE * gpu.memory_bytes
    return (Expected(where, basis, seconds, seconds, seconds, gpu.memory_bytes, fits),)


def answers_per_prompt(groups: Sequence[RenderedGroup]) -> dict[int, int]:
    """Number of answers to number of prompts that have so many."""
    return dict(sorted(Counter(len(group.sequences) for group in groups).items()))

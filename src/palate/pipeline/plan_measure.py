"""How fast this machine computes the run's own passes, measured on a few of its prompts."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, set_seed

from palate.errors import PalateError
from palate.model.loading import load_config
from palate.model.reward_model import RewardModel
from palate.model.weights import DTYPES, weight_names
from palate.objectives.objective import Objective
from palate.pipeline.config import TrainConfig
from palate.pipeline.train import open_model
from palate.rendering import RenderedGroup
from palate.training.defaults import with_rates
from palate.training.features import cached_features
from palate.training.trainer import enable_gradient_checkpointing
from palate.training.tuning import optimiser_for, prompt_gradients, take_step

NUM_PASSES = 3
SECONDS_A_PASS = 4.0
"""What a pass is sized for."""

CountFlops = Callable[[Sequence[RenderedGroup]], int]
Pass = Callable[[Sequence[int]], object]
"""Computes the prompts of these indices, forward and backward where something is trained."""


@dataclass(frozen=True)
class Measured:
    """What the passes showed."""

    device: str
    seconds_per_flop: float
    interval: tuple[float, float]
    """The fastest and the slowest pass."""
    optimiser_seconds: float
    """Of one optimiser step."""
    num_passes: int
    num_prompts: int
    num_flops: int
    kept_bytes: int | None
    """What the last pass kept for its backward pass; None with gradient checkpointing, which hides
    it, and where nothing is trained."""
    kept_prompts: tuple[int, ...]
    """Indices of the prompts of that pass."""
    peak_bytes: int | None
    """The device's own count of its fullest moment; None on a CPU."""


def measure_speed(
    config: TrainConfig, directory: Path, groups: Sequence[RenderedGroup], count: CountFlops
) -> Measured:
    """Run a few passes and an optimiser step of the configured model; `count` gives a pass' FLOPs.

    A first prompt is run twice, for what happens once and for a guess of the speed; then each pass
    takes as many prompts as fit one microbatch and `SECONDS_A_PASS`.
    """
    set_seed(config.training.seed)
    with _opened(config, directory) as (model, pad_id):
        if torch.cuda.is_available():
            model.to("cuda")
            torch.cuda.reset_peak_memory_stats()
        run = _pass_of(config, model, groups, pad_id)
        shortest = min(range(len(groups)), key=lambda index: groups[index].num_tokens)
        run([shortest])
        rate = _timed(run, [shortest]) / count([groups[shortest]])
        passes = _passes(config, groups, count, SECONDS_A_PASS / rate)
        rates = []
        for indices in passes:
            rates.append((_timed(run, indices), count([groups[index] for index in indices])))
        optimiser = 0.0
        kept = None
        if config.training.method != "frozen":
            optimiser = _optimiser_seconds(config, model, lambda: run([shortest]))
            if not config.training.gradient_checkpointing:
                kept = kept_bytes(model, lambda: run(passes[-1]))
        on_gpu = torch.cuda.is_available()
        return Measured(
            device=torch.cuda.get_device_name(0)
            if on_gpu
            else f"CPU, {torch.get_num_threads()} threads",
            seconds_per_flop=sum(seconds for seconds, _ in rates) / sum(n for _, n in rates),
            interval=(min(s / n for s, n in rates), max(s / n for s, n in rates)),
            optimiser_seconds=optimiser,
            num_passes=len(passes),
            num_prompts=len({index for indices in passes for index in indices}),
            num_flops=sum(n for _, n in rates),
            kept_bytes=kept,
            kept_prompts=tuple(passes[-1]),
            peak_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
        )


def kept_bytes(model: nn.Module, run: Callable[[], object]) -> int:
    """Bytes of the different storages that autograd keeps in `run`, parameters and buffers left
    out."""
    own = {
        tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())
    }
    found: dict[int, int] = {}
    alive: list[Tensor] = []  # an address that is free again would be counted for another

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            alive.append(tensor)
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(found.values())


@contextlib.contextmanager
def _opened(config: TrainConfig, directory: Path) -> Iterator[tuple[RewardModel, int]]:
    """The model as training opens it and its pad id; with random weights where there are none."""
    try:
        weight_names(directory, config.model)
        has_weights = True
    except PalateError:
        has_weights = any(directory.glob("*.safetensors")) or any(directory.glob("*.bin"))
    with tempfile.TemporaryDirectory() as folder:
        if not has_weights:
            _write_random(config, directory, Path(folder))
            config = replace(config, model=folder, allow_changed=[])
        loaded, renderer = open_model(config)
        if config.training.gradient_checkpointing:
            enable_gradient_checkpointing(loaded.model)
        yield loaded.model.train(), renderer.pad_id


def _write_random(config: TrainConfig, directory: Path, folder: Path) -> None:
    """A checkpoint of the same shape: what is there is copied, the body's weights are drawn."""
    for path in directory.iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)
    model_config = load_config(config.model, directory, config.body)
    dtype = DTYPES[config.body.dtype]
    body = AutoModel.from_config(
        model_config,
        trust_remote_code=config.body.trust_remote_code,
        dtype=torch.float32 if dtype == "auto" else dtype,
    )
    body.save_pretrained(folder)


def _pass_of(
    config: TrainConfig, model: RewardModel, groups: Sequence[RenderedGroup], pad_id: int
) -> Pass:
    tokens = config.training.tokens_per_microbatch
    if config.training.method != "frozen":
        objective = Objective(config.objective, groups)
        model.learned = nn.ParameterDict(
            {
                name: nn.Parameter(value.clone().to(model.device))
                for name, value in objective.initial.items()
            }
        )
        return prompt_gradients(model, groups, config.training, objective, pad_id)

    def features(indices: Sequence[int]) -> object:
        with tempfile.TemporaryDirectory() as folder:
            sequences = [groups[index].sequences for index in indices]
            return cached_features(model, sequences, Path(folder), tokens, pad_id).num_computed

    return features


def _passes(
    config: TrainConfig, groups: Sequence[RenderedGroup], count: CountFlops, most_flops: float
) -> list[list[int]]:
    """Prompts of each pass, in a random order, every prompt in one pass as long as there are any.

    A pass holds at least one prompt.
    """
    generator = torch.Generator().manual_seed(config.training.seed)
    order = torch.randperm(len(groups), generator=generator).tolist()
    passes: list[list[int]] = []
    place = 0
    while len(passes) < NUM_PASSES:
        chosen: list[int] = []
        num_tokens = flops = 0
        while len(chosen) < min(len(order), config.training.prompts_per_step):
            index = order[place % len(order)]
            num_tokens += groups[index].num_tokens
            flops += count([groups[index]])
            too_much = num_tokens > config.training.tokens_per_microbatch or flops > most_flops
            if chosen and too_much:
                break
            chosen.append(index)
            place += 1
        passes.append(chosen)
    return passes


def _timed(run: Pass, indices: Sequence[int]) -> float:
    # A pass ends with a number on the host, which waits for the device.
    start = time.perf_counter()
    run(indices)
    return time.perf_counter() - start


def _optimiser_seconds(
    config: TrainConfig, model: RewardModel, add_gradient: Callable[[], object]
) -> float:
    """Of the second of two steps at rate 0: the first makes the moments."""
    training = with_rates(config.training, model.num_parameters())
    optimiser = optimiser_for(model, training)
    seconds = 0.0
    for _ in range(2):
        add_gradient()
        start = time.perf_counter()
        take_step(model, optimiser, training, 0.0)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return seconds

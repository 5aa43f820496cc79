"""The worker that runs TRL's RewardTrainer and the `transformers` pipeline, as released.

Lives in an environment of its own, without palate. TRL is imported where it is used, so that the
pipeline and the reference loop need `transformers` alone.
"""

import gc
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from benchmarks.speed.cases import SEED, TRL_ARGUMENTS
from benchmarks.speed.counting import padded_pairs
from benchmarks.speed.measuring import StepClock, losses_of, num_slots, saved_bytes, token_counter
from benchmarks.speed.protocol import serve
from benchmarks.speed.reference import reference_losses

Pair = tuple[tuple[int, ...], tuple[int, ...]]


@cache
def read_groups(path: str) -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(Path(path).read_text(encoding="utf-8")))


def pairs_of(groups: Sequence[dict[str, Any]]) -> list[Pair]:
    """(chosen, rejected) ids of every comparison, group by group."""
    return [
        (tuple(group["sequences"][better]), tuple(group["sequences"][worse]))
        for group in groups
        for better, worse in group["comparisons"]
    ]


def make_trainer(
    folder: str,
    model: str,
    pairs: Sequence[Pair],
    pairs_per_step: int,
    directory: str,
    **options: Any,
) -> Any:
    """TRL's RewardTrainer on token ids; arguments that are not its defaults are in `cases`."""
    from trl import RewardConfig, RewardTrainer

    changed = {name: value for name, (value, _) in TRL_ARGUMENTS.items()}
    arguments = {"train_sampling_strategy": "sequential", "seed": SEED, **changed, **options}
    columns: dict[str, list[Any]] = {
        "chosen_ids": [list(chosen) for chosen, _ in pairs],
        "rejected_ids": [list(rejected) for _, rejected in pairs],
    }
    if arguments["train_sampling_strategy"] == "group_by_length":
        columns["length"] = [max(len(a), len(b)) for a, b in pairs]
        # Otherwise the trainer drops the column before its sampler reads it.
        arguments["remove_unused_columns"] = False
    return RewardTrainer(
        model=f"{folder}/models/{model}",
        args=RewardConfig(
            output_dir=directory, per_device_train_batch_size=pairs_per_step, **arguments
        ),
        train_dataset=Dataset.from_dict(columns),
    )


def train(
    folder: str,
    model: str,
    data: str,
    order: list[int],
    pairs_per_step: int,
    warm_steps: int = 0,
    watch: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """One epoch over the pairs of the groups `order` names; seconds of the steps after the first
    `warm_steps`, and what these steps processed. With `watch`, `seen` lists the pairs of each step,
    as places among all. `options` are further arguments of RewardConfig."""
    groups = read_groups(f"{folder}/{data}.json")
    pairs = pairs_of([groups[index] for index in order])
    with TemporaryDirectory() as directory:
        trainer = make_trainer(folder, model, pairs, pairs_per_step, directory, **options)
        clock = StepClock(warm_steps)
        watching: AbstractContextManager[list[list[Pair]]] = (
            batches_of(trainer.model) if watch else nullcontext([])
        )
        trainer.add_callback(clock)
        with (
            token_counter(trainer.model.get_input_embeddings(), lambda: clock.running) as shapes,
            losses_of(trainer) as losses,
            watching as batches,
        ):
            trainer.train()
    del trainer
    gc.collect()
    return {
        "seconds": clock.seconds,
        "steps": clock.num_steps,
        "slots": num_slots(shapes),
        "pairs": padded_pairs(shapes),
        "losses": losses,
        "seen": [places(batch, pairs) for batch in batches],
    }


@contextmanager
def batches_of(model: nn.Module) -> Iterator[list[list[Pair]]]:
    """Yields a list that gets the pairs of every forward pass, as TRL lays them out: chosen rows
    first."""
    batches: list[list[Pair]] = []

    def note(module: nn.Module, inputs: Any, arguments: dict[str, Any]) -> None:
        lengths = arguments["attention_mask"].sum(dim=1).tolist()
        rows = [
            tuple(ids[:length])
            for ids, length in zip(arguments["input_ids"].tolist(), lengths, strict=True)
        ]
        half = len(rows) // 2
        batches.append(list(zip(rows[:half], rows[half:], strict=True)))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield batches
    finally:
        handle.remove()


def places(batch: Sequence[Pair], pairs: Sequence[Pair]) -> list[int]:
    """Where each pair of a batch stands among all; equal pairs share the last of their places."""
    place = {pair: index for index, pair in enumerate(pairs)}
    return [place[pair] for pair in batch]


def save_bytes(
    folder: str, model: str, data: str, order: list[int], pairs_per_step: int
) -> dict[str, Any]:
    """Bytes saved for the backward pass of one step on the pairs of the groups `order` names."""
    groups = read_groups(f"{folder}/{data}.json")
    pairs = pairs_of([groups[index] for index in order])
    with TemporaryDirectory() as directory:
        trainer = make_trainer(folder, model, pairs, pairs_per_step, directory)
        inputs = next(iter(trainer.get_train_dataloader()))
        # Set by the training loop, which isn't entered here.
        trainer.current_gradient_accumulation_steps = 1
        with token_counter(trainer.model.get_input_embeddings()) as shapes:
            num_bytes = saved_bytes(trainer, trainer.model, inputs)
    return {"bytes": num_bytes, "slots": num_slots(shapes)}


@cache
def load_pipeline(directory: str) -> Any:
    from transformers import pipeline

    return pipeline("text-classification", model=directory, function_to_apply="none", device="cpu")


def score(folder: str, model: str, data: str, num_texts: int, batch_size: int) -> dict[str, Any]:
    """Scores of the first texts of a prepared list, and the seconds from text to score."""
    classify = load_pipeline(f"{folder}/models/{model}")
    content = json.loads(Path(f"{folder}/{data}.json").read_text(encoding="utf-8"))
    texts = content["texts"][:num_texts]
    assert classify.tokenizer(texts).input_ids == content["ids"][:num_texts], "other ids than ours"
    with token_counter(classify.model.get_input_embeddings()) as shapes:
        started = time.perf_counter()
        found = classify(texts, batch_size=batch_size)
        seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "rewards": [item["score"] for item in found],
        "slots": num_slots(shapes),
        "pairs": padded_pairs(shapes),
    }


def reference(
    folder: str, model: str, data: str, order: list[int], prompts_per_step: int, rate: float
) -> dict[str, Any]:
    """Losses of a plain loop over padded rows."""
    groups = [read_groups(f"{folder}/{data}.json")[index] for index in order]
    losses = reference_losses(f"{folder}/models/{model}", groups, prompts_per_step, rate)
    return {"losses": losses}


def describe() -> dict[str, Any]:
    """Versions and threads."""
    packages = ("trl", "torch", "transformers", "tokenizers", "accelerate", "datasets", "numpy")
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "none"
    return {"versions": found, "threads": torch.get_num_threads()}


if __name__ == "__main__":
    serve(
        {
            "train": train,
            "save_bytes": save_bytes,
            "score": score,
            "reference": reference,
            "describe": describe,
        }
    )

"""The worker that runs palate: its trainer and scorer, as a user gets them, with their defaults."""

import gc
import json
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import palate
from benchmarks.speed.cases import PALATE_SETTINGS, SEED
from benchmarks.speed.counting import shared_work
from benchmarks.speed.measuring import StepClock, losses_of, num_slots, saved_bytes, token_counter
from benchmarks.speed.protocol import serve
from palate.artifacts.rundir import versions
from palate.model.loading import load_model
from palate.model.settings import BodySettings
from palate.preferences.types import Comparison, Message, PreferenceGroup, Response
from palate.rendering import RenderedGroup
from palate.scoring.scorer import Scorer
from palate.training.settings import TrainingSettings
from palate.training.steps import StepSampler
from palate.training.trainer import RewardTrainer


@cache
def read_groups(path: str) -> tuple[RenderedGroup, ...]:
    """The groups of a prepared file. Their texts are not read: ids are taken as given."""
    return tuple(rendered(group) for group in json.loads(Path(path).read_text(encoding="utf-8")))


def rendered(group: dict[str, Any]) -> RenderedGroup:
    sequences = tuple(map(tuple, group["sequences"]))
    comparisons = tuple(Comparison(better, worse) for better, worse in group["comparisons"])
    responses = tuple(Response(str(index)) for index in range(len(sequences)))
    said = PreferenceGroup((Message("user", "ids"),), responses, comparisons)
    return RenderedGroup(sequences, comparisons, said, tuple(range(len(sequences))))


def in_step_order(
    groups: Sequence[RenderedGroup], prompts_per_step: int, seed: int
) -> list[RenderedGroup]:
    """The groups placed so that the trainer's own shuffle gives them back in the order given."""
    sampler = StepSampler([1] * len(groups), prompts_per_step, seed)
    drawn = [index for step in sampler.steps() for index in step]
    placed = dict(zip(drawn, groups, strict=True))
    return [placed[index] for index in range(len(groups))]


def make_trainer(
    folder: str, model: str, groups: Sequence[RenderedGroup], prompts_per_step: int, directory: str
) -> RewardTrainer:
    """palate's trainer with the settings of `cases.PALATE_SETTINGS`."""
    loaded = load_model(f"{folder}/models/{model}", BodySettings(), for_training=True)
    changed = {name: value for name, (value, _) in PALATE_SETTINGS.items()}
    settings = TrainingSettings(prompts_per_step=prompts_per_step, seed=SEED, **changed)
    return RewardTrainer(
        loaded.model,
        settings,
        in_step_order(groups, prompts_per_step, SEED),
        {},
        lambda groups, rewards: {},
        loaded.tokenizer.pad_token_id,
        Path(directory),
    )


def train(
    folder: str,
    model: str,
    data: str,
    order: list[int],
    prompts_per_step: int,
    warm_steps: int = 0,
) -> dict[str, Any]:
    """One epoch over the groups `order` names; seconds of the steps after the first `warm_steps`,
    and what these steps processed."""
    groups = [read_groups(f"{folder}/{data}.json")[index] for index in order]
    with TemporaryDirectory() as directory:
        trainer = make_trainer(folder, model, groups, prompts_per_step, directory)
        clock = StepClock(warm_steps)
        trainer.add_callback(clock)
        embedding = trainer.model.transformer.get_input_embeddings()
        with (
            token_counter(embedding, lambda: clock.running) as shapes,
            losses_of(trainer) as losses,
        ):
            trainer.train()
    del trainer
    gc.collect()
    timed = groups[warm_steps * prompts_per_step :]
    return {
        "seconds": clock.seconds,
        "steps": clock.num_steps,
        "slots": num_slots(shapes),
        "pairs": sum(shared_work(group.sequences)[1] for group in timed),
        "real_tokens": sum(shared_work(group.sequences)[0] for group in timed),
        "losses": losses,
    }


def save_bytes(
    folder: str, model: str, data: str, order: list[int], prompts_per_step: int
) -> dict[str, Any]:
    """Bytes saved for the backward pass of one step on the groups `order` names."""
    groups = [read_groups(f"{folder}/{data}.json")[index] for index in order]
    with TemporaryDirectory() as directory:
        trainer = make_trainer(folder, model, groups, prompts_per_step, directory)
        step = next(iter(trainer.get_train_dataloader()))
        with token_counter(trainer.model.transformer.get_input_embeddings()) as shapes:
            num_bytes = saved_bytes(trainer, trainer.model, step)
    return {"bytes": num_bytes, "slots": num_slots(shapes), "microbatches": len(step.microbatches)}


def pack(folder: str, model: str, data: str) -> dict[str, Any]:
    """Real and processed tokens of an epoch, with the default prompts a step and microbatches."""
    groups = read_groups(f"{folder}/{data}.json")
    with TemporaryDirectory() as directory:
        prompts_per_step = TrainingSettings().prompts_per_step
        trainer = make_trainer(folder, model, groups, prompts_per_step, directory)
        steps = list(trainer.get_train_dataloader())
    plans = [plan for step in steps for plan, _ in step.microbatches]
    return {
        "tokens": sum(plan.num_tokens for plan in plans),
        "slots": sum(plan.num_slots for plan in plans),
        "microbatches": len(plans),
        "steps": len(steps),
        "prompts_per_step": prompts_per_step,
    }


@cache
def load_scorer(directory: str) -> Scorer:
    return palate.load(directory, device="cpu")


def score(folder: str, model: str, data: str, num_texts: int) -> dict[str, Any]:
    """Rewards of the first texts of a prepared list, and the seconds from text to reward."""
    scorer = load_scorer(f"{folder}/models/{model}")
    content = json.loads(Path(f"{folder}/{data}.json").read_text(encoding="utf-8"))
    texts = content["texts"][:num_texts]
    with token_counter(scorer.model.transformer.get_input_embeddings()) as shapes:
        started = time.perf_counter()
        ids = scorer.renderer.tokenizer(texts, add_special_tokens=False).input_ids
        rewards = scorer.score_ids(ids)
        seconds = time.perf_counter() - started
    assert ids == content["ids"][:num_texts], "the checkpoint's tokenizer gives other ids"
    num_tokens, num_pairs = shared_work(ids)
    return {
        "seconds": seconds,
        "rewards": rewards,
        "slots": num_slots(shapes),
        "pairs": num_pairs,
        "real_tokens": num_tokens,
    }


def describe() -> dict[str, Any]:
    """Versions and threads."""
    return {"versions": versions(), "threads": torch.get_num_threads()}


if __name__ == "__main__":
    serve(
        {
            "train": train,
            "save_bytes": save_bytes,
            "pack": pack,
            "score": score,
            "describe": describe,
        }
    )

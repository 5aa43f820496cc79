"""What is compared with what. Both environments import this file, so it imports neither palate nor
TRL."""

from dataclasses import asdict, dataclass, replace
from typing import Any

SEED = 0
VOCABULARY = 30522
MAX_TOKENS = {"hh": 512, "k9": 384}
"""Longer sequences leave their group out, on both sides alike. TRL's steps of 64 pairs and of 144
would otherwise not fit into 16 GiB."""
MAX_ANSWER_TOKENS = 256
"""Answers of the K = 9 file are cut here."""


@dataclass(frozen=True)
class Shape:
    """A Llama with random weights; the vocabulary is MiniLM's."""

    num_layers: int
    width: int
    num_heads: int
    mlp_width: int


SHAPES = {
    "layers8": Shape(8, 384, 6, 1024),
    "layers4": Shape(4, 384, 6, 1024),
    "layers2": Shape(2, 128, 2, 352),
    "rehearsal": Shape(1, 16, 1, 32),
}


@dataclass(frozen=True, kw_only=True)
class TrainCase:
    """Optimiser steps of one trainer against those of the other, on the same pairs."""

    name: str
    what: str
    data: str
    """Name of a prepared data set: hh, k9, worst."""
    target: float | None
    """Ratio that is asked for; None where we should not win."""
    model: str = "layers8"
    prompts_per_step: int
    num_steps: int
    """Steps that are timed, in each round."""
    warm_steps: int = 0
    """Steps before them in the same run of the trainer. Where a step takes many seconds there is
    none, and the clock starts before the first batch is made."""
    rounds: int
    grouped: bool = False
    """TRL draws its batches by length. Both sides see the same pairs; ours in random order."""


@dataclass(frozen=True, kw_only=True)
class BytesCase:
    """Bytes kept for the backward pass of one microbatch."""

    name: str
    what: str
    data: str
    target: float
    model: str = "layers8"
    prompts_per_step: int
    rounds: int


@dataclass(frozen=True, kw_only=True)
class ScoreCase:
    """Texts to rewards, tokenisation included."""

    name: str
    what: str
    data: str
    """Name of a prepared list of texts: bon64, mixed."""
    target: float
    model: str = "layers8"
    num_texts: int
    rounds: int
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """The pipeline's best of these is what it is timed with."""
    num_tried: int = 32
    """Texts on which the batch sizes are tried, and on which both sides warm up."""


@dataclass(frozen=True, kw_only=True)
class PackingCase:
    """Real tokens in processed tokens over an epoch, with the default settings."""

    name: str
    what: str
    data: str
    target: float
    model: str = "layers2"


Case = TrainCase | BytesCase | ScoreCase | PackingCase

CASES: tuple[Case, ...] = (
    TrainCase(
        name="train_hh_8_vs_trl",
        what="training on HH pairs, 8 pairs a step",
        data="hh",
        target=3.0,
        prompts_per_step=8,
        num_steps=3,
        warm_steps=1,
        rounds=8,
    ),
    TrainCase(
        name="train_hh_64_vs_trl",
        what="training on HH pairs, 64 pairs a step",
        data="hh",
        target=4.0,
        model="layers4",
        prompts_per_step=64,
        num_steps=1,
        rounds=4,
    ),
    TrainCase(
        name="train_hh_64_vs_trl_grouped",
        what="the same, TRL's batches grouped by length",
        data="hh",
        target=1.5,
        model="layers4",
        prompts_per_step=64,
        num_steps=6,  # a whole megabatch of the sampler, from its longest pairs to its shortest
        rounds=2,
        grouped=True,
    ),
    TrainCase(
        name="train_k9_vs_trl",
        what="training on K = 9 groups, 4 prompts (144 pairs) a step",
        data="k9",
        target=12.0,
        model="layers4",
        prompts_per_step=4,
        num_steps=1,
        rounds=4,
    ),
    BytesCase(
        name="saved_bytes_hh_vs_trl",
        what="bytes saved for backward, 8 HH pairs",
        data="hh",
        target=2.0,
        prompts_per_step=8,
        rounds=3,
    ),
    BytesCase(
        name="saved_bytes_k9_vs_trl",
        what="bytes saved for backward, one K = 9 group",
        data="k9",
        target=5.0,
        prompts_per_step=1,
        rounds=3,
    ),
    ScoreCase(
        name="score_bon64_vs_pipeline",
        what="scoring 64 answers of 64 tokens to a prompt of 512",
        data="bon64",
        target=5.0,
        num_texts=64,
        rounds=3,
    ),
    ScoreCase(
        name="score_mixed_vs_pipeline",
        what="scoring a mixed file of 2,000 prompts with an answer",
        data="mixed",
        target=2.5,
        model="layers4",
        num_texts=2000,
        rounds=2,
        num_tried=128,
    ),
    PackingCase(
        name="packing", what="real tokens in processed tokens, HH file", data="hh", target=0.95
    ),
    TrainCase(
        name="train_worst_case_vs_trl",
        what="where we should not win: prompts of 8 tokens, two answers of 248",
        data="worst",
        target=None,
        prompts_per_step=8,
        num_steps=2,
        warm_steps=1,
        rounds=3,
    ),
)


def quick(case: Case) -> Case:
    """The same case in seconds: proves that it runs and that it counts right, times nothing."""
    match case:
        case TrainCase():
            small = replace(case, model="layers2", rounds=1, num_steps=min(case.num_steps, 2))
            if case.grouped:  # an epoch of 1,500 pairs is sorted 4 batches at a time, as in full
                return replace(small, num_steps=case.num_steps)
            return replace(small, prompts_per_step=min(case.prompts_per_step, 8))
        case BytesCase():
            return replace(case, model="layers2", rounds=1)
        case ScoreCase():
            texts = min(case.num_texts, 100)
            return replace(
                case, model="layers2", rounds=1, num_texts=texts, batch_sizes=(4, 16), num_tried=16
            )
        case PackingCase():
            return case


LEARNING_RATE = 1e-4
TRL_ARGUMENTS: dict[str, tuple[Any, str]] = {
    "bf16": (False, "float32 on both sides"),
    "gradient_checkpointing": (False, "off on both sides; TRL's default recomputes the forward"),
    "use_cpu": (True, "the machine of this run"),
    "report_to": ("none", "no tracker on either side"),
    "save_strategy": ("no", "no checkpoint inside the time; ours writes one after it"),
    "num_train_epochs": (1, "one pass over the pairs of the round"),
}
"""Arguments of TRL's RewardConfig that are not its defaults, with the reason."""
TRL_BY_CASE = {
    "per_device_train_batch_size": "pairs of a step: those of the prompts of a step",
    "train_sampling_strategy": "sequential, over pairs in random order: both sides get the same"
    " pairs in the same steps; group_by_length in the grouped row",
    "max_steps": "grouped row: the first megabatch of the sampler, six steps",
    "remove_unused_columns": "grouped row: False, or the sampler does not find the lengths",
    "dataset": "chosen_ids and rejected_ids, the ids that palate renders, none above TRL's"
    " max_length; length, the longer of the two, where batches are grouped by it",
    "environment": "HF_HUB_OFFLINE and HF_HUB_DISABLE_TELEMETRY",
}
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""Environment of both workers: memory that was freed is used again. By default glibc hands large
blocks back to the system and gets them anew, page by page, at every step: a cost of this allocator,
not of a layout."""
PALATE_SETTINGS: dict[str, tuple[Any, str]] = {
    "learning_rate": (LEARNING_RATE, "TRL's default"),
    "head_learning_rate_factor": (1.0, "TRL has one rate"),
    "weight_decay": (0.0, "TRL's default"),
    "warmup_share": (0.0, "TRL's default"),
    "epochs": (1, "as TRL"),
}
"""TrainingSettings that are not palate's defaults, with the reason."""


def settings_as_json() -> dict[str, Any]:
    """All of the above, as it stands beside the results."""
    return {
        "seed": SEED,
        "max_tokens": MAX_TOKENS,
        "max_answer_tokens_k9": MAX_ANSWER_TOKENS,
        "shapes": {name: asdict(shape) for name, shape in SHAPES.items()},
        "trl_not_default": {
            **{name: {"value": v, "why": why} for name, (v, why) in TRL_ARGUMENTS.items()},
            **{name: {"value": "by row", "why": why} for name, why in TRL_BY_CASE.items()},
        },
        "palate_not_default": {
            name: {"value": v, "why": why} for name, (v, why) in PALATE_SETTINGS.items()
        },
        "environment_of_both": ALLOCATOR,
        "pipeline": "text-classification, function_to_apply none, best batch size of those tried",
        "cases": [asdict(case) for case in CASES],
    }

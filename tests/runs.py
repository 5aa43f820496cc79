"""Small preference files and the runs that are trained on them."""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from palate.artifacts.ledger import Ledger
from palate.evaluation.outcomes import quick_metrics
from palate.model.loading import Loaded, load_model
from palate.model.settings import BodySettings
from palate.objectives.objective import Objective
from palate.pipeline.config import SplitSettings, TrainConfig
from palate.preferences import Comparison, Message, PreferenceGroup, Response
from palate.rendering import LengthSettings, RenderedGroup, Renderer, render_groups
from palate.training.settings import TrainingSettings
from palate.training.trainer import RewardTrainer
from tests.tiny import byte_tokenizer, save_tiny


def pair_rows(count: int, first: int = 0) -> list[dict[str, str]]:
    """Pairs of uneven lengths that differ in their first word and their last letters."""
    rows = []
    for number in range(first, first + count):
        dice = random.Random(number)
        rows.append(
            {
                "prompt": f"question {number} " + "x" * dice.randrange(12),
                "chosen": "yes " + "a" * dice.randrange(1, 12),
                "rejected": "no " + "b" * dice.randrange(1, 12),
            }
        )
    return rows


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tiny_run(directory: Path, num_pairs: int = 40, kind: str = "llama") -> dict[str, Any]:
    """`model` and `data` of a TrainConfig: a body without a head, and pairs."""
    return {
        "model": save_tiny(directory / f"body-{kind}", kind),
        "data": write_rows(directory / "pairs.jsonl", pair_rows(num_pairs)),
    }


def quick_training(**changes: Any) -> TrainingSettings:
    """Settings under which a tiny model learns `pair_rows` within a dozen steps."""
    defaults: dict[str, Any] = {
        "prompts_per_step": 4,
        "learning_rate": 1e-3,
        "warmup_share": 0.0,
        "log_every_steps": 1,
    }
    return TrainingSettings(**{**defaults, **changes})


def quick_config(directory: Path, output: str = "run", **changes: Any) -> TrainConfig:
    """A run in `directory`; files are made there when they are missing."""
    fields: dict[str, Any] = {
        "split": SplitSettings(validation_share=0.2, test_share=0.2),
        "training": quick_training(),
        "output": str(directory / output),
        **changes,
    }
    if "model" not in fields:
        fields = {**tiny_run(directory), **fields}
    return TrainConfig(**fields)


def ranked_group(number: int, num_responses: int) -> PreferenceGroup:
    """K answers of different lengths, each better than all after it."""
    dice = random.Random(number)
    texts = [f"{k} " + "y" * dice.randrange(1, 30) for k in range(num_responses)]
    return PreferenceGroup(
        (Message("user", f"question {number} " + "x" * dice.randrange(30)),),
        tuple(Response(text) for text in texts),
        tuple(
            Comparison(better, worse)
            for better in range(num_responses)
            for worse in range(better + 1, num_responses)
        ),
        line=number,
    )


def tiny_renderer() -> Renderer:
    return Renderer(byte_tokenizer(), LengthSettings().resolved(512))


def rendered(groups: Sequence[PreferenceGroup]) -> list[RenderedGroup]:
    return render_groups(groups, tiny_renderer(), Ledger())


def pair_groups(count: int, first: int = 0) -> list[RenderedGroup]:
    return rendered(
        [
            PreferenceGroup(
                (Message("user", row["prompt"]),),
                (Response(row["chosen"]), Response(row["rejected"])),
                (Comparison(0, 1),),
                line=number,
            )
            for number, row in enumerate(pair_rows(count, first))
        ]
    )


def contrary(groups: Sequence[RenderedGroup]) -> list[RenderedGroup]:
    """The same pairs with the worse answer preferred."""
    return [replace(group, comparisons=(Comparison(1, 0),)) for group in groups]


def load_tiny(directory: Path, kind: str = "llama", **body: Any) -> Loaded:
    """A tiny body for training; its new head is not zero, so that gradients reach the body."""
    path = directory / kind.replace(" ", "-")
    if not path.exists():
        save_tiny(path, kind)
    torch.manual_seed(0)
    return load_model(str(path), BodySettings(**{"head_init": "normal", **body}), for_training=True)


def tiny_trainer(
    model: Any,
    directory: Path,
    train: Sequence[RenderedGroup],
    validation: dict[str, Sequence[RenderedGroup]] | None = None,
    objective: Objective | None = None,
    **settings: Any,
) -> RewardTrainer:
    return RewardTrainer(
        model,
        quick_training(**settings),
        train,
        validation or {},
        quick_metrics,
        tiny_renderer().pad_id,
        directory / "training",
        objective,
    )


def weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}

"""What the export of adapters changes: rewards on held-out prompts before and after merging.

    python benchmarks/qlora_export.py --output benchmarks/results/qlora_export_minilm.json

Trains adapters on a 22M encoder and the starter set, on the body as it is and in 4 and 8 bit, and
compares the rewards of the trained model with those of each way to merge it: into the weights that
training saw (dequantised; what palate does), and into the original ones. Differences are divided by
the standard deviation of the trained model's rewards. Takes a quarter of an hour on two cores.
"""

import argparse
import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from transformers import set_seed

from palate.artifacts.files import write_json
from palate.artifacts.rundir import versions
from palate.evaluation.metrics import evaluate_outcomes
from palate.evaluation.outcomes import Outcome, quick_metrics
from palate.model.loading import load_model
from palate.model.lora import LoraSettings, add_adapters, trained_state
from palate.model.merging import merge_adapters
from palate.model.reward_model import RewardModel
from palate.pipeline.prepare import prepare
from palate.pipeline.quickstart import quickstart_run
from palate.rendering import RenderedGroup, Renderer
from palate.scoring.runs import rewards_of_groups
from palate.training.trainer import RewardTrainer

CASES = (("none", "float32"), ("none", "bfloat16"), ("4bit", "float32"), ("8bit", "float32"))
LORA = LoraSettings(rank=16)


def rewards_of(model: RewardModel, groups: Sequence[RenderedGroup], pad_id: int) -> list[Any]:
    return rewards_of_groups(model, [group.sequences for group in groups], 2048, pad_id)


def compare(
    groups: Sequence[RenderedGroup], trained: list[Any], merged: list[Any]
) -> dict[str, float]:
    old, new = np.concatenate(trained), np.concatenate(merged)
    outcomes = [Outcome(group, reward) for group, reward in zip(groups, merged, strict=True)]
    return {
        "largest difference": float(np.abs(new - old).max() / old.std()),
        "root mean square difference": float(np.sqrt(((new - old) ** 2).mean()) / old.std()),
        "accuracy": evaluate_outcomes(outcomes)["accuracy"].value,
    }


def run(quantization: Any, dtype: Any, num_steps: int) -> dict[str, Any]:
    config = quickstart_run("", 0)
    body = replace(config.body, quantization=quantization, dtype=dtype)
    settings = replace(
        config.training, method="lora", epochs=2, max_steps=num_steps, learning_rate=1e-3
    )
    set_seed(0)
    loaded = load_model(config.model, body, for_training=True)
    model = loaded.model
    renderer = Renderer(loaded.tokenizer, config.lengths)
    prepared = prepare(config, renderer)
    add_adapters(model, LORA)
    with tempfile.TemporaryDirectory() as directory:
        RewardTrainer(
            model, settings, prepared.train, {}, quick_metrics, renderer.pad_id, Path(directory)
        ).train()
    test = prepared.test
    trained = rewards_of(model, test, renderer.pad_id)
    row = {
        "quantization": quantization,
        "dtype": dtype,
        "accuracy, trained": compare(test, trained, trained)["accuracy"],
    }
    state = copy.deepcopy(trained_state(model))
    merge_adapters(model)
    row["merged"] = compare(test, trained, rewards_of(model, test, renderer.pad_id))
    if quantization != "none":
        other = load_model(config.model, replace(body, quantization="none"), for_training=True)
        add_adapters(other.model, LORA)
        other.model.load_state_dict(state, strict=False)
        merge_adapters(other.model)
        rewards = rewards_of(other.model, test, renderer.pad_id)
        row["merged into the original"] = compare(test, trained, rewards)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", required=True)
    flags = parser.parse_args()
    rows = []
    for quantization, dtype in CASES:
        rows.append(run(quantization, dtype, flags.steps))
        print(rows[-1], flush=True)
    more = {name: version(name) for name in ("peft", "bitsandbytes")}
    write_json(
        flags.output,
        {"steps": flags.steps, "lora": vars(LORA), "rows": rows, "versions": versions() | more},
    )


if __name__ == "__main__":
    main()

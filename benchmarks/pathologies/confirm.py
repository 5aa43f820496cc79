"""Biases of style in a real transformer: trained by `palate.train` on simulated text, with and
without the fix, and probed on held-out prompts.

    python -m benchmarks.pathologies.confirm --seeds 5 --output benchmarks/results/pathologies.json

A Llama of two layers starts from random weights, so that nothing but the labels can teach it. The
clean run of a seed is trained on the same texts with labels that no bias is in.

Legend: H held-out pairs.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import palate
from benchmarks.pathologies.biases import NUISANCE_OF, PROBE_OF
from benchmarks.pathologies.small_model import NUM_LAYERS, WIDTH, save_small_model
from palate.artifacts.files import write_json
from palate.objectives import ObjectiveSettings
from palate.pipeline.config import SplitSettings
from palate.preferences import PreferenceGroup, ScoringItem
from palate.preferences.types import Response
from palate.simulation import Scene, label, labels_of, scene
from palate.simulation.worlds import TwinName
from palate.text.perturb import perturb
from palate.training.settings import TrainingSettings

NUM_PAIRS, NUM_HELD_OUT = 5000, 600
EPOCHS = 3
LEARNING_RATE = 3e-3
PROMPTS_PER_STEP = 32


class Trial:
    """One seed: texts, a small model's first weights, held-out pairs."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.seed = seed
        self.directory = directory
        self.scene: Scene = scene(seed, NUM_PAIRS + NUM_HELD_OUT)
        self.body = save_small_model(directory / "body", self.scene.texts, seed)

    def trained(self, world: str, twin: TwinName, nuisance: Sequence[str] = ()) -> "palate.Scorer":
        groups = label(self.scene, labels_of(world, twin, self.seed)).groups
        name = "-".join([world, twin, *nuisance])
        data = self.directory / f"{name}.jsonl"
        data.write_text("".join(_row(group) for group in groups[:NUM_PAIRS]))
        config = palate.TrainConfig(
            model=self.body,
            data=str(data),
            output=str(self.directory / name),
            token_cache="off",
            split=SplitSettings(validation_share=0.0, test_share=0.0),
            objective=ObjectiveSettings(nuisance=tuple(nuisance)),
            training=TrainingSettings(
                epochs=EPOCHS,
                learning_rate=LEARNING_RATE,
                head_learning_rate_factor=1.0,
                prompts_per_step=PROMPTS_PER_STEP,
                seed=self.seed,
            ),
        )
        palate.train(config)
        return palate.load(str(self.directory / name))

    def measured(self, scorer: "palate.Scorer", kind: str) -> dict[str, float]:
        """True accuracy; and for the truly worse answer of each pair ranked right, what the feature
        adds to its reward and whether it then wins."""
        random = np.random.default_rng([self.seed, 17])
        groups = label(self.scene).groups[NUM_PAIRS:]
        utility_N = self.scene.utility_N
        items, margins = [], []
        for group, members in zip(groups, self.scene.answer_GK[NUM_PAIRS:], strict=True):
            worth = utility_N[members]
            if worth[0] == worth[1]:
                continue
            better, worse = (0, 1) if worth[0] > worth[1] else (1, 0)
            texts = [group.responses[i].text for i in (better, worse)]
            texts.append(perturb(texts[1], kind, "test", random))
            items += [ScoringItem(group.prompt, Response(text)) for text in texts]
            margins.append(worth[better] - worth[worse])
        reward_H3 = np.array(scorer.score_items(items)).reshape(-1, 3)
        margin_H = reward_H3[:, 0] - reward_H3[:, 1]
        right_H = margin_H > 0
        change_H = reward_H3[:, 2] - reward_H3[:, 1]
        return {
            "accuracy": float(right_H.mean()),
            "effect": float(change_H.mean() / margin_H.std()),
            "flips": float((change_H > margin_H)[right_H].mean()),
        }


def _row(group: PreferenceGroup) -> str:
    (comparison,) = group.comparisons
    texts = {
        "prompt": group.prompt[0].content,
        "chosen": group.responses[comparison.better].text,
        "rejected": group.responses[comparison.worse].text,
    }
    return json.dumps(texts) + "\n"


def of_seed(seed: int, worlds: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    with tempfile.TemporaryDirectory() as directory:
        trial = Trial(seed, Path(directory))
        clean = trial.trained(worlds[0], "clean")
        for world in worlds:
            kind = PROBE_OF[world]
            planted = trial.trained(world, "planted")
            fixed = trial.trained(world, "planted", [NUISANCE_OF[world]])
            found.append(
                {
                    "bias": world,
                    "seed": seed,
                    "clean": trial.measured(clean, kind),
                    "planted": trial.measured(planted, kind),
                    "fixed": trial.measured(fixed, kind),
                }
            )
            print(json.dumps(found[-1]), flush=True)
    return found


def summary(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and range over seeds, for each bias."""
    rows = []
    for world in dict.fromkeys(run["bias"] for run in found):
        runs = [run for run in found if run["bias"] == world]
        row: dict[str, Any] = {
            "bias": world,
            "model": f"Llama, {NUM_LAYERS} layers, width {WIDTH}",
            "seeds": len(runs),
        }
        for state in ("clean", "planted", "fixed"):
            for what in ("effect", "flips", "accuracy"):
                values = [run[state][what] for run in runs]
                row[f"{state}_{what}"] = {
                    "value": float(np.mean(values)),
                    "low": min(values),
                    "high": max(values),
                }
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--worlds", default=",".join(PROBE_OF))
    parser.add_argument("--output", default="benchmarks/results/pathologies.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = [
        run for seed in range(options.seeds) for run in of_seed(seed, options.worlds.split(","))
    ]
    output = Path(options.output)
    report = json.loads(output.read_text()) if output.exists() else {}
    report["transformers"] = summary(found)
    report["transformer_runs"] = found
    write_json(output, report)


if __name__ == "__main__":
    main()

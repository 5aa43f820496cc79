"""Biases of style in a real transformer: trained by `palate.train` on simulated text, with and
without the fix, and probed on held-out prompts.

    python -m benchmarks.pathologies.confirm --seeds 5 --output benchmarks/results/pathologies.json

A Llama of two layers, pretrained without labels (`small_model`), is trained whole. The clean run of
a seed is trained on the same texts with labels that no bias is in. Each bias and seed is a line of
a file beside the output, so that a run that was stopped goes on; remove it, and the body beside it,
after a change to what is trained or measured.

Legend: H held-out pairs.
"""

import argparse
import json
import multiprocessing
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import palate
from benchmarks.pathologies.biases import NUISANCE_OF, PROBE_OF
from benchmarks.pathologies.run import whole_lines
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
LEARNING_RATE = 2.5e-3
PROMPTS_PER_STEP = 32
Task = tuple[int, str, str]
"""A seed; the bias to train on, or `CLEAN`, on which every bias's probe is tried; the body."""
CLEAN = "clean"
BODY = "pathologies.body"
"""Directory of the pretrained body, beside the output; it may go once the run is done."""


class Trial:
    """One seed: texts, held-out pairs, and the pretrained body to start from."""

    def __init__(self, seed: int, directory: Path, body: str) -> None:
        self.seed = seed
        self.directory = directory
        self.body = body
        self.scene: Scene = scene(seed, NUM_PAIRS + NUM_HELD_OUT)

    def trained(self, world: str, twin: TwinName, nuisance: Sequence[str] = ()) -> "palate.Scorer":
        groups = label(self.scene, labels_of(world, twin, self.seed)).groups
        name = "-".join([world, twin, *nuisance])
        data = self.directory / f"{name}.jsonl"
        data.write_text("".join(row_of(group) for group in groups[:NUM_PAIRS]))
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


def row_of(group: PreferenceGroup) -> str:
    """A pair as a line of JSON."""
    (comparison,) = group.comparisons
    texts = {
        "prompt": group.prompt[0].content,
        "chosen": group.responses[comparison.better].text,
        "rejected": group.responses[comparison.worse].text,
    }
    return json.dumps(texts) + "\n"


def of_task(task: Task) -> dict[str, Any]:
    """What the models of one seed and bias measure."""
    seed, world, body = task
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as directory:
        trial = Trial(seed, Path(directory), body)
        if world == CLEAN:
            scorer = trial.trained(next(iter(PROBE_OF)), "clean")
            measured: dict[str, Any] = {
                name: trial.measured(scorer, kind) for name, kind in PROBE_OF.items()
            }
        else:
            kind = PROBE_OF[world]
            measured = {
                "planted": trial.measured(trial.trained(world, "planted"), kind),
                "fixed": trial.measured(
                    trial.trained(world, "planted", [NUISANCE_OF[world]]), kind
                ),
            }
    return {"seed": seed, "world": world, "measured": measured}


def joined(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each bias and seed: clean, planted and fixed."""
    measured_of = {(line["seed"], line["world"]): line["measured"] for line in lines}
    return [
        {"bias": world, "seed": seed, "clean": measured_of[seed, CLEAN][world], **measured}
        for (seed, world), measured in sorted(measured_of.items())
        if world != CLEAN
    ]


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
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", default="benchmarks/results/pathologies.json")
    options = parser.parse_args()
    output = Path(options.output)
    log = output.with_suffix(".transformers.jsonl")
    tasks = [(seed, world) for seed in range(options.seeds) for world in (CLEAN, *PROBE_OF)]
    done = {(line["seed"], line["world"]): line for line in whole_lines(log)}
    left = [task for task in tasks if task not in done]
    body = output.parent / BODY
    if left and not (body / "config.json").exists():
        save_small_model(body)
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for line in pool.imap_unordered(of_task, [(*task, str(body)) for task in left]):
            with open(log, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
            done[line["seed"], line["world"]] = line
            print(json.dumps(line), flush=True)
    found = joined(done[task] for task in tasks)
    report = json.loads(output.read_text()) if output.exists() else {}
    report["transformers"] = summary(found)
    report["transformer_runs"] = found
    write_json(output, report)


if __name__ == "__main__":
    main()

"""Every objective on the same real preferences, splits and seeds: accuracy, loss, calibration.

    python benchmarks/objectives.py pandalm_votes.json alpacaeval_k9.jsonl.gz hh_harmless.jsonl.gz \
        --method frozen --output benchmarks/results/objectives_frozen.json

Each seed is another split by prompt cluster (70 % train, 10 % validation, 20 % test) and another
order; all objectives of a seed see the same. What is measured is the same for all: the test part's
votes as palate reads them by default, the rewards divided by the temperature that the validation
part gave. The body is the 22M encoder of the `offline` extra.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from held_out import calibration_error
from transformers import set_seed

from palate.artifacts.files import write_json
from palate.artifacts.ledger import Ledger
from palate.artifacts.rundir import versions
from palate.errors import PalateError
from palate.evaluation.calibration import fit_temperature
from palate.evaluation.metrics import evaluate_outcomes
from palate.evaluation.outcomes import Outcome
from palate.model.settings import BodySettings
from palate.objectives import ObjectiveSettings
from palate.objectives.objective import Objective
from palate.pipeline.config import SplitSettings, TrainConfig
from palate.pipeline.fit import fit
from palate.pipeline.prepare import data_hashes, divide, prepare, read_sources
from palate.pipeline.quickstart import minilm_directory
from palate.pipeline.train import open_model
from palate.preferences import VoteSettings
from palate.preferences.settings import ReadSettings
from palate.rendering import LengthSettings, Renderer, render_groups
from palate.training.settings import TrainingSettings


@dataclass(frozen=True)
class Arm:
    """One objective with its settings, and how the training part's labels are made."""

    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    votes: VoteSettings = field(default_factory=VoteSettings)


ARMS: dict[str, Arm] = {
    "bradley-terry": Arm(),
    "bradley-terry, majority": Arm(votes=VoteSettings(target="majority")),
    "label smoothing 0.1": Arm(ObjectiveSettings(label_smoothing=0.1)),
    "centring 0.01": Arm(ObjectiveSettings(centring=0.01)),
    "sum to zero 0.01": Arm(ObjectiveSettings(sum_to_zero=0.01)),
    "margin by strength": Arm(votes=VoteSettings(margin_per_strength=1.0)),
    "scaled by strength": Arm(votes=VoteSettings(scale_by_strength=True)),
    "davidson": Arm(ObjectiveSettings(kind="davidson")),
    "rao-kupper": Arm(ObjectiveSettings(kind="rao-kupper")),
    "annotators scaled": Arm(ObjectiveSettings(annotators="scaled")),
    "plackett-luce": Arm(ObjectiveSettings(kind="plackett-luce")),
    "plackett-luce, top 3": Arm(ObjectiveSettings(kind="plackett-luce", top_k=3)),
    "hinge": Arm(ObjectiveSettings(kind="hinge")),
    "regression": Arm(ObjectiveSettings(kind="regression")),
}

TRAINING = {
    "frozen": TrainingSettings(method="frozen"),
    "full": TrainingSettings(
        epochs=1, prompts_per_step=8, head_learning_rate_factor=3.0, tokens_per_microbatch=1024
    ),
}
BODY = {
    "frozen": BodySettings(pooling="mean"),
    "full": BodySettings(head_init="normal"),
}


def run_arm(path: str, method: str, arm: Arm, seed: int) -> dict[str, float]:
    """Train once, and measure on the test part as it is read by default."""
    config = TrainConfig(
        model=str(minilm_directory()),
        data=path,
        read=ReadSettings(votes=arm.votes),
        split=SplitSettings(validation_share=0.1, test_share=0.2, salt=f"seed {seed}"),
        lengths=LengthSettings(max_prompt_tokens=128, max_response_tokens=256, overlong="cut"),
        body=BODY[method],
        objective=arm.objective,
        training=replace(TRAINING[method], seed=seed),
    )
    set_seed(seed)
    loaded, renderer = open_model(config)
    prepared = prepare(config, renderer)
    objective = Objective(config.objective, prepared.train)
    with tempfile.TemporaryDirectory() as directory:
        fitted = fit(config, loaded, renderer, prepared, objective, Path(directory))
    temperature = fit_temperature(fitted.outcomes["validation"], config.objective.ties)
    outcomes = read_as_default(fitted.outcomes["test"], config, renderer)
    cold = [replace(o, reward_N=o.reward_N / temperature) for o in outcomes]
    metrics = evaluate_outcomes(outcomes)
    return {
        "accuracy": metrics["accuracy"].value,
        "loss": metrics["loss"].value,
        "loss, calibrated": evaluate_outcomes(cold)["loss"].value,
        "temperature": temperature,
        "calibration error": calibration_error(cold),
        "longer wins": metrics["longer wins"].value,
        "prompts": len(outcomes),
    }


def read_as_default(
    outcomes: Sequence[Outcome], config: TrainConfig, renderer: Renderer
) -> list[Outcome]:
    """The same rewards under the comparisons that the default settings read; prompts that the
    arm's own settings leave out are left out here too."""
    reward_of = {
        ids: reward
        for outcome in outcomes
        for ids, reward in zip(outcome.group.sequences, outcome.reward_N, strict=True)
    }
    plain = replace(config, read=ReadSettings())
    parts, _ = divide(read_sources(plain.inputs, plain.read).groups, plain.split)
    return [
        Outcome(group, np.array([reward_of[ids] for ids in group.sequences]))
        for group in render_groups(parts["test"], renderer, Ledger())
        if all(ids in reward_of for ids in group.sequences)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", nargs="+")
    parser.add_argument("--method", choices=tuple(TRAINING), default="frozen")
    parser.add_argument("--arms", default="", help="names, divided by ';'; empty = all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", required=True)
    flags = parser.parse_args()
    arms = {name: ARMS[name] for name in flags.arms.split(";")} if flags.arms else ARMS
    results: dict[str, dict[str, Any]] = {}
    for path in flags.data:
        table: dict[str, Any] = results.setdefault(Path(path).name, {})
        for name, arm in arms.items():
            table[name] = measure(path, flags.method, name, arm, flags.seeds)
            write(flags.output, flags, results)


def measure(path: str, method: str, name: str, arm: Arm, num_seeds: int) -> Mapping[str, Any]:
    """Means over seeds and each seed's values; or why the objective refused this data."""
    started = time.monotonic()
    try:
        runs = [run_arm(path, method, arm, seed) for seed in range(num_seeds)]
    except PalateError as error:
        print(f"{Path(path).name:24} {name:26} refused: {error}", flush=True)
        return {"refused": str(error).replace(path, Path(path).name)}
    mean = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    print(
        f"{Path(path).name:24} {name:26} "
        + " ".join(f"{key} {value:.3f}" for key, value in mean.items())
        + f"  ({time.monotonic() - started:.0f} s)",
        flush=True,
    )
    return {"mean": mean, "runs": runs}


def write(output: str, flags: argparse.Namespace, results: Mapping[str, Any]) -> None:
    method = flags.method
    hashes = {Path(name).name: value for name, value in data_hashes(flags.data).items()}
    write_json(
        output,
        {
            "method": method,
            "training": asdict(TRAINING[method]),
            "body": asdict(BODY[method]),
            "seeds": flags.seeds,
            "data_sha256": hashes,
            "results": results,
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    main()

"""Learning rates for full training and for adapters, on real preferences and a 22M encoder.

    python benchmarks/rates.py pandalm_votes.json --output benchmarks/results/rates_minilm.json

Each seed is another split by prompt cluster and another order; all rates of a seed see the same.
"""

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from held_out import calibration_error, test_outcomes

from palate.artifacts.files import write_json
from palate.artifacts.ledger import Ledger
from palate.artifacts.rundir import versions
from palate.errors import PalateError
from palate.evaluation.metrics import evaluate_outcomes
from palate.pipeline.config import SplitSettings, TrainConfig
from palate.pipeline.prepare import data_hashes
from palate.pipeline.quickstart import minilm_directory
from palate.pipeline.train import train
from palate.rendering import LengthSettings
from palate.training.settings import TrainingSettings

RATES = {
    "full": (3e-5, 1e-4, 3e-4),
    "lora": (3e-4, 1e-3, 3e-3),
}
HEAD_FACTORS = {"full": (10.0,), "lora": (1.0,)}
BASE = TrainingSettings(epochs=1, prompts_per_step=8, tokens_per_microbatch=1024)


def run(path: str, method: Any, rate: float, factor: float, seed: int) -> dict[str, float]:
    """Train once and measure on the test part."""
    with tempfile.TemporaryDirectory() as directory:
        config = TrainConfig(
            model=str(minilm_directory()),
            data=path,
            output=str(Path(directory) / "run"),
            split=SplitSettings(validation_share=0.1, test_share=0.2, salt=f"seed {seed}"),
            lengths=LengthSettings(max_prompt_tokens=64, max_response_tokens=128, overlong="cut"),
            training=replace(
                BASE,
                method=method,
                learning_rate=rate,
                head_learning_rate_factor=factor,
                seed=seed,
            ),
        )
        scorer = train(config).scorer
        assert scorer is not None
    outcomes = test_outcomes(config, scorer, Ledger())
    cold = [replace(o, reward_N=o.reward_N / scorer.temperature) for o in outcomes]
    metrics = evaluate_outcomes(outcomes)
    return {
        "accuracy": metrics["accuracy"].value,
        "loss": metrics["loss"].value,
        "loss, calibrated": evaluate_outcomes(cold)["loss"].value,
        "temperature": scorer.temperature,
        "calibration error": calibration_error(cold),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--methods", default="full,lora")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", required=True)
    flags = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for method in flags.methods.split(","):
        for factor in HEAD_FACTORS[method]:
            for rate in RATES[method]:
                row: dict[str, Any] = {"method": method, "rate": rate, "head factor": factor}
                try:
                    runs = [run(flags.data, method, rate, factor, s) for s in range(flags.seeds)]
                    row["mean"] = {k: float(np.mean([r[k] for r in runs])) for k in runs[0]}
                    row["runs"] = runs
                except PalateError as error:
                    row["refused"] = str(error)
                rows.append(row)
                print({key: value for key, value in row.items() if key != "runs"}, flush=True)
                hashes = {Path(k).name: v for k, v in data_hashes([flags.data]).items()}
                write_json(
                    flags.output,
                    {
                        "training": asdict(BASE),
                        "seeds": flags.seeds,
                        "data_sha256": hashes,
                        "rows": rows,
                        "versions": versions(),
                    },
                )


if __name__ == "__main__":
    main()

"""Train on real preferences in folds by prompt cluster, and pool what was held out.

    python benchmarks/real_data.py examples/hh_harmless_minilm.yaml --data hh_harmless.jsonl.gz

Every prompt is in the test part of exactly one fold. Writes one JSON: metrics with intervals over
all prompts, the ledger, the configuration, versions. Takes half an hour on two idle cores.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from held_out import test_outcomes

from palate.artifacts.files import write_json
from palate.artifacts.ledger import Ledger
from palate.artifacts.rundir import versions
from palate.cli.parsing import parse, parser_for
from palate.evaluation.metrics import evaluate_outcomes
from palate.evaluation.outcomes import Outcome
from palate.pipeline.config import TrainConfig
from palate.pipeline.prepare import data_hashes
from palate.pipeline.quickstart import minilm_directory
from palate.pipeline.train import train
from palate.statistics import as_json


def held_out(config: TrainConfig, directory: Path) -> tuple[list[Outcome], Ledger]:
    """Train one fold, and score its test part."""
    result = train(replace(config, output=str(directory)))
    assert result.scorer is not None
    ledger = Ledger()
    return test_outcomes(config, result.scorer, ledger), ledger


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("--data", required=True)
    parser.add_argument(
        "--model", default="minilm", help="directory, hub id, or the wheel's minilm"
    )
    parser.add_argument("--folds", type=int, default=0, help="only so many of the folds; 0 = all")
    parser.add_argument("--output", required=True)
    flags = parser.parse_args()
    model = str(minilm_directory()) if flags.model == "minilm" else flags.model
    arguments = [flags.config, "--data", flags.data, "--model", model]
    base, _ = parse(parser_for("train", "", TrainConfig), TrainConfig, arguments)
    outcomes: list[Outcome] = []
    ledger = Ledger()
    for fold in range(flags.folds or base.split.num_folds):
        with tempfile.TemporaryDirectory() as directory:
            config = replace(base, split=replace(base.split, fold=fold))
            part, part_ledger = held_out(config, Path(directory) / "run")
        outcomes += part
        ledger.extend(part_ledger)
        accuracy = evaluate_outcomes(part)["accuracy"]
        print(f"fold {fold}: accuracy {accuracy}", flush=True)
    metrics = evaluate_outcomes(outcomes)
    for name, value in metrics.items():
        print(f"{name:40} {value}")
    configuration = asdict(base)
    configuration.update(model=Path(model).name if flags.model != "minilm" else "all-MiniLM-L6-v2")
    configuration.update(data=Path(flags.data).name)
    hashes = {Path(name).name: value for name, value in data_hashes([flags.data]).items()}
    write_json(
        flags.output,
        {
            "configuration": configuration,
            "data_sha256": hashes,
            "folds": flags.folds or base.split.num_folds,
            "num_prompts": len(outcomes),
            "num_answers": sum(len(o.reward_N) for o in outcomes),
            "num_comparisons": sum(len(o.group.comparisons) for o in outcomes),
            "ledger_of_test_parts": ledger.by_reason(),
            "metrics": as_json(metrics),
            "versions": versions(),
        },
    )
    print(json.dumps({"written": flags.output}))


if __name__ == "__main__":
    main()

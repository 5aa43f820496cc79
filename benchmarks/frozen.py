"""Frozen heads on the starter set with the quickstart's body and split: how good, how long.

    OMP_NUM_THREADS=1 python benchmarks/frozen.py --output benchmarks/results/frozen_minilm.json

Each head is trained twice: the second run finds its features in the cache. Times are CPU seconds of
the whole run, from reading the file to the report. Takes three minutes on one idle core.
"""

import argparse
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from palate.artifacts.files import sha256_file, write_json
from palate.artifacts.rundir import versions
from palate.model.settings import BodySettings
from palate.pipeline.quickstart import STARTER_SET, quickstart_run
from palate.pipeline.train import TrainResult, train
from palate.statistics import as_json
from palate.training.settings import TrainingSettings

BODIES = {
    "cls, linear": BodySettings(pooling="cls"),
    "mean, linear": BodySettings(pooling="mean"),
    "mean, mlp": BodySettings(pooling="mean", head="mlp"),
}


def timed(body: BodySettings, directory: Path, cache: Path) -> tuple[TrainResult, float]:
    """A run and its CPU seconds."""
    settings = TrainingSettings(
        method="frozen", tokens_per_microbatch=1024, features_cache=str(cache)
    )
    config = replace(quickstart_run(str(directory), 0), body=body, training=settings)
    start = time.process_time()
    return train(config), time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", required=True)
    flags = parser.parse_args()
    found: dict[str, Any] = {}
    for name, body in BODIES.items():
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / "cache"
            first, seconds = timed(body, Path(folder) / "first", cache)
            again, seconds_again = timed(body, Path(folder) / "again", cache)
            assert as_json(again.metrics) == as_json(first.metrics)
        found[name] = {
            "metrics": as_json(first.metrics),
            "cpu_seconds": seconds,
            "cpu_seconds_with_cached_features": seconds_again,
        }
        print(f"{name:14} accuracy {first.metrics['accuracy']}  loss {first.metrics['loss']}")
        print(f"{'':14} {seconds:.1f} s, again {seconds_again:.1f} s", flush=True)
    write_json(
        flags.output,
        {
            "heads": found,
            "data_sha256": {STARTER_SET.name: sha256_file(STARTER_SET)},
            "versions": versions(),
            "machine": f"{platform.machine()}, one thread",
        },
    )


if __name__ == "__main__":
    main()

"""Published benchmarks of reward models, scored as published, with intervals and protocol."""

from palate.evaluation.benchmarks.items import (
    Benchmark,
    BenchmarkItem,
    BenchmarkResult,
    Score,
    ScoredItem,
)
from palate.evaluation.benchmarks.lengths import LengthPolicy
from palate.evaluation.benchmarks.reading import DEFINITIONS, HUB_SPLITS, read_benchmark
from palate.evaluation.benchmarks.run import run_benchmark, score_benchmark
from palate.evaluation.benchmarks.stored import recompute, write_items

__all__ = [
    "DEFINITIONS",
    "HUB_SPLITS",
    "Benchmark",
    "BenchmarkItem",
    "BenchmarkResult",
    "LengthPolicy",
    "Score",
    "ScoredItem",
    "read_benchmark",
    "recompute",
    "run_benchmark",
    "score_benchmark",
    "write_items",
]

"""Scores of items on disk, from which a result is computed again without the model."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from palate.artifacts.files import describe_os_error, sha256_json, write_text
from palate.errors import PalateError
from palate.evaluation.benchmarks.items import (
    Benchmark,
    BenchmarkResult,
    ScoredItem,
    hash_of_items,
)
from palate.evaluation.benchmarks.reading import DEFINITIONS
from palate.evaluation.benchmarks.run import result_of

FORMAT_VERSION = 1
ROW_HASH = "row_sha256"
"""Of all that an item's row holds beside it, so that a changed reward is found as well."""


def write_items(path: str | Path, result: BenchmarkResult) -> None:
    """Write one JSON object an item, each with its hash, after a first line with the benchmark, the
    protocol and a hash of all items' contents."""
    head = {
        "palate_benchmark_items": FORMAT_VERSION,
        "benchmark": result.benchmark,
        "num_items": len(result.items),
        "items_sha256": hash_of_items([item.content_sha256 for item in result.items]),
        "left_out": dict(result.left_out),
        "protocol": dict(result.protocol),
    }
    items = [asdict(item) for item in result.items]
    rows = [head, *({**item, ROW_HASH: sha256_json(item)} for item in items)]
    write_text(path, "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows))


def recompute(path: str | Path, benchmark: Benchmark | None = None) -> BenchmarkResult:
    """The result that the stored scores give; the same as when they were written.

    With `benchmark`, each score must be of the text that stands there under the same id. Raises
    PalateError, naming the line, for a file that is damaged, was scored by another version of the
    benchmark's rules, or whose items are other ones.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise describe_os_error(error, path, "read") from error
    except UnicodeDecodeError as error:
        raise PalateError(f"{path}: not a file of benchmark items: {error}") from error
    head = _head(path, lines[0] if lines else "")
    items = [_item(path, number, line) for number, line in enumerate(lines[1:], start=2)]
    hashes = hash_of_items([item.content_sha256 for item in items])
    if len(items) != head["num_items"] or hashes != head["items_sha256"]:
        raise PalateError(
            f"{path}: its {len(items)} items are not the {head['num_items']} that were written:"
            " lines are missing, moved or changed; score the benchmark again"
        )
    if benchmark is not None:
        _check_texts(path, items, benchmark)
    return result_of(head["benchmark"], items, head["left_out"], head["protocol"])


def _head(path: str | Path, line: str) -> Mapping[str, Any]:
    try:
        head: dict[str, Any] = json.loads(line)
        version = head["palate_benchmark_items"]
        name, scorer_version = head["benchmark"], head["protocol"]["scorer_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise PalateError(f"{path}:1: not a file of benchmark items: {error!r:.80}") from error
    if version != FORMAT_VERSION or name not in DEFINITIONS:
        raise PalateError(
            f"{path}:1: version {version} of {name!r:.40}; this palate reads version"
            f" {FORMAT_VERSION} of {', '.join(DEFINITIONS)}"
        )
    if scorer_version != DEFINITIONS[name].version:
        raise PalateError(
            f"{path}:1: scored by version {scorer_version} of the rules of {name}, this palate has"
            f" {DEFINITIONS[name].version}; score it again"
        )
    return head


def _item(path: str | Path, number: int, line: str) -> ScoredItem:
    try:
        row = json.loads(line)
        stated = row.pop(ROW_HASH)
        is_as_written = stated == sha256_json(row)
        row["comparisons"] = tuple((int(b), int(w), float(x)) for b, w, x in row["comparisons"])
        row["rewards"] = tuple(map(float, row["rewards"]))
        row["num_characters"] = tuple(map(int, row["num_characters"]))
        item = ScoredItem(**row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PalateError(
            f"{path}:{number}: not an item of a benchmark: {error!r:.80}; score it again"
        ) from error
    if not is_as_written:
        raise PalateError(
            f"{path}:{number}: item {item.id} is not as it was written: its hash is that of other"
            " values; score the benchmark again"
        )
    return item


def _check_texts(path: str | Path, items: list[ScoredItem], benchmark: Benchmark) -> None:
    known = {(item.content_sha256, item.id) for item in benchmark.items}
    for number, item in enumerate(items, start=2):
        if (item.content_sha256, item.id) not in known:
            raise PalateError(
                f"{path}:{number}: item {item.id} was scored on another text than stands"
                f" under this id in {benchmark.name}: the data are of another version, or the"
                " scores of another file"
            )

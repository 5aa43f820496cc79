"""Time palate against TRL and the `transformers` pipeline, interleaved, and write a JSON.

    python -m benchmarks.speed.run --peer .venv-bench/bin/python

The data's folder is that of PALATE_TEST_DATA. Every row is written as soon as it is measured.
With --rows the other rows of an older file stay as they are.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.cases import CASES, Case, ScoreCase, quick, settings_as_json
from benchmarks.speed.curves import curves
from benchmarks.speed.machine import describe_machine
from benchmarks.speed.prepare import prepare, read_json, write_description
from benchmarks.speed.protocol import ROOT, Worker
from benchmarks.speed.rows import Bench, row_of
from benchmarks.speed.table import line_of
from palate.artifacts.files import write_json
from palate.errors import PalateError

OUTPUT = ROOT / "benchmarks" / "results" / "speed_cpu.json"
WORK = ROOT / "build" / "bench"


@dataclass(frozen=True)
class Flags:
    """What the command line says."""

    peer: Path
    data: Path
    output: Path
    work: Path
    rows: tuple[str, ...]
    num_threads: int
    quick: bool
    curve_steps: int


def parse(arguments: Sequence[str]) -> Flags:
    """Raises PalateError for a row that there is none of, and for missing data or environments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--peer", type=Path, required=True, help="Python of TRL's environment")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--work", type=Path, default=WORK, help="folder for models and token ids")
    parser.add_argument("--rows", default="", help="names, divided by commas; empty = all")
    parser.add_argument("--threads", type=int, default=0, help="0 = as many as there are cores")
    parser.add_argument(
        "--quick", action="store_true", help="seconds instead of minutes: no result"
    )
    parser.add_argument("--curve-steps", type=int, default=200, help="0 = no curves")
    found = parser.parse_args(arguments)
    data = os.environ.get("PALATE_TEST_DATA")
    if data is None:
        raise PalateError(
            "PALATE_TEST_DATA is not set; name the folder with hh_harmless.jsonl.gz and"
            " alpacaeval_k9.jsonl.gz"
        )
    if not found.peer.exists():
        raise PalateError(f"{found.peer}: no such Python; `make bench` makes the environment")
    known = [case.name for case in CASES]
    rows = tuple(found.rows.split(",")) if found.rows else tuple(known)
    for name in rows:
        if name not in known:
            raise PalateError(f"--rows {name}: known are {', '.join(known)}")
    # Not resolved: the link is what makes it the Python of its environment.
    peer = found.peer.absolute()
    threads = found.threads or os.cpu_count() or 1
    return Flags(
        peer, Path(data), found.output, found.work, rows, threads, found.quick, found.curve_steps
    )


def chosen_cases(flags: Flags) -> list[Case]:
    cases = [case for case in CASES if case.name in flags.rows]
    return [quick(case) for case in cases] if flags.quick else cases


def measure(flags: Flags) -> dict[str, Any]:
    """All rows, then the curves; returns what was written."""
    cases = chosen_cases(flags)
    sizes = {case.data: case.num_texts for case in CASES if isinstance(case, ScoreCase)}
    say(f"models and token ids to {flags.work}")
    prepared = prepare(flags.work, flags.data, sizes["bon64"], sizes["mixed"])
    write_description(flags.work, prepared)
    result: dict[str, Any] = {
        "machine": {**describe_machine(), "threads": flags.num_threads},
        "versions": {},
        "settings": {**settings_as_json(), "quick": flags.quick},
        "data": prepared,
        **kept(flags),
    }
    for case in cases:
        started = time.monotonic()
        with both(flags, result) as bench:
            row = row_of(case, bench)
        row["minutes"] = (time.monotonic() - started) / 60
        add(result["rows"], row)
        write_json(flags.output, result)
        say(line_of(row))
    if flags.curve_steps:
        with both(flags, result) as bench:
            for curve in curves(bench, flags.curve_steps):
                add(result["curves"], curve)
                say(f"{curve['name']}: largest gap {curve['largest_gap']:.1e}")
        write_json(flags.output, result)
    return result


@contextmanager
def both(flags: Flags, result: dict[str, Any]) -> Iterator[Bench]:
    """Both workers, for one row: they keep the memory that they once had."""
    log, threads = flags.work / "workers.log", flags.num_threads
    with (
        Worker(Path(sys.executable), "benchmarks.speed.ours", log, threads) as ours,
        Worker(flags.peer, "benchmarks.speed.peer", log, threads) as peer,
    ):
        for side, worker in (("ours", ours), ("peer", peer)):
            described = worker.ask("describe")
            result["versions"][side] = described["versions"]
            assert described["threads"] == threads, f"{side} runs {described['threads']} threads"
        yield Bench(ours, peer, flags.work)


def kept(flags: Flags) -> dict[str, list[dict[str, Any]]]:
    """Rows and curves of an older file that are not measured anew."""
    if not flags.output.exists() or len(flags.rows) == len(CASES):
        return {"rows": [], "curves": []}
    older = read_json(flags.output)
    return {"rows": list(older["rows"]), "curves": list(older["curves"])}


def add(rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Put a row in, in the place of one of the same name."""
    places = [index for index, other in enumerate(rows) if other["name"] == row["name"]]
    if places:
        rows[places[0]] = row
    else:
        rows.append(row)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    try:
        flags = parse(sys.argv[1:])
        measure(flags)
    except PalateError as error:
        say(f"error: {error}")
        return 1
    say(f"results: {flags.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

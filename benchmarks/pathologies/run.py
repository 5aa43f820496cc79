"""Plants every pathology over many seeds, and says what is seen, what is not, and what a fix does.

    python -m benchmarks.pathologies.run --seeds 200 --output benchmarks/results/pathologies.json

Each seed is a line of a file beside the output, so that a run that was stopped goes on, and more
seeds can be added. Effects and accuracies after fixes are measured on the first seeds only
(`--measured_seeds`), detections and false alarms on all. Remove the file after a change to what is
planted, checked or mended: its lines don't know the code that they came from.
"""

import argparse
import json
import math
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.pathologies import code_faults
from benchmarks.pathologies.biases import biases
from benchmarks.pathologies.data_faults import data_faults
from benchmarks.pathologies.rows import CODE_ROWS, ROWS
from palate.artifacts.files import write_json
from palate.artifacts.rundir import versions

NUM_PAIRS = 6000
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)
POWER_SEEDS = 40

Task = tuple[int, int, bool, Sequence[float]]
"""Seed, pairs, whether effects and accuracies are measured, strengths to try the alarms at."""


def of_seed(task: Task) -> dict[str, Any]:
    """What one seed says of every row."""
    seed, num_pairs, measure, strengths = task
    with threadpool_limits(1):
        texts, found = biases(seed, num_pairs, measure, strengths)
        return {"seed": seed, **found, **data_faults(texts, num_pairs, measure)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--measured_seeds", type=int, default=40)
    parser.add_argument("--power_seeds", type=int, default=POWER_SEEDS)
    parser.add_argument("--pairs", type=int, default=NUM_PAIRS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--code_seeds", type=int, default=200)
    parser.add_argument("--output", default="benchmarks/results/pathologies.json")
    options = parser.parse_args()
    output = Path(options.output)
    log = output.with_suffix(".seeds.jsonl")
    tasks = [
        (
            seed,
            options.pairs,
            seed < options.measured_seeds,
            STRENGTHS if seed < options.power_seeds else (),
        )
        for seed in range(options.seeds)
    ]
    done = finished(tasks, whole_lines(log))
    tasks = [task for task in tasks if task[0] not in done]
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for found in pool.imap_unordered(of_seed, tasks):
            found["pairs"] = options.pairs
            with open(log, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(found) + "\n")
            done[found["seed"]] = found
            print(f"{len(done)} of {options.seeds} seeds", flush=True)
    report = aggregated([done[seed] for seed in sorted(done)])
    report["settings"] = {
        "seeds": options.seeds,
        "measured_seeds": options.measured_seeds,
        "num_pairs": options.pairs,
        "versions": versions(),
    }
    previous = json.loads(output.read_text()) if output.exists() else {}
    for name in ("transformers", "transformer_runs"):  # of `confirm`
        report[name] = previous.get(name, [])
    code = previous.get("code", {})
    is_known = code and all(row["planted"]["of"] == options.code_seeds for row in code.values())
    report["code"] = code if is_known else code_faults.run(range(options.code_seeds))
    report["rows"] += [_code_row(row, report["code"][row["name"]]) for row in CODE_ROWS]
    write_json(output, report)


def finished(tasks: Sequence[Task], lines: Iterable[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """By seed, the lines that hold all that its task asks for: as many pairs, and effects and power
    where these are measured. The last of a seed's counts."""
    task_of = {task[0]: task for task in tasks}
    found = {}
    for line in lines:
        if line["seed"] not in task_of:
            continue
        _, num_pairs, measure, strengths = task_of[line["seed"]]
        has_effects = "effect_before" in line[ROWS[0]["name"]]
        if (
            line["pairs"] == num_pairs
            and has_effects >= measure
            and ("power" in line) >= bool(strengths)
        ):
            found[line["seed"]] = line
    return found


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; one that a killed run left half written is ended here, and made again."""
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        with open(path, "a", encoding="utf-8") as handle:
            handle.write("\n")
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def aggregated(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts of alarms, and means over seeds with 95 % intervals, for each row."""
    rows = [_row(row, [seed[row["name"]] for seed in seeds]) for row in ROWS]
    power = {
        name: [
            {
                "strength": strength,
                "alarms": sum(curve[str(strength)] for curve in curves),
                "of": len(curves),
            }
            for strength in STRENGTHS
        ]
        for name in sorted({n for seed in seeds for n in seed.get("power", {})})
        if (curves := [seed["power"][name] for seed in seeds if name in seed.get("power", {})])
    }
    return {"rows": rows, "power": power}


def _code_row(row: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    result = {
        **row,
        "detected": found["planted"],
        "clean": found["clean"],
        "legitimate": None,
        "effect": None,
        "accuracy": None,
        "note": "",
    }
    return {**result, "goals": goals_met(result)}


def _row(row: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    counts = {
        twin: _count([f[twin] for f in found if twin in f])
        for twin in ("planted", "clean", "legitimate")
    }
    effect = None
    if any("effect_before" in f for f in found):
        effect = {
            "what": row["effect"],
            "before": _mean(found, "effect_before"),
            "after": _mean(found, "effect_after"),
        }
    accuracy = None
    if any("accuracy_before" in f for f in found):
        names = ("before", "after", "legitimate_before", "legitimate_after")
        accuracy = {name: _mean(found, f"accuracy_{name}") for name in names}
    result = {
        "name": row["name"],
        "plant": row["plant"],
        "detector": row["detector"],
        "detected": counts["planted"],
        "clean": counts["clean"],
        "legitimate": counts["legitimate"],
        "fix": row["fix"],
        "effect": effect,
        "accuracy": accuracy,
        "counterfactual": {
            name: _mean(found, f"{name}_counterfactual")
            for name in ("effect", "accuracy", "accuracy_legitimate")
        },
        "note": row.get("note", ""),
    }
    result["goals"] = goals_met(result)
    return result


def _count(alarms: Sequence[bool]) -> dict[str, int] | None:
    return {"alarms": int(sum(alarms)), "of": len(alarms)} if alarms else None


def _mean(found: Sequence[Mapping[str, Any]], name: str) -> dict[str, float | None] | None:
    """Mean over seeds with the interval of its standard error."""
    values = np.array([f[name] for f in found if name in f], dtype=float)
    if not len(values):
        return None
    value, number = float(values.mean()), len(values)
    if number == 1:
        return {"value": value, "low": None, "high": None, "n": 1}
    error = 1.96 * float(values.std(ddof=1)) / math.sqrt(number)
    return {"value": value, "low": value - error, "high": value + error, "n": number}


def goals_met(row: Mapping[str, Any]) -> dict[str, bool]:
    """Which of the goals hold: 95 % detected, 5 % false alarms at most, the effect cut to a third,
    and in the legitimate twin an accuracy that is not lower by more than half a point."""
    goals = {}
    if row["detected"]:
        goals["detected"] = row["detected"]["alarms"] >= 0.95 * row["detected"]["of"]
    for twin in ("clean", "legitimate"):
        if row[twin]:
            goals[f"quiet on the {twin} twin"] = row[twin]["alarms"] <= 0.05 * row[twin]["of"]
    if row["effect"]:
        before, after = row["effect"]["before"]["value"], row["effect"]["after"]["value"]
        goals["effect cut to a third"] = after <= before / 3
    accuracy = row["accuracy"]
    if accuracy and accuracy["legitimate_before"]:
        lost = accuracy["legitimate_before"]["value"] - accuracy["legitimate_after"]["value"]
        goals["accuracy kept in the legitimate twin"] = lost <= 0.005
    elif accuracy and accuracy["before"]:
        goals["accuracy not lower"] = (
            accuracy["before"]["value"] - accuracy["after"]["value"] <= 0.005
        )
    return goals


if __name__ == "__main__":
    main()

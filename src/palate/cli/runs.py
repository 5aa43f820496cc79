"""`palate runs` and `palate runs diff`: tables of what runs left in their directories."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from palate.artifacts.rundir import without_folders
from palate.cli.parsing import UsageError, unknown_key
from palate.cli.printed import Printed
from palate.pipeline.run_diff import RunDifference, Sides, diff_runs
from palate.pipeline.runs import Run, list_runs
from palate.report.card import shown
from palate.statistics import Estimate, as_json

NUM_HASH_DIGITS = 8
COLUMNS = ("run", "state", "model", "data", "prompts", "accuracy", "loss", "measured on", "started")


def run_runs(arguments: list[str]) -> Printed:
    parser = argparse.ArgumentParser(
        prog="palate runs",
        description="List runs with their metrics, newest last. `palate runs diff A B` compares"
        " two of them.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "directories", nargs="*", default=["runs"], help="where to look, at any depth (runs)"
    )
    parser.add_argument("--model", default="", help="only runs whose model has this in its name")
    parser.add_argument(
        "--data", default="", help="only runs on data whose SHA-256 begins with these digits"
    )
    parser.add_argument("--sort", default="", help="by this metric, rising, instead of by start")
    flags = _parse(parser, arguments)
    runs = list_runs(flags.directories, model=flags.model, data=flags.data, sort=flags.sort)
    rows = [COLUMNS, *(_row(run, flags.sort) for run in runs)]
    if flags.sort not in ("", "accuracy", "loss"):
        rows[0] = (*COLUMNS, flags.sort)
    damaged = [f"{run.directory}: {run.reason}" for run in runs if run.state == "damaged"]
    text = _table(rows) if runs else f"no such run below {', '.join(flags.directories)}"
    return Printed("\n".join([text, *damaged]), {"runs": [_run_json(run) for run in runs]})


def run_runs_diff(arguments: list[str]) -> Printed:
    parser = argparse.ArgumentParser(
        prog="palate runs diff",
        description="What differs between two runs: data, configuration, versions, metrics.",
        allow_abbrev=False,
    )
    parser.add_argument("a", help="directory of a run")
    parser.add_argument("b", help="directory of another one")
    flags = _parse(parser, arguments)
    difference = diff_runs(flags.a, flags.b)
    return Printed(_difference_text(difference), _difference_json(difference))


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    flags, unknown = parser.parse_known_args(arguments)
    if unknown:
        known = [name.lstrip("-") for name in parser._option_string_actions]
        raise UsageError(unknown_key(unknown[0].split("=")[0].lstrip("-"), known))
    return flags


def _row(run: Run, sort: str) -> tuple[str, ...]:
    data = [
        f"{without_folders(name)} ({digest[:NUM_HASH_DIGITS]})"
        for name, digest in run.data_sha256.items()
    ]
    cells = (
        str(run.directory),
        f"unfinished at step {run.step}" if run.state == "unfinished" else run.state,
        str(without_folders(run.model)),
        ", ".join(data),
        "" if run.num_trained is None else str(run.num_trained),
        _estimate(run.metrics.get("accuracy")),
        _estimate(run.metrics.get("loss")),
        run.measured_on,
        run.started.replace("T", " ").removesuffix(":00Z").removesuffix("Z"),
    )
    if sort in ("", "accuracy", "loss"):
        return cells
    return (*cells, _estimate(run.metrics.get(sort)))


def _estimate(estimate: Estimate | None) -> str:
    return str(estimate).partition(" (n")[0] if estimate else ""


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _run_json(run: Run) -> dict[str, Any]:
    return {
        "directory": str(run.directory),
        "state": run.state,
        "reason": run.reason,
        "step": run.step,
        "model": run.model,
        "data_sha256": dict(run.data_sha256),
        "num_prompts_trained": run.num_trained,
        "measured_on": run.measured_on,
        "metrics": as_json(run.metrics),
        "started": run.started,
    }


def _difference_text(d: RunDifference) -> str:
    names = ("A", "B")
    data = [
        (digest[:NUM_HASH_DIGITS], ", ".join(a) or "not read", ", ".join(b) or "not read")
        for digest, a, b in d.data
    ]
    prompts = [(part, str(a), str(b)) for part, (a, b) in d.num_prompts.items()]
    measured = {name: side for name, (a, b) in d.metrics.items() if (side := a or b)}
    metrics = [
        (name, str(d.metrics[name][0] or "not measured"), str(d.metrics[name][1] or "not measured"))
        for name in shown(measured)
    ]
    same = "on the same prompts" if d.same_prompts else "not on the same prompts"
    sections = {
        "data, by SHA-256": data,
        "prompts": prompts,
        "configuration": _rows(d.configuration),
        "versions": _rows(d.versions),
        f"metrics, {same}": metrics,
        "left out, by reason": _rows(d.ledger),
    }
    lines = [f"{name}  {_heading(run)}" for name, run in zip(names, (d.a, d.b), strict=True)]
    lines += [f"warning: {warning}" for warning in d.warnings]
    for title, rows in sections.items():
        if rows:
            indented = [("  " + key, *sides) for key, *sides in rows]
            lines += ["", _table([(title, *names), *indented])]
        elif title in ("configuration", "versions"):
            lines += ["", f"{title}: no difference"]
    return "\n".join(lines)


def _heading(run: Run) -> str:
    step = f" at step {run.step}" if run.state == "unfinished" else ""
    started = f", started {run.started}" if run.started else ""
    return f"{run.directory}: {run.state}{step}{started}"


def _rows(sides: Sides) -> list[tuple[str, str, str]]:
    return [(key, str(a) or "''", str(b) or "''") for key, (a, b) in sides.items()]


def _difference_json(d: RunDifference) -> dict[str, Any]:
    measured = [as_json(_side(d.metrics, 0)), as_json(_side(d.metrics, 1))]
    return {
        "a": str(d.a.directory),
        "b": str(d.b.directory),
        "warnings": d.warnings,
        "data": [{"sha256": digest, "a": list(a), "b": list(b)} for digest, a, b in d.data],
        "num_prompts": _pairs(d.num_prompts),
        "shared_clusters": [asdict(shared) for shared in d.shared_clusters],
        "configuration": _pairs(d.configuration),
        "versions": _pairs(d.versions),
        "same_prompts": d.same_prompts,
        "metrics": {
            name: {"a": measured[0].get(name), "b": measured[1].get(name)} for name in d.metrics
        },
        "ledger": _pairs(d.ledger),
    }


def _side(
    metrics: Mapping[str, tuple[Estimate | None, Estimate | None]], number: int
) -> dict[str, Estimate]:
    return {name: side for name, sides in metrics.items() if (side := sides[number]) is not None}


def _pairs(sides: Sides) -> dict[str, dict[str, Any]]:
    return {key: {"a": a, "b": b} for key, (a, b) in sides.items()}

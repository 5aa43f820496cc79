"""An evaluation for a terminal: the verdict, what was found, the metrics."""

import textwrap
from collections.abc import Mapping
from typing import Any

from palate.report.audit_figures import number
from palate.report.card import shown
from palate.statistics import Estimate

INDENT = " " * 8


def as_text(values: Mapping[str, Any], width: int) -> str:
    """The evaluation in `width` columns. `values` is what `palate evaluate --json` prints."""
    lines = [line for said in values["verdict"] for line in textwrap.wrap(said, width)]
    metrics = {name: _estimate(found) for name, found in values["metrics"].items()}
    lines += ["", *(f"  {name:<38} {metrics[name]}" for name in shown(metrics))]
    for finding in values["findings"]:
        lines += ["", f"{finding['severity']:<6} {finding['check']}"]
        lines += textwrap.wrap(
            finding["message"], width, initial_indent=INDENT, subsequent_indent=INDENT
        )
    for name, result in values["suite"].items():
        lines += ["", f"{name}:"]
        for score, found in result["scores"].items():
            value, longer = found["value"], found["longer_wins"]
            lines.append(f"  {score:<38} {_estimate(value)}, longer wins {number(longer['value'])}")
        for note in result["notes"]:
            lines += textwrap.wrap(note, width, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines).strip("\n")


def _estimate(found: Mapping[str, Any]) -> Estimate:
    low, high = found["low"], found["high"]
    return Estimate(
        found["value"],
        float("-inf") if low is None else low,
        float("inf") if high is None else high,
        found["n"],
    )

"""The results as a picture: ratios with their spread, the bound by tokens, and what was asked for.

    python -m benchmarks.speed.figure benchmarks/results/speed_cpu.json docs/speed.svg

Needs matplotlib, which the peers' environment has.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
# The same bytes for the same numbers.
matplotlib.rcParams.update({"svg.hashsalt": "palate", "svg.fonttype": "none", "font.size": 9})

from matplotlib import pyplot  # noqa: E402

LEFT_OUT = ("packing",)
"""A share, no ratio."""


def draw(result: dict[str, Any], output: Path) -> None:
    """Write the picture as SVG."""
    rows = [row for row in result["rows"] if row["name"] not in LEFT_OUT][::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(rows) + 1.2), layout="constrained")
    places = range(len(rows))
    ratios = [row["ratio"] for row in rows]
    spread = [
        [row["ratio"] - row["low"] for row in rows],
        [row["high"] - row["ratio"] for row in rows],
    ]
    axes.barh(places, ratios, xerr=spread, height=0.6, color="#4c78a8", ecolor="#222222", capsize=3)
    mark(axes, rows, "ratio_of_tokens", "D", "#e45756", "ratio of tokens")
    mark(axes, rows, "target", "|", "#222222", "asked for")
    axes.axvline(1, color="#888888", linewidth=1)
    axes.set_yticks(list(places), [row["what"] for row in rows])
    axes.set_xlabel("times as fast, or as few bytes, as the peer")
    axes.legend(loc="lower right", frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(output, format="svg", metadata={"Date": None})


def mark(axes: Any, rows: Sequence[Any], key: str, marker: str, colour: str, label: str) -> None:
    """A mark in each row that has the number."""
    points = [(row[key], place) for place, row in enumerate(rows) if row.get(key) is not None]
    values, places = zip(*points, strict=True) if points else ((), ())
    axes.plot(values, places, marker, color=colour, markersize=9, linestyle="none", label=label)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    draw(json.loads(Path(arguments[0]).read_text(encoding="utf-8")), Path(arguments[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

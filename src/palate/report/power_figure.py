"""The figure of a planning question: power against the number of comparisons.

Drawn with matplotlib, the extra `figures`. It computes nothing.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from palate.artifacts.files import atomic_path
from palate.errors import PalateError

MARKERS = "osD^v"


def require_matplotlib() -> None:
    """Raise PalateError where the extra is missing: to be asked before a long simulation."""
    if find_spec("matplotlib") is None:
        raise PalateError(
            "the figure needs matplotlib: pip install 'palate[figures]'", "missing extra"
        )


def write_power_figure(
    path: str | Path, title: str, curves: Mapping[str, Mapping[str, Any]], target: float
) -> None:
    """Write an SVG with a line for each curve, atomically.

    A curve is `{"points": [{"num_comparisons", "power", "low", "high"}], "num_comparisons": number
    or None}`: bars are the Monte-Carlo intervals, the vertical line the number that reaches the
    target. Raises PalateError where matplotlib is missing.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # A fixed salt and no date: the same numbers give the same file.
    with rc_context({"svg.hashsalt": "palate", "svg.fonttype": "none"}):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        for place, (name, curve) in enumerate(curves.items()):
            points: Sequence[Mapping[str, float]] = curve["points"]
            power = [point["power"] for point in points]
            bars = axes.errorbar(
                [point["num_comparisons"] for point in points],
                power,
                yerr=[
                    [max(0.0, point["power"] - point["low"]) for point in points],
                    [max(0.0, point["high"] - point["power"]) for point in points],
                ],
                marker=MARKERS[place % len(MARKERS)],
                markersize=4,
                capsize=2,
                linewidth=1.2,
                label=name,
            )
            if curve["num_comparisons"] is not None:
                colour = bars.lines[0].get_color()
                axes.axvline(curve["num_comparisons"], color=colour, linewidth=0.8, linestyle=":")
        axes.axhline(target, color="0.4", linewidth=0.8, linestyle="--")
        axes.set(ylim=(0, 1.02), xlabel="comparisons", ylabel="power", title=title)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.25)
        axes.legend(loc="lower right", frameon=False)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})

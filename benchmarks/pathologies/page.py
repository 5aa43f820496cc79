"""The sweep's results as a page of the docs and a figure.

    python -m benchmarks.pathologies.page benchmarks/results/pathologies.json docs/pathologies.md \\
        docs/pathologies.svg

The figure needs matplotlib (`pip install 'palate[figures]'`).
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

Row = Mapping[str, Any]

POWER = 0.8
NONE = "-"
HEADINGS = (
    "pathology",
    "plant",
    "detector",
    "detected",
    "false alarms, clean twin",
    "false alarms, legitimate twin",
    "fix",
    "effect before → after",
    "accuracy against true utility before → after",
    "goals met",
)
INTRODUCTION = """# Pathologies

Ways in which a reward model goes wrong without a sign of it in its loss: each planted, detected,
mended and measured again. `make pathologies` makes this page from the sweep's results; nothing on
it is typed by hand. {settings}

The alarm must ring where the fault was planted and stay silent in two twins of the same seed: the
**clean** twin, without the fault, and the **legitimate** twin, where the feature is truly good.
Intervals are at 95 %: those of counts are Wilson's, those of effects and accuracies rest on the
standard error over seeds, of which a seed costs more than an alarm's: fewer are measured.

## The table
"""
POWER_TEXT = """
## The smallest effect that is found

The share of seeds that raised the alarm, against the strength of the fault in logits. An alarm has
80 % power at the strength where the line through the measured points first reaches 0.8.

![Share of seeds that raised the alarm against the strength of the fault]({figure})
"""
PAIRS_TEXT = """
## Counterfactual pairs in place of the nuisance term

The same seeds with `training.counterfactual` (share 0.15, target 0.5) as the only fix. Pairs teach
a model of words about the phrases that they show; the labels go on paying for the planter's.
"""
TRANSFORMERS_TEXT = """
## The same on transformers

The sweeps run on small models of features. Here a real transformer was trained on the same
simulated text, with `palate.train`: a small Llama, pretrained on such text without any labels and
then trained whole. An effect is what the feature adds to the reward of the truly worse answer, in
standard deviations of the margins, for phrasings that neither the planter nor the fix used; flips
are the pairs ranked right that it turns. The clean column is the same model on labels without the
bias: what such a model makes of unseen phrases anyway. In brackets: the lowest and the highest
seed.
"""


def page(result: Mapping[str, Any], figure: str) -> str:
    """The page in Markdown; `figure` is the picture's path beside it."""
    parts = [
        INTRODUCTION.format(settings=settings_line(result["settings"])),
        table(HEADINGS, [cells(row) for row in result["rows"]]),
        "\n" + goals_line(result["rows"]),
        notes(result["rows"]),
    ]
    pairs = [row for row in result["rows"] if (row.get("counterfactual") or {}).get("effect")]
    if pairs:
        parts += [PAIRS_TEXT, pairs_table(pairs)]
    if result["power"]:
        rows = [power_cells(world, points) for world, points in result["power"].items()]
        headings = ("world", "80 % power at, in logits", "measured: strength, alarms")
        parts += [POWER_TEXT.format(figure=figure), table(headings, rows)]
    if result["transformers"]:
        parts += [TRANSFORMERS_TEXT, transformers_table(result["transformers"])]
    return "\n".join(part for part in parts if part) + "\n"


def settings_line(settings: Mapping[str, Any]) -> str:
    """Seeds, size and versions in a sentence."""
    versions = ", ".join(f"{name} {value}" for name, value in settings["versions"].items())
    measured = settings.get("measured_seeds")
    some = f" (effects and accuracies of models: {measured} of them)" if measured else ""
    return f"{settings['seeds']} seeds{some}, {settings['num_pairs']:,} pairs each; {versions}."


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = "|---" * len(headings) + "|"
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join([f"| {' | '.join(headings)} |", rule, *(f"| {line} |" for line in lines)])


def cells(row: Row) -> list[str]:
    """A pathology's line."""
    return [
        f"**{row['name']}**",
        row["plant"],
        row["detector"],
        *(counted(row[key]) for key in ("detected", "clean", "legitimate")),
        row["fix"] or NONE,
        effect(row["effect"]),
        accuracy(row["accuracy"]),
        goals(row["goals"]),
    ]


def wilson(count: Mapping[str, int]) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score."""
    interval = binomtest(count["alarms"], count["of"]).proportion_ci(method="wilson")
    return interval.low, interval.high


def counted(count: Mapping[str, int] | None) -> str:
    """Alarms of seeds with the share's interval."""
    if count is None:
        return NONE
    low, high = wilson(count)
    return f"{count['alarms']} of {count['of']} ({low:.3f} to {high:.3f})"


def estimate(value: Any) -> str:
    """A number, with its interval where it has one."""
    if value is None:
        return NONE
    if not isinstance(value, Mapping):
        return shown(value) if isinstance(value, float) else str(value)
    if value.get("low") is None or value.get("high") is None:
        return shown(value["value"])
    return f"{shown(value['value'])} ({shown(value['low'])} to {shown(value['high'])})"


def shown(value: float) -> str:
    """Three places, without a minus before a zero."""
    return f"{round(value, 3) + 0.0:.3f}"


def effect(measured: Row | None) -> str:
    if measured is None:
        return NONE
    return f"{measured['what']}: {estimate(measured['before'])} → {estimate(measured['after'])}"


def accuracy(measured: Row | None) -> str:
    """Planted world, then the legitimate twin where the fix was tried on it."""
    if measured is None:
        return NONE
    planted = f"{estimate(measured['before'])} → {estimate(measured['after'])}"
    before, after = measured.get("legitimate_before"), measured.get("legitimate_after")
    if before is None or after is None:
        return planted
    return f"planted {planted}; legitimate {estimate(before)} → {estimate(after)}"


def pairs_table(rows: Sequence[Row]) -> str:
    """What counterfactual pairs alone do, beside what was before."""
    headings = ("pathology", "flips", "true accuracy", "true accuracy, legitimate twin")
    lines = []
    for row in rows:
        after, planted = row["counterfactual"], row["accuracy"]
        before = (row["effect"]["before"], planted["before"], planted["legitimate_before"])
        names = ("effect", "accuracy", "accuracy_legitimate")
        moves = [
            f"{estimate(value)} → {estimate(after[name])}"
            for value, name in zip(before, names, strict=True)
        ]
        lines.append([row["name"], *moves])
    return table(headings, lines)


def goals(met: Mapping[str, bool]) -> str:
    """ "yes", or which goals were missed."""
    missed = [name for name, is_met in met.items() if not is_met]
    if not met:
        return NONE
    return f"**no**: {', '.join(missed)}" if missed else "yes"


def goals_line(rows: Sequence[Row]) -> str:
    """How many pathologies meet all their goals, and which don't."""
    judged = [row for row in rows if row["goals"]]
    missed = [row["name"] for row in judged if not all(row["goals"].values())]
    met = f"{len(judged) - len(missed)} of {len(judged)} meet all their goals."
    return met + (f" Not: {', '.join(missed)}." if missed else "")


def notes(rows: Sequence[Row]) -> str:
    written = [f"- **{row['name']}**: {row['note']}" for row in rows if row["note"]]
    return "\n".join(["", *written])


def strength_at(points: Sequence[Row], power: float = POWER) -> float | None:
    """Strength at which the line through the measured points first reaches the power; None where it
    never does. Where the weakest fault measured reaches it, that one: there is no smaller."""
    before = None
    for strength, rate in rates(points):
        if rate >= power:
            if before is None:
                return strength
            weaker, lower = before
            return weaker + (strength - weaker) * (power - lower) / (rate - lower)
        before = (strength, rate)
    return None


def rates(points: Sequence[Row]) -> list[tuple[float, float]]:
    """Strength and share of alarms, from weak to strong."""
    return sorted((point["strength"], point["alarms"] / point["of"]) for point in points)


def power_cells(world: str, points: Sequence[Row]) -> list[str]:
    found = strength_at(points)
    measured = sorted(points, key=lambda point: float(point["strength"]))
    strongest = measured[-1]["strength"]
    at_weakest = found == measured[0]["strength"]
    return [
        world,
        f"not up to {strongest:g}" if found is None else "≤ " * at_weakest + f"{found:.2f}",
        ", ".join(f"{p['strength']:g}: {p['alarms']} of {p['of']}" for p in measured),
    ]


def transformers_table(rows: Sequence[Row]) -> str:
    """All their columns, those that not every row has too."""
    headings = list(dict.fromkeys(key for row in rows for key in row))
    shown = [key.replace("_", " ") for key in headings]
    return table(shown, [[estimate(row.get(key)) for key in headings] for row in rows])


def draw(result: Mapping[str, Any], output: Path) -> None:
    """Power curves, each with the point of 80 % power, as SVG."""
    import matplotlib  # here, so that the page alone needs no matplotlib

    matplotlib.use("svg")
    # The same bytes for the same numbers.
    matplotlib.rcParams.update({"svg.hashsalt": "palate", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    worlds = result["power"]
    num_columns = min(3, len(worlds))
    num_lines = -(-len(worlds) // num_columns)
    figure, axes = pyplot.subplots(
        num_lines,
        num_columns,
        figsize=(2.7 * num_columns + 0.4, 2.1 * num_lines + 0.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for place, (world, points) in zip(axes.flat, worlds.items(), strict=False):
        curve(place, world, points)
    for place in axes.flat[len(worlds) :]:
        place.axis("off")
    figure.supxlabel("strength of the fault in logits", fontsize=9)
    figure.supylabel("share of seeds that raised the alarm", fontsize=9)
    figure.savefig(output, format="svg", metadata={"Date": None})


def curve(place: Any, world: str, points: Sequence[Row]) -> None:
    """One world's power curve, with Wilson intervals."""
    measured = sorted(points, key=lambda point: float(point["strength"]))
    share = [point["alarms"] / point["of"] for point in measured]
    ends = [wilson(point) for point in measured]
    # At 0 and 1 the interval's own end differs from the share by rounding.
    below = [max(0.0, rate - low) for rate, (low, _) in zip(share, ends, strict=True)]
    above = [max(0.0, high - rate) for rate, (_, high) in zip(share, ends, strict=True)]
    strengths = [point["strength"] for point in measured]
    place.errorbar(strengths, share, yerr=[below, above], color="#4c78a8", marker="o", markersize=3)
    place.axhline(POWER, color="#888888", linewidth=0.8, linestyle="--")
    found = strength_at(points)
    if found is not None:
        place.axvline(found, color="#e45756", linewidth=1)
    place.set_title(f"{world}: {'not reached' if found is None else f'{found:.2f}'}", fontsize=9)
    place.set_ylim(-0.03, 1.03)
    for side in ("top", "right"):
        place.spines[side].set_visible(False)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    source, text, figure = map(Path, arguments)
    result = json.loads(source.read_text(encoding="utf-8"))
    text.write_text(page(result, figure.name), encoding="utf-8")
    if result["power"]:
        draw(result, figure)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The results as a table in Markdown.

python -m benchmarks.speed.table benchmarks/results/speed_cpu.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def table(result: dict[str, Any]) -> str:
    """Machine, rows and curves; what is counted stands beside what is timed."""
    lines = [
        machine_line(result),
        "",
        "| work | measured | low, high | asked for | our tokens | theirs | token ratio |",
        "|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(cells(row))} |" for row in result["rows"]),
        "",
        *(curve_line(curve) for curve in result["curves"]),
    ]
    return "\n".join(lines) + "\n"


def machine_line(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    peers = ", ".join(f"{name} {versions['peer'][name]}" for name in ("trl", "transformers"))
    return (
        f"{machine['processor']}, {machine['threads']} threads, float32; torch"
        f" {versions['ours']['torch']}; {peers}."
    )


def cells(row: Row) -> list[str]:
    """What, ratio, spread, target, tokens a round."""
    is_share = row["name"] == "packing"
    number = "{:.3f}" if is_share else "{:.2f}×"
    target = row["target"]
    asked = "-" if target is None else f"{target:g}" if is_share else f"{target:g}×"
    low, high = (number.format(row[key]).strip("×") for key in ("low", "high"))
    spread = "counted" if is_share else f"{low}, {high}"
    tokens = [f"{row[key]:,.0f}" if key in row else "-" for key in ("tokens_ours", "tokens_peer")]
    bound = f"{row['ratio_of_tokens']:.2f}×" if "ratio_of_tokens" in row else "-"
    return [row["what"], f"**{number.format(row['ratio'])}**", spread, asked, *tokens, bound]


def curve_line(curve: Row) -> str:
    return (
        f"{curve['steps']} steps, {curve['name'].removeprefix('loss_curve_')} against"
        f" {curve['against']}: the largest gap between the loss curves is"
        f" {curve['largest_gap']:.1e} (step {curve['at_step']})."
    )


def line_of(row: Row) -> str:
    """One row for the terminal."""
    _, ratio, spread, asked, *_, bound = cells(row)
    minutes = f"{row['minutes']:.1f} min" if "minutes" in row else ""
    return (
        f"{row['name']:28} {ratio.strip('*'):>8}  ({spread}; asked {asked}; tokens {bound})"
        f"  {minutes}"
    )


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    print(table(json.loads(Path(arguments[0]).read_text(encoding="utf-8"))), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""An audit for a terminal: a line of numbers for each finding, worst first, with words below."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from palate.report.audit_figures import number
from palate.report.audit_html import measured, verdict

INDENT = " " * 8
MAX_NAME = 44


def as_text(report: Mapping[str, Any], width: int) -> str:
    """The report in `width` columns. `report` is what `palate audit --json` prints."""
    rows = report["rows"]
    lines = [
        f"{rows['read']} rows in = {rows['in groups']} in groups + {rows['left out']} in the"
        " ledger",
        *(f"  {count:>7}  {reason}" for reason, count in rows["by reason"].items()),
        f"{report['num_groups']} prompts, {report['num_comparisons']} comparisons;"
        f" texts of {report['sample']['groups']} prompts kept for checks that read them",
        "",
        *_table(report["findings"], width),
    ]
    if report["skipped"]:
        lines += ["", "skipped:"]
        lines += [
            "  " + textwrap.shorten(f"{each['check']}: {each['reason']}", width, placeholder=" …")
            for each in report["skipped"]
        ]
    return "\n".join([*lines, "", verdict(report["findings"])])


def _table(findings: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    heading = ("severity", "check", "statistic", "threshold")
    cells = [
        (
            finding["severity"],
            textwrap.shorten(finding["check"], MAX_NAME, placeholder=" …"),
            measured(finding),
            "" if finding["threshold"] is None else number(finding["threshold"]),
        )
        for finding in findings
    ]
    widths = [max(len(row[i]) for row in [heading, *cells]) for i in range(len(heading))]
    lines = [_row(heading, widths)]
    for finding, row in zip(findings, cells, strict=True):
        lines.append(_row(row, widths))
        lines += _words(finding["message"], width)
        fix = [f"fix: {finding['fix']}"] if finding["fix"] else []
        for part in (line for text in fix for line in text.splitlines()):
            lines += _words(part, width)
    return lines


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "  ".join(padded).rstrip()


def _words(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(40, width), initial_indent=INDENT, subsequent_indent=INDENT)

"""What a check says: a number with interval and threshold, in words, with examples and a fix."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Severity = Literal["note", "warn", "error"]
SEVERITIES: tuple[Severity, ...] = ("note", "warn", "error")
"""From mild to grave."""
MAX_EXAMPLES = 10


@dataclass(frozen=True)
class Example:
    """One of the worst places, to look up by hand."""

    file: str
    line: int
    text: str
    """What there is to see: a few words of the answer or prompt, or the numbers of the row."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found. Every check that ran gives one or more, also where all is well."""

    check: str
    """Short name, the same for every file: `length`, `closing`, `prompt overlap`."""
    severity: Severity
    """note: a fact, or all is well. warn: look at it. error: what is trained on this will be wrong,
    or what is measured on it will flatter."""
    statistic: float | None
    low: float | None = None
    high: float | None = None
    """95 % interval of the statistic, resampled by prompt cluster; None where it is a count."""
    threshold: float | None = None
    """Value of the statistic from which the severity is above note."""
    n: int = 0
    """Observations that the statistic rests on."""
    what: str
    """What the statistic is, in words with its unit: "share of comparisons won by the longer"."""
    message: str
    """The finding in one or two sentences, numbers in it."""
    examples: tuple[Example, ...] = ()
    """The worst ten at most, worst first."""
    fix: str = ""
    """What to do, as a setting or a command where there is one; empty where all is well."""
    effect: float = 0.0
    """Size of the effect on a common scale for the order within a severity: 0 none, 1 total."""
    figure: Mapping[str, Any] = field(default_factory=dict)
    """What a figure draws, plain JSON; its `kind` names the figure."""

    def __post_init__(self) -> None:
        assert self.severity in SEVERITIES
        assert len(self.examples) <= MAX_EXAMPLES

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is not finite is null, since JSON has no infinity."""
        values: dict[str, Any] = plain(
            {
                "check": self.check,
                "severity": self.severity,
                "statistic": self.statistic,
                "low": self.low,
                "high": self.high,
                "threshold": self.threshold,
                "n": self.n,
                "what": self.what,
                "message": self.message,
                "examples": [vars(example) for example in self.examples],
                "fix": self.fix,
                "figure": self.figure,
            }
        )
        return values


@dataclass(frozen=True)
class Skipped:
    """A check that these data can't be put to, and why."""

    check: str
    reason: str


@dataclass
class Report:
    """The findings of an audit, worst first, and the checks that were skipped."""

    findings: Sequence[Finding]
    skipped: Sequence[Skipped]

    @property
    def worst(self) -> Severity:
        return max((f.severity for f in self.findings), key=SEVERITIES.index, default="note")


def plain(value: Any) -> Any:
    """The same as JSON has it: arrays as lists, numpy's numbers as Python's, NaN as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """By severity, then by the size of the effect."""
    return sorted(findings, key=lambda f: (-SEVERITIES.index(f.severity), -f.effect, f.check))

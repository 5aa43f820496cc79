"""Numbers, names and settings in the words of findings."""

import json
import math
from collections.abc import Mapping, Sequence

from palate.statistics import Estimate

MAX_NAMED = 20
"""Annotators that a message or a fix names."""


def weights_yaml(weights: Mapping[str, float]) -> str:
    """The setting that gives annotators these weights, for at most 20 with a weight other than 1,
    the smallest first."""
    changed = sorted((weight, name) for name, weight in weights.items() if abs(weight - 1) > 5e-5)
    listed = ", ".join(f"{json.dumps(n)}: {weight:.4g}" for weight, n in changed[:MAX_NAMED])
    more = len(changed) - MAX_NAMED
    rest = f"  # and {more} more" if more > 0 else ""
    manner = "" if all(weight in (0, 1) for weight in weights.values()) else ", weigh: comparisons"
    return f"read: {{votes: {{annotator_weights: {{{listed}}}{manner}}}}}{rest}"


def known_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def with_interval(estimate: Estimate) -> str:
    if not math.isfinite(estimate.low):
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def percent_with_interval(estimate: Estimate) -> str:
    if not math.isfinite(estimate.low):
        return f"{estimate.value:.0%}"
    return f"{estimate.value:.0%} [{estimate.low:.0%}, {estimate.high:.0%}]"


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(map(repr, names[:MAX_NAMED])) + more

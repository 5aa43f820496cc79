"""Lines of numbers laid over lines of drawing units."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def finite(value: Any) -> float | None:
    """The number, or None where there is none that can be drawn."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def present(*values: Any) -> list[float]:
    return [number for value in values if (number := finite(value)) is not None]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A line of numbers over a line of units; `start` lies above `stop` where it is upright."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        part = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return round(self.start + part * (self.stop - self.start), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Two to six round numbers within it: place and text."""
        step = 10.0 ** math.floor(math.log10(self.high - self.low))
        step *= next(part for part in (0.1, 0.2, 0.25, 0.5, 1, 2) if self._count(step * part) <= 6)
        first = math.ceil(self.low / step - 1e-9)
        values = [(first + i) * step for i in range(self._count(step))]
        return [(self(value), f"{value + 0.0:.6g}") for value in values]

    def _count(self, step: float) -> int:
        return math.floor(self.high / step + 1e-9) - math.ceil(self.low / step - 1e-9) + 1


def axis(values: Sequence[float], start: float, stop: float) -> Axis:
    """From 0, or from the lowest value where all are far from 0, with some room at the far end."""
    low, high = min(values), max(values)
    if low >= 0 and low < 0.5 * high:
        low = 0.0
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    is_share = low >= 0 and high <= 1
    return Axis(
        low=low if low == 0 else max(0.0, low - room) if low > 0 else low - room,
        high=min(1.0, high + room) if is_share else high + room,
        start=start,
        stop=stop,
    )

"""Ratings that no longer tell answers apart: piled up at an end of their scale, or equal."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

from palate.preferences.types import PreferenceGroup
from palate.preferences.votes import rating_gap


@dataclass(frozen=True)
class RatingReport:
    """Counts over all rated responses, and over all pairs of rated responses of one prompt."""

    num_ratings: int
    lowest: float
    """The lowest rating seen; the scale's own end may lie below."""
    highest: float
    num_lowest: int
    num_highest: int
    num_pairs: int
    num_equal_pairs: int
    smallest_gap: float | None
    """Smallest difference above 0 between ratings of one prompt."""

    def summary(self) -> str:
        """The report in two lines; counts beside the shares."""
        lines = [
            f"{self.num_ratings} ratings from {self.lowest:g} to {self.highest:g}:"
            f" {_share(self.num_lowest, self.num_ratings)} at the lowest,"
            f" {_share(self.num_highest, self.num_ratings)} at the highest"
        ]
        if self.num_pairs:
            gap = "" if self.smallest_gap is None else f", smallest gap {self.smallest_gap:g}"
            lines.append(
                f"{_share(self.num_equal_pairs, self.num_pairs)} of {self.num_pairs} pairs of one"
                f" prompt have equal ratings{gap}"
            )
        return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%} ({part})"


def rating_report(groups: Iterable[PreferenceGroup]) -> RatingReport | None:
    """Count ratings at the ends of the range that they span, and equal ones among pairs of a
    prompt; None where nothing is rated. Holds one count for each distinct rating."""
    counts: Counter[float] = Counter()
    num_pairs = num_equal = 0
    smallest: float | None = None
    for group in groups:
        ratings = [r.rating for r in group.responses if r.rating is not None]
        counts.update(ratings)
        for first, second in combinations(ratings, 2):
            num_pairs += 1
            gap = abs(rating_gap(first, second))
            num_equal += gap == 0
            if gap > 0 and (smallest is None or gap < smallest):
                smallest = gap
    if not counts:
        return None
    low, high = min(counts), max(counts)
    return RatingReport(
        num_ratings=counts.total(),
        lowest=low,
        highest=high,
        num_lowest=counts[low],
        num_highest=counts[high],
        num_pairs=num_pairs,
        num_equal_pairs=num_equal,
        smallest_gap=smallest,
    )

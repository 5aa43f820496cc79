"""Leave comparisons out until length alone predicts no label.

Legend: G groups, C comparisons of all groups, one after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.objectives.bradley_terry import soft_target
from palate.objectives.covariates import COVARIATES
from palate.objectives.settings import Ties
from palate.rendering import RenderedGroup
from palate.text import plural

NUM_LENGTH_BINS = 10
"""Of |difference of log(1 + words)|, with as many comparisons in each."""
NUM_STRENGTH_BINS = 5
"""Of |target - 1/2|, equally wide: a sure win isn't balanced by a vote of three against two."""
FAR_FROM_HALF = 0.05
REASON = "length balance"


@dataclass(frozen=True)
class Balance:
    """Which comparisons stay."""

    keep_C: np.ndarray
    start_G: np.ndarray
    """The first comparison of each group; with one entry more, the number of all."""
    num_compared: int
    """Comparisons with a better side whose answers differ in length."""
    longer_share: float
    """Of them, those that the longer answer won."""

    @property
    def num_dropped(self) -> int:
        return int((~self.keep_C).sum())

    @property
    def dropped_share(self) -> float:
        """Share of all comparisons that is left out."""
        return self.num_dropped / len(self.keep_C)

    def warning(self) -> str | None:
        """What a person should know; None where little was out of balance."""
        if abs(self.longer_share - 0.5) <= FAR_FROM_HALF:
            return None
        return (
            f"training.length_balanced leaves out {self.num_dropped} of"
            f" {plural(len(self.keep_C), 'comparison')} ({self.dropped_share:.0%}): the longer"
            f" answer won {self.longer_share:.0%}. Where longer answers are better for what they"
            " say, this takes the best evidence away and makes the model worse; objective.nuisance"
            " log_length keeps all data"
        )

    def applied(self, groups: Sequence[RenderedGroup], ledger: Ledger) -> "Kept":
        """The groups with the comparisons that stay. A group without one goes to the ledger with
        all its rows; comparisons of other groups have an entry for each group."""
        kept = []
        for index, group in enumerate(groups):
            keep = self.keep_C[self.start_G[index] : self.start_G[index + 1]]
            where = group.group.file
            if not keep.any():
                for line in group.group.lines:
                    ledger.add(where, line, "row", REASON, "", group.group.id)
                continue
            kept.append(index)
            if not keep.all():
                detail = f"{int((~keep).sum())} of {len(keep)} comparisons"
                line = group.group.line
                ledger.add(where, line, "comparison", REASON, detail, group.group.id)
        return Kept(groups, np.array(kept, dtype=np.int64), self)


def balance(groups: Sequence[RenderedGroup], seed: int, ties: Ties = "half") -> Balance:
    """Choose what stays: in each bin of difference in length and of strength, as many comparisons
    that the longer answer won as comparisons that it lost, the surplus drawn at random.

    So among comparisons of about the same difference the longer wins exactly half of what stays, by
    count; each comparison of a large group counts, whatever its weight in the loss. Comparisons of
    equal length and those without a better side stay. Raises PalateError where no two compared
    answers differ in length, and where nothing would stay.
    """
    difference_C, strength_C, start_G = _sides(groups, ties)
    compared_C = (difference_C != 0) & (strength_C > 0)
    if not compared_C.any():
        raise PalateError(
            "training.length_balanced has no effect: no comparison of the training data has a"
            " better side and answers of unlike length; leave it out"
        )
    longer_C = difference_C > 0
    edges = np.quantile(
        np.abs(difference_C[compared_C]), np.linspace(0, 1, NUM_LENGTH_BINS + 1)[1:-1]
    )
    length_bin_C = np.searchsorted(edges, np.abs(difference_C))
    strength_bin_C = np.minimum(
        (strength_C * 2 * NUM_STRENGTH_BINS).astype(int), NUM_STRENGTH_BINS - 1
    )
    bin_C = length_bin_C * NUM_STRENGTH_BINS + strength_bin_C
    keep_C = np.ones(len(difference_C), dtype=bool)
    random = np.random.default_rng([seed, 3])
    for number in np.unique(bin_C[compared_C]):
        here_C = compared_C & (bin_C == number)
        sides = np.flatnonzero(here_C & longer_C), np.flatnonzero(here_C & ~longer_C)
        fewer, more = sorted(sides, key=len)
        keep_C[random.permutation(more)[len(fewer) :]] = False
    if not keep_C.any():
        raise PalateError(
            "training.length_balanced would leave nothing: in every bin of difference in length the"
            " same side always wins; use objective.nuisance log_length"
        )
    num_compared = int(compared_C.sum())
    longer_share = float(longer_C[compared_C].mean())
    return Balance(keep_C, start_G, num_compared, longer_share)


def _sides(
    groups: Sequence[RenderedGroup], ties: Ties
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log length of the better answer minus that of the worse, |target - 1/2|, and the starts."""
    length_of = COVARIATES["log_length"]
    differences: list[float] = []
    strengths: list[float] = []
    starts = [0]
    for group in groups:
        lengths = [length_of(response.text) for response in group.responses]
        for c in group.comparisons:
            target, share = soft_target(c.probability, c.tie, ties)
            differences.append(lengths[c.better] - lengths[c.worse])
            strengths.append((target - 0.5) * (share > 0) * (c.weight > 0))
        starts.append(len(differences))
    return np.array(differences), np.array(strengths), np.array(starts)


class Kept(Sequence[RenderedGroup]):
    """The groups that a balance keeps, each with the comparisons that stay; made when asked for."""

    def __init__(
        self, groups: Sequence[RenderedGroup], index_K: np.ndarray, balance: Balance
    ) -> None:
        self.groups = groups
        self.index_K = index_K
        self.balance = balance

    def __len__(self) -> int:
        return len(self.index_K)

    @overload
    def __getitem__(self, index: int) -> RenderedGroup: ...
    @overload
    def __getitem__(self, index: slice) -> list[RenderedGroup]: ...
    def __getitem__(self, index: int | slice) -> RenderedGroup | list[RenderedGroup]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = int(self.index_K[index])
        group = self.groups[place]
        start, end = self.balance.start_G[place : place + 2]
        keep = self.balance.keep_C[start:end]
        if keep.all():
            return group
        comparisons = tuple(c for c, stays in zip(group.comparisons, keep, strict=True) if stays)
        return replace(group, comparisons=comparisons)

"""Two models on the same comparisons: which is better, or that these prompts cannot tell.

Legend: G prompts, C comparisons.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.special import ndtri
from scipy.stats import binomtest

from palate.errors import PalateError
from palate.evaluation.outcomes import Outcome, decided, prompt_accuracy, won
from palate.preferences import Comparison
from palate.statistics import Estimate, cluster_difference, cluster_mean
from palate.text import plural

LEVEL = 0.05
POWER = 0.8
Winner = Literal["first", "second", "not distinguishable"]
Key = tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class Versus:
    """A paired comparison of two models."""

    first: str
    second: str
    """Names of the models."""
    first_accuracy: Estimate
    second_accuracy: Estimate
    difference: Estimate
    """First minus second, with the paired cluster bootstrap's interval."""
    num_first_only: int
    """Comparisons that the first decides rightly and the second wrongly; below the opposite."""
    num_second_only: int
    num_with_ties: int
    """Comparisons in which a model's rewards are equal: half right in the accuracies. In the exact
    test they count for the model that has more of them right."""
    p_value: float
    """Of the exact McNemar test: each comparison that one model alone decides rightly is as likely
    to be the one's as the other's (McNemar 1947, Psychometrika 12). With ties it is the sign test,
    of which that is a case."""
    is_independent: bool
    """Whether no two comparisons are of one prompt cluster, as that test assumes."""
    detectable: float
    """The smallest true difference that these prompts would show with 80 % power: (1.96 + 0.84)
    times the standard error of the difference."""
    num_left_out: int
    """Decided comparisons of either model that the other has not."""
    winner: Winner
    remark: str = ""
    """What else whoever reads the numbers has to know; the end of the sentence."""

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        test = "sign" if self.num_with_ties else "McNemar"
        basis = (
            f"exact {test} test, p = {_p(self.p_value)}"
            if self.is_independent
            else "by resampling prompt clusters; several comparisons share a prompt, so that"
            " McNemar's test does not hold"
        )
        numbers = (
            f"on {plural(self.difference.n, 'prompt')} ({self.first} minus {self.second}: 95 %"
            f" interval {_signed(self.difference.low)} to {_signed(self.difference.high)}; {basis})"
        )
        size = _points(abs(self.difference.value))
        if self.winner != "not distinguishable":
            better, worse = self.first, self.second
            if self.winner == "second":
                better, worse = worse, better
            found = f"{better} is better than {worse} by {size} {numbers}."
        else:
            found = (
                f"Not distinguishable at this n: {self.first} and {self.second} are {size} apart"
                f" {numbers}."
            )
            found += (
                " The smallest difference that would be seen with 80 % power is"
                f" {_points(self.detectable)}."
                if self.detectable
                else " They decide every comparison alike."
                if not self.difference.value
                else ""
            )
        if self.num_left_out:
            found += f" Left out: {plural(self.num_left_out, 'comparison')} that only one has."
        return f"{found} {self.remark}" if self.remark else found


def versus(
    first: Sequence[Outcome],
    second: Sequence[Outcome],
    names: tuple[str, str] = ("the first", "the second"),
) -> Versus:
    """Compare two models on the decided comparisons that both have.

    Models cut and leave out by their own limits, so that groups are matched by file, line and text,
    and comparisons by their responses; what only one has is left out and counted.

    With one comparison to each prompt cluster the exact McNemar test decides, at 5 %; where rewards
    are equal the sign test, since a broken model ties what the other gets right. Comparisons
    of one prompt share its answers and are right or wrong together, which the test takes for so
    many independent ones; then the interval of the difference decides, which resamples clusters.
    Raises PalateError where the two have no decided comparison in common.
    """
    pairs, num_left_out = _common(first, second)
    if not pairs and not any(decided(o.group) for o in (*first, *second)):
        raise PalateError(
            f"nothing to hold {names[0]} and {names[1]} against each other on: no comparison of"
            " these data has a better side, their votes are even or ties"
        )
    if not pairs:
        raise PalateError(
            f"{names[0]} and {names[1]} have no decided comparison in common; measure both on the"
            " same data"
        )
    clusters = [one.cluster for one, _ in pairs]
    first_G = [prompt_accuracy(one.group, one.reward_N) for one, _ in pairs]
    second_G = [prompt_accuracy(other.group, other.reward_N) for _, other in pairs]
    right_C2 = np.array(
        [
            (won(one.reward_N, a), won(other.reward_N, b))
            for one, other in pairs
            for a, b in zip(decided(one.group), decided(other.group), strict=True)
        ]
    )
    untied_C2 = right_C2[(right_C2 != 0.5).all(axis=1)]
    num_first_only = int((untied_C2[:, 0] > untied_C2[:, 1]).sum())
    num_second_only = int((untied_C2[:, 0] < untied_C2[:, 1]).sum())
    first_C, second_C = right_C2.T
    p_value = exact_mcnemar(int((first_C > second_C).sum()), int((first_C < second_C).sum()))
    difference = cluster_difference(first_G, second_G, clusters)
    is_independent = len(right_C2) == len(set(clusters))
    is_apart = p_value < LEVEL if is_independent else not difference.low <= 0 <= difference.high
    leader: Winner = "first" if difference.value > 0 else "second"
    return Versus(
        first=names[0],
        second=names[1],
        first_accuracy=cluster_mean(first_G, clusters),
        second_accuracy=cluster_mean(second_G, clusters),
        difference=difference,
        num_first_only=num_first_only,
        num_second_only=num_second_only,
        num_with_ties=len(right_C2) - len(untied_C2),
        p_value=p_value,
        is_independent=is_independent,
        detectable=_detectable(np.array(first_G) - np.array(second_G), clusters),
        num_left_out=num_left_out,
        winner=leader if is_apart and difference.value else "not distinguishable",
    )


def exact_mcnemar(num_first_only: int, num_second_only: int) -> float:
    """Two-sided p-value: a fair coin for each comparison that one model alone decides rightly."""
    number = num_first_only + num_second_only
    return float(binomtest(num_first_only, number).pvalue) if number else 1.0


def _detectable(difference_G: np.ndarray, clusters: Sequence[str]) -> float:
    """(z(0.975) + z(0.8)) times the standard error by clusters; infinite for a single cluster."""
    _, unit_G = np.unique(np.asarray(clusters), return_inverse=True)
    num_units = int(unit_G.max()) + 1
    if num_units < 2:
        return math.inf
    moved = np.bincount(unit_G, weights=difference_G - difference_G.mean())
    error = math.sqrt(num_units / (num_units - 1) * float(moved @ moved)) / len(difference_G)
    return float(ndtri(1 - LEVEL / 2) + ndtri(POWER)) * error


def _common(
    first: Sequence[Outcome], second: Sequence[Outcome]
) -> tuple[list[tuple[Outcome, Outcome]], int]:
    """Outcomes of the same groups, with the decided comparisons that both have and no others, in
    one order; and how many were left out on both sides together."""
    waiting: dict[Key, list[Outcome]] = {}
    for other in reversed(second):
        waiting.setdefault(_key(other), []).append(other)
    pairs = []
    num_common = 0
    for one in first:
        found = waiting.get(_key(one))
        if not found:
            continue
        other = found.pop()
        mine, theirs = _by_responses(one), _by_responses(other)
        shared = [key for key in mine if key in theirs]
        if shared:
            pairs.append((_only(one, mine, shared), _only(other, theirs, shared)))
            num_common += len(shared)
    num_all = sum(len(decided(o.group)) for o in (*first, *second))
    return pairs, num_all - 2 * num_common


def _key(outcome: Outcome) -> Key:
    group = outcome.group.group
    prompt = tuple((turn.role, turn.content) for turn in group.prompt)
    return (group.file, group.line, prompt, tuple(response.text for response in group.responses))


def _by_responses(outcome: Outcome) -> dict[Key, Comparison]:
    """Decided comparisons by the responses they are of; of repeated ones the first, second, ..."""
    response = outcome.group.response_index
    found: dict[Key, Comparison] = {}
    for c in decided(outcome.group):
        pair, number = (response[c.better], response[c.worse]), 0
        while (*pair, number) in found:
            number += 1
        found[*pair, number] = c
    return found


def _only(outcome: Outcome, found: dict[Key, Comparison], keys: Sequence[Key]) -> Outcome:
    comparisons = tuple(found[key] for key in keys)
    return replace(outcome, group=replace(outcome.group, comparisons=comparisons))


def _points(share: float) -> str:
    return f"{share * 100:.1f} points" if math.isfinite(share) else "unknown (one prompt cluster)"


def _signed(share: float) -> str:
    return f"{share * 100:+.1f}" if math.isfinite(share) else "unknown"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"

"""Accuracy in parts of the data: by length, margin, source, turns, annotator.

In a part the unit is the prompt, as everywhere: of a prompt's decided comparisons in that part the
weighted mean is taken, over the prompts that have any the plain mean. Intervals resample prompt
clusters.

Legend: C comparisons, G resampled units, B resamples, F coefficients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from palate.evaluation.outcomes import Outcome, answer_lengths, decided, won
from palate.preferences import Comparison
from palate.statistics import Estimate, cluster_mean
from palate.statistics.comparison_model import fit_comparison_model
from palate.statistics.intervals import NORMAL_95
from palate.statistics.resampling import (
    percentile_interval,
    resampled_sums,
    resampling_units,
    sums_by_unit,
)

PartsOf = Callable[[Outcome, Sequence[Comparison]], Sequence[str | None]]
"""Name of the part that each comparison is in; None for one in no part."""
Rows = list[tuple[float, str]]
"""The mean of each prompt of a part, and its cluster."""
LONGER, SHORTER = "better is longer", "better is shorter"
WEAK_PRIOR = 1e-6
"""Penalty of the logistic regression, times the sum of the weights: it keeps the fit finite where
every comparison is right."""


def accuracy_by(outcomes: Sequence[Outcome], parts_of: PartsOf) -> dict[str, Estimate]:
    """Accuracy in each part, by its name; `n` is the number of prompts in it."""
    return {name: _mean(rows) for name, rows in sorted(_rows(outcomes, parts_of).items())}


def _rows(outcomes: Sequence[Outcome], parts_of: PartsOf) -> dict[str, Rows]:
    parts: dict[str, Rows] = {}
    for outcome in outcomes:
        compared = decided(outcome.group)
        members: dict[str, list[Comparison]] = {}
        for c, name in zip(compared, parts_of(outcome, compared), strict=True):
            if name is not None:
                members.setdefault(name, []).append(c)
        for name, found in members.items():
            right = [won(outcome.reward_N, c) for c in found]
            mean = float(np.average(right, weights=[c.weight for c in found]))
            parts.setdefault(name, []).append((mean, outcome.cluster))
    return parts


def _mean(rows: Rows) -> Estimate:
    return cluster_mean([value for value, _ in rows], [cluster for _, cluster in rows])


def strata(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Estimate]]:
    """Accuracy by length, margin, source and turns: title of each division, then its parts.

    A division with a single part is left out.
    """
    divisions: dict[str, PartsOf] = {
        "which answer is longer": by_length,
        "size of the margin": by_margin(outcomes),
        "source": by_source,
        "turns of the user": by_turns,
    }
    found = {title: accuracy_by(outcomes, parts_of) for title, parts_of in divisions.items()}
    return {title: parts for title, parts in found.items() if len(parts) > 1}


def by_length(outcome: Outcome, compared: Sequence[Comparison]) -> list[str | None]:
    """Whether the better answer has more characters; equal lengths are in neither part."""
    return [
        None if gap == 0 else LONGER if gap > 0 else SHORTER
        for gap in _differences(answer_lengths(outcome.group), compared)
    ]


def by_source(outcome: Outcome, compared: Sequence[Comparison]) -> list[str | None]:
    """The source of the prompt's group."""
    return [outcome.group.group.source] * len(compared)


def by_turns(outcome: Outcome, compared: Sequence[Comparison]) -> list[str | None]:
    """How many turns of the user the prompt has, in three classes."""
    number = sum(turn.role == "user" for turn in outcome.group.group.prompt)
    name = "1" if number <= 1 else "2 or 3" if number <= 3 else "4 or more"
    return [name] * len(compared)


def by_margin(outcomes: Sequence[Outcome]) -> PartsOf:
    """Quarters of the size of the model's own margin, over all decided comparisons.

    A model whose margins mean something is right more often in each than in the one before.
    """
    sizes = [size for o in outcomes for size in np.abs(_differences(o.reward_N, decided(o.group)))]
    edges = np.quantile(sizes, [0.25, 0.5, 0.75]) if sizes else np.zeros(3)
    names = ("1, least sure", "2", "3", "4, most sure")

    def quarters(outcome: Outcome, compared: Sequence[Comparison]) -> list[str | None]:
        size_C = np.abs(_differences(outcome.reward_N, compared))
        return [names[index] for index in np.searchsorted(edges, size_C)]

    return quarters


def _differences(value_N: np.ndarray, compared: Sequence[Comparison]) -> np.ndarray:
    better = [c.better for c in compared]
    worse = [c.worse for c in compared]
    difference: np.ndarray = value_N[better].astype(float) - value_N[worse].astype(float)
    return difference


def accuracy_by_source(outcomes: Sequence[Outcome]) -> dict[str, Estimate]:
    """Accuracy on the prompts of each source, where there is more than one."""
    found = accuracy_by(outcomes, by_source)
    if len(found) < 2:
        return {}
    return {f"accuracy, source {name}": estimate for name, estimate in found.items()}


def accuracy_by_length(outcomes: Sequence[Outcome]) -> dict[str, Estimate]:
    """Accuracy where the better answer is longer, where it is shorter, their mean and gap, and
    what it is at equal length.

    The mean is 0.5 for any rule that reads lengths alone, and the gap (longer minus shorter) is 1
    or -1. Their intervals resample clusters of both strata together. Nothing where one of the
    strata is empty.
    """
    parts = _rows(outcomes, by_length)
    if len(parts) < 2:
        return {}
    mean, gap = _mean_and_gap(parts[LONGER], parts[SHORTER], _num_unlike(outcomes))
    found = {
        f"accuracy, {LONGER}": _mean(parts[LONGER]),
        f"accuracy, {SHORTER}": _mean(parts[SHORTER]),
        "accuracy, mean of longer and shorter": mean,
        "accuracy, longer minus shorter": gap,
    }
    level = accuracy_at_equal_length(outcomes)
    return found if level is None else {**found, "accuracy, at equal length": level}


def _num_unlike(outcomes: Sequence[Outcome]) -> int:
    """Prompts with a decided comparison of answers of unlike length."""
    return sum(
        bool(_differences(answer_lengths(o.group), decided(o.group)).any()) for o in outcomes
    )


def _mean_and_gap(longer: Rows, shorter: Rows, num_prompts: int) -> tuple[Estimate, Estimate]:
    rows = [*longer, *shorter]
    value_R = np.array([value for value, _ in rows])
    is_longer_R = np.arange(len(rows)) < len(longer)
    unit_R, num_units = resampling_units(np.array([cluster for _, cluster in rows]))
    columns = [value_R * is_longer_R, is_longer_R, value_R * ~is_longer_R, ~is_longer_R]
    sum_G4 = sums_by_unit([column.astype(float) for column in columns], unit_R, num_units)

    def both(sum_B4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return sum_B4[:, 0] / sum_B4[:, 1], sum_B4[:, 2] / sum_B4[:, 3]

    value_1, other_1 = both(sum_G4.sum(axis=0, keepdims=True))
    value_B, other_B = both(resampled_sums(sum_G4))
    mean = percentile_interval(
        float(value_1[0] + other_1[0]) / 2, (value_B + other_B) / 2, num_units, num_prompts
    )
    gap = percentile_interval(
        float(value_1[0] - other_1[0]), value_B - other_B, num_units, num_prompts
    )
    return mean, gap


def accuracy_at_equal_length(outcomes: Sequence[Outcome]) -> Estimate | None:
    """What the accuracy would be were both answers of one length: s(a) of the logistic regression

        logit P(right) = a + b tanh(d / root mean square of d),

    d the characters of the better answer less those of the worse, over all decided comparisons,
    each prompt weighing the same, ties half right. The form is that of length-controlled win rates
    (Dubois et al. 2024, 2404.04475). The interval is that of a, transformed: the sandwich (Huber
    1967) by prompt cluster. None where no two answers differ in length.
    """
    compared = [o for o in outcomes if decided(o.group)]
    if not compared:
        return None
    gap_C = np.concatenate(
        [_differences(answer_lengths(o.group), decided(o.group)) for o in compared]
    )
    if not gap_C.any():
        return None
    right_C = np.array([won(o.reward_N, c) for o in compared for c in decided(o.group)])
    weight_C = np.array(
        [
            c.weight / sum(m.weight for m in decided(o.group))
            for o in compared
            for c in decided(o.group)
        ]
    )
    cluster_C = np.array([o.cluster for o in compared for _ in decided(o.group)])
    scaled_C = np.tanh(gap_C / np.sqrt(np.mean(gap_C**2)))
    row_C2 = np.stack([np.ones(len(scaled_C)), scaled_C], axis=1)
    prior = WEAK_PRIOR * float(weight_C.sum())
    coefficient_F = fit_comparison_model(row_C2, weight_C, prior, right_C)
    error = _sandwich_error(row_C2, right_C, weight_C, coefficient_F, cluster_C, prior)
    level = float(coefficient_F[0])
    if not np.isfinite(error):
        return Estimate(float(expit(level)), -np.inf, np.inf, len(compared))
    low, high = expit([level - NORMAL_95 * error, level + NORMAL_95 * error]).tolist()
    return Estimate(float(expit(level)), low, high, len(compared))


def _sandwich_error(
    row_CF: np.ndarray,
    target_C: np.ndarray,
    weight_C: np.ndarray,
    coefficient_F: np.ndarray,
    cluster_C: np.ndarray,
    prior: float,
) -> float:
    """Standard error of the first coefficient; infinite with a single cluster."""
    _, unit_C = np.unique(cluster_C, return_inverse=True)
    num_units = int(unit_C.max()) + 1
    if num_units < 2:
        return float("inf")
    fitted_C = expit(row_CF @ coefficient_F)
    curvature_C = weight_C * fitted_C * (1 - fitted_C)
    hessian_FF = (row_CF.T * curvature_C) @ row_CF + prior * np.eye(len(coefficient_F))
    moves_CF = row_CF * (weight_C * (target_C - fitted_C))[:, None]
    move_GF = sums_by_unit(list(moves_CF.T), unit_C, num_units)
    half_FG = np.linalg.solve(hessian_FF, move_GF.T)
    return float(np.sqrt(num_units / (num_units - 1) * (half_FG[0] @ half_FG[0])))


@dataclass(frozen=True, kw_only=True)
class ByAnnotator:
    """Accuracy against what each annotator said."""

    accuracy: dict[str, Estimate]
    """Of those with the most votes, the most first; `n` counts their prompts."""
    rest: Estimate | None
    """Of all others, those without a name among them; None where there are none."""
    num_rest: int
    """Names of the others."""
    num_unnamed_votes: int


def accuracy_by_annotator(outcomes: Sequence[Outcome], num_shown: int = 10) -> ByAnnotator | None:
    """How often rewards order two answers as an annotator did; equal rewards count half.

    A vote counts for every two scored answers that it orders, and its ties for none. Of one
    annotator's pairs on a prompt the mean is taken, over prompts the plain mean. None without
    votes.
    """
    rows: dict[str, Rows] = {}
    num_unnamed = 0
    for outcome in outcomes:
        right: dict[str, list[float]] = {}
        place = {response: n for n, response in enumerate(outcome.group.response_index)}
        for vote in outcome.group.group.votes:
            num_unnamed += not vote.annotator
            for (i, j), sign in vote.outcomes().items():
                if sign and i in place and j in place:
                    better, worse = (i, j) if sign > 0 else (j, i)
                    c = Comparison(place[better], place[worse])
                    right.setdefault(vote.annotator, []).append(won(outcome.reward_N, c))
        for name, values in right.items():
            rows.setdefault(name, []).append((float(np.mean(values)), outcome.cluster))
    if not rows:
        return None
    named = sorted((name for name in rows if name), key=lambda name: (-len(rows[name]), name))
    others = [row for name in [*named[num_shown:], ""] for row in rows.get(name, ())]
    return ByAnnotator(
        accuracy={name: _mean(rows[name]) for name in named[:num_shown]},
        rest=_mean(others) if others else None,
        num_rest=len(named[num_shown:]),
        num_unnamed_votes=num_unnamed,
    )

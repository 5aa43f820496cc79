"""Margins of all comparisons, their labels, the scores of both, and labels drawn from a model.

Legend: C comparisons.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from palate.evaluation.outcomes import Outcome
from palate.objectives import Ties, soft_target


@dataclass(frozen=True, kw_only=True)
class Margins:
    """Comparisons that weigh anything, of P prompts."""

    margin_C: np.ndarray
    """(reward(better) - reward(worse)) / T."""
    target_C: np.ndarray
    weight_C: np.ndarray
    """Sums to 1 within each prompt."""
    prompt_C: np.ndarray
    cluster_C: np.ndarray
    better_C: np.ndarray
    worse_C: np.ndarray
    """Place of the two answers among those of all simulated rankings."""
    num_places: int


def margins_of(outcomes: Sequence[Outcome], temperature: float, ties: Ties) -> Margins:
    """The comparisons of all outcomes, but those that weigh nothing."""
    rows: list[tuple[float, float, float, int, int, int]] = []
    clusters: list[str] = []
    num_places = 0
    for number, outcome in enumerate(outcomes):
        met: dict[frozenset[int], int] = {}
        reward_N = outcome.reward_N.astype(float)
        soft = [soft_target(c.probability, c.tie, ties) for c in outcome.group.comparisons]
        weights = [
            c.weight * share for c, (_, share) in zip(outcome.group.comparisons, soft, strict=True)
        ]
        for c, (target, _), weight in zip(outcome.group.comparisons, soft, weights, strict=True):
            if not weight:
                continue
            # A pair that is compared again was judged again: that is another ranking.
            pair = frozenset((c.better, c.worse))
            met[pair] = met.get(pair, -1) + 1
            start = num_places + met[pair] * len(reward_N)
            margin = float(reward_N[c.better] - reward_N[c.worse]) / temperature
            share = weight / sum(weights)
            rows.append((margin, target, share, number, start + c.better, start + c.worse))
            clusters.append(outcome.cluster)
        num_places += (max(met.values(), default=-1) + 1) * len(reward_N)
    table = np.array(rows, dtype=float).reshape(-1, 6)
    margin_C, target_C, weight_C = table[:, :3].T
    prompt_C, better_C, worse_C = table[:, 3:].T.astype(int)
    return Margins(
        margin_C=margin_C,
        target_C=target_C,
        weight_C=weight_C,
        prompt_C=prompt_C,
        cluster_C=np.array(clusters),
        better_C=better_C,
        worse_C=worse_C,
        num_places=num_places,
    )


def hits(margins: Margins, target_C: np.ndarray) -> np.ndarray:
    """Share by which the predicted winner won."""
    found: np.ndarray = np.where(margins.margin_C > 0, target_C, 1 - target_C)
    return found


def likelihoods(margin_C: np.ndarray, target_C: np.ndarray) -> np.ndarray:
    """-[t log s(m) + (1 - t) log s(-m)] of each comparison."""
    found: np.ndarray = np.logaddexp(0, -margin_C) + (1 - target_C) * margin_C
    return found


def brier_scores(margin_C: np.ndarray, target_C: np.ndarray) -> np.ndarray:
    """t (1 - s(m))^2 + (1 - t) s(m)^2 of each comparison."""
    p_C = expit(margin_C)
    found: np.ndarray = target_C * (1 - p_C) ** 2 + (1 - target_C) * p_C**2
    return found


def simulated_labels(margins: Margins, random: np.random.Generator) -> np.ndarray:
    """Labels that a calibrated model could have met, shape C, each with mean p = s(margin / T).

    Each prompt's answers are ranked by reward / T plus a Gumbel draw: two of them are then in this
    or that order with probability p (Luce 1959; Yellott 1977), and the comparisons of one prompt
    hang together as those of one ranking do. A label keeps its own sharpness a = max(t, 1 - t): it
    is drawn as a or 1 - a; where p is beyond a or 1 - a no such label has the mean p, and it is p.
    """
    gumbel = random.gumbel(size=margins.num_places)
    uniform_C = expit(gumbel[margins.better_C] - gumbel[margins.worse_C])
    p_C = expit(margins.margin_C)
    sharpness_C = np.maximum(margins.target_C, 1 - margins.target_C)
    with np.errstate(divide="ignore", invalid="ignore"):
        chance_C = (p_C - (1 - sharpness_C)) / (2 * sharpness_C - 1)
    drawn_C = np.where(uniform_C > 1 - chance_C, sharpness_C, 1 - sharpness_C)
    possible_C = np.maximum(p_C, 1 - p_C) < sharpness_C
    label_C: np.ndarray = np.where(possible_C, drawn_C, p_C)
    return label_C

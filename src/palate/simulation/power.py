"""How many comparisons are needed: power by simulation, and the number that reaches it.

Legend: T trials, D points of a power curve, B resamples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from palate.artifacts.progress import progress
from palate.errors import PalateError
from palate.simulation.labels import Simulated, label
from palate.simulation.worlds import WORLDS, labels_of, scene
from palate.statistics import wilson

PowerAt = Callable[[int, int, np.random.Generator], int]
"""(number of comparisons, trials, random) to the number of trials with a detection."""
Detector = Callable[[Simulated], bool]
MAX_COMPARISONS = 10_000_000
NUM_RESAMPLES = 1000
NUM_POINTS = 7


@dataclass(frozen=True, kw_only=True)
class PowerPoint:
    """Power at one number of comparisons, with its 95 % Monte-Carlo interval (Wilson)."""

    num_comparisons: int
    num_detected: int
    num_trials: int

    @property
    def power(self) -> float:
        return self.num_detected / self.num_trials

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.power, self.num_trials)


@dataclass(frozen=True, kw_only=True)
class Needed:
    """The number of comparisons at which the power reaches its target."""

    target: float
    num_comparisons: float | None
    """None where no number up to the limit reaches it."""
    low: float | None
    high: float | None
    """95 % Monte-Carlo interval: how far another run of the same simulation may differ."""
    points: tuple[PowerPoint, ...]
    """The power curve, by number of comparisons."""


def needed_comparisons(
    power_at: PowerAt,
    *,
    target: float = 0.8,
    trials: int,
    start: int = 100,
    limit: int = MAX_COMPARISONS,
    seed: int = 0,
) -> Needed:
    """Find the number of comparisons with power `target`, by simulation.

    The number is doubled (or halved) until the power reaches the target at N and not at N / 2;
    NUM_POINTS numbers from N / 2 to 1.25 N are then tried. Since a test's statistic grows with the
    root of the number, the probit of the power is near a line in that root: it is fitted there by
    weighted least squares, and read off at the target. The interval draws each point's count again
    from its binomial.
    """
    random = np.random.default_rng([seed, 20])
    points = _bracket(power_at, target, trials, start, limit, random)
    above = [p.num_comparisons for p in points if p.power >= target]
    if not above:
        return Needed(target=target, num_comparisons=None, low=None, high=None, points=points)
    lower, upper = max(2, min(above) // 2), min(limit, 5 * min(above) // 4)
    known_D = np.array([p.num_comparisons for p in points])
    for number in np.unique(np.geomspace(lower, upper, NUM_POINTS).astype(int)).tolist():
        if np.abs(known_D / number - 1).min() > 0.02:
            points += (_point(power_at, number, trials, random),)
    points = tuple(sorted(points, key=lambda point: point.num_comparisons))
    # A number at which nothing is ever found (too few for a model) is off the line.
    near = [p for p in points if lower <= p.num_comparisons <= upper and p.num_detected]
    redrawn_BD = random.binomial(
        [p.num_trials for p in near],
        [_shrunk(p.num_detected, p.num_trials) for p in near],
        size=(NUM_RESAMPLES, len(near)),
    )
    numbers_B = [_read_off(near, redrawn.tolist(), target) for redrawn in redrawn_BD]
    low, high = np.quantile(numbers_B, [0.025, 0.975]).tolist()
    estimate = _read_off(near, [p.num_detected for p in near], target)
    return Needed(target=target, num_comparisons=estimate, low=low, high=high, points=points)


def _bracket(
    power_at: PowerAt,
    target: float,
    trials: int,
    start: int,
    limit: int,
    random: np.random.Generator,
) -> tuple[PowerPoint, ...]:
    """Points at doubled or halved numbers, the last two on either side of the target; of doubled
    ones alone where the target is above the power at the limit."""
    points = [_point(power_at, min(start, limit), trials, random)]
    is_enough = points[0].power >= target
    while (points[-1].power >= target) == is_enough:
        number = points[-1].num_comparisons
        number = max(2, number // 2) if is_enough else min(limit, 2 * number)
        if number == points[-1].num_comparisons:
            break
        points.append(_point(power_at, number, trials, random))
    return tuple(points)


def _point(power_at: PowerAt, number: int, trials: int, random: np.random.Generator) -> PowerPoint:
    detected = power_at(number, trials, random)
    return PowerPoint(num_comparisons=number, num_detected=detected, num_trials=trials)


def _shrunk(detected: int, trials: int) -> float:
    """A share that is never 0 or 1."""
    return (detected + 0.5) / (trials + 1)


def _read_off(points: Sequence[PowerPoint], detected: Sequence[int], target: float) -> float:
    """Where the line through the probits crosses the target.

    Each is weighted by 1 / its variance, p (1 - p) / (T phi(z)^2), by the delta method.
    """
    share_D = np.array([_shrunk(d, p.num_trials) for d, p in zip(detected, points, strict=True)])
    probit_D = ndtri(share_D)
    trials_D = np.array([p.num_trials for p in points])
    density_D = np.exp(-(probit_D**2) / 2) / math.sqrt(2 * math.pi)
    weight_D = trials_D * density_D**2 / (share_D * (1 - share_D))
    root_D = np.sqrt([p.num_comparisons for p in points])
    if len(points) < 2:
        return float(points[0].num_comparisons)
    slope, intercept = np.polyfit(root_D, probit_D, 1, w=np.sqrt(weight_D))
    # A flat or falling line of few trials crosses anywhere: it says no more than where was looked.
    found = max(0.0, (float(ndtri(target)) - intercept) / slope) ** 2 if slope > 0 else math.inf
    return float(np.clip(found, points[0].num_comparisons / 2, 2 * points[-1].num_comparisons))


def tell_apart(
    low: float, high: float, *, discordance: float | None, alpha: float = 0.05
) -> PowerAt:
    """Power to tell two accuracies apart, two-sided at level `alpha`.

    Paired (`discordance` is the share of comparisons that exactly one of the models gets right):
    both models are asked the same prompts, and McNemar's test compares the two kinds of
    disagreement. Unpaired (None): each model is asked prompts of its own, as many as the other, and
    the pooled z-test compares the two shares. Raises PalateError on rates that cannot be.
    """
    if not 0 < low < high < 1:
        raise PalateError(f"accuracies {low} and {high}: 0 < low < high < 1 is needed")
    if not 0 < alpha < 1:
        raise PalateError(f"alpha is {alpha}, must be between 0 and 1")
    critical = float(ndtri(1 - alpha / 2))
    gap = high - low
    if discordance is None:

        def unpaired(number: int, trials: int, random: np.random.Generator) -> int:
            first_T, second_T = (random.binomial(number, p, trials) / number for p in (low, high))
            pooled_T = (first_T + second_T) / 2
            error_T = np.sqrt(2 * pooled_T * (1 - pooled_T) / number)
            return int((np.abs(second_T - first_T) > critical * error_T).sum())

        return unpaired
    most = min(low + high, 2 - low - high)
    if not gap <= discordance <= most:
        raise PalateError(
            f"discordance is {discordance}: with accuracies {low} and {high} it is from"
            f" {gap:.4g} to {most:.4g}"
        )

    def paired(number: int, trials: int, random: np.random.Generator) -> int:
        differing_T = random.binomial(number, discordance, trials)
        better_T = random.binomial(differing_T, (discordance + gap) / (2 * discordance))
        statistic_T = np.abs(2 * better_T - differing_T)
        return int((statistic_T > critical * np.sqrt(differing_T)).sum())

    return paired


def detect_bias(
    name: str, strength: float, detector: Detector, *, limit: int, seed: int = 0
) -> PowerAt:
    """Power of a detector to find a planted world's fault in a number of its comparisons.

    One scene of `limit` pairs is written with `seed`; each trial draws some of its pairs and new
    votes on them. Raises PalateError for worlds that are not of pairs labelled with a fault.
    """
    planted = WORLDS[name].planted
    if not planted.labels.planted():
        sized = [world.name for world in WORLDS.values() if world.planted.labels.planted()]
        raise PalateError(
            f"world {name!r} has no fault of a stated strength; these have: {', '.join(sized)}"
        )
    written = scene(seed, limit, planted.num_responses, planted.style)

    def power_at(number: int, trials: int, random: np.random.Generator) -> int:
        detected = 0
        seeds = random.integers(2**31, size=trials).tolist()
        for vote_seed in progress(seeds, f"{number} comparisons"):
            chosen_G = random.choice(written.num_groups, number, replace=False)
            votes = labels_of(name, "planted", vote_seed, strength)
            detected += detector(label(written.only(chosen_G), votes, f"{name} planted"))
        return detected

    return power_at

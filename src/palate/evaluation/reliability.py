"""Does 0.8 mean 0.8: how far probabilities are from what happened, and from what chance would show.

Every number is beside its null: the same number of a model that is calibrated and has these
margins, on this many prompts. An error of calibration of 0.04 is perfect with 1,000 pairs and a
fault with 50,000.

Legend: C comparisons, U comparisons with unequal rewards, B resamples or simulations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.special import expit

from palate.evaluation.margins import (
    Margins,
    brier_scores,
    hits,
    likelihoods,
    margins_of,
    simulated_labels,
)
from palate.evaluation.outcomes import Outcome
from palate.evaluation.reliability_bins import (
    NUM_BINS,
    Bin,
    diagram,
    equal_mass_bins,
    equal_width_bins,
)
from palate.objectives import Ties
from palate.statistics import Estimate, cluster_mean
from palate.statistics.resampling import (
    percentile_interval,
    ratio_of_sums,
    resampled_sums,
    resampling_units,
    sums_by_unit,
)

NUM_SIMULATIONS = 500
Verdict = Literal["not distinguishable from calibrated", "over-confident", "under-confident", "off"]
"""off: miscalibrated, too sure here and not sure enough there."""
NLL, BRIER = "negative log-likelihood", "Brier score"
ECE_WIDTH, ECE_MASS = "ECE, bins of equal width", "ECE, bins of equal mass"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure of probabilities, lower is better, and what a calibrated model would show."""

    value: Estimate
    null_mean: float
    null_high: float
    """The 95th percentile of the null."""

    @property
    def is_beyond(self) -> bool:
        """Whether a calibrated model would show as much in less than 1 of 20 evaluations."""
        return self.value.value > self.null_high


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """What a model's probabilities are worth on these prompts."""

    temperature: float
    measures: Mapping[str, Measure]
    over_confidence: Estimate
    """Mean probability of the predicted winners less the share that won."""
    equal_width: tuple[Bin, ...]
    equal_mass: tuple[Bin, ...]
    num_comparisons: int
    num_ties: int
    """Comparisons with equal rewards. They have no predicted winner: ECE, bins and over-confidence
    leave them out; likelihood and Brier score have them, at a probability of one half."""
    verdict: Verdict

    @property
    def sentence(self) -> str:
        """The verdict in words, with the numbers it rests on."""
        ece = self.measures[ECE_MASS]
        numbers = (
            f"error of calibration {ece.value.value:.3f}, where a calibrated model with these"
            f" margins shows {ece.null_mean:.3f} and in 1 of 20 cases more than {ece.null_high:.3f}"
        )
        points = f"{abs(self.over_confidence.value) * 100:.1f} points"
        said = {
            "not distinguishable from calibrated": "Not distinguishable from calibrated",
            "over-confident": f"Over-confident, by {points} in the mean",
            "under-confident": f"Under-confident, by {points} in the mean",
            "off": "Not calibrated: too sure of some comparisons, not sure enough of others",
        }[self.verdict]
        tied = f" {self.num_ties} of {self.num_comparisons} comparisons have equal rewards."
        return f"{said}: {numbers}.{tied if self.num_ties else ''}"

    def metrics(self) -> dict[str, Estimate]:
        """The measures and the over-confidence by name."""
        values = {name: measure.value for name, measure in self.measures.items()}
        return {**values, "over-confidence": self.over_confidence}

    def bins_as_json(self, kind: Literal["equal_width", "equal_mass"]) -> list[dict[str, Any]]:
        """Points for a figure."""
        return [asdict(point) for point in getattr(self, kind)]


def reliability(
    outcomes: Sequence[Outcome], temperature: float, ties: Ties = "half", seed: int = 0
) -> Reliability | None:
    """Measure p = s(margin / T) against the labels.

    With t the label (1; a soft label's probability, tie votes as `ties` says) that the better
    answer wins, and p its probability:

        NLL   = -[t log p + (1 - t) log(1 - p)],   Brier = t (1 - p)^2 + (1 - t) p^2,

    the expected score of one vote. ECE folds each comparison on the predicted winner, the answer of
    the higher reward: with q = s(|margin| / T) >= 1/2 and h = t or 1 - t the share by which that
    answer won, it is sum over bins |sum w (q - h)| / sum w (Naeini et al. 2015). Bins are ten
    twentieths from 1/2 to 1, or tenths of the weight in the order of q.

    Weights: in a prompt a comparison has its own weight (times 1 - tie where tie votes are dropped)
    over the sum of its prompt's, so that each prompt weighs 1, whatever its K; without label
    margins and at T = 1 NLL is then the loss of `evaluate_outcomes`. Prompts whose comparisons
    weigh nothing have no part.

    The null is the mean and the 95th percentile of 500 evaluations of labels drawn from p itself
    (`simulated_labels`). ECE is never below 0, and noise adds to it: its interval is the basic
    bootstrap's, 2 value - percentiles of resamples (Davison and Hinkley 1997, section 5.2), which
    takes that off, and begins at 0 where the null is not exceeded.

    The verdict: not distinguishable from calibrated where the ECE of bins of equal mass is at most
    its null's 95th percentile; else named by the sign of the over-confidence, or "off" where its
    interval holds 0. None where no comparison has unequal rewards.
    """
    margins = margins_of(outcomes, temperature, ties)
    untied_C = margins.margin_C != 0
    if not untied_C.any():
        return None
    confidence_U = expit(np.abs(margins.margin_C[untied_C]))
    weight_U = margins.weight_C[untied_C]
    cluster_U = margins.cluster_C[untied_C]
    bins = {
        ECE_WIDTH: equal_width_bins(confidence_U),
        ECE_MASS: equal_mass_bins(confidence_U, weight_U),
    }
    excess_U = confidence_U - hits(margins, margins.target_C)[untied_C]
    null = _null(margins, bins, confidence_U, untied_C, seed)
    num_prompts = len(np.unique(margins.prompt_C[untied_C]))
    values = {
        NLL: _prompt_mean(margins, likelihoods(margins.margin_C, margins.target_C)),
        BRIER: _prompt_mean(margins, brier_scores(margins.margin_C, margins.target_C)),
        **{
            name: _ece(excess_U, weight_U, bin_U, cluster_U, num_prompts)
            for name, bin_U in bins.items()
        },
    }
    measures = {name: _measure(name, value, null[name]) for name, value in values.items()}
    over = ratio_of_sums(excess_U * weight_U, weight_U, cluster_U)
    return Reliability(
        temperature=temperature,
        measures=measures,
        over_confidence=over,
        equal_width=diagram(confidence_U, excess_U, weight_U, cluster_U, bins[ECE_WIDTH]),
        equal_mass=diagram(confidence_U, excess_U, weight_U, cluster_U, bins[ECE_MASS]),
        num_comparisons=len(margins.margin_C),
        num_ties=int((~untied_C).sum()),
        verdict=_verdict(measures[ECE_MASS], over),
    )


def _measure(name: str, value: Estimate, null_B: np.ndarray) -> Measure:
    null_high = float(np.quantile(null_B, 0.95))
    if name in (ECE_WIDTH, ECE_MASS) and value.value <= null_high and np.isfinite(value.low):
        value = replace(value, low=0.0)
    return Measure(value=value, null_mean=float(null_B.mean()), null_high=null_high)


def _verdict(ece: Measure, over: Estimate) -> Verdict:
    if not ece.is_beyond:
        return "not distinguishable from calibrated"
    if over.low <= 0 <= over.high:
        return "off"
    return "over-confident" if over.value > 0 else "under-confident"


def _prompt_mean(margins: Margins, value_C: np.ndarray) -> Estimate:
    numbers, first_P, place_C = np.unique(margins.prompt_C, return_index=True, return_inverse=True)
    value_P = np.bincount(place_C, weights=margins.weight_C * value_C, minlength=len(numbers))
    return cluster_mean(value_P, margins.cluster_C[first_P].tolist())


def _error(excess_U: np.ndarray, weight_U: np.ndarray, bin_U: np.ndarray) -> float:
    sum_by_bin = np.bincount(bin_U, weights=weight_U * excess_U)
    return float(np.abs(sum_by_bin).sum() / weight_U.sum())


def _ece(
    excess_U: np.ndarray,
    weight_U: np.ndarray,
    bin_U: np.ndarray,
    cluster_U: np.ndarray,
    num_prompts: int,
) -> Estimate:
    """With the basic bootstrap's interval; the bins stay those of all comparisons."""
    unit_U, num_units = resampling_units(cluster_U)
    in_bin = [weight_U * excess_U * (bin_U == number) for number in range(NUM_BINS)]
    sum_GF = sums_by_unit([*in_bin, weight_U], unit_U, num_units)
    sum_BF = resampled_sums(sum_GF)
    resampled_B = np.abs(sum_BF[:, :-1]).sum(axis=1) / sum_BF[:, -1]
    value = _error(excess_U, weight_U, bin_U)
    found = percentile_interval(value, resampled_B, num_units, num_prompts)
    if not np.isfinite(found.low):
        return found
    return Estimate(
        value, max(0.0, 2 * value - found.high), max(0.0, 2 * value - found.low), num_prompts
    )


def _null(
    margins: Margins,
    bins: Mapping[str, np.ndarray],
    confidence_U: np.ndarray,
    untied_C: np.ndarray,
    seed: int,
) -> dict[str, np.ndarray]:
    """Each measure in NUM_SIMULATIONS evaluations of a calibrated model, shape B."""
    random = np.random.default_rng(seed)
    weight_U = margins.weight_C[untied_C]
    # Both scores are linear in the label: the score of 0, and what each unit of label adds.
    scores = {NLL: likelihoods, BRIER: brier_scores}
    zero_C, one_C = np.zeros_like(margins.margin_C), np.ones_like(margins.margin_C)
    lines = {
        name: (score(margins.margin_C, zero_C), score(margins.margin_C, one_C))
        for name, score in scores.items()
    }
    total = float(margins.weight_C.sum())
    found: dict[str, list[float]] = {name: [] for name in (*scores, *bins)}
    for _ in range(NUM_SIMULATIONS):
        label_C = simulated_labels(margins, random)
        for name, (lost_C, won_C) in lines.items():
            score_C = lost_C + label_C * (won_C - lost_C)
            found[name].append(float(margins.weight_C @ score_C) / total)
        excess_U = confidence_U - hits(margins, label_C)[untied_C]
        for name, bin_U in bins.items():
            found[name].append(_error(excess_U, weight_U, bin_U))
    return {name: np.array(values) for name, values in found.items()}

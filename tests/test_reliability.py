"""Calibration: scores against scikit-learn and hand-worked numbers, nulls against chance, the
temperature and its interval."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from palate.errors import PalateError
from palate.evaluation.calibration import (
    cross_fitted_temperature,
    fit_temperature,
    is_at_bound,
    temperature_estimate,
)
from palate.evaluation.margins import margins_of, simulated_labels
from palate.evaluation.metrics import evaluate_outcomes
from palate.evaluation.outcomes import Outcome
from palate.evaluation.reliability import BRIER, ECE_MASS, ECE_WIDTH, NLL, Reliability, reliability
from palate.preferences import Comparison
from palate.statistics import wilson
from palate.statistics.resampling import times_drawn
from tests.test_evaluation import judged, outcome


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def measured(outcomes: Sequence[Outcome], temperature: float = 1.0) -> Reliability:
    found = reliability(outcomes, temperature)
    assert found is not None
    return found


def values(found: Reliability) -> dict[str, float]:
    return {name: estimate.value for name, estimate in found.metrics().items()}


def normal_margins(number: int, seed: int, scale: float = 2.0) -> np.ndarray:
    return np.random.default_rng([seed, 7]).normal(scale=scale, size=number)


def ranked(number: int, temperature: float, seed: int) -> list[Outcome]:
    """K = 4, rewards of deviation 2 T, each prompt's six comparisons from one ranking by
    reward / T + Gumbel noise, under which each two are ordered with probability s(margin / T)."""
    dice = np.random.default_rng([seed, 8])
    made = []
    for index in range(number):
        reward_N = 2 * temperature * dice.normal(size=4)
        order = np.argsort(-(reward_N / temperature + dice.gumbel(size=4))).tolist()
        pairs = [(order[a], order[b]) for a in range(4) for b in range(a + 1, 4)]
        made.append(outcome(f"p{index}", reward_N.tolist(), pairs))
    return made


def test_likelihood_and_brier_score_are_those_of_scikit_learn() -> None:
    """Each pair as the event "the first answer wins", of probability s(margin / 3)."""
    margin_C = normal_margins(400, 1, 6)
    outcomes = judged(margin_C, 3.0, seed=2)
    is_first = [o.group.comparisons[0].better == 0 for o in outcomes]
    probability = 1 / (1 + np.exp(-np.float32(margin_C) / 3.0))
    found = values(measured(outcomes, 3.0))
    assert found[NLL] == pytest.approx(log_loss(is_first, probability), rel=1e-6)
    assert found[BRIER] == pytest.approx(brier_score_loss(is_first, probability), rel=1e-6)


def test_a_soft_label_is_scored_as_that_share_of_votes() -> None:
    """Label 0.7 is scikit-learn's sample of weight 0.7 for and one of 0.3 against; ties of share
    0.4 on top make it 0.6 * 0.7 + 0.2 = 0.62."""
    plain = outcome("a", [1.5, 0], [Comparison(0, 1, probability=0.7)])
    tied = outcome("b", [-1.0, 0], [Comparison(0, 1, probability=0.7, tie=0.4)])
    expected = [
        log_loss([1, 0], [s(m), s(m)], sample_weight=[t, 1 - t], labels=[0, 1])
        for m, t in ((1.5, 0.7), (-1.0, 0.62))
    ]
    assert values(measured([plain, tied]))[NLL] == pytest.approx(np.mean(expected), rel=1e-6)
    brier = [t * (1 - s(m)) ** 2 + (1 - t) * s(m) ** 2 for m, t in ((1.5, 0.7), (-1.0, 0.62))]
    assert values(measured([plain, tied]))[BRIER] == pytest.approx(np.mean(brier), rel=1e-6)
    # The predicted winner of the second pair is its worse answer, which won 0.38 of it.
    over = (s(1.5) - 0.7 + s(1.0) - 0.38) / 2
    assert values(measured([plain, tied]))["over-confidence"] == pytest.approx(over, rel=1e-6)


def test_error_of_calibration_by_hand() -> None:
    """Confidences 0.52, 0.53 (one of two won) and 0.93, 0.94 (both won), bins of width 0.05:
    (|0.525 - 0.5| + |0.935 - 1|) / 2 = 0.045. Tenths of the weight hold one comparison each:
    (|0.52 - 1| + |0.53 - 0| + 0.07 + 0.06) / 4 = 0.285."""
    cases = [(0.52, True), (0.53, False), (0.93, True), (0.94, True)]
    outcomes = [
        outcome(f"p{p}", [math.log(p / (1 - p)), 0], [(0, 1) if won else (1, 0)])
        for p, won in cases
    ]
    found = values(measured(outcomes))
    assert found[ECE_WIDTH] == pytest.approx(0.045, abs=1e-6)
    assert found[ECE_MASS] == pytest.approx(0.285, abs=1e-6)
    assert found["over-confidence"] == pytest.approx((0.52 + 0.53 + 0.93 + 0.94 - 3) / 4, abs=1e-6)


def test_bins_are_those_of_scikit_learn() -> None:
    """Its 20 bins on [0, 1] are our ten on [1/2, 1]; its quantiles are our tenths."""
    margin_C = normal_margins(1000, 3)
    outcomes = judged(margin_C, 1.0, seed=4)
    size_C = np.abs(np.float32(margin_C).astype(float))
    has_won = [
        (o.group.comparisons[0].better == 0) == (m > 0)
        for o, m in zip(outcomes, margin_C, strict=True)
    ]
    confidence_C = 1 / (1 + np.exp(-size_C))
    found = measured(outcomes)
    for bins, strategy, number in (
        (found.equal_width, "uniform", 20),
        (found.equal_mass, "quantile", 10),
    ):
        observed, predicted = calibration_curve(
            has_won, confidence_C, n_bins=number, strategy=strategy
        )
        assert [b.observed for b in bins] == pytest.approx(observed.tolist())
        assert [b.predicted for b in bins] == pytest.approx(predicted.tolist())
        apart = sum(b.num_comparisons * abs(b.predicted - b.observed) for b in bins) / 1000
        name = ECE_WIDTH if strategy == "uniform" else ECE_MASS
        assert found.measures[name].value.value == pytest.approx(apart)
        for b in bins:
            assert (b.low, b.high) == pytest.approx(wilson(b.observed, b.num_comparisons), abs=1e-9)
    assert [b.num_comparisons for b in found.equal_mass] == [100] * 10


def test_equal_rewards_are_counted_and_have_no_predicted_winner() -> None:
    """Beside a sure and right pair (0.9): over-confidence -0.1 of it alone; the likelihood has the
    tie at log 2."""
    sure = outcome("a", [math.log(9), 0], [(0, 1)])
    tie = outcome("b", [1, 1], [(0, 1)])
    found = measured([sure, tie])
    assert (found.num_comparisons, found.num_ties) == (2, 1)
    assert values(found)["over-confidence"] == pytest.approx(-0.1, abs=1e-6)
    assert values(found)[NLL] == pytest.approx((math.log(2) - math.log(0.9)) / 2, abs=1e-6)
    assert "1 of 2 comparisons have equal rewards" in found.sentence
    assert sum(b.num_comparisons for b in found.equal_width) == 1
    assert reliability([tie], 1.0) is None


def test_each_prompt_weighs_the_same_and_in_it_weights_count() -> None:
    """Prompt a has three comparisons of weights 2, 1, 1, prompt b one: the mean over prompts of
    their weighted means. Nine copies of b's comparison change nothing, nor does one without a
    weight."""
    weighted = [Comparison(0, 1, weight=2.0), Comparison(2, 0), Comparison(1, 2)]
    idle = Comparison(2, 1, weight=0.0)
    a = outcome("a", [1, 0, -1], [*weighted, idle])
    b = outcome("b", [0, 2], [(0, 1)])
    by_hand = np.average([-math.log(s(1)), -math.log(s(-2)), -math.log(s(1))], weights=[2, 1, 1])
    expected = (by_hand - math.log(s(-2))) / 2
    copied = replace(b, group=replace(b.group, comparisons=b.group.comparisons * 9))
    for second in (b, copied):
        found = values(measured([a, second]))
        assert found[NLL] == pytest.approx(expected, abs=1e-6)
        assert found[NLL] == pytest.approx(evaluate_outcomes([a, second])["loss"].value, abs=1e-6)
        over = (np.average([s(1) - 1, s(2) - 0, s(1) - 1], weights=[2, 1, 1]) + s(2)) / 2
        assert found["over-confidence"] == pytest.approx(over, abs=1e-6)


def test_temperature_and_scale_of_rewards_are_one() -> None:
    outcomes = ranked(60, 1.0, 1)
    scaled = [replace(o, reward_N=o.reward_N * 4) for o in outcomes]
    assert values(measured(scaled, 4.0)) == pytest.approx(values(measured(outcomes)))


def test_a_calibrated_model_lies_inside_its_null() -> None:
    """100 draws of 300 pairs from the model's own probabilities at T = 5. Each exceeds its 95th
    percentile in 1 of 20, so that fewer than 90 inside have a probability of 1 %."""
    inside = sum(
        measured(judged(normal_margins(300, seed, 10), 5.0, seed), 5.0).verdict
        == "not distinguishable from calibrated"
        for seed in range(100)
    )
    assert inside >= 90


def test_the_verdict_names_what_is_wrong() -> None:
    """The same data with T = 1 (five times too sure), T = 25 (not sure enough)."""
    outcomes = judged(normal_margins(300, 0, 10), 5.0, 0)
    sure = measured(outcomes, 1.0)
    assert sure.verdict == "over-confident"
    assert measured(outcomes, 25.0).verdict == "under-confident"
    assert sure.measures[ECE_WIDTH].is_beyond
    sentence = sure.sentence
    assert sentence.startswith("Over-confident, by 1")
    assert "calibrated model with these margins" in sentence


def test_too_sure_here_and_not_sure_enough_there_is_off() -> None:
    """Half of the pairs are said to be won in 0.6 and are won always, half in 0.99 and are won in
    0.6: the two cancel in the mean."""
    sure, unsure = math.log(99), math.log(1.5)
    outcomes = [outcome(f"u{i}", [unsure, 0], [(0, 1)]) for i in range(100)]
    outcomes += [outcome(f"s{i}", [sure, 0], [(0, 1) if i % 5 < 3 else (1, 0)]) for i in range(100)]
    assert measured(outcomes).verdict == "off"


def test_the_null_is_what_repeated_draws_show() -> None:
    """Mean and 95th percentile of the error of 400 fresh draws of pairs, computed by bins made
    here; Monte-Carlo error of the percentile about 0.004."""
    margin_C = normal_margins(200, 5)
    found = measured(judged(margin_C, 1.0, 6)).measures[ECE_WIDTH]
    dice = np.random.default_rng(9)
    confidence_C = 1 / (1 + np.exp(-np.abs(margin_C)))
    bin_C = np.minimum(((confidence_C - 0.5) * 20).astype(int), 9)
    errors = []
    for _ in range(400):
        excess_C = confidence_C - (dice.random(200) < confidence_C)
        errors.append(np.abs(np.bincount(bin_C, weights=excess_C)).sum() / 200)
    assert found.null_mean == pytest.approx(np.mean(errors), abs=0.004)
    assert found.null_high == pytest.approx(np.quantile(errors, 0.95), abs=0.01)


def test_a_calibrated_model_of_whole_rankings_lies_inside_its_null() -> None:
    """Six comparisons to a prompt, all from one ranking: 5 or fewer of 30 outside has a
    probability of 99.7 %."""
    inside = [
        not measured(ranked(100, 1.0, seed)).measures[ECE_MASS].is_beyond for seed in range(30)
    ]
    assert sum(inside) >= 25


def test_simulated_labels_have_the_models_probability_as_their_mean() -> None:
    """Three rewards, four comparisons: two sure labels, one of 0.9 that p = 0.73 can be drawn for,
    one of 0.6 that it cannot. 4,000 draws: standard error at most 0.008."""
    comparisons = [
        Comparison(0, 1),
        Comparison(2, 0),
        Comparison(0, 1, probability=0.9),
        Comparison(0, 1, probability=0.6),
    ]
    margins = margins_of([outcome("p", [1, 0, -0.5], comparisons)], 1.0, "half")
    random = np.random.default_rng(0)
    label_BC = np.array([simulated_labels(margins, random) for _ in range(4000)])
    assert label_BC.mean(axis=0) == pytest.approx([s(1), s(-1.5), s(1), s(1)], abs=0.032)
    assert np.unique(label_BC[:, 0]).tolist() == [0, 1]
    assert np.unique(label_BC[:, 2]) == pytest.approx([0.1, 0.9])
    assert np.unique(label_BC[:, 3]) == pytest.approx([s(1)])
    # A pair that is compared twice is judged twice.
    assert 0.01 < np.mean((label_BC[:, 0] > 0.5) != (label_BC[:, 2] > 0.5)) < 0.9


def test_simulated_labels_of_a_prompt_are_one_ranking() -> None:
    """Never a > b > c > a; coins would do that in a quarter of the draws with equal rewards."""
    margins = margins_of([outcome("p", [0, 0, 0], [(0, 1), (1, 2), (2, 0)])], 1.0, "half")
    random = np.random.default_rng(1)
    wins = [int(simulated_labels(margins, random).sum()) for _ in range(300)]
    assert set(wins) == {1, 2}


def test_prompts_of_one_cluster_do_not_narrow_the_intervals() -> None:
    """Each pair ten times under one opening is ten times one fact."""
    outcomes = judged(normal_margins(60, 2), 1.0, 3)
    once = measured(outcomes)
    repeated = measured([o for o in outcomes for _ in range(10)])
    assert values(repeated) == pytest.approx(values(once))
    for b, many in zip(once.equal_mass, repeated.equal_mass, strict=True):
        assert (many.low, many.high) == pytest.approx((b.low, b.high), abs=0.05)
    for name in (NLL, ECE_MASS):
        narrow, wide = repeated.measures[name].value, once.measures[name].value
        assert narrow.high - narrow.low == pytest.approx(wide.high - wide.low, rel=0.1)


def test_the_order_of_responses_changes_nothing() -> None:
    outcomes = ranked(50, 1.0, 4)
    turned = []
    for o in outcomes:
        swapped = [replace(c, better=3 - c.better, worse=3 - c.worse) for c in o.group.comparisons]
        turned.append(outcome(o.group.group.prompt[0].content, o.reward_N[::-1].tolist(), swapped))
    assert values(measured(turned)) == pytest.approx(values(measured(outcomes)))


def test_a_planted_scale_of_5_is_recovered_within_10_percent() -> None:
    """n = 3,000; the standard error of log T is 1 / sqrt(3000 * 0.34) = 0.031, so that 10 % is
    three of them."""
    outcomes = judged(normal_margins(3000, 0, 10), 5.0, 0)
    found = temperature_estimate(outcomes)
    assert found.value == pytest.approx(5.0, rel=0.1)
    assert found.value == fit_temperature(outcomes)
    assert found.n == 3000
    assert math.log(found.high / found.low) == pytest.approx(2 * 1.96 * 0.031, rel=0.25)


def test_the_interval_covers_a_planted_scale_of_5_at_300() -> None:
    """In about 95 of 100; 88 or fewer have a probability of 0.4 %."""
    covered = 0
    for seed in range(100):
        found = temperature_estimate(judged(normal_margins(300, seed, 10), 5.0, seed))
        covered += found.low <= 5.0 <= found.high
        assert found.low < found.value < found.high < 20
    assert covered >= 89


def test_the_interval_is_that_of_fits_of_resampled_clusters() -> None:
    """The first resamples, fitted one by one; the interval is between the percentiles of all."""
    outcomes = ranked(40, 2.0, 3)
    by_cluster = sorted(outcomes, key=lambda o: o.cluster)
    times_BG = times_drawn(40, 1000, 0)
    fits = [
        fit_temperature([o for o, n in zip(by_cluster, row, strict=True) for _ in range(int(n))])
        for row in times_BG[:200]
    ]
    found = temperature_estimate(outcomes)
    low, high = np.quantile(fits, [0.025, 0.975])
    assert (math.log(found.low), math.log(found.high)) == pytest.approx(
        (math.log(low), math.log(high)), abs=0.08
    )


def test_margins_without_an_optimum_have_an_interval_up_to_the_bound() -> None:
    found = temperature_estimate([outcome(f"p{i}", [-2, 0], [(0, 1)]) for i in range(5)])
    assert is_at_bound(found.value)
    assert is_at_bound(found.high)


def test_halves_are_cooled_by_each_others_temperature() -> None:
    outcomes = judged(normal_margins(400, 1, 10), 5.0, 2)
    crossed = cross_fitted_temperature(outcomes)
    factors = [
        float(before.reward_N[0] / after.reward_N[0])
        for before, after in zip(outcomes, crossed.outcomes, strict=True)
    ]
    first, second = crossed.temperatures
    halves: dict[float, list[Outcome]] = {first: [], second: []}
    for o, factor in zip(outcomes, factors, strict=True):
        halves[min(halves, key=lambda t: abs(t - factor))].append(o)
        assert factor == pytest.approx(min(halves, key=lambda t: abs(t - factor)), rel=1e-5)
    assert fit_temperature(halves[second]) == first != second
    assert fit_temperature(halves[first]) == second
    assert crossed.num_prompts == (len(halves[second]), len(halves[first]))
    assert min(crossed.num_prompts) > 150
    assert not crossed.is_at_bound
    assert measured(outcomes).verdict == "over-confident"
    assert measured(crossed.outcomes).verdict == "not distinguishable from calibrated"


def test_a_temperature_judged_where_it_was_fitted_looks_better() -> None:
    """In the mean over 20 small sets of 30."""
    gains = []
    for seed in range(20):
        outcomes = judged(normal_margins(30, seed, 10), 5.0, seed)
        own = values(measured(outcomes, fit_temperature(outcomes)))[NLL]
        gains.append(values(measured(cross_fitted_temperature(outcomes).outcomes))[NLL] - own)
    assert np.mean(gains) > 0


def test_crossed_fits_call_a_calibrated_model_off_more_often_only_where_prompts_are_few() -> None:
    """Of 40 calibrated models: 7 with 30 prompts, whose fits are noise that the null leaves out;
    with 100 none. At 1 in 20 more than 5 of 40 have a probability of 1 %."""

    def called_off(num_prompts: int) -> int:
        return sum(
            measured(
                cross_fitted_temperature(
                    judged(normal_margins(num_prompts, seed, 10), 5.0, seed)
                ).outcomes
            ).verdict
            != "not distinguishable from calibrated"
            for seed in range(40)
        )

    assert called_off(100) <= 5 < called_off(30) <= 12


def test_prompts_of_one_opening_are_in_one_half_and_cannot_be_crossed() -> None:
    outcomes = [outcome("The same prompt", [m, 0], [(0, 1)]) for m in (1, 2, 3)]
    with pytest.raises(PalateError, match=r"1 prompt clusters are too few.*give more prompts"):
        cross_fitted_temperature(outcomes)

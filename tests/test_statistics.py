"""Intervals whose unit is the cluster, and the comparison model, against what is known by hand."""

import math
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from palate.statistics import Estimate, cluster_difference, cluster_mean
from palate.statistics.comparison_model import fit_comparison_model


def width(estimate: Estimate) -> float:
    return estimate.high - estimate.low


def labels(count: int) -> list[str]:
    return [f"cluster {i}" for i in range(count)]


def test_the_interval_of_a_fair_coin_is_that_of_the_binomial() -> None:
    """100 clusters of one, 50 ones: a resample holds Binomial(100, 1/2) ones, whose 2.5 % and
    97.5 % points are 40 and 60. 2,000 resamples may miss either by one step of 0.01."""
    estimate = cluster_mean([1.0] * 50 + [0.0] * 50, labels(100))
    assert (estimate.value, estimate.n) == (0.5, 100)
    assert estimate.low == pytest.approx(0.40, abs=0.0101)
    assert estimate.high == pytest.approx(0.60, abs=0.0101)


def test_duplicates_within_clusters_do_not_narrow_the_interval() -> None:
    """Ten copies of each observation are no new evidence; taken for new prompts they would narrow
    the interval by the square root of ten."""
    values = np.random.default_rng(0).random(60)
    once = cluster_mean(values, labels(60))
    copied = cluster_mean(np.repeat(values, 10), np.repeat(labels(60), 10).tolist())
    assert (copied.value, copied.low, copied.high) == pytest.approx(
        (once.value, once.low, once.high)
    )
    assert copied.n == 600
    pretended = cluster_mean(np.repeat(values, 10), labels(600))
    assert width(once) / width(pretended) == pytest.approx(math.sqrt(10), rel=0.1)


def test_clusters_of_uneven_size_have_the_variance_of_a_ratio() -> None:
    """With n_c observations of mean m_c in cluster c, the linearised variance of the mean m is
    sum (n_c (m_c - m))^2 / N^2, and the interval is about 2 x 1.96 standard deviations wide."""
    dice = np.random.default_rng(1)
    sizes = dice.integers(1, 12, size=300)
    effects = dice.normal(size=300)
    values = np.repeat(effects, sizes) + dice.normal(scale=0.1, size=sizes.sum())
    names = np.repeat(labels(300), sizes).tolist()
    estimate = cluster_mean(values, names)
    mean = values.mean()
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    deviations = np.add.reduceat(values - mean, starts)
    error = math.sqrt((deviations**2).sum()) / sizes.sum()
    assert estimate.value == pytest.approx(mean)
    assert width(estimate) == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """200 experiments, 40 clusters of 5 that share most of their noise. 95 % +- 3 standard errors
    of 200 tries, and a little less for the percentile method; singles would cover about half."""
    dice = np.random.default_rng(2)
    names = np.repeat(labels(40), 5).tolist()
    covered = pretended = 0
    for _ in range(200):
        values = np.repeat(dice.normal(size=40), 5) + 0.3 * dice.normal(size=200)
        estimate = cluster_mean(values, names)
        covered += estimate.low <= 0 <= estimate.high
        single = cluster_mean(values, labels(200))
        pretended += single.low <= 0 <= single.high
    assert 0.89 < covered / 200 < 0.99
    assert pretended / 200 < 0.75


def test_a_weight_is_that_many_observations() -> None:
    values, names = [1.0, 0.0, 0.5], ["a", "b", "c"]
    weighted = cluster_mean(values, names, weight_N=[2, 1, 3])
    repeated = cluster_mean([1, 1, 0, 0.5, 0.5, 0.5], ["a", "a", "b", "c", "c", "c"])
    assert weighted.value == pytest.approx(3.5 / 6)
    assert (weighted.low, weighted.high) == pytest.approx((repeated.low, repeated.high))


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 6)), min_size=2, max_size=30),
    st.floats(-3, 3),
    st.randoms(use_true_random=False),
)
def test_shifting_the_values_shifts_the_interval_and_their_order_does_not_matter(
    observations: list[tuple[float, int]], shift: float, dice: random.Random
) -> None:
    values = [value for value, _ in observations]
    names = [f"c{cluster}" for _, cluster in observations]
    plain = cluster_mean(values, names)
    assert plain.low <= plain.high
    moved = cluster_mean([value + shift for value in values], names)
    assert (moved.value, moved.low, moved.high) == pytest.approx(
        (plain.value + shift, plain.low + shift, plain.high + shift), abs=1e-9
    )
    dice.shuffle(observations)
    shuffled = cluster_mean([v for v, _ in observations], [f"c{c}" for _, c in observations])
    assert (shuffled.low, shuffled.high) == pytest.approx((plain.low, plain.high), abs=1e-9)


def test_a_paired_difference_cancels_what_both_share() -> None:
    """Both models find the same prompts hard (deviation 1) and differ by 0.1 +- 0.05 a prompt:
    the difference has standard error 0.05 / sqrt(400) = 0.0025, each mean alone 0.05."""
    dice = np.random.default_rng(3)
    hard = dice.normal(size=400)
    first = hard + 0.1 + 0.05 * dice.normal(size=400)
    difference = cluster_difference(first, hard, labels(400))
    assert difference.value == pytest.approx(0.1, abs=0.01)
    assert width(difference) == pytest.approx(2 * 1.96 * 0.0025, rel=0.15)
    assert difference.low > 0.08
    assert width(cluster_mean(hard, labels(400))) > 15 * width(difference)


def test_a_paired_difference_changes_its_sign_with_the_sides() -> None:
    dice = np.random.default_rng(4)
    first, second = dice.random(50), dice.random(50)
    names = [f"c{i % 10}" for i in range(50)]
    there = cluster_difference(first, second, names)
    back = cluster_difference(second, first, names)
    assert (back.value, back.low, back.high) == pytest.approx(
        (-there.value, -there.high, -there.low)
    )
    same = cluster_difference(first, first, names)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_tens_of_thousands_of_clusters_fit_into_little_memory() -> None:
    """All 2,000 resamples of 30,000 clusters at once would be 480 MB of numbers."""
    values = np.arange(30_000) % 2
    names = np.arange(30_000).astype(str).tolist()
    tracemalloc.start()
    estimate = cluster_mean(values, names)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 150e6
    assert width(estimate) == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(30_000), rel=0.1)


def test_one_cluster_says_nothing_about_the_next() -> None:
    estimate = cluster_mean([0.0, 1.0, 1.0], ["a", "a", "a"])
    assert estimate.value == pytest.approx(2 / 3)
    assert (estimate.low, estimate.high) == (-math.inf, math.inf)


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no observations"):
        cluster_mean([], [])
    with pytest.raises(ValueError, match="no observations"):
        cluster_mean([1.0], ["a"], weight_N=[0.0])


def test_the_same_seed_gives_the_same_interval_and_another_seed_a_near_one() -> None:
    values = np.random.default_rng(5).random(80)
    first = cluster_mean(values, labels(80), seed=1)
    assert cluster_mean(values, labels(80), seed=1) == first
    other = cluster_mean(values, labels(80), seed=2)
    assert other.low != first.low
    assert other.low == pytest.approx(first.low, abs=0.01)


def test_an_estimate_prints_its_interval_and_its_n() -> None:
    assert str(Estimate(0.6172, 0.58, 0.651, 1599)) == "0.617 [0.580, 0.651] (n = 1599)"


def test_wins_and_losses_fit_the_log_of_their_ratio() -> None:
    """One feature, +1 in 30 wins and -1 in 10 losses. 30 s(-w) = 10 s(w) gives e^w = 3."""
    difference = np.array([[1.0]] * 30 + [[-1.0]] * 10)
    assert fit_comparison_model(difference, l2=1e-9)[0] == pytest.approx(math.log(3), abs=1e-4)
    weighted = fit_comparison_model(np.array([[1.0], [-1.0]]), np.array([30.0, 10.0]), l2=1e-9)
    assert weighted[0] == pytest.approx(math.log(3), abs=1e-4)


def test_the_penalty_stops_a_single_win_where_it_balances() -> None:
    """One win with difference 1: s(-w) = l2 w. For l2 = s(-1) = 0.2689 the weight is exactly 1."""
    assert fit_comparison_model(np.array([[1.0]]), l2=float(expit(-1.0)))[0] == pytest.approx(
        1, abs=1e-4
    )


def test_features_that_never_meet_are_fitted_as_if_alone() -> None:
    """Feature 0 wins 3 of 4, feature 1 wins 1 of 5, never in one comparison: ln 3 and ln(1/4)."""
    rows = [[1, 0]] * 3 + [[-1, 0]] + [[0, 1]] + [[0, -1]] * 4
    fitted = fit_comparison_model(np.array(rows, dtype=float), l2=1e-9)
    assert fitted == pytest.approx([math.log(3), -math.log(4)], abs=1e-3)


def test_swapping_all_sides_turns_every_sign() -> None:
    difference = np.random.default_rng(6).normal(size=(50, 4))
    assert fit_comparison_model(-difference) == pytest.approx(
        -fit_comparison_model(difference), abs=1e-5
    )


def test_the_gradient_vanishes_at_the_optimum() -> None:
    """d/dw sum c log s(w x) - l2 w^2 / 2 = sum c x s(-w x) - l2 w."""
    dice = np.random.default_rng(7)
    difference, weight = dice.normal(size=(200, 6)) + 0.3, dice.random(200)
    fitted = fit_comparison_model(difference, weight, l2=2.0)
    gradient = difference.T @ (weight * expit(-difference @ fitted)) - 2.0 * fitted
    assert np.abs(gradient).max() < 1e-3
    assert np.abs(fitted).min() > 0


def test_far_larger_features_do_not_overflow() -> None:
    fitted = fit_comparison_model(np.array([[1e4], [1e4], [-1e4]]))
    assert np.isfinite(fitted).all()
    assert fitted[0] * 1e4 == pytest.approx(math.log(2), abs=1e-2)

"""Agreement beyond chance: published examples, tables worked by hand, what changes nothing, and
intervals that hold what they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from palate.statistics import cluster_mean
from palate.statistics.agreement import (
    MAX_VALUES,
    Level,
    Weights,
    cohen_kappa,
    count_values,
    fleiss_kappa,
    krippendorff_alpha,
)
from palate.statistics.resampling import MAX_UNITS, ratio_of_sums

NONE = 0
CANONICAL = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3),
    (NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE),
)
"""Four observers, twelve units, judgements missing: Krippendorff 2011, Computing Krippendorff's
Alpha-Reliability, section C to E, with 0.743, 0.815 and 0.849."""
FLEISS = (
    (0, 0, 0, 0, 14),
    (0, 2, 6, 4, 2),
    (0, 0, 3, 5, 6),
    (0, 3, 9, 2, 0),
    (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0),
    (3, 2, 6, 3, 0),
    (2, 5, 3, 2, 2),
    (6, 5, 2, 1, 0),
    (0, 2, 2, 3, 7),
)
"""Ten units, fourteen raters, five values: the example of most textbooks, kappa 0.210."""


def canonical() -> tuple[np.ndarray, np.ndarray]:
    table = np.array(CANONICAL)
    _, unit = np.nonzero(table)
    return count_values(table[table > 0], unit)


@pytest.mark.parametrize(
    ("level", "expected"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)]
)
def test_alpha_of_krippendorffs_own_example(level: Level, expected: float) -> None:
    alpha = krippendorff_alpha(*canonical(), level)
    assert alpha.value == pytest.approx(expected, abs=5e-4)
    # 41 judgements, one of which stands alone.
    assert alpha.n == 40
    assert alpha.low < alpha.value < alpha.high


def test_alpha_of_two_units_by_hand() -> None:
    """Units {a, a} and {a, b}: o_aa = 2, o_ab = o_ba = 1, so n_a = 3, n_b = 1, n = 4.

    alpha = 1 - (n - 1) * 2 o_ab / (2 n_a n_b) = 1 - 3 * 2 / 6 = 0: what chance gives.
    """
    alpha = krippendorff_alpha(np.array([[2, 0], [1, 1]]), np.array([0, 1]))
    assert alpha.value == pytest.approx(0)


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5).map(tuple), min_size=3),
    st.floats(0.1, 9),
    st.floats(-9, 9),
)
def test_what_changes_no_alpha(counts: list[tuple[int, ...]], scale: float, shift: float) -> None:
    """Names for nominal values, any rising change of ordinal ones, scale and shift of others."""
    count_UV, values_V = np.array(counts), np.arange(5.0)
    if (count_UV.sum(axis=1) < 2).all():
        return

    def alpha(level: Level, counts: np.ndarray, values: np.ndarray) -> float:
        return krippendorff_alpha(counts, values, level).value

    for level, changed, values in (
        ("nominal", count_UV[:, ::-1], values_V),
        ("ordinal", count_UV, np.exp(values_V)),
        ("interval", count_UV, scale * values_V + shift),
        ("interval", count_UV[:, ::-1], -values_V[::-1]),
    ):
        assert alpha(level, changed, values) == pytest.approx(  # type: ignore[arg-type]
            alpha(level, count_UV, values_V),
            nan_ok=True,
            abs=1e-9,  # type: ignore[arg-type]
        )


def test_alpha_is_one_when_all_agree_and_unknown_when_all_say_one_thing() -> None:
    assert krippendorff_alpha(np.array([[3, 0], [0, 2]]), np.arange(2)).value == 1
    assert math.isnan(krippendorff_alpha(np.array([[3, 0], [2, 0]]), np.arange(2)).value)


def test_alpha_refuses_what_it_can_not_count() -> None:
    with pytest.raises(ValueError, match="no unit has two judgements"):
        krippendorff_alpha(np.eye(3, dtype=int), np.arange(3))
    too_many = MAX_VALUES + 1
    with pytest.raises(ValueError, match=f"{too_many} different values"):
        krippendorff_alpha(np.ones((2, too_many), dtype=int), np.arange(too_many))


def test_fleiss_kappa_of_the_textbooks() -> None:
    kappa = fleiss_kappa(np.array(FLEISS))
    assert kappa.value == pytest.approx(0.210, abs=5e-4)
    assert kappa.n == 10
    with pytest.raises(ValueError, match="same number of raters"):
        fleiss_kappa(np.array([[2, 0], [1, 0]]))
    with pytest.raises(ValueError, match="two or more"):
        fleiss_kappa(np.array([[1, 0], [1, 0]]))


def test_fleiss_kappa_is_alpha_but_for_the_size_of_the_sample() -> None:
    """Alpha takes chance pairs without replacement: 1 - alpha = (1 - kappa) (n - 1) / n."""
    counts = np.array(FLEISS)
    number = counts.sum()
    alpha = krippendorff_alpha(counts, np.arange(5)).value
    kappa = fleiss_kappa(counts).value
    assert 1 - alpha == pytest.approx((1 - kappa) * (number - 1) / number)


def judged(table: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Two people's values of a table of counts."""
    first, second = np.indices((len(table), len(table)))
    counts = np.array(table).ravel()
    return np.repeat(first.ravel(), counts), np.repeat(second.ravel(), counts)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("none", 1 - 8 / 19.2), ("linear", 1 - 8 / 24), ("quadratic", 1 - 8 / 33.6)],
)
def test_cohens_kappa_by_hand(weights: Weights, expected: float) -> None:
    """Rows and columns sum to 12, 12, 6 of 30, and 8 judgements are one step apart.

    By chance differ 30 - (12 12 + 12 12 + 6 6) / 30 = 19.2; steps apart are
    2 (12 12 + 2 * 12 6 + 12 6) / 30 = 24, their squares 2 (12 12 + 4 * 12 6 + 12 6) / 30 = 33.6.
    """
    kappa = cohen_kappa(*judged([[10, 2, 0], [2, 8, 2], [0, 2, 4]]), weights)
    assert kappa.value == pytest.approx(expected)
    assert kappa.n == 30


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=40),
    st.sampled_from(["none", "linear", "quadratic"]),
)
def test_cohens_kappa_is_scikit_learns(pairs: list[tuple[int, int]], weights: Weights) -> None:
    first, second = np.array(pairs).T
    if len(set(first) | set(second)) < 2:
        return
    theirs = cohen_kappa_score(first, second, weights=None if weights == "none" else weights)
    assert cohen_kappa(first, second, weights).value == pytest.approx(theirs, nan_ok=True, abs=1e-9)
    assert cohen_kappa(second, first, weights).value == pytest.approx(theirs, nan_ok=True, abs=1e-9)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Both people say the truth with probability 0.8 and the other of two values otherwise: they
    agree in 0.68, by chance in 0.5, kappa = alpha = 0.36. Of 100 intervals 95 should hold it; 87 or
    fewer have probability 0.001."""
    generator = np.random.default_rng(0)
    held = np.zeros(2)
    for seed in range(100):
        truth = generator.integers(0, 2, 300)
        first, second = (truth ^ (generator.random(300) < 0.2) for _ in range(2))
        counts = np.stack([first + second, 2 - first - second], axis=1)
        for place, found in enumerate(
            (cohen_kappa(first, second, seed=seed), krippendorff_alpha(counts, np.arange(2)))
        ):
            held[place] += found.low <= 0.36 <= found.high
    assert (held > 87).all()
    assert (held < 100).all()


def test_copies_within_a_cluster_make_no_interval_narrower() -> None:
    generator = np.random.default_rng(1)
    first = generator.integers(0, 3, 200)
    second = np.where(generator.random(200) < 0.7, first, generator.integers(0, 3, 200))
    once = cohen_kappa(first, second)
    cluster = np.repeat(np.arange(200), 9)
    nine = cohen_kappa(np.repeat(first, 9), np.repeat(second, 9), cluster_J=cluster)
    apart = cohen_kappa(np.repeat(first, 9), np.repeat(second, 9))
    assert nine.value == pytest.approx(once.value)
    assert (nine.low, nine.high) == pytest.approx((once.low, once.high))
    assert (apart.high - apart.low) / (nine.high - nine.low) == pytest.approx(1 / 3, rel=0.15)


def test_one_cluster_has_no_interval() -> None:
    alpha = krippendorff_alpha(
        np.array([[2, 0], [1, 1], [0, 2]]), np.arange(2), cluster_U=np.zeros(3)
    )
    assert (alpha.low, alpha.high) == (-math.inf, math.inf)


def test_random_groups_of_many_clusters_have_the_width_of_the_clusters() -> None:
    """A share p of 4 MAX_UNITS clusters: 1.96 sqrt(p (1 - p) / n) to each side."""
    number = 4 * MAX_UNITS
    won = (np.random.default_rng(2).random(number) < 0.3).astype(float)
    share = ratio_of_sums(won, np.ones(number), np.arange(number))
    half = 1.96 * math.sqrt(share.value * (1 - share.value) / number)
    assert share.value == won.mean()
    assert share.high - share.value == pytest.approx(half, rel=0.1)
    assert share.value - share.low == pytest.approx(half, rel=0.1)


def test_a_ratio_to_ones_is_the_clustered_mean() -> None:
    generator = np.random.default_rng(3)
    values, clusters = generator.random(300), generator.integers(0, 80, 300)
    ratio = ratio_of_sums(values, np.ones(300), clusters)
    mean = cluster_mean(values, [str(cluster) for cluster in clusters])
    assert ratio.value == pytest.approx(mean.value)
    assert (ratio.low, ratio.high) == pytest.approx((mean.low, mean.high), abs=0.003)
    assert ratio.n == 300
    with pytest.raises(ValueError, match="a ratio to nothing"):
        ratio_of_sums(values, np.zeros(300), clusters)

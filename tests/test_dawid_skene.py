"""One-coin Dawid-Skene: posteriors by hand, reliabilities that are known, and when none can be."""

from itertools import product

import numpy as np
import pytest

from palate.statistics.dawid_skene import (
    Judged,
    Reliabilities,
    dawid_skene,
    determined,
    reliability_intervals,
)


def simulated(
    reliability_A: np.ndarray, num_items: int, per_item: int, num_labels: int, seed: int
) -> Judged:
    """Items with true labels, each judged by some annotators drawn at random."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, num_labels, num_items)
    drawn = np.argsort(generator.random((num_items, len(reliability_A))), axis=1)[:, :per_item]
    right = generator.random(drawn.shape) < reliability_A[drawn]
    wrong = (truth[:, None] + generator.integers(1, num_labels, drawn.shape)) % num_labels
    return Judged(
        label_J=np.where(right, truth[:, None], wrong).ravel(),
        item_J=np.repeat(np.arange(num_items), per_item),
        annotator_J=drawn.ravel(),
        num_labels=num_labels,
        num_items=num_items,
        num_annotators=len(reliability_A),
    )


def test_one_reliable_vote_outweighs_two_that_are_not_by_hand() -> None:
    """Right in 0.9, 0.6 and 0.6; the first says 1, the others 0. Odds of 1, both labels alike
    before: (9 / 1) (4 / 6) (4 / 6) = 4, so its probability is 0.8."""
    judged = Judged(
        label_J=np.array([1, 0, 0]),
        item_J=np.zeros(3, dtype=int),
        annotator_J=np.arange(3),
        num_labels=2,
        num_items=1,
        num_annotators=3,
    )
    start = Reliabilities(
        reliability_A=np.array([0.9, 0.6, 0.6]),
        posterior_IK=np.array([[0.5, 0.5]]),
        prior_K=np.array([0.5, 0.5]),
        num_iterations=0,
    )
    once = dawid_skene(judged, start=start, tolerance=1.0)
    assert once.num_iterations == 1
    assert once.posterior_IK[0] == pytest.approx([0.2, 0.8])
    # What each said is right with these probabilities, beside one and a half of two before.
    assert once.reliability_A == pytest.approx((np.array([0.8, 0.2, 0.2]) + 1.5) / 3)


@pytest.mark.parametrize("num_labels", [2, 3])
def test_expected_shares_of_all_patterns_give_the_reliabilities_back(num_labels: int) -> None:
    """Each pattern of three votes as often as the model says: the maximum is the truth, up to two
    pseudo-judgements in a million."""
    reliability_A = np.array([0.9, 0.75, 0.6])
    patterns = list(product(range(num_labels), repeat=3))
    weights = []
    for pattern in patterns:
        of_label = [
            np.prod(
                [
                    p if vote == label else (1 - p) / (num_labels - 1)
                    for vote, p in zip(pattern, reliability_A, strict=True)
                ]
            )
            for label in range(num_labels)
        ]
        weights.append(1e6 * np.mean(of_label))
    judged = Judged(
        label_J=np.array(patterns).ravel(),
        item_J=np.repeat(np.arange(len(patterns)), 3),
        annotator_J=np.tile(np.arange(3), len(patterns)),
        num_labels=num_labels,
        num_items=len(patterns),
        num_annotators=3,
    )
    found = dawid_skene(judged, np.array(weights), tolerance=1e-9)
    assert found.reliability_A == pytest.approx(reliability_A, abs=1e-3)
    assert found.prior_K == pytest.approx(np.full(num_labels, 1 / num_labels), abs=1e-3)


@pytest.mark.parametrize("num_labels", [2, 3])
def test_drawn_votes_show_how_reliable_each_annotator_is(num_labels: int) -> None:
    """One of the ten is wrong more often than right."""
    reliability_A = np.array([0.35, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
    judged = simulated(reliability_A, 3000, 5, num_labels, seed=0)
    assert dawid_skene(judged).reliability_A == pytest.approx(reliability_A, abs=0.05)


def test_the_order_of_annotators_items_and_labels_does_not_matter() -> None:
    judged = simulated(np.array([0.6, 0.7, 0.8, 0.9]), 200, 3, 3, seed=1)
    turned = Judged(
        label_J=2 - judged.label_J[::-1],
        item_J=199 - judged.item_J[::-1],
        annotator_J=3 - judged.annotator_J[::-1],
        num_labels=3,
        num_items=200,
        num_annotators=4,
    )
    one, other = dawid_skene(judged), dawid_skene(turned)
    assert other.reliability_A[::-1] == pytest.approx(one.reliability_A, abs=1e-6)
    assert other.posterior_IK[::-1, ::-1] == pytest.approx(one.posterior_IK, abs=1e-4)


def test_an_item_of_weight_three_is_three_items() -> None:
    judged = simulated(np.array([0.6, 0.7, 0.9]), 60, 3, 2, seed=2)
    weights = np.arange(60) % 3 + 1.0
    repeats = np.repeat(np.arange(60), weights.astype(int))
    parts = [np.flatnonzero(judged.item_J == item) for item in repeats]
    repeated = Judged(
        label_J=np.concatenate([judged.label_J[part] for part in parts]),
        item_J=np.repeat(np.arange(len(repeats)), 3),
        annotator_J=np.concatenate([judged.annotator_J[part] for part in parts]),
        num_labels=2,
        num_items=len(repeats),
        num_annotators=3,
    )
    assert dawid_skene(judged, weights).reliability_A == pytest.approx(
        dawid_skene(repeated).reliability_A, abs=1e-6
    )


def test_intervals_hold_the_reliabilities_as_often_as_they_say() -> None:
    """90 intervals, of which 85.5 should; those of one data set hang together, so that the bounds
    are wide."""
    reliability_A = np.array([0.6, 0.65, 0.7, 0.8, 0.85, 0.9])
    held = 0
    for seed in range(15):
        judged = simulated(reliability_A, 400, 3, 2, seed)
        low_A, high_A = reliability_intervals(judged, dawid_skene(judged), np.arange(400), seed)
        held += int(((low_A <= reliability_A) & (reliability_A <= high_A)).sum())
    assert 78 <= held < 90


def test_copied_items_in_one_cluster_make_no_interval_narrower() -> None:
    judged = simulated(np.array([0.7, 0.7, 0.8, 0.8, 0.9]), 200, 5, 2, seed=3)
    copies = Judged(
        label_J=np.tile(judged.label_J, 4),
        item_J=np.concatenate([judged.item_J + 200 * copy for copy in range(4)]),
        annotator_J=np.tile(judged.annotator_J, 4),
        num_labels=2,
        num_items=800,
        num_annotators=5,
    )
    found = dawid_skene(copies)
    clusters = np.tile(np.arange(200), 4)
    low_A, high_A = reliability_intervals(copies, found, clusters)
    low_once_A, high_once_A = reliability_intervals(judged, dawid_skene(judged), np.arange(200))
    apart = reliability_intervals(copies, found, np.arange(800))
    assert high_A - low_A == pytest.approx(high_once_A - low_once_A, rel=0.25)
    assert ((apart[1] - apart[0]) < 0.75 * (high_A - low_A)).all()


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["ab"], ""),
        (["ab", "bc"], ""),
        (["ab", "bc", "cd", "da"], ""),
        (["ab", "bc", "ca"], "abc"),
        (["abc"], "abc"),
        (["ab", "bc", "cd", "de", "ea"], "abcde"),
        (["abc", "cd"], "abcd"),
        (["abc", "de"], "abc"),
        (["abcde"], "abcde"),
        (["a", "b", "c"], ""),
    ],
)
def test_reliability_is_determined_where_overlaps_make_an_odd_ring(
    items: list[str], expected: str
) -> None:
    item_J = np.concatenate([[number] * len(who) for number, who in enumerate(items)])
    annotator_J = np.array(["abcde".index(name) for name in "".join(items)])
    known_A = determined(item_J.astype(int), annotator_J, 5)
    assert "".join(name for name, known in zip("abcde", known_A, strict=True) if known) == expected


def test_one_label_is_refused() -> None:
    judged = Judged(
        label_J=np.zeros(2, dtype=int),
        item_J=np.zeros(2, dtype=int),
        annotator_J=np.arange(2),
        num_labels=1,
        num_items=1,
        num_annotators=2,
    )
    with pytest.raises(ValueError, match="two labels or more"):
        dawid_skene(judged)

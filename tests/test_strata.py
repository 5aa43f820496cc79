"""Accuracy in parts of the data, at equal length, and against each annotator's votes."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from palate.evaluation.metrics import evaluate_outcomes
from palate.evaluation.outcomes import Outcome
from palate.evaluation.strata import (
    accuracy_at_equal_length,
    accuracy_by,
    accuracy_by_annotator,
    by_margin,
    strata,
)
from palate.preferences import Comparison, Message, Vote
from tests.test_evaluation import outcome, simulated


def with_votes(one: Outcome, votes: Sequence[Vote]) -> Outcome:
    return replace(
        one, group=replace(one.group, group=replace(one.group.group, votes=tuple(votes)))
    )


def test_the_gap_of_longer_and_shorter_by_hand() -> None:
    """Right in 2 of 3 where the better answer is longer, tied in 1 of 1 where it is shorter:
    2/3 - 1/2 = 1/6; the fifth prompt has answers of one length."""
    long, short = "a long answer", "short"
    metrics = evaluate_outcomes(
        [
            outcome("1", [1, 0], [(0, 1)], [long, short]),
            outcome("2", [1, 0], [(0, 1)], [long, short]),
            outcome("3", [0, 1], [(0, 1)], [long, short]),
            outcome("4", [1, 1], [(0, 1)], [short, long]),
            outcome("5", [1, 0], [(0, 1)], ["same", "size"]),
        ]
    )
    gap = metrics["accuracy, longer minus shorter"]
    assert gap.value == pytest.approx(1 / 6)
    assert gap.n == 4
    assert metrics["tied rewards"].value == pytest.approx(1 / 5)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_rule_that_reads_length_has_a_gap_of_one(sign: int) -> None:
    """In every resample too."""
    outcomes = [
        replace(o, reward_N=sign * np.array([len(r.text) for r in o.group.group.responses]))
        for o in simulated(40, 2)
    ]
    gap = evaluate_outcomes(outcomes)["accuracy, longer minus shorter"]
    assert (gap.value, gap.low, gap.high) == pytest.approx((sign, sign, sign))


def length_world(number: int, level: float, slope: float, seed: int) -> list[Outcome]:
    """Pairs decided rightly with logit level + slope tanh(d / rms d); the better is mostly
    longer, so that the plain accuracy is far from s(level)."""
    dice = np.random.default_rng(seed)
    gap_C = np.clip(np.round(dice.normal(20, 30, size=number)), -99, 99)
    logit_C = level + slope * np.tanh(gap_C / np.sqrt(np.mean(gap_C**2)))
    right_C = dice.random(number) < 1 / (1 + np.exp(-logit_C))
    return [
        outcome(f"p{i}", [float(right), 0.5], [(0, 1)], ["x" * int(100 + gap), "x" * 100])
        for i, (gap, right) in enumerate(zip(gap_C, right_C, strict=True))
    ]


def test_accuracy_at_equal_length_is_the_logistic_regression_of_scikit_learn() -> None:
    """With some ties, which are a sample of weight 1/2 on each side."""
    outcomes = length_world(300, 0.5, 1.5, 0)
    outcomes = [replace(o, reward_N=np.zeros(2)) if i < 10 else o for i, o in enumerate(outcomes)]
    gap_C = np.array([len(o.group.group.responses[0].text) - 100.0 for o in outcomes])
    feature_C1 = np.tanh(gap_C / np.sqrt(np.mean(gap_C**2)))[:, None]
    right_C = np.array([(np.sign(o.reward_N[0] - o.reward_N[1]) + 1) / 2 for o in outcomes])
    model = LogisticRegression(C=1e9, tol=1e-10, max_iter=1000).fit(
        np.concatenate([feature_C1, feature_C1]),
        np.repeat([1, 0], 300),
        np.concatenate([right_C, 1 - right_C]),
    )
    found = accuracy_at_equal_length(outcomes)
    assert found is not None
    assert logit(found.value) == pytest.approx(model.intercept_[0], abs=1e-3)


def test_accuracy_at_equal_length_recovers_what_was_planted_and_its_interval_covers_it() -> None:
    """s(0.5) = 0.622, where the plain accuracy is near 0.75; 95 of 100 are expected, 88 or fewer
    have a probability of 0.4 %."""
    covered = 0
    for seed in range(100):
        found = accuracy_at_equal_length(length_world(300, 0.5, 1.5, seed))
        assert found is not None
        covered += found.low <= 1 / (1 + math.exp(-0.5)) <= found.high
    assert covered >= 89


def test_repeated_prompts_do_not_narrow_the_interval_at_equal_length() -> None:
    outcomes = length_world(100, 0.5, 1.0, 1)
    once = accuracy_at_equal_length(outcomes)
    repeated = accuracy_at_equal_length([o for o in outcomes for _ in range(5)])
    assert once is not None
    assert repeated is not None
    assert (repeated.low, repeated.value, repeated.high) == pytest.approx(
        (once.low, once.value, once.high), abs=1e-4
    )


def test_without_unlike_lengths_or_with_one_cluster_nothing_is_made_up() -> None:
    same = outcome("1", [1, 0], [(0, 1)], ["same", "size"])
    assert accuracy_at_equal_length([same]) is None
    assert accuracy_at_equal_length([outcome("1", [1, 0], [Comparison(0, 1, tie=1.0)])]) is None
    lone = accuracy_at_equal_length([outcome("1", [1, 0], [(0, 1)], ["long one", "short"])])
    assert lone is not None
    assert (lone.low, lone.high) == (-math.inf, math.inf)


def test_quarters_of_the_margin_by_hand() -> None:
    """Margins 1 to 8, wrong at 1, 2 and 3: quarters (0, 1/2, 1, 1); the sizes' quartiles are 2.75,
    4.5 and 6.25."""
    outcomes = [
        outcome(f"p{m}", [m, 0], [(1, 0) if m <= 3 else (0, 1)], ["a", "b"]) for m in range(1, 9)
    ]
    found = accuracy_by(outcomes, by_margin(outcomes))
    assert [(e.value, e.n) for e in found.values()] == [(0, 2), (0.5, 2), (1, 2), (1, 2)]
    assert next(iter(found)) == "1, least sure"
    shuffled = accuracy_by(outcomes[::-1], by_margin(outcomes[::-1]))
    assert {k: v.value for k, v in shuffled.items()} == {k: v.value for k, v in found.items()}


def test_divisions_with_several_parts_are_shown() -> None:
    """Two sources, two classes of turns; texts of one length have no division by length."""
    one = outcome("a", [1, 0], [(0, 1)], ["ab", "cd"])
    long_talk = tuple(Message(role, "b") for role in ("user", "assistant", "user"))
    group = replace(one.group.group, prompt=long_talk, source="other")
    two = Outcome(replace(one.group, group=group), np.array([0.0, 0.5]))
    found = strata([one, two])
    assert set(found) == {"size of the margin", "source", "turns of the user"}
    assert {k: v.value for k, v in found["turns of the user"].items()} == {"1": 1, "2 or 3": 0}
    assert {k: v.value for k, v in found["source"].items()} == {"": 1, "other": 0}
    assert strata([one]) == {}


def test_a_part_weighs_comparisons_within_a_prompt() -> None:
    """Weights 3 (right) and 1 (wrong), both in which the better answer is longer: 3/4."""
    comparisons = [Comparison(0, 1, weight=3.0), Comparison(0, 2, weight=1.0)]
    one = outcome("a", [1, 0, 2], comparisons, ["longest", "mid", "s"])
    other = outcome("b", [1, 0], [(0, 1)], ["s", "longer"])
    found = strata([one, other])["which answer is longer"]
    assert found["better is longer"].value == 0.75


def test_each_annotator_is_measured_on_their_own_votes() -> None:
    """Rewards 2 > 1 > 0. Ann ranks as the rewards (3 of 3), then once more the other way round (0
    of 1): two prompts, 1/2. Bob has one pair wrong, one right: 1/2. Of Cay and those without a name
    one of two: "x ties two" orders none."""
    first = with_votes(
        outcome("p", [2, 1, 0], [(0, 1)]),
        [
            Vote("ann", ((0,), (1,), (2,))),
            Vote("bob", ((1,), (0, 2))),
            Vote("", ((2,), (0,))),
            Vote("dee", ((0, 1),)),
        ],
    )
    second = with_votes(
        outcome("q", [1, 0], [(0, 1)]), [Vote("ann", ((1,), (0,))), Vote("cay", ((0,), (1,)))]
    )
    found = accuracy_by_annotator([first, second], num_shown=2)
    assert found is not None
    assert {k: (v.value, v.n) for k, v in found.accuracy.items()} == {
        "ann": (0.5, 2),
        "bob": (0.5, 1),
    }
    assert found.rest is not None
    assert (found.rest.value, found.rest.n) == (0.5, 2)
    assert (found.num_rest, found.num_unnamed_votes) == (1, 1)
    everyone = accuracy_by_annotator([second])
    assert everyone is not None
    assert everyone.rest is None
    assert accuracy_by_annotator([outcome("p", [1, 0], [(0, 1)])]) is None


def test_votes_on_answers_that_were_left_out_are_passed_over() -> None:
    """Response 1 of three is not scored: rewards are of responses 0 and 2."""
    one = with_votes(outcome("p", [1, 0, 0], [(0, 1)]), [Vote("ann", ((2,), (0,), (1,)))])
    group = replace(one.group, sequences=one.group.sequences[:2], response_index=(0, 2))
    found = accuracy_by_annotator([Outcome(group, np.array([1.0, 0.0]))])
    assert found is not None
    assert found.accuracy["ann"].value == 0.0

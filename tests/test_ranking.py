"""Rankings of prompts with more than two answers, against scipy and numbers made by hand."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import kendalltau

from palate.evaluation.metrics import evaluate_outcomes
from palate.evaluation.outcomes import Outcome
from palate.evaluation.ranking import prompt_ranking, ranking_metrics
from palate.preferences import Comparison
from tests.test_evaluation import outcome


def rated(prompt: str, rewards: list[float], ratings: list[float]) -> Outcome:
    pairs = [
        (a, b) if ratings[a] > ratings[b] else (b, a)
        for a, b in combinations(range(len(ratings)), 2)
        if ratings[a] != ratings[b]
    ]
    made = outcome(prompt, rewards, pairs)
    responses = tuple(
        replace(response, rating=rating)
        for response, rating in zip(made.group.group.responses, ratings, strict=True)
    )
    group = replace(made.group, group=replace(made.group.group, responses=responses))
    return replace(made, group=group)


def test_tau_is_that_of_scipy_with_ties_on_both_sides() -> None:
    dice = np.random.default_rng(0)
    for number in range(100):
        size = int(dice.integers(3, 10))
        ratings = dice.integers(1, 6, size=size).tolist()
        rewards = dice.integers(0, 5, size=size).tolist()
        if len(set(ratings)) == 1:
            continue
        found = prompt_ranking(rated(f"p{number}", rewards, ratings))
        assert found is not None
        expected = kendalltau(rewards, ratings).statistic
        assert found.tau == pytest.approx(0.0 if np.isnan(expected) else expected, abs=1e-12)


def test_pick_and_regret_by_hand() -> None:
    """Ratings 5, 4, 4, 1; the pick is the second answer: one is better and one as good, so its rank
    is (1 + 1/2) / 3 = 1/2; regret (5 - 4) / (5 - 1) = 1/4, or one rating point. At random
    (5 - 3.5) / 4 = 3/8."""
    metrics = ranking_metrics([rated("p", [0.1, 2, 0, -1], [5, 4, 4, 1])])
    assert {name: e.value for name, e in metrics.items()} == pytest.approx(
        {
            "Kendall tau": kendalltau([0.1, 2, 0, -1], [5, 4, 4, 1]).statistic,
            "rank of the pick": 0.5,
            "best-of-K regret": 0.25,
            "best-of-K regret, random pick": 0.375,
            "best-of-K regret, rating points": 1.0,
        }
    )


def test_without_ratings_the_label_is_the_share_of_comparisons_won() -> None:
    """0 beats 1 in 0.8 and 2 always, 1 beats 2 with a tie of 0.5: shares 0.9, (0.2 + 0.75) / 2 =
    0.475 and 0.125. The model picks answer 1: regret 0.425 of wins, 0.425 / 0.775 of the span."""
    comparisons = [
        Comparison(0, 1, probability=0.8),
        Comparison(0, 2),
        Comparison(1, 2, tie=0.5),
    ]
    one = outcome("p", [1, 2, 0], comparisons)
    found = prompt_ranking(one)
    assert found is not None
    assert found.label_N == pytest.approx([0.9, 0.475, 0.125])
    metrics = ranking_metrics([one])
    assert metrics["best-of-K regret, share of wins"].value == pytest.approx(0.425)
    assert metrics["best-of-K regret"].value == pytest.approx(0.425 / 0.775)
    assert metrics["rank of the pick"].value == 0.5
    assert metrics["Kendall tau"].value == pytest.approx(1 / 3)


def test_the_best_the_worst_and_an_empty_reward() -> None:
    """A reward that follows the labels, one against them, and one that is constant: as good as a
    pick at random."""
    ratings = [1.0, 2.0, 3.0, 4.0]
    for rewards, tau, regret, rank in (
        ([1, 2, 3, 4], 1, 0, 0),
        ([4, 3, 2, 1], -1, 1, 1),
        ([7, 7, 7, 7], 0, 0.5, 0.5),
    ):
        found = prompt_ranking(rated("p", list(map(float, rewards)), ratings))
        assert found is not None
        assert (found.tau, found.regret, found.rank) == pytest.approx((tau, regret, rank))
        assert found.random_regret == 0.5


def test_turning_the_rewards_round_turns_tau_round() -> None:
    dice = np.random.default_rng(3)
    outcomes = [
        rated(f"p{i}", dice.normal(size=5).tolist(), dice.permutation(5).astype(float).tolist())
        for i in range(20)
    ]
    turned = [replace(o, reward_N=-o.reward_N) for o in outcomes]
    tau, other = (ranking_metrics(part)["Kendall tau"] for part in (outcomes, turned))
    assert tau.value == pytest.approx(-other.value)
    assert (tau.low, tau.high) == pytest.approx((-other.high, -other.low))


def test_only_prompts_that_can_be_ranked_have_a_part() -> None:
    """A pair, answers all rated alike, three of which one is in no comparison."""
    pair = outcome("pair", [1, 0], [(0, 1)])
    alike = rated("alike", [1.0, 2.0, 3.0], [3, 3, 3.5])
    alike = replace(
        alike,
        group=replace(
            alike.group,
            group=replace(
                alike.group.group,
                responses=tuple(replace(r, rating=3.0) for r in alike.group.group.responses),
            ),
        ),
    )
    lone = outcome("lone", [1, 0, 2], [(0, 1)])
    assert ranking_metrics([pair, alike, lone]) == {}
    assert not [name for name in evaluate_outcomes([pair]) if "regret" in name]
    four = outcome("four", [1, 0, 2, 9], [(0, 1), (1, 2)])
    found = prompt_ranking(four)
    assert found is not None
    assert (found.label_N.tolist(), found.reward_N.tolist()) == ([1, 0.5, 0], [1, 0, 2])
    assert evaluate_outcomes([pair, four])["Kendall tau"].n == 1

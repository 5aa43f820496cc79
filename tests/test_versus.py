"""Two models on the same comparisons, and how far annotators agree with each other."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from palate.errors import PalateError
from palate.evaluation.ceiling import agreement_ceiling
from palate.evaluation.metrics import evaluate_outcomes
from palate.evaluation.outcomes import Outcome
from palate.evaluation.versus import exact_mcnemar, versus
from palate.preferences import Comparison, Vote
from tests.test_evaluation import outcome
from tests.test_strata import with_votes


def pairs(right: Sequence[float] | np.ndarray) -> list[Outcome]:
    """One pair a prompt, decided rightly (1), wrongly (0) or with equal rewards (1/2)."""
    return [outcome(f"p{i}", [value, 0.5], [(0, 1)]) for i, value in enumerate(right)]


def test_the_exact_test_is_the_binomial_of_what_one_alone_gets_right() -> None:
    """10 of 12: 2 (1 + 12 + 66) / 4096 = 0.0386."""
    assert exact_mcnemar(10, 2) == pytest.approx(158 / 4096)
    assert exact_mcnemar(10, 2) == exact_mcnemar(2, 10) == binomtest(10, 12).pvalue
    assert exact_mcnemar(0, 0) == 1.0


def test_a_model_that_wins_ten_of_twelve_differing_pairs_is_better() -> None:
    """Of 40: both right in 20, A alone in 10, B alone in 2, both wrong in 8: accuracies 30/40 and
    22/40. The other way round all signs turn."""
    a = pairs([1] * 20 + [1] * 10 + [0] * 2 + [0] * 8)
    b = pairs([1] * 20 + [0] * 10 + [1] * 2 + [0] * 8)
    found, turned = versus(a, b, ("A", "B")), versus(b, a, ("B", "A"))
    assert (found.num_first_only, found.num_second_only, found.num_with_ties) == (10, 2, 0)
    assert (found.first_accuracy.value, found.second_accuracy.value) == (0.75, 0.55)
    assert found.difference.value == pytest.approx(0.2)
    assert found.is_independent
    assert found.winner == "first"
    assert found.sentence.startswith("A is better than B by 20.0 points on 40 prompts")
    assert "exact McNemar test, p = 0.039" in found.sentence
    assert turned.winner == "second"
    assert turned.sentence.startswith("A is better than B by 20.0 points")
    assert turned.difference.low == pytest.approx(-found.difference.high)
    assert turned.p_value == found.p_value
    assert turned.detectable == pytest.approx(found.detectable)


def test_what_these_prompts_cannot_tell_is_said_with_what_they_could() -> None:
    """A alone in 6, B alone in 4 of 100. Differences 1, -1, 0 with mean 0.02: sum of squares
    10 - 100 * 0.0004 = 9.96, standard error sqrt(9.96 / 99 / 100) = 0.03172; times 1.960 + 0.842 =
    0.0889."""
    a = pairs([1] * 80 + [1] * 6 + [0] * 4 + [0] * 10)
    b = pairs([1] * 80 + [0] * 6 + [1] * 4 + [0] * 10)
    found = versus(a, b, ("A", "B"))
    assert found.winner == "not distinguishable"
    assert found.detectable == pytest.approx(0.0889, abs=1e-4)
    assert found.sentence.startswith("Not distinguishable at this n: A and B are 2.0 points apart")
    assert "with 80 % power is 8.9 points" in found.sentence


def test_a_difference_of_the_detectable_size_is_seen_in_about_80_percent() -> None:
    """150 draws of 200 prompts, A alone right in 0.175, B alone in 0.075: standard error
    sqrt((0.25 - 0.1^2) / 200) = 0.0346, times 2.802 = 0.0970, and the true difference is 0.1."""
    dice = np.random.default_rng(0)
    seen, detectable = [], []
    for _ in range(150):
        step = dice.choice([1, 0, -1], size=200, p=[0.175, 0.75, 0.075])
        found = versus(pairs((step == 1).astype(float)), pairs((step == -1).astype(float)))
        detectable.append(found.detectable)
        seen.append(not found.difference.low <= 0 <= found.difference.high)
    assert np.mean(detectable) == pytest.approx(0.097, abs=0.002)
    assert np.mean(seen) == pytest.approx(0.82, abs=0.1)


def test_a_model_against_itself_decides_alike() -> None:
    a = pairs([1, 0, 1, 0.5])
    found = versus(a, a)
    assert (found.difference.value, found.detectable, found.p_value) == (0, 0, 1)
    assert "They decide every comparison alike." in found.sentence


def test_equal_rewards_are_half_right_and_count_for_the_model_that_has_more() -> None:
    """The first has more of two, the second of one: p is that of two heads in three, 1."""
    found = versus(pairs([0.5, 1, 1]), pairs([1, 0.5, 0]))
    assert (found.num_first_only, found.num_second_only, found.num_with_ties) == (1, 0, 2)
    assert found.first_accuracy.value == pytest.approx(2.5 / 3)
    assert found.p_value == 1.0


def test_a_model_that_ties_everything_loses_to_one_that_is_right() -> None:
    """12 right against 12 ties: 2 / 2^12. By McNemar's test, which leaves ties out, the two would
    decide every comparison alike."""
    found = versus(pairs([1] * 12), pairs([0.5] * 12), ("A", "B"))
    assert found.p_value == pytest.approx(2 / 2**12)
    assert found.sentence.startswith("A is better than B by 50.0 points on 12 prompts")
    assert "exact sign test" in found.sentence
    assert "alike" not in versus(pairs([1] * 3), pairs([0.5] * 3)).sentence


def test_several_comparisons_of_one_prompt_are_decided_by_resampling() -> None:
    """Prompts of four answers: A alone is right in all six comparisons of 4 prompts, B in those of
    1, both elsewhere. The test takes them for 24 against 6 coins, p = 0.001; by prompts it is 4
    against 1, and the interval holds 0."""
    six = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    good, bad = [3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]
    a = [outcome(f"p{i}", bad if i == 4 else good, six) for i in range(20)]
    b = [outcome(f"p{i}", bad if i < 4 else good, six) for i in range(20)]
    found = versus(a, b, ("A", "B"))
    assert (found.num_first_only, found.num_second_only) == (24, 6)
    assert found.p_value < 0.002
    assert not found.is_independent
    assert found.winner == "not distinguishable"
    assert "McNemar's test does not hold" in found.sentence
    # Two pairs with one opening are not independent either.
    twice = [outcome("Same", [1, 0], [(0, 1)]), outcome("same", [1, 0], [(0, 1)], ["c", "d"])]
    assert not versus(twice, twice).is_independent


def test_models_that_left_out_different_answers_are_compared_on_what_both_have() -> None:
    """The second lacks response 1 of the first prompt and the whole second prompt. In common: 0
    against 2 of the first and the pair of the third; left out are 0 against 1, and the pair."""
    texts = ["one", "two", "three"]
    a = [
        outcome("p", [2, 1, 0], [(0, 1), (0, 2)], texts),
        outcome("q", [1, 0], [(0, 1)]),
        outcome("r", [1, 0], [(0, 1)]),
    ]
    shorter = replace(
        a[0].group,
        sequences=a[0].group.sequences[:2],
        comparisons=(Comparison(0, 1),),
        response_index=(0, 2),
    )
    b = [outcome("r", [0, 1], [(0, 1)]), Outcome(shorter, np.array([0.0, 1.0]))]
    found = versus(a, b)
    assert found.difference.n == 2
    assert (found.num_first_only, found.num_left_out) == (2, 2)
    assert "Left out: 2 comparisons that only one has." in found.sentence
    with pytest.raises(PalateError, match="no decided comparison in common"):
        versus(a[:1], b[:1], ("A", "B"))


def test_a_single_cluster_tells_nothing_and_says_so() -> None:
    lone = outcome("p", [1, 0], [(0, 1)])
    other = replace(lone, reward_N=np.array([0.0, 1.0]))
    found = versus([lone], [other])
    assert found.winner == "not distinguishable"
    assert found.detectable == math.inf
    assert "unknown (one prompt cluster)" in found.sentence


def voted(prompt: str, rewards: list[float], choices: str, names: str = "") -> Outcome:
    """One pair; a vote for the first (1), the second (2) or a tie (=) from each letter's name."""
    rankings = {"1": ((0,), (1,)), "2": ((1,), (0,)), "=": ((0, 1),)}
    given = names or "abcdefgh"
    votes = [Vote(n, rankings[c]) for n, c in zip(given, choices, strict=False)]
    return with_votes(outcome(prompt, rewards, [(0, 1)]), votes)


def test_agreement_of_annotators_by_hand() -> None:
    """Pair 1, votes 1 1 2: each of the two 1s faces one 1 and one 2 (half), the 2 faces two 1s
    (wrong): (1/2 + 1/2 + 0) / 3 = 1/3; its majority has 2/3. Pair 2, votes 1 1 1 and a tie: 1 and
    1. Pair 3 has one vote: no agreement. The model says the first in pair 1 (2/3 of the votes), is
    tied in pair 2 (1/2)."""
    outcomes = [
        voted("p", [1, 0], "112"),
        voted("q", [1, 1], "111="),
        voted("r", [1, 0], "2"),
    ]
    found = agreement_ceiling(outcomes)
    assert found is not None
    assert found.agreement.value == pytest.approx((1 / 3 + 1) / 2)
    assert found.majority_against_votes.value == pytest.approx((2 / 3 + 1) / 2)
    assert found.model_against_votes.value == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert (found.num_pairs, found.num_votes, found.num_tie_votes) == (2, 6, 1)
    assert found.agreement.n == 2
    assert agreement_ceiling(outcomes[2:]) is None


def test_no_predictor_beats_the_majority_against_the_same_votes() -> None:
    """Even one that knows the votes: it reaches it exactly."""
    dice = np.random.default_rng(1)
    outcomes = []
    for number in range(60):
        choices = "".join(dice.choice(["1", "2"], size=5))
        knows = 1.0 if choices.count("1") > 2 else -1.0
        outcomes.append(voted(f"p{number}", [knows, 0], choices))
    found = agreement_ceiling(outcomes)
    assert found is not None
    assert found.model_against_votes == found.majority_against_votes
    assert found.agreement.value < found.majority_against_votes.value


def test_coins_agree_in_half_and_one_mind_always() -> None:
    """400 pairs of five coin tosses: a toss against the majority of four others, ties half, is
    right in 1/2; standard error below 0.02. The majority of all is right in 0.69 of its own."""
    dice = np.random.default_rng(2)
    coins = [voted(f"p{i}", [0, 1], "".join(dice.choice(["1", "2"], size=5))) for i in range(400)]
    found = agreement_ceiling(coins)
    assert found is not None
    assert found.agreement.value == pytest.approx(0.5, abs=0.06)
    assert found.majority_against_votes.value == pytest.approx(0.6875, abs=0.03)
    same = agreement_ceiling([voted(f"p{i}", [0, 1], "222") for i in range(5)])
    assert same is not None
    assert same.agreement.value == same.model_against_votes.value == 1.0


def test_an_annotator_who_votes_twice_counts_once_and_the_nameless_each() -> None:
    """a, a, b: two votes, 1 against 2. Without names: three."""
    named = agreement_ceiling([voted("p", [1, 0], "112", "aab")])
    nameless = agreement_ceiling(
        [with_votes(outcome("p", [1, 0], [(0, 1)]), [Vote("", ((0,), (1,)))] * 3)]
    )
    assert named is not None
    assert nameless is not None
    assert (named.num_votes, named.agreement.value) == (2, 0.0)
    assert (nameless.num_votes, nameless.agreement.value) == (3, 1.0)


def test_accuracy_and_agreement_stand_beside_each_other_by_name() -> None:
    found = agreement_ceiling([voted("p", [1, 0], "112"), voted("q", [1, 0], "111")])
    assert found is not None
    metrics = {**evaluate_outcomes([voted("p", [1, 0], "112")]), **found.metrics()}
    assert {"accuracy", "agreement of annotators", "accuracy against single votes"} <= set(metrics)

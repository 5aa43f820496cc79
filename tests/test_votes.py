"""Votes, rankings and ratings to comparisons: worked numbers, symmetries, what stays undecided."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.errors import PalateError
from palate.preferences import Comparison, Vote, VoteSettings
from palate.preferences.votes import (
    comparisons_from_ranking,
    comparisons_from_ratings,
    comparisons_from_votes,
    vote_probability,
)
from palate.statistics.comparison_model import fit_comparison_model

FIRST = ((0,), (1,))
SECOND = ((1,), (0,))
TIE = ((0, 1),)
MAJORITY = VoteSettings(target="majority")


def votes(*rankings: tuple[tuple[int, ...], ...]) -> list[Vote]:
    return [Vote(f"a{number}", ranking) for number, ranking in enumerate(rankings)]


def test_seven_of_ten_votes_are_a_probability_and_a_margin() -> None:
    """(7 + 1/2) / (10 + 1) = 7.5 / 11 = 0.6818.

    A model that gives the pair a constant margin m has expected loss
    -p log s(m) - (1 - p) log s(-m), least where s(m) = p: m = ln(p / (1 - p)) = ln(7.5 / 3.5)
    = 0.762. Here it is fitted on one feature, 1 for the pair as voted, -1 for it reversed.
    """
    (comparison,) = comparisons_from_votes(2, votes(*[FIRST] * 7, *[SECOND] * 3), VoteSettings())
    assert (comparison.better, comparison.worse) == (0, 1)
    assert comparison.probability == vote_probability(7, 3) == pytest.approx(7.5 / 11)
    assert comparison.probability == pytest.approx(0.682, abs=5e-4)
    p = comparison.probability
    margin = fit_comparison_model(np.array([[1.0], [-1.0]]), np.array([p, 1 - p]), l2=1e-9)
    assert margin[0] == pytest.approx(math.log(7.5 / 3.5), abs=1e-4)
    assert margin[0] == pytest.approx(0.762, abs=5e-4)


@given(st.integers(0, 200), st.integers(0, 200), st.floats(0.01, 10))
def test_swapping_the_sides_mirrors_the_probability_and_a_vote_more_raises_it(
    num_for: int, num_against: int, prior: float
) -> None:
    probability = vote_probability(num_for, num_against, prior)
    assert 0 < probability < 1
    assert probability + vote_probability(num_against, num_for, prior) == pytest.approx(1)
    assert vote_probability(num_for + 1, num_against, prior) > probability


def test_without_a_prior_unanimity_is_certainty_and_without_votes_nothing_is_known() -> None:
    assert vote_probability(3, 0, prior=0) == 1
    assert vote_probability(0, 0, prior=0) == 0.5


def test_ten_ties_and_five_against_five_are_different_facts() -> None:
    (split,) = comparisons_from_votes(2, votes(*[FIRST] * 5, *[SECOND] * 5), VoteSettings())
    (tied,) = comparisons_from_votes(2, votes(*[TIE] * 10), VoteSettings())
    assert (split.probability, split.tie) == (0.5, 0)
    assert (tied.probability, tied.tie) == (0.5, 1)


def test_ties_do_not_dilute_the_probability_given_no_tie() -> None:
    """4 for, 1 against, 5 ties: (4 + 1/2) / (5 + 1) = 0.75 given no tie, and 5 of 10 are ties."""
    mixed = votes(*[SECOND] * 4, FIRST, *[TIE] * 5)
    (comparison,) = comparisons_from_votes(2, mixed, VoteSettings())
    assert (comparison.better, comparison.worse) == (1, 0)
    assert comparison.probability == pytest.approx(0.75)
    assert comparison.tie == 0.5


@pytest.mark.parametrize(
    ("num_responses", "pairs"), [(4, 6), (5, 10), (6, 15), (7, 21), (8, 28), (9, 36)]
)
def test_k_responses_in_order_make_all_k_times_k_minus_one_half_comparisons(
    num_responses: int, pairs: int
) -> None:
    order = list(reversed(range(num_responses)))
    ranking = tuple((index,) for index in order)
    from_ranking = comparisons_from_ranking(ranking)
    from_votes = comparisons_from_votes(num_responses, votes(ranking), VoteSettings())
    from_ratings = comparisons_from_ratings({i: float(i) for i in order}, VoteSettings())
    assert len(from_ranking) == len(from_votes) == len(from_ratings) == pairs
    for made in (from_ranking, from_votes, from_ratings):
        assert {(c.better, c.worse) for c in made} == {
            (high, low) for low, high in combinations(range(num_responses), 2)
        }


def test_a_ranking_with_ties_compares_across_its_tiers_only() -> None:
    """1 > {0, 3} > 2: 1 x 2 + 1 x 1 + 2 x 1 = 5 comparisons; 0 and 3 stay uncompared."""
    made = comparisons_from_ranking(((1,), (0, 3), (2,)))
    assert {(c.better, c.worse) for c in made} == {(1, 0), (1, 3), (1, 2), (0, 2), (3, 2)}
    assert len(made) == 5


rankings = st.permutations(range(4)).flatmap(
    lambda order: st.lists(st.booleans(), min_size=3, max_size=3).map(
        lambda cuts: _tiers(order, cuts)
    )
)


def _tiers(order: list[int], cuts: list[bool]) -> tuple[tuple[int, ...], ...]:
    tiers: list[list[int]] = [[order[0]]]
    for index, cut in zip(order[1:], cuts, strict=True):
        if cut:
            tiers.append([index])
        else:
            tiers[-1].append(index)
    return tuple(map(tuple, tiers))


def _signed(made: tuple[Comparison, ...]) -> dict[tuple[int, int], tuple[float, float]]:
    """P(low index beats high index) and tie share, whichever of the two is called better."""
    return {
        (min(c.better, c.worse), max(c.better, c.worse)): (
            c.probability if c.better < c.worse else 1 - c.probability,
            c.tie,
        )
        for c in made
    }


@given(st.lists(rankings, min_size=1, max_size=6))
def test_neither_the_order_of_votes_nor_the_names_of_responses_matter(
    cast: list[tuple[tuple[int, ...], ...]],
) -> None:
    before = _signed(comparisons_from_votes(4, votes(*cast), VoteSettings()))
    backwards = _signed(comparisons_from_votes(4, votes(*reversed(cast)), VoteSettings()))
    assert backwards == before
    mirrored = [tuple(tuple(3 - i for i in tier) for tier in ranking) for ranking in cast]
    renamed = _signed(comparisons_from_votes(4, votes(*mirrored), VoteSettings()))
    for (low, high), (probability, tie) in before.items():
        assert renamed[3 - high, 3 - low] == pytest.approx((1 - probability, tie))


def test_a_vote_on_some_of_the_responses_says_nothing_about_the_others() -> None:
    made = comparisons_from_votes(4, votes(((2,), (0,))), VoteSettings())
    assert [(c.better, c.worse) for c in made] == [(2, 0)]


def test_a_majority_is_certain_and_a_pair_without_one_is_left_out() -> None:
    assert comparisons_from_votes(2, votes(FIRST, SECOND, FIRST), MAJORITY) == (Comparison(0, 1),)
    assert comparisons_from_votes(2, votes(FIRST, SECOND), MAJORITY) == ()
    assert comparisons_from_votes(2, votes(FIRST, TIE, TIE), MAJORITY) == ()


def test_strengths_become_a_margin_towards_the_winner() -> None:
    """Two for the first with strengths 1 and 3, one for the second with 2: (1 + 3 - 2) / 3 = 2/3,
    and half a logit for each unit makes 1/3."""
    cast = [Vote("a", FIRST, 1), Vote("b", FIRST, 3), Vote("c", SECOND, 2)]
    settings = VoteSettings(target="majority", margin_per_strength=0.5)
    (comparison,) = comparisons_from_votes(2, cast, settings)
    assert (comparison.better, comparison.margin) == (0, pytest.approx(1 / 3))
    assert comparisons_from_votes(2, cast, MAJORITY)[0].margin == 0


def test_one_fierce_vote_against_the_majority_takes_the_margin_and_never_turns_it_round() -> None:
    """1 + 1 - 5 = -3 speaks against the winner: its margin is 0, not 3/3."""
    cast = [Vote("a", FIRST, 1), Vote("b", FIRST, 1), Vote("c", SECOND, 5)]
    (comparison,) = comparisons_from_votes(
        2, cast, VoteSettings(target="majority", margin_per_strength=1)
    )
    assert (comparison.better, comparison.margin) == (0, 0)


def test_strength_is_about_the_first_of_a_ranking_and_no_pair_below_it() -> None:
    made = comparisons_from_votes(
        3,
        [Vote("a", ((2,), (0,), (1,)), 3)],
        VoteSettings(target="majority", margin_per_strength=1),
    )
    assert {(c.better, c.worse): c.margin for c in made} == {(2, 0): 3, (2, 1): 3, (0, 1): 0}


def test_ratings_closer_than_the_gap_and_equal_ratings_compare_nothing() -> None:
    ratings = {0: 3.0, 1: 4.0, 2: 4.0, 4: 4.5}
    assert {(c.better, c.worse) for c in comparisons_from_ratings(ratings, VoteSettings())} == {
        (1, 0),
        (2, 0),
        (4, 0),
        (4, 1),
        (4, 2),
    }
    assert {
        (c.better, c.worse) for c in comparisons_from_ratings(ratings, VoteSettings(min_gap=1))
    } == {
        (1, 0),
        (2, 0),
        (4, 0),
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prior": -1}, "votes.prior is -1"),
        ({"prior": math.nan}, "votes.prior is nan"),
        ({"min_gap": math.inf}, "votes.min_gap is inf"),
        ({"margin_per_strength": -0.1}, "votes.margin_per_strength is -0.1"),
        ({"target": "majority", "prior": 1.0}, "votes.prior 1.0 has no effect"),
        ({"annotator_weights": {"a": -1.0}}, "'a' has weight -1.0"),
        ({"annotator_weights": {"a": math.nan}}, "'a' has weight nan"),
        ({"annotator_weights": {"a": 1.0, "b": 1}}, "has no effect: every weight is 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(PalateError) as refusal:
        VoteSettings(**settings)
    assert said in str(refusal.value)


def test_annotators_have_the_weight_they_are_given() -> None:
    """a and b for the first, c for the second, d ties. With a counting 3 and d 2: (3 + 1 + 1/2) /
    (3 + 1 + 1 + 1) = 4.5 / 6 = 0.75, and 2 of 7 votes are ties. Without a: (1 + 1/2) / (2 + 1)."""
    cast = [Vote("a", FIRST), Vote("b", FIRST), Vote("c", SECOND), Vote("d", TIE)]
    settings = VoteSettings(annotator_weights={"a": 3, "d": 2})
    (comparison,) = comparisons_from_votes(2, cast, settings)
    assert (comparison.better, comparison.probability) == (0, pytest.approx(0.75))
    assert comparison.tie == pytest.approx(2 / 7)
    (without,) = comparisons_from_votes(2, cast, VoteSettings(annotator_weights={"a": 0}))
    assert without.probability == 0.5
    majority = VoteSettings(target="majority", annotator_weights={"c": 2.5})
    assert comparisons_from_votes(2, cast, majority) == (Comparison(1, 0),)


def test_a_pair_that_only_annotators_without_weight_judged_is_not_compared() -> None:
    cast = [Vote("a", FIRST), Vote("b", ((2,), (0,)))]
    made = comparisons_from_votes(3, cast, VoteSettings(annotator_weights={"a": 0}))
    assert [(c.better, c.worse) for c in made] == [(2, 0)]


@given(st.lists(st.tuples(rankings, st.integers(1, 3)), min_size=1, max_size=5))
def test_a_vote_that_counts_twice_is_two_votes(
    cast: list[tuple[tuple[tuple[int, ...], ...], int]],
) -> None:
    repeated = [
        Vote(f"a{n}", ranking) for n, (ranking, times) in enumerate(cast) for _ in range(times)
    ]
    once = [Vote(f"a{n}", ranking) for n, (ranking, _) in enumerate(cast)]
    weights = {f"a{n}": float(times) for n, (_, times) in enumerate(cast)} | {"nobody": 2.0}
    settings = VoteSettings(annotator_weights=weights)
    counted = comparisons_from_votes(4, once, settings)
    assert counted == comparisons_from_votes(4, repeated, VoteSettings())


def test_a_strength_scales_the_weight_by_its_mean_towards_the_better_side() -> None:
    """Two for the first with 1 and 3, one for the second with 2: 2/3, as for the margin. A tie of
    strength 0 halves the 3 beside it; a tie vote without a strength says nothing on it."""
    scaled = VoteSettings(scale_by_strength=True)
    cast = [Vote("a", FIRST, 1), Vote("b", FIRST, 3), Vote("c", SECOND, 2)]
    (comparison,) = comparisons_from_votes(2, cast, scaled)
    assert comparison.weight == pytest.approx(2 / 3)
    assert comparison.probability == pytest.approx(2.5 / 4)
    (halved,) = comparisons_from_votes(2, [Vote("a", FIRST, 3), Vote("b", TIE, 0)], scaled)
    assert halved.weight == 1.5
    (whole,) = comparisons_from_votes(2, [Vote("a", FIRST, 3), Vote("b", TIE)], scaled)
    assert whole.weight == 3
    (unasked,) = comparisons_from_votes(2, [Vote("a", FIRST)], scaled)
    assert unasked.weight == 1


def test_weights_of_annotators_hold_for_strengths_too() -> None:
    """(3 * 1 - 1 * 2) / 4 = 1/4."""
    cast = [Vote("a", FIRST, 1), Vote("b", SECOND, 2)]
    settings = VoteSettings(
        target="majority", margin_per_strength=1, annotator_weights={"a": 3}, scale_by_strength=True
    )
    (comparison,) = comparisons_from_votes(2, cast, settings)
    assert (comparison.better, comparison.margin, comparison.weight) == (0, 0.25, 0.25)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=5), st.floats(0, 2))
def test_every_pair_of_ratings_is_compared_tied_or_too_close(
    rates: list[int], min_gap: float
) -> None:
    ratings = {index: float(rate) for index, rate in enumerate(rates)}
    made = comparisons_from_ratings(ratings, VoteSettings(min_gap=min_gap, equal="tie"))
    ties = [c for c in made if c.tie == 1]
    gaps = [abs(a - b) for a, b in combinations(rates, 2)]
    assert len(ties) == gaps.count(0)
    assert len(made) - len(ties) == sum(gap > 0 and gap >= min_gap for gap in gaps)
    assert all(c.probability == 0.5 and ratings[c.better] == ratings[c.worse] for c in ties)
    assert [c for c in made if c.tie == 0] == list(
        comparisons_from_ratings(ratings, VoteSettings(min_gap=min_gap))
    )


def test_the_gap_between_ratings_is_a_strength() -> None:
    """4 beats 1 by 3, 4 beats 3.5 by 0.5, 3.5 beats 1 by 2.5; a logit is worth two units."""
    ratings = {0: 4.0, 1: 1.0, 2: 3.5}
    made = comparisons_from_ratings(
        ratings, VoteSettings(margin_per_strength=0.5, scale_by_strength=True)
    )
    assert {(c.better, c.worse): (c.margin, c.weight) for c in made} == {
        (0, 1): (1.5, 3.0),
        (0, 2): (0.25, 0.5),
        (2, 1): (1.25, 2.5),
    }
    assert all(
        c.margin == 0 and c.weight == 1 for c in comparisons_from_ratings(ratings, VoteSettings())
    )


def test_places_shared_in_a_ranking_are_ties_when_asked() -> None:
    """1 > {0, 3} > 2: five comparisons and the tie of 0 and 3."""
    made = comparisons_from_ranking(((1,), (0, 3), (2,)), "tie")
    assert len(made) == 6
    assert [c for c in made if c.tie] == [Comparison(0, 3, probability=0.5, tie=1)]


@pytest.mark.parametrize(
    ("rates", "min_gap", "made", "ties"),
    [
        ([0.3, 0.2, 0.1], 0.1, [(0, 1), (0, 2), (1, 2)], []),
        ([0.1 + 0.2, 0.3], 0.0, [], [(0, 1)]),
        ([(0.1 + 0.1 + 0.1) / 3, 0.1], 0.0, [], [(0, 1)]),
        ([1.0, 1.0 - 1e-9], 0.0, [(0, 1)], []),
        ([0.3, 0.2], 0.1001, [], []),
    ],
)
def test_ratings_differ_by_more_than_rounding_or_not_at_all(
    rates: list[float], min_gap: float, made: list[Any], ties: list[Any]
) -> None:
    """In floats 0.3 - 0.2 is 0.09999999999999998 and 0.1 + 0.2 is 0.30000000000000004."""
    ratings = dict(enumerate(rates))
    found = comparisons_from_ratings(ratings, VoteSettings(min_gap=min_gap, equal="tie"))
    assert [(c.better, c.worse) for c in found if c.tie == 0] == made
    assert [(c.better, c.worse) for c in found if c.tie == 1] == ties


def test_an_unordered_rest_is_worse_than_the_choice_and_nothing_to_itself() -> None:
    """A choice of 1 among three and a ranking 0 > 2: each of three pairs has one vote."""
    chosen = Vote("a", ((1,), (0, 2)), rest_unordered=True)
    assert chosen.outcomes() == {(0, 1): -1, (1, 2): 1}
    assert Vote("a", ((1,), (0, 2))).outcomes() == {(0, 1): -1, (0, 2): 0, (1, 2): 1}
    made = comparisons_from_votes(3, [chosen, Vote("b", ((0,), (2,)))], VoteSettings())
    assert {(c.better, c.worse): (c.probability, c.tie) for c in made} == {
        (1, 0): (0.75, 0),
        (0, 2): (0.75, 0),
        (1, 2): (0.75, 0),
    }
    with pytest.raises(PalateError, match="unordered rest needs something before it"):
        Vote("a", ((0, 1),), rest_unordered=True)

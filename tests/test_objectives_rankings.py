"""Plackett-Luce against the sum over all orders, and where rankings come from."""

import math
from itertools import pairwise, permutations, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palate.errors import PalateError
from palate.objectives import ComparisonBatch, Objective, ObjectiveSettings, bradley_terry
from palate.objectives.plackett_luce import RankingBatch, plackett_luce
from palate.objectives.rankings import Tier, rankings_of, weak_order
from palate.objectives.settings import Ties
from palate.preferences import Comparison, Vote
from palate.preferences.votes import VoteSettings, comparisons_from_ratings
from tests.objective_cases import rendered, some_rewards, vote

THREE = rendered(3, [Comparison(0, 1), Comparison(0, 2), Comparison(1, 2)])


def chain(*order: int) -> list[Comparison]:
    """All comparisons of a strict ranking."""
    return [Comparison(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]


def order_probability(rewards: list[float], order: tuple[int, ...], places: int) -> float:
    """Product over the first places of exp(r) / sum of exp(r) over what is left."""
    probability = 1.0
    for place in range(places):
        left = sum(math.exp(rewards[i]) for i in order[place:])
        probability *= math.exp(rewards[order[place]]) / left
    return probability


def loss_of_vote(
    rewards: list[float], tiers: list[tuple[int, ...]], ties: Ties, top_k: int
) -> float:
    group = rendered(len(rewards), chain(*range(len(rewards))), [vote("a", *tiers)])
    reward_N = torch.tensor(rewards, dtype=torch.float64)
    return float(plackett_luce(reward_N, RankingBatch.gather([group], ties, top_k)))


def loss_by_orders(
    rewards: list[float], tiers: list[tuple[int, ...]], ties: Ties, top_k: int
) -> float:
    """The same from every order that the tiers allow, written out."""
    places, choices = 0, 0
    for number, tier in enumerate(tiers):
        if top_k and places >= top_k:
            break
        is_last = number == len(tiers) - 1
        if not is_last or (ties == "half" and len(tier) > 1):
            choices += len(tier) - is_last
        places += len(tier)
    if not choices:
        return 0.0
    orders = [sum(parts, ()) for parts in product(*(list(permutations(t)) for t in tiers))]
    if ties == "half":
        losses = [-math.log(order_probability(rewards, order, places)) for order in orders]
        return sum(losses) / len(losses) / choices
    # Orders that differ only after the counted places are one event.
    heads = {order[:places]: order for order in orders}
    total = sum(order_probability(rewards, order, places) for order in heads.values())
    return -math.log(total) / choices


@pytest.mark.parametrize("ties", ["half", "drop"])
def test_a_choice_is_a_ranking_of_one_place(ties: Ties) -> None:
    """The first of three with rewards 1, 0, -2: log(e + 1 + e^-2) - 1 = 0.3490, whatever a tie
    counts. Were the other two called equal, half a win for each would be asked for besides."""
    rewards = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    chosen = Vote("a", ((0,), (1, 2)), rest_unordered=True)
    group = rendered(3, [Comparison(0, 1), Comparison(0, 2)], [chosen])
    assert rankings_of(group) == ((Tier((0,), True), Tier((1, 2), False)),)
    loss = float(plackett_luce(rewards, RankingBatch.gather([group], ties, 0)))
    assert loss == pytest.approx(math.log(math.e + 1 + math.exp(-2)) - 1)
    assert loss == pytest.approx(0.3490, abs=5e-5)


@st.composite
def tiered(draw: st.DrawFn) -> tuple[list[float], list[tuple[int, ...]]]:
    num_answers = draw(st.integers(3, 6))
    rewards = draw(st.lists(st.floats(-4, 4), min_size=num_answers, max_size=num_answers))
    order = draw(st.permutations(range(num_answers)))
    starts = [0, *sorted(draw(st.sets(st.integers(1, num_answers - 1)))), num_answers]
    return rewards, [tuple(order[a:b]) for a, b in pairwise(starts)]


@given(tiered(), st.sampled_from(["half", "drop"]), st.integers(0, 4))
def test_tiers_count_as_the_orders_they_allow(
    case: tuple[list[float], list[tuple[int, ...]]], ties: Ties, top_k: int
) -> None:
    rewards, tiers = case
    found = loss_of_vote(rewards, tiers, ties, top_k)
    assert found == pytest.approx(loss_by_orders(rewards, tiers, ties, top_k), abs=1e-6)


def test_a_ranking_of_three_written_out() -> None:
    """r = (log 4, log 2, 0): P(0 first) = 4/7, then P(1 before 2) = 2/3; -log(8/21) / 2 choices."""
    rewards = [math.log(4), math.log(2), 0.0]
    assert loss_of_vote(rewards, [(0,), (1,), (2,)], "half", 0) == pytest.approx(
        -math.log(8 / 21) / 2
    )
    assert loss_of_vote(rewards, [(0,), (1,), (2,)], "half", 1) == pytest.approx(-math.log(4 / 7))


def test_a_tie_for_the_first_place_written_out() -> None:
    """r = (log 4, log 2, 0), 0 and 1 tied before 2. The two orders have 4/7 * 2/3 = 8/21 and
    2/7 * 4/5 = 8/35, 2 choices each. Order unknown: 8/21 + 8/35 = 64/105."""
    rewards = [math.log(4), math.log(2), 0.0]
    tiers = [(0, 1), (2,)]
    half = loss_of_vote(rewards, tiers, "half", 0)
    assert half == pytest.approx(-(math.log(8 / 21) + math.log(8 / 35)) / 4)
    assert loss_of_vote(rewards, tiers, "drop", 0) == pytest.approx(-math.log(64 / 105) / 2)


@pytest.mark.parametrize("num_answers", range(3, 10))
def test_equal_rewards_cost_the_log_of_the_number_of_orders(num_answers: int) -> None:
    """log(K!) / (K - 1): each of the K! orders is as likely; K = 2 would give log 2."""
    group = rendered(num_answers, chain(*range(num_answers)))
    loss = plackett_luce(torch.zeros(num_answers), RankingBatch.gather([group]))
    expected = math.log(math.factorial(num_answers)) / (num_answers - 1)
    assert float(loss) == pytest.approx(expected, rel=1e-6)


soft = st.builds(
    Comparison,
    better=st.just(0),
    worse=st.just(1),
    probability=st.floats(0.5, 1),
    tie=st.floats(0, 1),
    weight=st.floats(0, 3),
)


@given(soft, st.sampled_from(["half", "drop"]), st.floats(-20, 20))
def test_two_answers_are_bradley_terry(comparison: Comparison, ties: Ties, gap: float) -> None:
    """Exactly, with all that votes of two answers have: soft labels, ties, weights."""
    group = rendered(2, [comparison], [vote("a", 0, 1), vote("b", (0, 1))])
    settings = ObjectiveSettings(kind="plackett-luce", ties=ties)
    reward_N = torch.tensor([gap, 0.0])
    found = Objective(settings, [THREE]).loss(reward_N, Objective(settings, [THREE]).batch([group]))
    expected = bradley_terry(reward_N, ComparisonBatch.gather([(2, [comparison])], ties))
    assert float(found) == float(expected)


@given(st.sampled_from(["half", "drop"]), st.floats(-20, 20))
def test_rankings_of_two_are_bradley_terry_on_shares(ties: Ties, gap: float) -> None:
    """Votes on two of three answers: 2 for 0, 1 for 1, 1 tie, as one comparison with p = 2/3 and a
    quarter of ties."""
    votes = [vote("a", 0, 1), vote("b", 0, 1), vote("c", 1, 0), vote("d", (0, 1))]
    reward_N = torch.tensor([gap, 0.0, 1.0])
    found = plackett_luce(reward_N, RankingBatch.gather([rendered(3, chain(0, 1), votes)], ties))
    share = Comparison(0, 1, probability=2 / 3, tie=0.25)
    expected = bradley_terry(reward_N, ComparisonBatch.gather([(3, [share])], ties))
    assert float(found) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


def test_rankings_come_from_votes_first() -> None:
    group = rendered(3, chain(0, 1, 2), [vote("a", 2, (0, 1)), vote("b", 1, 0)])
    assert rankings_of(group) == (
        (Tier((2,), True), Tier((0, 1), True)),
        (Tier((1,), True), Tier((0,), True)),
    )


def test_stated_comparisons_stand_and_votes_beside_them_are_only_kept() -> None:
    """Votes say 2, 1, 0; what is stated says 0, 1, 2, and stands."""
    votes = [vote("a", 2, 1, 0), vote("b", 2, 1, 0)]
    stated = rendered(3, chain(0, 1, 2), votes, stated=True)
    assert rankings_of(stated) == (tuple(Tier((i,), True) for i in range(3)),)
    counted = rendered(3, chain(0, 1, 2), votes)
    assert [ranking[0].members for ranking in rankings_of(counted)] == [(2,), (2,)]
    soft = rendered(3, [Comparison(0, 1, 0.9), Comparison(0, 2, 0.8)], votes, stated=True)
    settings = ObjectiveSettings(kind="plackett-luce")
    objective = Objective(settings, [THREE, soft, counted])
    assert "1 of 3 prompts with three answers" in objective.warnings[0]
    assert "1 of 3 prompts have votes beside stated comparisons" in objective.warnings[1]
    reward_N = some_rewards(3)
    found = objective.loss(reward_N, objective.batch([soft]))
    expected = bradley_terry(reward_N, ComparisonBatch.gather([(3, soft.comparisons)]))
    torch.testing.assert_close(found, expected)


def test_votes_keep_only_answers_that_were_rendered() -> None:
    """Response 1 is left out: responses 0, 2, 3 are sequences 0, 1, 2; a vote on 1 and 3 alone
    ranks nothing."""
    votes = [vote("a", 3, 1, (2, 0)), vote("b", 1, 3)]
    group = rendered(3, chain(0, 1, 2), votes, left_out=[1])
    assert rankings_of(group) == ((Tier((2,), True), Tier((1, 0), True)),)


def test_ratings_rank_through_their_comparisons() -> None:
    """Ratings 5, 3, 3, 1 compare all but the equal two, whose order nobody said."""
    ratings = dict(enumerate([5.0, 3.0, 3.0, 1.0]))
    group = rendered(4, comparisons_from_ratings(ratings, VoteSettings()))
    assert rankings_of(group) == ((Tier((0,), True), Tier((1, 2), False), Tier((3,), True)),)
    tied = rendered(4, comparisons_from_ratings(ratings, VoteSettings(equal="tie")))
    assert rankings_of(tied) == ((Tier((0,), True), Tier((1, 2), True), Tier((3,), True)),)


@pytest.mark.parametrize(
    ("what", "comparisons"),
    [
        ("a cycle", [Comparison(0, 1), Comparison(1, 2), Comparison(2, 0)]),
        ("a gap", [Comparison(0, 1), Comparison(1, 2)]),
        ("soft labels", [Comparison(0, 1, 0.9), Comparison(0, 2), Comparison(1, 2)]),
        ("part of a tie", [Comparison(0, 1, tie=0.5), Comparison(0, 2), Comparison(1, 2)]),
        ("a contradiction", [*chain(0, 1, 2), Comparison(1, 0)]),
        ("7, 5, 4, 3 with min_gap 2", [*(Comparison(0, i) for i in (1, 2, 3)), Comparison(1, 3)]),
        ("a tie across places", [*chain(0, 1, 2), Comparison(0, 1, 0.5, tie=1.0)]),
    ],
)
def test_comparisons_that_make_no_ranking_stay_pairs(
    what: str, comparisons: list[Comparison]
) -> None:
    """Each is a ranking of two, so the loss is Bradley-Terry's: under Plackett-Luce two of many
    are ordered with s(d)."""
    assert weak_order(comparisons) is None, what
    reward_N = some_rewards(4)
    found = plackett_luce(reward_N, RankingBatch.gather([rendered(4, comparisons)]))
    expected = bradley_terry(reward_N, ComparisonBatch.gather([(4, comparisons)]))
    torch.testing.assert_close(found, expected)


@given(st.lists(st.integers(0, 3), min_size=3, max_size=6))
def test_a_weak_order_is_found_from_its_comparisons(places: list[int]) -> None:
    """Places in, the same tiers out, where there are two or more."""
    comparisons = comparisons_from_ratings({i: -p for i, p in enumerate(places)}, VoteSettings())
    if not comparisons:
        return
    ranking = weak_order(comparisons)
    assert ranking is not None
    expected = [
        tuple(i for i, p in enumerate(places) if p == place) for place in sorted(set(places))
    ]
    assert [tier.members for tier in ranking] == expected


def test_a_place_for_ten_is_refused_with_its_row() -> None:
    tied = rendered(11, chain(0, 1, 2), [vote("a", 10, tuple(range(10)))])
    with pytest.raises(PalateError, match=r"votes.jsonl:7: a ranking has 10 answers at one place"):
        RankingBatch.gather([tied])
    settings = ObjectiveSettings(kind="plackett-luce")
    with pytest.raises(PalateError, match="a ranking has 10 answers at one place"):
        Objective(settings, [THREE, tied])  # before training, so that a dry run says it
    with pytest.raises(PalateError, match="a ranking has 10 answers at one place"):
        Objective(settings, [THREE]).check_validation({"other": [tied]})
    # Unknown at the end it says nothing, and so does what lies beyond the first place.
    assert len(RankingBatch.gather([tied], "drop").placings) == 1
    assert len(RankingBatch.gather([tied], "half", top_k=1).placings) == 1


def test_nine_at_one_place_with_far_apart_rewards_stay_exact() -> None:
    """Rewards 0, -100, ..., -800 before one of -900: all orders but one are impossible in float32,
    so unknown order costs nothing. The mean over orders: T of a subset is its best reward; of the
    subsets of {0, .., 8} of size s the mean of the smallest index is (9 - s) / (s + 1), so
    -100 sum over s of (9 - s) / (s + 1) + 3600, over 9 choices."""
    reward_N = torch.arange(10) * -100.0
    group = rendered(10, chain(0, 1, 2), [vote("a", tuple(range(9)), 9)])
    assert float(plackett_luce(reward_N, RankingBatch.gather([group], "drop"))) == 0.0
    expected = (3600 - 100 * sum((9 - s) / (s + 1) for s in range(1, 10))) / 9
    half = float(plackett_luce(reward_N, RankingBatch.gather([group], "half")))
    assert half == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("ties", ["half", "drop"])
def test_a_tier_of_large_rewards_keeps_its_digits(ties: Ties) -> None:
    """Rewards around 4096 are exact in float32 to 1/2048; a sum of nine such, minus another, would
    be wrong in the third digit. float64 on the same rewards has all digits."""
    reward_N = 4096 + torch.arange(10) / 64
    batch = RankingBatch.gather(
        [rendered(10, chain(0, 1, 2), [vote("a", tuple(range(9)), 9)])], ties
    )
    found = plackett_luce(reward_N, batch)
    assert found.item() == pytest.approx(plackett_luce(reward_N.double(), batch).item(), rel=1e-6)

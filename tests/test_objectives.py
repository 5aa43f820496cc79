"""Bradley-Terry: the worked numbers of the field, its symmetries, its gradient in closed form."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palate.objectives import ComparisonBatch, bradley_terry, comparison_losses, soft_target
from palate.preferences import Comparison

CHOSEN = torch.tensor([0.5, 1.0, -0.3, 0.2])
REJECTED = torch.tensor([0.1, 0.4, -0.1, -0.2])


def pair(**fields: float) -> ComparisonBatch:
    """One prompt, two answers, the first better."""
    return ComparisonBatch.gather([(2, [Comparison(0, 1, **fields)])])


def loss_of(better: float, worse: float, **fields: float) -> float:
    return float(bradley_terry(torch.tensor([better, worse]), pair(**fields)))


def test_one_step_from_a_zero_head() -> None:
    """h+ = (0.5, 1, -0.3, 0.2), h- = (0.1, 0.4, -0.1, -0.2), w = 0.

    Both rewards are 0, so the loss is -log s(0) = ln 2. Its gradient in w is
    -(1 - s(0)) (h+ - h-) = -0.5 (0.4, 0.6, -0.2, 0.4) = (-0.2, -0.3, 0.1, -0.2). A step with rate 1
    gives w = (0.2, 0.3, -0.1, 0.2), rewards 0.1 + 0.3 + 0.03 + 0.04 = 0.47 and
    0.02 + 0.12 + 0.01 - 0.04 = 0.11, margin 0.36, P = s(0.36) = 0.589, loss 0.529. A bias moves
    both rewards alike, so its gradient is exactly 0.
    """
    weight = torch.zeros(4, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)

    def rewards() -> torch.Tensor:
        return torch.stack([CHOSEN, REJECTED]) @ weight + bias

    loss = bradley_terry(rewards(), pair())
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)
    assert weight.grad is not None and bias.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([-0.2, -0.3, 0.1, -0.2]))
    assert bias.grad.item() == 0.0
    with torch.no_grad():
        weight -= weight.grad
    after = rewards().detach()
    torch.testing.assert_close(after, torch.tensor([0.47, 0.11]))
    assert torch.sigmoid(after[0] - after[1]).item() == pytest.approx(0.589, abs=5e-4)
    assert float(bradley_terry(after, pair())) == pytest.approx(0.529, abs=5e-4)


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [(2.1, 0.8, 0.2410), (1.8, 1.2, 0.4375), (2.5, 1.5, 0.3133)],
)
def test_losses_of_three_margins(better: float, worse: float, expected: float) -> None:
    """-log s(1.3) = log(1 + e^-1.3) = log 1.27253 = 0.2410; likewise for 0.6 and 1.0.

    Texts in circulation print 0.2416 for the first and 0.6006 for the second. 0.6006 is no
    -log s of 0.6 (0.4375) either way round.
    """
    assert loss_of(better, worse) == pytest.approx(expected, abs=5e-5)


def test_mean_of_the_three() -> None:
    """(0.2410 + 0.4375 + 0.3133) / 3 = 0.3306; P for the first is s(1.3) = 0.7858."""
    losses = [loss_of(2.1, 0.8), loss_of(1.8, 1.2), loss_of(2.5, 1.5)]
    assert sum(losses) / 3 == pytest.approx(0.3306, abs=5e-5)
    assert math.exp(-losses[0]) == pytest.approx(0.7858, abs=5e-5)


def test_loss_of_a_margin_of_four_either_way() -> None:
    """log(1 + e^-4) = 0.01815 when right, 4 + 0.01815 when wrong."""
    assert loss_of(4.0, 0.0) == pytest.approx(0.01815, abs=1e-5)
    assert loss_of(0.0, 4.0) == pytest.approx(4.01815, abs=1e-5)


def test_loss_and_gradient_stay_finite_at_extreme_margins() -> None:
    """log(1 + e^x) written out overflows beyond x = 88 in float32; here the loss is x itself."""
    reward = torch.tensor([-1000.0, 1000.0], requires_grad=True)
    loss = bradley_terry(reward, pair())
    loss.backward()
    assert loss.item() == pytest.approx(2000.0)
    assert reward.grad is not None
    assert reward.grad.tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("num_answers", range(4, 10))
def test_every_prompt_weighs_the_same(num_answers: int) -> None:
    """A zero head costs ln 2 per prompt, whether it has 6 comparisons (K = 4) or 36 (K = 9)."""
    comparisons = [Comparison(i, j) for i in range(num_answers) for j in range(i + 1, num_answers)]
    assert len(comparisons) == num_answers * (num_answers - 1) // 2
    batch = ComparisonBatch.gather([(num_answers, comparisons), (2, [Comparison(0, 1)])])
    loss = bradley_terry(torch.zeros(num_answers + 2), batch)
    assert loss.item() == pytest.approx(2 * math.log(2), abs=1e-6)


def test_soft_target_is_fitted_by_its_own_log_odds() -> None:
    """7 of 10 votes with half a pseudo-vote each side: p = 7.5 / 11 = 0.682. The constant margin
    that minimises -[p log s(d) + (1 - p) log s(-d)] is log(p / (1 - p)) = log(7.5 / 3.5) = 0.762.
    """
    batch = pair(probability=7.5 / 11)
    margin = torch.tensor(0.0, requires_grad=True)
    optimiser = torch.optim.LBFGS([margin], tolerance_grad=1e-9)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = bradley_terry(torch.stack([margin, torch.zeros(())]), batch)
        loss.backward()
        return loss

    for _ in range(10):
        optimiser.step(closure)
    assert margin.item() == pytest.approx(math.log(7.5 / 3.5), abs=1e-4)
    assert margin.item() == pytest.approx(0.762, abs=5e-4)


def test_a_margin_shifts_the_winning_side_only() -> None:
    """-log s(d - m) with d = 1, m = 0.5 is log(1 + e^-0.5) = 0.4741."""
    assert loss_of(1.0, 0.0, margin=0.5) == pytest.approx(math.log1p(math.exp(-0.5)), abs=1e-6)


def test_ties_count_half_or_drop_out() -> None:
    """p = 0.9 given no tie, 40 % ties: half gives 0.6 * 0.9 + 0.2 = 0.74 at full weight; drop gives
    0.9 at weight 0.6."""
    assert soft_target(0.9, 0.4, "half") == (pytest.approx(0.74), 1.0)
    assert soft_target(0.9, 0.4, "drop") == (0.9, pytest.approx(0.6))
    dropped = ComparisonBatch.gather([(2, [Comparison(0, 1, tie=1.0)])], "drop")
    assert float(bradley_terry(torch.tensor([3.0, -3.0]), dropped)) == 0.0


rewards_of_four = st.lists(st.floats(-8, 8), min_size=4, max_size=4)
comparison = st.builds(
    Comparison,
    better=st.just(0),
    worse=st.integers(1, 3),
    probability=st.floats(0.5, 1),
    tie=st.floats(0, 1),
    weight=st.floats(0, 3),
)
hard = st.builds(Comparison, better=st.just(2), worse=st.just(3), margin=st.floats(0, 3))


@given(rewards_of_four, st.lists(st.one_of(comparison, hard), min_size=1, max_size=5))
def test_gradient_in_closed_form(values: list[float], comparisons: list[Comparison]) -> None:
    """d loss / d margin = (1 - p) s(d) - p s(m - d), times weight / number of comparisons."""
    reward = torch.tensor(values, requires_grad=True)
    bradley_terry(reward, ComparisonBatch.gather([(4, comparisons)])).backward()
    expected = torch.zeros(4, dtype=torch.float64)
    for c in comparisons:
        p, _ = soft_target(c.probability, c.tie, "half")
        d = values[c.better] - values[c.worse]
        slope = (1 - p) / (1 + math.exp(-d)) - p / (1 + math.exp(d - c.margin))
        expected[c.better] += slope * c.weight / len(comparisons)
        expected[c.worse] -= slope * c.weight / len(comparisons)
    assert reward.grad is not None
    torch.testing.assert_close(reward.grad.double(), expected, atol=2e-6, rtol=1e-5)


@given(rewards_of_four, st.floats(-50, 50), st.lists(comparison, min_size=1, max_size=4))
def test_a_shift_of_all_rewards_changes_nothing(
    values: list[float], shift: float, comparisons: list[Comparison]
) -> None:
    batch = ComparisonBatch.gather([(4, comparisons)])
    reward = torch.tensor(values)
    before, after = bradley_terry(reward, batch), bradley_terry(reward + shift, batch)
    assert after.item() == pytest.approx(before.item(), abs=1e-4)


@given(st.floats(-8, 8), st.floats(0.5, 1))
def test_swapping_the_answers_mirrors_the_gradient(difference: float, probability: float) -> None:
    """loss(d, p) - loss(-d, p) = (1 - 2p) d; with p = 1/2 the loss is even in the margin."""
    batch = pair(probability=probability)
    forth = float(bradley_terry(torch.tensor([difference, 0.0]), batch))
    back = float(bradley_terry(torch.tensor([0.0, difference]), batch))
    assert forth - back == pytest.approx((1 - 2 * probability) * difference, abs=1e-4)


def test_permuting_the_answers_changes_nothing() -> None:
    reward = torch.tensor([0.3, -1.0, 2.0, 0.7])
    comparisons = [Comparison(0, 1), Comparison(2, 3, probability=0.7), Comparison(3, 1)]
    new_place = [2, 0, 3, 1]
    moved = torch.empty(4)
    moved[new_place] = reward
    renamed = [
        Comparison(new_place[c.better], new_place[c.worse], probability=c.probability)
        for c in comparisons
    ]
    before = bradley_terry(reward, ComparisonBatch.gather([(4, comparisons)]))
    after = bradley_terry(moved, ComparisonBatch.gather([(4, renamed)]))
    assert after.item() == pytest.approx(before.item(), abs=1e-6)


def test_losses_of_a_batch_are_those_of_its_prompts() -> None:
    groups = [(2, [Comparison(0, 1)]), (3, [Comparison(2, 0), Comparison(1, 0, weight=2.0)])]
    reward = torch.tensor([1.0, 0.2, -0.5, 0.1, 0.9])
    together = bradley_terry(reward, ComparisonBatch.gather(groups))
    apart = bradley_terry(reward[:2], ComparisonBatch.gather(groups[:1])) + bradley_terry(
        reward[2:], ComparisonBatch.gather(groups[1:])
    )
    assert together.item() == pytest.approx(apart.item(), abs=1e-6)
    assert comparison_losses(reward, ComparisonBatch.gather(groups)).shape == (3,)

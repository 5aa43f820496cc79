"""Where each objective is smallest, by hand and by Newton's method in float64."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from palate.objectives import Objective, ObjectiveSettings, annotators
from palate.preferences import Comparison, Vote
from palate.preferences.votes import VoteSettings, comparison_of_strength
from palate.rendering import RenderedGroup
from tests.objective_cases import CASES, minimise, rendered, step_loss, vote

RANKED = rendered(3, [Comparison(0, 1), Comparison(0, 2), Comparison(1, 2)])


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def best_rewards(
    settings: ObjectiveSettings,
    groups: list[RenderedGroup],
    trained_on: list[RenderedGroup] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Rewards and learned parameters at the minimum of one step."""
    # Sum-to-zero with the live mean: the minimiser needs its curvature.
    objective = Objective(replace(settings, sum_to_zero=0.0), trained_on or groups)
    batch, names = objective.batch(groups), list(objective.initial)
    firsts = [value.double().flatten() for value in objective.initial.values()]

    def parts(flat: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        reward_N, *values = flat.split([len(batch.share_N), *map(len, firsts)])
        shapes = [value.shape for value in objective.initial.values()]
        learned = [value.reshape(shape) for value, shape in zip(values, shapes, strict=True)]
        return reward_N, dict(zip(names, learned, strict=True))

    def loss(flat: Tensor) -> Tensor:
        reward_N, learned = parts(flat)
        mean = (batch.share_N * reward_N).sum() / len(groups)
        data = objective.loss(reward_N, batch, learned) / len(groups)
        return data + settings.sum_to_zero * mean.square()

    start = torch.linspace(0.2, 0, len(batch.share_N), dtype=torch.float64)
    return parts(minimise(loss, torch.cat([start, *firsts])))


def best_gap(settings: ObjectiveSettings, *comparisons: Comparison, **more: object) -> float:
    reward_N, _ = best_rewards(settings, [rendered(2, comparisons)], **more)  # type: ignore[arg-type]
    return float(reward_N[0] - reward_N[1])


@pytest.mark.parametrize("smoothing", [0.01, 0.1, 0.3])
def test_label_smoothing_of_a_sure_label(smoothing: float) -> None:
    """The target becomes 1 - e, so the gap is the log-odds log((1 - e) / e)."""
    gap = best_gap(ObjectiveSettings(label_smoothing=smoothing), Comparison(0, 1))
    assert gap == pytest.approx(logit(1 - smoothing), rel=1e-5)


def test_label_smoothing_of_votes() -> None:
    """p = 0.8 with e = 0.1: 0.9 * 0.8 + 0.1 * 0.2 = 0.74. With a fifth of ties, half a win each:
    0.8 * 0.8 + 0.1 = 0.74, smoothed 0.9 * 0.74 + 0.1 * 0.26 = 0.692."""
    settings = ObjectiveSettings(label_smoothing=0.1)
    assert best_gap(settings, Comparison(0, 1, 0.8)) == pytest.approx(logit(0.74), rel=1e-5)
    tied = Comparison(0, 1, 0.8, tie=0.2)
    assert best_gap(settings, tied) == pytest.approx(logit(0.692), rel=1e-5)


def test_ties_as_half_wins_or_none() -> None:
    """p = 0.8, t = 0.2: half gives 0.74, drop 0.8."""
    tied = Comparison(0, 1, 0.8, tie=0.2)
    assert best_gap(ObjectiveSettings(), tied) == pytest.approx(logit(0.74), rel=1e-5)
    assert best_gap(ObjectiveSettings(ties="drop"), tied) == pytest.approx(logit(0.8), rel=1e-5)


def test_margins_by_strength_move_the_optimum() -> None:
    """Strength 2 at 0.5 logits a unit: m = 1. One vote with it against one without the other way:
    -log s(d - 1) - log s(-d) is smallest where s(1 - d) = s(d), d = 1/2: Llama 2's margin puts
    answers apart on which people are evenly split."""
    for_it = comparison_of_strength(0, 1, 2.0, VoteSettings(margin_per_strength=0.5))
    assert for_it.margin == 1.0
    assert best_gap(ObjectiveSettings(), for_it, Comparison(1, 0)) == pytest.approx(0.5, abs=1e-6)


def test_weights_by_strength_are_odds() -> None:
    """Strength 3 against strength 1: -3 log s(d) - log s(-d) is smallest at d = log 3, the
    log-odds of 3 votes against 1 (scaled Bradley-Terry of HelpSteer2-Preference, 2410.01257)."""
    settings = VoteSettings(scale_by_strength=True)
    for_it = comparison_of_strength(0, 1, 3.0, settings)
    against = comparison_of_strength(1, 0, 1.0, settings)
    assert best_gap(ObjectiveSettings(), for_it, against) == pytest.approx(math.log(3), rel=1e-6)


@pytest.mark.parametrize(
    ("win", "loss", "tie"), [(0.5, 0.2, 0.3), (0.3, 0.1, 0.6), (0.9, 0.05, 0.05)]
)
def test_davidson_fits_three_shares(win: float, loss: float, tie: float) -> None:
    """win / loss = exp(d) and tie / sqrt(win loss) = v, so both are read off."""
    group = rendered(2, [Comparison(0, 1, win / (win + loss), tie)])
    reward_N, learned = best_rewards(ObjectiveSettings(kind="davidson"), [group])
    assert float(reward_N[0] - reward_N[1]) == pytest.approx(math.log(win / loss), rel=1e-5)
    width = float(learned["tie_log_width"].exp())
    assert width == pytest.approx(tie / math.sqrt(win * loss), rel=1e-5)


@pytest.mark.parametrize(
    ("win", "loss", "tie"), [(0.5, 0.2, 0.3), (0.3, 0.1, 0.6), (0.9, 0.05, 0.05)]
)
def test_rao_kupper_fits_three_shares(win: float, loss: float, tie: float) -> None:
    """logit win = d - h and logit loss = -d - h, so both are half a difference and half a sum."""
    group = rendered(2, [Comparison(0, 1, win / (win + loss), tie)])
    reward_N, learned = best_rewards(ObjectiveSettings(kind="rao-kupper"), [group])
    gap = (logit(win) - logit(loss)) / 2
    assert float(reward_N[0] - reward_N[1]) == pytest.approx(gap, rel=1e-5)
    width = float(learned["tie_log_width"].exp())
    assert width == pytest.approx(-(logit(win) + logit(loss)) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", ["davidson", "rao-kupper"])
def test_the_width_starts_where_equal_rewards_leave_it(kind: str) -> None:
    """Prompts with tie shares 0.3 and (0.2 + 0.6) / 2, weights 1 and 3: (0.3 + 3 * 0.4) / 4 = 3/8.
    At equal rewards P(tie) is 3/8, the loss its entropy, and the width's gradient is 0."""
    groups = [
        rendered(2, [Comparison(0, 1, 0.7, 0.3)]),
        rendered(3, [Comparison(0, 1, 1, 0.2, weight=3), Comparison(1, 2, 0.6, 0.6, weight=3)]),
    ]
    objective = Objective(ObjectiveSettings(kind=kind), groups)  # type: ignore[arg-type]
    log_width = objective.initial["tie_log_width"].clone().requires_grad_()
    loss = objective.loss(torch.zeros(5), objective.batch(groups), {"tie_log_width": log_width})
    entropy = -0.375 * math.log(0.375) - 0.625 * math.log(0.3125)
    assert loss.item() == pytest.approx(4 * entropy, rel=1e-6)
    loss.backward()
    assert log_width.grad is not None
    assert log_width.grad.item() == pytest.approx(0.0, abs=1e-6)
    described = objective.describe(objective.initial)
    assert described["probability of a tie at equal rewards"] == pytest.approx(0.375)
    assert described["tie width"] == pytest.approx(log_width.exp().item())


def test_davidson_keeps_the_meaning_of_a_reward_and_rao_kupper_does_not() -> None:
    """p = 0.8 given no tie, half of all tied. Davidson: log(0.8 / 0.2) = 1.386 as without ties.
    Rao-Kupper: win 0.4, loss 0.1: (logit 0.4 - logit 0.1) / 2 = 0.896."""
    tied = Comparison(0, 1, 0.8, tie=0.5)
    davidson = best_gap(ObjectiveSettings(kind="davidson"), tied)
    assert davidson == pytest.approx(logit(0.8), rel=1e-5)
    rao_kupper = best_gap(ObjectiveSettings(kind="rao-kupper"), tied)
    assert rao_kupper == pytest.approx(0.8959, abs=1e-4)


def test_plackett_luce_fits_the_shares_of_first_places() -> None:
    """First places 6 : 3 : 1. With the first place alone, P(i first) = exp(r_i) / sum, so
    r_i - r_2 = log of the shares' ratio: log 6, log 3."""
    votes = [
        vote(f"v{n}", first, *{0, 1, 2} - {first})
        for n, first in enumerate([0] * 6 + [1] * 3 + [2])
    ]
    group = rendered(3, RANKED.comparisons, votes)
    settings = ObjectiveSettings(kind="plackett-luce", top_k=1)
    reward_N, _ = best_rewards(settings, [group])
    assert (reward_N[:2] - reward_N[2]).tolist() == pytest.approx(
        [math.log(6), math.log(3)], rel=1e-6
    )


@pytest.mark.parametrize(("ties", "gap"), [("half", math.log(3)), ("drop", math.log(5))])
def test_plackett_luce_counts_ties_as_the_setting_says(ties: str, gap: float) -> None:
    """Rankings of 0 and 1 among three: 5 wins, 1 loss, 2 ties. half: 6 against 2; drop: 5 : 1."""
    votes = [vote(f"v{n}", 0, 1) for n in range(5)]
    votes += [vote("loss", 1, 0), vote("tie", (0, 1)), vote("tie 2", (0, 1))]
    group = rendered(3, [Comparison(0, 1)], votes)
    settings = ObjectiveSettings(kind="plackett-luce", ties=ties)  # type: ignore[arg-type]
    reward_N, _ = best_rewards(settings, [group], [RANKED])
    assert float(reward_N[0] - reward_N[1]) == pytest.approx(gap, rel=1e-6)


@pytest.mark.parametrize("probability", [0.55, 0.7, 0.95])
def test_the_hinge_learns_the_margin_whatever_the_votes(probability: float) -> None:
    """Below the margin the slope is (1 - p) - p < 0, above it 1 - p > 0: least at the kink."""
    objective = Objective(ObjectiveSettings(kind="hinge", hinge_margin=0.7), [RANKED])
    batch = objective.batch([rendered(2, [Comparison(0, 1, probability)])])

    def loss(gap: float) -> float:
        return float(objective.loss(torch.tensor([gap, 0.0], dtype=torch.float64), batch))

    assert loss(0.7) == pytest.approx(1.4 * (1 - probability), rel=1e-6)
    assert loss(0.69) - loss(0.7) == pytest.approx(0.01 * (2 * probability - 1), rel=1e-4)
    assert loss(0.71) - loss(0.7) == pytest.approx(0.01 * (1 - probability), rel=1e-4)


def test_the_hinge_adds_the_margin_of_the_comparison() -> None:
    """max(0, 1 + 0.5 - d): 0.3 at d = 1.2, nothing from 1.5 on."""
    objective = Objective(ObjectiveSettings(kind="hinge"), [RANKED])
    batch = objective.batch([rendered(2, [Comparison(0, 1, margin=0.5)])])
    losses = [float(objective.loss(torch.tensor([d, 0.0]), batch)) for d in (1.2, 1.5, 3.0)]
    assert losses == pytest.approx([0.3, 0.0, 0.0], abs=1e-6)


def test_regression_learns_standard_ratings() -> None:
    """Ratings 1, 3 and 5, 7: mean 4, deviation sqrt(5), so z = (-3, -1, 1, 3) / sqrt(5). Reward +
    offset is z; with rewards of 0 it is the mean z, 0, and the loss mean z^2 = 1 per prompt."""
    pair = [Comparison(1, 0)]
    groups = [rendered(2, pair, ratings=[1.0, 3.0]), rendered(2, pair, ratings=[5.0, 7.0])]
    settings = ObjectiveSettings(kind="regression")
    reward_N, learned = best_rewards(settings, groups)
    z = [value / math.sqrt(5) for value in (-3, -1, 1, 3)]
    assert (reward_N + learned["rating_offset"]).tolist() == pytest.approx(z, abs=1e-6)
    objective = Objective(settings, groups)
    first = objective.loss(torch.zeros(4), objective.batch(groups), objective.initial)
    assert float(first) / 2 == pytest.approx(1.0)
    assert objective.describe({"rating_offset": torch.tensor(0.5)}) == {
        "rating of reward 0": pytest.approx(4 + 0.5 * math.sqrt(5)),
        "rating per unit of reward": pytest.approx(math.sqrt(5)),
    }


def test_regression_reads_rated_answers_only() -> None:
    """Of ratings 2 and 6 (mean 4, deviation 2) and an unrated answer: the mean of two squares,
    ((1 + 1)^2 + (3 - 1)^2) / 2 = 4 at rewards 1, 9, 3."""
    group = rendered(3, [Comparison(2, 0), Comparison(1, 0)], ratings=[2.0, None, 6.0])
    objective = Objective(ObjectiveSettings(kind="regression"), [group])
    reward_N = torch.tensor([1.0, 9.0, 3.0])
    assert float(objective.loss(reward_N, objective.batch([group]), objective.initial)) == 4.0


def test_annotators_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a prior. Two annotators, 10 votes each on one pair, 9 and 6 of them for 0. Each
    fits its own log-odds, exp(a) d = logit p, and the log scales sum to 0:
    d = sqrt(logit 0.9 logit 0.6), exp(a_0) = sqrt(logit 0.9 / logit 0.6) = 2.328."""
    monkeypatch.setattr(annotators, "PRIOR_DEVIATION", math.inf)
    votes = (
        [vote("a", 0, 1)] * 9 + [vote("a", 1, 0)] + [vote("b", 0, 1)] * 6 + [vote("b", 1, 0)] * 4
    )
    group = rendered(2, [Comparison(0, 1, 0.75)], votes)
    settings = ObjectiveSettings(annotators="scaled")
    reward_N, learned = best_rewards(settings, [group])
    expected = math.sqrt(logit(0.9) * logit(0.6))
    assert float(reward_N[0] - reward_N[1]) == pytest.approx(expected, rel=1e-6)
    scales = Objective(settings, [group]).describe(learned)["annotators' scales"]
    ratio = math.sqrt(logit(0.9) / logit(0.6))
    assert scales == {"a": pytest.approx(ratio), "b": pytest.approx(1 / ratio)}


def test_the_prior_of_scales_counts_once_for_each_prompt() -> None:
    """3 votes of a and 1 of b: log scales (1, -1) centred are (0.5, -1.5), so that the prior is
    (0.25 + 2.25) / (2 * 4 votes) = 0.3125 a prompt, of the loss but not of validation's."""
    votes = [vote("a", 0, 1), vote("a", 0, 1), vote("a", 1, 0), vote("b", 0, 1)]
    group = rendered(2, [Comparison(0, 1)], votes)
    objective = Objective(ObjectiveSettings(annotators="scaled"), [group])
    learned = {"annotator_log_scale": torch.tensor([1.0, -1.0])}
    for num_prompts in (1, 2, 5):
        batch = objective.batch([group] * num_prompts)
        reward_N = torch.linspace(0, 1, 2 * num_prompts)
        prior = objective.loss(reward_N, batch, learned) - objective.data_loss(
            reward_N, batch, learned
        )
        assert float(prior) == pytest.approx(0.3125 * num_prompts, rel=1e-5)


def test_an_annotator_who_is_always_right_has_a_finite_scale() -> None:
    """a votes 10 times for 0, b 5 times for each: of the votes alone a's scale has no best value.
    With the prior the slope in the log scale of a, 10 s(-e^x d) (-e^x d) + 2 x at (x, -x), is 0,
    and so is that in d."""
    votes = [vote("a", 0, 1)] * 10 + [vote("b", 0, 1)] * 5 + [vote("b", 1, 0)] * 5
    settings = ObjectiveSettings(annotators="scaled")
    reward_N, learned = best_rewards(settings, [rendered(2, [Comparison(0, 1, 0.75)], votes)])
    x, d = float(learned["annotator_log_scale"][0]), float(reward_N[0] - reward_N[1])
    a, b = math.exp(x) * d, math.exp(-x) * d
    of_a, of_b = -10 / (1 + math.exp(a)), 10 / (1 + math.exp(-b)) - 5
    assert 0 < x < 4
    assert of_a * a - of_b * b + 2 * x == pytest.approx(0, abs=1e-5)
    assert of_a * math.exp(x) + of_b * math.exp(-x) == pytest.approx(0, abs=1e-5)


def test_the_mean_scale_is_weighted_by_votes() -> None:
    """3 votes of a and 1 of b: log scales (1, -1) have the mean 0.5, so b's scale is exp(-1.5) and
    a's exp(0.5)."""
    votes = [vote("a", 0, 1), vote("a", 0, 1), vote("a", 1, 0), vote("b", 0, 1)]
    objective = Objective(
        ObjectiveSettings(annotators="scaled"), [rendered(2, [Comparison(0, 1)], votes)]
    )
    described = objective.describe({"annotator_log_scale": torch.tensor([1.0, -1.0])})
    assert described["annotators' scales"] == {
        "a": pytest.approx(math.exp(0.5)),
        "b": pytest.approx(math.exp(-1.5)),
    }


@pytest.mark.parametrize("ties", ["half", "drop"])
def test_equal_scales_are_bradley_terry_on_shares(ties: str) -> None:
    """Votes 3 : 1 with one tie are p = 3/4 and t = 1/5; weights and what has no vote are kept."""
    votes = [*[vote("a", 0, 1)] * 2, vote("b", 0, 1), vote("b", 1, 0), vote("a", (0, 1))]
    comparisons = [Comparison(0, 1, 0.75, tie=0.2, weight=0.5), Comparison(2, 1, 0.6, tie=0.3)]
    group = rendered(3, comparisons, votes)
    reward_N = torch.tensor([0.3, -0.2, 1.1])
    losses = []
    for scales in ("scaled", "pooled"):
        settings = ObjectiveSettings(ties=ties, annotators=scales)  # type: ignore[arg-type]
        objective = Objective(settings, [group])
        losses.append(objective.loss(reward_N, objective.batch([group]), objective.initial))
    torch.testing.assert_close(losses[0], losses[1])


def test_an_annotator_never_trained_on_has_the_mean_scale() -> None:
    trained = rendered(2, [Comparison(0, 1)], [vote("a", 0, 1), vote("b", 0, 1)])
    objective = Objective(ObjectiveSettings(annotators="scaled"), [trained])
    stranger = rendered(2, [Comparison(0, 1)], [Vote("c", ((0,), (1,)))])
    learned = {"annotator_log_scale": torch.tensor([2.0, -2.0])}
    loss = objective.data_loss(torch.tensor([1.3, 0.0]), objective.batch([stranger]), learned)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-1.3)), rel=1e-6)


@pytest.mark.parametrize("term", [{"centring": 0.01}, {"centring": 5.0}, {"sum_to_zero": 0.3}])
def test_a_pair_is_centred_whatever_the_coefficient(term: dict[str, float]) -> None:
    """The sum is free in the data's loss, so it goes to 0, and the gap stays: +- logit(0.8) / 2."""
    settings = ObjectiveSettings(**term)  # type: ignore[arg-type]
    reward_N, _ = best_rewards(settings, [rendered(2, [Comparison(0, 1, 0.8)])])
    half = logit(0.8) / 2
    assert reward_N.tolist() == pytest.approx([half, -half], rel=1e-5)


def test_centring_of_three_answers_written_out() -> None:
    """r = (3, 1, -1): 4^2 + 2^2 + 0 = 20 = (3 - 2) (9 + 1 + 1) + 3^2, a third for each pair."""
    objective = Objective(ObjectiveSettings(centring=0.5), [RANKED])
    batch, reward_N = objective.batch([RANKED]), torch.tensor([3.0, 1.0, -1.0])
    added = objective.loss(reward_N, batch) - objective.data_loss(reward_N, batch)
    assert float(added) == pytest.approx(0.5 * 20 / 3, rel=1e-5)


def test_sum_to_zero_has_the_value_and_gradient_of_the_squared_mean() -> None:
    """Prompts of 2 and 3 answers, means 2 and -1: m = 1/2, 0.3 m^2 = 0.075. The gradient is
    0.3 * 2 m / prompts / K: 0.075 for each answer of the pair, 0.05 for each of the three."""
    groups = [rendered(2, [Comparison(0, 1)]), RANKED]
    objective = Objective(ObjectiveSettings(sum_to_zero=0.3), groups)
    reward_N = torch.tensor([1.0, 3.0, -2.0, 0.0, -1.0], requires_grad=True)
    batch = objective.batch(groups)
    with_term = objective.loss(reward_N, batch, step_mean=torch.tensor(0.5))
    added = (with_term - objective.data_loss(reward_N, batch)) / 2
    assert added.item() == pytest.approx(0.075, rel=1e-5)
    (gradient,) = torch.autograd.grad(added, reward_N)
    assert gradient.tolist() == pytest.approx([0.075, 0.075, 0.05, 0.05, 0.05], rel=1e-5)


@pytest.mark.parametrize("case", ["centring", "sum to zero"])
def test_validation_compares_the_data_alone(case: str) -> None:
    settings, groups = CASES[case]
    objective = Objective(settings, groups)
    plain = Objective(replace(settings, centring=0.0, sum_to_zero=0.0), groups)
    reward_N = torch.linspace(-1, 2, sum(len(g.sequences) for g in groups))
    batch, learned = objective.batch(groups), objective.initial
    data = objective.data_loss(reward_N, batch, learned)
    assert float(data) == float(plain.loss(reward_N, batch, learned))
    assert float(step_loss(objective, reward_N, groups, learned)) != float(data) / len(groups)

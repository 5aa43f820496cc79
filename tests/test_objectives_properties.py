"""What every objective must have: symmetries, exact microbatches, right and finite gradients."""

from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from palate.objectives import Objective
from palate.preferences import Comparison, Vote
from palate.rendering import RenderedGroup
from tests.objective_cases import (
    CASES,
    num_rewards,
    rendered,
    some_learned,
    some_rewards,
    step_loss,
)

every_case = pytest.mark.parametrize("case", CASES)
INVARIANT_UNDER_SHIFTS = [case for case in CASES if case != "regression"]
REVERSIBLE = [case for case in CASES if not case.startswith("plackett-luce")]


def permuted(group: RenderedGroup, order: list[int]) -> RenderedGroup:
    """The same group with its sequences in another order."""
    place = {old: new for new, old in enumerate(order)}
    return replace(
        group,
        sequences=tuple(group.sequences[old] for old in order),
        comparisons=tuple(
            replace(c, better=place[c.better], worse=place[c.worse]) for c in group.comparisons
        ),
        response_index=tuple(group.response_index[old] for old in order),
    )


def turned_round(group: RenderedGroup) -> RenderedGroup:
    """Whoever won has lost: comparisons and votes reversed, ratings negated."""
    responses = tuple(
        replace(r, rating=None if r.rating is None else -r.rating) for r in group.group.responses
    )
    votes = tuple(Vote(v.annotator, v.ranking[::-1]) for v in group.group.votes)

    def reverse(c: Comparison) -> Comparison:
        return replace(c, better=c.worse, worse=c.better)

    return replace(
        group,
        comparisons=tuple(map(reverse, group.comparisons)),
        group=replace(
            group.group,
            responses=responses,
            votes=votes,
            comparisons=tuple(map(reverse, group.group.comparisons)),
        ),
    )


@every_case
def test_gradients_are_the_differences_of_the_loss(case: str) -> None:
    """Of the rewards and of what is learned, in float64. The mean of the step is left as it is."""
    settings, groups = CASES[case]
    objective = Objective(settings, groups)
    learned = some_learned(objective)
    batch = objective.batch(groups)
    reward_N = some_rewards(num_rewards(groups))

    def loss(reward_N: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        mean = torch.tensor(0.4, dtype=torch.float64)
        return objective.loss(reward_N, batch, dict(zip(learned, values, strict=True)), mean)

    inputs = [value.requires_grad_() for value in (reward_N, *learned.values())]
    assert torch.autograd.gradcheck(loss, inputs)
    gradients = torch.autograd.grad(loss(*inputs), inputs)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@every_case
def test_any_microbatches_give_the_gradient_of_the_whole_step(case: str) -> None:
    """Pieces of 2, 1 and 2 prompts, each with the mean of the whole step, add up to the step."""
    settings, groups = CASES[case]
    objective = Objective(settings, groups)
    learned = {name: value.requires_grad_() for name, value in some_learned(objective).items()}
    reward_N = some_rewards(num_rewards(groups)).requires_grad_()
    inputs = [reward_N, *learned.values()]
    whole = step_loss(objective, reward_N, groups, learned)
    expected = torch.autograd.grad(whole, inputs)

    mean = (objective.batch(groups).share_N * reward_N.detach()).sum() / len(groups)
    parts = []
    offset = 0
    for members in (groups[:2], groups[2:3], groups[3:]):
        end = offset + num_rewards(members)
        if members:
            batch = objective.batch(members)
            parts.append(objective.loss(reward_N[offset:end], batch, learned, mean))
        offset = end
    total = torch.stack(parts).sum() / len(groups)
    torch.testing.assert_close(total, whole)
    for found, value in zip(torch.autograd.grad(total, inputs), expected, strict=True):
        torch.testing.assert_close(found, value)


@pytest.mark.parametrize("case", INVARIANT_UNDER_SHIFTS)
def test_a_constant_per_prompt_changes_nothing(case: str) -> None:
    settings, groups = CASES[case]
    objective = Objective(settings, groups)
    learned, batch = some_learned(objective), objective.batch(groups)
    reward_N = some_rewards(num_rewards(groups))
    shift_N = torch.cat([torch.full((len(g.sequences),), 3.0 * i) for i, g in enumerate(groups)])
    torch.testing.assert_close(
        objective.data_loss(reward_N + shift_N, batch, learned),
        objective.data_loss(reward_N, batch, learned),
    )


def test_a_shift_of_all_rewards_is_taken_up_by_the_offset_of_regression() -> None:
    settings, groups = CASES["regression"]
    objective = Objective(settings, groups)
    batch, reward_N = objective.batch(groups), some_rewards(num_rewards(groups))
    before = objective.loss(reward_N, batch, {"rating_offset": torch.tensor(0.5)})
    after = objective.loss(reward_N + 2, batch, {"rating_offset": torch.tensor(-1.5)})
    torch.testing.assert_close(after, before)


@every_case
def test_the_order_of_answers_and_of_prompts_means_nothing(case: str) -> None:
    settings, groups = CASES[case]
    objective = Objective(settings, groups)
    learned, reward_N = some_learned(objective), some_rewards(num_rewards(groups))
    parts = list(reward_N.split([len(group.sequences) for group in groups]))
    orders = [[*range(1, len(part)), 0] for part in parts]
    moved = [permuted(group, order) for group, order in zip(groups, orders, strict=True)]
    moved_parts = [part[order] for part, order in zip(parts, orders, strict=True)]
    expected = step_loss(objective, reward_N, groups, learned)
    found = step_loss(objective, torch.cat(moved_parts[::-1]), moved[::-1], learned)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("case", REVERSIBLE)
def test_losing_with_negated_rewards_is_winning(case: str) -> None:
    """loss(-r, everything turned round) = loss(r). Not of Plackett-Luce: to be chosen last is not
    the mirror image of being chosen first."""
    settings, groups = CASES[case]
    objective = Objective(settings, groups)
    mirror = Objective(settings, [turned_round(group) for group in groups])
    learned, reward_N = some_learned(objective), some_rewards(num_rewards(groups))
    reflected = {n: -v if n == "rating_offset" else v for n, v in learned.items()}
    turned = [turned_round(group) for group in groups]
    torch.testing.assert_close(
        step_loss(mirror, -reward_N, turned, reflected),
        step_loss(objective, reward_N, groups, learned),
    )


@every_case
@pytest.mark.parametrize("size", [1e4, 1e2, 1e-4])
def test_loss_and_gradients_stay_finite(case: str, size: float) -> None:
    settings, groups = CASES[case]
    objective = Objective(settings, groups)
    learned = {name: value.clone().requires_grad_() for name, value in objective.initial.items()}
    reward_N = (size * some_rewards(num_rewards(groups), torch.float32)).requires_grad_()
    loss = step_loss(objective, reward_N, groups, learned)
    assert loss.dtype == torch.float32 and loss.shape == ()
    loss.backward()
    for value in (loss, reward_N.grad, *(p.grad for p in learned.values())):
        assert value is not None and value.isfinite().all()


@every_case
def test_half_precision_rewards_get_a_float32_loss(case: str) -> None:
    """bfloat16 keeps 8 bits: rewards that it holds exactly give the float32 loss exactly."""
    settings, groups = CASES[case]
    objective = Objective(settings, groups)
    rounded = some_rewards(num_rewards(groups), torch.float32).bfloat16()
    expected = step_loss(objective, rounded.float(), groups, objective.initial)
    batch = objective.batch(groups)
    mean = (batch.share_N * rounded.float()).sum() / len(groups)
    found = objective.loss(rounded, batch, objective.initial, mean) / len(groups)
    assert found.dtype == torch.float32
    assert float(found) == float(expected)


@every_case
def test_prompts_of_weight_0_add_nothing(case: str) -> None:
    """A source left out, say: loss 0; gradients 0 and not absent, which parallel training needs."""
    settings, groups = CASES[case]
    objective = Objective(replace(settings, sum_to_zero=0.0), groups)
    silent = [
        replace(g, comparisons=tuple(replace(c, weight=0.0) for c in g.comparisons)) for g in groups
    ]
    learned = {name: value.clone().requires_grad_() for name, value in objective.initial.items()}
    reward_N = some_rewards(num_rewards(groups), torch.float32).requires_grad_()
    loss = objective.loss(reward_N, objective.batch(silent), learned)
    loss.backward()
    assert loss.item() == 0.0
    for value in (reward_N, *learned.values()):
        assert value.grad is not None and not value.grad.any()


@every_case
def test_weights_scale_the_loss(case: str) -> None:
    """Comparisons, rankings and ratings alike: a source of weight 2 counts twice."""
    settings, groups = CASES[case]
    objective = Objective(replace(settings, sum_to_zero=0.0), groups)
    doubled = [
        replace(g, comparisons=tuple(replace(c, weight=2 * c.weight) for c in g.comparisons))
        for g in groups
    ]
    learned, reward_N = some_learned(objective), some_rewards(num_rewards(groups))
    # The prior of annotators' scales, as the sum to zero, has no part in weights.
    loss = objective.data_loss if settings.annotators == "scaled" else objective.loss
    torch.testing.assert_close(
        loss(reward_N, objective.batch(doubled), learned),
        2 * loss(reward_N, objective.batch(groups), learned),
    )


@every_case
@pytest.mark.parametrize("num_prompts", [0, 1])
def test_a_microbatch_without_what_the_loss_reads_adds_nothing(case: str, num_prompts: int) -> None:
    """No prompts, or one without votes, rankings, ratings or weight: 0, and gradients of 0."""
    settings, groups = CASES[case]
    objective = Objective(replace(settings, sum_to_zero=0.0), groups)
    batch = objective.batch([rendered(2, [Comparison(0, 1, weight=0.0)])] * num_prompts)
    learned = {name: value.clone().requires_grad_() for name, value in objective.initial.items()}
    reward_N = some_rewards(2 * num_prompts, torch.float32).requires_grad_()
    loss = objective.loss(reward_N, batch, learned)
    loss.backward()
    assert batch.num_prompts == num_prompts and loss.item() == 0.0
    for value in (reward_N, *learned.values()):
        assert value.grad is not None and not value.grad.any()


def tensors_in(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if is_dataclass(value):
        return [t for field in fields(value) for t in tensors_in(getattr(value, field.name))]
    return [t for part in value for t in tensors_in(part)] if isinstance(value, tuple) else []


@every_case
def test_a_batch_moves_whole(case: str) -> None:
    settings, groups = CASES[case]
    batch = Objective(settings, groups).batch(groups)
    moved = batch.to(torch.device("meta"))
    assert len(tensors_in(moved)) == len(tensors_in(batch)) > 6
    assert all(tensor.device.type == "meta" for tensor in tensors_in(moved))
    assert moved.num_prompts == len(groups)


@every_case
def test_shares_of_a_prompt_sum_to_one(case: str) -> None:
    settings, groups = CASES[case]
    share_N = Objective(settings, groups).batch(groups).share_N
    for group, part in zip(groups, share_N.split([len(g.sequences) for g in groups]), strict=True):
        assert part.tolist() == pytest.approx([1 / len(group.sequences)] * len(group.sequences))

"""Pooling and heads against sums taken by hand and against each answer alone.

Legend: R rows, T tokens of a row, N sequences, D width of the body.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from palate.forest import plan_rows, plan_trees
from palate.model.heads import Head, MlpHead, init_head
from palate.model.pooling import (
    Pooling,
    attention_weights,
    mean_weights,
    members,
    weighted_sums,
)
from palate.model.reward_model import RewardModel, plan_tensors
from tests.test_model import (
    PAD,
    REWARD_TOLERANCE,
    assert_same_gradients,
    gradients,
    ids,
    many_groups,
    planned,
)
from tests.tiny import CAUSAL, ENCODERS, WITHOUT_CLASS, tiny_body

WIDTH = 32
TREES = ["llama", "mixtral", "gemma2", "gpt2", "qwen2 window", "granite"]
OWN_POOLINGS: tuple[Pooling, ...] = ("mean", "attention")


def own(kind: str, pooling: Pooling, head: str = "linear", layout: Any = "rows") -> RewardModel:
    """A tiny body under a head of ours; the query is not zero, so that attention is no mean."""
    made: Head = MlpHead(WIDTH, 8) if head == "mlp" else nn.Linear(WIDTH, 1, bias=False)
    body = tiny_body(kind)
    torch.manual_seed(1)
    init_head(made, "normal")
    model = RewardModel(body, layout, made, pooling)
    if model.query is not None:
        nn.init.normal_(model.query, std=3.0)
    return model.eval()


def alone(model: RewardModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Each sequence by itself through the body, pooled as the definition says."""
    rewards = []
    for sequence in sequences:
        hidden_TD = model.body(torch.tensor([sequence])).last_hidden_state[0]
        if model.query is None:
            pooled_D = hidden_TD.mean(0)
        else:
            score_T = hidden_TD @ model.query / math.sqrt(WIDTH)
            pooled_D = (score_T.softmax(0)[:, None] * hidden_TD).sum(0)
        head: Any = model.head
        if isinstance(head, MlpHead):
            pooled_D = nn.functional.gelu(head.hidden(pooled_D))
            head = head.out
        rewards.append(head(pooled_D)[0])
    return torch.stack(rewards)


def test_a_sequence_is_pooled_over_its_prefix_and_its_branch() -> None:
    """One row: a tree of prefix (5, 6) with branches (7) and (8, 9), then one of no prefix with the
    branch (10, 11), then padding. Let the state of a token be (its id, 1). The sequences are

        5 6 7     mean (18/3, 1) = (6, 1)
        5 6 8 9   mean (28/4, 1) = (7, 1)
        10 11     mean (21/2, 1) = (10.5, 1)

    The query (s, 0) with s = sqrt(2) ln 2 scores a token ln 2 times its id, so its weight doubles
    from one id to the next: 5 6 7 weigh 1 2 4, (5 + 12 + 28)/7 = 45/7; 5 6 8 9 weigh 1 2 8 16,
    (5 + 12 + 64 + 144)/27 = 225/27; 10 11 weigh 1 2, 32/3.
    """
    (plan,) = plan_trees([[[5, 6, 7], [5, 6, 8, 9]], [[10, 11]]], 10**9, PAD)
    tensors = plan_tensors(plan, torch.device("cpu"))
    state_RTD = torch.stack([tensors["input_ids_RT"], torch.ones_like(tensors["reach_RT"])], -1)
    state_RTD = state_RTD.float()
    ends = tensors["end_row_N"], tensors["end_column_N"]
    member_NT = members(tensors["reach_RT"], *ends)
    assert member_NT.sum(1).tolist() == [3, 4, 2]

    weight_NT = mean_weights(member_NT)
    pooled_ND = weighted_sums(weight_NT, ends[0], state_RTD)
    torch.testing.assert_close(pooled_ND, torch.tensor([[6.0, 1], [7, 1], [10.5, 1]]))

    query_D = torch.tensor([math.sqrt(2) * math.log(2), 0.0])
    weight_NT = attention_weights(member_NT, state_RTD, ends[0], query_D)
    pooled_ND = weighted_sums(weight_NT, ends[0], state_RTD)
    expected = torch.tensor([[45 / 7, 1], [225 / 27, 1], [32 / 3, 1]])
    torch.testing.assert_close(pooled_ND, expected)


@pytest.mark.parametrize("pooling", OWN_POOLINGS)
@pytest.mark.parametrize("kind", TREES)
def test_tree_equals_rows_equals_each_answer_alone(kind: str, pooling: Pooling) -> None:
    """Rewards and gradients of body, query and head, for both layouts and several token budgets."""
    model = own(kind, pooling, "mlp", "tree")
    groups = many_groups()
    sequences = [sequence for members in groups for sequence in members]
    truth = alone(model, sequences)
    assert truth.std() > 0.02, "pooled states differ, so that a wrong membership shows"
    torch.manual_seed(2)
    weights = torch.randn(len(sequences))
    expected = gradients(model, truth, weights)
    assert any(name.startswith("reward_head.") for name in expected)
    assert ("query" in expected) == (pooling == "attention")
    for layout, tokens in (("tree", 10**9), ("tree", 200), ("rows", 500)):
        rewards = torch.cat(planned(model, groups, layout, tokens))
        torch.testing.assert_close(rewards, truth, rtol=0, atol=REWARD_TOLERANCE)
        assert_same_gradients(gradients(model, rewards, weights), expected)


@torch.inference_mode()
@pytest.mark.parametrize("pooling", OWN_POOLINGS)
@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS, *WITHOUT_CLASS])
def test_neighbours_and_padding_do_not_change_a_reward(kind: str, pooling: Pooling) -> None:
    """Beside neighbours of 1 to 60 tokens, and texts that hold the pad id inside. The twin, a mean
    over all slots of the row, is far off."""
    model = own(kind, pooling)
    random = np.random.default_rng(2)
    sequences = [ids(random, length) for length in (1, 60, 7, 33, 34, 18)]
    sequences[3][10] = PAD
    truth = alone(model, sequences)
    rewards = torch.cat(planned(model, [[ids] for ids in sequences], "rows", 10**9))
    assert (rewards - truth).abs().max() < REWARD_TOLERANCE

    (plan,) = plan_rows([[sequences[0], sequences[1]]], 10**9, PAD)
    tensors = plan_tensors(plan, torch.device("cpu"))
    hidden_RTD = model.body(
        tensors["input_ids_RT"], attention_mask=(tensors["reach_RT"] > 0).long()
    ).last_hidden_state
    assert (model.reward_of(hidden_RTD.mean(1))[0] - truth[0]).abs() > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_query_of_zero_gives_the_mean(kind: str) -> None:
    mean, attention = own(kind, "mean"), own(kind, "attention")
    assert attention.query is not None
    fresh = RewardModel(attention.body, "rows", nn.Linear(WIDTH, 1, bias=False), "attention")
    assert fresh.query is not None
    assert not fresh.query.any()
    attention.query.zero_()
    plan = plan_rows([[ids(np.random.default_rng(0), n) for n in (3, 20)]], 10**9, PAD)[0]
    torch.testing.assert_close(attention.run(plan).hidden_ND, mean.run(plan).hidden_ND)


def test_an_mlp_head_is_what_its_equation_says() -> None:
    """v . gelu(W h + b) with W = [[1, 2], [3, -1]], b = (-1, 1), v = (2, -1), h = (1, 1): W h + b =
    (2, 3). gelu(x) is x times the normal distribution function: 2 * 0.9772499 = 1.9544997 and
    3 * 0.9986501 = 2.9959503; 2 * 1.9544997 - 2.9959503 = 0.9130491."""
    head = MlpHead(2, 2)
    with torch.no_grad():
        head.hidden.weight.copy_(torch.tensor([[1.0, 2], [3, -1]]))
        head.hidden.bias.copy_(torch.tensor([-1.0, 1]))
        head.out.weight.copy_(torch.tensor([[2.0, -1]]))
    model = RewardModel(tiny_body("llama"), "rows", head, "mean")
    assert model.reward_of(torch.ones(1, 2)).item() == pytest.approx(0.9130491, abs=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_zero_head_starts_from_a_loss_of_ln_2_exactly(head: str) -> None:
    """All rewards are 0.0, so -log s(0) = ln 2, to the last bit; the hidden layer is not zero."""
    model = own("llama", "mean", head)
    init_head(model.head, "zero")
    first, second = torch.cat(planned(model, [[[5, 6, 7], [5, 6, 8, 9]]], "rows", 100))
    assert first == second == 0.0
    assert -logsigmoid(first - second) == torch.tensor(2.0).log()
    if isinstance(model.head, MlpHead):
        assert model.head.hidden.weight.std().item() == pytest.approx(WIDTH**-0.5, rel=0.2)
        assert not model.head.hidden.bias.any()
        init_head(model.head, "normal")
        assert model.head.out.weight.std().item() == pytest.approx(8**-0.5, rel=0.6)


@torch.inference_mode()
@pytest.mark.parametrize("pooling", ["last", *OWN_POOLINGS])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_pooling_and_head_run_in_float32_over_a_bfloat16_body(head: str, pooling: Pooling) -> None:
    """Their weights are float32, and what they compute has bits that bfloat16 can't hold; under
    autocast too."""
    model = own("llama", pooling, head)
    model.transformer.bfloat16()
    assert {parameter.dtype for parameter in model.head.parameters()} == {torch.float32}
    random = np.random.default_rng(0)
    (plan,) = plan_rows([[ids(random, 12) for _ in range(8)]], 10**9, PAD)
    rewards = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            reward_N, hidden_ND, *_ = model.run(plan)
            rewards.append(model.reward_of(hidden_ND))
        assert reward_N.dtype == hidden_ND.dtype == torch.float32
        assert torch.equal(rewards[-1], reward_N), "the head alone gives the same"
        assert (reward_N - reward_N.bfloat16().float()).abs().max() > 1e-4
        if pooling != "last":
            assert (hidden_ND - hidden_ND.bfloat16().float()).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["llama", "bert", "granite"])
def test_the_prefixes_of_new_parameters_name_all_that_is_not_the_body(kind: str) -> None:
    model = own(kind, "attention", "mlp")
    names = {name for name, _ in model.named_parameters()}
    new = {name for name in names if name.startswith(model.head_prefixes)}
    assert new == {
        "query",
        "reward_head.hidden.weight",
        "reward_head.hidden.bias",
        "reward_head.out.weight",
    }
    assert names - new == {f"transformer.{name}" for name, _ in model.body.named_parameters()}
    assert model.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    assert model.head_modules() == (model.reward_head,)

"""The reward model against the truth: each answer alone, unpadded, through the plain class.

Legend: R rows, T tokens of a row, N sequences, D width of the body, K answers of a group.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

import palate.model.attention
import palate.model.reward_model
from palate.errors import PalateError
from palate.forest import plan_rows, plan_trees
from palate.forest.plan import Layout
from palate.model.attention import attention_masks
from palate.model.loading import load_model
from palate.model.reward_model import RewardModel, plan_tensors
from palate.model.selfcheck import check_positions, max_positions, why_not_tree
from palate.model.settings import BodySettings
from tests.tiny import (
    CAUSAL,
    ENCODERS,
    GROUPED,
    SIZES,
    byte_tokenizer,
    save_tiny,
    tiny_transformer,
)

PAD = 0
WINDOWED = [kind for kind, sizes in CAUSAL.items() if "sliding_window" in sizes]
REWARD_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


def ids(random: np.random.Generator, count: int) -> list[int]:
    """Tokens that are neither pad nor end."""
    return random.integers(3, 300, size=count).tolist()


def group(random: np.random.Generator, prefix: int, lengths: Sequence[int]) -> list[list[int]]:
    shared = ids(random, prefix)
    return [shared + ids(random, length) for length in lengths]


def many_groups() -> list[list[list[int]]]:
    """K = 1 to 9 with prefixes and branches longer than any window (16), an empty prefix, an answer
    that is the beginning of another, and an answer that is given twice."""
    random = np.random.default_rng(7)
    groups = [group(random, 4 * k, [3 + (5 * i) % 23 for i in range(k)]) for k in range(1, 10)]
    groups.append(group(random, 0, [9, 21]))
    long = ids(random, 30)
    groups.append([long[:22], long, long[:29]])
    same = ids(random, 12)
    groups.append([same, list(same)])
    return groups


def alone(transformer: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    """The plain class's reward for each sequence, one forward each, no padding and no mask."""
    return torch.cat([transformer(torch.tensor([ids])).logits[:, 0].float() for ids in sequences])


def planned(
    model: RewardModel, groups: list[list[list[int]]], layout: Layout, tokens: int
) -> list[Tensor]:
    """Rewards of each group, in the order of the groups."""
    found: dict[int, Tensor] = {}
    for plan in (plan_trees if layout == "tree" else plan_rows)(groups, tokens, PAD):
        reward_N = model.run(plan).reward_N
        sizes = [len(groups[index]) for index in plan.groups]
        found.update(zip(plan.groups, torch.split(reward_N, sizes), strict=True))
    return [found[index] for index in range(len(groups))]


def gradients(model: RewardModel, rewards: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Of the weighted sum of rewards; weights of a group don't sum to 0, so nothing cancels."""
    model.zero_grad()
    (rewards * weights).sum().backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, truth in expected.items():
        difference = (found[name] - truth).norm() / truth.norm()
        assert difference <= GRADIENT_TOLERANCE, f"{name}: {difference:.1e}"


@pytest.mark.parametrize("kind", CAUSAL)
def test_tree_equals_rows_equals_each_answer_alone(kind: str) -> None:
    """Rewards and gradients, whatever the layout, token budget, order, or checkpointing."""
    transformer = tiny_transformer(kind)
    groups = many_groups()
    sequences = [ids for members in groups for ids in members]
    torch.manual_seed(1)
    weights = torch.randn(len(sequences))
    model = RewardModel(transformer, "tree")
    truth = alone(transformer, sequences)
    assert truth.std() > 0.1, "the tiny model tells answers apart, so that a wrong mask shows"
    expected = gradients(model, truth, weights)

    for layout, tokens in (("tree", 10**9), ("tree", 200), ("tree", 1), ("rows", 500)):
        rewards = torch.cat(planned(model, groups, layout, tokens))
        torch.testing.assert_close(rewards, truth, rtol=0, atol=REWARD_TOLERANCE)
        assert_same_gradients(gradients(model, rewards, weights), expected)

    random = np.random.default_rng(3)
    order = random.permutation(len(groups)).tolist()
    inner = [random.permutation(len(members)).tolist() for members in groups]
    shuffled = planned(model, [[groups[g][i] for i in inner[g]] for g in order], "tree", 300)
    by_group = dict(zip(order, shuffled, strict=True))
    back = torch.cat([by_group[g][np.argsort(inner[g])] for g in range(len(groups))])
    torch.testing.assert_close(back, truth, rtol=0, atol=REWARD_TOLERANCE)
    assert_same_gradients(gradients(model, back, weights), expected)

    for module in transformer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    transformer.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    rewards = torch.cat(planned(model, groups, "tree", 300))
    torch.testing.assert_close(rewards, truth, rtol=0, atol=REWARD_TOLERANCE)
    assert_same_gradients(gradients(model, rewards, weights), expected)


@pytest.mark.parametrize("kind", WINDOWED)
def test_sliding_windows_hold_in_texts_longer_than_the_window(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefix 40, branches of 25 and 5, windows of 16: two plants, both wrong.

    One mask leaves the window out. The other measures it in columns of the row: the first branch
    stands there as in its text, but the second stands 25 columns away and loses the prefix.
    """
    model = RewardModel(tiny_transformer(kind), "tree")
    groups = [group(np.random.default_rng(5), 40, (25, 5))]

    def by_column(config: Any, position_RT: Tensor, *rest: Any) -> Any:
        column_RT = torch.arange(position_RT.shape[1]).expand_as(position_RT)
        return attention_masks(config, column_RT, *rest)

    with torch.inference_mode():
        truth = alone(model.transformer, groups[0])
        assert (planned(model, groups, "tree", 1)[0] - truth).abs().max() < REWARD_TOLERANCE
        with monkeypatch.context() as planted:
            planted.setattr(palate.model.reward_model, "attention_masks", by_column)
            wrong = (planned(model, groups, "tree", 1)[0] - truth).abs()
        assert wrong[0] < REWARD_TOLERANCE
        assert wrong[1] > 1e-2
        with monkeypatch.context() as planted:
            planted.setattr(
                palate.model.attention, "layer_windows", lambda config: {"full_attention": None}
            )
            wrong = (planned(model, groups, "tree", 1)[0] - truth).abs()
        assert wrong.min() > 1e-2


def tree_of_two(transformer: Any) -> tuple[RewardModel, list[list[int]], dict[str, Any], Tensor]:
    """A prefix of 12 and branches of 6 and 5 as one row, and the true rewards."""
    model = RewardModel(transformer, "tree")
    members = group(np.random.default_rng(11), 12, (6, 5))
    (plan,) = plan_trees([members], 1, PAD)
    return model, members, plan_tensors(plan, model.device), alone(transformer, members)


def rewards_of_call(model: RewardModel, tensors: dict[str, Any], **arguments: Any) -> Tensor:
    """Rewards at the branches' ends from a call of the body with other arguments than ours."""
    hidden_RTD = model.transformer.base_model(
        tensors["input_ids_RT"], use_cache=False, **arguments
    ).last_hidden_state
    hidden_ND = hidden_RTD[tensors["end_row_N"], tensors["end_column_N"]]
    return model.head(hidden_ND)[:, 0]


@torch.inference_mode()
def test_without_a_mask_restarting_positions_cost_the_second_answer_its_prompt() -> None:
    """The jump back in position is taken for a new document: rotary positions are relative, so the
    second answer gets exactly the reward of its own tokens without any prompt."""
    transformer = tiny_transformer("llama")
    model, members, tensors, truth = tree_of_two(transformer)
    wrong = rewards_of_call(model, tensors, position_ids=tensors["position_RT"])
    assert (wrong[0] - truth[0]).abs() < REWARD_TOLERANCE
    assert (wrong[1] - truth[1]).abs() > 0.05
    without_prompt = alone(transformer, [members[1][12:]])[0]
    assert (wrong[1] - without_prompt).abs() < REWARD_TOLERANCE
    assert (model(**tensors)[0] - truth).abs().max() < REWARD_TOLERANCE


@torch.inference_mode()
def test_a_mask_of_ones_with_restarting_positions_lets_answers_see_each_other() -> None:
    """Another first answer changes the second one's reward; under our mask it doesn't."""
    model, _, tensors, truth = tree_of_two(tiny_transformer("llama"))
    other_first = tensors["input_ids_RT"].clone()
    other_first[0, 12:18] = torch.tensor(ids(np.random.default_rng(12), 6))
    changed = {**tensors, "input_ids_RT": other_first}

    def wrong(tensors: dict[str, Any]) -> Tensor:
        return rewards_of_call(
            model,
            tensors,
            attention_mask=torch.ones_like(tensors["input_ids_RT"]),
            position_ids=tensors["position_RT"],
        )

    assert (wrong(tensors)[1] - truth[1]).abs() > 0.05
    assert (wrong(tensors)[1] - wrong(changed)[1]).abs() > 0.05
    assert (model(**tensors)[0][1] - model(**changed)[0][1]).abs() < REWARD_TOLERANCE


@torch.inference_mode()
def test_our_mask_with_default_positions_moves_the_second_answer_away_from_its_prompt() -> None:
    """Its positions are then those of a text with a gap of 6 after the prompt."""
    transformer = tiny_transformer("llama")
    model, members, tensors, truth = tree_of_two(transformer)
    mask = attention_masks(
        model.config,
        tensors["position_RT"],
        tensors["reach_RT"],
        torch.float32,
    )
    wrong = rewards_of_call(model, tensors, attention_mask=mask)
    assert (wrong[0] - truth[0]).abs() < REWARD_TOLERANCE
    assert (wrong[1] - truth[1]).abs() > 0.01
    gap = torch.cat([torch.arange(12), torch.arange(18, 23)])[None]
    causal = torch.ones(17, 17, dtype=torch.bool).tril()[None, None]
    with_gap = transformer(
        torch.tensor([members[1]]), position_ids=gap, attention_mask=causal
    ).logits[0, 0]
    assert (wrong[1] - with_gap).abs() < REWARD_TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_neighbours_and_padding_do_not_change_a_reward(kind: str) -> None:
    """Beside neighbours of 1 to 60 tokens, in rows; texts that hold the pad id inside; and, for
    causal bodies, beside padding on the left, in ours and in the plain class."""
    transformer = tiny_transformer(kind)
    model = RewardModel(transformer, "rows")
    random = np.random.default_rng(2)
    sequences = [ids(random, length) for length in (1, 60, 7, 33, 34, 18)]
    if model.pooling == "last":
        sequences[3][10] = PAD
    truth = alone(transformer, sequences)
    rewards = planned(model, [[ids] for ids in sequences], "rows", 10**9)
    assert (torch.cat(rewards) - truth).abs().max() < REWARD_TOLERANCE
    if model.pooling != "last":
        return

    width = 60
    left_RT = torch.full((len(sequences), width), PAD)
    reach_RT = torch.zeros_like(left_RT)
    position_RT = torch.zeros_like(left_RT)
    for row, sequence in enumerate(sequences):
        start = width - len(sequence)
        left_RT[row, start:] = torch.tensor(sequence)
        reach_RT[row, start:] = width
        position_RT[row, start:] = torch.arange(len(sequence))
    ours, *_ = model(
        input_ids_RT=left_RT,
        position_RT=position_RT,
        reach_RT=reach_RT,
        end_row_N=torch.arange(len(sequences)),
        end_column_N=torch.full((len(sequences),), width - 1),
        tree_layout=True,
    )
    assert (ours - truth).abs().max() < REWARD_TOLERANCE
    plain = transformer(
        left_RT, attention_mask=(reach_RT > 0).long(), position_ids=position_RT
    ).logits[:, 0]
    assert (plain - truth).abs().max() < REWARD_TOLERANCE


@torch.inference_mode()
def test_the_last_token_is_found_by_length_also_where_it_is_the_pad_id() -> None:
    """The plain class reads ids and pools the token before; ours reads the end of the sequence."""
    transformer = tiny_transformer("llama")
    sequence = [*ids(np.random.default_rng(4), 9), PAD]
    reward = planned(RewardModel(transformer, "rows"), [[sequence]], "rows", 1)[0][0]
    hidden_D = transformer.base_model(torch.tensor([sequence])).last_hidden_state[0, -1]
    assert (reward - transformer.score(hidden_D)[0]).abs() < REWARD_TOLERANCE
    assert (reward - alone(transformer, [sequence])[0]).abs() > 1e-3


def edit_config(directory: str, **values: Any) -> None:
    path = Path(directory) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def save_other(directory: Path, model_type: str, **sizes: Any) -> str:
    """A reward model of a class that tests/tiny.py does not list."""
    config = AutoConfig.for_model(model_type, **sizes, num_labels=1)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return str(directory)


def save_bidirectional(directory: Path) -> str:
    name = save_tiny(directory, "llama", head=True)
    edit_config(name, is_causal=False)
    return name


def save_linear_attention(directory: Path) -> str:
    layers = ["linear_attention", "full_attention"]
    sizes = {**GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 16}
    return save_other(directory, "minimax", **sizes, layer_types=layers)


def save_own_window(directory: Path) -> str:
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
    tokens = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2}
    layers = [[["global", "local"], 1]]
    return save_other(
        directory, "gpt_neo", **sizes, **tokens, attention_types=layers, window_size=256
    )


def save_alibi(directory: Path) -> str:
    sizes = {"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 4}
    return save_other(directory, "mpt", **sizes)


INEXACT = {
    "bidirectional": save_bidirectional,
    "differ by": save_alibi,
    "linear_attention": save_linear_attention,
    "window_size": save_own_window,
}


@pytest.mark.parametrize("reason", INEXACT)
def test_a_body_whose_tree_is_not_exact_falls_back_to_rows_and_says_why(
    reason: str, tmp_path: Path
) -> None:
    """A causal class told to look both ways; distances counted in columns; layers with linear
    attention; and windows of 256 that the layers count in columns, which texts of a self-check are
    too short to show."""
    name = INEXACT[reason](tmp_path)
    with pytest.warns(UserWarning, match=f"layout rows instead of tree.*{reason}"):
        model = load_model(name, for_training=False).model
    assert model.layout == "rows"
    with pytest.raises(PalateError, match=f"body.layout tree is not exact for .*{reason}"):
        load_model(name, BodySettings(layout="tree"), for_training=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(name, BodySettings(layout="rows"), for_training=False)
    groups = [group(np.random.default_rng(0), 200, (100, 90))]
    with torch.inference_mode():
        truth = alone(model.transformer, groups[0])
        assert (planned(model, groups, "rows", 1)[0] - truth).abs().max() < REWARD_TOLERANCE
        try:
            tree = planned(model, groups, "tree", 1)[0]
        except (LookupError, RuntimeError, TypeError):
            return
        assert (tree - truth).abs().max() > 1e-3


@pytest.mark.parametrize("kind", CAUSAL)
def test_every_causal_class_gets_the_tree_without_a_warning(kind: str, tmp_path: Path) -> None:
    name = save_tiny(tmp_path, kind, head=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert load_model(name, for_training=False).model.layout == "tree"


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders_are_laid_out_in_rows_and_refuse_the_tree(kind: str, tmp_path: Path) -> None:
    name = save_tiny(tmp_path, kind, head=True)
    assert load_model(name, for_training=False).model.layout == "rows"
    with pytest.raises(PalateError, match="bidirectional"):
        load_model(name, BodySettings(layout="tree"), for_training=False)


def test_a_text_body_inside_a_vision_model_is_read_from_its_own_configuration(
    tmp_path: Path,
) -> None:
    """Gemma 3's hub checkpoints keep windows, positions and dropout in `text_config`."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    text = {**CAUSAL["gemma3_text"], "attention_dropout": 0.5}
    name = save_other(tmp_path, "gemma3", text_config=text, vision_config=vision)
    model = load_model(name, BodySettings(layout="tree"), for_training=True).model.train()
    assert max_positions(model.config) == 512
    groups = [group(np.random.default_rng(5), 40, (25, 5))]
    with torch.inference_mode():
        truth = alone(model.transformer, groups[0])
        assert (planned(model, groups, "tree", 1)[0] - truth).abs().max() < REWARD_TOLERANCE


LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0] * 4,
    "original_max_position_embeddings": 64,
}
ROPE: dict[str, dict[str, Any]] = {
    "dynamic": {
        "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    },
    "longrope": {"max_position_embeddings": 512, "rope_parameters": LONGROPE},
}


@torch.inference_mode()
@pytest.mark.parametrize("kind", ROPE)
def test_rotary_scalings_that_read_the_longest_text_are_refused_above_their_limit(
    kind: str,
) -> None:
    """A neighbour of 64 tokens, the limit, changes nothing; a longer one changes a short text."""
    config = AutoConfig.for_model("llama", **{**GROUPED, **ROPE[kind]}, num_labels=1)
    torch.manual_seed(0)
    transformer = AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.15)
    model = RewardModel(transformer, "rows")
    random = np.random.default_rng(0)
    short, long = ids(random, 20), ids(random, 128)
    truth = alone(transformer, [short])[0]

    beside = planned(model, [[short, long[:64]]], "rows", 1)[0][0]
    assert (beside - truth).abs() < REWARD_TOLERANCE
    check_positions(config, 64)

    beside = planned(model, [[short, long]], "rows", 1)[0][0]
    assert (beside - truth).abs() > 1e-3
    with pytest.raises(PalateError, match=f"'{kind}'.*beyond 64 .*max_prompt_tokens.*now 65"):
        check_positions(config, 65)


def test_the_limit_of_a_long_context_checkpoint_is_read_where_the_hub_has_it() -> None:
    """Phi 3's files state the original length beside the scaling, not in it."""
    scaling = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    config = AutoConfig.for_model(
        "phi3", **GROUPED, rope_scaling=scaling, original_max_position_embeddings=64
    )
    check_positions(config, 64)
    with pytest.raises(PalateError, match=r"'longrope'.*beyond 64 "):
        check_positions(config, 65)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2", "bert"])
def test_rotary_scalings_that_are_constant_are_accepted_at_any_length(kind: str) -> None:
    check_positions(tiny_transformer(kind).config, 10**6)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_the_head_runs_in_float32_over_a_bfloat16_body(kind: str, tmp_path: Path) -> None:
    """Its rewards have bits that bfloat16 (8 bits of mantissa) can't hold; under autocast too."""
    name = save_tiny(tmp_path, kind, head=True)
    model = load_model(name, BodySettings(dtype="bfloat16"), for_training=False).model
    assert next(model.transformer.base_model.parameters()).dtype == torch.bfloat16
    random = np.random.default_rng(0)
    (plan,) = plan_rows([[ids(random, 12) for _ in range(8)]], 10**9, PAD)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            reward_N, hidden_ND, *_ = model.run(plan)
        assert reward_N.dtype == hidden_ND.dtype == torch.float32
        exact = hidden_ND.double() @ model.head.weight[0].double()
        assert (reward_N - exact).abs().max() < 1e-6
        assert (reward_N - reward_N.bfloat16().float()).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_bias_of_a_new_encoder_head_stays_zero(kind: str, tmp_path: Path) -> None:
    """Bradley-Terry sees differences only, so a bias has no gradient and would keep its noise."""
    model = load_model(save_tiny(tmp_path, kind), for_training=True).model
    bias = model.head.bias
    assert bias is not None
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    random = np.random.default_rng(0)
    rewards = torch.cat(planned(model, [group(random, 5, (4, 6))], "rows", 1))
    (rewards[0] - rewards[1]).backward()
    assert bias.grad is None
    optimizer.step()
    assert bias.item() == 0.0
    assert model.head.weight.abs().max() > 0


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_dropout_is_off_in_training_unless_asked_for(kind: str, tmp_path: Path) -> None:
    """Every field of the configuration that a class reads a dropout rate from is set to 0.5."""
    name = save_tiny(tmp_path, kind, head=True)
    config = json.loads((tmp_path / "config.json").read_text())
    rates = {key: 0.5 for key in config if "drop" in key and config[key] is not None}
    assert rates
    edit_config(name, **rates)
    (plan,) = plan_rows([[ids(np.random.default_rng(0), 12)]], 10**9, PAD)

    def twice(dropout: bool) -> tuple[float, float]:
        settings = BodySettings(dropout=dropout)
        model = load_model(name, settings, for_training=True).model.train()
        with torch.no_grad():
            return float(model.run(plan).reward_N), float(model.run(plan).reward_N)

    first, second = twice(dropout=False)
    assert first == second
    first, second = twice(dropout=True)
    assert first != second


@pytest.mark.parametrize(("init", "expected"), [("zero", 0.0), ("normal", 32**-0.5)])
def test_a_new_head_starts_at_zero_or_with_variance_one_over_width(
    init: Any, expected: float, tmp_path: Path
) -> None:
    model = load_model(save_tiny(tmp_path), BodySettings(head_init=init), for_training=True).model
    assert model.head.weight.shape == (1, SIZES["hidden_size"])
    assert model.head.weight.std().item() == pytest.approx(expected, rel=0.5)


def test_the_self_check_is_quiet_on_a_body_in_bfloat16() -> None:
    """Rounding differs by less than its tolerance, a missing prefix by more."""
    assert why_not_tree(RewardModel(tiny_transformer("llama").bfloat16(), "rows")) is None

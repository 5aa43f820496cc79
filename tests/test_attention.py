"""The faster ways through a tree against the dense mask and against each answer alone.

Legend: R rows, T tokens of a row, N sequences, H heads, D width of a head, Q queries, K keys.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from palate.errors import PalateError
from palate.forest.plan import Packing, Plan, plan_groups
from palate.forest.sight import Sight
from palate.model.attention import KEYWORD, Attention, stand_before, step_aside, visible
from palate.model.blocks import BlockAttention, _composed
from palate.model.faster import choose_attention
from palate.model.flex import FlexAttention, block_mask
from palate.model.last_layer import last_layer, lengthen, shorten
from palate.model.loading import load_model
from palate.model.lora import LoraSettings, add_adapters
from palate.model.reward_model import RewardModel
from palate.model.settings import BodySettings
from palate.model.varlen import VarlenAttention
from tests.test_model import (
    GRADIENT_TOLERANCE,
    PAD,
    REWARD_TOLERANCE,
    WINDOWED,
    alone,
    assert_same_gradients,
    gradients,
    group,
    many_groups,
)
from tests.tiny import CAUSAL, save_tiny, tiny_transformer

WHOLE_LAST_LAYER = ("gpt2", "mixtral")
"""Bodies whose last layer is computed everywhere: GPT-2 shapes its output like its input, and the
loss of experts reads the choices of all tokens."""


def fast(kind: str) -> RewardModel:
    transformer = tiny_transformer(kind)
    if kind == "gpt2":  # as loading does it
        transformer.config.attn_pdrop = 0.0
        for layer in transformer.base_model.h:
            layer.attn.attn_dropout.p = 0.0
    model = RewardModel(transformer, "tree").eval()
    choose_attention(kind, model, "auto")
    return model


def rewards_of(model: RewardModel, groups: list[list[list[int]]], tokens: int) -> Tensor:
    found: dict[int, Tensor] = {}
    for plan in plan_groups(groups, model.packing(tokens, PAD)):
        reward_N = model.run(plan).reward_N
        sizes = [len(groups[index]) for index in plan.groups]
        found.update(zip(plan.groups, torch.split(reward_N, sizes), strict=True))
    return torch.cat([found[index] for index in range(len(groups))])


def groups_with_openings() -> list[list[list[int]]]:
    """`many_groups`, and answers that share openings two levels deep, longer than any window."""
    random = np.random.default_rng(8)
    prompt, first, second = (random.integers(3, 300, size=n).tolist() for n in (21, 19, 12))
    further = [random.integers(3, 300, size=n).tolist() for n in (3, 17, 9, 1, 20)]
    deep = [
        prompt + first + second + further[0],
        prompt + first + second + further[1],
        prompt + first + further[2],
        prompt + first + second,
        prompt + further[3],
        prompt + further[4],
    ]
    return [*many_groups(), deep, deep[1:3]]


@pytest.mark.parametrize("kind", CAUSAL)
def test_blocks_equal_each_answer_alone(kind: str) -> None:
    """Rewards and gradients, for one microbatch and for many, with and without checkpointing."""
    model = fast(kind)
    assert model.attention == "auto"
    assert model.shortened == (kind not in WHOLE_LAST_LAYER)
    groups = groups_with_openings()
    sequences = [ids for members in groups for ids in members]
    torch.manual_seed(1)
    weights = torch.randn(len(sequences))
    truth = alone(model.transformer, sequences)
    expected = gradients(model, truth, weights)
    for tokens in (10**9, 200, 1):
        rewards = rewards_of(model, groups, tokens)
        torch.testing.assert_close(rewards, truth, rtol=0, atol=REWARD_TOLERANCE)
        assert_same_gradients(gradients(model, rewards, weights), expected)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.transformer.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    rewards = rewards_of(model, groups, 300)
    torch.testing.assert_close(rewards, truth, rtol=0, atol=REWARD_TOLERANCE)
    assert_same_gradients(gradients(model, rewards, weights), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2 window", "qwen3", "gemma2", "gemma3_text"])
def test_blocks_equal_rows_with_adapters(kind: str, checkpointing: bool) -> None:
    """LoRA: the same model by blocks and by rows gives equal rewards and gradients of all that is
    trained, adapters that have left zero included."""
    model = fast(kind)
    add_adapters(model, LoraSettings(rank=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    if checkpointing:
        model.transformer.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    groups = groups_with_openings()
    weights = torch.randn(sum(map(len, groups)))

    def both(packing: Packing) -> tuple[Tensor, dict[str, Tensor]]:
        plans = plan_groups(groups, packing)
        found: dict[int, Tensor] = {}
        for plan in plans:
            sizes = [len(groups[index]) for index in plan.groups]
            parts = torch.split(model.run(plan).reward_N, sizes)
            found.update(zip(plan.groups, parts, strict=True))
        rewards = torch.cat([found[index] for index in range(len(groups))])
        return rewards.detach(), gradients(model, rewards, weights)

    truth, expected = both(Packing("rows", 400, PAD))
    rewards, found = both(model.packing(400, PAD))
    assert any("lora_A" in name for name in expected)
    torch.testing.assert_close(rewards, truth, rtol=0, atol=REWARD_TOLERANCE)
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "qwen2 window"])
def test_bfloat16_blocks_err_no_more_than_bfloat16_rows(kind: str) -> None:
    """Under autocast, against rows in float32: the error of blocks stays within 1.5 times that of
    rows in bfloat16, over all answers (root of the mean square)."""
    model = fast(kind)
    groups = groups_with_openings()
    sequences = [ids for members in groups for ids in members]

    def rows() -> Tensor:
        plans = plan_groups([[ids] for ids in sequences], Packing("rows", 1, PAD))
        by_group = {plan.groups[0]: model.run(plan).reward_N for plan in plans}
        return torch.cat([by_group[index] for index in range(len(sequences))])

    with torch.inference_mode():
        truth = rows()
        with torch.autocast("cpu", torch.bfloat16):
            error_of_rows = (rows() - truth).square().mean().sqrt()
            error = (rewards_of(model, groups, 10**9) - truth).square().mean().sqrt()
    assert 0 < error < 1.5 * error_of_rows


@pytest.mark.parametrize("kind", WINDOWED)
def test_windows_are_measured_in_positions(kind: str) -> None:
    """Prefix 40, branches of 25 and 5, windows of 16: without the window, or with twice as long a
    one, the rewards are others."""
    model = fast(kind)
    groups = [group(np.random.default_rng(5), 40, (25, 5))]
    with torch.inference_mode():
        truth = alone(model.transformer, groups[0])
        assert (rewards_of(model, groups, 1) - truth).abs().max() < REWARD_TOLERANCE
        config = model.config.get_text_config()
        window, config.sliding_window = config.sliding_window, 32
        try:
            wrong = (rewards_of(model, groups, 1) - truth).abs()
        finally:
            config.sliding_window = window
        assert wrong.min() > 1e-3


def random_sight(rng: np.random.Generator) -> Sight:
    prompt = rng.integers(0, 9, size=30).tolist()
    opening = rng.integers(0, 9, size=11).tolist()
    ends = [rng.integers(0, 9, size=n).tolist() for n in (7, 20, 1, 12)]
    groups = [
        [prompt + opening + ends[0], prompt + opening + ends[1], prompt + ends[2]],
        [ends[3]],
    ]
    (plan,) = plan_groups(groups, Packing("tree", 10**6, PAD, one_row=True))
    assert plan.sight is not None
    return plan.sight


def dense(
    sight: Sight, window: int | None, query: Tensor, key: Tensor, value: Tensor, scale: float
) -> Tensor:
    """The definition: softmax over visible keys, in float64."""
    reach_T = torch.zeros(sight.num_keys, dtype=torch.int64)
    for span in sight.spans:
        reach_T[span.start : span.stop] = span.reach
    mask_TT = visible(reach_T[None])[0]
    position_T = torch.from_numpy(sight.position_T)
    if window is not None:
        mask_TT = mask_TT & (position_T[:, None] - position_T[None, :] < window)
    mask_QK = mask_TT[torch.from_numpy(sight.column_Q)]
    times = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(times, 1) for one in (key, value))
    score = (query @ key.transpose(2, 3) * scale).masked_fill(~mask_QK, -torch.inf)
    return score.softmax(-1) @ value


@pytest.mark.parametrize("queries", ["all", "some", "from the tenth on"])
@pytest.mark.parametrize("window", [None, 1, 5, 16, 37, 1000])
@pytest.mark.parametrize("path", ["joined", "composed"])
def test_the_two_ways_through_blocks_equal_the_definition(
    path: str, window: int | None, queries: str
) -> None:
    """States and the gradients of queries, keys and values, in float64: 6 heads on 2 of the keys,
    for all columns as queries, for some, and for the later ones behind keys computed before."""
    rng = np.random.default_rng(4)
    sight = random_sight(rng)
    if queries != "all":
        chosen = rng.random(sight.num_keys) < 0.3
        chosen = chosen if queries == "some" else np.arange(sight.num_keys) >= 10
        sight = sight.of_queries(np.flatnonzero(chosen))
    torch.manual_seed(0)
    shapes = ((6, len(sight.column_Q)), (2, sight.num_keys), (2, sight.num_keys))
    inputs = [torch.randn(1, *shape, 8).double().requires_grad_() for shape in shapes]
    if path == "joined":
        blocks = BlockAttention(sight, {"full_attention": window})
        state = blocks.attend(*inputs, 0.3, "full_attention", None).transpose(1, 2)
    else:
        state = _composed(*inputs, sight, window, 0.3, None)
    truth = dense(sight, window, *inputs, 0.3)
    torch.testing.assert_close(state, truth, rtol=0, atol=1e-6)
    weights = torch.randn_like(truth)
    found = torch.autograd.grad((state * weights).sum(), inputs)
    expected = torch.autograd.grad((truth * weights).sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        # A window of 1 leaves each query its own key: no gradient but of the values.
        assert (one - other).norm() <= 1e-9 + GRADIENT_TOLERANCE * other.norm()


def three_inputs(sight: Sight, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((6, len(sight.column_Q)), (2, sight.num_keys), (2, sight.num_keys))
    return [torch.randn(1, *shape, 16).to(dtype) for shape in shapes]


@pytest.mark.parametrize("queries", ["all", "some"])
@pytest.mark.parametrize("window", [None, 5, 37])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_flex_equals_blocks(softcap: float | None, window: int | None, queries: str) -> None:
    """Forward, by FlexAttention's plain function, whose tiles of 128 are as in the kernel: a row of
    300 columns has full, partial and skipped ones."""
    rng = np.random.default_rng(6)
    prompt = rng.integers(0, 9, size=140).tolist()
    ends = [rng.integers(0, 9, size=n).tolist() for n in (60, 70, 30)]
    (plan,) = plan_groups(
        [[prompt + end for end in ends]], Packing("tree", 10**6, PAD, one_row=True, multiple_of=4)
    )
    sight = plan.sight
    assert sight is not None
    if queries == "some":
        sight = sight.of_queries(np.flatnonzero(rng.random(sight.num_keys) < 0.6))
    mask = block_mask(sight, window, torch.device("cpu"))
    num_tiles = int(mask.kv_num_blocks.sum()) + int(mask.full_kv_num_blocks.sum())
    assert num_tiles < 9, "some tiles are skipped"
    if window is None and queries == "all":
        assert int(mask.full_kv_num_blocks.sum()) > 0
    windows = {"full_attention": window}
    inputs = three_inputs(sight, torch.float32)
    rest = (0.3, "full_attention", softcap)
    with torch.inference_mode():
        found = FlexAttention(sight, windows, torch.device("cpu")).attend(*inputs, *rest)
        truth = BlockAttention(sight, windows).attend(*inputs, *rest)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_end: Tensor,
    key_end: Tensor,
    max_query: int,
    max_key: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What torch documents for `varlen_attn`: sequences one after the other, the last query aligned
    with the last key; (w, 0) lets a query see itself and w keys before."""
    assert enable_gqa
    assert window_size[1] == 0
    times = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(times, 1).float() for one in (key, value))
    states = []
    for s in range(len(query_end) - 1):
        queries = slice(int(query_end[s]), int(query_end[s + 1]))
        keys = slice(int(key_end[s]), int(key_end[s + 1]))
        num_queries, num_keys = queries.stop - queries.start, keys.stop - keys.start
        assert 0 < num_queries <= max_query
        assert 0 < num_keys <= max_key
        age = torch.arange(num_queries)[:, None] + num_keys - num_queries - torch.arange(num_keys)
        hidden = age < 0
        if window_size[0] >= 0:
            hidden |= age > window_size[0]
        score = torch.einsum("qhd,khd->hqk", query[queries].float(), key[keys]) * scale
        share = score.masked_fill(hidden, -torch.inf).softmax(-1)
        states.append(torch.einsum("hqk,khd->qhd", share, value[keys]))
    return torch.cat(states).to(query.dtype)


@pytest.mark.parametrize("queries", ["all", "some"])
@pytest.mark.parametrize("window", [None, 5, 37])
def test_varlen_gathers_the_keys_that_blocks_meet(
    window: int | None, queries: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernel's definition in its place (it runs on CUDA alone), in bfloat16."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", plain_varlen)
    rng = np.random.default_rng(4)
    sight = random_sight(rng)
    if queries == "some":
        sight = sight.of_queries(np.flatnonzero(rng.random(sight.num_keys) < 0.3))
    windows = {"full_attention": window}
    inputs = three_inputs(sight, torch.bfloat16)
    rest = (0.3, "full_attention", None)
    found = VarlenAttention(sight, windows, torch.device("cpu")).attend(*inputs, *rest)
    exact = [one.float() for one in inputs]
    truth = BlockAttention(sight, windows).attend(*exact, *rest)
    torch.testing.assert_close(found.float(), truth, rtol=0, atol=2e-2)


def on_cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: kernels that run there alone")
    return torch.device("cuda")


@pytest.mark.parametrize("path", ["auto", "varlen", "flex", "blocks"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gemma3_text", "qwen2 window"])
def test_every_path_on_cuda_equals_rows(kind: str, checkpointing: bool, path: Attention) -> None:
    """float32: rewards within 1e-5 and gradients within 1e-4 of rows; bfloat16 under autocast: the
    error against float32 rows is at most 1.5 times that of bfloat16 rows."""
    device = on_cuda()
    model = fast(kind).to(device)
    model.attention = path
    if checkpointing:
        model.transformer.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    groups = groups_with_openings()
    weights = torch.randn(sum(map(len, groups)), device=device)

    def both(packing: Packing) -> tuple[Tensor, dict[str, Tensor]]:
        found: dict[int, Tensor] = {}
        for plan in plan_groups(groups, packing):
            sizes = [len(groups[index]) for index in plan.groups]
            parts = torch.split(model.run(plan).reward_N, sizes)
            found.update(zip(plan.groups, parts, strict=True))
        rewards = torch.cat([found[index] for index in range(len(groups))])
        return rewards.detach(), gradients(model, rewards, weights)

    rows, forest = Packing("rows", 400, PAD), model.packing(400, PAD)
    truth, expected = both(rows)
    rewards, found = both(forest)
    torch.testing.assert_close(rewards, truth, rtol=0, atol=REWARD_TOLERANCE)
    assert_same_gradients(found, expected)
    with torch.autocast("cuda", torch.bfloat16):
        errors = [(both(p)[0] - truth).square().mean().sqrt() for p in (rows, forest)]
    assert errors[1] < 1.5 * errors[0]


def test_flex_is_compiled_once_for_all_lengths() -> None:
    """Forty plans of other lengths cost no further compilation after the first two."""
    device = on_cuda()
    model = fast("llama").to(device)
    model.attention = "flex"
    counters = torch._dynamo.utils.counters
    for number, length in enumerate(range(200, 5400, 130)):
        if number == 2:
            counters.clear()
        groups = [group(np.random.default_rng(length), length, (30, 40))]
        (plan,) = plan_groups(groups, model.packing(8192, PAD))
        model.run(plan).reward_N.sum().backward()
    assert counters["stats"]["unique_graphs"] == 0


def saved_bytes(run: Callable[[], Any], model: nn.Module) -> int:
    """Bytes of distinct storages kept for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    held = []
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        held.append(run())
    return sum(kept.values())


def test_the_last_layer_keeps_the_ends_alone() -> None:
    """Two layers, a prompt of 50 with nine answers of 30 (320 tokens, 9 ends): what the second
    keeps besides its keys and values is 9/320 of what it kept, so in all a good third less."""
    model = fast("llama")
    groups = [group(np.random.default_rng(1), 50, [30] * 9)]
    (plan,) = plan_groups(groups, model.packing(10**6, PAD))
    short = saved_bytes(lambda: model.run(plan), model)
    model.shortened = False
    whole = saved_bytes(lambda: model.run(plan), model)
    assert short < 0.7 * whole


def plan_of_two() -> tuple[list[list[int]], Plan]:
    members = group(np.random.default_rng(11), 12, (6, 5))
    (plan,) = plan_groups([members], Packing("tree", 100, PAD, one_row=True))
    return members, plan


def test_a_body_that_drops_our_arguments_keeps_the_dense_mask(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the forest its layers would attend under a mask of one element: an error, and the
    load-time check turns it into the reference path, with the right rewards."""
    model = RewardModel(tiny_transformer("llama"), "tree")
    for layer in model.body.layers:
        own = type(layer.self_attn)

        def without(self: Any, *args: Any, _own: Any = own, **named: Any) -> Any:
            named.pop(KEYWORD, None)
            return _own.forward(self, *args, **named)

        layer.self_attn.__class__ = type(
            own.__name__, (own,), {"forward": without, "__module__": own.__module__}
        )
    choose_attention("dropping", model, "auto")
    assert model.attention == "dense"
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(PalateError, match=r"body\.attention blocks is not possible for dropping"):
        choose_attention("dropping", model, "blocks")
    members, plan = plan_of_two()
    with torch.inference_mode():
        truth = alone(model.transformer, members)
        assert (model.run(plan).reward_N - truth).abs().max() < REWARD_TOLERANCE


def test_dropped_attention_weights_need_the_dense_mask() -> None:
    transformer = tiny_transformer("llama")
    transformer.config.attention_dropout = 0.1
    model = RewardModel(transformer, "tree")
    choose_attention("dropout", model, "auto")
    assert model.attention == "dense"
    with pytest.raises(PalateError, match="drops attention weights"):
        choose_attention("dropout", model, "blocks")


@pytest.mark.parametrize("path", ["varlen", "flex"])
def test_a_path_for_cuda_is_refused_without_it(
    path: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = RewardModel(tiny_transformer("llama"), "tree")
    with pytest.raises(PalateError, match=f"attention {path} needs a CUDA device; leave it"):
        choose_attention("llama", model, path)


def test_stepping_aside_leaves_no_trace() -> None:
    model = RewardModel(tiny_transformer("gemma2"), "tree")
    own = type(last_layer(model.body))
    stand_before(model.transformer)
    shorten(model.body)
    lengthen(model.body)
    step_aside(model.transformer)
    assert type(last_layer(model.body)) is own
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_saved_model_knows_nothing_of_it(kind: str, tmp_path: Any) -> None:
    """The checkpoint of a model that runs by blocks is the plain class's, and plain loading gives
    its rewards."""
    save_tiny(tmp_path / "in", kind)
    model = load_model(str(tmp_path / "in"), BodySettings(), for_training=True).model
    assert model.attention == "auto"
    assert model.shortened
    nn.init.normal_(model.head.weight)  # type: ignore[arg-type]
    model.transformer.save_pretrained(tmp_path / "out")
    assert "palate" not in (tmp_path / "out" / "config.json").read_text()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    members, plan = plan_of_two()
    with torch.inference_mode():
        found = model.run(plan).reward_N
        assert (found - alone(plain, members)).abs().max() < REWARD_TOLERANCE


def test_dense_is_there_for_the_asking(tmp_path: Any) -> None:
    save_tiny(tmp_path, "llama")
    settings = BodySettings(attention="dense")
    model = load_model(str(tmp_path), settings, for_training=True).model
    assert (model.layout, model.attention, model.shortened) == ("tree", "dense", False)
    assert not model.packing(100, PAD).one_row

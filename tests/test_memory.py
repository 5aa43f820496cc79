"""Estimates from a configuration against what real models hold, keep and compute."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from palate.errors import PalateError
from palate.forest.cost import forward_flops, recomputed_flops, rows_work, total, training_flops
from palate.forest.cost import tree_work as work_of_tree
from palate.model.lora import LoraSettings, add_adapters
from palate.model.memory import (
    Arithmetic,
    Microbatch,
    activation_bytes,
    memory,
    weight_copy_bytes,
)
from palate.model.settings import BodySettings
from palate.model.shape import body_shape
from palate.objectives import ObjectiveSettings
from palate.objectives.objective import Objective
from palate.pipeline.plan_measure import kept_bytes
from palate.training.trainer import enable_gradient_checkpointing
from palate.training.tuning import prompt_gradients
from tests.flop_counting import counted_flops
from tests.runs import load_tiny, quick_training, ranked_group, rendered, tiny_renderer
from tests.tiny import CAUSAL, ENCODERS, WITHOUT_CLASS

FLOAT32 = Arithmetic(method="full", autocast=False, weight_bytes=4, checkpointing=False)
QWEN_06B = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
GROUPS = rendered([ranked_group(number, 3) for number in range(6)])


def config_of(kind: str, **changes: Any) -> Any:
    sizes = CAUSAL.get(kind) or ENCODERS.get(kind) or WITHOUT_CLASS[kind]
    return AutoConfig.for_model(kind.split()[0], **{**sizes, **changes})


def trained(tmp_path: Path, kind: str, method: str, checkpointing: bool = False) -> Any:
    """A tiny model as training has it, and what adds the gradient of `GROUPS` to it."""
    model = load_tiny(tmp_path, kind).model
    if method == "lora":
        add_adapters(model, LoraSettings(rank=4))
    if checkpointing:
        enable_gradient_checkpointing(model)
    model.train()
    return model


def gradient_of(model: Any, precision: str = "float32") -> Any:
    training = quick_training(precision=precision)
    objective = Objective(ObjectiveSettings(), GROUPS)
    add = prompt_gradients(model, GROUPS, training, objective, tiny_renderer().pad_id)
    return lambda: add(range(len(GROUPS)))


# What is held


@pytest.mark.parametrize(
    "kind", ["llama", "qwen3", "gemma3_text", "gpt2", "mixtral", "bert", "modernbert", "granite"]
)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_gradients_and_moments_are_the_real_ones(
    tmp_path: Path, kind: str, method: Any
) -> None:
    model = trained(tmp_path, kind, method)
    shape = body_shape(kind, config_of(kind), BodySettings(), LoraSettings(rank=4))
    needs = memory(
        shape,
        BodySettings(),
        replace(FLOAT32, method=method),
        Microbatch(num_tokens=1, num_last=1, longest_row=1),
    )
    parameters = list(model.parameters())
    moving = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in moving:
        parameter.grad = torch.zeros_like(parameter)
    optimiser = torch.optim.AdamW(moving)
    optimiser.step()
    moments = [t for state in optimiser.state.values() for t in state.values() if t.ndim]
    # A bias of the head and a pooler that is not read are held and not trained.
    slack = 0.06 if kind in ENCODERS else 0
    assert needs.weights == sum(p.nbytes for p in parameters)
    assert needs.gradients == pytest.approx(sum(p.nbytes for p in moving), rel=slack)
    assert needs.optimiser == pytest.approx(sum(t.nbytes for t in moments), rel=slack)


def test_the_06b_shape_without_a_weight() -> None:
    """Qwen 3 0.6B has 596,049,920 parameters, of which 151,936 * 1,024 are embeddings; the head
    adds 1,024. Four bytes each, once as weights, once as gradients, twice as moments; bfloat16
    copies of 28 layers of 2 * 1024 * 2048 + 2 * 1024 * 1024 + 3 * 1024 * 3072 matrix weights."""
    shape = body_shape("qwen", AutoConfig.for_model("qwen3", **QWEN_06B), BodySettings())
    assert shape.num_parameters == 596_049_920 + 1_024
    assert shape.num_embedding_weights == 151_936 * 1_024
    microbatch = Microbatch(num_tokens=8192, num_last=8192, longest_row=1024)
    needs = memory(shape, BodySettings(), replace(FLOAT32, autocast=True), microbatch, 8)
    assert needs.weights == needs.gradients == needs.gradient_buckets == 4 * shape.num_parameters
    assert needs.optimiser == 2 * needs.weights
    assert needs.weight_copies == 2 * 28 * (6 * 1024**2 + 9 * 1024**2)


def test_what_each_choice_saves() -> None:
    shape = body_shape("qwen", AutoConfig.for_model("qwen3", **QWEN_06B), BodySettings())
    microbatch = Microbatch(num_tokens=8192, num_last=8192, longest_row=1024)

    def needs(settings: BodySettings = BodySettings(), **changes: Any) -> Any:
        return memory(shape, settings, replace(FLOAT32, **changes), microbatch)

    full = needs()
    assert needs(checkpointing=True).activations < full.activations / 5
    assert needs(autocast=True).activations < full.activations
    assert needs(weight_bytes=2).total < full.total / 1.7
    lora = needs(method="lora")
    assert lora.gradients + lora.optimiser < (full.gradients + full.optimiser) / 20
    assert lora.activations < full.activations
    frozen = needs(method="frozen")
    assert frozen.gradients == frozen.optimiser == frozen.activations == 0
    packed = needs(BodySettings(quantization="4bit"), method="lora")
    assert packed.weights < lora.weights / 2
    # Only the first norm, keys and values of the last layer remain of 28.
    short = replace(microbatch, num_last=64)
    saved = 1 - memory(shape, BodySettings(), FLOAT32, short).activations / full.activations
    assert 0.5 / 28 < saved < 1.2 / 28


# What is kept for the backward pass


@pytest.mark.parametrize("types", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("llama", 0.01),
        ("qwen2", 0.01),
        ("qwen3", 0.01),
        ("mistral", 0.01),
        ("olmo2", 0.04),
        ("gemma2", 0.02),
        ("gemma3_text", 0.04),
        ("gpt2", 0.05),
        ("phi3", 0.08),
        ("mixtral", 0.1),
    ],
)
def test_activations_of_bodies_alone(kind: str, error: float, types: str) -> None:
    """One row of 64 tokens, under any window: what the bodies keep by themselves."""
    window = {"sliding_window": 65} if "sliding_window" in CAUSAL[kind] else {}
    config = config_of(kind, **window)
    shape = body_shape(kind, config, BodySettings())
    body = AutoModel.from_config(config).eval()
    if types == "bfloat16":
        body = body.bfloat16()
    ids_RT = torch.randint(3, 299, (1, 64))

    def run() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=types == "autocast"):
            return body(input_ids=ids_RT, use_cache=False)

    arithmetic = replace(
        FLOAT32, autocast=types == "autocast", weight_bytes=2 if types == "bfloat16" else 4
    )
    microbatch = Microbatch(num_tokens=64, num_last=64, longest_row=64)
    estimate = activation_bytes(shape, arithmetic, microbatch)
    estimate += weight_copy_bytes(shape, arithmetic, microbatch)
    assert estimate == pytest.approx(kept_bytes(body, run), rel=error)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_activations_of_a_training_pass(
    tmp_path: Path, kind: str, method: Any, precision: str
) -> None:
    """The trainer's own pass over trees, with all that is around the body."""
    model = trained(tmp_path, kind, method)
    shape = body_shape(kind, model.config, BodySettings(), LoraSettings(rank=4))
    work = total(work_of_tree(group.sequences, shape.windows) for group in GROUPS)
    microbatch = Microbatch(
        num_tokens=work.num_tokens,
        num_last=work.num_ends if shape.last_layer == "ends" else work.num_tokens,
        longest_row=work.num_tokens,
    )
    arithmetic = replace(FLOAT32, method=method, autocast=precision == "bfloat16")
    estimate = activation_bytes(shape, arithmetic, microbatch)
    estimate += weight_copy_bytes(shape, arithmetic, microbatch)
    found = kept_bytes(model, gradient_of(model, precision))
    assert estimate == pytest.approx(found, rel=0.15)


# What is computed


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_of_a_training_pass(
    tmp_path: Path, kind: str, method: Any, checkpointing: bool
) -> None:
    model = trained(tmp_path, kind, method, checkpointing)
    shape = body_shape(kind, model.config, BodySettings(), LoraSettings(rank=4))
    costs = shape.costs(method)
    work = total(work_of_tree(group.sequences, shape.windows) for group in GROUPS)
    forward = forward_flops(
        work,
        shape.windows,
        costs,
        shape.num_other_weights,
        shape.num_head_weights,
        shape.last_layer,
    )
    estimate = training_flops(forward, method).total
    estimate += recomputed_flops(forward, work, costs, method, checkpointing)
    assert estimate == pytest.approx(counted_flops(gradient_of(model)), rel=0.1)


@pytest.mark.slow
def test_the_06b_shape_measured() -> None:
    """All 28 layers in their real widths, few embeddings (which cost no FLOPs and keep nothing):
    two rows of 96 tokens, forward and backward, in rows of their own."""
    config = AutoConfig.for_model("qwen3", **{**QWEN_06B, "vocab_size": 1000})
    shape = body_shape("qwen", config, BodySettings())
    body = AutoModel.from_config(config).eval()
    ids_RT = torch.randint(3, 999, (2, 96))
    work = rows_work([96, 96])
    forward = forward_flops(work, shape.windows, shape.costs("full"))
    estimate = training_flops(forward, "full").total
    estimate += recomputed_flops(forward, work, shape.costs("full"), "full", False)
    kept: list[int] = []

    def run() -> None:
        states: list[torch.Tensor] = []
        kept.append(
            kept_bytes(
                body,
                lambda: states.append(body(input_ids=ids_RT, use_cache=False).last_hidden_state),
            )
        )
        states[0].sum().backward()

    assert estimate == pytest.approx(counted_flops(run), rel=0.02)
    microbatch = Microbatch(num_tokens=192, num_last=192, longest_row=96)
    assert activation_bytes(shape, FLOAT32, microbatch) == pytest.approx(kept[0], rel=0.02)


# What is refused, and what is said


def test_a_tree_that_cannot_be_exact_is_refused() -> None:
    settings = BodySettings(layout="tree")
    for kind in ("bert", "mamba"):
        with pytest.raises(PalateError, match="layout tree is not exact"):
            body_shape(kind, config_of(kind), settings)


def test_layout_pooling_and_what_is_not_counted() -> None:
    shapes = {
        kind: body_shape(kind, config_of(kind), BodySettings())
        for kind in ("llama", "gemma2", "bert", "modernbert", "mamba", "granite")
    }
    assert {kind: shape.layout for kind, shape in shapes.items()} == {
        "llama": "tree",
        "gemma2": "tree",
        "bert": "rows",
        "modernbert": "rows",
        "mamba": "rows",
        "granite": "tree",
    }
    assert [shapes[kind].pooling for kind in ("llama", "bert", "granite")] == [
        "last",
        "cls",
        "last",
    ]
    assert shapes["gemma2"].windows == (16, None)
    assert shapes["gemma2"].eager and not shapes["llama"].eager
    assert shapes["mamba"].unknown and not shapes["llama"].unknown


def test_only_the_experts_that_are_chosen_count() -> None:
    """Four experts of 3 * 32 * 64 weights, two of them chosen: half of them is met."""
    shape = body_shape("mixtral", config_of("mixtral"), BodySettings())
    dense = body_shape("mistral", config_of("mistral"), BodySettings())
    expert = 3 * 32 * 64
    router = 4 * 32
    assert shape.layers[0].cost.num_weights - dense.layers[0].cost.num_weights == expert + router
    assert shape.num_parameters - dense.num_parameters == 2 * (3 * expert + router)

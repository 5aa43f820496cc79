"""Every causal body of transformers, tiny: what docs/models.md says of it is what happens.

Legend: N sequences, D width of the body, E experts.
"""

import math
import re
import sys
import warnings
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

import palate
from palate.errors import PalateError
from palate.forest import Packing, plan_groups, plan_trees
from palate.model.balance import balance_coefficient, balance_loss
from palate.model.checkpoint import save_checkpoint
from palate.model.heads import init_head
from palate.model.loading import load_model
from palate.model.lora import LoraSettings, add_adapters
from palate.model.pooling import mean_weights, members
from palate.model.reward_model import RewardModel, plan_tensors
from palate.model.selfcheck import check_positions
from palate.model.settings import BodySettings
from palate.rendering import LengthSettings, Renderer
from tests import tiny
from tests.runs import pair_rows, quick_config, write_rows
from tests.test_model import (
    PAD,
    REWARD_TOLERANCE,
    assert_same_gradients,
    edit_config,
    group,
    ids,
    planned,
)
from tests.tiny import CAUSAL, GROUPED, byte_tokenizer, enlarge, save_tiny, tiny_body

DOCUMENT = Path(__file__).parent.parent / "docs" / "models.md"

SAME = {
    64: "n_inner dff ffn_dim d_ff ffn_hidden_size mamba_d_ssm",
    32: "n_embd d_model emb_dim word_embed_proj_dim moe_intermediate_size expert_ffn_hidden_size"
    " shared_expert_intermediate_size lru_width attention_hidden_size",
    16: "sliding_window q_lora_rank kv_lora_rank mamba_d_head mamba_head_dim mamba_headdim"
    " index_head_dim attention_window_size chunk_size mamba_chunk_size block_size",
    8: "query_pre_attn_scalar qk_rope_head_dim qk_nope_head_dim v_head_dim linear_key_head_dim"
    " linear_value_head_dim global_head_dim hidden_size_per_layer_input",
    4: "n_head n_heads num_heads rotary_dim num_local_experts num_experts n_routed_experts"
    " moe_num_experts state_size ssm_state_size mamba_d_state mamba_n_heads mamba_num_heads"
    " linear_num_value_heads laurel_rank",
    2: "n_layer n_layers num_layers num_blocks zero_expert_num num_experts_per_tok moe_topk moe_k"
    " index_n_heads time_step_rank mamba_dt_rank linear_num_key_heads num_global_key_value_heads"
    " altup_num_inputs",
    1: "n_shared_experts n_group topk_group mamba_n_groups mamba_ngroups n_groups",
    0: "first_k_dense_replace",
    128: "index_topk",
    300: "vocab_size_per_layer_input",
    512: "n_positions",
}
TINY: dict[str, Any] = {
    **GROUPED,
    **{name: size for size, names in SAME.items() for name in names.split()},
}
"""Sizes under all the names that configurations have for them."""

LATENT = {"num_key_value_heads": 4}
MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
SHARED_KEYS = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": MIXED["layer_types"] * 2,
}
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
CONVOLUTION = {"layer_types": ["conv", "full_attention"]}
SHARED_BLOCKS = {
    "num_hidden_layers": 3,
    "layers_block_type": ["mamba", "hybrid", "hybrid"],
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
}
LATENT_BODIES = (
    "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 dots3_note_text glm4_moe_lite glm_moe_dsa"
    " longcat_flash minicpm3 youtu"
)
SIZES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(LATENT_BODIES.split(), LATENT),
    **dict.fromkeys(("exaone4", "cohere2", "olmo3", "gemma3_text"), MIXED),
    **dict.fromkeys(("gemma3n_text", "gemma4_text"), SHARED_KEYS),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), LINEAR),
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "hidden_size": 32, "moe_top_k": 2},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "lfm2": CONVOLUTION,
    "lfm2_moe": {**CONVOLUTION, "num_dense_layers": 1},
    "lfm3": {"num_hidden_layers": 4},
    "mamba2": {"head_dim": 16},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"]},
    "modernbert-decoder": {"local_attention": 16},
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "block_types": ["recurrent", "recurrent", "attention"],
    },
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (16, 32)},
    "roc_bert": {
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 20,
        "shape_embed_dim": 8,
        "shape_vocab_size": 20,
    },
    "cpmant": {"dim_head": 8, "dim_ff": 64},
    "zamba": {**SHARED_BLOCKS, **LATENT},
    "zamba2": {**SHARED_BLOCKS, "num_mem_blocks": 1},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family needs besides: layers of both kinds, and sizes that must fit each other."""


def tiny_config(model_type: str) -> Any:
    """The family's configuration with those of the sizes that it has a field for."""
    made = CONFIG_MAPPING[model_type]
    known = {item.name for item in fields(made)} if is_dataclass(made) else set()
    known -= set(made.attribute_map)
    sizes = {name: value for name, value in TINY.items() if name in known}
    return made(**{**sizes, **SIZES.get(model_type, {})})


@dataclass(frozen=True)
class Row:
    """One line of the document's table, for one of its bodies."""

    plain: bool
    pooling: str
    layout: str
    attention: str
    why_rows: str
    balance: bool


def table() -> dict[str, Row]:
    """The document's table by model type."""
    found: dict[str, Row] = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0] in ("plain", "own"):
            form, pooling, layout, attention, why, bodies = cells
            for body in bodies.split(", "):
                row = Row(form == "plain", pooling, layout, attention, why, body.endswith("\u2020"))
                found[body.removesuffix("\u2020")] = row
    return found


TABLE = table()


def save_body(directory: Path, model_type: str) -> str:
    torch.manual_seed(0)
    enlarge(AutoModel.from_config(tiny_config(model_type))).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return str(directory)


def groups_past_windows() -> list[list[list[int]]]:
    """A prefix of 40 and branches of 25, 5 and 30, windows of 16; and a short text without any."""
    random = np.random.default_rng(5)
    return [group(random, 40, (25, 5, 30)), [ids(random, 7)]]


def loaded(name: str, settings: BodySettings) -> tuple[RewardModel, str]:
    """For training, and what was said about the layout."""
    torch.manual_seed(1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = load_model(name, settings, for_training=True).model
    return model, " ".join(str(one.message) for one in said if "layout rows" in str(one.message))


DENSE = set(
    "codegen falcon flint gpt_neox_japanese gpt_oss gptj granite_swa granitemoe_swa mimo_v2_flash"
    " nemotron stablelm xglm".split()
)
"""Bodies of layout `tree` whose attention is a dense mask: written into their layers, with sinks,
or out of reach of our argument."""


@pytest.mark.parametrize("model_type", TABLE)
def test_a_body_does_what_the_table_says(model_type: str, tmp_path: Path) -> None:
    """Form, pooling, layout, attention and balance loss; rewards alone = beside others = in a tree
    for its own pooling and the mean; every trainable parameter has a gradient; saved and reloaded
    to the same rewards."""
    row = TABLE[model_type]
    name = save_body(tmp_path / "body", model_type)
    model, said = loaded(name, BodySettings(head_init="normal"))
    assert (model.plain, model.pooling, model.layout) == (row.plain, row.pooling, row.layout)
    attention = model.config.get_text_config()._attn_implementation
    assert attention.removeprefix("palate_") == row.attention
    assert (model.attention == "dense") == (row.layout == "rows" or model_type in DENSE)
    assert (row.why_rows in said) if row.why_rows != "-" else said == ""

    groups = groups_past_windows()
    variants = [model.eval()]
    if row.pooling == "last":
        head = nn.Linear(model.run(plan_of(groups, model)).hidden_ND.shape[1], 1, bias=False)
        init_head(head, "normal")
        variants.append(RewardModel(model.body, model.layout, head, "mean").eval())
    for variant in variants:
        with torch.inference_mode():
            truth = torch.cat(
                [planned(variant, [[s]], "rows", 1)[0] for members in groups for s in members]
            )
            assert truth.std() > 1e-3
            for layout in {"rows", row.layout}:
                found = torch.cat(planned(variant, groups, layout, 10**9))
                assert (found - truth).abs().max() < REWARD_TOLERANCE, (variant.pooling, layout)

    output = model.train().run(plan_of(groups, model))
    assert (output.auxiliary_N is not None) == row.balance
    loss = (output.reward_N * torch.arange(4)).sum()
    if output.auxiliary_N is not None:
        coefficient = model.balance_coefficient
        assert (
            (output.auxiliary_N > coefficient / 2) & (output.auxiliary_N < 4 * coefficient)
        ).all()
        loss = loss + output.auxiliary_N.sum()
    loss.backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]

    renderer = Renderer(byte_tokenizer(), LengthSettings().resolved(512))
    before = planned(model.eval(), groups, "rows", 10**9)
    save_checkpoint(tmp_path / "saved", model, renderer)
    settings = BodySettings(layout="rows")
    again = load_model(str(tmp_path / "saved"), settings, for_training=False).model
    assert torch.equal(torch.cat(before), torch.cat(planned(again, groups, "rows", 10**9)))


def plan_of(groups: list[list[list[int]]], model: RewardModel) -> Any:
    """All groups in one plan, in a tree where that is exact."""
    (plan,) = plan_groups(groups, model.packing(10**9, PAD))
    return plan


REFUSED = {
    "encoder-decoder": "is an encoder-decoder",
    "block-sparse": "block-sparse attention.*attention_type to original_full",
    "look ahead": "set body.pooling to mean or attention",
    "at random": "draws random numbers in training.*set body.dropout",
    "one length": "can't be trained: .*sequence length",
    "language": "can't be a reward model: .*language unknown",
    "padding": "can't be a reward model: .*beside longer texts",
}


def refused() -> dict[str, str]:
    """The document's second table: model type -> the message, by words of the reason."""
    found: dict[str, str] = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3:
            message = next((m for words, m in REFUSED.items() if words in cells[1]), None)
            if message:
                found |= dict.fromkeys(cells[0].split(", "), message)
    return found


def save_config(directory: Path, model_type: str) -> str:
    """Encoder-decoders are told by their configuration; their weights are not looked at."""
    tiny_config(model_type).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return str(directory)


@pytest.mark.parametrize("model_type", refused())
def test_what_is_refused_is_refused_by_name_with_a_remedy(model_type: str, tmp_path: Path) -> None:
    message = refused()[model_type]
    save = save_config if message == REFUSED["encoder-decoder"] else save_body
    name = save(tmp_path, model_type)
    with pytest.raises(PalateError, match=f"{model_type} .*{message}") as refusal:
        load_model(name, for_training=True)
    assert len(str(refusal.value)) < 600
    if "mean or attention" in message:
        model, _ = loaded(name, BodySettings(pooling="mean"))
        assert (model.layout, model.pooling, model.plain) == ("rows", "mean", False)
    if "body.dropout" in message:
        assert loaded(name, BodySettings(dropout=True))[0].layout == "tree"


def test_the_document_names_every_causal_type_once() -> None:
    text = " ".join(DOCUMENT.read_text(encoding="utf-8").split())
    untried = re.search(r"takes more than a small configuration: (.*?)\. They go", text)
    assert untried is not None
    elsewhere = {"gemma3", "qwen3_5", "llama4"}  # in the words about vision
    named = [*TABLE, *refused(), *untried[1].split(", "), *elsewhere]
    assert len(named) == len(set(named))
    assert set(named) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "patch_size": 14}
VISION |= {"num_attention_heads": 2, "image_size": 28}
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
TOWER = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
COMPOSITES: dict[str, tuple[dict[str, Any], str]] = {
    "gemma3": ({"text_config": CAUSAL["gemma3_text"], "vision_config": VISION}, "tree"),
    "llava": (
        {
            "text_config": {**GROUPED, "model_type": "llama"},
            "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 16},
        },
        "tree",
    ),
    "mistral3": (
        {
            "text_config": {**GROUPED, "model_type": "mistral"},
            "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 8},
        },
        "tree",
    ),
    "qwen2_5_vl": (
        {
            "text_config": {**GROUPED, "rope_parameters": ROPE},
            "vision_config": {**TOWER, "out_hidden_size": 32},
        },
        "tree",
    ),
    "qwen3_5": (
        {
            "text_config": {
                **{k: v for k, v in TINY.items() if k in GROUPED or k.startswith("linear_")},
                **LINEAR,
                "rope_parameters": {**ROPE, "partial_rotary_factor": 1.0},
            },
            "vision_config": {**TOWER, "out_hidden_size": 32},
        },
        "rows",
    ),
}


@pytest.mark.parametrize("model_type", COMPOSITES)
def test_a_vision_language_model_reads_text_and_freezes_the_rest(
    model_type: str, tmp_path: Path
) -> None:
    sizes, layout = COMPOSITES[model_type]
    torch.manual_seed(0)
    enlarge(AutoModel.from_config(CONFIG_MAPPING[model_type](**sizes))).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model, _ = loaded(str(tmp_path), BodySettings(pooling="mean", head_init="normal"))
    assert model.layout == layout
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen
    assert all(re.search(r"\.(visual|vision_tower|multi_modal_projector)\.", n) for n in frozen)
    groups = groups_past_windows()
    model.run(plan_of(groups, model)).reward_N.sum().backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    with torch.inference_mode():
        truth = torch.cat(
            [planned(model.eval(), [[s]], "rows", 1)[0] for members in groups for s in members]
        )
        found = torch.cat(planned(model, groups, model.layout, 10**9))
    assert (found - truth).abs().max() < REWARD_TOLERANCE


ENCODER = {**VISION, "vocab_size": 300}
NO_REWARDS: dict[str, dict[str, Any]] = {
    "vit": VISION,
    "clip": {"text_config": {"hidden_size": 16}, "vision_config": VISION, "projection_dim": 16},
    "fnet": ENCODER,
    "yoso": ENCODER,
    "canine": {**VISION, "num_hash_functions": 2, "num_hash_buckets": 64},
    "nystromformer": {**ENCODER, "num_landmarks": 4, "segment_means_seq_len": 16},
    "paligemma": {
        "text_config": {**GROUPED, "model_type": "gemma"},
        "vision_config": {**VISION, "model_type": "siglip_vision_model"},
        "projection_dim": 32,
    },
    "llama4": {
        "text_config": {**GROUPED, "num_local_experts": 4, "intermediate_size_mlp": 32},
        "vision_config": {
            **VISION,
            "intermediate_size": 64,
            "vision_output_dim": 64,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
        },
    },
}


@pytest.mark.parametrize("model_type", NO_REWARDS)
def test_what_is_no_body_for_text_or_heeds_its_neighbours_is_refused(
    model_type: str, tmp_path: Path
) -> None:
    """Images; what gives no states; and bodies that mix in padding, by a Fourier transform, by
    hashing, by convolution or by looking at it."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**NO_REWARDS[model_type])
    AutoModel.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    reason = "does not read plain token ids|changes by .* beside longer texts"
    with pytest.raises(PalateError, match=f"{model_type} can't be a reward model: .*({reason})"):
        load_model(str(tmp_path), BodySettings(pooling="mean"), for_training=True)


def test_a_language_model_without_a_class_of_its_own_becomes_a_reward_model(
    tmp_path: Path,
) -> None:
    """From the checkpoint as a hub has it, with the language model's head, through a whole run."""
    torch.manual_seed(0)
    enlarge(AutoModelForCausalLM.from_config(tiny_config("granite"))).save_pretrained(
        tmp_path / "b"
    )
    byte_tokenizer().save_pretrained(tmp_path / "b")
    config = quick_config(
        tmp_path,
        model=str(tmp_path / "b"),
        data=write_rows(tmp_path / "pairs.jsonl", pair_rows(40)),
    )
    result = palate.train(config)
    assert result.scorer is not None
    again = palate.load(tmp_path / "run")
    assert again.sidecar is not None
    assert not again.sidecar.plain
    assert again.score("question 3", "yes a") == result.scorer.score("question 3", "yes a")
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "library_name: palate" in card
    assert "Only palate loads it: transformers has no sequence-classification class for" in card
    assert "Pooling `last`, linear head" in card
    assert "AutoModelForSequenceClassification" not in card


def test_sparse_attention_is_refused_beyond_the_keys_that_it_keeps(tmp_path: Path) -> None:
    """With 128 keys kept, texts of 20 to 61 tokens get beside each other the rewards that they get
    alone; the plant keeps 8, and they get others."""
    name = save_body(tmp_path, "deepseek_v32")
    model, _ = loaded(name, BodySettings(head_init="normal"))
    check_positions(model.config, 128)
    with pytest.raises(PalateError, match=r"deepseek_v32: .* keeps 128 keys.*now 129\) to 128"):
        check_positions(model.config, 129)
    random = np.random.default_rng(0)
    texts = [ids(random, length) for length in (20, 30, 40, 50, 60, 61)]
    with torch.inference_mode():
        for kept in (128, 8):
            for module in model.modules():
                if hasattr(module, "index_topk"):
                    module.index_topk = kept
            alone = torch.cat([planned(model.eval(), [[text]], "rows", 1)[0] for text in texts])
            beside = torch.cat(planned(model, [texts], "rows", 1))
            change = (alone - beside).abs().max()
            assert change < REWARD_TOLERANCE if kept == 128 else change > 1e-2


LN3 = math.log(3)


def test_the_balance_loss_of_a_sequence_counts_its_prefix_and_its_branch() -> None:
    """Two experts, one choice a token. The prefix token a has probabilities (3/4, 1/4), that is
    logits (ln 3, 0); branch token b the same; branch token c (1/4, 3/4).

        a b: shares (1, 0), mean probabilities (3/4, 1/4): 2 (3/4) = 3/2
        a c: shares (1/2, 1/2), mean (1/2, 1/2): 2 (1/4 + 1/4) = 1, which even choices always give

    In a second layer a has (1/4, 3/4) and b, c have (3/4, 1/4): shares (1/2, 1/2), so 1 for both.
    The means over layers are 5/4 and 1. The token of the other tree, (1/4, 3/4) in both layers, has
    2 (3/4) = 3/2 by itself, and like padding counts for no other sequence.
    """
    (plan,) = plan_trees([[[5, 6], [5, 7]], [[8]]], 10**9, PAD)
    tensors = plan_tensors(plan, torch.device("cpu"))
    ends = tensors["end_row_N"], tensors["end_column_N"]
    weight_NT = mean_weights(members(tensors["reach_RT"], *ends))
    high, low = [LN3, 0.0], [0.0, LN3]
    layers = {5: (high, low), 6: (high, high), 7: (low, high), 8: (low, low), PAD: (low, low)}
    logits = [
        torch.tensor([layers[i][layer] for i in tensors["input_ids_RT"].flatten().tolist()])
        for layer in (0, 1)
    ]
    num_rows = len(tensors["input_ids_RT"])
    loss_N = balance_loss(logits, 1, weight_NT, ends[0], num_rows)
    torch.testing.assert_close(loss_N, torch.tensor([5 / 4, 1.0, 3 / 2]))
    every_choice = balance_loss(logits, 2, weight_NT, ends[0], num_rows)
    torch.testing.assert_close(every_choice, torch.ones(3))


ROUTED = {
    "doge": {"is_moe": True, "num_experts": 16},
    "deepseek_v4": {"mlp_layer_types": ["moe", "moe"], "num_hash_layers": 0},
    "ernie4_5_moe": {"moe_layer_start_index": 0},
    "flint": {"mlp_only_layers": []},
    **{body: {} for body in ("laguna", "minimax_m2", "minimax_m3_vl_text", "phimoe")},
    **{body: {} for body, row in TABLE.items() if row.balance},
}
"""All types that give router logits and have a coefficient, and what makes their layers sparse."""


@pytest.mark.parametrize("model_type", ROUTED)
def test_a_balance_loss_counts_the_choices_that_were_made(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With biases as large as the scores, as training may leave them, a router's k highest logits
    are the experts that it calls `topk` for, or the body has no balance loss."""
    config = tiny_config(model_type)
    for name, value in ROUTED[model_type].items():
        setattr(config, name, value)
    torch.manual_seed(0)
    body = enlarge(AutoModel.from_config(config))
    with torch.no_grad():
        for name, tensor in (*body.named_parameters(), *body.named_buffers()):
            if name.endswith(("bias", "biases")) and tensor.is_floating_point():
                tensor.normal_()
    chosen = []
    topk = torch.topk

    def recorded(*arguments: Any, **named: Any) -> Any:
        found = topk(*arguments, **named)
        chosen.append(found.indices)
        return found

    monkeypatch.setattr(torch, "topk", recorded)
    monkeypatch.setattr(torch.Tensor, "topk", recorded)
    random = np.random.default_rng(0)
    tokens = torch.tensor([ids(random, 30)])
    output = body(tokens, output_router_logits=True, use_cache=False)
    monkeypatch.undo()
    num_choices = config.get_text_config().num_experts_per_tok

    def told(logits: torch.Tensor) -> bool:
        """Whether some router chose what these logits say."""
        counted = logits.topk(num_choices).indices.sort().values
        return any(
            counted.shape == made.shape and torch.equal(counted, made.sort().values)
            for made in chosen
        )

    assert output.router_logits
    assert all(map(told, output.router_logits)) == (balance_coefficient(body) > 0)


@pytest.mark.parametrize("kind", ["mixtral", "olmoe"])
def test_the_balance_loss_is_the_same_in_tree_and_rows_and_for_one_sequence_that_of_transformers(
    kind: str,
) -> None:
    """Values and gradients, for any token budget and with recomputation. `transformers` counts the
    two choices of a token as two, so for one sequence and one layer its loss is twice ours."""
    body = tiny_body(kind)
    head = nn.Linear(32, 1, bias=False)
    model = RewardModel(body, "tree", head, "last").train()
    groups = groups_past_windows()
    gradients, losses = [], []
    for layout, tokens in (("tree", 10**9), ("tree", 1), ("rows", 150), ("tree", 1)):
        model.zero_grad()
        if len(losses) == 3:
            body.gradient_checkpointing_enable({"use_reentrant": False})
        found: dict[int, torch.Tensor] = {}
        packing = Packing(layout, tokens, PAD)  # type: ignore[arg-type]
        for plan in plan_groups(groups, packing):
            auxiliary_N = model.run(plan).auxiliary_N
            assert auxiliary_N is not None
            auxiliary_N.sum().backward()
            sizes = [len(groups[index]) for index in plan.groups]
            found |= dict(zip(plan.groups, auxiliary_N.detach().split(sizes), strict=True))
        losses.append(torch.cat([found[index] for index in range(len(groups))]))
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    assert any("gate" in name for name in gradients[0])
    for loss_N, gradient in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss_N, losses[0])
        assert_same_gradients(gradient, gradients[0])

    sequence = torch.tensor([groups[0][0]])
    logits = body(sequence, output_router_logits=True).router_logits
    theirs = [load_balancing_loss_func((layer,), 4, 2) for layer in logits]
    expected = body.config.router_aux_loss_coef * sum(theirs) / len(theirs) / 2
    assert losses[0][0].item() == pytest.approx(float(expected), rel=1e-5)


def test_no_balance_loss_outside_training_or_without_a_coefficient(tmp_path: Path) -> None:
    name = save_tiny(tmp_path, "mixtral")
    model = load_model(name, for_training=True).model
    plan = plan_of(groups_past_windows(), model)
    assert model.train().run(plan).auxiliary_N is not None
    assert model.eval().run(plan).auxiliary_N is None
    edit_config(name, router_aux_loss_coef=0.0)
    model = load_model(name, for_training=True).model.train()
    assert model.run(plan).auxiliary_N is None


BOUND = {"8bit": 0.2, "4bit": 1.5}
"""Largest change of a reward, in standard deviations of the rewards; 0.08 and 0.96 were seen."""


def wide_llama(directory: Path, head: bool) -> str:
    """Wide enough for blocks of 64 weights, which 4 bit has one scale for."""
    sizes = {**GROUPED, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    tiny.CAUSAL["llama wide"] = sizes
    try:
        return save_tiny(directory, "llama wide", head=head)
    finally:
        del tiny.CAUSAL["llama wide"]


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantised_body_changes_rewards_within_bounds(quantization: Any, tmp_path: Path) -> None:
    """Only the body's linear layers are quantised; neighbours change nothing; nothing is saved."""
    pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")
    wide_llama(tmp_path, head=True)
    whole = palate.load(tmp_path)
    scorer = palate.load(tmp_path, quantization=quantization)
    model = scorer.model
    assert model.quantized
    assert type(model.head) is nn.Linear
    assert {type(m).__name__ for m in model.body.modules() if isinstance(m, nn.Linear)} == {
        {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[quantization]
    }
    random = np.random.default_rng(3)
    sequences = [ids(random, length) for length in range(4, 40, 3)]
    expected = np.array(whole.score_ids(sequences))
    found = np.array(scorer.score_ids(sequences))
    change = np.abs(found - expected).max() / expected.std()
    assert 1e-4 < change < BOUND[quantization]
    alone = [scorer.score_ids([sequence])[0] for sequence in sequences]
    assert np.abs(found - alone).max() < 1e-3 * expected.std()
    with pytest.raises(PalateError, match=r"quantised body can't be saved.*merge"):
        save_checkpoint(tmp_path / "saved", model, scorer.renderer)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantised_body_sends_gradients_through_after_it_was_evaluated(
    quantization: Any, tmp_path: Path
) -> None:
    """To the embeddings, below all quantised layers; bitsandbytes' packed 4-bit product on CPUs
    would end the graph there."""
    pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")
    settings = BodySettings(quantization=quantization, pooling="attention", head_init="normal")
    model = load_model(wide_llama(tmp_path, head=False), settings, for_training=True).model
    plan = plan_of([group(np.random.default_rng(0), 8, (6, 5))], model)
    with model.scoring_mode():
        model.run(plan)
    model.train().run(plan).reward_N.sum().backward()
    gradient = model.transformer.get_input_embeddings().weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0
    assert model.query is not None
    assert model.query.dtype == torch.float32


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
def test_a_model_has_its_size_whatever_it_is_packed_in(quantization: Any, tmp_path: Path) -> None:
    """Embeddings 300 x 32. A layer: q and o 32 x 32 each, k and v 16 x 32 each, gate, up and down
    64 x 32 each, two norms of 32; two layers, a norm, a head of 32.

        9,600 + 2 (2,048 + 1,024 + 6,144 + 64) + 32 + 32 = 28,224

    Adapters, which come on top, do not make the body larger: rates are chosen by its size.
    """
    if quantization != "none":
        pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")
    settings = BodySettings(quantization=quantization)
    model = load_model(save_tiny(tmp_path), settings, for_training=True).model
    assert model.num_parameters() == 28_224
    add_adapters(model, LoraSettings(rank=2))
    assert model.num_parameters() == 28_224


def test_quantised_loading_without_bitsandbytes_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        PalateError, match=r"quantization 4bit needs bitsandbytes.*\[quantization\]"
    ):
        palate.load(save_tiny(tmp_path, head=True), quantization="4bit")

"""Adapters: what they train, what they leave alone, what comes back, what merging gives."""

import json
import logging
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

import palate
from palate.errors import PalateError
from palate.evaluation.outcomes import quick_metrics
from palate.forest.plan import plan_rows
from palate.model import merging
from palate.model.checkpoint import save_checkpoint
from palate.model.heads import MlpHead, init_head
from palate.model.loading import load_model
from palate.model.lora import (
    LoraSettings,
    add_adapters,
    check_restored,
    save_adapter,
    trained_state,
    trained_whole,
)
from palate.model.lora_targets import probe
from palate.model.merging import check_head, merge_adapters
from palate.model.reward_model import RewardModel
from palate.model.selfcheck import tree_difference
from palate.model.settings import BodySettings
from palate.training.checkpoints import newest_complete
from palate.training.trainer import RewardTrainer
from tests.runs import load_tiny, pair_groups, quick_config, quick_training, tiny_renderer
from tests.test_resume import StopAfter
from tests.tiny import GROUPED, save_tiny, tiny_transformer

SPARSE: dict[str, dict[str, Any]] = {
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **GROUPED,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },
    "jamba": {
        **GROUPED,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "num_experts": 2,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
}
KINDS = ["llama", "gpt2", "phi3", "bert", "deberta-v2", "modernbert", "mixtral", "qwen3_moe"]
EXPERTS = ("q_proj", "gate_up_proj", "down_proj")
SEQUENCES = [[5, 9, 30, 7], [11, 3, 4, 250, 6, 99, 17]]


def tiny_classifier(kind: str) -> Any:
    if kind not in SPARSE:
        return tiny_transformer(kind)
    config = AutoConfig.for_model(kind, **SPARSE[kind], num_labels=1)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return model


def tiny_model(kind: str, dtype: torch.dtype = torch.float32) -> RewardModel:
    return RewardModel(tiny_classifier(kind).to(dtype), "rows")


def headless(kind: str, pooling: Any, mlp: bool) -> RewardModel:
    """A body with a pooling and a head that plain classes don't have."""
    body = tiny_classifier(kind).base_model
    head = MlpHead(32, 16) if mlp else nn.Linear(32, 1, bias=False)
    init_head(head, "normal")
    return RewardModel(body, "rows", head, pooling)


def settings_for(kind: str, **changes: Any) -> LoraSettings:
    """Experts are adapted where there are any."""
    targets = EXPERTS if kind in ("mixtral", "qwen3_moe") else ()
    return LoraSettings(**{"rank": 4, "alpha": 8.0, "targets": targets, **changes})


def shake(model: RewardModel) -> None:
    """As after training: B is no longer zero, the head no longer what it was."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def adapted(kind: str, dtype: torch.dtype = torch.float32, **changes: Any) -> RewardModel:
    model = tiny_model(kind, dtype)
    add_adapters(model, settings_for(kind, **changes))
    shake(model)
    return model


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def rewards(model: RewardModel) -> Tensor:
    plan = plan_rows([SEQUENCES], 10**6, pad_id=0)[0]
    with model.scoring_mode():
        return model.run(plan).reward_N.clone()


def plain_rewards(transformer: nn.Module) -> list[float]:
    """As anyone gets them: one sequence a call, no palate."""
    transformer.eval()
    with torch.inference_mode():
        return [float(transformer(input_ids=torch.tensor([ids])).logits[0, 0]) for ids in SEQUENCES]


def relative(new: Tensor, old: Tensor) -> float:
    return float((new - old).abs().max() / old.abs().max())


def lora_trainer(model: RewardModel, directory: Path, **settings: Any) -> RewardTrainer:
    return RewardTrainer(
        model,
        quick_training(**{"method": "lora", "evaluations_per_epoch": 2, **settings}),
        pair_groups(18),
        {"validation": pair_groups(6, first=90)},
        quick_metrics,
        0,
        directory / "training",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_change_no_reward_until_they_are_trained(kind: str) -> None:
    """B is zero at first, so W x + (alpha / rank) B A x is W x, bit for bit."""
    model = tiny_model(kind)
    before, names = rewards(model), type(model.transformer)
    add_adapters(model, settings_for(kind))
    assert torch.equal(rewards(model), before)
    assert type(model.transformer) is names
    assert type(model.head) is nn.Linear


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_moves_every_trained_weight_and_no_other(kind: str, tmp_path: Path) -> None:
    """Without weight decay AdamW moves a weight only when it has a gradient, and then by about the
    learning rate whatever the gradient's size."""
    model = adapted(kind)
    trained = {*trained_state(model)}
    before = copies(model)
    lora_trainer(model, tmp_path, max_steps=1, weight_decay=0.0).train()
    after = model.state_dict()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) == (name not in trained), name
    assert all("lora_" in n or n.startswith("transformer.") for n in trained)
    in_head = {name for name in trained if "lora_" not in name}
    assert any(name.startswith(model.head_prefixes) for name in in_head)


@pytest.mark.parametrize(
    ("kind", "whole"),
    [
        ("llama", {"score"}),
        ("bert", {"classifier", "bert.pooler"}),
        ("deberta-v2", {"classifier", "pooler"}),
        ("modernbert", {"classifier", "head"}),
    ],
)
def test_what_a_pretrained_body_may_lack_is_trained_whole_in_float32(
    kind: str, whole: set[str]
) -> None:
    """The encoders' classes put layers of their own before the last one; a new one is random."""
    model = tiny_model(kind, torch.bfloat16)
    before = rewards(model)
    add_adapters(model, LoraSettings(rank=2))
    assert {*trained_whole(model)} == whole
    types = {p.dtype for p in model.parameters() if p.requires_grad}
    frozen = {p.dtype for n, p in model.named_parameters() if not p.requires_grad}
    assert types == {torch.float32}
    assert torch.bfloat16 in frozen
    assert relative(rewards(model), before) < 0.02


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_head_of_ours_is_trained_with_its_query(kind: str, pooling: Any, tmp_path: Path) -> None:
    """BERT's pooler is called by its body and read by nobody: an adapter there would never move."""
    model = headless(kind, pooling, mlp=True)
    add_adapters(model, LoraSettings(rank=2))
    shake(model)
    trained = {*trained_state(model)}
    before = copies(model)
    lora_trainer(model, tmp_path, max_steps=1, weight_decay=0.0).train()
    moved = {n for n, tensor in model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert moved == trained
    assert not any("pooler" in name for name in trained)
    assert {"reward_head.hidden.weight", "reward_head.out.weight"} <= trained
    assert ("query" in trained) == (pooling == "attention")


def test_targets_are_said(caplog: pytest.LogCaptureFixture) -> None:
    """Rank 2 on q_proj (32 to 32) of two layers is 2 * 2 * (32 + 32) = 256, the head another 32."""
    with caplog.at_level(logging.INFO, "palate"):
        add_adapters(tiny_model("mixtral"), LoraSettings(rank=2, targets=("q_proj",)))
    assert "rank 2 on 2 layers (q_proj)" in caplog.text
    assert "whole: score; 288 trained parameters" in caplog.text
    assert "unless lora.targets names them: experts.down_proj, experts.gate_up_proj" in caplog.text


def test_all_linear_layers_of_the_body_are_adapted_by_default() -> None:
    model = tiny_model("llama")
    linear = {n for n, m in model.body.named_modules() if isinstance(m, nn.Linear)}
    add_adapters(model, LoraSettings(rank=2))
    names = {n for n, m in model.body.named_modules() if hasattr(m, "lora_A")}
    assert names == linear
    assert len(names) == 2 * 7


def test_layers_of_a_state_space_mixer_whose_weights_kernels_read_get_none() -> None:
    """Mamba's `dt_proj` is multiplied by its weight, and on a GPU `x_proj` and `out_proj` too: an
    adapter there would be trained on nothing. Attention and experts of the hybrid are adapted."""
    model = tiny_model("jamba")
    add_adapters(model, LoraSettings(rank=2))
    names = {n.rpartition(".")[2] for n, m in model.body.named_modules() if hasattr(m, "lora_A")}
    assert {"in_proj", "q_proj", "o_proj"} <= names
    assert not names & {"dt_proj", "x_proj", "out_proj"}
    with pytest.raises(PalateError, match=r"mamba\.out_proj can't be adapted.*leave it out"):
        add_adapters(tiny_model("jamba"), LoraSettings(targets=("out_proj",)))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("llama", {"targets": ("q_prj",)}, r"'q_prj'.*Llama.*nearest: q_proj.*gate_proj"),
        ("llama", {"targets": ("q_proj", "c_attn")}, "'c_attn'"),
        ("llama", {"targets": ("score",)}, "the head is always trained"),
        ("gpt2", {"targets": ("q_proj",)}, r"it has c_attn, c_fc, c_proj"),
        ("mixtral", {"targets": EXPERTS, "dropout": 0.1}, r"lora\.dropout 0\.1.*experts"),
    ],
)
def test_settings_that_can_not_be_met_are_refused(
    kind: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(PalateError, match=message):
        add_adapters(tiny_model(kind), LoraSettings(**settings))


@pytest.mark.parametrize(
    "values",
    [{"rank": 0}, {"alpha": 0.0}, {"alpha": math.nan}, {"alpha": math.inf}, {"dropout": 1.0}],
)
def test_an_impossible_setting_is_refused_with_its_key(values: dict[str, Any]) -> None:
    with pytest.raises(PalateError, match=rf"lora\.{next(iter(values))}"):
        LoraSettings(**values)


def test_a_longer_target_names_one_layer() -> None:
    model = tiny_model("llama")
    add_adapters(model, LoraSettings(targets=("layers.1.self_attn.q_proj",)))
    names = [n for n, m in model.body.named_modules() if hasattr(m, "lora_A")]
    assert names == ["layers.1.self_attn.q_proj"]


def test_a_missing_peft_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PalateError, match=r"palate\[lora\]"):
        add_adapters(tiny_model("llama"), LoraSettings())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_merged_weight_is_the_sum_that_the_paper_has(kind: str) -> None:
    """Rank 1, alpha 3, A = a, B = b: W_ij + 3 b_i a_j; GPT-2 keeps W transposed, hence W_ji."""
    model = tiny_model(kind)
    name = "q_proj" if kind == "llama" else "c_fc"
    add_adapters(model, LoraSettings(rank=1, alpha=3.0, targets=(name,)))
    shake(model)
    where = next(n for n, m in model.transformer.named_modules() if hasattr(m, "lora_A"))
    layer = model.transformer.get_submodule(where)
    weight = layer.base_layer.weight.detach().clone()
    a, b = layer.lora_A["default"].weight[0], layer.lora_B["default"].weight[:, 0]
    merge_adapters(model)
    merged = model.transformer.get_submodule(where).weight
    delta = merged - weight if kind == "llama" else (merged - weight).T
    np.testing.assert_allclose(
        delta.detach(), 3 * b.detach()[:, None] * a.detach()[None], atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_merging_keeps_the_rewards_and_leaves_a_plain_model(kind: str) -> None:
    """Within 1e-5 in float32, relative to the largest reward."""
    plain = tiny_model(kind)
    model = adapted(kind)
    before = rewards(model)
    assert relative(before, rewards(plain)) > 0.1
    merge_adapters(model)
    assert relative(rewards(model), before) < 1e-5
    assert {*model.state_dict()} == {*plain.state_dict()}
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert not hasattr(model.transformer, "peft_config")
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "modernbert"])
def test_merging_in_bfloat16_rounds_once(kind: str) -> None:
    """Each weight is the float32 sum, rounded: within half a unit in the last of 8 bits. The
    pooled states stay within 0.1 of their largest entry: `merge_adapters` itself refuses more."""
    model = adapted(kind, torch.bfloat16)
    before = probe(model).hidden_ND
    layers = {n: m for n, m in model.transformer.named_modules() if hasattr(m, "lora_A")}
    sums = {
        n: m.base_layer.weight.float() + m.get_delta_weight("default") for n, m in layers.items()
    }
    merge_adapters(model)
    for name, exact in sums.items():
        weight = model.transformer.get_submodule(name).weight
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, exact.to(torch.bfloat16))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert relative(probe(model).hidden_ND, before) < 0.1


def test_a_merge_that_loses_adapters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_merged", lambda layer: layer.get_base_layer())
    with pytest.raises(PalateError, match=r"merging changed the pooled states by"):
        merge_adapters(adapted("llama"))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_head_that_is_lost_on_the_way_is_refused(kind: str) -> None:
    """PEFT #1070, OpenRLHF #1342: the saved model loads, and its head is a random one."""
    trained = tiny_model(kind)
    check_head(trained, tiny_model(kind))
    for part in trained_whole(trained):
        reloaded = tiny_model(kind)
        with torch.no_grad():
            next(reloaded.transformer.get_submodule(part).parameters())[0, 0] += 1e-3
        with pytest.raises(PalateError, match=rf"{part}\..*did not come back"):
            check_head(trained, reloaded)


def test_a_lost_query_is_refused() -> None:
    trained, reloaded = (headless("llama", "attention", mlp=False) for _ in range(2))
    reloaded.head.load_state_dict(trained.head.state_dict())
    check_head(trained, reloaded)
    assert reloaded.query is not None
    reloaded.query.data += 1.0
    with pytest.raises(PalateError, match="query did not come back"):
        check_head(trained, reloaded)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_gives_the_same_rewards_through_plain_peft(
    kind: str, tmp_path: Path
) -> None:
    """The base comes without a head, so a head that is not in the adapter's file would be new."""
    model = adapted(kind)
    model.body.config.save_pretrained(tmp_path / "base")
    tiny_classifier(kind).base_model.save_pretrained(tmp_path / "base")
    save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"))
    torch.manual_seed(7)
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    np.testing.assert_allclose(plain_rewards(loaded), rewards(model), atol=1e-5)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert torch.equal(stored[f"base_model.model.{model.head_name}.weight"], model.head.weight)
    assert not any("base_layer.weight" in name for name in stored)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    assert config["modules_to_save"] == trained_whole(model)


def test_an_adapter_of_a_head_of_ours_says_that_it_gives_states_only(tmp_path: Path) -> None:
    model = headless("llama", "mean", mlp=True)
    add_adapters(model, LoraSettings(rank=2))
    shake(model)
    tiny_classifier("llama").base_model.save_pretrained(tmp_path / "base")
    save_adapter(model, tmp_path / "adapter", "some/base")
    base = AutoModel.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.inference_mode():
        state_TD = loaded(input_ids=torch.tensor([SEQUENCES[0]])).last_hidden_state[0]
        reward = model.reward_of(state_TD.mean(dim=0, keepdim=True))
    np.testing.assert_allclose(reward, rewards(model)[:1], atol=1e-5)
    readme = (tmp_path / "adapter" / "README.md").read_text()
    assert "no reward: its pooling (mean) and head" in readme
    assert (tmp_path / "adapter" / "reward_head.safetensors").exists()


@pytest.mark.parametrize(
    ("kind", "base", "pooling"),
    [
        ("llama", "a body", "auto"),
        ("llama", "a body", "mean"),
        ("llama", "a run", "auto"),
        ("llama", "a run", "mean"),
        ("granite", "a run", "auto"),
    ],
)
def test_the_code_in_an_adapters_readme_gives_what_it_says(
    kind: str, base: str, pooling: Any, tmp_path: Path
) -> None:
    """Rewards where the model is plain, the body's states elsewhere. A run of ours whose head is
    not plain has its body in files that plain classes find by variant only."""
    name = save_tiny(tmp_path / "body", kind)
    if base == "a run":
        first = load_model(
            name, BodySettings(pooling=pooling, head_init="normal"), for_training=True
        )
        name = str(tmp_path / "run")
        save_checkpoint(tmp_path / "run" / "model", first.model, tiny_renderer())
        shutil.rmtree(tmp_path / "body")
    settings = BodySettings(head_init="normal", pooling=pooling)
    model = load_model(name, settings, for_training=True).model
    add_adapters(model, LoraSettings(rank=2))
    shake(model)
    save_adapter(model, tmp_path / "adapter", name)
    readme = (tmp_path / "adapter" / "README.md").read_text()
    code = readme.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("the directory of this file", str(tmp_path / "adapter")), names)
    if model.plain:
        np.testing.assert_allclose(plain_rewards(names["model"]), rewards(model), atol=1e-5)
        return
    ids = torch.tensor([SEQUENCES[0]])
    with model.scoring_mode():
        expected = model.body(input_ids=ids).last_hidden_state
        states = names["model"].eval()(input_ids=ids).last_hidden_state
    torch.testing.assert_close(states, expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe"])
def test_a_tree_gives_the_states_of_rows_with_adapters_too(kind: str) -> None:
    assert tree_difference(adapted(kind)) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe"])
def test_gradient_checkpointing_gives_adapters_the_same_weights(kind: str, tmp_path: Path) -> None:
    """The frozen embedding's output asks for no gradient: recomputation of the re-entrant kind
    would leave all adapters without one."""
    found = []
    for on in (False, True):
        model = adapted(kind)
        lora_trainer(
            model, tmp_path / str(on), gradient_checkpointing=on, max_steps=2, weight_decay=0.0
        ).train()
        found.append(copies(model))
    moved = {n for n, t in copies(adapted(kind)).items() if not torch.equal(t, found[1][n])}
    assert moved == {*trained_state(adapted(kind))}
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_checkpoints_hold_what_is_trained_and_resume_bit_for_bit(kind: str, tmp_path: Path) -> None:
    """18 prompts in steps of 4 are 5 steps an epoch; interrupted in the third, and resumed on a
    base that was loaded anew, with adapters of another random start."""

    def run(name: str, seed: int, stop_after: int | None = None) -> RewardModel:
        model = tiny_model(kind)
        torch.manual_seed(seed)
        add_adapters(model, LoraSettings(rank=2, dropout=0.1))
        trainer = lora_trainer(model, tmp_path / name, epochs=1)
        if stop_after is not None:
            trainer.add_callback(StopAfter(stop_after))
        resume = newest_complete(tmp_path / name / "training")
        with trainer.interrupt.installed():
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return model

    whole = run("whole", seed=0)
    stopped = run("parts", seed=0, stop_after=3)
    saved = load_file(tmp_path / "parts" / "training" / "checkpoint-3" / "model.safetensors")
    assert {*saved} == {*trained_state(stopped)}
    assert sum(t.numel() for t in saved.values()) < stopped.num_parameters() / 3
    resumed = run("parts", seed=1)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_checkpoint_of_other_settings_is_refused() -> None:
    """Loading is not strict, so that what is frozen may be missing; nothing else may."""
    model = adapted("llama")
    check_restored(model, [n for n in model.state_dict() if n not in trained_state(model)], [])
    with pytest.raises(PalateError, match=r"lacks transformer\.score\.weight"):
        check_restored(model, ["transformer.score.weight"], [])
    with pytest.raises(PalateError, match=r"holds q\.lora_A.*other settings"):
        check_restored(model, [], ["q.lora_A"])


def test_a_quantised_body_with_a_head_of_ours_is_merged(tmp_path: Path) -> None:
    model = load_tiny(tmp_path, "llama", quantization="4bit", pooling="mean").model
    assert not model.plain
    assert model.quantized
    add_adapters(model, LoraSettings(rank=4))
    shake(model)
    learned = rewards(model)
    merge_adapters(model)
    assert relative(rewards(model), learned) < 1e-5
    assert not model.quantized


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_body_is_trained_and_merged(kind: str, bits: Any, tmp_path: Path) -> None:
    """One step moves every adapter, also those below quantised layers, and no quantised weight.
    Merged into the dequantised weights the rewards are those of training: to 1e-5 in 4 bit, whose
    products are taken of dequantised weights anyway; in 8 bit activations are rounded too, to 1/127
    of their row's largest, which plain layers don't do."""
    model = load_tiny(tmp_path, kind, quantization=bits).model
    add_adapters(model, LoraSettings(rank=4))
    shake(model)
    trained = {*trained_state(model)}
    before = copies(model)
    lora_trainer(model, tmp_path, max_steps=1, weight_decay=0.0).train()
    after = model.state_dict()
    assert {n for n, t in before.items() if not torch.equal(after[n], t)} == trained
    learned = rewards(model)
    merge_adapters(model)
    assert relative(rewards(model), learned) < (1e-5 if bits == "4bit" else 0.15)
    plain = load_tiny(tmp_path, kind).model
    assert {*model.state_dict()} == {*plain.state_dict()}
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    model.transformer.save_pretrained(tmp_path / "merged")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    np.testing.assert_allclose(plain_rewards(again), rewards(model), atol=1e-6)
    assert "quantization_config" not in (tmp_path / "merged" / "config.json").read_text()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_gradients_pass_through_a_body_in_4_bit(kind: str, tmp_path: Path) -> None:
    """They equal those of the dequantised twin, also after an evaluation, at which bitsandbytes
    may repack the weights of a CPU for products that have no gradient."""

    def gradients(model: RewardModel) -> dict[str, Tensor]:
        model.train()
        model.zero_grad()
        model.run(plan_rows([SEQUENCES], 10**6, pad_id=0)[0]).reward_N.sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    model = load_tiny(tmp_path, kind, quantization="4bit").model
    add_adapters(model, LoraSettings(rank=4))
    shake(model)
    rewards(model)
    found = gradients(model)
    names = {*trained_state(model)}
    merging._dequantize(model.transformer, torch.float32)
    expected = gradients(model)
    assert {*found} == names
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, expected[name], atol=1e-5, err_msg=name)


def test_a_body_that_does_not_fit_dequantised_says_where_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_tiny(tmp_path, "llama", quantization="4bit").model
    add_adapters(model, LoraSettings(rank=2))

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model.transformer, "dequantize", full)
    with pytest.raises(PalateError, match=r"in float32.*checkpoints are kept.*CUDA_VISIBLE_DEV"):
        merge_adapters(model)


def test_an_adapter_added_to_the_unquantised_base_gives_other_rewards(tmp_path: Path) -> None:
    """Why merging dequantises: the adapter was trained beside the rounded weights."""
    model = load_tiny(tmp_path, "llama", quantization="4bit").model
    add_adapters(model, LoraSettings(rank=4))
    shake(model)
    learned = rewards(model)
    original = load_tiny(tmp_path, "llama").model
    add_adapters(original, LoraSettings(rank=4))
    original.load_state_dict(trained_state(model), strict=False)
    merge_adapters(model)
    merge_adapters(original)
    assert relative(rewards(model), learned) < 1e-5
    assert relative(rewards(original), learned) > 0.05


@pytest.mark.parametrize("quantization", ["none", "4bit", "8bit"])
def test_a_run_with_adapters_ends_in_a_plain_checkpoint(quantization: Any, tmp_path: Path) -> None:
    config = quick_config(
        tmp_path,
        training=quick_training(method="lora", epochs=1),
        lora=LoraSettings(rank=4, keep_adapter=True),
        body=BodySettings(quantization=quantization),
    )
    done = palate.train(config)
    assert done.scorer is not None
    expected = done.scorer.score_ids(SEQUENCES)
    plain = AutoModelForSequenceClassification.from_pretrained(done.directory / "model")
    assert not any("lora" in name for name, _ in plain.named_parameters())
    np.testing.assert_allclose(plain_rewards(plain), expected, atol=1e-5)
    readme = (done.directory / "adapter" / "README.md").read_text()
    assert ("quantised base" in readme) == (quantization != "none")
    base = load_tiny(tmp_path, "body-llama", quantization=quantization).model.transformer
    loaded = PeftModel.from_pretrained(base, done.directory / "adapter")
    # 8 bit rounds activations as well, which no merged weight can hold.
    tolerance = 5e-4 if quantization == "8bit" else 1e-5
    np.testing.assert_allclose(plain_rewards(loaded), expected, atol=tolerance)

"""Guards: every fault is planted in our own code, beside a clean twin on which nothing rings."""

import contextlib
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import palate
from benchmarks.pathologies import code_faults
from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.model.guards import (
    check_head,
    check_model,
    check_padding,
    check_rendering,
    padded_rows,
    random_texts,
)
from palate.model.heads import init_head
from palate.model.reward_model import RewardModel
from palate.objectives import ObjectiveSettings
from palate.objectives.objective import Objective
from palate.pipeline.guards import warn_of_warm_start
from palate.preferences import Comparison, Message
from palate.preferences.split import prompt_cluster
from palate.rendering import LengthSettings, Renderer, render_groups
from palate.training.guards import (
    LEAST_HISTORY,
    MARGIN_LIMIT,
    check_rendered,
    explosion,
    first_loss_fault,
    is_spike,
)
from palate.training.settings import GuardSettings, TrainingSettings, refuse_unheeded
from palate.training.trainer import RewardTrainer
from tests.runs import pair_groups, ranked_group, rendered, tiny_renderer, tiny_trainer
from tests.tiny import (
    CAUSAL,
    CHATML,
    ENCODERS,
    WITHOUT_CLASS,
    byte_tokenizer,
    save_tiny,
    tiny_body,
    tiny_transformer,
    word_piece_tokenizer,
)

PAD = 0


def tiny_model(kind: str = "llama", dtype: torch.dtype = torch.float32) -> RewardModel:
    """With a head that tells texts apart; causal bodies in layout tree."""
    if kind in WITHOUT_CLASS:
        head = nn.Linear(32, 1, bias=False)
        init_head(head, "normal")
        return RewardModel(tiny_body(kind).to(dtype), "rows", head).eval()
    model = RewardModel(tiny_transformer(kind).to(dtype), "rows").eval()
    model.layout = "rows" if model.pooling == "cls" else "tree"
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS, *WITHOUT_CLASS])
def test_healthy_models_pass(kind: str, dtype: torch.dtype) -> None:
    check_model(kind, tiny_model(kind, dtype), PAD)


def test_a_head_of_zeros_hides_no_fault_of_the_body() -> None:
    model = tiny_model()
    init_head(model.head, "zero")
    check_model("tiny", model, PAD)
    with code_faults.pooling_at(code_faults.last_of_mask), pytest.raises(PalateError):
        check_model("tiny", model, PAD)


@pytest.mark.parametrize("share", [1e-2, 1e-4, 1e-6, 0.0])
def test_a_body_that_has_lost_the_difference_between_texts_is_no_fault_of_padding(
    share: float,
) -> None:
    """Its states differ by about `share` of their length, down to less than rounding, as after a
    learning rate that was far too high. Down to 1e-4 padding that is seen still shows."""
    model = tiny_model("bert")
    pooler = model.transformer.bert.pooler.dense
    torch.manual_seed(0)
    with torch.no_grad():
        pooler.weight.mul_(share)
        pooler.bias.normal_()
    check_model("bert", model, PAD)
    if share >= 1e-4:
        with mask_of_ones(), pytest.raises(PalateError, match="padded on the right"):
            check_model("bert", model, PAD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("end", "where"),
    [
        ("last_of_mask", r"left to \d+ tokens \(limit .*wrong token"),
        ("before_first_pad", r"right to 17 tokens with other ids in the padding .*pad's id"),
    ],
)
def test_the_wrong_end_of_a_text_is_refused(end: str, where: str, dtype: torch.dtype) -> None:
    """Both are right where padding is on the right and no text holds the pad id."""
    model = tiny_model(dtype=dtype)
    with (
        code_faults.pooling_at(getattr(code_faults, end)),
        pytest.raises(PalateError, match=f"padded on the {where}"),
    ):
        check_model("tiny", model, code_faults.pad_id())
    check_model("tiny", model, code_faults.pad_id())


@contextlib.contextmanager
def mask_of_ones() -> Any:
    """Padding is seen: what an encoder does that is given no mask."""
    own = RewardModel.forward

    def forward(self: RewardModel, **arguments: Any) -> Any:
        seen = torch.full_like(arguments["reach_RT"], arguments["reach_RT"].shape[1])
        return own(self, **{**arguments, "reach_RT": seen})

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(RewardModel, "forward", forward)
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_that_is_seen_is_refused(dtype: torch.dtype) -> None:
    model = tiny_model("bert", dtype)
    with mask_of_ones(), pytest.raises(PalateError, match="padded on the right"):
        check_model("bert", model, PAD)


@pytest.mark.parametrize("pad_id", [0, 3])
def test_what_stands_in_the_padding_is_changed_whatever_the_pads_id(
    pad_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pooled state holds the id in the row's last slot, which is padding but for the longest
    text; a text alone has none there, so only the check of contents can tell."""
    own = RewardModel.run

    def run(self: RewardModel, plan: Any) -> Any:
        found = own(self, plan)
        is_padded_N = plan.end_column_N < plan.input_ids_RT.shape[1] - 1
        last_N = torch.from_numpy((plan.input_ids_RT[:, -1] != pad_id) * is_padded_N)
        return found._replace(hidden_ND=found.hidden_ND + last_N[:, None])

    monkeypatch.setattr(RewardModel, "run", run)
    with pytest.raises(PalateError, match="with other ids in the padding"):
        check_padding("tiny", tiny_model("bert"), pad_id)


def test_a_guard_at_loading_refuses_and_can_be_switched_off(tmp_path: Path) -> None:
    name = save_tiny(tmp_path, head=True)
    clean = palate.load(name)
    with code_faults.pooling_at(code_faults.before_first_pad):
        with pytest.raises(PalateError, match="when it is padded on the right to 17 tokens"):
            palate.load(name)
        palate.load(name, guards=False)
    assert palate.load(name).score("Hi", "Oh") == clean.score("Hi", "Oh")


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        ("scoring_in_training_mode", "is in training mode while texts are scored"),
        ("dropout_in_pooling", "scored twice has two rewards"),
        ("every_second_pass_in_16_bit", "scored twice has two rewards"),
    ],
)
def test_two_passes_that_differ_are_refused(plant: str, reason: str) -> None:
    model = code_faults.tiny_model(0, attention_dropout=0.1)
    with getattr(code_faults, plant)(), pytest.raises(PalateError, match=reason):
        check_model("tiny", model, code_faults.pad_id())
    check_model("tiny", model, code_faults.pad_id())


def test_a_reward_that_depends_on_its_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise in every pass, another in every row: two passes agree, two rows don't."""
    own = RewardModel._pool

    def pool(self: RewardModel, *arguments: Any) -> torch.Tensor:
        hidden_ND = own(self, *arguments)
        return hidden_ND + 0.1 * torch.arange(len(hidden_ND))[:, None]

    monkeypatch.setattr(RewardModel, "_pool", pool)
    with pytest.raises(PalateError, match="twice in one batch has two rewards"):
        check_model("tiny", tiny_model(), PAD)


def test_left_and_right_padding_hold_the_same_tokens() -> None:
    plan = padded_rows([[5, 6], [7, 8, 9]], 4, PAD, left=True)
    assert plan.input_ids_RT.tolist() == [[0, 0, 5, 6], [0, 7, 8, 9]]
    assert plan.position_RT.tolist() == [[0, 0, 0, 1], [0, 0, 1, 2]]
    assert plan.end_column_N.tolist() == [3, 3]
    right = padded_rows([[5, 6], [7, 8, 9]], 4, PAD)
    assert right.input_ids_RT.tolist() == [[5, 6, 0, 0], [7, 8, 9, 0]]
    assert right.end_column_N.tolist() == [1, 2]
    assert PAD in random_texts(tiny_model(), PAD)[-1]


@pytest.mark.parametrize(("bias", "trained"), [(5.0, True), (0.0, True), (5.0, False)])
def test_a_head_with_an_offset_is_refused(bias: float, trained: bool) -> None:
    head = nn.Linear(32, 1, bias=True)
    nn.init.constant_(head.bias, bias)
    head.bias.requires_grad_(trained)
    reason = "would be trained" if trained else "plain classes drop"
    with pytest.raises(PalateError, match=rf"bias .*{bias:g}.*{reason}"):
        check_head("tiny", RewardModel(tiny_body("llama"), "rows", head))


def test_heads_without_an_offset_and_the_bias_of_an_encoders_class_pass() -> None:
    check_head("llama", tiny_model())
    encoder = tiny_model("bert")
    nn.init.constant_(encoder.head.bias, 5.0)
    check_head("bert", encoder)
    assert not encoder.head.bias.requires_grad


def test_the_trainer_refuses_a_head_with_a_bias(tmp_path: Path) -> None:
    model = RewardModel(tiny_body("llama"), "rows", nn.Linear(32, 1, bias=True))
    with pytest.raises(PalateError, match="the head has a bias"):
        tiny_trainer(model, tmp_path, pair_groups(4))
    off = GuardSettings(head=False)
    tiny_trainer(model, tmp_path, pair_groups(4), guards=off)


def test_a_doubled_start_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = code_faults.renderer()
    check_rendering("tiny", renderer)
    source = code_faults.tokenizer()
    monkeypatch.setattr(Renderer, "_ordinary_ids", lambda _, text: source(text).input_ids)
    with pytest.raises(PalateError, match="begins with <s> twice"):
        check_rendering("tiny", renderer)
    groups = render_groups([code_faults.pair(0)], renderer, Ledger())
    with pytest.raises(PalateError, match="begins with <s> twice"):
        check_rendered(groups, renderer)


def test_an_answer_without_its_end_of_turn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = tiny_renderer()
    own = Renderer._encode
    monkeypatch.setattr(Renderer, "_encode", lambda *arguments: own(*arguments)[:-1])
    with pytest.raises(PalateError, match=r"ends with .* and not with its end of turn"):
        check_rendering("tiny", renderer)


@pytest.mark.parametrize("kept", [False, True])
def test_templates_that_begin_turns_with_the_start_token_or_go_on_after_the_end_pass(
    kept: bool,
) -> None:
    """ChatML with <|im_start|> as start token has it once a turn; kept as it is, a text ends with a
    newline."""
    tokenizer = byte_tokenizer(CHATML)
    tokenizer.bos_token = "<|im_start|>"
    check_rendering("chatml", Renderer(tokenizer, LengthSettings().resolved(512), {}, kept))
    check_rendering("bert", Renderer(word_piece_tokenizer(), LengthSettings().resolved(512)))


@pytest.mark.parametrize("template", code_faults.STALE_TEMPLATES)
def test_texts_of_another_template_than_the_checkpoints_are_refused(template: str) -> None:
    own, used = code_faults.renderer(), code_faults.renderer(template)
    pairs = [code_faults.pair(0)]
    with pytest.raises(PalateError, match="0: response 0 was rendered to other token ids"):
        check_rendered(render_groups(pairs, used, Ledger()), own)
    with pytest.raises(PalateError, match="template"):
        code_faults.check_saved(own, used)
    check_rendered(render_groups(pairs, own, Ledger()), own)
    code_faults.check_saved(own, code_faults.renderer())


def test_answers_that_were_cut_need_no_end_of_turn() -> None:
    lengths = LengthSettings(max_prompt_tokens=64, max_response_tokens=6, overlong="cut")
    renderer = Renderer(byte_tokenizer(), lengths)
    groups = render_groups([ranked_group(1, 3)], renderer, Ledger())
    assert groups[0].sequences[0][-1] != renderer.end_of_turn_id
    check_rendered(groups, renderer)


def zero_trainer(folder: Path, groups: Any, objective: Any = None, **settings: Any) -> Any:
    """A tiny llama with a head of zeros."""
    model = tiny_model()
    init_head(model.head, settings.pop("head_init", "zero"))
    return tiny_trainer(model, folder, groups, objective=objective, **settings)


@contextlib.contextmanager
def no_warning() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, math.log(2)),
        ({"label_smoothing": 0.1}, math.log(2)),
        ({"centring": 0.5, "sum_to_zero": 1.0}, math.log(2)),
        ({"kind": "hinge", "hinge_margin": 2.0}, 2.0),
        ({"kind": "plackett-luce"}, math.log(6) / 2),
    ],
)
def test_a_head_of_zeros_begins_at_the_loss_of_equal_rewards(
    settings: dict[str, Any], expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ln 2 for a comparison whatever its label; the hinge's margin; for a ranking of three ln 3!,
    by its two choices. The plant trains half of the objective, as a division made twice would."""
    groups = rendered([ranked_group(number, 3) for number in range(8)])
    objective = Objective(ObjectiveSettings(**settings), groups)
    with no_warning():
        zero_trainer(tmp_path, groups, objective, max_steps=1).train()

    own = RewardTrainer._loss
    monkeypatch.setattr(RewardTrainer, "_loss", lambda *arguments: own(*arguments) / 2)
    match = f"the first loss is {expected / 2:.4f}.* must be {expected:.4f}"
    with pytest.raises(PalateError, match=match):
        zero_trainer(tmp_path, groups, objective, max_steps=1).train()
    off = GuardSettings(first_loss=False)
    zero_trainer(tmp_path, groups, objective, max_steps=1, guards=off).train()


def test_another_new_head_begins_within_a_band_and_a_warm_start_anywhere(tmp_path: Path) -> None:
    groups = pair_groups(8)
    with no_warning():
        zero_trainer(tmp_path, groups, head_init="normal", max_steps=1).train()
    for is_warm_start in (False, True):
        model = tiny_model()
        with torch.no_grad():
            model.head.weight.mul_(1e3)
        trainer = tiny_trainer(model, tmp_path, groups, max_steps=1)
        if is_warm_start:
            trainer.guard.expects_first_loss = False
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train()
        said = any("the first loss is" in str(warning.message) for warning in caught)
        assert said != is_warm_start
    trained = RewardTrainer(
        tiny_model(),
        TrainingSettings(),
        groups,
        {},
        lambda *_: {},
        PAD,
        tmp_path,
        is_warm_start=True,
    )
    assert not trained.guard.expects_first_loss


def test_the_band_of_a_first_loss() -> None:
    """Half to three times ln 2 is 0.3466 to 2.0794; a head of zeros has it to a thousandth."""
    ln2 = math.log(2)
    assert first_loss_fault(0.35, ln2, False) is None
    assert first_loss_fault(2.07, ln2, False) is None
    for loss in (0.34, 2.09):
        assert f"{loss:.4f}; with equal rewards it is 0.6931" in str(
            first_loss_fault(loss, ln2, False)
        )
    assert first_loss_fault(ln2 + 9e-4, ln2, True) is None
    assert first_loss_fault(ln2 + 1.1e-3, ln2, True) is not None


def test_a_spike_lasts_three_steps_and_is_ten_times_the_median_before() -> None:
    quiet = [1.0] * LEAST_HISTORY
    assert is_spike([*quiet, 11, 11, 11])
    assert not is_spike([*quiet, 11, 9, 11])
    assert not is_spike([*quiet[1:], 11, 11, 11]), "too little to take a median of"
    assert not is_spike([*quiet, 11, 11, 11], floor=20)
    assert not is_spike([*[1.0] * 30, *[2.0] * 50, 11, 11, 11]), "50 steps are looked back on"


def test_what_counts_as_an_explosion() -> None:
    flat = [0.5] * 20
    assert explosion(flat, flat, flat) == ""
    assert "gradient" in explosion([0.5] * 17 + [6.0] * 3, flat, flat)
    assert explosion([0.05] * 17 + [0.9] * 3, flat, flat) == "", "it is not even clipped"
    above, below = MARGIN_LIMIT + 0.1, MARGIN_LIMIT - 0.1
    assert "margins are" in explosion(flat[:3], [above] * 3, flat)
    assert explosion(flat[:3], [below] * 3, flat) == ""
    assert explosion(flat[:2], [above] * 2, flat) == ""
    assert "over ten times" in explosion(flat, [0.5] * 17 + [5.5] * 3, flat)
    assert "a reward is 101" in explosion(flat, flat, [101.0] * 3)


def trained_with(folder: Path, rate: float, **settings: Any) -> Any:
    trainer = zero_trainer(folder, pair_groups(48), learning_rate=rate, max_steps=12, **settings)
    trainer.train()
    return trainer


def test_a_rate_that_makes_rewards_explode_is_told_once_and_stops_where_asked(
    tmp_path: Path,
) -> None:
    with no_warning():
        trained_with(tmp_path, 1e-3)
    with pytest.warns(UserWarning, match=r"step \d+: .*exploding.*learning_rate \(0.05\)") as told:
        trainer = trained_with(tmp_path, 5e-2)
    assert sum("exploding" in str(warning.message) for warning in told) == 1
    assert trainer.state.global_step == 12
    stop = GuardSettings(on_explosion="stop")
    with pytest.raises(PalateError, match=r"step \d+: .*Stopped"):
        trained_with(tmp_path, 5e-2, guards=stop)
    with no_warning():
        trained_with(tmp_path, 5e-2, guards=GuardSettings(explosion=False))


def test_margins_that_the_data_ask_for_are_no_explosion(tmp_path: Path) -> None:
    """Comparisons with a margin of 30 want rewards 30 apart; the twin's labels ask for none."""
    for margin in (30.0, 0.0):
        groups = [
            replace(g, comparisons=(Comparison(0, 1, margin=margin),)) for g in pair_groups(4)
        ]
        trainer = zero_trainer(tmp_path, groups)
        output = SimpleNamespace(reward_N=torch.tensor([25.0, 0.0] * 4))
        batch = trainer.objective.batch(groups)
        trainer.guard.expects_first_loss = False
        for _ in range(3):
            trainer.guard.begin()
            trainer.guard.saw(output, batch)
            trainer.guard.on_pre_optimizer_step(
                None, trainer.state, trainer.control, model=trainer.model
            )
        assert ("explosion" in trainer.guard.warned) == (margin == 0.0)


def frozen_head(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer.model.head.weight.requires_grad_(False)


def constant_token(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = RewardModel._pool
    monkeypatch.setattr(RewardModel, "_pool", lambda *arguments: own(*arguments) * 0.0)


def lost_difference(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """States that are equal but for rounding, and rewards far from 0."""
    own = RewardModel._pool
    monkeypatch.setattr(RewardModel, "_pool", lambda *arguments: own(*arguments) * 1e-8 + 100.0)


def leave_alone(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pass


@pytest.mark.parametrize(
    ("plant", "rate", "found"),
    [
        (frozen_head, 1e-3, {"head weights"}),
        (leave_alone, 1e-12, {"head weights"}),
        (constant_token, 1e-3, {"equal rewards", "head gradient"}),
        (lost_difference, 1e-3, {"equal rewards"}),
        (leave_alone, 1e-3, set()),
    ],
)
def test_a_head_that_learns_nothing_is_told(
    plant: Any, rate: float, found: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = zero_trainer(
        tmp_path, pair_groups(48), head_init="normal", learning_rate=rate, max_steps=12
    )
    trainer.guard.expects_first_loss = False
    plant(trainer, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    assert found <= trainer.guard.warned
    assert bool(trainer.guard.warned) == bool(found)


def test_a_warm_start_that_was_trained_on_held_out_prompts_is_told(tmp_path: Path) -> None:
    groups = pair_groups(4)
    own = [prompt_cluster(group.group.prompt) for group in groups]
    other = prompt_cluster((Message("user", "elsewhere"),))
    prepared: Any = SimpleNamespace(
        manifest={"clusters": {"train": [], "validation": own[:2], "test": own[2:]}},
        validation={"validation": groups[:2], "extra": groups[3:]},
    )
    (tmp_path / "split.json").write_text(json.dumps({"clusters": {"train": own[1:3]}}))
    with pytest.warns(UserWarning, match="will flatter the model") as told:
        warn_of_warm_start(str(tmp_path), prepared)
    assert [str(warning.message)[:44] for warning in told] == [
        "1 of 2 prompt clusters of the validation par",
        "1 of 2 prompt clusters of the test part are ",
    ]
    (tmp_path / "split.json").write_text(json.dumps({"clusters": {"train": [other]}}))
    with no_warning():
        warn_of_warm_start(str(tmp_path / "model"), prepared)
        warn_of_warm_start(str(tmp_path / "no-run"), prepared)


def test_a_setting_without_effect_is_refused() -> None:
    with pytest.raises(PalateError, match="on_explosion stop has no effect"):
        GuardSettings(explosion=False, on_explosion="stop")


def test_the_benchmark_finds_every_fault_and_nothing_in_its_twins() -> None:
    for name, found in code_faults.run([0, 1]).items():
        assert found["planted"] == {"alarms": 2, "of": 2}, name
        assert found["clean"] == {"alarms": 0, "of": 2}, name


@pytest.mark.parametrize(
    "changed",
    [{"first_loss": False}, {"explosion": False}, {"on_explosion": "stop"}, {"dead_head": False}],
)
def test_a_frozen_body_refuses_settings_of_guards_that_watch_steps(changed: dict[str, Any]) -> None:
    """Its head takes no steps of the trainer; the guards before training are heeded."""
    heeded = TrainingSettings(method="frozen", guards=GuardSettings(repeat=False))
    refuse_unheeded(heeded, ("lbfgs",))
    settings = TrainingSettings(method="frozen", guards=GuardSettings(**changed))
    (name,) = changed
    with pytest.raises(PalateError, match=rf"training\.guards\.{name} .* has no effect"):
        refuse_unheeded(settings, ("lbfgs",))

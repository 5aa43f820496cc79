"""The trainer: one step's loss and gradient, its optimiser, its guards, its checkpoints."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from palate.errors import PalateError
from palate.forest import Packing
from palate.objectives import ObjectiveSettings
from palate.objectives.objective import Objective
from palate.preferences import Comparison
from palate.rendering import RenderedGroup
from palate.training.checkpoints import is_complete, newest_complete, rotate, seal
from palate.training.defaults import with_rates
from palate.training.settings import TrainingSettings
from palate.training.steps import StepBatch, StepCosts, StepSampler, step_batch
from palate.training.trainer import RewardTrainer
from tests.runs import (
    contrary,
    load_tiny,
    pair_groups,
    quick_training,
    ranked_group,
    rendered,
    tiny_trainer,
    weights,
)
from tests.tiny import CAUSAL, ENCODERS

BUDGETS = (1, 37, 300, 10**6)
KS = (2, 9, 3, 2, 5, 2, 4)


def mixed_groups(margin: float = 0.5) -> list[RenderedGroup]:
    """Seven prompts with 2 to 9 answers; one has soft, tied, weighted and margin comparisons."""
    groups = rendered([ranked_group(number, k) for number, k in enumerate(KS)])
    soft = (
        Comparison(0, 1, probability=0.7, tie=0.2),
        Comparison(1, 2, margin=margin),
        Comparison(2, 0, weight=0.25),
    )
    special = groups[2]
    return [
        *groups[:2],
        RenderedGroup(special.sequences, soft, special.group, special.response_index),
        *groups[3:],
    ]


def gradient(trainer: RewardTrainer, batch: StepBatch) -> tuple[float, torch.Tensor]:
    """Loss of the step and its gradient over all trainable parameters, as one vector."""
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, batch)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    return float(loss), torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


def batch_of(
    groups: Sequence[RenderedGroup],
    budget: int,
    layout: Any = "tree",
    objective: Objective | None = None,
) -> StepBatch:
    objective = objective or Objective(ObjectiveSettings(), groups)
    return step_batch(groups, len(groups), Packing(layout, budget, 0), objective)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("llama", {"centring": 0.5, "label_smoothing": 0.1}),
        ("llama", {"sum_to_zero": 5.0}),
        ("llama", {"kind": "davidson"}),
        ("llama", {"kind": "plackett-luce"}),
        ("mixtral", {}),
    ],
)
def test_gradients_are_the_same_for_any_budget_any_order_and_both_layouts(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Also with a term in the square of the step's mean, and with the experts' balance loss."""
    groups = mixed_groups(0.0 if settings else 0.5)
    objective = Objective(ObjectiveSettings(**settings), groups)
    trainer = tiny_trainer(load_tiny(tmp_path, kind).model, tmp_path, groups, objective=objective)
    loss, expected = gradient(trainer, batch_of(groups, 10**6, "tree", objective))
    assert expected.norm() > 0.1
    counts = set()
    for layout in ("tree", "rows"):
        trainer.model.layout = layout
        for budget in BUDGETS:
            for order in (groups, groups[::-1], groups[3:] + groups[:3]):
                batch = batch_of(order, budget, layout, objective)
                counts.add(len(batch.microbatches))
                again, found = gradient(trainer, batch)
                assert again == pytest.approx(loss, rel=1e-5)
                assert (found - expected).norm() <= 1e-5 * expected.norm()
    assert min(counts) == 1
    assert max(counts) == len(groups)


def test_the_loss_of_a_step_is_the_mean_over_prompts_of_their_normalised_loss(
    tmp_path: Path,
) -> None:
    """Written out in float64 from the rewards alone, for soft, tied, weighted, margin comparisons:
    a prompt's share is sum(weight * loss) / (number of its comparisons), a tie half a win."""
    groups = mixed_groups()
    trainer = tiny_trainer(load_tiny(tmp_path).model, tmp_path, groups)
    shares = []
    for group, reward_N in zip(groups, trainer.rewards_of(groups), strict=True):
        total = 0.0
        for c in group.comparisons:
            difference = float(reward_N[c.better]) - float(reward_N[c.worse])
            target = (1 - c.tie) * c.probability + c.tie / 2
            won, lost = (
                math.log1p(math.exp(c.margin - difference)),
                math.log1p(math.exp(difference)),
            )
            total += c.weight * (target * won + (1 - target) * lost)
        shares.append(total / len(group.comparisons))
    loss, _ = gradient(trainer, batch_of(groups, 200))
    assert loss == pytest.approx(np.mean(shares), rel=1e-5)
    assert len(groups[1].comparisons) == 36
    comparisons = [len(group.comparisons) for group in groups]
    assert loss != pytest.approx(np.average(shares, weights=comparisons), rel=1e-2)


def test_a_prompt_with_nine_answers_weighs_as_much_as_a_pair(tmp_path: Path) -> None:
    """At a zero head the loss is ln 2 whatever K, and a step's gradient is the plain mean of the
    gradients that its prompts have alone: (g36 + g1) / 2, not (36 g36 + g1) / 37."""
    nine, pair = rendered([ranked_group(1, 9), ranked_group(2, 2)])
    zero = tiny_trainer(load_tiny(tmp_path, head_init="zero").model, tmp_path, [nine])
    assert gradient(zero, batch_of([nine, pair], 100))[0] == pytest.approx(math.log(2), abs=1e-6)
    trainer = tiny_trainer(load_tiny(tmp_path).model, tmp_path, [nine])
    alone = [gradient(trainer, batch_of([group], 100))[1] for group in (nine, pair)]
    _, together = gradient(trainer, batch_of([nine, pair], 100))
    mean = (alone[0] + alone[1]) / 2
    assert (together - mean).norm() <= 1e-5 * mean.norm()


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_the_head_learns_ten_times_faster_and_only_matrices_decay(
    kind: str, tmp_path: Path
) -> None:
    """Biases and norms are the parameters with one dimension; each parameter is in one group."""
    model = load_tiny(tmp_path, kind).model
    trainer = tiny_trainer(model, tmp_path, pair_groups(2), weight_decay=0.3)
    in_head = {id(model.head.weight)}
    seen: list[int] = []
    for group in trainer.create_optimizer().param_groups:
        for parameter in group["params"]:
            seen.append(id(parameter))
            assert group["lr"] == pytest.approx(1e-2 if id(parameter) in in_head else 1e-3)
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)
    assert sorted(seen) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert in_head < set(seen)


def test_the_logged_learning_rate_is_the_bodys_also_when_the_heads_is_lower(
    tmp_path: Path,
) -> None:
    trainer = tiny_trainer(
        load_tiny(tmp_path).model,
        tmp_path,
        pair_groups(4),
        head_learning_rate_factor=0.1,
        schedule="constant",
        epochs=1,
    )
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert rates == [1e-3]


@pytest.mark.parametrize("kind", ["llama", "bert", "deberta-v2", "modernbert"])
def test_one_step_changes_every_trainable_parameter_and_no_bias_of_the_head(
    kind: str, tmp_path: Path
) -> None:
    """Without decay a change is the gradient's doing. Position embeddings past the longest answer
    and tokens that don't occur have no gradient, but the tables they stand in change."""
    model = load_tiny(tmp_path, kind).model
    if model.head.bias is not None:
        assert not model.head.bias.any()
    before = weights(model)
    trainer = tiny_trainer(model, tmp_path, pair_groups(4), max_steps=1, weight_decay=0.0)
    trainer.train()
    assert trainer.state.global_step == 1
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    after = weights(model)
    unchanged = {name for name in before if np.array_equal(before[name], after[name])}
    bias = f"transformer.{model.head_name}.bias"
    assert unchanged & trainable == set()
    assert (bias in unchanged) == (kind != "llama")
    assert not after.get(bias, np.zeros(1)).any()


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_a_nan_stops_before_the_optimiser_steps(what: str, tmp_path: Path) -> None:
    """In a weight it shows in the loss; in a backward pass only in the gradient's norm."""
    model = load_tiny(tmp_path).model
    trainer = tiny_trainer(model, tmp_path, pair_groups(8), epochs=3)
    if what == "loss":
        with torch.no_grad():
            model.transformer.base_model.layers[1].mlp.up_proj.weight[3, 5] = math.nan
    else:
        model.transformer.base_model.norm.weight.register_hook(lambda grad: grad * math.nan)
    before = weights(model)
    with pytest.raises(PalateError, match=f"{what} is nan at step 1.*learning_rate"):
        trainer.train()
    after = weights(model)
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name])
    assert newest_complete(tmp_path / "training") is None


def test_a_gradient_without_a_nan_passes_the_same_guard(tmp_path: Path) -> None:
    trainer = tiny_trainer(load_tiny(tmp_path).model, tmp_path, pair_groups(8), epochs=3)
    trainer.train()
    assert trainer.state.global_step == 6


def test_training_stops_early_and_keeps_the_best_by_validation_loss(tmp_path: Path) -> None:
    """Validation turns round what training says: after the first evaluation the validation loss can
    only rise, so two more evaluations exhaust a patience of two, and the weights of the first come
    back."""
    train, validation = pair_groups(40), contrary(pair_groups(6, first=90))
    model = load_tiny(tmp_path, head_init="zero").model
    trainer = tiny_trainer(
        model,
        tmp_path,
        train,
        {"validation": validation},
        evaluations_per_epoch=10,
        early_stopping_patience=2,
    )
    trainer.train()
    losses = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    assert trainer.state.global_step == 3
    assert losses == sorted(losses)
    assert losses[-1] > losses[0] + 0.05
    assert trainer.evaluate()["eval_loss"] == losses[0]


def test_the_best_is_restored_without_early_stopping_too(tmp_path: Path) -> None:
    """The last evaluation is the worst here; the weights afterwards are those of the best."""
    train, validation = pair_groups(8), contrary(pair_groups(4, first=90))
    model = load_tiny(tmp_path, head_init="zero").model
    trainer = tiny_trainer(
        model, tmp_path, train, {"validation": validation}, epochs=3, evaluations_per_epoch=2
    )
    trainer.train()
    losses = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    assert trainer.state.global_step == len(losses) == 6
    assert min(losses) < losses[-1]
    assert trainer.evaluate()["eval_loss"] == min(losses)


def test_agreeing_validation_does_not_stop_early(tmp_path: Path) -> None:
    train, validation = pair_groups(24), pair_groups(6, first=90)
    trainer = tiny_trainer(
        load_tiny(tmp_path, head_init="zero").model,
        tmp_path,
        train,
        {"validation": validation},
        evaluations_per_epoch=6,
        early_stopping_patience=2,
        learning_rate=3e-4,
    )
    trainer.train()
    assert trainer.state.global_step == 12


def test_validation_sets_are_reported_by_name_and_the_first_decides(tmp_path: Path) -> None:
    sets = {
        "validation": pair_groups(5, first=90),
        "contrary": contrary(pair_groups(5, first=90)),
    }
    trainer = tiny_trainer(load_tiny(tmp_path).model, tmp_path, pair_groups(24), sets)
    trainer.train()
    last = [e for e in trainer.state.log_history if "eval_loss" in e][-1]
    assert last["eval_loss"] == last["eval_validation_loss"]
    assert last["eval_margin"] == pytest.approx(-last["eval_contrary_margin"], rel=1e-4)
    assert last["eval_validation_accuracy"] == 1 - last["eval_contrary_accuracy"]
    losses = [e["eval_validation_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    assert trainer.state.best_metric == min(losses)


def test_the_last_step_is_evaluated_when_the_interval_misses_it(tmp_path: Path) -> None:
    """Seven prompts in steps of 2 are 4 steps an epoch; max_steps 3 ends before the interval."""
    trainer = tiny_trainer(
        load_tiny(tmp_path).model,
        tmp_path,
        pair_groups(7),
        {"validation": pair_groups(3, first=90)},
        prompts_per_step=2,
        max_steps=3,
    )
    trainer.train()
    assert [e["step"] for e in trainer.state.log_history if "eval_loss" in e] == [3]


@pytest.mark.parametrize(("num_prompts", "per_step"), [(10, 4), (9, 4), (3, 8), (12, 4), (1, 1)])
def test_steps_are_the_same_for_any_number_of_processes(num_prompts: int, per_step: int) -> None:
    """What two or three processes hold of a step is together what one process holds; all are told
    the size of the whole step, also of the smaller last one; an epoch is every prompt once."""
    sizes = [7 * number % 5 + 1 for number in range(num_prompts)]

    def dealt(process: int, num_processes: int, epoch: int) -> list[list[int]]:
        sampler = StepSampler(sizes, per_step, 3, process, num_processes)
        sampler.set_epoch(epoch)
        steps = list(sampler)
        assert len(steps) == len(sampler)
        return steps

    orders = []
    for epoch in (0, 1):
        alone = dealt(0, 1, epoch)
        assert [share[0] for share in alone] == [len(share) - 1 for share in alone]
        order = [sorted(share[1:]) for share in alone]
        assert sorted(chain(*order)) == list(range(num_prompts))
        assert {len(step) for step in order[:-1]} <= {per_step}
        for num_processes in (2, 3):
            shares = [dealt(process, num_processes, epoch) for process in range(num_processes)]
            for step, parts in zip(alone, zip(*shares, strict=True), strict=True):
                assert {part[0] for part in parts} == {step[0]}
                assert sorted(chain(*(part[1:] for part in parts))) == sorted(step[1:])
                loads = [sum(sizes[index] for index in part[1:]) for part in parts]
                assert max(loads) - min(loads) <= max(sizes[index] for index in step[1:])
        orders.append(order)
    assert orders[0] != orders[1] or num_prompts < 4


def test_another_seed_deals_another_order_and_the_same_seed_the_same() -> None:
    first, again, other = (list(StepSampler([1] * 20, 4, seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_gradient_checkpointing_gives_the_same_weights(tmp_path: Path) -> None:
    """Two steps of one microbatch pass each layer twice; recomputation passes it twice more."""
    found = []
    for on in (False, True):
        model = load_tiny(tmp_path).model
        calls: list[int] = []
        model.transformer.base_model.layers[0].mlp.register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        trainer = tiny_trainer(
            model, tmp_path / str(on), pair_groups(8), gradient_checkpointing=on, epochs=1
        )
        calls.clear()  # the guards' passes
        trainer.train()
        assert len(calls) == (4 if on else 2)
        found.append(weights(model))
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, atol=1e-6)


@pytest.mark.parametrize("kept", [False, True])
def test_dropout_is_off_unless_it_is_kept(kept: bool, tmp_path: Path) -> None:
    """BERT's configuration drops a tenth: the same step again differs only when it is kept."""
    model = load_tiny(tmp_path, "bert", dropout=kept).model
    trainer = tiny_trainer(model, tmp_path, pair_groups(4))
    batch = batch_of(pair_groups(4), 10**6, "rows")
    losses = {gradient(trainer, batch)[0] for _ in range(3)}
    assert (len(losses) > 1) == kept


def checkpoint_with(directory: Path, step: int, *, sealed: bool = True) -> Path:
    path = directory / f"checkpoint-{step}"
    (path / "sharded").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "sharded/part.bin"):
        (path / name).write_bytes(b"0" * step)
    if sealed:
        seal(path)
    return path


@pytest.mark.parametrize("damage", ["no manifest", "missing", "missing shard", "short", "garbled"])
def test_a_damaged_checkpoint_is_passed_over_and_deleted(damage: str, tmp_path: Path) -> None:
    whole, newest = checkpoint_with(tmp_path, 9), checkpoint_with(tmp_path, 10)
    assert newest_complete(tmp_path) == newest
    if damage == "no manifest":
        (newest / "complete.json").unlink()
    elif damage == "missing":
        (newest / "optimizer.pt").unlink()
    elif damage == "missing shard":
        (newest / "sharded" / "part.bin").unlink()
    elif damage == "short":
        (newest / "model.safetensors").write_bytes(b"0")
    else:
        (newest / "complete.json").write_text("{")
    assert not is_complete(newest)
    assert newest_complete(tmp_path) == whole
    assert not newest.exists()


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    """Steps are compared as numbers: 10 is newer than 9."""
    paths = [checkpoint_with(tmp_path, step) for step in (2, 8, 9, 10)]
    rotate(tmp_path, keep=2, best=str(paths[0]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-10",
        "checkpoint-2",
        "checkpoint-9",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"prompts_per_step": 0},
        {"learning_rate": -1e-5},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"weight_decay": math.nan},
        {"warmup_share": 1.0},
        {"warmup_share": math.nan},
        {"keep_checkpoints": 0},
        {"early_stopping_patience": -1},
        {"seed": -1},
        {"seed": 2**32},
        {"epochs": 3, "max_steps": 10},
    ],
)
def test_an_impossible_setting_is_refused_with_its_key_and_value(values: dict[str, Any]) -> None:
    with pytest.raises(PalateError) as caught:
        TrainingSettings(**values)
    name, value = next(iter(values.items()))
    assert f"training.{name}" in str(caught.value)
    assert str(value) in str(caught.value)


def test_the_settings_of_the_tests_stand_for_possible_ones() -> None:
    assert quick_training(seed=2**32 - 1, max_steps=7).max_steps == 7
    assert json.dumps(asdict(quick_training()))


@pytest.mark.parametrize(
    ("method", "num_parameters", "rate", "factor"),
    [
        ("full", 22_713_601, 1e-4, 10.0),
        ("full", 600_000_000, 2e-5, 10.0),
        ("lora", 8_030_000_000, 3e-5, 1.0),
        ("full", 70_600_000_000, 2e-6, 10.0),
    ],
)
def test_rates_that_are_left_open_go_by_method_and_size(
    method: Any, num_parameters: int, rate: float, factor: float
) -> None:
    """docs/tuning.md's table; what is named stays."""
    found = with_rates(TrainingSettings(method=method), num_parameters)
    assert (found.learning_rate, found.head_learning_rate_factor) == (pytest.approx(rate), factor)
    named = TrainingSettings(method=method, learning_rate=3e-3, head_learning_rate_factor=2.0)
    assert with_rates(named, num_parameters) == named


def test_prompts_are_dealt_by_what_they_cost() -> None:
    """Costs 9 7 5 4 2 to two processes, largest first, each to the one with less: 9, 7, 5 to the
    second (12), 4 to the first (13), 2 to the second (14). By turns the first would have 16."""
    sampler = StepSampler([4, 9, 2, 7, 5], 5, 0, 0, 2)
    assert sampler._deal(range(5)) == [[1, 0], [3, 4, 2]]


def test_the_cost_of_a_prompt_counts_shared_tokens_once_and_pairs() -> None:
    """Prompt 3, answers 2 and 1: 6 tokens; pairs 6 + 3 * 3 + 3 + 1 = 19. Of a body with 240
    parameters, 2 layers of width 6 a pair costs 2 * 2 * 6 / 240 = 0.1 tokens."""
    answers = ((1, 2, 3, 4, 5), (1, 2, 3, 6))
    (group,) = pair_groups(1)
    costs = StepCosts([replace(group, sequences=answers)], 240, 2, 6)
    assert costs[0] == pytest.approx(6 + 1.9)


def test_the_fused_update_is_the_plain_one(tmp_path: Path) -> None:
    """AdamW with its two groups, three steps: weights equal to those of the unfused optimiser."""
    found = []
    for fused in (True, False):
        trainer = tiny_trainer(load_tiny(tmp_path).model, tmp_path, pair_groups(6), max_steps=3)
        optimiser = trainer.create_optimizer()
        assert all(group["fused"] for group in optimiser.param_groups)
        for group in optimiser.param_groups:
            group["fused"] = fused
        trainer.train()
        found.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)

"""Body x pooling x head x layout x method x objective: trained, saved, reloaded to the same
rewards, or refused with the documented words; nothing else may happen.

All of body x pooling x head x layout x method is run, the objectives in turn, so that every
objective is trained by every method in every layout on some body; and every objective with every
method on one body. That is a seventh of the whole product, which `make matrix`
(`python -m tests.test_matrix`) runs.
"""

import itertools
import math
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.evaluation.outcomes import Outcome
from palate.model.loading import load_model
from palate.model.lora import LoraSettings, add_adapters
from palate.model.merging import merge_adapters
from palate.model.reward_model import RewardModel
from palate.model.settings import BodySettings
from palate.objectives import ObjectiveSettings
from palate.objectives.objective import Objective
from palate.objectives.settings import Kind
from palate.pipeline.config import TrainConfig
from palate.pipeline.finish import finish
from palate.pipeline.fit import fit
from palate.pipeline.prepare import Prepared
from palate.preferences import Message, PreferenceGroup, Response, Vote, VoteSettings
from palate.preferences.votes import comparisons_from_votes
from palate.rendering import RenderedGroup
from palate.training.settings import TrainingSettings
from tests.runs import rendered, tiny_renderer
from tests.tiny import save_tiny

BODIES = ("llama", "gpt2", "bert", "mixtral", "mamba", "cohere")
"""Tree and rows, an encoder, experts, a state space, and a body without a class of its own."""
POOLINGS = ("auto", "mean", "attention")
HEADS = ("linear", "mlp")
LAYOUTS = ("auto", "rows", "tree")
METHODS = ("full", "lora", "frozen")
OBJECTIVES: dict[str, ObjectiveSettings] = {
    "bradley-terry": ObjectiveSettings(),
    "regularised": ObjectiveSettings(label_smoothing=0.1, centring=0.01, sum_to_zero=0.01),
    "davidson": ObjectiveSettings(kind="davidson"),
    "rao-kupper": ObjectiveSettings(kind="rao-kupper"),
    "plackett-luce": ObjectiveSettings(kind="plackett-luce"),
    "hinge": ObjectiveSettings(kind="hinge"),
    "regression": ObjectiveSettings(kind="regression"),
    "annotators": ObjectiveSettings(annotators="scaled"),
}
REFUSALS = (
    "layout tree is not exact",
    "attention can't be trained with training.method frozen",
    "body.head mlp can't read cls",
)
NUM_STEPS = 3
"""A zero head moves in the first, an adapter's second matrix in the second, its first in the
third."""


@dataclass(frozen=True)
class Combination:
    body: str
    pooling: Any
    head: Any
    layout: Any
    method: Any
    objective: str

    def __str__(self) -> str:
        return "-".join(vars(self).values())

    @property
    def is_refused(self) -> bool:
        """What the documents refuse: a tree where it isn't exact, attention on a frozen body, an
        MLP on what an encoder's class pools."""
        no_tree = self.layout == "tree" and self.body in ("bert", "mamba")
        frozen_attention = self.method == "frozen" and self.pooling == "attention"
        mlp_on_cls = (self.body, self.pooling, self.head) == ("bert", "auto", "mlp")
        return no_tree or frozen_attention or mlp_on_cls


def product() -> Iterator[Combination]:
    axes = (BODIES, POOLINGS, HEADS, LAYOUTS, METHODS, OBJECTIVES)
    return (Combination(*values) for values in itertools.product(*axes))


def covering() -> Iterator[Combination]:
    """Every (body, pooling, head, layout, method) once, with the objectives in turn; and every
    objective with every method on one body."""
    turn = itertools.cycle(OBJECTIVES)
    for body, pooling, head, layout, method in itertools.product(
        BODIES, POOLINGS, HEADS, LAYOUTS, METHODS
    ):
        yield Combination(body, pooling, head, layout, method, next(turn))
    for method, objective in itertools.product(METHODS, OBJECTIVES):
        yield Combination("llama", "auto", "linear", "auto", method, objective)


def group(number: int) -> PreferenceGroup:
    """Three answers with ratings, ranked by three annotators of whom one sees a tie."""
    better = f"yes {'a' * (1 + number % 3)}"
    votes = (
        Vote("ann", ((0,), (1,), (2,))),
        Vote("bob", ((0,), (2,), (1,))),
        Vote("eve", ((number % 2,), (1 - number % 2, 2))),
    )
    return PreferenceGroup(
        (Message("user", f"question {number}"),),
        (Response(better, rating=5), Response("maybe", rating=3), Response("no b", rating=1)),
        comparisons_from_votes(3, votes, VoteSettings()),
        votes,
        line=number,
        votes_counted=True,
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return saved(tmp_path_factory.mktemp("bodies"))


def saved(directory: Path) -> dict[str, str]:
    return {body: save_tiny(directory / body, body) for body in BODIES}


def prepared(has_validation: bool) -> Prepared:
    groups = rendered([group(number) for number in range(6)])
    validation = {"validation": groups[4:5]} if has_validation else {}
    return Prepared(groups[:4], validation, groups[5:], Ledger(), {}, {}, {}, "")


def configuration(case: Combination, model: str, directory: Path) -> TrainConfig:
    stepped: dict[str, Any] = {
        "prompts_per_step": 4,
        "max_steps": NUM_STEPS,
        "learning_rate": 1e-2,
        "head_learning_rate_factor": 1.0,
        "warmup_share": 0.0,
        "weight_decay": 0.0,
        "log_every_steps": 1,
    }
    if case.method == "frozen":
        stepped = {"features_cache": str(directory / "features")}
    return TrainConfig(
        model=model,
        data="pairs.jsonl",
        output=str(directory / "run"),
        body=BodySettings(pooling=case.pooling, head=case.head, layout=case.layout),
        lora=LoraSettings(rank=2, alpha=4) if case.method == "lora" else LoraSettings(),
        objective=OBJECTIVES[case.objective],
        training=TrainingSettings(method=case.method, tokens_per_microbatch=128, **stepped),
    )


def check(case: Combination, model: str, directory: Path) -> None:
    """Train the combination and hold what the matrix promises of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if case.is_refused:
            with pytest.raises(PalateError, match="|".join(REFUSALS)):
                trained(case, model, directory)
        else:
            trained(case, model, directory)


def trained(case: Combination, model: str, directory: Path) -> None:
    config = configuration(case, model, directory)
    torch.manual_seed(0)
    loaded = load_model(model, config.body, for_training=True)
    if case.method == "lora":
        add_adapters(loaded.model, config.lora)
    before = state(loaded.model)
    after: dict[str, torch.Tensor] = {}
    # A validation set may choose an earlier step, before all had moved; a frozen body needs one.
    parts, renderer = prepared(case.method == "frozen"), tiny_renderer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("palate.pipeline.fit.merge_adapters", partial(merge_and_keep, after))
        objective = Objective(config.objective, parts.train)
        fitted = fit(config, loaded, renderer, parts, objective, directory / "run")
    check_losses(case, config, fitted.history, parts.train)
    check_moved(case, fitted.model, before, after or state(fitted.model))
    scorer = finish(config, fitted, renderer, parts, directory / "run").scorer
    check_reloaded(scorer, fitted.outcomes["test"][0])


def check_losses(
    case: Combination, config: TrainConfig, history: Any, train: list[RenderedGroup]
) -> None:
    """All finite; the first of a zero head is what equal rewards give (experts add theirs)."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses and all(map(math.isfinite, losses))
    if case.method == "frozen":
        return
    objective = Objective(config.objective, train)
    zero_N = torch.zeros(3 * len(train))
    batch = objective.batch(train)
    equal = objective.loss(zero_N, batch, objective.initial, torch.zeros(())) / len(train)
    limit = 0.05 if case.body == "mixtral" else 1e-4
    assert abs(losses[0] - float(equal)) <= limit, (losses[0], float(equal))


def state(model: RewardModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def merge_and_keep(kept: dict[str, torch.Tensor], model: RewardModel) -> None:
    """Adapters as they were trained: after merging there are none."""
    kept |= state(model)
    merge_adapters(model)


def check_moved(
    case: Combination,
    model: RewardModel,
    before: dict[str, torch.Tensor],
    after: dict[str, torch.Tensor],
) -> None:
    """What is trained has moved, and with adapters or a frozen body nothing but it."""
    head = tuple(prefix for prefix in model.head_prefixes if prefix != "learned.")
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, value in after.items():
        # GPT-2's last norm adds its bias to all states: an offset of all rewards, without gradient.
        if name.startswith("learned.") or name.endswith("ln_f.bias"):
            continue
        is_bias_of_class = name.startswith("transformer.") and name.endswith("classifier.bias")
        is_trained = name.startswith(head) and not is_bias_of_class
        if case.method == "full":
            is_trained = name in trainable
        elif case.method == "lora":
            is_trained |= "lora_" in name or ("pooler" in name and case.pooling == "auto")
        moved = not torch.equal(value, before[name])
        assert moved is is_trained, f"{name} {'moved' if moved else 'did not move'}"


def check_reloaded(scorer: Any, outcome: Outcome) -> None:
    """The saved model gives the rewards that were measured in training."""
    rewards = scorer.score_ids(outcome.group.sequences)
    assert rewards == pytest.approx(outcome.reward_N.tolist(), abs=2e-4)


@pytest.mark.parametrize("body", BODIES)
def test_every_combination_trains_and_reloads_or_is_refused_by_name(
    body: str, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    cases = list(dict.fromkeys(case for case in covering() if case.body == body))
    assert len(cases) >= 36
    for number, case in enumerate(cases):
        try:
            check(case, checkpoints[body], tmp_path / str(number))
        except Exception as error:
            raise AssertionError(str(case)) from error


def test_every_objective_is_trained_by_every_method_in_every_layout() -> None:
    """Combinations that are refused count for none; each body is in every layout, method and
    pooling, refused or not."""
    trained_ones = {(c.layout, c.method, c.objective) for c in covering() if not c.is_refused}
    assert trained_ones == set(itertools.product(LAYOUTS, METHODS, OBJECTIVES))
    of_a_body = {(c.body, c.pooling, c.head, c.layout, c.method) for c in covering()}
    assert of_a_body == set(itertools.product(BODIES, POOLINGS, HEADS, LAYOUTS, METHODS))
    assert {settings.kind for settings in OBJECTIVES.values()} == set(get_args(Kind))
    assert len(set(covering())) * 7 < len(list(product()))


def main() -> None:
    """The whole product (of the bodies named, where some are), a line for each failure."""
    failed = 0
    cases = [case for case in product() if case.body in (sys.argv[1:] or BODIES)]
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = saved(Path(directory))
        for number, case in enumerate(cases):
            try:
                check(case, checkpoints[case.body], Path(directory) / str(number))
            except Exception as error:
                failed += 1
                print(f"{case}: {type(error).__name__}: {error}", flush=True)
            if number % 100 == 99:
                print(f"{number + 1} run, {failed} failed", flush=True)
    print(f"{len(cases)} combinations, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()

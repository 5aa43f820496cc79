"""Nuisance terms: they take a planted bias, leave legitimate length to the reward, and are gone
after training."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy.special import expit
from transformers import AutoModelForSequenceClassification

import palate
from palate.objectives import Objective, ObjectiveSettings, bradley_terry
from palate.objectives.covariates import COVARIATES
from palate.objectives.nuisance import MADE, first_shown
from palate.objectives.objective import NUISANCE
from palate.pipeline.train import train
from palate.preferences import Comparison, Message, PreferenceGroup, Response, Vote
from palate.rendering import RenderedGroup
from palate.text.phrases import BANKS
from palate.training.candidates import Candidate
from palate.training.linear_head import solve
from palate.training.settings import TrainingSettings
from palate.training.steps import step_batch
from tests.objective_cases import GROUPS
from tests.rows import refusal
from tests.runs import load_tiny, quick_config, rendered, tiny_renderer, tiny_trainer, write_rows
from tests.test_frozen import stored
from tests.test_training import gradient

LENGTH = ObjectiveSettings(nuisance=("log_length",))


def pair(
    number: int, texts: Sequence[str], comparison: Comparison, votes: Sequence[Vote] = ()
) -> RenderedGroup:
    group = PreferenceGroup(
        (Message("user", f"question {number}"),),
        tuple(map(Response, texts)),
        (comparison,),
        tuple(votes),
    )
    sequences = tuple((number, k) for k in range(len(texts)))
    return RenderedGroup(sequences, group.comparisons, group, tuple(range(len(texts))))


def labelled(
    num_prompts: int, *, bias: float, legitimate: float, seed: int = 0
) -> tuple[list[RenderedGroup], np.ndarray, np.ndarray]:
    """Pairs with features (facts seen through a little noise, log length), and true utilities.

    Utility is 1.5 facts. Answers with more facts are longer, by `legitimate`; labels go by utility
    and by bias * log length.
    """
    random = np.random.default_rng(seed)
    groups, states, utilities = [], [], []
    for number in range(num_prompts):
        facts = random.normal(size=2)
        log_words = 3.5 + legitimate * facts + 0.5 * random.normal(size=2)
        words = [max(1, round(math.exp(value))) for value in log_words]
        length = np.log1p(words)
        utility = 1.5 * facts
        logit = utility[0] - utility[1] + bias * (length[0] - length[1])
        better = 0 if random.random() < expit(logit) else 1
        groups.append(pair(number, ["w " * n for n in words], Comparison(better, 1 - better)))
        states.append(np.stack([facts + 0.1 * random.normal(size=2), length], axis=1))
        utilities.append(utility)
    return groups, np.concatenate(states), np.array(utilities)


def solved(
    directory: Path, groups: list[RenderedGroup], state_ND: np.ndarray, settings: ObjectiveSettings
) -> tuple[np.ndarray, dict[str, Any]]:
    """Weights of a linear head on the features, and what was learned beside it."""
    directory.mkdir()
    objective = Objective(settings, groups)
    found: list[Candidate] = []

    def judge(candidate: Candidate) -> bool:
        found.append(candidate)
        return True

    solve(stored(directory, state_ND), objective.batch(groups), objective, [1e-3], judge)
    weight_D = next(found[0].head.parameters()).detach().numpy()[0]
    return weight_D, objective.describe(dict(found[0].learned))


def accuracy(weight_D: np.ndarray, state_ND: np.ndarray, utility_G2: np.ndarray) -> float:
    reward_G2 = (state_ND @ weight_D).reshape(-1, 2)
    return float(np.mean(reward_G2.argmax(1) == utility_G2.argmax(1)))


def per_unit(learned: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = learned["logits of nuisance terms per unit of the covariate"]
    return found


def test_a_planted_length_bias_goes_to_its_term_and_out_of_the_reward(tmp_path: Path) -> None:
    groups, state_ND, utility_G2 = labelled(3000, bias=1.0, legitimate=0.0)
    plain_D, _ = solved(tmp_path / "plain", groups, state_ND, ObjectiveSettings())
    weight_D, learned = solved(tmp_path / "term", groups, state_ND, LENGTH)
    assert plain_D[1] > 0.8
    assert abs(weight_D[1]) < 0.1
    assert per_unit(learned)["log_length"] == pytest.approx(1.0, abs=0.15)
    gained = accuracy(weight_D, state_ND, utility_G2) - accuracy(plain_D, state_ND, utility_G2)
    assert gained > 0.03


def test_where_longer_answers_say_more_the_term_costs_nothing(tmp_path: Path) -> None:
    """Length alone predicts these labels well, so the term starts far from 0; facts explain them
    better, and it ends near it."""
    groups, state_ND, utility_G2 = labelled(3000, bias=0.0, legitimate=0.5)
    start = Objective(LENGTH, groups).describe(Objective(LENGTH, groups).initial)
    plain_D, _ = solved(tmp_path / "plain", groups, state_ND, ObjectiveSettings())
    weight_D, learned = solved(tmp_path / "term", groups, state_ND, LENGTH)
    assert per_unit(start)["log_length"] > 0.8
    assert abs(per_unit(learned)["log_length"]) < 0.2
    lost = accuracy(plain_D, state_ND, utility_G2) - accuracy(weight_D, state_ND, utility_G2)
    assert lost <= 0.005


def test_a_term_starts_where_the_loss_of_equal_rewards_is_least() -> None:
    groups, _, _ = labelled(500, bias=1.0, legitimate=0.0)
    objective = Objective(LENGTH, groups)
    weight_F = objective.initial[NUISANCE].double().requires_grad_()
    loss = objective.mean_loss(
        torch.zeros(1000, dtype=torch.float64), objective.batch(groups), {NUISANCE: weight_F}
    )
    (slope_F,) = torch.autograd.grad(loss, weight_F)
    assert weight_F.item() > 0.3
    assert abs(slope_F.item()) < 1e-4


def test_a_covariate_that_always_wins_has_a_finite_weight() -> None:
    """The likelihood has no optimum there; the prior's pull w / 100 meets 20 s(-w) at w = 5.5."""
    closing = "Yes. " + BANKS["closing"].train[0]
    groups = [pair(i, [closing, "Yes."], Comparison(0, 1)) for i in range(20)]
    start = Objective(ObjectiveSettings(nuisance=("closing",)), groups).initial[NUISANCE]
    assert 20 * expit(-start.item()) == pytest.approx(start.item() / 100, rel=1e-2)


@pytest.mark.parametrize("kind", ["bradley-terry", "davidson", "rao-kupper"])
def test_gradients_in_rewards_and_weights_are_those_of_finite_differences(kind: str) -> None:
    """On soft, tied and weighted comparisons of unlike lengths."""
    groups = worded(GROUPS)
    objective = Objective(replace(LENGTH, kind=kind), groups)  # type: ignore[arg-type]
    batch = objective.batch(groups)
    names = list(objective.initial)

    def loss(reward_N: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return objective.loss(reward_N, batch, dict(zip(names, values, strict=True)))

    generator = torch.Generator().manual_seed(0)
    reward_N = torch.randn(len(batch.share_N), generator=generator, dtype=torch.float64)
    values = [objective.initial[name].double().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(loss, (reward_N.requires_grad_(), *values))


def worded(groups: Sequence[RenderedGroup]) -> list[RenderedGroup]:
    """The same groups with answers of unlike lengths."""
    return [
        replace(
            group,
            group=replace(
                group.group,
                responses=tuple(
                    replace(response, text="word " * (1 + 3 * place + number))
                    for place, response in enumerate(group.group.responses)
                ),
            ),
        )
        for number, group in enumerate(groups)
    ]


def test_the_logit_is_the_difference_of_rewards_plus_that_of_the_covariates() -> None:
    """By hand: 7 against 3 words is log 8 - log 4 = log 2, which is all of the typical difference,
    so the covariate is 1; rewards 2 and 1 and a weight of 0.5 give a logit of 1.5."""
    groups = [pair(0, ["w " * 7, "w " * 3], Comparison(0, 1, 0.75))]
    objective = Objective(LENGTH, groups)
    batch = objective.batch(groups)
    learned = {NUISANCE: torch.tensor([0.5])}
    found = objective.data_loss(torch.tensor([2.0, 1.0]), batch, learned)
    expected = 0.75 * math.log1p(math.exp(-1.5)) + 0.25 * math.log1p(math.exp(1.5))
    assert float(found) == pytest.approx(expected, rel=1e-6)
    words = objective.describe(learned)
    assert per_unit(words)["log_length"] == pytest.approx(0.5 / math.log(2))
    json.dumps(words)


def test_without_terms_everything_is_as_before_to_the_last_bit() -> None:
    objective = Objective(ObjectiveSettings(), GROUPS)
    batch = objective.batch(GROUPS)
    reward_N = torch.randn(len(batch.share_N), generator=torch.Generator().manual_seed(0))
    assert objective.initial == {}
    assert batch.covariate_CF is None
    found = objective.loss(reward_N, batch)
    assert torch.equal(found, bradley_terry(reward_N, batch.comparisons))


def test_a_made_pair_has_no_covariates() -> None:
    """Its label is what the reward should be; a term in its logit would undo it."""
    votes = pair(0, ["w " * 7, "w " * 3], Comparison(0, 1))
    made = pair(1, ["w " * 9, "w"], Comparison(0, 1, 0.6))
    made = replace(made, group=replace(made.group, meta={MADE: "filler"}))
    objective = Objective(LENGTH, [votes, made])
    covariate_CF = objective.batch([votes, made]).covariate_CF
    assert covariate_CF is not None
    assert covariate_CF.tolist() == [[pytest.approx(1.0)], [0.0]]


def test_display_order_is_read_from_the_votes_that_compare_the_two() -> None:
    """Two saw the better answer first, one saw it second, one didn't say, one compared others."""
    votes = [
        Vote("a", ((0,), (1,)), shown=(0, 1)),
        Vote("b", ((1,), (0,)), shown=(0, 1)),
        Vote("c", ((0,), (1,)), shown=(1, 0)),
        Vote("d", ((0,), (1,))),
        Vote("e", ((0,), (2,)), shown=(0, 2, 1)),
    ]
    group = pair(0, ["a", "b", "c"], Comparison(0, 1), votes)
    assert first_shown(group, Comparison(0, 1)) == pytest.approx(1 / 3)
    assert first_shown(group, Comparison(1, 0)) == pytest.approx(-1 / 3)
    assert first_shown(group, Comparison(1, 2)) == 0


def test_a_position_bias_is_recovered() -> None:
    """All answers are equally good; the first shown wins with s(0.8)."""
    random = np.random.default_rng(0)
    groups = []
    for number in range(3000):
        first = int(random.integers(2))
        better = first if random.random() < expit(0.8) else 1 - first
        vote = Vote("a", ((better,), (1 - better,)), shown=(first, 1 - first))
        groups.append(pair(number, ["yes", "no"], Comparison(better, 1 - better), [vote]))
    objective = Objective(ObjectiveSettings(nuisance=("first_shown",)), groups)
    learned = per_unit(objective.describe(objective.initial))
    assert learned["first_shown"] == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("kind", ["closing", "opener", "agreement", "hedge", "confidence"])
def test_a_covariate_sees_phrases_that_no_fix_has_shown(kind: str) -> None:
    """Of the banks' parts that planters and probes use, half or more, and no plain answer."""
    phrases = [*BANKS[kind].plant, *BANKS[kind].test]
    seen = [COVARIATES[kind](f"{phrase} Bees make honey.") for phrase in phrases]
    assert np.mean(seen) >= 0.5
    assert COVARIATES[kind]("Bees make honey from nectar. They live in hives of wax.") == 0


def test_markdown_is_seen_and_counted() -> None:
    text = "# Bees\n- they make **honey**\n- they live in hives"
    assert COVARIATES["markdown"](text) == 1
    assert COVARIATES["markdown_amount"](text) == pytest.approx(math.log1p(4))
    assert COVARIATES["markdown"]("2 * 3 = 6, and 4 - 1 = 3.") == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "hinge"}, "nuisance log_length has no effect with objective.kind hinge"),
        ({"kind": "plackett-luce"}, "has no effect with objective.kind plackett-luce"),
        ({"kind": "regression"}, "has no effect with objective.kind regression"),
        ({"annotators": "scaled"}, "can't be had with objective.annotators scaled"),
        ({"nuisance": ("log_lenght",)}, "did you mean 'log_length'"),
        ({"nuisance": ("hedge", "hedge")}, "names one twice"),
    ],
)
def test_terms_without_a_likelihood_and_unknown_ones_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    fields = {"nuisance": ("log_length",), **settings}
    assert message in refusal(lambda: ObjectiveSettings(**fields))


def test_a_covariate_without_differences_is_refused() -> None:
    groups = [pair(0, ["one two", "two one"], Comparison(0, 1))]
    message = refusal(lambda: Objective(LENGTH, groups))
    assert "nuisance log_length has no effect" in message
    shown = ObjectiveSettings(nuisance=("first_shown",))
    assert "in which order" in " ".join(refusal(lambda: Objective(shown, groups)).split())


def texts_of_unlike_length(count: int) -> list[dict[str, str]]:
    return [
        {
            "prompt": f"question {number}",
            "chosen": "yes " * (1 + number % 4) + "indeed",
            "rejected": "no " * (2 - number % 2),
        }
        for number in range(count)
    ]


def test_gradients_are_the_same_for_any_budget(tmp_path: Path) -> None:
    groups = rendered(
        [
            PreferenceGroup(
                (Message("user", row["prompt"]),),
                (Response(row["chosen"]), Response(row["rejected"])),
                (Comparison(0, 1, 0.8),),
            )
            for row in texts_of_unlike_length(12)
        ]
    )
    objective = Objective(LENGTH, groups)
    trainer = tiny_trainer(load_tiny(tmp_path).model, tmp_path, groups, objective=objective)
    found = []
    for budget in (10**6, 200, 1):
        trainer.settings = replace(trainer.settings, tokens_per_microbatch=budget)
        packing = trainer._packing()
        batch = step_batch(groups, len(groups), packing, objective)
        found.append((len(batch.microbatches), *gradient(trainer, batch)))
    weight = trainer.model.learned[NUISANCE]
    assert weight.grad is not None
    assert float(weight.grad.abs()) > 0
    (first, loss, expected), *others = found
    assert first == 1
    for count, again, slopes in others:
        assert count > 1
        assert again == pytest.approx(loss, rel=1e-5)
        assert (slopes - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("method", ["full", "frozen"])
def test_a_run_learns_reports_and_never_exports_it(method: str, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", texts_of_unlike_length(40))
    training = {"full": {"prompts_per_step": 4, "learning_rate": 1e-3}, "frozen": {"head_l2": 0.1}}
    config = quick_config(
        tmp_path,
        objective=LENGTH,
        training=TrainingSettings(method=method, **training[method]),  # type: ignore[arg-type]
    )
    result = train(replace(config, data=data))
    metrics = json.loads((result.directory / "metrics.json").read_text())
    assert list(per_unit(metrics["learned"])) == ["log_length"]
    assert "nuisance" in (result.directory / "report.html").read_text()
    directory = result.directory / "model"
    names = [name for path in directory.glob("*.safetensors") for name in load_file(path)]
    assert names
    assert not any("nuisance" in name or "learned" in name for name in names)
    plain = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    scorer = palate.load(result.directory)
    ids = tiny_renderer().tokenizer("yes yes", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = float(plain(ids).logits)
    assert scorer.score_ids([ids[0].tolist()])[0] == pytest.approx(expected, abs=1e-5)

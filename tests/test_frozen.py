"""The frozen body: features that are computed once, and heads that are solved on them."""

import itertools
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from scipy.optimize import approx_fprime, minimize
from sklearn.linear_model import LogisticRegression

import palate
from palate.errors import PalateError
from palate.evaluation.outcomes import quick_metrics
from palate.model.heads import MlpHead
from palate.model.reward_model import RewardModel
from palate.model.settings import BodySettings
from palate.objectives import Objective, ObjectiveSettings
from palate.pipeline.config import TrainConfig
from palate.pipeline.train import TrainResult, open_model
from palate.preferences import Comparison, Message, PreferenceGroup, Response, Vote
from palate.rendering import RenderedGroup
from palate.scoring.runs import rewards_of_groups
from palate.statistics import as_json
from palate.training import features as features_module
from palate.training.candidates import Candidate
from palate.training.features import (
    Block,
    Features,
    body_key,
    cached_features,
    default_cache_directory,
    moments,
)
from palate.training.frozen import FrozenResult, train_frozen
from palate.training.linear_head import L2_GRID, Problem, solve
from palate.training.settings import TrainingSettings
from palate.training.stepped_head import train_steps
from tests.runs import (
    contrary,
    load_tiny,
    pair_groups,
    quick_config,
    ranked_group,
    rendered,
    tiny_renderer,
    tiny_run,
    tiny_trainer,
)

BUDGET = 200
LAYOUTS = ("tree", "rows")


def stored(directory: Path, state_ND: np.ndarray, shards: int = 1) -> Features:
    """Features of N sequences, all distinct, in so many files."""
    blocks = []
    for number, part in enumerate(np.array_split(np.asarray(state_ND, np.float32), shards)):
        path = directory / f"{number}.safetensors"
        save_file({"state_UD": np.ascontiguousarray(part)}, path)
        blocks.append(Block(path, np.arange(len(part))))
    return Features(tuple(blocks), np.arange(len(state_ND)), 0)


def bare_group(number: int, comparisons: Sequence[Comparison], size: int = 2) -> RenderedGroup:
    """A group whose sequences are of no interest; its ratings are its responses' numbers."""
    group = PreferenceGroup(
        (Message("user", "?"),),
        tuple(Response(str(k), rating=float(k)) for k in range(size)),
        tuple(comparisons),
        line=number,
    )
    sequences = tuple((number, k) for k in range(size))
    return RenderedGroup(sequences, group.comparisons, group, tuple(range(size)))


def mixed(num_prompts: int, ranked: bool = False) -> tuple[list[RenderedGroup], np.ndarray]:
    """Groups of 2 to 4 answers, and six features of different units of which two decide.

    Neighbours in rank have sure, soft, tied and weighted comparisons; with `ranked` each answer is
    surely better than all below it.
    """
    random = np.random.default_rng(0)
    groups, states = [], []
    for number in range(num_prompts):
        size = 2 + number % 3
        state = random.normal(size=(size, 6)) * [1, 1, 1, 10, 0.1, 1] + [0, 5, 0, 0, 0, -3]
        reward = 1.5 * state[:, 0] - 8 * state[:, 4] + random.normal(size=size)
        order = np.argsort(-reward)
        comparisons = [
            Comparison(
                int(better),
                int(worse),
                probability=(1.0, 0.8)[number % 2],
                tie=(0.0, 0.0, 0.4)[number % 3],
                weight=(1.0, 0.25)[number % 5 == 0],
            )
            for better, worse in itertools.pairwise(order)
        ]
        if ranked:
            pairs = itertools.combinations(order, 2)
            comparisons = [Comparison(int(better), int(worse)) for better, worse in pairs]
        groups.append(bare_group(number, comparisons, size))
        states.append(state)
    return groups, np.concatenate(states).astype(np.float32)


def solutions(
    features: Features,
    groups: Sequence[RenderedGroup],
    penalties: Sequence[float],
    **objective: Any,
) -> list[Candidate]:
    found: list[Candidate] = []

    def judge(candidate: Candidate) -> bool:
        found.append(candidate)
        return True

    settled = Objective(ObjectiveSettings(**objective), groups)
    solve(features, settled.batch(groups), settled, penalties, judge)
    return found


def weight_of(candidate: Candidate) -> np.ndarray:
    assert isinstance(candidate.head, torch.nn.Linear)
    return candidate.head.weight.detach().numpy()[0]


# The linear head: a convex problem with one solution.


@pytest.mark.parametrize("unit", [1.0, 10.0])
def test_one_feature_in_closed_form(tmp_path: Path, unit: float) -> None:
    """Four prompts, the better answer has feature +u and the worse -u, l2 = 1 / ln 3.

    The deviation over all answers is u, so v multiplies +1 and -1 and the mean loss is
    -log s(2 v) + v^2 / (2 ln 3). Its derivative -2 s(-2 v) + v / ln 3 is 0 at v = ln 3 / 2, where
    s(-2 v) = 1/4. So w = ln 3 / (2 u), P(better) = 3/4, loss without penalty ln 4/3. Without
    regard to its unit u.
    """
    groups = [bare_group(number, [Comparison(0, 1)]) for number in range(4)]
    features = stored(tmp_path, np.array([[unit], [-unit]] * 4))
    (found,) = solutions(features, groups, [1 / math.log(3)])
    assert weight_of(found)[0] == pytest.approx(math.log(3) / (2 * unit), rel=1e-7)
    assert found.loss == pytest.approx(math.log(4 / 3), abs=1e-10)


def newton(
    difference_CD: np.ndarray, target_C: np.ndarray, weight_C: np.ndarray, l2: float
) -> tuple[np.ndarray, float]:
    """Minimum of sum_c weight_c * cross entropy(target_c, s(v . x_c)) + l2 / 2 |v|^2 by Newton's
    method (iteratively reweighted least squares), and the sum without the penalty."""
    v_D = np.zeros(difference_CD.shape[1])
    for _ in range(50):
        probability_C = 1 / (1 + np.exp(-difference_CD @ v_D))
        slope_D = difference_CD.T @ (weight_C * (probability_C - target_C)) + l2 * v_D
        spread_C = weight_C * probability_C * (1 - probability_C)
        hessian_DD = (difference_CD.T * spread_C) @ difference_CD + l2 * np.eye(len(v_D))
        v_D = v_D - np.linalg.solve(hessian_DD, slope_D)
    assert np.abs(slope_D).max() < 1e-14
    margin_C = difference_CD @ v_D
    losses_C = target_C * np.logaddexp(0, -margin_C) + (1 - target_C) * np.logaddexp(0, margin_C)
    return v_D, float(weight_C @ losses_C)


def test_the_optimum_is_newtons(tmp_path: Path) -> None:
    """Newton's solution is written here, in numpy, from comparisons and features alone."""
    groups, state_ND = mixed(60)
    features = stored(tmp_path, state_ND, shards=4)
    deviation_D = state_ND.astype(np.float64).std(axis=0)
    rows, targets, weights, offset = [], [], [], 0
    for group in groups:
        for c in group.comparisons:
            rows.append(state_ND[offset + c.better].astype(float) - state_ND[offset + c.worse])
            targets.append(np.float32((1 - c.tie) * c.probability + c.tie / 2))
            weights.append(np.float32(c.weight / len(group.comparisons)))
        offset += len(group.sequences)
    penalties = [1.0, 0.1, 0.01, 1e-3, 1e-4]
    for l2, found in zip(penalties, solutions(features, groups, penalties), strict=True):
        v_D, loss = newton(
            np.array(rows) / deviation_D,
            np.array(targets, float),
            np.array(weights, float) / len(groups),
            l2,
        )
        expected_D = v_D / deviation_D
        assert np.linalg.norm(weight_of(found) - expected_D) <= 1e-6 * np.linalg.norm(expected_D)
        assert found.loss == pytest.approx(loss, abs=1e-10)


def test_the_optimum_is_scikit_learns(tmp_path: Path) -> None:
    """Its C sum(loss) + |v|^2 / 2 is 1 / l2 times our mean(loss) + l2 / 2 |v|^2: C = 1 / (l2 n)."""
    random = np.random.default_rng(1)
    state_ND = random.normal(size=(200, 5)).astype(np.float32)
    features = stored(tmp_path, state_ND)
    prefers_first = (state_ND[::2] - state_ND[1::2]) @ [1, -2, 0, 0, 0.5] + random.normal(
        size=100
    ) > 0
    groups = [
        bare_group(number, [Comparison(0, 1) if first else Comparison(1, 0)])
        for number, first in enumerate(prefers_first)
    ]
    deviation_D = state_ND.astype(np.float64).std(axis=0)
    for l2 in (0.3, 0.003):
        theirs = LogisticRegression(
            fit_intercept=False, C=1 / (l2 * 100), solver="newton-cholesky", tol=1e-12
        ).fit((state_ND[::2].astype(float) - state_ND[1::2]) / deviation_D, prefers_first)
        (ours,) = solutions(features, groups, [l2])
        assert weight_of(ours) == pytest.approx(theirs.coef_[0] / deviation_D, rel=1e-6, abs=1e-8)


OBJECTIVES: list[dict[str, Any]] = [
    {},
    {"ties": "drop", "label_smoothing": 0.1},
    {"kind": "davidson"},
    {"kind": "rao-kupper"},
    {"kind": "plackett-luce"},
    {"kind": "regression"},
    {"centring": 0.1},
    {"sum_to_zero": 0.1},
]


@pytest.mark.parametrize("settings", OBJECTIVES, ids=str)
def test_gradients_are_those_of_differences_and_every_start_ends_alike(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    """A convex problem has one minimum in v, whatever the start; widths and offsets go along."""
    groups, state_ND = mixed(30, ranked=settings.get("kind") == "plackett-luce")
    features = stored(tmp_path, state_ND, shards=2)
    objective = Objective(ObjectiveSettings(**settings), groups)
    problem = Problem(features, objective.batch(groups), objective)
    random = np.random.default_rng(0)
    start = problem.start()
    assert len(start) == 6 + len(objective.initial)
    somewhere = start + random.normal(size=len(start))
    slope = approx_fprime(somewhere, lambda x: problem.penalised(x, 0.01)[0], 1e-7)
    assert problem.penalised(somewhere, 0.01)[1] == pytest.approx(slope, rel=1e-4, abs=1e-5)
    (found,) = solutions(features, groups, [0.01], **settings)
    v_D = weight_of(found) * state_ND.astype(float).std(axis=0)
    for _ in range(3):
        other = minimize(
            lambda x: problem.penalised(x, 0.01),
            start + random.normal(size=len(start)),
            jac=True,
            method="BFGS",
            options={"gtol": 1e-7},
        )
        assert other.x[:6] == pytest.approx(v_D, abs=1e-4)
        assert other.fun == pytest.approx(found.loss + 0.01 / 2 * v_D @ v_D, abs=1e-9)


def voted(
    random: np.random.Generator, weight_D: np.ndarray, scales: Sequence[float], num_prompts: int
) -> tuple[list[RenderedGroup], np.ndarray]:
    """Pairs on which each annotator votes every second time, P(first) = s(scale * d)."""
    state_PKD = random.normal(size=(num_prompts, 2, len(weight_D)))
    groups = []
    for number, (first_D, second_D) in enumerate(state_PKD):
        votes = []
        for annotator, scale in enumerate(scales):
            d = scale * (first_D - second_D) @ weight_D
            if random.random() < 0.5 or (not votes and annotator == len(scales) - 1):
                won = random.random() < 1 / (1 + math.exp(-d))
                votes.append(Vote(str(annotator), ((0,), (1,)) if won else ((1,), (0,))))
        bare = bare_group(number, [Comparison(0, 1)])
        group = replace(bare.group, votes=tuple(votes), votes_counted=True)
        groups.append(replace(bare, group=group))
    return groups, state_PKD.reshape(-1, len(weight_D))


@pytest.mark.parametrize("seed", range(3))
def test_annotators_scales_stay_finite_for_every_penalty(tmp_path: Path, seed: int) -> None:
    """Planted scales 2, 1 and 0.2. A penalty on the head's weights alone, without a prior, is
    evaded: weights go to 0 and scales to 1e5 and more, at validation losses of 0.5 to 1000."""
    random = np.random.default_rng(seed)
    weight_D = random.normal(size=20) * 0.7
    groups, state_ND = voted(random, weight_D, (2.0, 1.0, 0.2), 200)
    held_out, test_ND = voted(random, weight_D, (2.0, 1.0, 0.2), 300)
    objective = Objective(ObjectiveSettings(annotators="scaled"), groups)
    batch = objective.batch(held_out)
    losses, described, right = [], [], []
    for found in solutions(stored(tmp_path, state_ND), groups, L2_GRID[:10], annotators="scaled"):
        reward_N = torch.from_numpy(test_ND @ weight_of(found))
        losses.append(float(objective.data_loss(reward_N, batch, found.learned)) / len(held_out))
        scales = objective.describe(found.learned)["annotators' scales"]
        described.append([scales[name] for name in "012"])
        margin_P = -np.diff(reward_N.numpy().reshape(-1, 2))[:, 0]
        right.append(np.mean((margin_P > 0) == (-np.diff(test_ND @ weight_D)[::2] > 0)))
    assert np.min(described) > 0.01 and np.max(described) < 10
    best = int(np.argmin(losses))
    assert losses[0] == pytest.approx(math.log(2), abs=0.01) and losses[best] < 0.55
    assert right[best] > 0.88
    assert min(described[best][:2]) > 3 * described[best][2]


@pytest.mark.parametrize("rated", [True, False])
def test_validation_is_a_mean_over_the_prompts_that_count(tmp_path: Path, rated: bool) -> None:
    """Rewards 0 and offset 0 against standardised ratings: over the rated prompts alone. Without a
    rating there is nothing to choose by, and the run does not begin."""

    def with_ratings(group: RenderedGroup, *ratings: float | None) -> RenderedGroup:
        pairs = zip(group.group.responses, ratings, strict=True)
        responses = tuple(replace(response, rating=rating) for response, rating in pairs)
        return replace(group, group=replace(group.group, responses=responses))

    groups = [with_ratings(g, 1.0, -1.0) for g in pair_groups(8)]
    silent = [with_ratings(g, None, None) for g in pair_groups(5, 100)]
    objective = ObjectiveSettings(kind="regression")
    model = load_tiny(tmp_path).model
    if not rated:
        with pytest.raises(PalateError, match="validation set v: none of its 5 prompts has a rat"):
            train(model, tmp_path, groups, {"v": silent}, objective)
        return
    alone = train(model, tmp_path / "a", groups, {"v": groups[:3]}, objective)
    among = train(model, tmp_path / "b", groups, {"v": [*silent, *groups[:3]]}, objective)
    losses = [[entry["eval_loss"] for entry in found.history] for found in (alone, among)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    trainer = tiny_trainer(
        model, tmp_path, groups, {"v": groups}, objective=Objective(objective, groups)
    )
    zeros = [np.zeros(2, np.float32)] * 8
    # Ratings 1 and -1 have mean 0 and deviation 1, so each error is 1.
    assert trainer._data_loss([*silent, *groups[:3]], zeros) == pytest.approx(1.0)


def test_a_feature_that_is_all_but_constant_is_not_blown_up(tmp_path: Path) -> None:
    """Its deviation counts as a hundredth of the median one; a constant feature gets no weight."""
    groups, state_ND = mixed(20)
    state_ND[:, 2] = 0.1
    state_ND[:, 5] = state_ND[:, 5] * 1e-6 + 1
    features = stored(tmp_path, state_ND)
    deviation_D = moments(features)[1]
    exact_D = state_ND.astype(float).std(axis=0)
    median = np.median(exact_D[exact_D > 0])
    assert deviation_D[[2, 5]] == pytest.approx([median / 100] * 2)
    assert deviation_D[[0, 1, 3, 4]] == pytest.approx(exact_D[[0, 1, 3, 4]])
    (found,) = solutions(features, groups, [0.1])
    assert abs(weight_of(found)[2]) < 1e-12
    assert abs(weight_of(found)[5]) < 0.01
    with pytest.raises(PalateError, match="all 2 texts have the same pooled state"):
        moments(stored(tmp_path, np.ones((2, 3))))


def test_an_optimum_that_is_not_reached_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("palate.training.linear_head.MAX_ITERATIONS", 2)
    groups, state_ND = mixed(30)
    with pytest.warns(UserWarning, match=r"head_l2 0\.001: L-BFGS stopped after 2 iterations"):
        solutions(stored(tmp_path, state_ND), groups, [1e-3])


# Features: kept under what they were computed from, and never used for anything else.


def sequences_of(groups: Sequence[RenderedGroup]) -> list[tuple[tuple[int, ...], ...]]:
    return [group.sequences for group in groups]


def cached(model: RewardModel, groups: Sequence[RenderedGroup], cache: Path) -> Features:
    folder = cache / body_key(model)
    return cached_features(model, sequences_of(groups), folder, BUDGET, tiny_renderer().pad_id)


def states(features: Features) -> np.ndarray:
    """In the order of the sequences."""
    return np.concatenate(list(features.read()))[features.distinct_N]


def forbid(model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the body was run")

    monkeypatch.setattr(model.body, "forward", refuse)
    monkeypatch.setattr(model.transformer, "forward", refuse)


def unfrozen(model: RewardModel, groups: Sequence[RenderedGroup]) -> list[np.ndarray]:
    """Rewards as evaluation computes them, from the texts."""
    return rewards_of_groups(model, sequences_of(groups), BUDGET, tiny_renderer().pad_id)


def train(
    model: RewardModel,
    cache: Path,
    groups: Sequence[RenderedGroup],
    validation: dict[str, Sequence[RenderedGroup]],
    objective: ObjectiveSettings = ObjectiveSettings(),
    **settings: Any,
) -> FrozenResult:
    return train_frozen(
        model,
        TrainingSettings(
            **{
                "method": "frozen",
                "tokens_per_microbatch": BUDGET,
                "features_cache": str(cache),
                **settings,
            }
        ),
        Objective(objective, groups),
        groups,
        validation,
        quick_metrics,
        tiny_renderer().pad_id,
    )


def kway_groups(count: int, first: int = 0) -> list[RenderedGroup]:
    return rendered(
        [ranked_group(number, 2 + number % 3) for number in range(first, first + count)]
    )


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("llama", {}),
        ("llama", {"pooling": "mean"}),
        ("llama", {"head": "mlp"}),
        ("bert", {}),
        ("bert", {"pooling": "mean", "head": "mlp"}),
    ],
    ids=str,
)
def test_cached_rewards_are_those_of_unfrozen_evaluation(
    tmp_path: Path, kind: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both layouts, on groups of training, validation and neither; then without the body."""
    monkeypatch.setattr(features_module, "SHARD_SEQUENCES", 7)
    groups, validation, test = kway_groups(24), kway_groups(8, 100), kway_groups(5, 200)
    model = load_tiny(tmp_path, kind, **body).model
    settings = {} if "head" in body else {"head_l2": 0.1}
    layouts = ("rows",) if model.layout == "rows" else LAYOUTS
    assert layouts == LAYOUTS or kind == "bert"
    for layout in layouts:
        model.layout = layout
        found = train(model, tmp_path / layout, groups, {"validation": validation}, **settings)
        for part in (groups, validation, test):
            for ours, theirs in zip(found.rewards_of(part), unfrozen(model, part), strict=True):
                assert ours.dtype == np.float32
                assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-5)
        spread = np.std(np.concatenate(found.rewards_of(groups)))
        assert spread > 0.1, "rewards that are all alike would prove nothing"
    assert len(list((tmp_path / "rows" / body_key(model)).glob("*.safetensors"))) > 5
    forbid(model, monkeypatch)
    again = train(model, tmp_path / "rows", groups, {"validation": validation}, **settings)
    assert again.history == found.history
    for part in (groups, validation, test):
        for ours, theirs in zip(again.rewards_of(part), found.rewards_of(part), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(AssertionError, match="the body was run"):
        again.rewards_of(kway_groups(1, 300))


def test_equal_sequences_are_computed_once_and_new_ones_alone(tmp_path: Path) -> None:
    model = load_tiny(tmp_path).model
    groups = pair_groups(6)
    first = cached(model, [*groups, *contrary(groups[:3])], tmp_path)
    assert (first.num_computed, len(first.distinct_N)) == (12, 18)
    more = cached(model, pair_groups(10)[::-1], tmp_path)
    assert more.num_computed == 8
    expected = np.concatenate([states(cached(model, [g], tmp_path)) for g in pair_groups(10)[::-1]])
    np.testing.assert_array_equal(states(more), expected)
    chosen = np.array([7, 0, 7, 19])
    np.testing.assert_array_equal(more.take(chosen), expected[chosen])
    mean_D, deviation_D = moments(more)
    assert mean_D == pytest.approx(expected.mean(axis=0), abs=1e-6)
    assert deviation_D == pytest.approx(expected.astype(float).std(axis=0), rel=1e-6)


def test_the_key_is_of_all_that_a_state_depends_on(tmp_path: Path) -> None:
    model = load_tiny(tmp_path).model
    key = body_key(model)
    assert body_key(load_tiny(tmp_path).model) == key
    with torch.no_grad():
        model.head.weight.add_(1.0)  # type: ignore[union-attr]
    model.layout = "rows"
    assert body_key(model) == key, "neither head nor layout changes a state"
    assert body_key(load_tiny(tmp_path, head="mlp").model) == key
    others = {
        body_key(load_tiny(tmp_path, pooling="mean").model),
        body_key(load_tiny(tmp_path, dtype="bfloat16").model),
    }
    weight = model.body.layers[0].mlp.up_proj.weight  # type: ignore[union-attr, index]
    with torch.no_grad():
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(math.inf))
    others.add(body_key(model))
    model.config.rms_norm_eps *= 2
    others.add(body_key(model))
    assert len(others - {key}) == 4


def test_the_head_of_an_encoders_class_is_not_in_its_key_but_its_pooler_is(tmp_path: Path) -> None:
    model = load_tiny(tmp_path, "bert").model
    key = body_key(model)
    with torch.no_grad():
        model.head.weight.add_(1.0)  # type: ignore[union-attr]
    assert body_key(model) == key
    with torch.no_grad():
        model.body.pooler.dense.bias.add_(1.0)  # type: ignore[union-attr]
    assert body_key(model) != key


def test_other_texts_templates_and_lengths_are_computed_anew(tmp_path: Path) -> None:
    """They change token ids, and a state is found by its token ids alone."""
    model = load_tiny(tmp_path).model
    groups = pair_groups(4)
    cached(model, groups, tmp_path)
    cut = [replace(g, sequences=tuple(ids[:-1] for ids in g.sequences)) for g in groups]
    again = cached(model, [*groups, *cut], tmp_path)
    assert again.num_computed == 8
    alone = cached(model, cut, tmp_path / "elsewhere")
    np.testing.assert_allclose(states(again)[8:], states(alone), atol=1e-6)


def test_a_damaged_shard_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut off at any of a few places; and one that was moved here from another body's folder."""
    monkeypatch.setattr(features_module, "SHARD_SEQUENCES", 8)
    model = load_tiny(tmp_path).model
    groups = pair_groups(8)
    expected = states(cached(model, groups, tmp_path))
    folder = tmp_path / body_key(model)
    shard = sorted(folder.glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    for length in (0, 5, 60, len(whole) - 4):
        shard.write_bytes(whole[:length])
        again = cached(model, groups, tmp_path)
        assert again.num_computed == 8
        assert "damaged" in caplog.text
        caplog.clear()
        np.testing.assert_allclose(states(again), expected, atol=1e-6)
    other = load_tiny(tmp_path, pooling="mean").model
    elsewhere = tmp_path / body_key(other)
    shutil.copytree(folder, elsewhere)
    assert cached(other, groups, tmp_path).num_computed == 16
    assert "another body" in caplog.text


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "SHARD_SEQUENCES", 4)
    model = load_tiny(tmp_path).model
    groups = pair_groups(10)
    expected = states(cached(model, groups, tmp_path / "whole"))
    run, calls = model.run, 0

    def killed(plan: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return run(plan)

    with monkeypatch.context() as patch:
        patch.setattr(model, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            cached(model, groups, tmp_path)
    again = cached(model, groups, tmp_path)
    assert 0 < again.num_computed < 20
    np.testing.assert_allclose(states(again), expected, atol=1e-6)


def test_states_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = load_tiny(tmp_path).model
    with torch.no_grad():
        model.body.norm.weight.fill_(math.inf)  # type: ignore[union-attr]
    with pytest.raises(PalateError, match=r"not finite in torch\.float32"):
        cached(model, pair_groups(2), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors.*"))
    assert not list((tmp_path / body_key(model)).glob("*.safetensors"))


def test_the_cache_is_where_the_xdg_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_directory() == tmp_path / "palate/features"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_cache_directory() == Path.home() / ".cache/palate/features"


# The run: the validation loss chooses, and what has no effect is refused.


def test_the_penalty_with_the_least_validation_loss_is_taken(tmp_path: Path) -> None:
    groups, validation = pair_groups(40), pair_groups(20, 100)
    model = load_tiny(tmp_path).model
    found = train(model, tmp_path, groups, {"validation": validation, "other": groups[:5]})
    losses = [entry["eval_loss"] for entry in found.history]
    assert len(losses) > 3
    best = int(np.argmin(losses))
    assert found.chosen.about == {"l2": pytest.approx(L2_GRID[best])}
    assert found.best == f"l2 {L2_GRID[best]:g}"
    after = quick_metrics(validation, unfrozen(model, validation))
    entry = found.history[best]
    assert after["loss"] == pytest.approx(losses[best], abs=1e-6)
    assert entry["eval_accuracy"] == entry["eval_validation_accuracy"] == after["accuracy"] > 0.9
    assert entry["eval_other_loss"] == pytest.approx(
        quick_metrics(groups[:5], unfrozen(model, groups[:5]))["loss"], abs=1e-6
    )
    steps = [entry["step"] for entry in found.history]
    assert steps == sorted(steps) and steps[-1] == found.num_steps
    alone = train(model, tmp_path, groups, {}, head_l2=L2_GRID[best])
    assert alone.chosen.loss == pytest.approx(found.chosen.loss, abs=1e-9)
    for ours, theirs in zip(alone.rewards_of(groups), found.rewards_of(groups), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-5)


def test_features_without_a_signal_are_told(tmp_path: Path) -> None:
    """Validation labels are the opposite of the training labels: no head is better than any."""
    model = load_tiny(tmp_path).model
    groups = pair_groups(30)
    with pytest.warns(UserWarning, match="say next to nothing"):
        found = train(model, tmp_path, groups, {"validation": contrary(pair_groups(20, 100))})
    assert found.chosen.about == {"l2": L2_GRID[0]}


def test_what_the_objective_learns_goes_with_the_head(tmp_path: Path) -> None:
    """Every fourth pair is tied, so the width is finite and P(tie) neither 0 nor 1."""
    groups = [
        replace(group, comparisons=(Comparison(0, 1, tie=float(number % 4 == 0)),))
        for number, group in enumerate(pair_groups(40))
    ]
    model = load_tiny(tmp_path).model
    settings = ObjectiveSettings(kind="davidson")
    found = train(model, tmp_path, groups[:30], {"validation": groups[30:]}, settings)
    (width,) = model.learned.values()
    assert width.item() == pytest.approx(found.chosen.learned["tie_log_width"].item(), rel=1e-6)
    learned = {name: value.detach() for name, value in model.learned.items()}
    described = Objective(settings, groups).describe(learned)
    assert 0.1 < described["probability of a tie at equal rewards"] < 0.9


def noisy(groups: Sequence[RenderedGroup]) -> list[RenderedGroup]:
    """Every fifth pair is the wrong way round."""
    return [contrary([g])[0] if number % 5 == 4 else g for number, g in enumerate(groups)]


@pytest.mark.parametrize(
    ("body", "objective"), [({"head": "mlp"}, {}), ({}, {"kind": "hinge"})], ids=str
)
def test_steps_learn_and_repeat(
    tmp_path: Path, body: dict[str, Any], objective: dict[str, Any]
) -> None:
    groups, validation = noisy(pair_groups(40)), noisy(pair_groups(20, 100))

    def trained(seed: int) -> FrozenResult:
        return train(
            load_tiny(tmp_path, **body).model,
            tmp_path,
            groups,
            {"validation": validation},
            ObjectiveSettings(**objective),
            seed=seed,
            early_stopping_patience=3,
            prompts_per_step=8,
            learning_rate=3e-3,
        )

    found, again, other = trained(1), trained(1), trained(2)
    assert found.history == again.history != other.history
    losses = [entry["eval_loss"] for entry in found.history]
    best = int(np.argmin(losses))
    assert found.chosen.about == {"epoch": best + 1} and len(losses) == best + 1 + 3
    assert found.history[best]["step"] == 5 * (best + 1)
    assert found.history[best]["eval_accuracy"] == 0.8


def test_an_mlp_learns_what_no_linear_head_can(tmp_path: Path) -> None:
    """The reward is the product of two features' signs: on its differences any linear rule is right
    half the time. The features' means and units are far from 0 and 1."""
    random = np.random.default_rng(0)
    sign_ND = random.choice([-1.0, 1.0], size=(400, 2))
    first, second = (sign_ND[::2].prod(axis=1), sign_ND[1::2].prod(axis=1))
    kept = np.flatnonzero(first != second)
    state_ND = (sign_ND * [100, 0.5] + [1000, 3]).reshape(200, 2, 2)[kept].reshape(-1, 2)
    groups = [
        bare_group(n, [Comparison(0, 1) if first[i] > 0 else Comparison(1, 0)])
        for n, i in enumerate(kept)
    ]
    objective = Objective(ObjectiveSettings(), groups)
    features = stored(tmp_path, state_ND, shards=3)
    losses: list[float] = []
    candidates: list[Candidate] = []

    def judge(candidate: Candidate) -> bool:
        candidates.append(candidate)
        losses.append(candidate.loss)
        return losses[-1] == min(losses) and losses[-1] > 0.05

    settings = TrainingSettings(method="frozen", learning_rate=0.03, early_stopping_patience=2)
    torch.manual_seed(0)
    train_steps(MlpHead(2, 16), features, groups, objective, settings, judge)
    assert losses[-1] < 0.1
    (linear,) = solutions(features, groups, [1e-3])
    assert linear.loss > 0.65


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_run_ends_in_a_checkpoint_that_loads_to_the_same_rewards(
    tmp_path: Path, head: Any
) -> None:
    """A second run elsewhere finds its features and gives the same metrics."""

    def run(output: str) -> TrainResult:
        return palate.train(
            quick_config(
                tmp_path,
                output,
                body=BodySettings(head=head),
                training=TrainingSettings(
                    method="frozen", features_cache=str(tmp_path / "features")
                ),
            )
        )

    first = run("first")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").rglob("*.*")}
    again = run("again")
    assert as_json(first.metrics) == as_json(again.metrics)
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "features").rglob("*.*")}
    log = json.loads((tmp_path / "first" / "metrics.json").read_text())["log"]
    assert min(entry["eval_loss"] for entry in log) < math.log(2)
    assert first.scorer is not None and again.scorer is not None
    texts = [("question 1", "yes aaa"), ("question 2", "no bb")]
    rewards = [first.scorer.score(*text) for text in texts]
    assert rewards == [again.scorer.score(*text) for text in texts]
    loaded = palate.load(tmp_path / "first")
    assert [loaded.score(*text) for text in texts] == pytest.approx(rewards, abs=1e-5)
    assert rewards[0] != rewards[1]


@pytest.mark.parametrize(
    ("body", "settings", "message"),
    [
        ({"pooling": "attention"}, {}, "attention can't be trained with training.method frozen"),
        ({}, {"epochs": 3}, "training.epochs 3 has no effect .* L-BFGS; it heeds .*head_l2"),
        ({}, {"learning_rate": 1e-3}, "training.learning_rate 0.001 has no effect"),
        ({"head": "mlp"}, {"head_l2": 0.1}, "training.head_l2 0.1 has no effect .* AdamW"),
        ({"head": "mlp"}, {"precision": "bfloat16"}, "training.precision bfloat16 has no effect"),
    ],
    ids=str,
)
def test_what_has_no_effect_is_refused(
    tmp_path: Path, body: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    groups = pair_groups(4)
    with pytest.raises(PalateError, match=message):
        train(load_tiny(tmp_path, **body).model, tmp_path, groups, {"v": groups}, **settings)


@pytest.mark.parametrize(
    ("settings", "body", "by"),
    [
        ({"learning_rate": 0.1}, {}, "L-BFGS;"),
        ({"report_to": ("tensorboard",)}, {}, "L-BFGS or AdamW"),
        ({"schedule": "cosine"}, {"head": "mlp"}, "AdamW"),
    ],
    ids=str,
)
def test_what_has_no_effect_is_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, Any], body: dict[str, Any], by: str
) -> None:
    """In a dry run as in a run, and where the configuration decides in it alone."""

    def config() -> TrainConfig:
        training = TrainingSettings(method="frozen", **settings)
        return quick_config(tmp_path, training=training, body=BodySettings(**body))

    message = f"training.{next(iter(settings))} .* has no effect .* trained by {by}"
    if "learning_rate" not in settings:
        with pytest.raises(PalateError, match=message):
            config()
    for dry_run in (True, False):
        with pytest.raises(PalateError, match=message):
            palate.train(config(), dry_run=dry_run)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("body", "kind", "setting"),
    [
        ({"head": "linear"}, "bradley-terry", {"learning_rate": 0.1}),
        ({}, "hinge", {"head_l2": 0.1}),
        ({"head": "mlp"}, "bradley-terry", {"head_l2": 0.1}),
    ],
    ids=str,
)
def test_a_configuration_that_names_its_head_is_refused_by_itself(
    body: dict[str, Any], kind: Any, setting: dict[str, Any]
) -> None:
    training = TrainingSettings(method="frozen", **setting)
    with pytest.raises(PalateError, match=f"training.{next(iter(setting))} 0.1 has no effect"):
        TrainConfig(
            model="m",
            data="d",
            body=BodySettings(**body),
            objective=ObjectiveSettings(kind=kind),
            training=training,
        )


def test_dropout_is_refused() -> None:
    frozen = TrainingSettings(method="frozen")
    with pytest.raises(PalateError, match=r"body.dropout has no effect with training.method froz"):
        TrainConfig(model="m", data="d", body=BodySettings(dropout=True), training=frozen)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_new_head_may_have_another_form_than_the_checkpoints(tmp_path: Path, kind: str) -> None:
    """From the class's own head to mlp on mean, to a linear head on mean, back to the class's
    pooling where it is causal; any other method keeps to the head that is there."""

    def config(model: str, output: str, method: Any = "frozen", **body: Any) -> TrainConfig:
        cache = str(tmp_path / "features") if method == "frozen" else ""
        training = TrainingSettings(method=method, features_cache=cache)
        return quick_config(
            tmp_path,
            output,
            **{**tiny_run(tmp_path, kind=kind), "model": model},
            body=BodySettings(**body),
            training=training,
        )

    bodies = [{}, {"pooling": "mean", "head": "mlp"}, {"head": "linear"}]
    bodies += [{"pooling": "last"}] if kind == "llama" else []
    model = str(tmp_path / f"body-{kind}")
    for number, body in enumerate(bodies):
        palate.train(config(model, f"run{number}", **body))
        if number:
            with pytest.raises(PalateError, match=r"new one with training\.method frozen"):
                open_model(config(model, "other", "full", **body))
        model = str(tmp_path / f"run{number}")
        loaded = palate.load(model).model
        own = "last" if kind == "llama" else "cls"
        assert loaded.pooling == (own, "mean", "mean", "last")[number]
        assert isinstance(loaded.head, MlpHead) == (number == 1)


def test_nothing_to_choose_by_and_several_processes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = pair_groups(4)
    with pytest.raises(PalateError, match=r"validation_share above 0, or set training.head_l2"):
        train(load_tiny(tmp_path).model, tmp_path, groups, {})
    with pytest.raises(PalateError, match=r"the epoch to stop at .*validation_share above 0$"):
        train(load_tiny(tmp_path, head="mlp").model, tmp_path, groups, {})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PalateError, match="one process, not 2"):
        train(load_tiny(tmp_path).model, tmp_path, groups, {"v": groups})


@pytest.mark.parametrize(("name", "value"), [("head_l2", 0.1), ("features_cache", "here")])
def test_settings_of_the_frozen_method_belong_to_it(name: str, value: Any) -> None:
    with pytest.raises(PalateError, match=f"training.{name} {value} has no effect"):
        TrainingSettings(**{name: value})

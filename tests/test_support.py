"""Support distance and the head's posterior: the numbers, what they are good for, their storage."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy.spatial.distance import mahalanobis
from scipy.special import expit
from sklearn.covariance import LedoitWolf
from transformers import AutoModelForSequenceClassification

import palate
from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.evaluation.head_posterior import head_posterior
from palate.evaluation.support import fit_trust
from palate.model.checkpoint import SIDECAR, read_sidecar, write_sidecar
from palate.model.heads import MlpHead
from palate.model.support import TRUST_FILE, Trust, probability_with_variance, write_trust
from palate.preferences import Comparison
from palate.rendering import RenderedGroup, render_groups
from palate.scoring.scorer import Scorer, scoring_item
from palate.statistics.comparison_model import fit_comparison_model
from palate.statistics.intervals import cluster_difference
from palate.statistics.moments import Moments
from tests.table_model import TableScorer, table_group, table_pairs

ANSWERS = ["It is amber.", "No birch!", "It is.", "A much longer answer about nothing at all."]


def correlated(seed: int, num: int, width: int) -> np.ndarray:
    """Normal vectors with a covariance of unequal eigenvalues and a mean away from 0."""
    dice = np.random.default_rng(seed)
    mixing = dice.normal(size=(width, width)) / width**0.5
    values: np.ndarray = dice.normal(size=(num, width)) @ mixing + 3.0
    return values


def fitted(table_ND: np.ndarray, num_fit: int, head: np.ndarray | None = None) -> Trust:
    """Trust on the first rows of the table, with the others held out."""
    head = np.ones(table_ND.shape[1]) if head is None else head
    scorer = TableScorer(table_ND, head)
    return fit_trust(scorer, table_pairs(0, num_fit), table_pairs(num_fit, len(table_ND)))


# --- the numbers


@pytest.mark.parametrize(("num", "width"), [(400, 5), (30, 20), (12, 40), (50, 1)])
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_the_shrunk_covariance_is_scikit_learns_in_any_blocks(
    num: int, width: int, block: int
) -> None:
    value_ND = correlated(num, num, width) + 100
    moments = Moments()
    for start in range(0, num, block):
        moments.add(value_ND[start : start + block])
    expected = LedoitWolf().fit(value_ND)
    covariance_DD, shrinkage = moments.shrunk()
    np.testing.assert_allclose(moments.mean_D, value_ND.mean(axis=0), rtol=1e-12)
    assert shrinkage == pytest.approx(expected.shrinkage_, abs=1e-8)
    np.testing.assert_allclose(covariance_DD, expected.covariance_, rtol=1e-7, atol=1e-9)


def test_distances_are_scipys_mahalanobis_under_that_covariance() -> None:
    table_ND = correlated(1, 300, 6).astype(np.float32)
    trust = fitted(table_ND, 200)
    precision_DD = np.linalg.inv(LedoitWolf().fit(table_ND[:200].astype(float)).covariance_)
    mean_D = table_ND[:200].mean(axis=0, dtype=float)
    expected = [mahalanobis(row, mean_D, precision_DD) for row in table_ND]
    np.testing.assert_allclose(trust.distances(table_ND), expected, rtol=1e-9)
    assert trust.facts.num_answers == 200 and trust.facts.num_reference_answers == 100


def test_quantiles_leave_their_share_of_the_reference_beyond() -> None:
    """Of 99 ordered values the 0.95 quantile is number ceil(100 * 0.95) = 95, so that 4 lie beyond,
    the 0.99 quantile number 99, and the median number 50: a new answer of the same kind lies beyond
    with probability 1 - q. 99 answers need an odd group."""
    table_ND = correlated(2, 299, 4)
    held_out = [*table_pairs(200, 296), table_group("three", (296, 297, 298))]
    trust = fit_trust(TableScorer(table_ND, np.ones(4)), table_pairs(0, 200), held_out)
    ordered = np.sort(trust.distances(table_ND.astype(np.float32)[200:]))
    for level, place in ((0.5, 50), (0.9, 90), (0.95, 95), (0.99, 99)):
        assert trust.facts.distance.quantile(level) == pytest.approx(ordered[place - 1], rel=1e-12)
    q95 = trust.facts.distance.quantile(0.95)
    assert trust.beyond(np.nextafter(q95, 99)) == 0.95
    assert trust.beyond(q95) == 0.9
    assert trust.beyond(0.0) == 0.0


@pytest.mark.parametrize("held_out", [True, False])
def test_quantiles_are_not_those_of_the_answers_behind_the_covariance(held_out: bool) -> None:
    """120 normal answers of width 60: their own distances are at most sqrt(n) and crowd below those
    of new ones. Of new answers about 5 % must lie beyond the 0.95 quantile; beyond that of the
    fitted answers themselves lie far more."""
    dice = np.random.default_rng(0)
    table_ND = dice.normal(size=(8000, 60)) * np.geomspace(0.1, 10, 60)
    num_fit = 120 if held_out else 160
    scorer = TableScorer(table_ND, np.ones(60))
    trust = fit_trust(scorer, table_pairs(0, num_fit), table_pairs(2000, 4000) if held_out else ())
    assert trust.facts.reference.startswith("held-out" if held_out else "training answers left out")
    fresh_N = trust.distances(table_ND[4000:])
    beyond = (fresh_N > trust.facts.distance.quantile(0.95)).mean()
    assert beyond == pytest.approx(0.05, abs=0.015 if held_out else 0.1)
    if held_out:
        naive = np.quantile(trust.distances(table_ND[:num_fit]), 0.95)
        assert (fresh_N > naive).mean() > 0.3


def dense_posterior(
    table_ND: np.ndarray,
    groups: list[RenderedGroup],
    head_D: np.ndarray,
    temperature: float,
    precision: float,
) -> np.ndarray:
    inverse_DD = precision * np.eye(len(head_D))
    for group in groups:
        for c in group.comparisons:
            f_D = table_ND[group.sequences[c.better][0]] - table_ND[group.sequences[c.worse][0]]
            p = 1 / (1 + np.exp(-(f_D @ head_D) / temperature))
            weight = c.weight / len(group.comparisons) / temperature**2
            inverse_DD += weight * p * (1 - p) * np.outer(f_D, f_D)
    covariance: np.ndarray = np.linalg.inv(inverse_DD)
    return covariance


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_posterior_is_the_dense_closed_form(temperature: float) -> None:
    dice = np.random.default_rng(3)
    table_ND = dice.normal(size=(240, 5)).astype(np.float32).astype(float)
    head_D = dice.normal(size=5).astype(np.float32).astype(float)
    three = (Comparison(0, 1), Comparison(0, 2, 0.8, weight=0.5), Comparison(2, 1, 0.5, tie=0.3))
    groups = [table_group(f"prompt {i}", (i, i + 1, i + 2), three) for i in range(0, 180, 3)]
    scorer = TableScorer(table_ND, head_D, temperature)
    trust = fit_trust(scorer, groups, table_pairs(180, 240))
    assert trust.facts.posterior is not None and not trust.facts.posterior.at_bound
    precision = trust.facts.posterior.prior_precision
    expected_DD = dense_posterior(table_ND, groups, head_D, temperature, precision)
    assert trust.posterior_DD is not None
    np.testing.assert_allclose(trust.posterior_DD @ trust.posterior_DD.T, expected_DD, rtol=1e-5)
    f_PD = dice.normal(size=(7, 5))
    expected_P = [f_D @ expected_DD @ f_D for f_D in f_PD]
    np.testing.assert_allclose(trust.variances(f_PD), expected_P, rtol=1e-5)


def test_the_prior_has_the_highest_marginal_likelihood() -> None:
    dice = np.random.default_rng(4)
    rows = dice.normal(size=(60, 8)) * np.geomspace(0.1, 3, 8)
    hessian_DD, weight_D = rows.T @ rows, dice.normal(size=8)

    def evidence(precision: float) -> float:
        _, log_determinant = np.linalg.slogdet(precision * np.eye(8) + hessian_DD)
        return float(
            4 * np.log(precision) - precision * weight_D @ weight_D / 2 - log_determinant / 2
        )

    _, found, at_bound = head_posterior(hessian_DD, weight_D)
    assert not at_bound
    assert evidence(found) > max(evidence(found * 1.02), evidence(found / 1.02))


def test_a_large_training_set_is_read_in_part_and_counts_in_full() -> None:
    """With half of the prompts read, sum w p (1 - p) f f' is doubled: the variance is about that of
    the whole set, where without it would be about twice as large."""
    dice = np.random.default_rng(5)
    scorer = TableScorer(dice.normal(size=(8200, 4)), np.ones(4))
    groups, held_out = table_pairs(0, 8000), table_pairs(8000, 8200)
    whole = fit_trust(scorer, groups, held_out)
    half = fit_trust(scorer, groups, held_out, max_answers=4000)
    assert (half.facts.num_answers, whole.facts.num_answers) == (4000, 8000)
    assert half.facts.posterior is not None
    assert half.facts.posterior.num_prompts == 4000
    assert half.facts.posterior.num_prompts_read == 2000
    f_PD = np.eye(4)
    np.testing.assert_allclose(half.variances(f_PD), whole.variances(f_PD), rtol=0.15)
    turned = fit_trust(scorer, groups[::-1], held_out, max_answers=4000)
    np.testing.assert_allclose(turned.distances(f_PD), half.distances(f_PD), rtol=1e-9)


def test_true_margins_scatter_as_the_posterior_says() -> None:
    """Heads from N(0, I), labels by Bradley-Terry, the head fitted by its MAP: (true margin -
    margin) / its standard deviation must have a standard deviation near 1, in directions with much
    and with little data alike."""
    scores: list[np.ndarray] = []
    for seed in range(12):
        dice = np.random.default_rng(seed)
        scale_D = np.geomspace(0.05, 2, 8)
        table_ND = dice.normal(size=(900, 8)) * scale_D
        truth_D = dice.normal(size=8)
        rows = [
            (i, i + 1)
            if dice.random() < expit((table_ND[i] - table_ND[i + 1]) @ truth_D)
            else (i + 1, i)
            for i in range(0, 800, 2)
        ]
        difference_CD = np.array([table_ND[a] - table_ND[b] for a, b in rows])
        head_D = fit_comparison_model(difference_CD, l2=1.0)
        groups = [table_group(f"prompt {a}", pair) for a, pair in enumerate(rows)]
        trust = fit_trust(TableScorer(table_ND, head_D), groups, table_pairs(800, 900))
        f_PD = dice.normal(size=(40, 8))
        scores.append((f_PD @ (truth_D - head_D)) / np.sqrt(trust.variances(f_PD)))
    assert 0.75 < np.concatenate(scores).std() < 1.3


def test_the_probability_is_the_mean_over_the_posterior() -> None:
    """Margin 2 with variance 24 / pi: s(2 / sqrt(1 + 3)) = s(1). With temperature 2 and margin and
    deviation twice as large it is the same. Against the integral it errs by 0.012 or less."""
    assert probability_with_variance(2, 24 / np.pi, 1) == pytest.approx(expit(1), abs=1e-12)
    assert probability_with_variance(4, 96 / np.pi, 2) == pytest.approx(expit(1), abs=1e-12)
    assert probability_with_variance(1.5, 0, 1) == pytest.approx(expit(1.5), abs=1e-12)
    point, weight = np.polynomial.hermite_e.hermegauss(60)
    for margin in (-3.0, 0.0, 0.7, 5.0):
        for variance in (0.1, 2.0, 9.0):
            mean = weight @ expit(margin + np.sqrt(variance) * point) / weight.sum()
            assert probability_with_variance(margin, variance, 1) == pytest.approx(mean, abs=0.012)


# --- what is refused


def test_a_head_that_is_not_linear_has_distances_and_no_posterior() -> None:
    dice = np.random.default_rng(6)
    scorer = TableScorer(dice.normal(size=(100, 4)), MlpHead(4, 3))
    trust = scorer.trust = fit_trust(scorer, table_pairs(0, 70), table_pairs(70, 100))
    assert scorer.score_with_support("prompt", "3").support_distance > 0
    with pytest.raises(PalateError, match="MLP head"):
        scorer.compare_with_uncertainty("prompt", "3", "4")
    with pytest.raises(PalateError, match="beta must be given"):
        trust.pessimistic(np.zeros(1), np.ones(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table[:30], "6 answers to take quantiles from are too few"),
        (
            lambda table: np.where(np.arange(100)[:, None] == 17, np.nan, table),
            "table:17: response",
        ),
        (np.ones_like, "do not differ"),
    ],
)
def test_bad_states_are_refused_by_name(
    change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    table_ND = change(np.random.default_rng(7).normal(size=(100, 4)))
    groups = table_pairs(0, 24), table_pairs(24, len(table_ND))
    with pytest.raises(PalateError, match=message):
        fit_trust(TableScorer(table_ND, np.ones(4)), *groups)


def test_an_untrained_head_has_no_posterior() -> None:
    table_ND = np.random.default_rng(8).normal(size=(100, 4))
    trust = fitted(table_ND, 60, np.zeros(4))
    with pytest.raises(PalateError, match="has not been trained"):
        trust.variances(table_ND[:1])


# --- what it is good for


class World:
    """24 features, training answers within [-1, 1] in each; utility 2 x.u - cost * sum of max(0,
    |x| - 1)^2: beyond the training's support it turns, which no training comparison shows. A linear
    reward is fitted on 1,000 Bradley-Terry comparisons. The policy writes answers of various
    boldness, 23 % of them beyond the 0.95 quantile (`scale` 0.6)."""

    def __init__(self, seed: int, cost: float, scale: float = 0.6) -> None:
        dice = np.random.default_rng(seed)
        direction_D = dice.normal(size=24)
        self.direction_D, self.cost = direction_D / np.linalg.norm(direction_D), cost
        table_ND = np.clip(dice.normal(size=(3000, 24)), -1, 1)
        utility_N = self.utility(table_ND)
        first_wins = dice.random(1000) < expit(utility_N[:2000:2] - utility_N[1:2000:2])
        rows = [
            (2 * i, 2 * i + 1) if wins else (2 * i + 1, 2 * i) for i, wins in enumerate(first_wins)
        ]
        difference_CD = np.array([table_ND[a] - table_ND[b] for a, b in rows])
        self.head_D = fit_comparison_model(difference_CD)
        groups = [table_group(f"prompt {i}", pair) for i, pair in enumerate(rows)]
        held_out = table_pairs(2000, 3000)
        self.trust = fit_trust(TableScorer(table_ND, self.head_D), groups, held_out)
        boldness = scale * np.exp(dice.normal(scale=0.4, size=(60, 256, 1)))
        self.candidate = dice.normal(size=(60, 256, 24)) * boldness

    def utility(self, x: np.ndarray) -> np.ndarray:
        excess = np.maximum(np.abs(x) - 1, 0)
        found: np.ndarray = 2 * (x @ self.direction_D) - self.cost * np.square(excess).sum(axis=-1)
        return found

    def best_of(self, num: int, pessimistic: bool) -> np.ndarray:
        """True utility of the pick among the first `num` candidates of each of 60 prompts."""
        pool = self.candidate[:, :num]
        reward = pool @ self.head_D
        if pessimistic:
            distance = self.trust.distances(pool.reshape(-1, 24)).reshape(reward.shape)
            reward = self.trust.pessimistic(reward, distance)
        return self.utility(pool[np.arange(60), reward.argmax(axis=1)])


def test_pessimistic_best_of_n_beats_the_plain_one_where_utility_turns() -> None:
    """Plain best of 256 is worse than best of 16: over-optimised. The pessimistic one goes on
    rising, and its gain over plain, the table of docs/trust.md, is sure (interval over 10 worlds)
    from 4 on."""
    worlds = [World(seed, cost=0.3) for seed in range(10)]
    clusters = [str(seed) for seed in range(10) for _ in range(60)]
    plain, careful = (
        {n: np.concatenate([w.best_of(n, pessimistic) for w in worlds]) for n in (4, 16, 64, 256)}
        for pessimistic in (False, True)
    )
    assert cluster_difference(plain[256], plain[16], clusters).high < 0
    assert cluster_difference(careful[256], careful[64], clusters).low > 0
    for num, expected in ((4, 0.16), (16, 0.57), (64, 1.26), (256, 2.92)):
        gain = cluster_difference(careful[num], plain[num], clusters)
        assert gain.value == pytest.approx(expected, abs=0.02), f"best of {num}: {gain}"
        assert gain.low > expected / 2, f"best of {num}: {gain}"


def test_pessimism_costs_where_utility_does_not_turn_and_nothing_within_support() -> None:
    """What it can't see: far answers that are good. With cost 0 more is better without end, and
    plain best of 256 wins; where the policy stays near the data (`scale` 0.25) both pick alike."""
    gone = [World(seed, cost=0.0) for seed in range(3)]
    assert np.mean([w.best_of(256, True).mean() for w in gone]) < np.mean(
        [w.best_of(256, False).mean() for w in gone]
    )
    near = World(0, cost=0.3, scale=0.25)
    assert near.best_of(256, True).mean() == pytest.approx(near.best_of(256, False).mean(), abs=0.1)


def test_no_direction_out_of_the_data_raises_a_pessimistic_reward() -> None:
    """r - slope * max(0, d - q) <= r(mean) + slope * q for every state, with equality beyond q
    along C w, where the reward rises fastest by distance."""
    table_ND = correlated(9, 400, 6)
    head_D = np.random.default_rng(9).normal(size=6).astype(np.float32).astype(float)
    trust = fitted(table_ND, 300, head_D)
    slope, q = trust.facts.reward_per_distance, trust.facts.distance.quantile(0.95)
    assert slope is not None
    bound = trust.mean_D @ head_D + slope * q
    covariance_DD = np.linalg.inv(trust.whitening_DD @ trust.whitening_DD.T)
    steepest_D = covariance_DD @ head_D
    far_ND = trust.mean_D + np.geomspace(10, 1e4, 5)[:, None] * steepest_D
    wild_ND = table_ND * np.random.default_rng(1).normal(scale=30, size=table_ND.shape)
    for state_ND in (far_ND, wild_ND):
        lowered_N = trust.pessimistic(state_ND @ head_D, trust.distances(state_ND))
        assert (lowered_N <= bound + 1e-6 * (1 + np.abs(state_ND @ head_D))).all()
    np.testing.assert_allclose(
        trust.pessimistic(far_ND @ head_D, trust.distances(far_ND)), bound, rtol=1e-6
    )
    with pytest.raises(PalateError, match=r"level is 0\.8"):
        trust.pessimistic(np.zeros(1), np.zeros(1), level=0.8)


# --- a real model, its storage and its scorer


@pytest.fixture(scope="module")
def groups(trained_run: Path) -> list[RenderedGroup]:
    reading = palate.preferences.read(str(trained_run.parent / "preferences.jsonl"))
    return render_groups(reading.groups, palate.load(trained_run).renderer, Ledger())


@pytest.fixture(scope="module")
def trusted_run(
    trained_run: Path, groups: list[RenderedGroup], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A copy of the run with trust stored in it."""
    run = tmp_path_factory.mktemp("trusted") / "run"
    shutil.copytree(trained_run, run)
    trust = fit_trust(palate.load(run), groups[:25], groups[25:])
    write_trust(run / "model", trust)
    return run


@pytest.fixture
def copied(trusted_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trusted_run, tmp_path / "run"))


def test_without_it_ranks_have_none_and_requests_say_so(trained_run: Path) -> None:
    scorer = palate.load(trained_run)
    scorer.trust = None  # training fits it
    assert [ranked.support_distance for ranked in scorer.rank("Hi", ANSWERS)] == [None] * 4
    with pytest.raises(PalateError, match="none was fitted"):
        scorer.score_with_support("Hi", ANSWERS[0])
    with pytest.raises(PalateError, match="none was fitted"):
        scorer.compare_with_uncertainty("Hi", ANSWERS[0], ANSWERS[1])


def test_what_is_stored_comes_back_and_the_model_stays_a_plain_one(
    trained_run: Path, trusted_run: Path, groups: list[RenderedGroup]
) -> None:
    scorer, before = palate.load(trusted_run), palate.load(trained_run)
    fresh = fit_trust(before, groups[:25], groups[25:])
    assert scorer.trust is not None
    assert scorer.trust.facts == fresh.facts
    state_ND = np.random.default_rng(0).normal(size=(5, 32))
    stored = scorer.trust
    np.testing.assert_allclose(stored.distances(state_ND), fresh.distances(state_ND), rtol=1e-4)
    np.testing.assert_allclose(stored.variances(state_ND), fresh.variances(state_ND), rtol=1e-4)
    items = [scoring_item("Hi", answer) for answer in ANSWERS]
    assert scorer.score_items(items) == before.score_items(items)
    plain = AutoModelForSequenceClassification.from_pretrained(trusted_run / "model")
    ids = torch.tensor([scorer.render(items[0])[0]])
    assert plain(ids).logits.item() == pytest.approx(scorer.score_items(items)[0], abs=1e-5)
    # Servers read each of these files as weights.
    assert [path.name for path in (trusted_run / "model").glob("*.safetensors")] == [
        "model.safetensors"
    ]


def test_score_rank_and_compare_agree(trusted_run: Path) -> None:
    scorer = palate.load(trusted_run)
    alone = [scorer.score_with_support("Hi", answer) for answer in ANSWERS]
    for ranked in scorer.rank("Hi", ANSWERS):
        assert ranked.reward == pytest.approx(alone[ranked.index].reward, abs=1e-5)
        assert ranked.support_distance == pytest.approx(
            alone[ranked.index].support_distance, rel=1e-3
        )
    for answer, supported in zip(ANSWERS, alone, strict=True):
        assert supported.reward == pytest.approx(scorer.score("Hi", answer), abs=1e-5)
    first = scorer.compare_with_uncertainty("Hi", ANSWERS[0], ANSWERS[1])
    turned = scorer.compare_with_uncertainty("Hi", ANSWERS[1], ANSWERS[0])
    plain = scorer.compare("Hi", ANSWERS[0], ANSWERS[1])
    assert first.margin == pytest.approx(alone[0].reward - alone[1].reward, abs=1e-5)
    assert first.margin_std == turned.margin_std > 0
    assert first.probability == pytest.approx(1 - turned.probability, abs=1e-9)
    assert 0 < abs(first.probability - 0.5) < abs(plain - 0.5)
    assert first.support_distances == turned.support_distances[::-1]
    same = scorer.compare_with_uncertainty("Hi", ANSWERS[0], ANSWERS[0])
    assert (same.margin, same.margin_std, same.probability) == (0.0, 0.0, 0.5)


@pytest.mark.parametrize("budget", [1, 60, 10**6])
def test_neighbours_and_token_budget_change_no_distance(trusted_run: Path, budget: int) -> None:
    scorer = palate.load(trusted_run, tokens_per_microbatch=budget)
    items = [scoring_item(prompt, a) for prompt in ("Hi", "Name a tree. " * 9) for a in ANSWERS]
    reference = palate.load(trusted_run)
    alone = [reference.score_items_with_support([item])[0] for item in items]
    for order in (range(8), reversed(range(8))):
        chosen = list(order)
        together = scorer.score_items_with_support([items[index] for index in chosen])
        for index, found in zip(chosen, together, strict=True):
            assert found.support_distance == pytest.approx(alone[index].support_distance, rel=1e-3)
            assert found.reward == pytest.approx(alone[index].reward, abs=1e-5)


def test_other_texts_lie_farther_than_held_out_ones(trusted_run: Path) -> None:
    scorer = palate.load(trusted_run)
    assert scorer.trust is not None
    odd = scorer.score_with_support("%%%% 99 @@", "}{}{ <<<<<< 0101010101 >>>>>")
    assert odd.beyond == 0.99
    question = "Question 3: which of the words in this list stands for delta?"
    assert scorer.score_with_support(question, "It is delta.").beyond < 0.99


def other_weights(run: Path) -> None:
    """The sidecar follows the weights, and trust is left as it was: as after further training by
    other means."""
    model = run / "model"
    tensors = load_file(model / "model.safetensors")
    tensors = {name: array * np.float32(1.01) for name, array in tensors.items()}
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    sidecar = read_sidecar(model)
    assert sidecar is not None
    from palate.model.checkpoint import weights_hash

    fingerprint = {**sidecar.fingerprint, "weights": weights_hash(model)}
    write_sidecar(model, replace(sidecar, fingerprint=fingerprint, reference_scores=()))


def other_file(run: Path) -> None:
    tensors = load_file(run / "model" / TRUST_FILE)
    save_file({**tensors, "mean_D": tensors["mean_D"] + 1}, run / "model" / TRUST_FILE)


def without_file(run: Path) -> None:
    (run / "model" / TRUST_FILE).unlink()


def without_field(run: Path) -> None:
    path = run / "model" / SIDECAR
    values: dict[str, Any] = json.loads(path.read_text())
    del values["trust"]["distance"]
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (other_weights, "fitted with other weights"),
        (other_file, "not the file that"),
        (without_file, "no such file"),
        (without_field, "damaged"),
    ],
)
def test_stale_and_damaged_values_are_refused(
    copied: Path, harm: Callable[[Path], None], message: str
) -> None:
    harm(copied)
    with pytest.raises(PalateError, match=message):
        palate.load(copied)


def test_trust_of_one_model_is_not_written_to_another(copied: Path) -> None:
    trust = palate.load(copied).trust
    assert trust is not None
    other_weights(copied)
    with pytest.raises(PalateError, match="other weights"):
        write_trust(copied / "model", trust)
    (copied / "model" / SIDECAR).unlink()
    with pytest.raises(PalateError, match="to keep trust in"):
        write_trust(copied / "model", trust)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow_changed": ["weights"]}, "not as loaded here"),
        ({"dtype": "bfloat16"}, "fitted in float32, and the model is loaded in bfloat16"),
    ],
)
def test_a_model_loaded_otherwise_has_no_distances(
    trusted_run: Path, options: dict[str, Any], message: str
) -> None:
    scorer: Scorer = palate.load(trusted_run, **options)
    assert scorer.rank("Hi", ANSWERS)[0].support_distance is None
    with pytest.raises(PalateError, match=message):
        scorer.score_with_support("Hi", ANSWERS[0])

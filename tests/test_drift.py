"""Drift: quiet on answers like the training's, loud on others, and blind where it says it is."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

import palate
from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.evaluation.drift import DriftFinding, DriftReport, drift, share_of
from palate.evaluation.support import fit_trust
from palate.evaluation.two_sample import classifier_auc
from palate.preferences import ScoringItem
from palate.rendering import render_groups
from palate.scoring.scorer import scoring_item
from tests.table_model import TableScorer, table_items, table_pairs

WIDTH = 12
NUM_TRAIN, NUM_HELD_OUT, NUM_POLICY = 800, 800, 300
FIRST = NUM_TRAIN + NUM_HELD_OUT


def report(
    seed: int, shift: float = 0.0, scale: float = 1.0, reference: bool = True
) -> DriftReport:
    """Training rows from N(0, I), policy rows from N(shift e1, scale^2 I), two of a prompt; the
    reward is the first coordinate."""
    dice = np.random.default_rng(seed)
    table_ND = dice.normal(size=(FIRST + NUM_POLICY, WIDTH))
    table_ND[FIRST:] *= scale
    table_ND[FIRST:, 0] += shift
    scorer = TableScorer(table_ND, np.eye(WIDTH)[0])
    held_out = table_pairs(NUM_TRAIN, FIRST)
    trust = fit_trust(scorer, table_pairs(0, NUM_TRAIN), held_out)
    policy = table_items(FIRST, FIRST + NUM_POLICY, rows_per_prompt=2)
    theirs = table_items(NUM_TRAIN, FIRST, rows_per_prompt=2) if reference else []
    return drift(scorer, trust, policy, theirs)


def finding(found: DriftReport, name: str) -> DriftFinding:
    return next(item for item in found.findings if item.name == name)


def test_answers_like_the_training_pass() -> None:
    """Of 20 clean twins none fails, and 2 of their 140 findings may warn."""
    reports = [report(seed) for seed in range(20)]
    verdicts = [item.verdict for found in reports for item in found.findings]
    assert len(verdicts) == 140
    assert verdicts.count("fail") == 0 and verdicts.count("warn") <= 2
    assert all(found.num_answers == 300 and found.num_prompts == 150 for found in reports)


def test_a_shift_is_measured_as_planted() -> None:
    """Shift by 2 of the reward's direction: the mean moves by 2 standard deviations, and the best
    classifier of N(0, 1) against N(2, 1) has an AUC of Phi(2 / sqrt(2)) = 0.921."""
    found = report(0, shift=2.0)
    assert found.verdict == "fail"
    shift = finding(found, "reward mean").estimate
    assert shift.low < 2.0 < shift.high and shift.high - shift.low < 0.4
    assert finding(found, "reward mean").verdict == "warn"
    auc = finding(found, "classifier")
    assert auc.estimate.value == pytest.approx(norm.cdf(2**0.5), abs=0.04)
    assert auc.verdict == "fail"
    assert finding(found, "tail 0.99").verdict == "fail"
    assert finding(found, "reward outside").verdict == "fail"
    assert finding(found, "length").verdict == "pass"


def test_a_wider_spread_is_seen_by_the_tail_and_not_by_a_linear_classifier() -> None:
    found = report(1, scale=1.5)
    assert finding(found, "tail 0.95").verdict == "fail"
    assert finding(found, "classifier").estimate.value < 0.6
    spread = finding(found, "reward spread")
    assert spread.estimate.low < 1.5 < spread.estimate.high


def test_collapse_is_seen_by_spread_alone() -> None:
    """All answers near the middle: nothing lies far out, and rewards spread a third as wide."""
    found = report(2, scale=1 / 3)
    assert finding(found, "tail 0.95").verdict == "pass"
    assert finding(found, "reward spread").verdict == "warn"
    assert finding(found, "reward spread").estimate.value == pytest.approx(1 / 3, abs=0.05)


def test_without_reference_the_classifier_is_skipped_and_said_to_be() -> None:
    found = report(3, reference=False)
    assert "classifier" not in {item.name for item in found.findings}
    assert found.skipped[0][0] == "classifier"
    assert "no reference answers" in found.skipped[0][1]


def test_the_auc_is_scikit_learns_where_one_fold_is_scored() -> None:
    from palate.evaluation.two_sample import _placements

    dice = np.random.default_rng(4)
    score_N = dice.integers(0, 9, size=80).astype(float)  # with ties
    is_ours_N = dice.random(80) < 0.4
    placement_N = _placements(score_N, is_ours_N)
    expected = roc_auc_score(is_ours_N, score_N)
    assert placement_N[is_ours_N].mean() == pytest.approx(expected, abs=1e-12)
    assert placement_N[~is_ours_N].mean() == pytest.approx(expected, abs=1e-12)


def test_alike_sides_have_an_auc_of_one_half_within_its_interval() -> None:
    """The 95 % interval must hold 0.5 in at least 34 of 40 seeds."""
    held = 0
    for seed in range(40):
        dice = np.random.default_rng(seed)
        value_ND = dice.normal(size=(240, 30))
        cluster_N = np.array([f"prompt {row // 2}" for row in range(240)])
        auc = classifier_auc(value_ND, np.arange(240) >= 120, cluster_N)
        held += auc.low <= 0.5 <= auc.high
    assert held >= 34


def test_a_prompt_is_never_fitted_and_tested_on() -> None:
    """Ten answers of a prompt share its vector, and each prompt is on one side. Who splits answers
    at random learns the prompts by heart; there is nothing else to learn."""
    dice = np.random.default_rng(5)
    prompt_N = np.repeat(np.arange(60), 10)
    value_ND = dice.normal(size=(60, 200))[prompt_N] + 0.1 * dice.normal(size=(600, 200))
    is_ours_N = prompt_N % 2 == 0
    by_prompt = classifier_auc(value_ND, is_ours_N, np.array([f"p{p}" for p in prompt_N]))
    by_answer = classifier_auc(value_ND, is_ours_N, np.array([f"a{row}" for row in range(600)]))
    assert by_answer.value > 0.95
    assert by_prompt.low < 0.5 < by_prompt.high


def test_answers_of_few_prompts_are_not_taken_for_many() -> None:
    """Share 0.5 of 400 answers: the interval is some 0.1 wide when each has a prompt of its own,
    and over 0.3 when twenty prompts decide."""
    is_so_N = np.repeat([True, False], 200)
    own = share_of(is_so_N, np.array([str(row) for row in range(400)]))
    shared = share_of(is_so_N, np.array([str(row // 20) for row in range(400)]))
    assert own.value == shared.value == 0.5
    assert own.high - own.low < 0.11 and shared.high - shared.low > 0.3


def test_a_share_of_nothing_has_an_interval() -> None:
    """0 of 50 clusters: Wilson's upper end is z^2 / (50 + z^2) = 0.0713."""
    none = share_of(np.zeros(100, bool), np.array([str(row // 2) for row in range(100)]))
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(0.0713, abs=1e-4)


def test_an_item_without_a_finite_reward_is_named() -> None:
    table_ND = np.random.default_rng(6).normal(size=(300, 4))
    scorer = TableScorer(table_ND, np.ones(4))
    trust = fit_trust(scorer, table_pairs(0, 100), table_pairs(100, 200))
    scorer.model.table[207] = np.inf  # type: ignore[operator]
    with pytest.raises(PalateError, match=r"^item 7 has a pooled state or reward"):
        drift(scorer, trust, table_items(200, 300))


@pytest.fixture(scope="module")
def trained(trained_run: Path) -> tuple[palate.scoring.scorer.Scorer, list[ScoringItem]]:
    scorer = palate.load(trained_run)
    reading = palate.preferences.read(str(trained_run.parent / "preferences.jsonl"))
    groups = render_groups(reading.groups, scorer.renderer, Ledger())
    scorer.trust = fit_trust(scorer, groups[:20], groups[20:])
    items = [
        ScoringItem(group.prompt, response)
        for group in reading.groups[20:]
        for response in group.responses
    ]
    return scorer, items


def test_on_a_real_model_strings_of_signs_fail_and_held_out_answers_do_not(
    trained: tuple[palate.scoring.scorer.Scorer, list[ScoringItem]],
) -> None:
    scorer, items = trained
    assert drift(scorer, scorer.fitted_trust(), items).verdict == "pass"
    odd = [
        scoring_item(f"Question {i}: which?", "}{ << 01 %% @@ " * (1 + i % 4)) for i in range(24)
    ]
    found = drift(scorer, scorer.fitted_trust(), odd, items)
    assert finding(found, "tail 0.99").estimate.value == 1.0
    assert finding(found, "classifier").estimate.low > 0.9
    assert found.verdict == "fail"


def test_what_cannot_be_scored_is_listed_and_in_no_finding(
    trained: tuple[palate.scoring.scorer.Scorer, list[ScoringItem]],
) -> None:
    scorer, items = trained
    too_long = scoring_item("Question 1?", "a" * 5000)
    found = drift(scorer, scorer.fitted_trust(), [items[0], too_long, *items[1:]])
    assert [index for index, _ in found.left_out] == [1]
    assert "tokens" in found.left_out[0][1]
    assert found.num_answers == len(items)
    assert found.findings == drift(scorer, scorer.fitted_trust(), items).findings
    with pytest.raises(PalateError, match="none of 1 items can be scored; the first: the response"):
        drift(scorer, scorer.fitted_trust(), [too_long])

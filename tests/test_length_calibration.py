"""Length calibration after training: it takes a planted slope away, and no legitimate one."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

import palate
from palate.cli.calibrate import run_calibrate
from palate.errors import PalateError
from palate.evaluation.length_calibration import (
    fit_curve,
    fit_length_calibration,
    lengths_of,
    within_prompt_slope,
)
from palate.evaluation.outcomes import Outcome, prompt_accuracy
from palate.pipeline.calibrate import CalibrateConfig, calibrate
from palate.pipeline.evaluate import EvaluateConfig, evaluate
from palate.pipeline.score_file import ScoreConfig, score_file
from palate.preferences import Comparison, Message, PreferenceGroup, Response
from palate.rendering import RenderedGroup
from tests.rows import refusal
from tests.runs import write_rows


def outcome(number: int, words: list[int], rewards: list[float], better: int) -> Outcome:
    """Two answers of so many words."""
    group = PreferenceGroup(
        (Message("user", f"question {number}"),),
        tuple(Response("word " * count) for count in words),
        (Comparison(better, 1 - better),),
    )
    rendered = RenderedGroup(((number, 0), (number, 1)), group.comparisons, group, (0, 1))
    return Outcome(rendered, np.array(rewards, np.float32))


def pool(
    num_prompts: int, *, learned: float, legitimate: float, label: float = 0.0, seed: int = 0
) -> tuple[list[Outcome], list[int]]:
    """A reward model's rewards on a pool, and which answer is truly better.

    Quality is noise + legitimate * log length; the reward is quality + learned * log length, with
    noise; labels are drawn from quality + label * log length.
    """
    random = np.random.default_rng(seed)
    outcomes, truth = [], []
    for number in range(num_prompts):
        words = [int(count) for count in random.integers(5, 200, 2)]
        length = np.log1p(words)
        quality = random.normal(size=2) + legitimate * length
        reward = quality + learned * length + 0.3 * random.normal(size=2) + 5 * random.normal()
        logit = 3 * (quality[0] - quality[1] + label * (length[0] - length[1]))
        better = 0 if random.random() < expit(logit) else 1
        outcomes.append(outcome(number, words, reward.tolist(), better))
        truth.append(int(quality.argmax()))
    return outcomes, truth


def accuracy(outcomes: list[Outcome], truth: list[int], taken: list[np.ndarray] | None) -> float:
    rewards = [o.reward_N for o in outcomes]
    if taken is not None:
        rewards = [r - part for r, part in zip(rewards, taken, strict=True)]
    return float(np.mean([r.argmax() == best for r, best in zip(rewards, truth, strict=True)]))


def test_a_planted_slope_is_taken_away_and_truth_is_met_more_often() -> None:
    outcomes, truth = pool(1500, learned=1.0, legitimate=0.0)
    found = fit_length_calibration(outcomes)
    assert found.alpha >= 0.8
    assert found.gain.low > 0
    fresh, truth = pool(1500, learned=1.0, legitimate=0.0, seed=1)
    taken = [found.alpha * found.curve.at(lengths_of(o)) for o in fresh]
    corrected = [Outcome(o.group, o.reward_N - t) for o, t in zip(fresh, taken, strict=True)]
    assert within_prompt_slope(fresh) == pytest.approx(1.0, abs=0.1)
    assert abs(within_prompt_slope(corrected)) < 0.25
    assert accuracy(fresh, truth, taken) > accuracy(fresh, truth, None) + 0.05


def test_where_length_is_quality_the_labels_leave_it_alone() -> None:
    """Rewards run as steeply with length as in the planted world; nothing about them is wrong."""
    outcomes, truth = pool(1500, learned=0.0, legitimate=1.0)
    found = fit_length_calibration(outcomes)
    assert within_prompt_slope(outcomes) == pytest.approx(1.0, abs=0.1)
    assert found.alpha == 0.0
    # What it was kept from: the whole curve taken off costs true accuracy.
    taken = [found.curve.at(lengths_of(o)) for o in outcomes]
    assert accuracy(outcomes, truth, taken) < accuracy(outcomes, truth, None) - 0.05


def test_biased_labels_ask_for_nothing_unless_both_sides_weigh_alike() -> None:
    outcomes, truth = pool(1500, learned=1.0, legitimate=0.0, label=1.0)
    assert fit_length_calibration(outcomes).alpha == 0.0
    found = fit_length_calibration(outcomes, length_balanced=True)
    assert 0.25 <= found.alpha <= 1
    taken = [found.alpha * found.curve.at(lengths_of(o)) for o in outcomes]
    assert accuracy(outcomes, truth, taken) > accuracy(outcomes, truth, None) + 0.03


def test_balanced_weights_harm_where_length_is_quality() -> None:
    """So the option says, and so it is: this is why labels decide by default."""
    outcomes, truth = pool(1500, learned=0.0, legitimate=1.0)
    found = fit_length_calibration(outcomes, length_balanced=True)
    taken = [found.alpha * found.curve.at(lengths_of(o)) for o in outcomes]
    assert accuracy(outcomes, truth, taken) < accuracy(outcomes, truth, None) - 0.02


def test_the_curve_bends_where_rewards_do_and_is_constant_beyond_the_data() -> None:
    """Rewards rise up to 40 words and not beyond; levels of prompts are far apart."""
    random = np.random.default_rng(0)
    outcomes = []
    for number in range(800):
        words = [int(count) for count in random.integers(5, 300, 2)]
        rewards = np.minimum(np.log1p(words), np.log1p(40)) + 10 * random.normal()
        outcomes.append(outcome(number, words, rewards.tolist(), 0))
    curve = fit_curve(outcomes)

    def at(*words: int) -> np.ndarray:
        return curve.at(np.log1p(np.array(words)))

    assert np.diff(at(10, 30))[0] == pytest.approx(np.log(31 / 11), abs=0.1)
    assert np.diff(at(60, 200))[0] == pytest.approx(0.0, abs=0.05)
    assert at(1_000, 100_000).tolist() == [curve.values[-1]] * 2
    assert at(0, 1).tolist() == [curve.values[0]] * 2
    lengths = np.concatenate([lengths_of(o) for o in outcomes])
    assert curve.at(lengths).mean() == pytest.approx(0, abs=1e-9)


def test_a_line_is_found_as_a_line() -> None:
    """No penalty on a line: with rewards on one, the curve is it, whatever the smoothing."""
    random = np.random.default_rng(0)
    outcomes = []
    for number in range(60):
        words = [int(count) for count in random.integers(5, 300, 2)]
        outcomes.append(outcome(number, words, (2 * np.log1p(words)).tolist(), 0))
    curve = fit_curve(outcomes)
    assert np.diff(curve.values) / np.diff(curve.knots) == pytest.approx(2.0, abs=0.05)


def test_too_small_a_pool_is_refused() -> None:
    outcomes, _ = pool(50, learned=1.0, legitimate=0.0)
    assert "too few for a length calibration; 100" in refusal(
        lambda: fit_length_calibration(outcomes)
    )


def rows_of_words(count: int) -> list[dict[str, str]]:
    """Pairs on prompts that the run of `trained_run` has not seen; the shorter answer is better."""
    random = np.random.default_rng(3)
    return [
        {
            "prompt": f"Number {number}: which of them is meant?",
            "chosen": "It is. " * int(random.integers(1, 4)),
            "rejected": "It is. " * int(random.integers(5, 9)),
        }
        for number in range(count)
    ]


def test_it_is_kept_beside_the_model_and_used_on_request_alone(
    trained_run: Path, tmp_path: Path
) -> None:
    unreadable = {"prompt": "no answers"}
    data = write_rows(tmp_path / "pool.jsonl", [*rows_of_words(120), unreadable])
    stored = trained_run / "model" / "reward_model.json"
    before = stored.read_text()
    weights = (trained_run / "model" / "model.safetensors").read_bytes()
    plain = palate.load(trained_run)
    refused = refusal(lambda: palate.load(trained_run, length_calibration=True))
    assert "length_calibration has no effect" in refused
    try:
        printed = run_calibrate(["--model", str(trained_run), "--data", data])
        kept = json.loads(stored.read_text())["length_calibration"]
        assert kept["alpha"] == printed.json["alpha"]
        assert printed.json["num_rows"] == 121
        assert sum(printed.json["ledger"].values()) == 1
        assert printed.text.startswith("121 rows")
        assert (trained_run / "model" / "model.safetensors").read_bytes() == weights
        question, answer = "Number 3: which of them is meant?", "It is. It is."
        again = palate.load(trained_run)
        assert again.score(question, answer) == plain.score(question, answer)
        # A whole curve, whatever this pool's labels asked for: what is taken off is then plain.
        values = {**json.loads(stored.read_text())}
        values["length_calibration"] |= {"alpha": 1.0, "knots": [0.0, 10.0], "values": [0.0, 5.0]}
        stored.write_text(json.dumps(values))
        corrected = palate.load(trained_run, length_calibration=True)
        expected = plain.score(question, answer) - 0.5 * np.log1p(4)
        assert corrected.score(question, answer) == pytest.approx(expected, abs=1e-6)

        rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": question, "response": answer}])
        for name, asked in (("plain", False), ("corrected", True)):
            output = str(tmp_path / f"{name}.jsonl")
            config = ScoreConfig(
                model=str(trained_run), data=rows, output=output, length_calibration=asked
            )
            score_file(config)
        scored = [
            json.loads((tmp_path / f"{name}.jsonl").read_text())["reward"]
            for name in ("plain", "corrected")
        ]
        assert scored[0] - scored[1] == pytest.approx(0.5 * np.log1p(4), abs=1e-6)

        found = [
            evaluate(
                EvaluateConfig(
                    model=str(trained_run),
                    data=data,
                    length_calibration=asked,
                    quick=True,
                    output="none",
                )
            ).metrics["margin"]
            for asked in (False, True)
        ]
        # The shorter answer is the better one: its margin grows by half the difference in length.
        longer, shorter = (
            [np.log1p(len(row[name].split())) for row in rows_of_words(120)]
            for name in ("rejected", "chosen")
        )
        gap = 0.5 * (np.mean(longer) - np.mean(shorter))
        assert found[1].value - found[0].value == pytest.approx(gap, abs=1e-4)
    finally:
        stored.write_text(before)


def test_prompts_that_were_trained_on_are_refused(trained_run: Path) -> None:
    data = str(trained_run.parent / "preferences.jsonl")
    message = refusal(lambda: calibrate(CalibrateConfig(model=str(trained_run), data=data)))
    assert "trained on" in message
    assert "--part validation" in message


def test_a_model_without_a_place_for_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PalateError, match=r"no reward_model\.json there"):
        calibrate(CalibrateConfig(model=str(tmp_path), data="pool.jsonl"))


def test_accuracy_counts_the_better_answer() -> None:
    """The helper of these tests against the metric of the package, on one pair."""
    one = outcome(0, [5, 9], [1.0, 2.0], 1)
    assert accuracy([one], [1], None) == prompt_accuracy(one.group, one.reward_N) == 1.0

"""The battery and trust in a training run: when they are made, and that their numbers are those of
the saved model."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import palate
from palate.errors import PalateError
from palate.evaluation.battery import read_battery, run_battery
from palate.evaluation.score_texts import cutting
from palate.evaluation.support import LEFT_OUT, fit_trust
from palate.pipeline.config import SplitSettings
from palate.pipeline.prepare import prepare
from palate.pipeline.train import open_model, train
from palate.pipeline.training_battery import BatteryPlan, plan_battery, rendered_battery
from palate.scoring.runs import rewards_of_groups
from tests.runs import pair_rows, quick_config, quick_training, tiny_run, write_rows

NO_SPLIT = SplitSettings(validation_share=0.0, test_share=0.0)


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def planned(tmp_path: Path, **changes: Any) -> BatteryPlan:
    config = quick_config(tmp_path, **changes)
    _, renderer = open_model(config)
    return plan_battery(config, prepare(config, renderer), renderer)


def test_at_each_checkpoint_the_log_says_how_many_easy_pairs_are_won(tmp_path: Path) -> None:
    """The last checkpoint is the saved model here, so its entry is what that model wins, in the
    unit of the validation part's temperature."""
    rows = pair_rows(60)
    for row in rows[::4]:  # so that the temperature has an end
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    data = write_rows(tmp_path / "noisy.jsonl", rows)
    model = tiny_run(tmp_path)["model"]
    result = train(quick_config(tmp_path, model=model, data=data, battery="checkpoints"))
    evaluated = [entry for entry in log_of(tmp_path / "run") if "eval_loss" in entry]
    assert len(evaluated) == 2
    assert all(0 <= entry["eval_battery_won"] <= 1 for entry in evaluated)
    assert result.scorer is not None
    best = min(evaluated, key=lambda entry: entry["eval_loss"])
    score = cutting(result.scorer).score_items
    assert result.scorer.is_calibrated
    found = run_battery(score, read_battery(), result.scorer.temperature)
    assert best["eval_battery_won"] == pytest.approx(found.overall.won.value)
    assert best["eval_battery_passed"] == pytest.approx(found.overall.passed.value)
    for category in found.categories:
        name = f"eval_battery_won_{category.name}"
        assert best[name] == pytest.approx(category.won.value), name
    stored = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert stored["battery"]["categories"][0]["num_won"] == found.overall.num_won
    assert "share of the battery&#39;s pairs won" in (tmp_path / "run/report.html").read_text()


def test_without_validation_data_each_checkpoint_has_the_battery_too(tmp_path: Path) -> None:
    training = quick_training()
    train(quick_config(tmp_path, battery="checkpoints", split=NO_SPLIT, training=training))
    logged = [entry for entry in log_of(tmp_path / "run") if "battery_won" in entry]
    assert [entry["step"] for entry in logged] == [10, 20]
    assert not any("eval_loss" in entry for entry in logged)


def test_the_battery_changes_nothing_of_the_training(tmp_path: Path) -> None:
    """The same metrics, and the same log but for its own entries."""
    with_it = train(quick_config(tmp_path, "with", battery="checkpoints"))
    without = train(quick_config(tmp_path, "without", battery="off"))
    assert with_it.metrics == without.metrics
    plain = [
        {
            k: v
            for k, v in entry.items()
            if "battery" not in k and not re.search("runtime|second", k)
        }
        for entry in log_of(tmp_path / "with")
    ]
    assert plain == [
        {k: v for k, v in entry.items() if not re.search("runtime|second", k)}
        for entry in log_of(tmp_path / "without")
    ]


def test_its_pairs_get_the_rewards_that_the_scorer_gives_them(tmp_path: Path) -> None:
    """Two paths to a sequence, cut answers among them."""
    result = train(quick_config(tmp_path, battery="off"))
    scorer = result.scorer
    assert scorer is not None
    groups = rendered_battery(read_battery(), scorer.renderer)
    rewards = rewards_of_groups(
        scorer.model, [group.sequences for group in groups], 4096, scorer.renderer.pad_id
    )
    items = [side for item in read_battery().items for side in item.sides]
    expected = cutting(scorer).score_items(items)
    np.testing.assert_allclose(np.concatenate(rewards), expected, atol=1e-5)


def test_a_small_run_does_not_pay_more_for_the_battery_than_for_training(tmp_path: Path) -> None:
    auto = planned(tmp_path)
    assert (len(auto.pairs), auto.at_end) == (0, False)
    assert "not made" in auto.why
    assert "`battery: end` asks for it" in auto.why
    asked = planned(tmp_path, battery="end")
    assert (len(asked.pairs), asked.at_end) == (0, True)
    often = planned(tmp_path, battery="checkpoints")
    assert (len(often.pairs), often.at_end) == (len(read_battery().items), True)
    # Each epoch pays for its own checkpoint, so more epochs pay for the one at the end alone.
    long = planned(tmp_path, training=quick_training(epochs=2000))
    assert (len(long.pairs), long.at_end) == (0, True)
    steps = quick_training(max_steps=20_000)  # the same number of passes over the data
    assert planned(tmp_path, training=steps).at_end
    # A large data set pays for all of them.
    config = quick_config(tmp_path)
    _, renderer = open_model(config)
    small = prepare(config, renderer)
    large = replace(small, train=[*small.train] * 500)
    assert plan_battery(config, large, renderer).pairs


def test_a_run_says_what_was_not_made(tmp_path: Path) -> None:
    result = train(quick_config(tmp_path, trust=False))
    assert "battery   not made" in result.summary
    stored = json.loads((tmp_path / "run/evaluation.json").read_text())
    said = {f["check"]: f["message"] for f in stored["findings"]}
    assert "not made" in said["battery"]
    assert "trust is off" in said["support distance"]
    assert stored["battery"] is None
    assert palate.load(tmp_path / "run").trust is None


def test_a_frozen_body_has_no_checkpoints_to_run_it_at(tmp_path: Path) -> None:
    frozen = quick_training(method="frozen")
    with pytest.raises(PalateError, match=r"battery checkpoints has no effect .* set it to end"):
        quick_config(tmp_path, battery="checkpoints", training=frozen)


def test_a_run_keeps_what_its_rewards_are_to_be_doubted_by(tmp_path: Path) -> None:
    """As fitted by hand from the same parts; the card says so."""
    config = quick_config(tmp_path, **tiny_run(tmp_path, num_pairs=120))
    result = train(config)
    loaded = palate.load(tmp_path / "run")
    assert result.scorer is not None
    assert result.scorer.trust is not None
    assert loaded.trust is not None
    prepared = prepare(config, loaded.renderer)
    by_hand = fit_trust(loaded, prepared.train, prepared.validation["validation"])
    assert loaded.trust.facts.distance == by_hand.facts.distance
    found = loaded.score_with_support("question 3", "yes aaa")
    assert found.reward == pytest.approx(loaded.score("question 3", "yes aaa"), abs=1e-6)
    assert found.support_distance > 0
    card = (tmp_path / "run/model/README.md").read_text()
    assert "score_with_support" in card


def test_without_enough_held_out_answers_training_answers_are_left_out(tmp_path: Path) -> None:
    """Of 150 pairs 2 % of the clusters are held out: fewer than 20 answers."""
    split = SplitSettings(validation_share=0.02, test_share=0.1)
    train(quick_config(tmp_path, **tiny_run(tmp_path, num_pairs=150), split=split))
    trust = palate.load(tmp_path / "run").trust
    assert trust is not None
    assert trust.facts.reference == LEFT_OUT


def test_too_few_answers_for_a_distance_are_said(tmp_path: Path) -> None:
    train(quick_config(tmp_path, **tiny_run(tmp_path, num_pairs=10)))
    stored = json.loads((tmp_path / "run/evaluation.json").read_text())
    said = {f["check"]: f["message"] for f in stored["findings"]}
    assert "too few for a support distance" in said["support distance"]


def test_the_page_and_its_json_hold_the_metrics_of_the_run(trained_run: Path) -> None:
    stored = json.loads((trained_run / "evaluation.json").read_text())
    assert stored["part"] == "test"
    assert (
        stored["metrics"]
        == json.loads((trained_run / "metrics.json").read_text())["metrics"]["test"]
    )
    assert stored["training"]
    page = (trained_run / "report.html").read_text()
    for sentence in stored["verdict"]:
        assert sentence.replace("'", "&#39;") in page

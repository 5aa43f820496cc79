"""`palate evaluate` from the command line to the page: findings, exit codes, other models, earlier
evaluations, benchmarks, bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from palate.artifacts.ledger import Ledger
from palate.cli.main import main
from palate.errors import PalateError
from palate.evaluation.metrics import evaluate_outcomes
from palate.evaluation.outcomes import Outcome
from palate.evaluation.verdict import (
    EvaluationFinding,
    Severity,
    accuracy_findings,
    sentences,
    worst_first,
)
from palate.pipeline import evaluate as pipeline
from palate.pipeline.evaluate import EvaluateConfig, EvaluateResult, evaluate
from palate.pipeline.evaluate_rewards import against_earlier, line_of
from palate.scoring.scorer import Scorer
from palate.statistics import Estimate
from tests.runs import pair_groups, write_rows
from tests.test_audit_report import Page

SMALL = ["--probes.min_pairs", "4", "--probes.beliefs", "false"]


def new_rows(number: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"What is {i} and {i}?", "chosen": f"It is {2 * i}.", "rejected": "No! No!"}
        for i in range(number)
    ]


def test_the_whole_evaluation_ends_in_a_page_with_every_part(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "new.jsonl", new_rows(12))
    arguments = [str(trained_run), data, *SMALL, "--output", str(tmp_path / "out"), "--json"]
    assert main(["evaluate", *arguments]) == 0
    printed = json.loads(capsys.readouterr().out)
    stored = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert stored == {name: printed[name] for name in stored}
    assert len(stored["verdict"]) == 3
    assert {"accuracy", "prompt-blind", "prompts swapped", "more markdown"} <= set(
        stored["metrics"]
    )
    assert stored["battery"]["categories"][0]["num_pairs"] >= 150
    assert len(stored["battery"]["categories"]) >= 9
    assert {"closing", "empty"} <= {probe["name"] for probe in stored["probes"]}
    assert stored["calibration"]["verdict"]
    assert {"dtype", "attention_implementation", "fingerprint"} <= set(stored["protocol"])
    severities = [finding["severity"] for finding in stored["findings"]]
    assert severities == sorted(severities, key=["error", "warn", "note"].index)
    page = Page((tmp_path / "out/report.html").read_text())
    for sentence in stored["verdict"]:
        assert sentence in page.text
    titles = "".join(page.inside("h2"))
    for title in ("What was found", "Does 0.8 mean 0.8", "phrase is worth", "Protocol"):
        assert title in titles
    assert not page.all("script")
    assert not page.all("link")
    assert "prefers-color-scheme: dark" in (tmp_path / "out/report.html").read_text()
    assert len((tmp_path / "out/rewards.jsonl").read_text().splitlines()) == 12


def without_head(scorer: Scorer) -> None:
    with torch.no_grad():
        for parameter in scorer.model.head.parameters():
            parameter.zero_()


def pooling_at_the_first_token(scorer: Scorer) -> None:
    """It stands before all that differs, so that every answer has the same state."""

    def moved(module: Any, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return given, {**named, "end_column_N": torch.zeros_like(named["end_column_N"])}

    scorer.model.register_forward_pre_hook(moved, with_kwargs=True)


def one_token_early(scorer: Scorer) -> None:
    """Accuracy hardly tells: the token before the last has seen nearly all."""

    def moved(module: Any, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return given, {**named, "end_column_N": named["end_column_N"] - 1}

    scorer.model.layout = "rows"  # in a tree the column before may be another answer's
    scorer.model.register_forward_pre_hook(moved, with_kwargs=True)


@pytest.mark.parametrize("damage", [without_head, pooling_at_the_first_token, one_token_early])
def test_a_broken_model_fails_at_the_top(
    damage: Callable[[Scorer], None],
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a head or the last token's state each comparison is a tie; a subtler fault shows in
    the rewards of stored texts."""
    data = write_rows(tmp_path / "new.jsonl", new_rows(12))
    whole = evaluate(EvaluateConfig(model=str(trained_run), data=data, quick=True, output="none"))
    assert not {"ties", "stored rewards"} & {finding.check for finding in whole.findings}

    real = pipeline.load

    def broken(*arguments: Any, **settings: Any) -> Scorer:
        scorer = real(*arguments, **settings)
        damage(scorer)
        return scorer

    monkeypatch.setattr(pipeline, "load", broken)
    out = tmp_path / "out"
    result = evaluate(
        EvaluateConfig(model=str(trained_run), data=data, quick=True, output=str(out))
    )
    assert result.findings[0].severity == "error"
    assert result.findings[0].check == "stored rewards"
    assert result.fails("error")
    opening = Page((out / "report.html").read_text()).text.split("What was found")[0]
    assert "A text that is stored with the model scores" in opening
    ties = [f.message for f in result.findings if f.check == "ties"]
    if damage is not one_token_early:
        assert "100.0% of the comparisons have two equal rewards" in ties[0]


def test_exit_code_follows_fail_on(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A battery that a model of a few steps can't pass is an error."""
    data = write_rows(tmp_path / "new.jsonl", new_rows(12))
    shared = ["evaluate", str(trained_run), data, *SMALL, "--output", "none", "--json"]
    assert main(shared) == 0
    found = json.loads(capsys.readouterr().out)["findings"]
    assert found[0]["severity"] == "error"
    assert main([*shared, "--fail-on", "error"]) == 1


@pytest.mark.parametrize(
    ("severities", "fails_on"),
    [
        ((), ()),
        (("note",), ()),
        (("note", "warn"), ("warn",)),
        (("error", "note"), ("warn", "error")),
    ],
)
def test_it_fails_on_a_finding_as_grave_as_asked(
    severities: tuple[Severity, ...], fails_on: tuple[str, ...]
) -> None:
    findings = [EvaluationFinding(check="c", severity=s, message="m") for s in severities]
    result = EvaluateResult(
        metrics={},
        findings=findings,
        suite={},
        values={},
        ledger=Ledger(),
        num_prompts=0,
        num_elsewhere=0,
        num_rows_kept=0,
        directory=None,
    )
    assert tuple(f for f in ("never", "warn", "error") if result.fails(f)) == fails_on


def test_against_itself_earlier_nothing_is_distinguishable(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "new.jsonl", new_rows(12))
    first = ["evaluate", str(trained_run), data, "--quick", "true"]
    assert main([*first, "--output", str(tmp_path / "one")]) == 0
    capsys.readouterr()
    flags = ["--baseline", str(tmp_path / "one"), "--output", "none", "--json"]
    assert main([*first, *flags]) == 0
    (found,) = json.loads(capsys.readouterr().out)["versus"]
    assert found["winner"] == "not distinguishable"
    assert found["difference"]["value"] == 0
    assert found["num_left_out"] == 0


def outcomes(signs: list[int]) -> list[Outcome]:
    """Pairs whose better answer has the higher reward where the sign is 1."""
    return [
        Outcome(group, torch.tensor([float(sign), 0.0]).numpy())
        for group, sign in zip(pair_groups(len(signs)), signs, strict=True)
    ]


def test_a_model_that_became_worse_is_a_regression(tmp_path: Path) -> None:
    """40 right then, 20 of them now: McNemar's p of 20 against 0 is 2 / 2^20."""
    good, bad = outcomes([1] * 40), outcomes([1] * 20 + [-1] * 20)
    (tmp_path / "rewards.jsonl").write_text("".join(map(line_of, good)))
    found = against_earlier(bad, tmp_path)
    assert found.winner == "second"
    assert found.p_value == pytest.approx(2 / 2**20)
    assert found.difference.value == pytest.approx(-0.5)
    assert against_earlier(good, tmp_path).winner == "not distinguishable"


def test_an_earlier_evaluation_of_other_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rewards.jsonl").write_text("".join(map(line_of, outcomes([1] * 3))))
    others = [Outcome(group, torch.tensor([1.0, 0.0]).numpy()) for group in pair_groups(5, first=4)]
    with pytest.raises(PalateError, match="none of its 3 prompts is among these 5"):
        against_earlier(others, tmp_path)
    (tmp_path / "rewards.jsonl").write_text("{}\n")
    with pytest.raises(PalateError, match=r"rewards\.jsonl:1: no line of rewards"):
        against_earlier(others, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing to measure on"),
        ({"suite": {"llmbar": "x"}, "versus": "other"}, "versus has no effect"),
        ({"data": "x", "quick": True, "battery": ["more"]}, "battery has no effect"),
        ({"data": "x", "versus": "m"}, "versus is the model itself"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PalateError, match=message):
        EvaluateConfig(model="m", **settings)


def test_a_benchmark_alone(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--suite.preferences", write_rows(tmp_path / "p.jsonl", new_rows(5)), "--json"]
    output = ["--output", str(tmp_path / "out")]
    assert main(["evaluate", str(trained_run), *flags, *output]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["metrics"] == {}
    assert printed["suite"]["preferences"]["num_items"] == 5
    assert (tmp_path / "out/preferences.jsonl").exists()
    assert "Benchmark preferences" in (tmp_path / "out/report.html").read_text()


def test_three_sentences_worked_by_hand() -> None:
    metrics = {
        "accuracy": Estimate(0.7, 0.65, 0.75, 100),
        "longer wins": Estimate(0.6, 0.5, 0.7, 100),
        "accuracy minus longer wins": Estimate(0.1, 0.02, 0.18, 100),
        "prompt-blind": Estimate(0.55, 0.5, 0.6, 100),
        "accuracy minus prompt-blind": Estimate(0.15, 0.1, 0.2, 100),
        "agreement of annotators": Estimate(0.8, 0.7, 0.9, 50),
    }
    assert accuracy_findings(metrics, 0.0) == []
    good, compared, fear = sentences(metrics, worst_first([]))
    assert good == "Right on 70.0% of the comparisons (65.0% to 75.0%, 100 prompts)."
    assert "'longer wins', gets 60.0%, and the model is better by +10.0 (+2.0 to +18.0)" in compared
    assert "annotators agree with one another in 80.0%" in compared
    assert fear == "Nothing was found to fear in what was looked at."
    worse = {**metrics, "accuracy minus longer wins": Estimate(-0.1, -0.2, -0.02, 100)}
    (finding,) = accuracy_findings(worse, 0.0)
    assert (finding.check, finding.severity) == ("baseline: longer wins", "error")
    assert sentences(worse, [finding])[2].startswith("To fear (one error, 0 warnings): baseline")


def test_a_model_that_prefers_the_worse_answers_loses_to_chance_and_to_a_baseline() -> None:
    found = evaluate_outcomes(outcomes([-1] * 30))
    findings = accuracy_findings(found, found["tied rewards"].value)
    assert [(f.check.split(":")[0], f.severity) for f in findings] == [
        ("accuracy", "error"),
        ("baseline", "error"),
    ]

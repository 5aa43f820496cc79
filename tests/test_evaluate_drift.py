"""`palate evaluate --outputs`: quiet on answers like the training's, loud on others, and no row is
lost."""

import json
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

import palate
from palate.artifacts.ledger import Ledger
from palate.cli.main import main
from palate.errors import PalateError
from palate.evaluation.drift import drift
from palate.evaluation.support import fit_trust
from palate.model.support import write_trust
from palate.pipeline import evaluate as pipeline
from palate.pipeline import evaluate_drift
from palate.pipeline.evaluate import EvaluateConfig, EvaluateResult, evaluate
from palate.pipeline.guards import split_clusters
from palate.preferences import ScoringItem, prompt_cluster
from palate.rendering import render_groups
from palate.scoring.scorer import Scorer
from tests.runs import write_rows
from tests.test_audit_report import Page
from tests.test_trust_on_request import copy_with

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron")
HELD_OUT, EVALUATED, ASKED = (range(40 + part, 130, 3) for part in range(3))
"""Numbers of questions, 30 of each part: behind the quantiles, in the data, put to the policy."""
NAMES = (
    *("tail 0.95", "tail 0.99", "classifier", "reward mean", "reward spread", "reward outside"),
    "length",
)


def question(number: int) -> str:
    """As in the run's data, which have the first 40."""
    return f"Question {number}: which of the words in this list stands for {WORDS[number % 8]}?"


def right(number: int) -> str:
    return f"It is {WORDS[number % 8]}."


def wrong(number: int) -> str:
    return f"No {WORDS[(number + 1) % 8]}!"


@pytest.fixture(scope="module")
def run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with trust of the run's data, and its quantiles of 30 further prompts."""
    folder = tmp_path_factory.mktemp("trusted")
    copied = Path(shutil.copytree(trained_run, folder / "run"))
    scorer = palate.load(copied)
    held_out = write_rows(folder / "held_out.jsonl", pairs(HELD_OUT))
    parts = [
        render_groups(palate.preferences.read(file).groups, scorer.renderer, Ledger())
        for file in (str(trained_run.parent / "preferences.jsonl"), held_out)
    ]
    write_trust(copied / "model", fit_trust(scorer, *parts))
    return copied


def pairs(numbers: Iterable[int]) -> list[dict[str, str]]:
    """Of further prompts people preferred the right answer and the wrong one in turn, so that the
    better answers are of both kinds, as those of `like_training` are."""
    return [
        {"prompt": question(i), "chosen": made[0](i), "rejected": made[1](i)}
        for i in numbers
        for made in [(right, wrong) if i < 40 or i // 3 % 2 else (wrong, right)]
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The 40 prompts of the run, and 30 that it has never seen."""
    numbers = [*range(40), *EVALUATED]
    return write_rows(tmp_path_factory.mktemp("data") / "data.jsonl", pairs(numbers))


def rows_of(answers: Iterable[str]) -> list[dict[str, str]]:
    """A policy's answers to prompts that are in no other file."""
    return [
        {"prompt": question(number), "response": answer}
        for number, answer in zip(ASKED, answers, strict=True)
    ]


def outputs(folder: Path, answers: Iterable[str]) -> str:
    return write_rows(folder / "outputs.jsonl", rows_of(answers))


def like_training() -> list[str]:
    return [(right if i // 3 % 2 else wrong)(i) for i in ASKED]


def garbage() -> list[str]:
    return ["}{ << 01 %% @@ " * (1 + i % 4) for i in ASKED]


def shuffled() -> list[str]:
    """The letters of answers like the training's, in disorder."""
    return ["".join(random.Random(0).sample(text, len(text))) for text in like_training()]


def evaluated(run: Path, file: str, **settings: Any) -> EvaluateResult:
    fields: dict[str, Any] = {"quick": True, "output": "none", **settings}
    return evaluate(EvaluateConfig(model=str(run), outputs=file, **fields))


def checks(result: EvaluateResult, severity: str) -> list[str]:
    return [f.check for f in result.findings if f.severity == severity]


def test_answers_like_the_training_pass_with_one_note(
    run: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = outputs(tmp_path, like_training())
    flags = ["--outputs", file, "--quick", "true", "--output", str(tmp_path / "out"), "--json"]
    assert main(["evaluate", str(run), data, *flags]) == 0
    printed = json.loads(capsys.readouterr().out)
    found = printed["drift"]
    assert found == json.loads((tmp_path / "out/evaluation.json").read_text())["drift"]
    assert (found["verdict"], found["num_rows"], found["num_answers"]) == ("pass", 30, 30)
    assert (found["num_prompts"], found["num_left_out"], found["skipped"]) == (30, 0, {})
    assert [one["name"] for one in found["findings"]] == [*NAMES]
    for one in found["findings"]:
        assert one["low"] <= one["value"] <= one["high"]
        assert one["n"] == 30 + found["num_reference"] * (one["name"] == "classifier")
    (note,) = (f for f in printed["findings"] if f["check"].startswith("drift"))
    assert note["severity"] == "note"
    assert note["message"].startswith("No drift found in 30 answers to 30 prompts")
    page = Page((tmp_path / "out/report.html").read_text())
    assert "How far a policy's answers have drifted" in "".join(page.inside("h2"))
    assert all(name in page.text for name in NAMES)
    assert not (tmp_path / "out/outputs-ledger.jsonl").exists()


@pytest.mark.parametrize(
    ("made", "expected"),
    [(garbage, ["tail 0.95", "tail 0.99", "classifier"]), (shuffled, ["classifier"])],
)
def test_other_answers_are_errors_at_the_top(
    made: Callable[[], list[str]],
    expected: list[str],
    run: Path,
    data: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Shuffled letters are to the tiny model no unusual state, and another one all the same."""
    file = outputs(tmp_path, made())
    result = evaluated(run, file, data=data, output=str(tmp_path / "out"))
    assert result.values["drift"]["verdict"] == "fail"
    assert result.fails("error")
    assert [f"drift: {name}" for name in expected] == checks(result, "error")[: len(expected)]
    assert f"drift: {expected[0]}. " in result.values["verdict"][2]
    worst = result.findings[0]
    assert worst.threshold == (0.2 if made is garbage else 0.75)
    assert worst.statistic is not None and worst.statistic > worst.threshold
    assert 'class="chip fail"' in (tmp_path / "out/report.html").read_text()
    arguments = ["evaluate", str(run), data, "--outputs", file, "--quick", "true"]
    assert main([*arguments, "--output", "none", "--fail-on", "error"]) == 1
    assert f"error  drift: {expected[0]}" in capsys.readouterr().out


def test_outputs_alone_are_judged_without_the_classifier_and_that_is_said(
    run: Path, tmp_path: Path
) -> None:
    result = evaluated(run, outputs(tmp_path, garbage()))
    assert result.metrics == {}
    assert "drift: tail 0.99" in checks(result, "error")
    (skipped,) = (f for f in result.findings if f.check == "drift: classifier")
    assert skipped.severity == "note" and "no reference answers were given" in skipped.message
    assert [one["name"] for one in result.values["drift"]["findings"]] == [
        name for name in NAMES if name != "classifier"
    ]


@pytest.mark.parametrize("has_split", [True, False])
def test_the_reference_is_of_better_answers_that_were_not_trained_on(
    run: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_split: bool
) -> None:
    seen: list[ScoringItem] = []

    def kept(scorer: Scorer, trust: Any, items: Any, reference: Sequence[ScoringItem]) -> Any:
        seen.extend(reference)
        return drift(scorer, trust, items, reference)

    monkeypatch.setattr(evaluate_drift, "drift", kept)
    trained = set((split_clusters(str(run)) or {})["train"])
    assert 15 <= len(trained) <= 30
    if not has_split:
        run = Path(shutil.copytree(run, tmp_path / "run"))
        (run / "split.json").unlink()
        trained = set()
    result = evaluated(run, outputs(tmp_path, like_training()), data=data)
    assert result.values["drift"]["num_reference"] == len(seen) == 70 - len(trained)
    assert not trained & {prompt_cluster(item.prompt) for item in seen}
    better = {row["prompt"]: row["chosen"] for row in pairs([*range(40), *EVALUATED])}
    assert all(item.response.text == better[item.prompt[0].content] for item in seen)


def test_a_model_without_trust_is_refused_before_anything_is_scored(
    trained_run: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = copy_with(trained_run, tmp_path, lambda trust: None)
    monkeypatch.setattr(pipeline, "outcomes_of", lambda *_: pytest.fail("scored"))
    with pytest.raises(PalateError, match=r"no support distance.*none was fitted; see docs/trust"):
        evaluated(bare, outputs(tmp_path, like_training()), data=data)


def test_what_cannot_be_judged_is_counted_and_named_and_moves_no_number(
    run: Path, tmp_path: Path
) -> None:
    """Of lines 2 to 6 one answer can be judged, the second of line 5, so that 30 are."""
    good = rows_of(like_training())
    several = {"prompt": good[29]["prompt"], "responses": [" ", good[29]["response"]]}
    bad: list[Any] = [{"prompt": "Which?"}, "not JSON", ["a list"], several]
    too_long = {"prompt": "Which?", "response": "ab" * 400}
    file = tmp_path / "outputs.jsonl"
    rows = [good[0], *bad, too_long, *good[1:29]]
    file.write_text("".join((r if r == "not JSON" else json.dumps(r)) + "\n" for r in rows))
    result = evaluated(run, str(file), output=str(tmp_path / "out"))
    found = result.values["drift"]
    assert (found["num_rows"], found["num_answers"], found["num_left_out"]) == (34, 30, 5)
    clean = tmp_path / "clean"
    clean.mkdir()
    alone = evaluated(run, write_rows(clean / "outputs.jsonl", good)).values["drift"]
    values = [one["value"] for one in found["findings"]]
    assert values == pytest.approx([one["value"] for one in alone["findings"]], abs=1e-5)
    (finding,) = (f for f in result.findings if f.check == "drift: rows")
    assert finding.severity == "warn"
    for said in (
        f"30 answers of {file} were judged",
        f"({file}:2: no field 'response'",
        f"{file}:3",
        f"{file}:4",
        f"({file}:5: response 0: empty response",
        f"({file}:6: the response has 801 tokens",
        "mend these and run again",
    ):
        assert said in finding.message
    ledger = (tmp_path / "out/outputs-ledger.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["line"] for line in ledger) == [2, 3, 4, 5, 6]
    assert "Left out: " in Page((tmp_path / "out/report.html").read_text()).text


def test_a_file_without_an_answer_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "outputs.jsonl", [{"prompt": "Which?"}] * 3)
    message = r"outputs\.jsonl: no answer to judge; left out were 3 x .*outputs\.jsonl:1: no field"
    with pytest.raises(PalateError, match=message):
        evaluated(Path("no/such/model"), file)
    with pytest.raises(PalateError, match=r"gone\.jsonl: .*no such file"):
        evaluated(Path("no/such/model"), str(tmp_path / "gone.jsonl"))


def test_when_no_answer_can_be_scored_the_file_is_named(run: Path, tmp_path: Path) -> None:
    file = outputs(tmp_path, ["ab" * 400] * 30)
    with pytest.raises(PalateError, match=r"outputs\.jsonl: none of 30 items can be scored; the f"):
        evaluated(run, file)

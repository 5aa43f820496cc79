"""`score`, `rank` and `compare` say how far an answer lies from the training data, on request."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import palate
from palate.artifacts.ledger import Ledger
from palate.cli.main import main
from palate.errors import PalateError
from palate.evaluation.score_texts import cutting
from palate.evaluation.support import fit_trust
from palate.model.checkpoint import read_sidecar, write_sidecar
from palate.model.reward_model import RewardModel
from palate.model.support import Trust, write_trust
from palate.pipeline.score_file import ScoreConfig, score_file
from palate.rendering import render_groups
from palate.scoring.scorer import Scorer, scoring_item
from tests.test_score_file import Stopped, left_behind, plain_rows, read_rows, score, write_rows

PROMPT = "Question 3: which of the words in this list stands for delta?"
ANSWERS = ["No ember!", "It is delta.", "}{ << 01 %% @@ }{ << 01 %% @@"]
STREAMED = 150
"""Token budget under which the rows below are many chunks."""
FIELDS = ("support_distance", "support_distances", "support_beyond", "support_beyonds")


def copy_with(run: Path, folder: Path, change: Callable[[Trust], Trust | None]) -> Path:
    """A copy of the run with trust as `change` makes it of one that is fitted here."""
    copied = Path(shutil.copytree(run, folder / "run"))
    reading = palate.preferences.read(str(run.parent / "preferences.jsonl"))
    scorer = palate.load(copied)
    groups = render_groups(reading.groups, scorer.renderer, Ledger())
    trust = change(fit_trust(scorer, groups[:25], groups[25:]))
    if trust is not None:
        write_trust(copied / "model", trust)
    else:
        sidecar = read_sidecar(copied / "model")
        assert sidecar is not None
        write_sidecar(copied / "model", replace(sidecar, trust=None))
    return copied


@pytest.fixture(scope="module")
def trusted_run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_with(trained_run, tmp_path_factory.mktemp("trusted"), lambda trust: trust)


@pytest.fixture(scope="module")
def untrusted_run(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_with(trained_run, tmp_path_factory.mktemp("untrusted"), lambda trust: None)


@pytest.fixture(scope="module")
def scorer(trusted_run: Path) -> Scorer:
    return palate.load(trusted_run)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """120 rows of all shapes; row 10 can't be scored, nor the second answer of row 3, which lies
    far out in its third."""
    rows = plain_rows(120)
    rows[10] = {"id": 10, "prompt": "Which?", "response": ""}
    rows[3]["responses"] = ["It is ember.", " ", ANSWERS[2]]
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", rows)


def without_support(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in FIELDS}


def answers_of(row: dict[str, Any]) -> tuple[Any, list[str]]:
    """Prompt and answers of a row of `plain_rows`."""
    if row.get("messages"):
        return row["messages"][0]["content"], [row["messages"][1]["content"]]
    if row.get("responses"):
        return row["prompt"], row["responses"]
    return row["prompt"], [row["response"]]


# --- palate score


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("budget", [STREAMED, 100_000])
def test_each_answer_gets_its_distance_and_the_rewards_stay_to_the_last_bit(
    trusted_run: Path, scorer: Scorer, data: str, tmp_path: Path, suffix: str, budget: int
) -> None:
    """Streamed and in memory, as lines and as a table."""
    plain, supported = (tmp_path / f"{name}.{suffix}" for name in ("plain", "supported"))
    score(trusted_run, data, plain, tokens_per_microbatch=budget)
    result = score(trusted_run, data, supported, tokens_per_microbatch=budget, support=True)
    assert (result.num_rows, result.num_errors) == (120, 2)
    rows = read_rows(supported)
    assert [without_support(row) for row in rows] == read_rows(plain)
    assert left_behind(tmp_path) == []
    found = []
    for row in rows:
        s = "s" if row.get("responses") else ""
        values = [row["reward" + s], row["support_distance" + s], row["support_beyond" + s]]
        prompt, answers = answers_of(row)
        by_answer = zip(*values, strict=True) if s else [values]
        for answer, value in zip(answers, by_answer, strict=True):
            if answer.strip():
                found.append((scoring_item(prompt, answer), value))
            else:
                assert tuple(value) == (None, None, None)
    expected = scorer.score_items_with_support([item for item, _ in found])
    for reference, (_, (reward, distance, beyond)) in zip(expected, found, strict=True):
        assert reward == pytest.approx(reference.reward, abs=1e-5)
        assert distance == pytest.approx(reference.support_distance, rel=1e-3)
        assert beyond == scorer.fitted_trust().beyond(distance)
    assert rows[3]["support_beyonds"][2] == 0.99


def test_a_row_has_the_fields_of_its_answers_only(
    trusted_run: Path, data: str, tmp_path: Path
) -> None:
    score(trusted_run, data, tmp_path / "scored.jsonl", support=True)
    one, _, _, several, *_ = read_rows(tmp_path / "scored.jsonl")
    assert [name for name in FIELDS if name in one] == ["support_distance", "support_beyond"]
    assert [name for name in FIELDS if name in several] == ["support_distances", "support_beyonds"]
    assert [len(several[name]) for name in ("rewards", *FIELDS[1::2])] == [3, 3, 3]


def test_distances_cost_no_further_pass(
    trusted_run: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots: list[int] = []
    run = RewardModel.run

    def counted(self: RewardModel, plan: Any) -> Any:
        slots.append(plan.num_slots)
        return run(self, plan)

    monkeypatch.setattr(RewardModel, "run", counted)
    score(trusted_run, data, tmp_path / "plain.jsonl")
    plain = [*slots]
    slots.clear()
    score(trusted_run, data, tmp_path / "supported.jsonl", support=True)
    assert slots == plain


def stopped(run: Path, data: str, output: Path, step: str, support: bool) -> None:
    """A run that goes away without a word after its first such step."""

    def stop(done: str, _: int) -> None:
        if done == step:
            raise Stopped

    config = ScoreConfig(
        model=str(run),
        data=data,
        output=str(output),
        tokens_per_microbatch=STREAMED,
        support=support,
    )
    with pytest.raises(Stopped):
        score_file(config, stop)


@pytest.mark.parametrize("step", ["render", "score", "write"])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    trusted_run: Path, data: str, tmp_path: Path, step: str
) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "scored.jsonl"
    score(trusted_run, data, whole, support=True)
    stopped(trusted_run, data, output, step, support=True)
    result = score(trusted_run, data, output, support=True)
    assert output.read_bytes() == whole.read_bytes()
    assert (result.num_resumed > 0) == (step != "render")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("first", [True, False])
def test_what_a_run_without_distances_left_is_none_of_one_with_them(
    trusted_run: Path, data: str, tmp_path: Path, first: bool
) -> None:
    stopped(trusted_run, data, tmp_path / "scored.jsonl", "score", support=first)
    with pytest.raises(PalateError, match="left by a run with another model or other data"):
        score(trusted_run, data, tmp_path / "scored.jsonl", support=not first)


def test_distances_fitted_anew_are_others(
    trained_run: Path, trusted_run: Path, data: str, tmp_path: Path
) -> None:
    def shifted(trust: Trust) -> Trust:
        return replace(trust, mean_D=trust.mean_D + 0.1)

    again = copy_with(trained_run, tmp_path, shifted)
    stopped(trusted_run, data, tmp_path / "scored.jsonl", "score", support=True)
    with pytest.raises(PalateError, match="left by a run with another model or other data"):
        score(again, data, tmp_path / "scored.jsonl", support=True)


def test_distances_shorter_than_they_were_left_are_refused(
    trusted_run: Path, data: str, tmp_path: Path
) -> None:
    stopped(trusted_run, data, tmp_path / "scored.jsonl", "score", support=True)
    file = tmp_path / "scored.jsonl.partial" / "distances.f32"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(PalateError, match=r"distances\.f32: shorter than the \d+ bytes"):
        score(trusted_run, data, tmp_path / "scored.jsonl", support=True)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({}, "none was fitted"), ({"allow_changed": ["weights"]}, "not as loaded here")],
)
def test_without_trust_it_stops_at_once_with_the_reason(
    trusted_run: Path,
    untrusted_run: Path,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    reason: str,
) -> None:
    run = trusted_run if fields else untrusted_run
    monkeypatch.setattr(
        "palate.pipeline.score_file.prepare_row", lambda *_: pytest.fail("rendered")
    )
    with pytest.raises(PalateError, match=f"no support distance .*{reason}"):
        score(run, data, tmp_path / "scored.jsonl", support=True, **fields)
    assert list(tmp_path.iterdir()) == []


def test_a_field_of_that_name_is_refused_only_where_it_would_be_written(
    trusted_run: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "Which?", "response": "Yes.", "support_distance": "far"}]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(PalateError, match="line 1 has a field 'support_distance' already"):
        score(trusted_run, data, tmp_path / "supported.jsonl", support=True)
    score(trusted_run, data, tmp_path / "plain.jsonl")
    assert read_rows(tmp_path / "plain.jsonl")[0]["support_distance"] == "far"


def test_the_command_writes_them_too(trusted_run: Path, data: str, tmp_path: Path) -> None:
    output = tmp_path / "scored.jsonl"
    arguments = ["--model", str(trusted_run), "--data", data, "--output", str(output)]
    assert main(["score", *arguments, "--support", "true"]) == 0
    assert isinstance(read_rows(output)[0]["support_distance"], float)


# --- palate rank and palate compare


def test_rank_says_how_far_each_answer_lies(
    trusted_run: Path, scorer: Scorer, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rank", str(trusted_run), PROMPT, *ANSWERS]
    assert main([*arguments, "--support", "--json"]) == 0
    ranking = json.loads(capsys.readouterr().out)["ranking"]
    trust = scorer.fitted_trust()
    for entry, ranked in zip(ranking, scorer.rank(PROMPT, ANSWERS), strict=True):
        assert entry["index"] == ranked.index
        assert entry["support_distance"] == pytest.approx(ranked.support_distance, rel=1e-3)
        assert entry["support_beyond"] == trust.beyond(entry["support_distance"])
    assert main([*arguments, "--support"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for place, entry in enumerate(ranking):
        assert f"  distance {entry['support_distance']:.2f} (" in lines[place]
        assert lines[place].endswith(f"of held-out answers)  {ANSWERS[entry['index']]}")
    (odd,) = (line for line in lines if ANSWERS[2] in line)
    assert "(farther than 99% of held-out answers)" in odd
    assert main(arguments) == 0
    assert "distance" not in capsys.readouterr().out


def test_compare_says_how_sure_the_margin_is(
    trusted_run: Path, scorer: Scorer, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = ANSWERS[1:]
    arguments = ["compare", str(trusted_run), PROMPT, first, second]
    assert main([*arguments, "--support", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = scorer.compare_with_uncertainty(PROMPT, first, second)
    assert printed["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert printed["margin"] == pytest.approx(expected.margin, abs=1e-5)
    assert printed["margin_std"] == pytest.approx(expected.margin_std, rel=1e-3)
    assert printed["support_distances"] == pytest.approx(expected.support_distances, rel=1e-3)
    assert printed["support_beyonds"][1] == 0.99 > printed["support_beyonds"][0]
    assert main([*arguments, "--support"]) == 0
    text = capsys.readouterr().out
    for said in (
        f"P(first preferred) = {printed['probability']:.4f}  (averaged over the head's posterior",
        f"margin {printed['margin']:+.4f}, standard deviation {printed['margin_std']:.4f}",
        f"second  distance {printed['support_distances'][1]:.2f} (farther than 99% of held-out",
    ):
        assert said in text
    assert main([*arguments, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain.keys() == {"probability", "calibrated"}
    assert plain["probability"] == pytest.approx(scorer.compare(PROMPT, first, second), abs=1e-5)


@pytest.mark.parametrize("verb", ["rank", "compare"])
def test_a_request_that_cannot_be_met_is_a_failure_with_the_reason(
    untrusted_run: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert main([verb, str(untrusted_run), PROMPT, *ANSWERS[:2], "--support"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no support distance and no uncertainty of rewards: none was fitted" in captured.err


def test_a_head_without_posterior_ranks_with_distances_and_is_not_compared(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_posterior(trust: Trust) -> Trust:
        facts = replace(trust.facts, posterior=None, no_posterior="an MLP head has none")
        return replace(trust, posterior_DD=None, facts=facts)

    run = copy_with(trained_run, tmp_path, without_posterior)
    assert main(["rank", str(run), PROMPT, *ANSWERS[:2], "--support"]) == 0
    assert capsys.readouterr().out.count("distance ") == 2
    assert main(["compare", str(run), PROMPT, *ANSWERS[:2], "--support"]) == 1
    assert "no posterior for reward differences: an MLP head has none" in capsys.readouterr().err


def test_a_scorer_that_cuts_keeps_its_trust(scorer: Scorer, untrusted_run: Path) -> None:
    assert cutting(scorer).fitted_trust() is scorer.fitted_trust()
    bare = palate.load(untrusted_run)
    bare.no_trust = "the reason"
    with pytest.raises(PalateError, match="the reason"):
        cutting(bare).fitted_trust()

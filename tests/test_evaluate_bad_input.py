"""Bad input to `palate evaluate`, from the command line to what is printed and written: it is
refused with its place and a remedy, or counted; nothing is lost, nothing averaged away."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import palate
from palate.cli.main import main
from palate.errors import PalateError
from palate.evaluation.battery import read_battery
from palate.evaluation.benchmarks import (
    Benchmark,
    read_benchmark,
    recompute,
    score_benchmark,
    write_items,
)
from palate.evaluation.outcomes import Outcome
from palate.pipeline import evaluate as pipeline
from palate.pipeline.evaluate_rewards import REWARDS, against_earlier, line_of
from tests.runs import pair_groups, write_rows
from tests.test_audit_report import Page
from tests.test_benchmarks import GOOD, by_first_word, judge, rb1, rb2, rm, text
from tests.test_evaluate_verb import new_rows
from tests.tiny import byte_tokenizer, save_tiny, word_piece_tokenizer

ABSENT = "absent/model/of/nobody"
"""No such model: what is said of other input is said before a model is loaded."""
QUICK = ("--quick", "true", "--output", "none")
TIE = [{"annotator": "a", "ranking": [[0, 1]]}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of others: no palate run, so no temperature and no split."""
    return save_tiny(tmp_path_factory.mktemp("bad-input") / "plain", head=True)


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """`palate evaluate` with these arguments: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["evaluate", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


Evaluate = Callable[..., tuple[int, str, str]]


def changed(model: str, directory: Path, part: str, change: Callable[[Any], None]) -> str:
    """A copy of the checkpoint with the first weight whose name holds `part` changed in place."""
    shutil.copytree(model, directory)
    path = directory / "model.safetensors"
    weights = load_file(path)
    change(next(weight for name, weight in weights.items() if part in name))
    save_file(weights, path, metadata={"format": "pt"})
    return str(directory)


def words(number: int) -> str:
    """As many tokens of the byte tokenizer, one a character."""
    return ("word " * number)[:number]


def own_pairs(**fields: Any) -> list[dict[str, Any]]:
    """16 pairs of a user's battery; the sixth has `fields` as well."""
    rows: list[dict[str, Any]] = [
        {"category": "mine", "id": f"m{i}", "prompt": f"Q{i}?", "chosen": "Yes.", "rejected": "No."}
        for i in range(16)
    ]
    rows[5] |= fields
    return rows


def ties(number: int) -> list[dict[str, Any]]:
    """Prompts whose only vote is for neither."""
    answers = [{"text": "A."}, {"text": "Not B."}]
    return [{"prompt": f"Tie {i}?", "responses": answers, "votes": TIE} for i in range(number)]


# --- Benchmarks of another version, with a field missing, of nothing ---

SIX = rm("chat", [1, 1, 1], [0, 0, 0])
OTHER_VERSIONS: dict[str, tuple[str, list[Any], tuple[str, ...]]] = {
    "2 as 1": ("rewardbench", [rb2("Math", [1, 0, 0, 0])], ("file.jsonl:1", "as rewardbench2")),
    "1 as 2": ("rewardbench2", [rb1("math-prm", "a", "b")], ("file.jsonl:1", "as rewardbench")),
    "2 x 3": (
        "rm_bench",
        [SIX, {**SIX, "chosen": SIX["chosen"][:2]}],
        ("file.jsonl:2", "2 chosen and 3 rejected, not 3 and 3"),
    ),
    "no label": (
        "judgebench",
        [{k: v for k, v in GOOD["judgebench"].items() if k != "label"}],
        ("file.jsonl:1", "no field 'label'", "label (A>B or B>A)"),
    ),
    "a model for some": (
        "judgebench",
        [GOOD["judgebench"], {**judge("mmlu-pro", "a", "b", "A>B"), "response_model": None}],
        ("file.jsonl:2", "that its response_model does not name", "give one of them"),
    ),
    "unknown": ("foo", [SIX], ("benchmark 'foo' is none of rewardbench,",)),
    "misspelt": ("rewrdbench", [SIX], ("did you mean 'rewardbench'?",)),
    "a number of ties twice": (
        "rewardbench2",
        [
            rb2("Ties", [3, 0], 1, "ref:1"),
            rb2("Ties", [3, 3, 0], 2, "tied:1"),
            rb2("Ties", [9, 3, 0], 2, "tied:1"),
        ],
        ("file.jsonl:3 (item tied:1)", "file.jsonl:2 already", "give each item once"),
    ),
}


@pytest.mark.parametrize("case", OTHER_VERSIONS)
def test_another_version_is_refused_before_anything_is_scored(
    evaluate: Evaluate, tmp_path: Path, case: str
) -> None:
    name, rows, messages = OTHER_VERSIONS[case]
    path = write_rows(tmp_path / "file.jsonl", rows)
    code, out, err = evaluate(ABSENT, f"--suite.{name}", path)
    assert (code, out) == (1, "")
    for message in messages:
        assert message in err


REQUIRED = {
    "rewardbench": ("prompt", "chosen", "rejected", "subset"),
    "rewardbench2": ("id", "prompt", "chosen", "rejected", "num_correct", "subset"),
    "rm_bench": ("prompt", "chosen", "rejected", "domain"),
    "judgebench": ("pair_id", "source", "question", "response_A", "response_B", "label"),
    "llmbar": ("input", "output_1", "output_2", "label", "subset"),
    "ppe": ("prompt", "response_1", "response_2", "winner"),
}


@pytest.mark.parametrize("name", REQUIRED)
def test_a_field_that_one_row_of_many_lacks_is_named(
    evaluate: Evaluate, tmp_path: Path, name: str
) -> None:
    good = GOOD[name]
    for field in REQUIRED[name]:
        lacks = {key: value for key, value in good.items() if key != field}
        path = write_rows(tmp_path / "file.jsonl", [good, good, lacks, good])
        code, _, err = evaluate(ABSENT, f"--suite.{name}", path)
        assert code == 1
        assert "file.jsonl:3: not a row of" in err and field in err


def test_rows_that_a_preference_suite_leaves_out_are_listed(
    evaluate: Evaluate, tmp_path: Path, model: str
) -> None:
    """Counted in the result, and each with its line in a ledger beside it."""
    rows = new_rows(5)
    del rows[2]["chosen"]
    path = write_rows(tmp_path / "file.jsonl", rows)
    code, out, _ = evaluate(model, "--suite.preferences", path, "--output", tmp_path / "out")
    assert code == 0
    assert "(n = 4)" in out and "left out: 1 x row: missing field" in out
    (entry,) = (tmp_path / "out/preferences-ledger.jsonl").read_text().splitlines()
    assert (json.loads(entry)["line"], json.loads(entry)["reason"]) == (3, "missing field")
    assert "left out: 1 x row: missing field" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
@pytest.mark.parametrize("flag", ["rewardbench", "llmbar", "preferences", "battery", "data"])
def test_files_of_nothing_are_refused(
    evaluate: Evaluate, tmp_path: Path, model: str, flag: str, content: str
) -> None:
    (tmp_path / "none.jsonl").write_text(content)
    path = str(tmp_path / "none.jsonl")
    some = write_rows(tmp_path / "some.jsonl", new_rows(2))
    asked: dict[str, list[str]] = {
        "battery": [ABSENT, some, "--battery", path],
        "data": [model, path, *QUICK],
    }
    code, _, err = evaluate(*asked.get(flag, [ABSENT, f"--suite.{flag}", path]))
    assert code == 1
    assert "none.jsonl: no rows in it" in err or "none.jsonl: no pair in it" in err


@pytest.mark.parametrize(
    ("name", "rows", "reason"),
    [
        ("ppe", [{**GOOD["ppe"], "winner": "tie"}] * 2, "2  row: vote for neither"),
        ("rewardbench", [{**GOOD["rewardbench"], "chosen": " "}] * 3, "3  row: empty response"),
        ("preferences", ties(4), "4  row: no better answer"),
    ],
)
def test_a_benchmark_of_which_no_row_can_be_scored(
    evaluate: Evaluate, tmp_path: Path, name: str, rows: list[Any], reason: str
) -> None:
    path = write_rows(tmp_path / "file.jsonl", rows)
    code, _, err = evaluate(ABSENT, f"--suite.{name}", path)
    assert code == 1
    assert f"{reason}  (first: {path}:1)" in err


def test_subsets_without_rows_make_no_number_and_repeats_are_said(
    evaluate: Evaluate, tmp_path: Path, model: str
) -> None:
    """Three pairs of one of 23 subsets, one of them twice, one with one text for both answers."""
    rows = [rb1("math-prm", "yes", "no", 0), rb1("math-prm", "no", "no", 1)]
    path = write_rows(tmp_path / "file.jsonl", [*rows, rows[0]])
    code, out, _ = evaluate(model, "--suite.rewardbench", path, "--output", "none", "--json")
    assert code == 0
    found = json.loads(out)["suite"]["rewardbench"]
    assert set(found["scores"]) == {"math-prm"}
    assert found["scores"]["math-prm"]["num_items"] == 3
    notes = " ".join(found["notes"])
    assert "no overall, Chat" in notes and "math-prm 3 of 447" in notes
    assert "1 of 3 items have the texts of an earlier one" in notes
    assert "1 of 3 items have one text as a right and as a wrong answer" in notes


def test_a_benchmark_that_only_the_hub_has_says_how_to_get_it(evaluate: Evaluate) -> None:
    code, _, err = evaluate(ABSENT, "--suite.rewardbench", "allenai/reward-bench")
    assert code == 1
    assert "split 'filtered'" in err and "name a local file in its place" in err
    assert "load_dataset('allenai/reward-bench', split='filtered').to_json(" in err


# --- Texts that are longer than the model takes ---


def long_pairs(tmp_path: Path, num_answer: int, num_prompt: int = 5) -> str:
    rows = new_rows(6)
    rows[3] = {"prompt": words(num_prompt), "chosen": words(num_answer), "rejected": "No."}
    return write_rows(tmp_path / "long.jsonl", rows)


def test_an_answer_beyond_the_context_needs_a_policy_that_the_command_line_has(
    evaluate: Evaluate, tmp_path: Path, model: str
) -> None:
    """700 tokens, 512 positions: refused with the flag, left out, cut; always of 6 items."""
    asked = [model, "--suite.preferences", long_pairs(tmp_path, 700), "--output", "none", "--json"]
    code, _, err = evaluate(*asked)
    assert code == 1
    assert (
        "long.jsonl:4 (item line 4)" in err and "--suite_lengths.overlong leave_out or cut" in err
    )
    policies = {"leave_out": "left out: 1 x item: longer", "cut": "answers of 1 of 6 items cut"}
    for policy, note in policies.items():
        code, out, _ = evaluate(*asked, "--suite_lengths.overlong", policy)
        assert code == 0
        found = json.loads(out)["suite"]["preferences"]
        assert found["num_items"] == (5 if policy == "leave_out" else 6)
        assert found["protocol"]["overlong"] == policy
        assert note in " ".join(found["notes"])
    path = write_rows(tmp_path / "some.jsonl", new_rows(2))
    code, _, err = evaluate(ABSENT, path, "--suite_lengths.overlong", "cut")
    assert code == 1
    assert "suite_lengths has no effect without a --suite" in err


def test_a_prompt_beyond_the_context_is_cut_and_counted_in_a_suite(
    evaluate: Evaluate, tmp_path: Path, model: str
) -> None:
    path = long_pairs(tmp_path, 5, 700)
    code, out, _ = evaluate(model, "--suite.preferences", path, "--output", "none")
    assert code == 0
    assert "1 of 6 prompts cut to fit the context" in out


def test_long_answers_of_preference_data_are_counted_everywhere(
    evaluate: Evaluate, tmp_path: Path, trained_run: Path
) -> None:
    """A run leaves them out, as in its training: console, JSON and page say so. The other model
    cuts them, and is held against it on what both have."""
    path = long_pairs(tmp_path, 300)
    other = save_tiny(tmp_path / "other", head=True, seed=1)
    flags = [path, "--quick", "true", "--output", tmp_path / "out"]
    code, out, _ = evaluate(trained_run, *flags)
    assert code == 0
    assert "1  row: over-long response  (first: " in out and "5 prompts measured" in out
    stored = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert stored["rows"]["ledger"]["row: over-long response"] == 1
    page = Page((tmp_path / "out/report.html").read_text())
    assert "Left out or cut" in page.text and "row: over-long response" in page.text
    code, out, _ = evaluate(other, path, *QUICK, "--versus", trained_run, "--json")
    assert code == 0
    printed = json.loads(out)
    assert printed["ledger"] == {"token: over-long response cut": 1}
    assert printed["num_prompts"] == 6
    (found,) = printed["versus"]
    assert (found["num_left_out"], found["difference"]["n"]) == (1, 5)
    said = f"Cut or left out by {trained_run}: 1 x response: over-long response, 1 x row"
    assert said in found["sentence"]


def test_long_texts_of_battery_and_probes_are_counted_everywhere(
    evaluate: Evaluate, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A battery pair of 300 tokens is cut. Two worse answers of four have 250 tokens: a closing
    makes them too long. Each better one has 60, which the probe `loop` repeats eight times."""
    monkeypatch.setattr(pipeline, "read_battery", lambda files: read_battery(files, built_in=False))
    rows = [
        {"prompt": f"Why {i}?", "chosen": words(60), "rejected": words(250 if i % 2 else 90)}
        for i in range(4)
    ]
    battery = write_rows(tmp_path / "own.jsonl", own_pairs(chosen=words(300)))
    flags = ["--battery", battery, "--probes.min_pairs", "4", "--probes.beliefs", "false"]
    output = tmp_path / "out"
    path = write_rows(tmp_path / "rows.jsonl", rows)
    code, out, _ = evaluate(model, path, *flags, "--output", output)
    assert code == 0
    stored = json.loads((output / "evaluation.json").read_text())
    notes = {f["check"]: f["message"] for f in stored["findings"] if f["severity"] == "note"}
    assert notes["battery: length"].startswith("1 of 16 pairs have an answer that is longer")
    assert notes["battery: length"].endswith("lost its end: m5.")
    assert stored["battery"]["cut"] == ["m5"]
    number = {probe["name"]: probe["num_left_out"] for probe in stored["probes"]}
    assert number["closing"] == 2 and "loop" not in number
    for said in ("closing 2", "loop all"):
        assert said in notes["probes: length"]
    page = Page((output / "report.html").read_text()).text
    assert notes["battery: length"] in page and notes["probes: length"] in page
    assert "note   battery: length" in out and "note   probes: length" in out


# --- Rewards that are no numbers ---


def to_nan(weight: Any) -> None:
    weight.fill_(float("nan"))


def tilde_to_nan(weight: Any) -> None:
    """The embedding of one character: NaN for texts that hold it, and for no other."""
    weight[byte_tokenizer()("~").input_ids[0]] = float("nan")


def test_a_head_of_nan_is_called_that(evaluate: Evaluate, tmp_path: Path, model: str) -> None:
    broken = changed(model, tmp_path / "broken", "score", to_nan)
    path = write_rows(tmp_path / "rows.jsonl", new_rows(4))
    for asked in ([broken, path], [model, path, "--versus", broken]):
        code, out, err = evaluate(*asked, *QUICK)
        assert (code, out) == (1, "")
        assert f"{broken}: rewards are NaN or infinite: its weight" in err
        assert "score.weight holds such numbers; get the checkpoint again" in err


def test_nan_for_one_text_is_that_text_and_no_average(
    evaluate: Evaluate, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = changed(model, tmp_path / "broken", "embed_tokens", tilde_to_nan)
    rows = new_rows(8)
    rows[4]["rejected"] = "No~"
    path = write_rows(tmp_path / "rows.jsonl", rows)
    named = f"{path}:5: the reward of answer 1, counted from 0, is nan: 'No~' (1 of 16 answers)"
    code, out, err = evaluate(broken, path, *QUICK)
    assert (code, out) == (1, "") and f"palate evaluate: {named}" in err
    code, out, err = evaluate(model, path, *QUICK, "--versus", broken)
    assert (code, out) == (1, "") and f"palate evaluate: {broken}: {named}" in err
    code, out, err = evaluate(broken, "--suite.preferences", path, "--output", "none")
    assert (code, out) == (1, "") and f"{path}:5 (item line 5): the reward of answer 1" in err
    monkeypatch.setattr(pipeline, "read_battery", lambda files: read_battery(files, built_in=False))
    battery = write_rows(tmp_path / "own.jsonl", own_pairs(rejected="No~"))
    even = write_rows(tmp_path / "ties.jsonl", ties(3))
    code, out, err = evaluate(broken, even, "--battery", battery, "--output", "none")
    assert (code, out) == (1, "")
    assert f"{battery}:6: battery item 'm5', rejected: the reward is nan" in err


# --- Two models ---


def test_models_of_different_tokenizers_are_rendered_each_in_its_own_way(
    evaluate: Evaluate, tmp_path: Path, model: str
) -> None:
    """A byte-level decoder against a BERT of word pieces without a template: the second's accuracy
    is the one that it has by itself."""
    other = save_tiny(tmp_path / "bert", "bert", head=True, tokenizer=word_piece_tokenizer())
    path = write_rows(tmp_path / "rows.jsonl", new_rows(8))
    code, out, _ = evaluate(model, path, *QUICK, "--versus", other, "--json")
    assert code == 0
    (found,) = json.loads(out)["versus"]
    assert (found["num_left_out"], found["remark"]) == (0, "")
    code, out, _ = evaluate(other, path, *QUICK, "--json")
    assert code == 0
    printed = json.loads(out)
    assert printed["metrics"]["accuracy"]["value"] == found["second_accuracy"]["value"]
    assert len(printed["protocol"]["fingerprint"]["weights"]) == 64


def test_an_item_that_the_template_refuses_is_named(
    evaluate: Evaluate, tmp_path: Path, model: str
) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    rows: list[dict[str, Any]] = [*new_rows(3)]
    rows[1] = {**rows[1], "tools": [tool]}
    path = write_rows(tmp_path / "rows.jsonl", rows)
    code, _, err = evaluate(model, "--suite.preferences", path, "--output", "none")
    assert code == 1
    assert "rows.jsonl:2 (item line 2): the chat template ignores tools" in err
    code, out, _ = evaluate(model, path, *QUICK)
    assert code == 0
    assert "1  row: tools ignored  (first: " in out and "2 prompts measured" in out


@pytest.mark.parametrize("other", ["nowhere/at/all", "model itself", "some/model"])
def test_a_second_model_that_is_none_is_found_before_the_first_is_measured(
    evaluate: Evaluate, tmp_path: Path, other: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", new_rows(2))
    if other == "model itself":
        code, _, err = evaluate(ABSENT, path, "--versus", f"{ABSENT}/")
        assert code == 1 and "versus is the model itself" in err
        return
    code, _, err = evaluate(ABSENT, path, "--versus", other)
    assert code == 1
    assert f"{other}: no" in err and ABSENT not in err


# --- Batteries of one's own ---

LINES = "".join(json.dumps(row) + "\n" for row in own_pairs())
BATTERIES: dict[str, tuple[Any, str]] = {
    "cut JSON": (LINES[:-20], "own.jsonl:16: malformed JSON"),
    "field is missing": (
        [*own_pairs()[:5], {"category": "mine", "id": "x", "prompt": "q", "chosen": "a"}],
        "own.jsonl:6: no field 'rejected'; found 'category', 'id', 'prompt', 'chosen'",
    ),
    "one text as both": (own_pairs(rejected="Yes."), "own.jsonl:6: chosen and rejected are the"),
    "an id twice": (own_pairs(id="m1"), "own.jsonl:6: id 'm1' stands at"),
    "an id of the built-in": (own_pairs(id="waffle-01"), "own.jsonl:6: id 'waffle-01' stands at"),
    "an id that is a list": (own_pairs(id=["x"]), "own.jsonl:6: id is list ['x'], not a name"),
    "empty prompt": (own_pairs(prompt=" "), "own.jsonl:6: empty prompt"),
    "no messages": (own_pairs(prompt=[]), "own.jsonl:6: empty prompt"),
    "tools": (own_pairs(tools=[{"x": 1}]), "own.jsonl:6: tools has no effect in a battery"),
    "Latin-1": (LINES.replace("Q5", "Q\xe9").encode("latin-1"), "own.jsonl:6: not UTF-8"),
    "not gzipped": (LINES, "own.jsonl.gz: cut or damaged"),
    "a list": (json.dumps(own_pairs()), "own.jsonl:1: [{'category'"),
    "a category of one": (
        own_pairs(category="y"),
        "own.jsonl:6: category 'y' ends here with 1 pair,",
    ),
}


@pytest.mark.parametrize("case", BATTERIES)
def test_a_bad_battery_is_refused_with_its_line_before_anything_is_scored(
    evaluate: Evaluate, tmp_path: Path, case: str
) -> None:
    content, message = BATTERIES[case]
    path = tmp_path / ("own.jsonl.gz" if case == "not gzipped" else "own.jsonl")
    if isinstance(content, list):
        write_rows(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)
    data = write_rows(tmp_path / "rows.jsonl", new_rows(2))
    code, out, err = evaluate(ABSENT, data, "--battery", path)
    assert (code, out) == (1, "")
    assert message in err


def test_a_battery_that_is_no_file(evaluate: Evaluate, tmp_path: Path) -> None:
    own = write_rows(tmp_path / "own.jsonl", own_pairs())
    data = write_rows(tmp_path / "rows.jsonl", new_rows(2))
    for battery, message in (
        (str(tmp_path), "it is a directory; name a file"),
        (str(tmp_path / "none.jsonl"), "no such file; check the path"),
        (f"{own},{own}", "own.jsonl: named twice"),
    ):
        code, _, err = evaluate(ABSENT, data, "--battery", battery)
        assert code == 1 and message in err
    code, _, err = evaluate(ABSENT, "--suite.preferences", data, "--battery", own)
    assert code == 1 and "battery has no effect without preference files" in err


def test_fields_that_a_battery_does_not_know_are_notes(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "own.jsonl", own_pairs(colour="red", tools=[]))
    assert len(read_battery([path], built_in=False).items) == 16


# --- Earlier evaluations ---


def earlier(directory: Path, lines: list[str]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / REWARDS).write_text("".join(lines))
    return directory


def outcomes(count: int, first: int = 0) -> list[Outcome]:
    return [Outcome(group, np.array([1.0, 0.0])) for group in pair_groups(count, first)]


def with_rewards(line: str, rewards: Any) -> str:
    return json.dumps({**json.loads(line), "rewards": rewards}) + "\n"


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([1.0], f"{REWARDS}: 1 rewards for the 2 answers"),
        ([1.0, 2.0, 3.0], f"{REWARDS}: 3 rewards for the 2 answers"),
        ([1.0, float("nan")], f"{REWARDS}:2: no line of rewards"),
        (None, f"{REWARDS}:2: no line of rewards"),
        (5, f"{REWARDS}:2: no line of rewards"),
        (["a", "b"], f"{REWARDS}:2: no line of rewards"),
    ],
)
def test_rewards_that_are_none_are_refused_with_their_line(
    tmp_path: Path, rewards: Any, message: str
) -> None:
    lines = [line_of(outcome) for outcome in outcomes(3)]
    directory = earlier(tmp_path / "then", [lines[0], with_rewards(lines[1], rewards), lines[2]])
    with pytest.raises(PalateError, match="run the earlier evaluation again") as raised:
        against_earlier(outcomes(3), directory)
    assert message in str(raised.value)


def test_prompts_of_one_evaluation_alone_are_counted(tmp_path: Path) -> None:
    """Then 0 to 5, now 4 to 6: two are held against each other, one and four are not."""
    directory = earlier(tmp_path / "then", [line_of(outcome) for outcome in outcomes(6)])
    found = against_earlier(outcomes(3, 4), directory)
    assert found.difference.n == 2
    assert found.sentence.endswith(
        "Only one has 1 prompt of this evaluation and 4 prompts of the earlier one."
    )
    assert against_earlier(outcomes(6), directory).remark == ""


def test_a_prompt_that_stands_twice_is_held_against_its_own_rewards(tmp_path: Path) -> None:
    """Right and then wrong, both times; to take the last line for both would make a loss of one.
    An id may hold what other programs take for the end of a line."""
    (one,) = outcomes(1)
    wrong = replace(one, reward_N=np.array([0.0, 1.0]))
    group = replace(one.group, group=replace(one.group.group, id="a\u2028b"))
    twice = [replace(one, group=group), wrong]
    directory = earlier(tmp_path / "then", list(map(line_of, twice)))
    assert against_earlier(twice, directory).difference.value == 0


@pytest.mark.parametrize("case", ["absent", "a file", "without an evaluation", "Latin-1", "empty"])
def test_an_earlier_evaluation_that_is_none_is_found_before_anything_is_scored(
    evaluate: Evaluate, tmp_path: Path, case: str
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", new_rows(2))
    directory = earlier(tmp_path / "then", [])
    if case == "without an evaluation":
        (directory / REWARDS).unlink()
    if case == "Latin-1":
        (directory / REWARDS).write_bytes("\xe9".encode("latin-1"))
    named = {"absent": tmp_path / "none", "a file": Path(data)}.get(case, directory)
    code, _, err = evaluate(ABSENT, data, "--baseline", named)
    assert code == 1
    assert str(named / REWARDS) in err and ABSENT not in err


# --- Flags and data ---


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--fail-on", "sometimes"], 2, "'error', 'warn', 'never'. Got value: sometimes"),
        (["--qiuck", "true"], 2, "did you mean 'quick'?"),
        (["--siute.rewardbench", "x"], 2, "did you mean 'suite.rewardbench'?"),
        (["--suite", "x"], 2, "--suite takes a benchmark's name: --suite.rewardbench FILE"),
        (["--suite.ppe", ""], 1, "a benchmark's file has an empty name"),
        (
            ["--suite.ppe", "a.jsonl", "--suite.ppe=b.jsonl"],
            2,
            "--suite.ppe is given twice; put its files into one folder",
        ),
    ],
)
def test_odd_flags_are_refused(
    evaluate: Evaluate, tmp_path: Path, flags: list[str], code: int, message: str
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", new_rows(2))
    found, out, err = evaluate(ABSENT, data, *flags)
    assert (found, out) == (code, "")
    assert message in err


@pytest.mark.parametrize("flags", [["--part", "test"], ["--read.columns.prompt", "question"]])
def test_settings_of_preference_data_have_no_effect_on_benchmarks(
    evaluate: Evaluate, tmp_path: Path, flags: list[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", new_rows(2))
    code, _, err = evaluate(ABSENT, "--suite.preferences", data, *flags)
    assert code == 1 and "has no effect without preference files" in err


def test_a_part_of_a_model_that_is_no_run(evaluate: Evaluate, tmp_path: Path, model: str) -> None:
    data = write_rows(tmp_path / "rows.jsonl", new_rows(2))
    code, _, err = evaluate(model, data, *QUICK, "--part", "test")
    assert code == 1 and "part test has no effect" in err and "split.json" in err


def test_an_output_that_is_there_is_kept(evaluate: Evaluate, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", new_rows(2))
    (tmp_path / "evaluation.json").write_text("{}")
    for output, message in ((tmp_path, "already holds a finished run"), (data, "is a file")):
        code, _, err = evaluate(ABSENT, data, "--output", output)
        assert code == 1 and message in err
    assert (tmp_path / "evaluation.json").read_text() == "{}"


def test_ties_alone_have_no_accuracy_and_nothing_to_compare(
    evaluate: Evaluate, tmp_path: Path, model: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ties(5))
    code, out, _ = evaluate(model, path, "--quick", "true", "--output", tmp_path / "out")
    assert code == 0
    assert "No comparison has a better side, so there is no accuracy." in out
    assert "accuracy" not in json.loads((tmp_path / "out/evaluation.json").read_text())["metrics"]
    code, _, err = evaluate(model, path, *QUICK, "--baseline", tmp_path / "out")
    assert code == 1 and "no comparison of these data has a better side" in err


def test_no_votes_at_all_are_refused(evaluate: Evaluate, tmp_path: Path, model: str) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{**row, "votes": []} for row in ties(5)])
    code, _, err = evaluate(model, path, *QUICK)
    assert code == 1 and "none of 5 rows is usable" in err and "no comparison" in err


def test_one_prompt_has_numbers_without_intervals(
    evaluate: Evaluate, tmp_path: Path, model: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", new_rows(1))
    code, _, _ = evaluate(model, path, "--quick", "true", "--output", tmp_path / "out")
    assert code == 0

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    written = (tmp_path / "out/evaluation.json").read_text()
    stored = json.loads(written, parse_constant=refuse)
    assert stored["metrics"]["accuracy"]["low"] is None
    assert any("too few for a prompt-blind" in f["message"] for f in stored["findings"])


def test_equal_rewards_everywhere_are_an_error_and_lose_to_a_model_that_reads(
    evaluate: Evaluate, tmp_path: Path, model: str, trained_run: Path
) -> None:
    """A head of zeros is half right on everything; that it and a model that is right 'decide every
    comparison alike' was said of it once."""
    zero = changed(model, tmp_path / "zero", "score", lambda weight: weight.zero_())
    path = write_rows(tmp_path / "rows.jsonl", new_rows(12))
    code, out, _ = evaluate(
        zero, path, *QUICK, "--versus", trained_run, "--fail-on", "error", "--json"
    )
    assert code == 1
    printed = json.loads(out)
    assert printed["findings"][0]["check"] == "ties"
    assert printed["metrics"]["accuracy"]["value"] == 0.5
    (found,) = printed["versus"]
    assert found["num_with_ties"] == 12
    assert found["winner"] == "second"
    assert found["difference"]["value"] == pytest.approx(0.5 - found["second_accuracy"]["value"])
    assert found["second_accuracy"]["value"] > 0.9
    assert "alike" not in found["sentence"] and "exact sign test" in found["sentence"]


# --- The same number again ---


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """Answers of 10 to 200 tokens, so that a budget of 256 cuts the batches elsewhere than 8192."""
    rows = [
        {"prompt": f"Question {i}?" * (1 + i % 3), "chosen": words(10 + 19 * i), "rejected": "No."}
        for i in range(11)
    ]
    path = write_rows(tmp_path_factory.mktemp("benchmark") / "rows.jsonl", rows)
    return read_benchmark(path, "preferences")


def test_token_budget_and_padding_change_no_score(
    evaluate: Evaluate, tmp_path: Path, model: str, benchmark: Benchmark
) -> None:
    (path,) = benchmark.data_sha256
    results = []
    for budget in (256, 8192):
        output = tmp_path / str(budget)
        flags = ["--tokens_per_microbatch", budget, "--output", output]
        assert evaluate(model, "--suite.preferences", path, *flags)[0] == 0
        results.append(recompute(output / "preferences.jsonl", benchmark))
        stored = json.loads((output / "evaluation.json").read_text())["suite"]["preferences"]
        assert stored == json.loads(json.dumps(results[-1].as_json()))
    first, second = results
    for one, other in zip(first.items, second.items, strict=True):
        assert one.content_sha256 == other.content_sha256
        assert one.rewards == pytest.approx(other.rewards, abs=1e-5)
    assert first.protocol["items_sha256"] == second.protocol["items_sha256"]
    assert first.scores == second.scores
    scorer = palate.load(model)
    alone = score_benchmark(
        lambda items: [scorer.score_items([item])[0] for item in items], benchmark
    )
    for one, other in zip(first.items, alone.items, strict=True):
        assert one.rewards == pytest.approx(other.rewards, abs=1e-5)


ALTERED: dict[str, dict[str, Any]] = {
    "a reward": {"rewards": [9.0, 0.0]},
    "a content hash": {"content_sha256": "0" * 64},
    "a comparison": {"comparisons": [[1, 0, 1.0]]},
    "a length": {"num_characters": [1, 2]},
    "a comparison of nothing": {"comparisons": [[7, 8, 1.0]]},
}


@pytest.mark.parametrize("case", ALTERED)
def test_an_altered_item_is_found_by_its_hash(
    tmp_path: Path, benchmark: Benchmark, case: str
) -> None:
    path = tmp_path / "items.jsonl"
    write_items(path, score_benchmark(lambda items: [0.5] * len(items), benchmark))
    lines = path.read_text().splitlines()
    lines[3] = json.dumps({**json.loads(lines[3]), **ALTERED[case]})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(PalateError, match="line 3 is not as it was written") as raised:
        recompute(path)
    assert str(raised.value).startswith(f"{path}:4: ")


def test_items_of_another_kind_of_file_are_refused(tmp_path: Path, benchmark: Benchmark) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes("\xe9".encode("latin-1"))
    with pytest.raises(PalateError, match="not a file of benchmark items"):
        recompute(path)
    write_items(path, score_benchmark(lambda items: [0.5] * len(items), benchmark))
    lines = path.read_text().splitlines()
    row = json.loads(lines[1])
    del row["row_sha256"]
    path.write_text("\n".join([lines[0], json.dumps(row), *lines[2:]]) + "\n")
    with pytest.raises(PalateError, match=":2: not an item of a benchmark"):
        recompute(path)


def test_notes_on_repeats_are_the_same_without_the_model(tmp_path: Path) -> None:
    row = rb1("math-prm", text(1), text(1))
    benchmark = read_benchmark(write_rows(tmp_path / "rows.jsonl", [row, row]), "rewardbench")
    result = score_benchmark(by_first_word, benchmark)
    assert sum("every model ties" in note for note in result.notes) == 1
    write_items(tmp_path / "items.jsonl", result)
    assert recompute(tmp_path / "items.jsonl") == result

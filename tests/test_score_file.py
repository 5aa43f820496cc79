"""A file of answers becomes a file of rewards: nothing lost, nothing repeated, whatever happens."""

import csv
import datetime
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import palate
from palate.errors import PalateError
from palate.pipeline import score_file as score_file_module
from palate.pipeline import score_stages
from palate.pipeline.score_file import ScoreConfig, ScoreResult, score_file
from palate.pipeline.score_progress import Progress
from palate.pipeline.score_rows import PendingRow
from palate.preferences.formats.fields import messages_of
from palate.scoring.scorer import Scorer
from tests.tiny import save_tiny

BUDGET = 150
"""Tokens of a microbatch: a tree of two of the rows below, a chunk of about 60."""
NUM_ROWS = 240


@pytest.fixture(scope="module")
def scorer(trained_run: Path) -> Scorer:
    return palate.load(trained_run)


def plain_rows(count: int) -> list[dict[str, Any]]:
    """Rows of several shapes, each with its number in `id`; four neighbours share a prompt, so that
    what else is in a batch moves the last bits of a reward."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        prompt = f"Question {number // 4}: which word of this long list do you think it is?"
        answer = f"It is {'ember' * (number % 5 + 1)}."
        if number % 7 == 3:
            rows.append({"id": number, "prompt": prompt, "responses": [answer, "No!", "?"]})
        elif number % 7 == 5:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            rows.append({"id": number, "messages": turns})
        else:
            rows.append({"id": number, "prompt": prompt, "response": answer})
    return rows


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    if str(path).endswith(".parquet"):
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def score(run: Path | str, data: str, output: Path, **changes: Any) -> ScoreResult:
    fields: dict[str, Any] = {"tokens_per_microbatch": BUDGET, **changes}
    return score_file(ScoreConfig(model=str(run), data=data, output=str(output), **fields))


def left_behind(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if "partial" in path.name)


@pytest.fixture(scope="module")
def uninterrupted(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rows.jsonl of 240 rows, of which some are malformed, and scored.jsonl."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    rows = plain_rows(NUM_ROWS)
    rows[10] = {"id": 10, "prompt": "Which?", "response": ""}
    rows[47] = {"id": 47, "response": "no prompt"}
    lines = [json.dumps(row) for row in rows]
    lines[31] = '{"id": 31, "prompt": "cut off'
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    score(trained_run, str(folder / "rows.jsonl"), folder / "scored.jsonl")
    return folder


@pytest.mark.parametrize("tokens_per_microbatch", [1, BUDGET, 8192])
def test_the_file_has_the_rewards_that_python_gives(
    trained_run: Path, scorer: Scorer, tmp_path: Path, tokens_per_microbatch: int
) -> None:
    rows = plain_rows(30)
    data = write_rows(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "scored.jsonl"
    result = score(trained_run, data, output, tokens_per_microbatch=tokens_per_microbatch)
    assert (result.num_rows, result.num_errors, result.num_cut, result.num_resumed) == (30, 0, 0, 0)
    for row, scored in zip(rows, read_rows(output), strict=True):
        assert {key: scored[key] for key in row} == row
        assert scored["error"] is None
        if "responses" in row:
            expected = [scorer.score(row["prompt"], text) for text in row["responses"]]
            assert scored["rewards"] == pytest.approx(expected, abs=1e-5)
        else:
            turns = row.get("messages") or [
                {"content": row["prompt"]},
                {"content": row["response"]},
            ]
            expected_reward = scorer.score(turns[0]["content"], turns[1]["content"])
            assert scored["reward"] == pytest.approx(expected_reward, abs=1e-5)
    assert left_behind(tmp_path) == []


def test_jsonl_json_csv_and_parquet_plain_or_gzipped_give_the_same_rewards(
    trained_run: Path, tmp_path: Path
) -> None:
    rows = [{"id": str(i), "prompt": f'Q{i}, "so"\nor?', "response": f"Ä{i} ✓"} for i in range(9)]
    write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    with open(tmp_path / "c.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, ["id", "prompt", "response"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    for name in ("a.jsonl", "b.json", "c.csv", "d.parquet"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    expected = None
    for source in sorted(tmp_path.glob("[abcd].*")):
        output = tmp_path / f"scored-{source.name}.jsonl"
        score(trained_run, str(source), output)
        expected = expected or read_rows(output)
        assert read_rows(output) == expected, source.name
    assert expected is not None
    assert [row["id"] for row in expected] == [row["id"] for row in rows]


def test_parquet_output_holds_the_rows_of_jsonl_output(
    uninterrupted: Path, trained_run: Path
) -> None:
    output = uninterrupted / "scored.parquet"
    score(trained_run, str(uninterrupted / "rows.jsonl"), output)
    in_lines = read_rows(uninterrupted / "scored.jsonl")
    in_table = read_rows(output)
    names = {name for row in in_lines for name in row}
    assert set(pyarrow.parquet.read_schema(output).names) == names
    for line, record in zip(in_lines, in_table, strict=True):
        for name in ("id", "prompt", "reward", "rewards", "error", "messages"):
            assert record[name] == line.get(name), name
    assert left_behind(uninterrupted) == []


def test_rows_that_cannot_be_scored_keep_their_place_with_the_reason(uninterrupted: Path) -> None:
    scored = read_rows(uninterrupted / "scored.jsonl")
    assert len(scored) == NUM_ROWS
    wrong = {place: row for place, row in enumerate(scored) if row["error"]}
    assert wrong.keys() == {10, 31, 47}
    assert wrong[10]["error"] == "empty response"
    assert wrong[31]["error"].startswith("line 32: malformed JSON: ")
    assert wrong[47]["error"].startswith("no field 'prompt'; found ")
    assert all(row["reward"] is None for row in wrong.values())
    assert [row["id"] for row in scored if "id" in row] == [i for i in range(NUM_ROWS) if i != 31]


def test_one_bad_answer_of_several_leaves_the_others_their_rewards(
    trained_run: Path, scorer: Scorer, tmp_path: Path
) -> None:
    row = {"prompt": "Which?", "responses": ["Yes.", 7, {"model": "m"}, " ", "No."]}
    output = tmp_path / "scored.jsonl"
    result = score(trained_run, write_rows(tmp_path / "rows.jsonl", [row]), output)
    (scored,) = read_rows(output)
    assert scored["rewards"][1:4] == [None, None, None]
    good = [scored["rewards"][0], scored["rewards"][4]]
    assert good == pytest.approx([scorer.score("Which?", t) for t in ("Yes.", "No.")], abs=1e-5)
    complaints = scored["error"].split("; ")
    assert len(complaints) == 3
    assert complaints[0] == "response 1: response is int 7, not a string"
    assert complaints[1].startswith("response 2: text is NoneType")
    assert complaints[2] == "response 3: empty response"
    assert result.num_errors == 1


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"prompt": "Which?"}, "no field 'response'"),
        ({"prompt": "Which?", "response": None}, "no field 'response'"),
        ({"prompt": "Which?", "response": 3.5}, "response is float 3.5, not a string"),
        ({"prompt": "Which?", "responses": "Yes."}, "responses is str, not a list"),
        ({"prompt": 5, "response": "Yes."}, "prompt is int, not text or messages"),
        ({"prompt": " ", "response": "Yes."}, "empty prompt"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "do not end with an assistant message"),
        ({"messages": "Hi"}, "do not end with an assistant message"),
        ({"prompt": "Which?", "response": "a\ud83d"}, "lone surrogate at character 1"),
        ({"prompt": "Which?", "response": "a", "tools": "{"}, "tools is a string but not JSON"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "response": "A cat."},
            "content of type 'image'",
        ),
    ],
)
def test_each_kind_of_bad_row_says_what_is_wrong_with_it(
    trained_run: Path, tmp_path: Path, row: dict[str, Any], error: str
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [row, {"prompt": "Which?", "response": "Yes."}])
    result = score(trained_run, data, tmp_path / "scored.jsonl")
    bad, good = read_rows(tmp_path / "scored.jsonl")
    assert error in bad["error"]
    assert bad["reward"] is None
    assert (good["error"], result.num_errors) == (None, 1)
    assert isinstance(good["reward"], float)


def test_an_empty_list_of_responses_is_an_empty_list_of_rewards(
    trained_run: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Which?", "responses": []}])
    score(trained_run, data, tmp_path / "scored.jsonl")
    assert read_rows(tmp_path / "scored.jsonl")[0]["rewards"] == []


def test_an_unfinished_answer_is_not_closed_in_silence(
    trained_run: Path, scorer: Scorer, tmp_path: Path
) -> None:
    answers = [{"text": "It is"}, {"text": "It is", "finished": False}]
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Which?", "responses": answers}])
    score(trained_run, data, tmp_path / "scored.jsonl")
    closed, unfinished = read_rows(tmp_path / "scored.jsonl")[0]["rewards"]
    assert closed == pytest.approx(scorer.score("Which?", "It is"), abs=1e-5)
    ids = scorer.renderer.encode_prompt(messages_of("Which?", "prompt"))
    text_ids = scorer.renderer.tokenizer("It is", add_special_tokens=False).input_ids
    assert unfinished == pytest.approx(scorer.score_ids([[*ids, *text_ids]])[0], abs=1e-5)
    assert unfinished != pytest.approx(closed, abs=1e-3)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_lone_surrogate_anywhere_in_a_row_stops_no_file(
    trained_run: Path, tmp_path: Path, suffix: str
) -> None:
    """In the answer it is an error of that row; in another column it is none of our business. JSON
    keeps it as an escape; Parquet holds only valid Unicode."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"prompt": "Which?", "response": "a\\ud83d"}\n'
        '{"prompt": "Which?", "response": "Yes 😀.", "note": ["b\\udfff", "\\ud83d\\ude00"]}\n'
    )
    output = tmp_path / f"scored.{suffix}"
    assert score(trained_run, str(path), output).num_errors == 1
    bad, good = read_rows(output)
    assert "lone surrogate" in bad["error"]
    assert isinstance(good["reward"], float)
    assert good["response"] == "Yes 😀."
    assert good["note"] == (["b\udfff", "😀"] if suffix == "jsonl" else ["b?", "😀"])


def test_an_over_long_answer_is_an_error_of_its_row_and_is_cut_when_asked(
    trained_run: Path, scorer: Scorer, tmp_path: Path
) -> None:
    """The run's limits are 256 tokens, and a token is a byte. The over-long prompt is cut in any
    case, as it was in training, and counted."""
    rows = [
        {"prompt": "Which?", "response": "ab" * 200},
        {"prompt": "cd" * 200, "response": "Yes."},
        {"prompt": "Which?", "response": "Yes."},
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    refused = score(trained_run, data, tmp_path / "refused.jsonl")
    assert (refused.num_errors, refused.num_cut) == (1, 1)
    first, second, third = read_rows(tmp_path / "refused.jsonl")
    assert "401 tokens" in first["error"]
    assert "at most 256" in first["error"]
    assert first["reward"] is None
    cut = score(trained_run, data, tmp_path / "cut.jsonl", overlong="cut")
    assert (cut.num_errors, cut.num_cut) == (0, 2)
    rewards = [row["reward"] for row in read_rows(tmp_path / "cut.jsonl")]
    assert rewards[1:] == pytest.approx([second["reward"], third["reward"]], abs=1e-5)
    prompt_ids = scorer.renderer.encode_prompt(messages_of("Which?", "prompt"))
    answer_ids = scorer.renderer.tokenizer("ab" * 128, add_special_tokens=False).input_ids
    assert rewards[0] == pytest.approx(scorer.score_ids([prompt_ids + answer_ids])[0], abs=1e-5)


def test_null_columns_of_a_parquet_file_do_not_hide_the_others(
    trained_run: Path, tmp_path: Path
) -> None:
    """A table has each column in each row; here a row uses one of the three ways in turn."""
    table = pyarrow.Table.from_pylist(
        [
            {"prompt": "Which?", "response": "Yes.", "responses": None, "messages": None},
            {"prompt": "Which?", "response": None, "responses": ["Yes.", "No."], "messages": None},
            {
                "prompt": None,
                "response": None,
                "responses": None,
                "messages": [
                    {"role": "user", "content": "Which?"},
                    {"role": "assistant", "content": "Yes."},
                ],
            },
        ]
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    output = tmp_path / "scored.jsonl"
    assert score(trained_run, str(tmp_path / "rows.parquet"), output).num_errors == 0
    one, several, turns = read_rows(output)
    assert several["rewards"][0] == pytest.approx(one["reward"], abs=1e-5)
    assert turns["reward"] == pytest.approx(one["reward"], abs=1e-5)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_columns_that_json_does_not_know_travel_as_text(
    trained_run: Path, tmp_path: Path, suffix: str
) -> None:
    day = datetime.datetime(2024, 7, 26, 12, 30)
    table = pyarrow.table({"prompt": ["Which?"], "response": ["Yes."], "asked_at": [day]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    output = tmp_path / f"scored.{suffix}"
    score(trained_run, str(tmp_path / "rows.parquet"), output)
    assert read_rows(output)[0]["asked_at"] == "2024-07-26 12:30:00"


@pytest.mark.parametrize(
    "second",
    [
        {"prompt": [{"role": "user", "content": "Which?"}], "response": "Yes."},
        {"prompt": "Which?", "response": "Yes.", "number": 2**70},
    ],
)
def test_rows_that_fit_no_table_are_kept_as_lines_and_the_message_says_where(
    trained_run: Path, tmp_path: Path, second: dict[str, Any]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "Which?", "response": "Yes."}, second])
    kept_in = tmp_path / "scored.parquet.partial" / "scored.jsonl"
    with pytest.raises(PalateError, match=rf"don't fit one table.*{kept_in}, take that file"):
        score(trained_run, data, tmp_path / "scored.parquet")
    assert not (tmp_path / "scored.parquet").exists()
    kept = read_rows(kept_in)
    assert [isinstance(row["reward"], float) for row in kept] == [True, True]


def test_a_truncated_gzip_gives_its_whole_rows_and_an_error_at_the_end(
    trained_run: Path, tmp_path: Path
) -> None:
    """Random text does not compress, so half of the bytes hold about half of the rows."""
    rows = [{"prompt": "Which?", "response": os.urandom(60).hex()} for _ in range(60)]
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (tmp_path / "rows.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    output = tmp_path / "scored.jsonl"
    result = score(trained_run, str(tmp_path / "rows.jsonl.gz"), output)
    *scored, last = read_rows(output)
    assert 10 < len(scored) < 50
    assert [row["response"] for row in scored] == [row["response"] for row in rows[: len(scored)]]
    assert "cut or damaged after this line" in last["error"]
    assert result.num_errors == 1


class Stopped(Exception):
    """Stands for the end of the process: nothing of score_file catches it."""


def stop_after(run: Path, data: str, output: Path, step: str, num_times: int) -> None:
    """Score until that kind of step is done so many times, then go away without a word."""
    seen = []

    def stop(done: str, _: int) -> None:
        seen.append(done)
        if seen.count(step) == num_times:
            raise Stopped

    with pytest.raises(Stopped):
        score_file(
            ScoreConfig(
                model=str(run), data=data, output=str(output), tokens_per_microbatch=BUDGET
            ),
            stop,
        )


@pytest.mark.parametrize("field", ["num_rows", "num_scored"])
def test_an_interrupt_between_a_record_and_its_news_loses_nothing(
    trained_run: Path,
    uninterrupted: Path,
    tmp_path: Path,
    field: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first chunk of rows, or one of rewards, is on the disk and nobody has heard of it."""
    data = str(uninterrupted / "rows.jsonl")
    output = tmp_path / "scored.jsonl"
    real = score_stages.save

    def save_and_stop(directory: Path, progress: Progress) -> None:
        real(directory, progress)
        if getattr(progress, field):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(score_stages, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            score(trained_run, data, output)
    recorded = json.loads((tmp_path / "scored.jsonl.partial.json").read_text())
    assert recorded["num_rows"] > 0
    assert f"{recorded['num_rows']} rows" in caplog.text
    if field == "num_scored":
        kept = f"the rewards of {recorded['num_scored']} of {recorded['num_answers']} answers"
        assert kept in caplog.text
    result = score(trained_run, data, output)
    assert output.read_bytes() == (uninterrupted / "scored.jsonl").read_bytes()
    assert result.num_rows == NUM_ROWS


@pytest.mark.parametrize(
    ("step", "num_times"),
    [("render", 1), ("render", 3), ("score", 1), ("score", 2), ("write", 1)],
)
def test_a_stopped_run_goes_on_to_the_same_bytes_and_scores_nothing_twice(
    trained_run: Path,
    uninterrupted: Path,
    tmp_path: Path,
    step: str,
    num_times: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = str(uninterrupted / "rows.jsonl")
    output = tmp_path / "scored.jsonl"
    scored: list[tuple[int, ...]] = []
    rendered: list[object] = []
    score_ids, prepare_row = Scorer.score_ids, score_file_module.prepare_row

    def counted_ids(self: Scorer, sequences: Sequence[tuple[int, ...]]) -> list[float]:
        scored.extend(sequences)
        return score_ids(self, sequences)

    def counted_row(row: Any, scorer: Scorer) -> PendingRow:
        rendered.append(row)
        return prepare_row(row, scorer)

    stop_after(trained_run, data, output, step, num_times)
    progress = json.loads((tmp_path / "scored.jsonl.partial.json").read_text())
    assert not output.exists()
    monkeypatch.setattr(score_file_module, "prepare_row", counted_row)
    monkeypatch.setattr(Scorer, "score_ids", counted_ids)
    monkeypatch.setattr("palate.scoring.scorer._check_references", lambda *_: None)
    result = score(trained_run, data, output)
    assert output.read_bytes() == (uninterrupted / "scored.jsonl").read_bytes()
    assert (result.num_rows, result.num_errors) == (NUM_ROWS, 3), "of both runs together"
    assert len(rendered) == NUM_ROWS - progress["num_rows"]
    assert len(scored) <= sum_of_answers(output) - progress["num_scored"]
    assert (len(scored) == 0) == (step == "write")
    if step == "render":
        assert 0 < progress["num_rows"] < NUM_ROWS
        assert result.num_resumed == 0
    elif step == "score":
        assert 0 < result.num_resumed < NUM_ROWS
    else:
        assert result.num_resumed == NUM_ROWS - 3, "all that have an answer"
    assert left_behind(tmp_path) == []


def sum_of_answers(output: Path) -> int:
    rows = read_rows(output)
    return sum(len(row.get("rewards", [0])) for row in rows if not row["error"])


@pytest.mark.parametrize("num_bytes", [1, 40, 333, 1500])
@pytest.mark.parametrize("step", ["render", "score"])
def test_what_a_kill_cut_off_in_the_middle_is_written_again_once(
    trained_run: Path, uninterrupted: Path, tmp_path: Path, step: str, num_bytes: int
) -> None:
    """A kill in the middle of a write leaves the chunks before it, and some bytes of the next: at
    the end of the files that grow, at the places that have no reward yet."""
    data = str(uninterrupted / "rows.jsonl")
    stop_after(trained_run, data, tmp_path / "scored.jsonl", step, 1)
    directory = tmp_path / "scored.jsonl.partial"
    if step == "render":
        for name in ("tokens.u32", "ends.u64", "rows.jsonl"):
            with open(directory / name, "ab") as handle:
                handle.write(b"\xff" * num_bytes)
    else:
        progress = json.loads((tmp_path / "scored.jsonl.partial.json").read_text())
        order = np.fromfile(directory / "order.u64", "<u8")[progress["num_scored"] :]
        rewards = np.fromfile(directory / "rewards.f32", "<f4")
        rewards[order[:num_bytes]] = 17.0
        rewards.tofile(directory / "rewards.f32")
        (directory / "scored.jsonl").write_bytes(b"\xff" * num_bytes)
    score(trained_run, data, tmp_path / "scored.jsonl")
    expected = (uninterrupted / "scored.jsonl").read_bytes()
    assert (tmp_path / "scored.jsonl").read_bytes() == expected


KILLED_AGAIN_AND_AGAIN = """
import os, random, signal, sys, time
from pathlib import Path
import palate, torch
from palate.pipeline.score_file import ScoreConfig, score_file

torch.set_num_threads(1)
model, data, folder = sys.argv[1:]
dice = random.Random(0)
palate.load(model)  # so that the children need not import what loading imports

def fork(output):
    child = os.fork()
    if child == 0:
        try:
            fields = {"model": model, "data": data, "output": output}
            score_file(ScoreConfig(tokens_per_microbatch=150, **fields))
        finally:
            os._exit(0)
    return child

def state():
    return owner.read_text() if owner.exists() else ""

os.waitpid(fork(f"{folder}/reference.jsonl"), 0)
output = Path(folder) / "scored.jsonl"
owner = Path(f"{output}.partial.json")
kills, states = 0, set()
while not output.exists():
    before, child = state(), fork(str(output))
    # The first kill comes before anything is written, the others while or after a chunk is.
    while kills and state() in ("", before) and not output.exists():
        time.sleep(0.001)
    time.sleep(dice.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    states.add(state())
print(kills, len(states))
"""


def in_its_own_process(script: str, *arguments: str | Path, timeout: float = 300) -> str:
    """What the script prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_at_random_moments_and_started_again_it_ends_with_the_same_bytes(
    trained_run: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """SIGKILL, again and again over one output, until a run gets through."""
    data = uninterrupted / "rows.jsonl"
    printed = in_its_own_process(KILLED_AGAIN_AND_AGAIN, trained_run, data, tmp_path)
    kills, num_states = map(int, printed.split())
    assert kills >= 4
    assert num_states >= 4, "before the first rows, and at several places after"
    reference = (tmp_path / "reference.jsonl").read_bytes()
    assert (tmp_path / "scored.jsonl").read_bytes() == reference
    assert reference.count(b"\n") == NUM_ROWS


KILLED_AT_EACH_MOMENT = """
import json, os, shutil, signal, sys
from pathlib import Path
import palate, torch
from palate.pipeline import score_answers, score_file, score_progress, score_stages

torch.set_num_threads(1)
model, data, folder = sys.argv[1:]
palate.load(model)

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def call_until_it_dies(function, num_calls):
    left = [num_calls]
    def counted(*arguments, **named):
        left[0] -= 1
        return die() if left[0] < 0 else function(*arguments, **named)
    return counted

MOMENTS = {  # where the function is looked up, its name, and after how many calls it kills
    "claimed": (score_progress.Path, "mkdir", 0),
    "first rows written, not recorded": (score_stages, "save", 0),
    "tokens written, ends not": (score_answers.np, "cumsum", 2),
    "rendered": (score_stages, "score", 0),
    "order made, not in place": (score_stages, "mapped", 0),
    "some rewards of a chunk": (score_answers.os, "pwrite", 150),
    "rewards written, not recorded": (score_stages, "save", 15),
    "all scored": (score_stages, "write", 0),
    "some rows written": (score_answers.ScoredRow, "line", 100),
    "written": (score_file, "_publish", 0),
    "published": (score_file, "forget", 0),
    "some files removed": (score_progress, "discard", 0),
}

def run(output, moment=None):
    child = os.fork()
    if child == 0:
        try:
            if moment == "rendered":
                score_file.score = die
            elif moment == "all scored":
                score_file.write = die
            elif moment:
                owner, name, num_calls = MOMENTS[moment]
                setattr(owner, name, call_until_it_dies(getattr(owner, name), num_calls))
            fields = {"model": model, "data": data, "output": str(output)}
            score_file.score_file(score_file.ScoreConfig(tokens_per_microbatch=150, **fields))
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    return "killed" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

reference = Path(folder) / "reference.jsonl"
assert run(reference) == 0
for number, moment in enumerate(MOMENTS):
    output = Path(folder) / f"{number}.jsonl"
    killed = run(output, moment)
    published = output.exists()
    whole = not published or output.read_bytes() == reference.read_bytes()
    output.unlink(missing_ok=True)
    again = run(output)
    equal = output.exists() and output.read_bytes() == reference.read_bytes()
    left = sorted(path.name for path in Path(folder).glob("*.partial*"))
    print(json.dumps([moment, killed, published, whole, again, equal, left]))
"""


@pytest.mark.slow
def test_killed_at_each_of_its_moments_it_goes_on_to_the_same_bytes(
    trained_run: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """SIGKILL before and after each thing that it makes, also between publishing and tidying up."""
    data = uninterrupted / "rows.jsonl"
    printed = in_its_own_process(KILLED_AT_EACH_MOMENT, trained_run, data, tmp_path)
    seen = [json.loads(line) for line in printed.splitlines()]
    assert len(seen) == 12
    for moment, killed, published, *rest in seen:
        assert killed == "killed", moment
        assert published == (moment in ("published", "some files removed")), moment
        assert rest == [True, 0, True, []], moment


def test_another_budget_may_finish_what_one_began(
    trained_run: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    data = str(uninterrupted / "rows.jsonl")
    stop_after(trained_run, data, tmp_path / "scored.jsonl", "score", 2)
    score(trained_run, data, tmp_path / "scored.jsonl", tokens_per_microbatch=5000)
    expected = read_rows(uninterrupted / "scored.jsonl")
    for row, reference in zip(read_rows(tmp_path / "scored.jsonl"), expected, strict=True):
        assert row.get("reward") == pytest.approx(reference.get("reward"), abs=1e-5)
        assert {**row, "reward": 0, "rewards": 0} == {**reference, "reward": 0, "rewards": 0}


def refused_as_foreign(run: Path | str, data: str, output: Path, **changes: Any) -> None:
    def kept() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in Path(f"{output}.partial").iterdir()}

    before = kept()
    with pytest.raises(PalateError, match=r"another model or other data; remove it"):
        score(run, data, output, **changes)
    assert kept() == before != {}, "the rows of the other run are left alone"


@pytest.mark.parametrize("step", ["render", "score"])
def test_the_partial_files_of_another_model_or_of_changed_input_are_refused(
    trained_run: Path, uninterrupted: Path, tmp_path: Path, step: str
) -> None:
    data = tmp_path / "rows.jsonl"
    shutil.copy(uninterrupted / "rows.jsonl", data)
    output = tmp_path / "scored.jsonl"
    stop_after(trained_run, str(data), output, step, 1)
    other = save_tiny(tmp_path / "other", head=True, seed=1)
    refused_as_foreign(other, str(data), output)
    refused_as_foreign(trained_run, str(data), output, overlong="cut")
    copy = tmp_path / "copy.jsonl"
    shutil.copy(data, copy)
    refused_as_foreign(trained_run, str(copy), output)
    data.write_text(data.read_text() + '{"prompt": "One?", "response": "More."}\n')
    refused_as_foreign(trained_run, str(data), output)


@pytest.mark.parametrize(
    "name", ["tokens.u32", "ends.u64", "rows.jsonl", "order.u64", "rewards.f32"]
)
def test_a_partial_file_shorter_than_it_was_left_is_refused(
    trained_run: Path, uninterrupted: Path, tmp_path: Path, name: str
) -> None:
    data = str(uninterrupted / "rows.jsonl")
    stop_after(trained_run, data, tmp_path / "scored.jsonl", "score", 2)
    file = tmp_path / "scored.jsonl.partial" / name
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(PalateError, match=rf"{name}: shorter than the \d+ bytes"):
        score(trained_run, data, tmp_path / "scored.jsonl")
    file.unlink()
    with pytest.raises(PalateError, match=rf"{name}: shorter than the \d+ bytes"):
        score(trained_run, data, tmp_path / "scored.jsonl")


@pytest.mark.parametrize("owner", [None, "[]", '{"rows": 3}', "not JSON"])
def test_a_file_of_that_name_that_is_not_ours_is_left_alone(
    trained_run: Path, uninterrupted: Path, tmp_path: Path, owner: str | None
) -> None:
    stranger = tmp_path / "scored.jsonl.partial"
    stranger.write_text("dear diary\n")
    if owner is not None:
        (tmp_path / "scored.jsonl.partial.json").write_text(owner)
    with pytest.raises(PalateError, match=r"scored\.jsonl\.partial: not written by .*remove it"):
        score(trained_run, str(uninterrupted / "rows.jsonl"), tmp_path / "scored.jsonl")
    assert stranger.read_text() == "dear diary\n"


def test_an_existing_output_is_refused_before_anything_is_loaded(
    uninterrupted: Path, tmp_path: Path
) -> None:
    output = uninterrupted / "scored.jsonl"
    before = output.read_bytes()
    with pytest.raises(PalateError, match=r"scored\.jsonl: exists already"):
        score("no/such/model", str(uninterrupted / "rows.jsonl"), output)
    assert output.read_bytes() == before
    with pytest.raises(PalateError, match=r"must end in \.jsonl or \.parquet"):
        score("no/such/model", str(uninterrupted / "rows.jsonl"), tmp_path / "scored.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, r"gone\.jsonl: .*no such file"),
        ("empty.jsonl", b"", "no rows in it; it is empty"),
        ("cut.jsonl.gz", b"\x1f\x8b", "no rows in it"),
        ("rows.parquet", b"PAR1 and no more", "not readable as Parquet"),
        ("rows.txt", b"hello", r"unknown kind of file; expected \.jsonl"),
    ],
)
def test_unreadable_input_is_named_and_leaves_nothing_behind(
    trained_run: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PalateError, match=message):
        score(trained_run, str(tmp_path / name), tmp_path / "scored.jsonl")
    assert left_behind(tmp_path) == []


def test_a_folder_for_the_output_is_made(trained_run: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", plain_rows(2))
    score(trained_run, data, tmp_path / "new" / "deep" / "scored.jsonl")
    assert len(read_rows(tmp_path / "new" / "deep" / "scored.jsonl")) == 2


ON_A_SMALL_DISK = """
import json, resource, sys
import torch
from palate.errors import PalateError
from palate.pipeline.score_file import ScoreConfig, score_file

torch.set_num_threads(1)
model, data, folder, cases = sys.argv[1:]

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

for number, (step, count, num_bytes) in enumerate(json.loads(cases)):
    def from_then_on(*done):
        if done == (step, count) or done[0] == step and not count:
            limit(num_bytes)

    output = f"{folder}/{number}.jsonl"
    config = ScoreConfig(model=model, data=data, output=output, tokens_per_microbatch=150)
    try:
        score_file(config, from_then_on)
    except PalateError as error:
        message = str(error)
    limit(resource.RLIM_INFINITY)
    progress = json.load(open(output + ".partial.json"))
    print(json.dumps([message, progress["num_scored"], score_file(config).num_resumed]))
"""


def test_when_no_more_can_be_written_the_rest_is_kept_and_the_message_names_the_file(
    trained_run: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """From the named step on (its first, or the one with that count) no file may grow over so many
    bytes: it ends while rendering, ordering, scoring, writing."""
    num_answers = sum_of_answers(uninterrupted / "scored.jsonl")
    rewards = f"240 rows and the rewards of {{}} of {num_answers} answers are kept in"
    expected = {
        ("render", 0, 30_000): ("tokens.u32", r"\d+ rows are kept in"),
        ("render", 240, 1_000): ("order.u64.new", "240 rows are kept in"),
        ("score", 0, 1_000): ("rewards.f32", rewards.format(r"\d+")),
        ("score", num_answers, 15_000): ("scored.jsonl", rewards.format(num_answers)),
    }
    data = uninterrupted / "rows.jsonl"
    cases = json.dumps(list(expected))
    printed = in_its_own_process(ON_A_SMALL_DISK, trained_run, data, tmp_path, cases)
    lines = printed.splitlines()
    for number, (line, (name, kept)) in enumerate(zip(lines, expected.values(), strict=True)):
        message, num_scored, num_resumed = json.loads(line)
        file = tmp_path / f"{number}.jsonl.partial" / name
        assert message.startswith(f"{file}: cannot write: the file would be larger")
        assert re.search(f"; {kept}", message), message
        assert message.endswith("the same command goes on from there")
        assert (num_scored > 0) == (num_resumed > 0) == ("rewards of" in kept)
        reference = (uninterrupted / "scored.jsonl").read_bytes()
        assert (tmp_path / f"{number}.jsonl").read_bytes() == reference
    assert left_behind(tmp_path) == []


def test_a_field_that_scoring_writes_is_not_overwritten(trained_run: Path, tmp_path: Path) -> None:
    data = tmp_path / "scored.jsonl"
    data.write_text(json.dumps({"prompt": "p", "response": "r", "reward": 3.0}) + "\n")
    config = ScoreConfig(
        model=str(trained_run), data=str(data), output=str(tmp_path / "again.jsonl")
    )
    with pytest.raises(PalateError, match="line 1 has a field 'reward' already"):
        score_file(config)
    assert not list(tmp_path.glob("again*"))

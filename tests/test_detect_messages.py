"""Which format is found among untidy rows, and messages that a file holds as text."""

import json
from pathlib import Path
from typing import Any

import pytest

from palate.preferences import Message, ReadSettings, read
from tests.rows import (
    Row,
    as_jsonl,
    read_bytes,
    read_rows,
    refusal,
    row_entries,
    said,
    texts,
    the_group,
)

USER, GOOD, BAD = (
    {"role": role, "content": text}
    for role, text in (("user", "How?"), ("assistant", "They flap."), ("assistant", "By magic."))
)
PAIR: Row = {"prompt": "How?", "chosen": "They flap.", "rejected": "By magic."}


def test_formats_are_counted_and_not_what_shows_them(tmp_path: Path) -> None:
    """60 rows of votes, each with another annotator, against 20 pairs."""
    votes = [
        {"prompt": "q", "response1": "a", "response2": "b", f"annotator{i}": 1} for i in range(60)
    ]
    reading = read_rows(tmp_path, [*[PAIR] * 20, *votes])
    assert list(reading.formats.values()) == ["annotated"]
    assert len(reading.groups) == 60
    (why,) = reading.reasons.values()
    assert why.startswith("60 of the first 80 rows show it, 1 by columns of annotators (annotator")


def test_pairs_of_which_half_are_scored_are_still_the_most(tmp_path: Path) -> None:
    scored = {**PAIR, "score_chosen": 2, "score_rejected": 1}
    rated = {"prompt": "q", "response": "a", "rating": 1}
    reading = read_rows(tmp_path, [*[rated] * 40, *[PAIR] * 31, *[scored] * 29])
    assert list(reading.formats.values()) == ["pairs"]
    (why,) = reading.reasons.values()
    assert why == "60 of the first 100 rows show it, 31 by prompt, chosen and rejected"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"context": [USER], "response1": [GOOD], "response2": [BAD], "overall_preference": -1},
        {"prompt": [USER], "responses": [[GOOD], [BAD]], "ranking": [0, 1]},
        {"question": [USER], "response_A": [GOOD], "response_B": [BAD], "label": "A>B"},
        {
            "data": {"prompt": [USER], "answer1": [GOOD], "answer2": [BAD]},
            "annotations": [
                {"result": [{"type": "pairwise", "value": {"selected": "left"}, "from_name": "p"}]}
            ],
        },
    ],
)
def test_json_texts_of_messages_are_messages_in_every_kind_of_file(
    tmp_path: Path, row: Row
) -> None:
    """A file whose cells are text says the same as one whose cells are lists."""

    def as_text(value: Any) -> Any:
        if (
            isinstance(value, list)
            and value
            and all(isinstance(x, dict) and "role" in x for x in value)
        ):
            return json.dumps(value)
        return [as_text(x) for x in value] if isinstance(value, list) else value

    texts_of = {name: as_text(value) for name, value in row.items()}
    if "responses" in row:
        texts_of["responses"] = [json.dumps(x) for x in row["responses"]]
    if "data" in row:
        texts_of["data"] = {name: json.dumps(x) for name, x in row["data"].items()}
    assert "\\" in json.dumps(texts_of)
    group = the_group(tmp_path, texts_of)
    assert texts(group) == ["They flap.", "By magic."]
    assert group.prompt == (Message("user", "How?"),)
    assert said(group) == said(the_group(tmp_path, row))


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize(
    "text",
    [
        str([USER, GOOD]),
        f"array([{USER}, {GOOD}], dtype=object)",
        json.dumps([USER, GOOD])[:-12],
        "[{'content': \"it's\", 'role': 'user'}\n {'content': 'b', 'role': 'user'}]",
    ],
)
def test_pythons_notation_of_messages_is_refused_with_the_remedy(
    tmp_path: Path, field: str, text: str
) -> None:
    reading = read_rows(tmp_path, [PAIR, {**PAIR, field: text}])
    (entry,) = row_entries(reading)
    assert entry.reason == "messages as text that is not JSON"
    assert f"{field} holds messages as text" in entry.detail and "json.dumps" in entry.detail


def test_a_csv_of_pythons_notation_is_refused_as_a_whole(tmp_path: Path) -> None:
    data = f'chosen,rejected,prompt\n"{[USER, GOOD]}","{[USER, BAD]}",How?\n'.encode()
    assert "messages as text that is not JSON" in refusal(
        lambda: read_bytes(tmp_path, "rows.csv", data)
    )


@pytest.mark.parametrize(
    "answer", ['[{"role": "admin", "user": "bob"}]', '["a", "b"]', "[1]", "{}", "[{'role': x"]
)
def test_an_answer_that_is_json_but_no_messages_stays_text(tmp_path: Path, answer: str) -> None:
    assert texts(the_group(tmp_path, {**PAIR, "chosen": answer})) == [answer, "By magic."]


def test_text_in_palates_own_rows_is_literal(tmp_path: Path) -> None:
    """What a response's `text` holds was written by `to_canonical`, and is the answer itself."""
    literal = json.dumps([GOOD])
    row = {
        "prompt": "Write a message.",
        "responses": [{"text": literal}, {"text": "no"}],
        "comparisons": [{"better": 0, "worse": 1}],
    }
    assert texts(the_group(tmp_path, row)) == [literal, "no"]


@pytest.mark.parametrize("as_cell", [json.dumps, list])
def test_a_list_of_one_turn_is_its_text(tmp_path: Path, as_cell: Any) -> None:
    row = {name: as_cell([text]) for name, text in PAIR.items()}
    assert said(the_group(tmp_path, row)) == said(the_group(tmp_path, PAIR))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"prompt": '["q", "r"]', "chosen": '["a", "b"]', "rejected": '["a", "c"]'},
            "conversations of several turns",
        ),
        ({**PAIR, "prompt": '["q"]'}, "lists of texts"),
        ({**PAIR, "chosen": '["a"]', "rejected": '["b", "c"]'}, "lists of texts"),
        ({"prompt": '["q"]', "chosen": "[null]", "rejected": '["b"]'}, "lists of texts"),
    ],
)
def test_lists_of_texts_that_are_no_single_turns_are_refused(
    tmp_path: Path, row: Row, reason: str
) -> None:
    (entry,) = row_entries(read_rows(tmp_path, [PAIR, row]))
    assert entry.reason == reason


def test_lists_of_answers_in_a_table_are_those_of_their_benchmark(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": '["a", "b", "c"]', "rejected": '["d", "e", "f"]'}
    assert len(the_group(tmp_path, row).comparisons) == 9
    ties = {"prompt": "q", "chosen": '["a"]', "rejected": '["d", "e"]', "num_correct": 1}
    assert len(the_group(tmp_path, ties).comparisons) == 2


TRANSCRIPT = "\n\nHuman: How?\n\nAssistant:"
WHOLE: Row = {"chosen": f"{TRANSCRIPT} They flap.", "rejected": f"{TRANSCRIPT} By magic."}


@pytest.mark.parametrize("prompt", ["How?", " How?\n", TRANSCRIPT, [USER]])
def test_whole_transcripts_beside_their_prompt_are_divided(tmp_path: Path, prompt: Any) -> None:
    group = the_group(tmp_path, {"prompt": prompt, **WHOLE})
    assert group.prompt == (Message("user", "How?"),)
    assert texts(group) == ["They flap.", "By magic."]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**WHOLE, "prompt": "Why?"}, "prompts differ"),
        ({**PAIR, "chosen": WHOLE["chosen"]}, "transcript as answer"),
        (
            {**PAIR, "chosen": WHOLE["chosen"].strip(), "rejected": WHOLE["rejected"].strip()},
            "not a transcript",
        ),
    ],
)
def test_a_transcript_that_is_not_the_prompts_is_refused(
    tmp_path: Path, row: Row, reason: str
) -> None:
    (entry,) = row_entries(read_rows(tmp_path, [PAIR, row]))
    assert entry.reason == reason


def test_rows_in_are_rows_out_whatever_the_texts_look_like(tmp_path: Path) -> None:
    rows = [
        PAIR,
        {**PAIR, "chosen": str([GOOD])},
        {name: json.dumps([text]) for name, text in PAIR.items()},
        {**WHOLE, "prompt": "Why?"},
        {**PAIR, "system": 3},
    ]
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl(rows))
    reading = read(str(tmp_path / "rows.jsonl"), ReadSettings())
    assert (len(reading.groups), reading.ledger.num_rows_left_out) == (2, 3)
    assert reading.ledger.num_rows_read == 5

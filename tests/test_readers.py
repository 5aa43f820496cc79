"""Every row that people send ends as a group or in the ledger, with its line and the reason."""

import csv
import gzip
import io
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.errors import PalateError
from palate.preferences import Message, ReadSettings, Vote, VoteSettings, read, to_canonical
from tests.rows import (
    Row,
    arcs,
    as_jsonl,
    bare,
    read_bytes,
    read_rows,
    refusal,
    row_entries,
    said,
    the_group,
)

PAIR: Row = {"prompt": "How do birds fly?", "chosen": "They flap.", "rejected": "By magic."}
USER = {"role": "user", "content": "How do birds fly?"}
GOOD = {"role": "assistant", "content": "They flap."}
BAD = {"role": "assistant", "content": "By magic."}
SYSTEM = {"role": "system", "content": "Be brief."}
VOTED: Row = {
    "prompt": [USER],
    "responses": [{"text": "a"}, {"text": "b"}, {"text": "c"}],
    "votes": [{"annotator": "ann", "ranking": [[1], [0, 2]], "strength": 2, "shown": [0, 2, 1]}],
}
COMPARED: Row = {
    "prompt": [USER],
    "responses": [{"text": "a", "model": "m"}, {"text": "b", "finished": False}],
    "comparisons": [{"better": 1, "worse": 0, "probability": 0.7, "tie": 0.1, "weight": 2.0}],
}
RATED: Row = {
    "prompt": "Name a bird.",
    "responses": [
        {"text": "a", "rating": 1},
        {"text": "b", "rating": 5},
        {"text": "c", "rating": 5},
    ],
}


def as_json(rows: Sequence[Any]) -> bytes:
    return json.dumps(rows, indent=1, ensure_ascii=False).encode()


def as_csv(rows: Sequence[Row]) -> bytes:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {k: v if isinstance(v, str | int | float) else json.dumps(v) for k, v in row.items()}
        )
    return text.getvalue().encode()


def as_parquet(rows: Sequence[Row]) -> bytes:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.BytesIO()
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in columns})
    pyarrow.parquet.write_table(table, buffer, row_group_size=2)
    return buffer.getvalue()


WRITERS: dict[str, Callable[[Sequence[Any]], bytes]] = {
    ".jsonl": as_jsonl,
    ".json": as_json,
    ".csv": as_csv,
    ".parquet": as_parquet,
}


TRANSCRIPT = "\n\nHuman: How do birds fly?\n\nAssistant:"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (PAIR, "pairs"),
        ({**PAIR, "prompt": [USER]}, "pairs"),
        ({**PAIR, "prompt": TRANSCRIPT}, "pairs"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, "pairs"),
        ({"prompt": USER["content"], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "pairs"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "implicit"),
        (
            {"chosen": f"{TRANSCRIPT} They flap. ", "rejected": f"{TRANSCRIPT} By magic.\n"},
            "hh",
        ),
        (
            {
                "instruction": USER["content"],
                "input": "",
                "response1": "They flap.",
                "response2": "By magic.",
                "annotator1": 1,
            },
            "annotated",
        ),
        (
            {
                "prompt": USER["content"],
                "responses": ["They flap.", "By magic."],
                "ranking": [0, 1],
            },
            "ranked",
        ),
        (
            {
                "prompt": [
                    {"role": "user", "content": [{"type": "text", "text": USER["content"]}]}
                ],
                "responses": ["They flap.", "By magic."],
                "comparisons": [{"better": 0, "worse": 1}],
            },
            "canonical",
        ),
    ],
)
def test_one_preference_reads_the_same_in_every_format(tmp_path: Path, row: Row, name: str) -> None:
    reading = read_rows(tmp_path, [row])
    assert set(reading.formats.values()) == {name}
    (group,) = reading.groups
    assert group.prompt == (Message("user", "How do birds fly?"),)
    assert [r.text for r in group.responses] == ["They flap.", "By magic."]
    (comparison,) = group.comparisons
    assert (comparison.better, comparison.worse) == (0, 1)
    # One vote of one is (1 + 1/2) / (1 + 1); everything else here is a bare statement.
    assert comparison.probability == (0.75 if name == "annotated" else 1)
    assert (group.line, reading.ledger.num_rows_read) == (1, 1)


def test_canonical_votes_become_comparisons_and_stay_beside_them(tmp_path: Path) -> None:
    group = the_group(tmp_path, VOTED)
    assert arcs(group) == [(1, 0), (0, 2), (1, 2)]
    assert [(c.probability, c.tie) for c in group.comparisons] == [(0.75, 0), (0.5, 1), (0.75, 0)]
    (vote,) = group.votes
    assert (vote.annotator, vote.ranking, vote.strength, vote.shown) == (
        "ann",
        ((1,), (0, 2)),
        2,
        (0, 2, 1),
    )


def test_where_votes_and_comparisons_disagree_the_comparisons_stand(tmp_path: Path) -> None:
    group = the_group(tmp_path, {**VOTED, "comparisons": [{"better": 2, "worse": 1}]})
    assert arcs(group) == [(2, 1)]
    assert [vote.ranking for vote in group.votes] == [((1,), (0, 2))]


def test_contradictory_votes_are_kept_as_a_probability(tmp_path: Path) -> None:
    votes = [{"annotator": f"a{i}", "choice": i % 2} for i in range(3)]
    votes += [{"annotator": "t", "choice": "tie"}]
    group = the_group(tmp_path, {**VOTED, "responses": ["a", "b"], "votes": votes})
    (comparison,) = group.comparisons
    assert (comparison.better, comparison.probability, comparison.tie) == (0, 2.5 / 4, 1 / 4)
    assert len(group.votes) == 4


def test_a_system_turn_that_only_the_conversation_holds_is_kept(tmp_path: Path) -> None:
    row = {
        "prompt": USER["content"],
        "chosen": [SYSTEM, USER, GOOD],
        "rejected": [SYSTEM, USER, BAD],
    }
    assert [m.role for m in the_group(tmp_path, row).prompt] == ["system", "user"]


def test_a_system_turn_that_only_the_prompt_holds_is_not_dropped_in_silence(tmp_path: Path) -> None:
    row = {"prompt": [SYSTEM, USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    reading = read_rows(tmp_path, [row, PAIR])
    assert [(e.line, e.reason) for e in row_entries(reading)] == [(1, "prompts differ")]


def test_a_long_transcript_keeps_its_turns_and_ends_at_the_last_answer(tmp_path: Path) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nIt is late.\n\nHuman: Why?\n\nAssistant:"
    row = {"chosen": f"{start} The sun set.", "rejected": f"{start} No idea:\n\n1. one\n\n2. two"}
    group = the_group(tmp_path, row)
    assert [(m.role, m.content) for m in group.prompt] == [
        ("user", "Hi"),
        ("assistant", "Hello.\n\nIt is late."),
        ("user", "Why?"),
    ]
    assert [r.text for r in group.responses] == ["The sun set.", "No idea:\n\n1. one\n\n2. two"]


def test_margin_and_strength_columns_set_the_margin(tmp_path: Path) -> None:
    """A stated margin stands as it is; a strength of -2 at a quarter logit a unit is 0.5 (its sign
    says which side was meant, and chosen says that already)."""
    rows = [PAIR, {**PAIR, "margin": 0.8}, {**PAIR, "strength": -2, "weight": 3}]
    reading = read_rows(tmp_path, rows, votes=VoteSettings(margin_per_strength=0.25))
    assert [g.comparisons[0].margin for g in reading.groups] == [0, 0.8, 0.5]
    assert [g.comparisons[0].weight for g in reading.groups] == [1, 1, 3]
    plain = read_rows(tmp_path, rows)
    assert [g.comparisons[0].margin for g in plain.groups] == [0, 0.8, 0]


@pytest.mark.parametrize(
    "rated",
    [
        [{"text": t, "rating": r} for t, r in zip("abc", (2, 4.5, 4), strict=True)],
        [{"text": t, "score": r} for t, r in zip("abc", ("2", "4.5", "4"), strict=True)],
        [{"text": t, "win_rate_vs_reference": r} for t, r in zip("abc", (0, 1, 0.9), strict=True)],
        [{"content": t, "rank": r} for t, r in zip("abc", (3, 1, 2), strict=True)],
    ],
)
def test_ratings_win_rates_and_ranks_put_the_same_order_on_the_answers(
    tmp_path: Path, rated: list[Row]
) -> None:
    ordered = [(1, 0), (1, 2), (2, 0)]
    assert sorted(arcs(the_group(tmp_path, {"prompt": "q", "responses": rated}))) == ordered
    listed = {"prompt": "q", "responses": ["a", "b", "c"], "ratings": [2, 4.5, 4]}
    assert sorted(arcs(the_group(tmp_path, listed))) == ordered
    ranked = {"prompt": "q", "responses": ["a", "b", "c"], "ranking": [1, [2], 0]}
    assert sorted(arcs(the_group(tmp_path, ranked))) == ordered


def test_ratings_in_different_fields_are_no_common_scale(tmp_path: Path) -> None:
    mixed = [{"text": "a", "rating": 5}, {"text": "b", "rank": 1}]
    reading = read_rows(tmp_path, [RATED, {"prompt": "q", "responses": mixed}])
    assert [(e.line, e.reason) for e in row_entries(reading)] == [(2, "mixed ratings")]
    assert "rank, rating" in row_entries(reading)[0].detail


def test_tied_ratings_stay_together_and_small_gaps_make_no_comparison(tmp_path: Path) -> None:
    assert sorted(arcs(the_group(tmp_path, RATED))) == [(1, 0), (2, 0)]
    close = {**RATED, "responses": [{"text": "a", "rating": 4.0}, {"text": "b", "rating": 4.5}]}
    reading = read_rows(tmp_path, [RATED, close], votes=VoteSettings(min_gap=1))
    (entry,) = row_entries(reading)
    assert (entry.line, entry.reason) == (2, "no ratings that differ")
    assert "4.0, 4.5" in entry.detail


@pytest.mark.parametrize(
    ("bad", "reason", "said"),
    [
        ({"text": ""}, "empty response", "response 3: empty response"),
        ({"text": True, "rating": 9}, "wrong type", "response 3: text is bool True"),
        ({"rating": 4}, "missing field", "response 3: no field 'text'"),
        (17, "wrong type", "response 3: it is int 17"),
        ({"text": "d", "rating": "nine"}, "wrong type", "response 3: rating is 'nine'"),
        ({"text": "d", "rating": float("nan")}, "invalid rating", "response 3: rating is nan"),
        ({"text": "d", "finished": "yes"}, "wrong type", "response 3: finished is 'yes'"),
    ],
)
def test_one_bad_response_of_nine_is_ledgered_and_the_other_eight_stay(
    tmp_path: Path, bad: Any, reason: str, said: str
) -> None:
    """Rated 0 to 8 in order. Without the fourth, new index i is old index i below 3 and i + 1 from
    there on, and all C(8, 2) = 28 pairs keep the later answer as the better one."""
    responses: list[Any] = [{"text": f"answer {i}", "rating": i} for i in range(9)]
    responses[3] = bad
    reading = read_rows(tmp_path, [{"prompt": "q", "responses": responses, "id": "nine"}])
    (group,) = reading.groups
    assert [r.text for r in group.responses] == [f"answer {i}" for i in range(9) if i != 3]
    assert sorted(arcs(group)) == sorted((high, low) for low, high in combinations(range(8), 2))
    (entry,) = reading.ledger.entries
    assert (entry.kind, entry.line, entry.reason, entry.row_id) == ("response", 1, reason, "nine")
    assert entry.detail.startswith(said)
    assert reading.ledger.num_rows_left_out == 0


def test_comparisons_and_votes_are_renumbered_around_a_bad_response(tmp_path: Path) -> None:
    row = {
        "prompt": "q",
        "responses": ["a", "", "c", "d"],
        "comparisons": [{"better": 3, "worse": 0}, {"better": 1, "worse": 0}],
        "votes": [
            {"annotator": "x", "ranking": [[1], [3], [2, 0]], "shown": [3, 1, 0, 2]},
            {"annotator": "y", "ranking": [[1], [0]]},
        ],
    }
    group = the_group(tmp_path, row)
    assert [r.text for r in group.responses] == ["a", "c", "d"]
    assert arcs(group) == [(2, 0)]
    (vote,) = group.votes
    assert (vote.ranking, vote.shown) == (((2,), (1, 0)), (2, 0, 1))


def test_a_choice_says_nothing_on_the_answers_that_it_left(tmp_path: Path) -> None:
    """2 of four: three comparisons, 1.5 / 2 each, and no tie among 0, 1 and 3. Without the chosen
    answer the vote is nothing; without one of the others it is smaller; of two it is a ranking."""
    row: Row = {
        "prompt": "q",
        "responses": ["a", "b", "c", "d"],
        "votes": [{"annotator": "x", "choice": 2}],
    }
    group = the_group(tmp_path, row)
    assert sorted(arcs(group)) == [(2, 0), (2, 1), (2, 3)]
    assert {(c.probability, c.tie) for c in group.comparisons} == {(0.75, 0)}
    assert said(the_group(tmp_path, to_canonical(group))) == said(group)
    named = [{"annotator": "x", "ranking": [2, [0, 1, 3]], "rest_unordered": True}]
    assert the_group(tmp_path, {**row, "votes": named}).votes == group.votes
    fewer = the_group(tmp_path, {**row, "responses": ["", "b", "c", "d"]})
    assert sorted(arcs(fewer)) == [(1, 0), (1, 2)]
    other = {"annotator": "y", "ranking": [[0], [1]]}
    emptied = {**row, "responses": ["a", "b", "", "d"], "votes": [*row["votes"], other]}
    reading = read_rows(tmp_path, [emptied])
    assert arcs(reading.groups[0]) == [(0, 1)]
    assert [vote.annotator for vote in reading.groups[0].votes] == ["y"]
    assert [e.kind for e in reading.ledger.entries] == ["response", "vote"]
    two = the_group(tmp_path, {**row, "responses": ["", "b", "c", ""]})
    assert two.votes == (Vote("x", ((1,), (0,))),)


def test_a_response_without_a_rating_stays_and_is_said_never_to_be_compared(
    tmp_path: Path,
) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c"], "ratings": [1, None, 3]}
    reading = read_rows(tmp_path, [row])
    assert len(reading.groups[0].responses) == 3
    assert arcs(reading.groups[0]) == [(2, 0)]
    (entry,) = reading.ledger.entries
    assert (entry.kind, entry.reason) == ("response", "missing rating")
    assert "response 1" in entry.detail


def test_identical_answers_among_others_lose_their_comparison_and_nothing_else(
    tmp_path: Path,
) -> None:
    row = {"prompt": "q", "responses": ["same", "same", "other"], "ratings": [1, 2, 3]}
    reading = read_rows(tmp_path, [row])
    assert sorted(arcs(reading.groups[0])) == [(2, 0), (2, 1)]
    assert [(e.kind, e.reason) for e in reading.ledger.entries] == [
        ("comparison", "identical responses")
    ]


def soft(**fields: Any) -> Row:
    return {**COMPARED, "comparisons": [{"better": 0, "worse": 1, **fields}]}


@pytest.mark.parametrize(
    ("good", "line", "reason", "said"),
    [
        (PAIR, '{"prompt": "q", "chosen": "a", ', "malformed JSON", "char"),
        (PAIR, '["prompt", "chosen"]', "not an object", "list where an object was expected"),
        (PAIR, "17", "not an object", "int"),
        (PAIR, "[" * 200_000, "malformed JSON", "recursion"),
        (PAIR, '{"prompt": "q", "margin": ' + "9" * 5000 + "}", "malformed JSON", "digits"),
        (PAIR, b'{"prompt": "caf\xe9"}', "not UTF-8", "0xe9"),
        (PAIR, {"prompt": "q", "chosen": "a"}, "missing field", "no field 'rejected'; found"),
        (PAIR, {**PAIR, "prompt": None}, "missing field", "no field 'prompt'"),
        (PAIR, {**PAIR, "prompt": " \n"}, "empty prompt", "no text in it"),
        (PAIR, {**PAIR, "prompt": []}, "empty prompt", "no messages"),
        (PAIR, {**PAIR, "prompt": [USER, GOOD]}, "prompt ends with an answer", "ask for an answer"),
        (PAIR, {**PAIR, "prompt": 4}, "wrong type", "prompt is int"),
        (PAIR, {**PAIR, "prompt": [{"role": "bot", "content": "q"}]}, "unknown role", "'bot'"),
        (PAIR, {**PAIR, "chosen": ""}, "empty response", "empty"),
        (PAIR, {**PAIR, "chosen": 5}, "wrong type", "chosen is int"),
        (PAIR, {**PAIR, "rejected": True}, "wrong type", "rejected is bool"),
        (PAIR, {**PAIR, "rejected": "They flap."}, "identical responses", "same text"),
        (PAIR, {**PAIR, "chosen": "half \ud83d"}, "invalid Unicode", "at character 5"),
        (PAIR, {**PAIR, "margin": float("nan")}, "invalid margin", "margin is nan"),
        (PAIR, {**PAIR, "margin": -0.5}, "invalid margin", "margin is -0.5"),
        (PAIR, {**PAIR, "margin": [1]}, "wrong type", "margin is [1]"),
        (PAIR, {**PAIR, "weight": -1}, "invalid weight", "weight is -1"),
        (PAIR, {**PAIR, "tools": "look it up"}, "wrong type", "tools is a string but not JSON"),
        (PAIR, {**PAIR, "tools": '"text"'}, "wrong type", "tools is str"),
        (PAIR, {**PAIR, "tools": ["look"]}, "wrong type", "tools is ['look']"),
        (PAIR, {**PAIR, "template_arguments": [1]}, "wrong type", "template_arguments is [1]"),
        (
            PAIR,
            {**PAIR, "chosen": [GOOD, BAD]},
            "conversations differ before the last turn",
            "chosen (2 turns) and rejected (1 turns)",
        ),
        (
            PAIR,
            {**PAIR, "prompt": [{"role": "user", "content": [{"type": "image"}]}]},
            "image content",
            "'image'; palate reads text only",
        ),
        (
            PAIR,
            {**PAIR, "prompt": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "input_audio content",
            "'input_audio'",
        ),
        (
            PAIR,
            {**PAIR, "chosen": [{**GOOD, "tool_calls": [{"type": "function"}]}]},
            "tool call as answer",
            "only text can be compared",
        ),
        (VOTED, {**VOTED, "responses": ["only one"]}, "fewer than two responses", "1 usable"),
        (VOTED, {**VOTED, "responses": "ab"}, "wrong type", "responses is a string but not JSON"),
        (VOTED, {**VOTED, "responses": {"a": 1}}, "wrong type", "responses is dict"),
        (VOTED, {**VOTED, "responses": ["a", True]}, "wrong type", "response 1: it is bool True"),
        (VOTED, {**VOTED, "votes": []}, "no comparison", "no comparison"),
        (VOTED, {**VOTED, "votes": 3}, "wrong type", "votes is int 3"),
        (VOTED, {**VOTED, "votes": [{"choice": 3}]}, "comparison outside the responses", "3"),
        (VOTED, {**VOTED, "votes": [{"chioce": 0}]}, "unknown field", "['chioce']"),
        (VOTED, {**VOTED, "votes": [{"ranking": [[0], [0]]}]}, "invalid value", "repeats"),
        (VOTED, {**VOTED, "votes": [{"choice": 0, "strength": "so"}]}, "wrong type", "'so'"),
        (VOTED, {**VOTED, "votes": [{"choice": 0, "shown": [[0]]}]}, "wrong type", "shown order"),
        (COMPARED, soft(margin=0.5, probability=0.7), "margin on a soft label", "0.7"),
        (COMPARED, soft(margin=0.5, tie=0.2), "margin on a soft label", "tie 0.2"),
        (COMPARED, soft(margin=-1), "invalid margin", "margin is -1"),
        (COMPARED, soft(margin=float("nan")), "invalid margin", "margin is nan"),
        (COMPARED, soft(probability=0.3), "invalid probability", "[0.5, 1]"),
        (COMPARED, soft(probabilty=0.7), "unknown field", "['probabilty']"),
        (COMPARED, soft(worse=2), "comparison outside the responses", "there are 2"),
        (COMPARED, soft(worse=-1), "comparison outside the responses", "response -1"),
        (COMPARED, soft(worse="1"), "wrong type", "'1' is not a response index"),
        (COMPARED, soft(worse=0), "invalid value", "response 0 with itself"),
        (COMPARED, {**COMPARED, "comparisons": 1}, "wrong type", "comparisons is int 1"),
        (RATED, {**RATED, "ratings": [1, 2]}, "ratings and responses differ", "2 ratings for 3"),
        (RATED, {**RATED, "ratings": 3}, "wrong type", "ratings is int 3"),
        (RATED, {**RATED, "responses": ["a", "b"]}, "missing rating", "fewer than two"),
        (RATED, {**RATED, "ranking": [[0], [0, 1]]}, "invalid ranking", "repeats a response"),
        (RATED, {**RATED, "ranking": [0, 3]}, "comparison outside the responses", "response 3"),
        (RATED, {**RATED, "ranking": [[0, 1, 2]]}, "no comparison", "no comparison"),
    ],
)
def test_a_bad_row_between_good_ones_is_ledgered_with_its_line_its_value_and_the_reason(
    tmp_path: Path, good: Row, line: Any, reason: str, said: str
) -> None:
    raw = line if isinstance(line, bytes) else line.encode() if isinstance(line, str) else None
    middle = as_jsonl([line]) if raw is None else raw + b"\n"
    reading = read_bytes(
        tmp_path, "rows.jsonl", as_jsonl([good]) + middle + b"\n" + as_jsonl([good])
    )
    assert [group.line for group in reading.groups] == [1, 4]
    (entry,) = reading.ledger.entries
    assert (entry.kind, entry.line, entry.reason) == ("row", 2, reason)
    assert entry.file == str(tmp_path / "rows.jsonl")
    assert said in entry.detail
    assert "3 rows in = 2 in groups + 1 in the ledger" in reading.summary()


DAMAGE: dict[str, Callable[[Row], bytes]] = {
    "cut": lambda row: json.dumps(row).encode()[:-5],
    "no chosen": lambda row: json.dumps({k: v for k, v in row.items() if k != "chosen"}).encode(),
    "number": lambda row: json.dumps({**row, "rejected": 3}).encode(),
    "empty": lambda row: json.dumps({**row, "prompt": ""}).encode(),
    "same": lambda row: json.dumps({**row, "rejected": row["chosen"]}).encode(),
    "margin": lambda row: json.dumps({**row, "margin": -1}).encode(),
    "list": lambda row: json.dumps([row]).encode(),
    "surrogate": lambda row: json.dumps({**row, "chosen": "\udc80"}).encode(),
    "latin": lambda row: b'{"prompt": "\xff"}',
}
plain_text = st.text(max_size=30).map(lambda text: f"x{text}")
good_rows = st.fixed_dictionaries(
    {"prompt": plain_text, "chosen": plain_text, "rejected": plain_text.map(lambda t: f"{t}y")},
    optional={"margin": st.floats(0, 10), "id": st.integers(), "source": st.text(max_size=5)},
).filter(lambda row: row["chosen"] != row["rejected"])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(good_rows, st.sampled_from([None, None, *DAMAGE]), st.integers(0, 2)), max_size=12
    ),
    good_rows,
)
def test_rows_in_are_rows_in_groups_and_rows_in_the_ledger(
    rows: list[tuple[Row, str | None, int]], last: Row
) -> None:
    """Good and damaged rows with blank lines between: each row's own line says where it went."""
    lines: list[bytes] = []
    good_lines, bad_lines = [], []
    for row, damage, num_blank in [*rows, (last, None, 0)]:
        lines += [b" "] * num_blank
        lines.append(json.dumps(row).encode() if damage is None else DAMAGE[damage](row))
        (good_lines if damage is None else bad_lines).append(len(lines))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(b"\n".join(lines))
        reading = read(str(path), ReadSettings(format="pairs"))
    assert [group.line for group in reading.groups] == good_lines
    assert sorted(entry.line for entry in row_entries(reading)) == bad_lines
    assert reading.ledger.num_rows_read == len(good_lines) + len(bad_lines)


ODD_PAIRS: list[Row] = [
    {**PAIR, "id": "one", "margin": 0.5},
    {**PAIR, "prompt": 'Say "hi",\nthen\tgo', "chosen": "hi, 'you'\r\nthere", "id": "two"},
    {"prompt": "שלום 🙂", "chosen": "naïve ﷽", "rejected": "日本語", "margin": 1e-3},
    {**PAIR, "rejected": "3", "weight": 2},
]


HALF_STATED = {**VOTED, "comparisons": [{"better": 0, "worse": 1, "margin": 0.3}]}
HALF_STATED["comparisons"] += [{"better": 1, "worse": 2, "probability": 0.6}]


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "rows",
    [
        ODD_PAIRS,
        [VOTED, {**COMPARED, "id": "k2"}, HALF_STATED],
        [RATED, {**RATED, "prompt": "Name two."}],
    ],
    ids=["pairs", "canonical", "ranked"],
)
def test_every_kind_of_file_plain_or_gzipped_holds_the_same_groups(
    tmp_path: Path, suffix: str, packed: bool, rows: list[Row]
) -> None:
    expected = read_rows(tmp_path, rows)
    assert len(expected.groups) == len(rows)
    if suffix == ".csv" and rows[0] is VOTED:
        # A cell that holds messages can't be told from text; a canonical CSV has text prompts.
        rows = [{**row, "prompt": USER["content"]} for row in rows]
    data = WRITERS[suffix](rows)
    name = f"same{suffix}" + (".gz" if packed else "")
    reading = read_bytes(tmp_path, name, gzip.compress(data) if packed else data)
    assert bare(reading.groups) == bare(expected.groups)
    assert reading.ledger.entries == []
    packed_lines = read_bytes(tmp_path, "same.jsonl.gz", gzip.compress(as_jsonl(rows)))
    assert bare(packed_lines.groups) == bare(expected.groups)


def test_what_a_format_does_not_use_is_kept_as_meta(tmp_path: Path) -> None:
    row = {**PAIR, "source": "forum", "meta": {"year": 2020}, "id": 7}
    group = the_group(tmp_path, row)
    assert (group.meta, group.id) == ({"source": "forum", "year": 2020}, "7")
    assert the_group(tmp_path, {**PAIR, "meta": "a note"}).meta == {"meta": "a note"}


def test_a_json_file_may_hold_one_object_a_line_and_start_with_a_byte_order_mark(
    tmp_path: Path,
) -> None:
    mark = b"\xef\xbb\xbf"
    for name, data in (
        ("lines.json", as_jsonl([PAIR, PAIR])),
        ("marked.json", mark + as_json([PAIR, PAIR])),
        ("marked.jsonl", mark + as_jsonl([PAIR, PAIR])),
        ("marked.csv", mark + as_csv([PAIR, PAIR])),
    ):
        assert len(read_bytes(tmp_path, name, data).groups) == 2, name


def test_a_damaged_first_row_does_not_choose_the_format_for_the_rest(tmp_path: Path) -> None:
    unvoted = {key: value for key, value in VOTED.items() if key != "votes"}
    reading = read_rows(tmp_path, [unvoted, VOTED, VOTED])
    assert [g.line for g in reading.groups] == [2, 3]
    transcript = {"chosen": f"{TRANSCRIPT} a", "rejected": f"{TRANSCRIPT} b"}
    reading = read_rows(tmp_path, [{"chosen": None, "rejected": 1}, transcript])
    assert [g.line for g in reading.groups] == [2]
    assert [(e.line, e.reason) for e in row_entries(reading)] == [(1, "missing field")]


def test_several_sources_are_accounted_for_together(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_jsonl([PAIR, {**PAIR, "chosen": ""}]))
    (tmp_path / "b.jsonl").write_bytes(as_jsonl([RATED, RATED, 5]))
    reading = read([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert list(reading.formats.values()) == ["pairs", "ranked"]
    assert [(Path(g.file).name, g.line) for g in reading.groups] == [
        ("a.jsonl", 1),
        ("b.jsonl", 1),
        ("b.jsonl", 2),
    ]
    assert "5 rows in = 3 in groups + 2 in the ledger" in reading.summary()
    twice = str(tmp_path / "a.jsonl")
    assert "named twice" in refusal(lambda: read([twice, twice]))


def test_csv_damage_is_ledgered_at_its_own_lines(tmp_path: Path) -> None:
    """Lines 2-3 are one row with a line break in a cell; 4, 5 and 6 are damaged, one after another;
    7 is blank; 8 has bytes that are no UTF-8; 9 is good."""
    data = (
        b"prompt,chosen,rejected\r\n"
        b'q,"two\nlines",b\r\n'
        b'q,"a"x,b\r\n'
        b'q,"a"x,b\r\n'
        b"q,a\r\n"
        b"\r\n"
        b"q,caf\xe9,b\r\n"
        b"q,a,b\r\n"
    )
    reading = read_bytes(tmp_path, "rows.csv", data)
    assert [(g.line, g.responses[0].text) for g in reading.groups] == [(3, "two\nlines"), (9, "a")]
    assert [(e.line, e.reason) for e in row_entries(reading)] == [
        (4, "malformed CSV"),
        (5, "malformed CSV"),
        (6, "wrong number of cells"),
        (8, "not UTF-8"),
    ]


def test_a_csv_header_that_is_damaged_or_repeats_a_column_is_refused(tmp_path: Path) -> None:
    said = refusal(lambda: read_bytes(tmp_path, "a.csv", b'"prompt"x,chosen\nq,a\nq,b\n'))
    assert "a.csv:1: malformed CSV header" in said
    said = refusal(lambda: read_bytes(tmp_path, "b.csv", b"prompt,chosen,chosen\nq,a,b\n"))
    assert "b.csv:1:" in said
    assert "names a column twice" in said


def many_pairs(count: int) -> list[Row]:
    dice = random.Random(0)
    return [
        {"prompt": f"{i} " + "".join(dice.choices("abcdefgh ", k=300)), **pair}
        for i, pair in ((i, {"chosen": f"good {i}", "rejected": f"bad {i}"}) for i in range(count))
    ]


@pytest.mark.parametrize(("suffix", "num_header_lines"), [(".jsonl", 0), (".csv", 1)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_rows_before_the_cut_of_a_gzip_are_kept_and_the_cut_is_ledgered(
    tmp_path: Path, suffix: str, num_header_lines: int, share: float
) -> None:
    whole = gzip.compress(WRITERS[suffix](many_pairs(400)))
    cut = whole[: int(len(whole) * share)]
    num_lines = zlib.decompressobj(wbits=31).decompress(cut).count(b"\n")
    reading = read_bytes(tmp_path, f"cut{suffix}.gz", cut)
    assert len(reading.groups) == num_lines - num_header_lines
    (entry,) = reading.ledger.entries
    assert (entry.kind, entry.line) == ("file", num_lines)
    assert entry.reason == "cut or damaged after this line"
    assert "cut or damaged after this line" in reading.summary()


def test_a_gzip_whose_checksum_is_wrong_is_read_and_said_to_be_damaged(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(as_jsonl([PAIR, PAIR])))
    data[-6] ^= 1
    reading = read_bytes(tmp_path, "rows.jsonl.gz", bytes(data))
    assert len(reading.groups) == 2
    assert [(e.kind, e.reason) for e in reading.ledger.entries] == [("file", "damaged gzip")]


def test_a_gzip_cut_before_its_first_row_says_to_get_it_again(tmp_path: Path) -> None:
    data = gzip.compress(as_jsonl([PAIR]))
    for name, cut in (
        ("a.jsonl.gz", data[:15]),
        ("b.json.gz", gzip.compress(as_json([PAIR]))[:13]),
    ):
        said = refusal(lambda name=name, cut=cut: read_bytes(tmp_path, name, cut))
        assert name in said
        assert "get the file again" in said


@pytest.mark.parametrize("suffix", [*WRITERS, ".jsonl.gz", ".csv.gz"])
def test_mutated_copies_are_read_or_refused_and_never_break_the_accounting(
    tmp_path: Path, suffix: str
) -> None:
    """A hundred copies, bits flipped and ends cut. For plain lines the rows are counted apart."""
    rows = [{**PAIR, "id": str(i), "margin": i / 2} for i in range(12)]
    data = WRITERS[suffix.removesuffix(".gz")](rows)
    source = gzip.compress(data, mtime=0) if suffix.endswith(".gz") else data
    num_read = 0
    messages = []
    for seed in range(100):
        dice = random.Random(seed)
        mutated = bytearray(source)
        for _ in range(dice.choice([1, 1, 3, 20])):
            mutated[dice.randrange(len(mutated))] ^= 1 << dice.randrange(8)
        if dice.random() < 0.4:
            mutated = mutated[: dice.randrange(len(mutated))]
        try:
            reading = read_bytes(tmp_path, f"mutated{suffix}", bytes(mutated))
        except PalateError as error:
            messages.append(str(error))
            continue
        num_read += 1
        ledger = reading.ledger
        places = [g.line for g in reading.groups] + [e.line for e in row_entries(reading)]
        assert len(set(places)) == len(places) == ledger.num_rows_read
        if suffix == ".jsonl":
            assert ledger.num_rows_read == sum(bool(line.strip()) for line in mutated.split(b"\n"))
    assert num_read > 5
    assert all(f"mutated{suffix}" in message for message in messages)


def odd_values(dice: random.Random) -> Any:
    return dice.choice(
        [
            *(
                None,
                True,
                0,
                -1,
                5,
                2.5,
                float("nan"),
                10**400,
                "",
                "a",
                "\ud800",
                "tie",
                "[1",
                "{}",
            ),
            *([], {}, [0], [[0], [1]], [[[0]]], ["a", "b"], {"a": 1}, {"role": "user"}, [True]),
            *([USER, GOOD], [{"role": "user", "content": [{"type": ["x"]}]}], TRANSCRIPT),
        ]
    )


def disturbed(value: Any, dice: random.Random) -> Any:
    if dice.random() < 0.15:
        return odd_values(dice)
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if dice.random() > 0.05}
        return {k: disturbed(v, dice) if dice.random() < 0.4 else v for k, v in kept.items()}
    if isinstance(value, list):
        return [disturbed(item, dice) if dice.random() < 0.4 else item for item in value]
    return value


@pytest.mark.parametrize(
    "row",
    [
        {**PAIR, "margin": 1.0, "strength": 1, "tools": [{}], "meta": {}},
        {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD], "template_arguments": {}},
        {"chosen": f"{TRANSCRIPT} a", "rejected": f"{TRANSCRIPT} b"},
        {**VOTED, "comparisons": COMPARED["comparisons"]},
        VOTED,
        {**RATED, "ratings": [1, 2, 3]},
        {**RATED, "ranking": [[0], [1, 2]]},
        {"instruction": "q", "input": "", "response1": "a", "response2": "b", "annotator1": 1},
    ],
)
def test_rows_with_values_of_any_type_anywhere_are_read_or_ledgered(
    tmp_path: Path, row: Row
) -> None:
    dice = random.Random(0)
    rows = [row] * 60 + [disturbed(row, dice) for _ in range(300)]
    reading = read_rows(tmp_path, rows)
    assert 60 <= len(reading.groups) < 360
    assert reading.ledger.num_rows_read == 360
    assert all(entry.reason and entry.line > 60 for entry in reading.ledger.entries)
    reading.summary().encode()


def test_an_answer_of_two_hundred_thousand_characters_is_kept_whole(tmp_path: Path) -> None:
    long = "word " * 40_000
    group = the_group(tmp_path, {**PAIR, "chosen": long})
    assert group.responses[0].text == long


def test_odd_characters_survive_from_the_file_to_the_group(tmp_path: Path) -> None:
    odd = "nul \x00 bell \x07 <|im_end|> \u202eright to left\u202c عربى \u2028 \ufeff e\u0301 𝕏"
    for data in (
        as_jsonl([{**PAIR, "chosen": odd}]),
        json.dumps({**PAIR, "chosen": odd}, ensure_ascii=False).encode(),
    ):
        (group,) = read_bytes(tmp_path, "odd.jsonl", data).groups
        assert group.responses[0].text == odd
    (group,) = read_bytes(tmp_path, "odd.csv", as_csv([{**PAIR, "chosen": odd}])).groups
    assert group.responses[0].text == odd


@pytest.mark.parametrize(
    "name", ["none.jsonl", "none.jsonl.gz", "none.json", "none.csv", "none.parquet", "blank.jsonl"]
)
def test_an_empty_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    said = refusal(lambda: read_bytes(tmp_path, name, b"\n \n" if name == "blank.jsonl" else b""))
    assert name in said
    assert "empty" in said or "not readable as Parquet" in said


def test_lists_and_tables_without_rows_are_empty_too(tmp_path: Path) -> None:
    assert "it is empty" in refusal(lambda: read_bytes(tmp_path, "a.json", b"[]"))
    assert "it is empty" in refusal(lambda: read_bytes(tmp_path, "a.csv", b"prompt,chosen\n"))
    empty = pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(empty, tmp_path / "a.parquet")
    assert "it is empty" in refusal(lambda: read(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/such/file.jsonl", "no such file; check the path"),
        ("file.txt", "no such file; check the path"),
        ("file.jsonl/deeper.jsonl", "a part of its path is a file"),
        ("folder.jsonl", "it is a directory; name a file"),
        ("folder.csv.gz", "it is a directory; name a file"),
        ("folder", "it is a directory; name a file"),
        ("there.xlsx", "unknown kind of file; expected .jsonl, .json, .csv, .parquet"),
        ("x" * 300 + ".jsonl", "the name is too long"),
    ],
)
def test_a_file_that_cannot_be_opened_is_named_with_the_remedy(
    tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "file.jsonl").write_bytes(as_jsonl([PAIR]))
    (tmp_path / "there.xlsx").write_bytes(b"PK")
    for folder in ("folder.jsonl", "folder.csv.gz", "folder"):
        (tmp_path / folder).mkdir()
    message = refusal(lambda: read(str(tmp_path / name)))
    assert message.startswith(str(tmp_path / name))
    assert said in message


def test_fields_in_no_known_format_are_listed_beside_the_known_ones(tmp_path: Path) -> None:
    message = refusal(lambda: read_rows(tmp_path, [{"question": "q", "answer\ud800": "a"}]))
    assert "its fields are: 'question', 'answer\\ud800'" in message
    assert "pairs (prompt, chosen, rejected)" in message
    message.encode()


def test_a_file_of_nothing_but_damage_names_its_first_place(tmp_path: Path) -> None:
    message = refusal(lambda: read_bytes(tmp_path, "rows.jsonl", b"{\n{\n"))
    assert "malformed JSON" in message
    assert "rows.jsonl:1" in message
    message = refusal(lambda: read_rows(tmp_path, [{**PAIR, "chosen": ""}] * 3))
    assert "none of 3 rows is usable" in message
    assert "empty response" in message


def test_a_json_list_that_is_cut_keeps_its_rows_and_says_where(tmp_path: Path) -> None:
    reading = read_bytes(tmp_path, "rows.json", as_json([PAIR, PAIR])[:-20])
    assert [group.line for group in reading.groups] == [1]
    assert [(e.kind, e.line, e.reason) for e in reading.ledger.entries] == [
        ("row", 2, "malformed JSON"),
        ("file", 2, "cut or damaged after this line"),
    ]
    message = refusal(lambda: read_bytes(tmp_path, "none.json", as_json([PAIR])[:-20]))
    assert "none.json, row 1" in message
    assert "malformed JSON" in message


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    assert "format 'hhh' is none of auto, canonical" in refusal(
        lambda: read("x", ReadSettings(format="hhh"))  # type: ignore[arg-type]
    )


def test_a_hub_data_set_without_a_network_is_refused_at_once(tmp_path: Path) -> None:
    """The hub is a socket that takes the connection and never answers. Importing is not counted."""
    script = (
        "import time, datasets, palate.preferences\n"
        "start = time.monotonic()\n"
        "try:\n"
        "    palate.preferences.read('owner/name')\n"
        "except palate.errors.PalateError as error:\n"
        "    print(time.monotonic() - start, error)\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path),
            "NO_PROXY": "127.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    seconds, message = done.stdout.split(" ", 1)
    assert float(seconds) < 5
    assert message.startswith("owner/name: not a file here")
    assert "the hub cannot be reached from here; name a local file in its place" in message


def test_harmless_transcripts_are_1599_groups_and_8_rows_in_the_ledger(shared_data: Path) -> None:
    """1,607 = 1,599 + 4 with an empty last answer + 4 whose two sides have parted before it."""
    path = shared_data / "hh_harmless.jsonl.gz"
    reading = read(str(path))
    assert (reading.ledger.num_rows_read, len(reading.groups)) == (1607, 1599)
    assert reading.ledger.by_reason() == {
        "row: empty response": 4,
        "row: conversations differ before the last turn": 4,
    }
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for group in reading.groups:
        joined = "".join(
            f"\n\n{'Human' if m.role == 'user' else 'Assistant'}: {m.content}" for m in group.prompt
        )
        for response, side in zip(group.responses, ("chosen", "rejected"), strict=True):
            whole = f"{joined}\n\nAssistant: {response.text}"
            assert whole.split() == rows[group.line - 1][side].split()


def test_human_votes_with_untidy_responses_are_accounted_for_exactly(shared_data: Path) -> None:
    """637 rows = groups + ledger; which rows are which, and k of 3 votes, are worked out apart."""
    path = shared_data / "pandalm_votes.json"
    reading = read(str(path))
    rows = json.loads(path.read_text(encoding="utf-8"))
    unusable = {
        line
        for line, row in enumerate(rows, start=1)
        for first, second in [(row["response1"], row["response2"])]
        if not (isinstance(first, str) and isinstance(second, str))
        or not (first.strip() and second.strip())
        or first == second
    }
    assert {e.line for e in row_entries(reading)} == unusable
    assert {g.line for g in reading.groups} == set(range(1, 638)) - unusable
    assert len(reading.groups) + len(unusable) == reading.ledger.num_rows_read == 637
    boolean = [e for e in reading.ledger.entries if e.reason == "wrong type"]
    assert boolean
    assert all(" is bool " in e.detail and e.detail.startswith("response") for e in boolean)
    for group in reading.groups:
        row = rows[group.line - 1]
        cast = [row[f"annotator{i}"] for i in (1, 2, 3)]
        (comparison,) = group.comparisons
        ahead, behind = cast.count(comparison.better + 1), cast.count(comparison.worse + 1)
        assert ahead >= behind
        assert comparison.probability == pytest.approx((ahead + 0.5) / (ahead + behind + 1))
        assert comparison.tie == pytest.approx(cast.count(0) / 3)
        text = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        assert group.prompt == (Message("user", text),)


def test_nine_answers_with_win_rates_make_up_to_36_comparisons(shared_data: Path) -> None:
    path = shared_data / "alpacaeval_k9.jsonl.gz"
    reading = read(str(path))
    assert (reading.ledger.num_rows_read, len(reading.groups)) == (472, 472)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    for group, row in zip(reading.groups, rows, strict=True):
        rates = [r["win_rate_vs_reference"] for r in row["responses"]]
        texts = [r["text"] for r in row["responses"]]
        expected = {
            (i, j)
            for i in range(9)
            for j in range(9)
            if rates[i] > rates[j] and texts[i] != texts[j]
        }
        assert set(arcs(group)) == expected
        assert len(group.comparisons) == len(expected) <= 36
    assert max(len(group.comparisons) for group in reading.groups) == 36


def test_messages_in_cells_of_a_csv_are_messages(tmp_path: Path) -> None:
    """TRL's conversational form in a table; a text that merely starts with [ stays one."""
    path = tmp_path / "pairs.csv"
    turns = json.dumps([{"role": "user", "content": "How?"}])
    answer = json.dumps([{"role": "assistant", "content": "So."}])
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["prompt", "chosen", "rejected"])
        writer.writerow([turns, answer, "[not a list"])
    (group,) = read(str(path)).groups
    assert [(m.role, m.content) for m in group.prompt] == [("user", "How?")]
    assert [r.text for r in group.responses] == ["So.", "[not a list"]

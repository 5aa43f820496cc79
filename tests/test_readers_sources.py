"""Several sources under their names, tables with columns of any name, streams."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from palate.artifacts.ledger import Ledger
from palate.pipeline.prepare import refuse_without_effect
from palate.preferences import (
    Comparison,
    Message,
    PreferenceGroup,
    ReadSettings,
    Source,
    VoteSettings,
    iter_groups,
    rating_report,
    read,
    readers,
)
from palate.preferences.types import Response
from tests.rows import Row, arcs, as_jsonl, read_rows, refusal, row_entries, texts, the_group

PAIR: Row = {"prompt": "How do birds fly?", "chosen": "They flap.", "rejected": "By magic."}
RATED: Row = {
    "prompt": "Name a bird.",
    "responses": [{"text": "wren", "fun": 1, "true": 5}, {"text": "bat", "fun": 4, "true": 1}],
}


def write(path: Path, rows: list[Any]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(as_jsonl(rows))
    return str(path)


def test_each_source_of_a_mixture_has_its_name_weight_format_and_columns(tmp_path: Path) -> None:
    sources = {
        "pairs": Source(path=write(tmp_path / "a.jsonl", [PAIR, {**PAIR, "weight": 3}])),
        "table": Source(
            path=write(tmp_path / "b.jsonl", [{"q": "Why?", "best": "a", "other": "b"}]),
            columns={"prompt": "q", "chosen": "best", "rejected": "other"},
            weight=0.5,
        ),
        "votes": Source(
            path=write(
                tmp_path / "c.jsonl",
                [{"prompt": "q", "response1": "a", "response2": "b", "annotator1": 2}],
            ),
            weight=2,
        ),
        "fun": Source(
            path=write(tmp_path / "d.jsonl", [RATED]), format="ranked", rating="fun", weight=0.1
        ),
    }
    reading = read(sources)
    assert [group.source for group in reading.groups] == ["pairs", "pairs", "table", "votes", "fun"]
    weights = [c.weight for group in reading.groups for c in group.comparisons]
    assert weights == [1, 3, 0.5, 2, 0.1]
    assert arcs(reading.groups[-1]) == [(1, 0)]
    assert list(reading.formats.values()) == ["pairs", "pairs", "annotated", "ranked"]
    assert reading.ledger.num_rows_read == 5


def test_a_source_is_called_by_its_file_or_by_its_path_where_two_files_share_a_name(
    tmp_path: Path,
) -> None:
    alone = write(tmp_path / "alone.jsonl", [PAIR])
    twins = [write(tmp_path / folder / "rows.jsonl", [PAIR]) for folder in ("one", "two")]
    assert [g.source for g in read(alone).groups] == ["alone.jsonl"]
    assert [g.source for g in read([alone, *twins]).groups] == ["alone.jsonl", *twins]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"path": ""}, "a source's path is empty"),
        ({"path": "x", "weight": 0}, "weight 0 of the source x: must be a number above 0"),
        ({"path": "x", "weight": float("nan")}, "weight nan"),
        ({"path": "pairs.jsonl", "rating": "fun"}, "rating 'fun' of the source mine has no effect"),
        ({"path": "pairs.jsonl", "hub_split": "test"}, "hub_split 'test' of the source mine"),
    ],
)
def test_a_source_that_says_what_cannot_be_heeded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: dict[str, Any], said: str
) -> None:
    write(tmp_path / "pairs.jsonl", [PAIR])
    monkeypatch.chdir(tmp_path)
    assert said in refusal(lambda: read({"mine": Source(**source)}))


TABLE: Row = {
    "question": "How do birds fly?",
    "answer_a": "They flap.",
    "answer_b": "By magic.",
    "topic": "birds",
}
COLUMNS = {"prompt": "question", "chosen": "answer_a", "rejected": "answer_b"}


def test_columns_of_any_name_are_read_under_palates_names(tmp_path: Path) -> None:
    """The same as the pair written out; a column without a target goes to the meta."""
    group = the_group(tmp_path, TABLE, columns=COLUMNS)
    plain = the_group(tmp_path, PAIR)
    assert (group.prompt, group.responses, group.comparisons) == (
        plain.prompt,
        plain.responses,
        plain.comparisons,
    )
    assert group.meta == {"topic": "birds"}
    judged = {"prompt": "question", "response1": "answer_a", "response2": "answer_b"}
    winner = {**TABLE, "winner": "model_b", "ann": 1, "bob": 2}
    labelled = the_group(tmp_path, winner, columns={**judged, "preferred": "winner"})
    assert labelled.comparisons == (Comparison(1, 0),)
    voted = the_group(
        tmp_path, winner, columns={**judged, "annotator1": "ann", "annotator2": "bob"}
    )
    assert [vote.ranking for vote in voted.votes] == [((0,), (1,)), ((1,), (0,))]


def test_a_column_may_be_a_path_into_objects_and_a_name_with_dots_stands_first(
    tmp_path: Path,
) -> None:
    row = {"task": {"text": {"q": "deep"}}, "answer_a": "a", "answer_b": "b"}
    columns = {**COLUMNS, "prompt": "task.text.q"}
    assert the_group(tmp_path, row, columns=columns).prompt == (Message("user", "deep"),)
    both = {**row, "task.text.q": "flat"}
    assert the_group(tmp_path, both, columns=columns).prompt == (Message("user", "flat"),)


def test_columns_may_be_exchanged(tmp_path: Path) -> None:
    """A table whose better answer stands under the wrong name."""
    exchanged = {"chosen": "rejected", "rejected": "chosen"}
    assert texts(the_group(tmp_path, PAIR, columns=exchanged)) == ["By magic.", "They flap."]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"promt": "question"}, "'promt' is no field that palate reads; did you mean 'prompt'?"),
        ({"xyz": "question"}, "'xyz' is no field that palate reads; known are prompt, chosen"),
        ({"prompt": "prompt"}, "prompt: prompt has no effect"),
        (
            {**COLUMNS, "rejected": "answer_c"},
            "rejected: answer_c, but none of the first 2 rows has a column 'answer_c'; the first"
            " has 'question', 'answer_a'",
        ),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused_with_what_there_is(
    tmp_path: Path, columns: dict[str, str], said: str
) -> None:
    assert said in refusal(lambda: read_rows(tmp_path, [TABLE, TABLE], columns=columns))


def test_a_field_that_is_there_already_is_not_covered_in_silence(tmp_path: Path) -> None:
    clash = {**TABLE, "prompt": "another"}
    said = refusal(lambda: read_rows(tmp_path, [TABLE, clash], columns=COLUMNS))
    assert "prompt: question, but the row has a field 'prompt' too" in said
    later = [TABLE] * readers.NUM_ROWS_TO_DETECT + [clash]
    reading = read_rows(tmp_path, later, columns=COLUMNS)
    (entry,) = row_entries(reading)
    assert (entry.line, entry.reason) == (len(later), "column clash")


def test_a_row_without_an_optional_column_is_read_and_one_without_a_needed_one_ledgered(
    tmp_path: Path,
) -> None:
    columns = {**COLUMNS, "margin": "gap"}
    rows = [{**TABLE, "gap": 0.5}, TABLE, {"question": "q", "answer_a": "a"}]
    reading = read_rows(tmp_path, rows, columns=columns)
    assert [g.comparisons[0].margin for g in reading.groups] == [0.5, 0]
    assert [(e.line, e.reason) for e in row_entries(reading)] == [(3, "missing field")]


def test_mapped_columns_of_a_csv_hold_lists_as_json(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text('q,texts,stars\nWhy?,"[""a"", ""b""]","[1, 4]"\n', encoding="utf-8")
    columns = {"prompt": "q", "responses": "texts", "ratings": "stars"}
    (group,) = read(str(path), ReadSettings(columns=columns)).groups
    assert (texts(group), arcs(group)) == (["a", "b"], [(1, 0)])


def test_a_stream_reads_no_further_than_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening takes the first hundred rows to find the format; each group takes one more row."""
    taken = 0

    def rows(source: str, ledger: Ledger, hub_split: str) -> Iterator[tuple[int, Row]]:
        nonlocal taken
        for line in range(1, 10**9):
            taken += 1
            ledger.num_rows_read += 1
            yield line, PAIR

    monkeypatch.setattr(readers, "iter_rows", rows)
    stream = iter_groups("endless.jsonl", name="mine")
    assert (stream.format, taken) == ("pairs", 100)
    assert stream.why == "100 of the first 100 rows have prompt, chosen and rejected"
    groups = iter(stream)
    for line in range(1, 251):
        group = next(groups)
        assert (group.line, group.source) == (line, "mine")
    assert taken == 250


def test_a_stream_and_a_reading_are_the_same_groups(tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "chosen": ""}, {**PAIR, "prompt": "Why?"}]
    path = write(tmp_path / "rows.jsonl", rows)
    ledger = Ledger()
    streamed = tuple(iter_groups(path, ledger=ledger, name="rows.jsonl"))
    reading = read(path)
    assert streamed == reading.groups
    assert ledger.entries == reading.ledger.entries
    ledger.check(sum(group.num_rows for group in streamed))


def test_opening_a_stream_says_at_once_what_is_wrong_with_the_source(tmp_path: Path) -> None:
    assert "no such file" in refusal(lambda: iter_groups(str(tmp_path / "none.jsonl")))
    path = write(tmp_path / "odd.jsonl", [{"a": 1}])
    assert "in no known format" in refusal(lambda: iter_groups(path))


def rated_group(*ratings: float | None) -> PreferenceGroup:
    responses = tuple(Response(f"r{i}", rating=rating) for i, rating in enumerate(ratings))
    return PreferenceGroup((Message("user", "q"),), responses, (Comparison(0, 1),))


def test_saturated_ratings_are_counted() -> None:
    """Six ratings: 5 four times, 1 once, 3 once. Pairs of a prompt: (5,5), (5,1), (5,1) and (5,3):
    one of four is equal, and the smallest gap is 2."""
    report = rating_report([rated_group(5, 5, 1), rated_group(5, 3), rated_group(None, 5)])
    assert report is not None
    assert (report.num_ratings, report.num_highest, report.num_lowest) == (6, 4, 1)
    assert (report.num_pairs, report.num_equal_pairs, report.smallest_gap) == (4, 1, 2)
    assert report.summary() == (
        "6 ratings from 1 to 5: 16.7% (1) at the lowest, 66.7% (4) at the highest\n"
        "25.0% (1) of 4 pairs of one prompt have equal ratings, smallest gap 2"
    )
    assert rating_report([rated_group(None, None)]) is None


def test_win_rates_of_real_answers_pile_up_at_the_lower_end(shared_data: Path) -> None:
    """AlpacaEval, 472 prompts with nine answers: 16,992 pairs. The ends and the equal pairs are
    counted apart, from the rows as they are."""
    path = shared_data / "alpacaeval_k9.jsonl.gz"
    stream = iter_groups(str(path), ReadSettings(votes=VoteSettings(min_gap=0.1)))
    groups = list(stream)
    report = rating_report(groups)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rates = [[r["win_rate_vs_reference"] for r in json.loads(x)["responses"]] for x in lines]
    assert report is not None
    assert (report.num_ratings, report.num_pairs) == (472 * 9, 472 * 36)
    flat = [rate for row in rates for rate in row]
    assert report.num_lowest == flat.count(min(flat))
    assert report.num_highest == flat.count(max(flat))
    pairs = [(a, b) for row in rates for i, a in enumerate(row) for b in row[:i]]
    assert report.num_equal_pairs == sum(a == b for a, b in pairs)
    compared = sum(abs(a - b) >= 0.1 for a, b in pairs)
    num_identical = 0
    for group in groups:
        for first, one in enumerate(group.responses):
            for other in group.responses[:first]:
                assert one.rating is not None and other.rating is not None
                same = one.text == other.text
                num_identical += same and abs(one.rating - other.rating) >= 0.1
    assert sum(len(group.comparisons) for group in groups) == compared - num_identical


VOTED: Row = {"prompt": "q", "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 2}


def settings_of(values: dict[str, Any]) -> ReadSettings:
    return ReadSettings(**{**values, "votes": VoteSettings(**values.get("votes", {}))})


@pytest.mark.parametrize(
    ("rows", "settings", "said"),
    [
        ([PAIR], {"votes": {"scale_by_strength": True}}, "read.votes.scale_by_strength has no"),
        ([PAIR], {"votes": {"equal": "tie"}}, "read.votes.equal has no effect"),
        ([PAIR], {"votes": {"missing": "tie"}}, "read.votes.missing has no effect"),
        ([PAIR], {"votes": {"recount": True}}, "read.votes.recount has no effect"),
        ([PAIR], {"rating": "fun"}, "read.rating has no effect"),
        ([VOTED], {"votes": {"recount": True}}, "read.votes.recount has no effect"),
        ([VOTED], {"votes": {"min_gap": 1}}, "read.votes.min_gap has no effect"),
        ([VOTED], {"votes": {"margin_per_strength": 1}}, "read.votes.margin_per_strength has no"),
        (
            [VOTED],
            {"votes": {"annotator_weights": {"anotator1": 2.0}}},
            "nobody called 'anotator1' has voted; among the 2 annotators the nearest is"
            " 'annotator1'",
        ),
        ([RATED], {"rating": "fun", "votes": {"target": "majority"}}, "read.votes.target has no"),
        ([PAIR], {"hub_split": "test"}, "read.hub_split has no effect"),
    ],
)
def test_a_setting_that_none_of_the_rows_can_heed_is_refused(
    tmp_path: Path, rows: list[Row], settings: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "rows.jsonl", rows)
    chosen = settings_of(settings)
    assert said in refusal(lambda: refuse_without_effect(read(path, chosen), chosen))


@pytest.mark.parametrize(
    ("row", "settings"),
    [
        ({**PAIR, "strength": 2}, {"votes": {"scale_by_strength": True, "margin_per_strength": 1}}),
        ({**PAIR, "score_chosen": 2, "score_rejected": 1}, {"votes": {"min_gap": 1}}),
        (VOTED, {"votes": {"missing": "tie", "annotator_weights": {"annotator2": 0.5}}}),
        (RATED, {"rating": "fun", "votes": {"min_gap": 2, "equal": "tie"}}),
        (
            {"prompt": "q", "responses": ["a", "b"], "votes": [{"choice": 0, "strength": 2}]},
            {"votes": {"target": "majority", "margin_per_strength": 1}},
        ),
        (
            {
                "prompt": "q",
                "responses": ["a", "b"],
                "votes": [{"choice": 0}],
                "comparisons": [{"better": 0, "worse": 1}],
            },
            {"votes": {"recount": True}},
        ),
    ],
)
def test_a_setting_that_a_row_heeds_is_taken(
    tmp_path: Path, row: Row, settings: dict[str, Any]
) -> None:
    path = write(tmp_path / "rows.jsonl", [row, PAIR])
    chosen = settings_of(settings)
    refuse_without_effect(read(path, chosen), chosen)

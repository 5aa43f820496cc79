"""Fields that a format could overlook: each is used as what it means, or refused by name."""

from pathlib import Path
from typing import Any

import pytest

from palate.preferences import Comparison, Message, Source, VoteSettings, read
from tests.rows import Row, as_jsonl, read_bytes, read_rows, refusal, row_entries, texts, the_group

PAIR: Row = {"prompt": "How do birds fly?", "chosen": "They flap.", "rejected": "By magic."}
ALPACA: Row = {"instruction": "Shorten.", "input": "A long text.", "chosen": "a", "rejected": "b"}
SCORED: Row = {**PAIR, "score_chosen": 2, "score_rejected": 1.5}


def prompt_texts(folder: Path, row: Row, **options: Any) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in the_group(folder, row, **options).prompt]


def the_reason(folder: Path, row: Row, **options: Any) -> str:
    (entry,) = row_entries(read_rows(folder, [PAIR, row], format="pairs", **options))
    return entry.reason


def test_a_pairs_probability_is_its_labels(tmp_path: Path) -> None:
    group = the_group(tmp_path, {**PAIR, "probability": 0.7})
    assert group.comparisons == (Comparison(0, 1, probability=0.7),)
    assert "probability" not in group.meta
    assert the_group(tmp_path, {**PAIR, "p": "0.5"}, columns={"probability": "p"}).comparisons == (
        Comparison(0, 1, probability=0.5),
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"probability": 0.3}, "probability contradicts the choice"),
        ({"probability": 1.2}, "invalid probability"),
        ({"probability": -0.1}, "invalid probability"),
        ({"probability": 0.8, "margin": 1}, "margin on a soft label"),
    ],
)
def test_a_probability_that_cannot_be_the_labels_is_refused(
    tmp_path: Path, fields: Row, reason: str
) -> None:
    assert the_reason(tmp_path, {**PAIR, **fields}) == reason


def test_a_system_column_is_the_system_turn(tmp_path: Path) -> None:
    said = [("system", "Be brief."), ("user", "How do birds fly?")]
    assert prompt_texts(tmp_path, {**PAIR, "system": "Be brief."}) == said
    assert prompt_texts(tmp_path, {**PAIR, "sys": "Be brief."}, columns={"system": "sys"}) == said
    assert prompt_texts(tmp_path, {**PAIR, "system": ""}) == said[1:]
    in_prompt = {**PAIR, "prompt": [{"role": r, "content": c} for r, c in said]}
    assert prompt_texts(tmp_path, {**in_prompt, "system": "Be brief."}) == said
    assert the_reason(tmp_path, {**in_prompt, "system": "Be long."}) == "two system turns"
    assert the_reason(tmp_path, {**PAIR, "system": 7}) == "wrong type"
    aside = the_group(tmp_path, {**PAIR, "system": "gpt"}, columns={"meta": "system"})
    assert [turn.role for turn in aside.prompt] == ["user"] and aside.meta == {"meta": "gpt"}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (ALPACA, {}),
        (ALPACA, {"prompt": "instruction"}),
        ({**PAIR, "prompt": "Shorten.", "input": "A long text."}, {"instruction": "prompt"}),
        ({**PAIR, "prompt": "Shorten.", "ctx": "A long text."}, {"input": "ctx"}),
        ({**ALPACA, "prompt": "Shorten."}, {}),
    ],
)
def test_alpacas_input_follows_the_instruction(
    tmp_path: Path, row: Row, columns: dict[str, str]
) -> None:
    group = the_group(tmp_path, row, columns=columns)
    assert group.prompt == (Message("user", "Shorten.\n\nA long text."),)
    assert not {"instruction", "input", "prompt"} & set(group.meta)


def test_an_empty_input_adds_nothing_and_one_beside_a_prompt_is_not_guessed(
    tmp_path: Path,
) -> None:
    assert prompt_texts(tmp_path, {**ALPACA, "input": ""}) == [("user", "Shorten.")]
    assert the_reason(tmp_path, {**PAIR, "input": "A long text."}) == "unclear prompt"
    within = the_group(tmp_path, {**PAIR, "input": "birds"})
    assert (len(within.prompt), within.meta) == (1, {"input": "birds"})


@pytest.mark.parametrize(
    "row",
    [
        {
            "prompt": "p",
            "instruction": "i",
            "response1": "a",
            "response2": "b",
            "annotator1": 1,
        },
        {
            "prompt": "p",
            "context": "c",
            "response1": "a",
            "response2": "b",
            "overall_preference": 1,
        },
        {
            "prompt": "p",
            "instruction": "i",
            "completions": [
                {"response": "a", "fine-grained_score": 1},
                {"response": "b", "fine-grained_score": 2},
            ],
        },
    ],
)
def test_two_fields_that_may_be_the_prompt_are_refused(tmp_path: Path, row: Row) -> None:
    assert "differ, and either may be the prompt" in refusal(lambda: read_rows(tmp_path, [row]))


def test_a_target_may_be_the_object_that_its_path_starts_in(tmp_path: Path) -> None:
    """The rest of the object is kept, and can be mapped too."""
    row = {
        "prompt": "p",
        "chosen": {"text": "a", "score": 3, "by": "m"},
        "rejected": {"text": "b", "score": 1},
    }
    columns = {"chosen": "chosen.text", "rejected": "rejected.text", "score_chosen": "chosen.score"}
    group = the_group(tmp_path, row, columns=columns)
    assert texts(group) == ["a", "b"]
    assert group.responses[0].rating == 3
    assert group.meta == {"chosen.by": "m", "rejected.score": 1}


def test_a_table_in_latin_1_is_said_not_to_be_utf_8_with_the_remedy(tmp_path: Path) -> None:
    data = "prompt,chosen,rejected\nq,a,b\nq,café,b\n".encode("latin-1")
    (entry,) = row_entries(read_bytes(tmp_path, "rows.csv", data))
    assert (entry.line, entry.reason) == (3, "not UTF-8")
    assert "byte 0xe9 after 'caf'; convert the file to UTF-8" in entry.detail
    header = "prompt,chosen,rejected,café\nq,a,b,c\n".encode("latin-1")
    said = refusal(lambda: read_bytes(tmp_path, "rows.csv", header))
    assert "the CSV header is not UTF-8" in said and "convert" in said


def sources(folder: Path, **rows: list[Row]) -> dict[str, str]:
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_bytes(as_jsonl(lines))
    return {name: str(folder / f"{name}.jsonl") for name in rows}


def test_each_source_of_a_mixture_must_give_a_group(tmp_path: Path) -> None:
    paths = sources(tmp_path, good=[PAIR, {**PAIR, "chosen": ""}], bad=[PAIR, PAIR])
    mixture = {
        "good": Source(path=paths["good"]),
        "bad": Source(path=paths["bad"], format="ranked"),
    }
    said = refusal(lambda: read(mixture))
    assert f"{paths['bad']}: read as ranked (named in the settings), but none of 2 rows" in said
    assert "2  row: missing field" in said and "empty response" not in said
    assert "The first: line 1: no field 'responses'" in said


def test_votes_of_one_source_hold_for_it_alone(tmp_path: Path) -> None:
    wide = {**SCORED, "score_chosen": 9}
    paths = sources(tmp_path, strict=[SCORED, wide], lax=[SCORED, wide])
    mixture = {
        "strict": Source(path=paths["strict"], votes=VoteSettings(min_gap=1)),
        "lax": Source(path=paths["lax"]),
    }
    assert [group.source for group in read(mixture).groups] == ["strict", "lax", "lax"]


@pytest.mark.parametrize(
    ("votes", "said"),
    [
        (VoteSettings(recount=True), "votes.recount of the source mine has no effect"),
        (
            VoteSettings(annotator_weights={"ann": 2}),
            "votes.annotator_weights of the source mine has no effect",
        ),
    ],
)
def test_votes_of_a_source_that_nothing_in_it_heeds_are_refused(
    tmp_path: Path, votes: VoteSettings, said: str
) -> None:
    path = sources(tmp_path, mine=[PAIR])["mine"]
    assert said in refusal(lambda: read({"mine": Source(path=path, votes=votes)}))


def test_an_annotator_whom_a_sources_weights_name_must_have_voted(tmp_path: Path) -> None:
    voted = {"prompt": "q", "response1": "a", "response2": "b", "annotator1": 1}
    path = sources(tmp_path, mine=[voted])["mine"]

    def weighed(name: str) -> dict[str, Source]:
        return {"mine": Source(path=path, votes=VoteSettings(annotator_weights={name: 2.0}))}

    assert len(read(weighed("annotator1")).groups) == 1
    assert "nobody called 'annotator9' has voted" in refusal(lambda: read(weighed("annotator9")))


@pytest.mark.parametrize(
    "rated",
    [
        SCORED,
        {"prompt": "q", "responses": [{"text": "a", "rating": 1}, {"text": "b", "rating": 1.5}]},
    ],
)
def test_a_setting_that_refuses_every_row_it_bears_on_has_had_an_effect(
    tmp_path: Path, rated: Row
) -> None:
    """The other rows stay: a pair without scores, votes without ratings."""
    plain = PAIR if "chosen" in rated else {**rated, "ranking": [0, 1]}
    reading = read_rows(tmp_path, [rated, plain], votes=VoteSettings(min_gap=1))
    assert [entry.reason for entry in row_entries(reading)] == ["no ratings that differ"]
    assert "min_gap" in reading.heeds

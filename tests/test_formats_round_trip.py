"""What is read can be written back: canonical rows to the letter, each format's own rows, TRL's."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.preferences import (
    Comparison,
    Message,
    PreferenceGroup,
    ReadSettings,
    Response,
    VoteSettings,
    read,
    to_canonical,
    to_trl,
)
from palate.preferences.formats.detect import FORMATS, detect_format
from tests.rows import Row, any_groups, as_jsonl, group_of, plain_text, said


def through_json(row: Row) -> Row:
    copied: Row = json.loads(json.dumps(row))
    return copied


@given(any_groups())
def test_a_group_is_read_back_equal_from_its_canonical_row(group: PreferenceGroup) -> None:
    row = through_json(to_canonical(group))
    assert detect_format(row) is not None
    again = group_of("canonical", row)
    assert again == group
    assert to_canonical(again) == to_canonical(group)


@settings(max_examples=20)
@given(st.lists(any_groups(), min_size=1, max_size=5))
def test_a_file_of_canonical_rows_holds_the_same_groups_in_the_same_order(
    groups: list[PreferenceGroup],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "canonical.jsonl"
        path.write_bytes(as_jsonl([to_canonical(group) for group in groups]))
        reading = read(str(path))
    assert [said(group) for group in reading.groups] == groups
    assert [group.line for group in reading.groups] == list(range(1, len(groups) + 1))
    assert reading.ledger.entries == []


certain = st.builds(Comparison, st.just(0), st.just(1), margin=st.just(0.0) | st.floats(0.1, 5))


@given(any_groups(), st.lists(certain, min_size=1, max_size=3))
def test_certain_comparisons_come_back_from_trl_rows(
    group: PreferenceGroup, comparisons: list[Comparison]
) -> None:
    """Each row is a pair of two of the group's responses: its prompt, tools and arguments, and the
    chosen one first."""
    group = replace(group, comparisons=tuple(comparisons))
    made = to_trl(group)
    assert len(made.rows) == len(comparisons)
    for row, comparison in zip(made.rows, comparisons, strict=True):
        read_back = group_of("pairs", through_json(row))
        assert read_back.prompt == group.prompt
        assert (read_back.tools, read_back.template_arguments) == (
            group.tools,
            group.template_arguments,
        )
        assert [r.text for r in read_back.responses] == [r.text for r in group.responses[:2]]
        assert read_back.comparisons == (comparison,)


@given(any_groups())
def test_every_comparison_has_a_trl_row_or_stands_among_what_was_lost(
    group: PreferenceGroup,
) -> None:
    made = to_trl(group)
    num_uncertain = sum(reason == "not certain" for _, reason, _ in made.lost)
    assert len(made.rows) + num_uncertain == len(group.comparisons)
    assert num_uncertain == sum(c.probability < 1 or c.tie > 0 for c in group.comparisons)


def test_what_trl_rows_cannot_say_is_listed() -> None:
    """Of four comparisons one is soft, one a tie; of the two written one has a weight."""
    group = PreferenceGroup(
        (Message("user", "q"),),
        (
            Response("a", rating=4.0),
            Response("b", finished=False),
            Response("c"),
            Response("d"),
        ),
        (
            Comparison(0, 1, margin=0.5),
            Comparison(0, 2, weight=2.0),
            Comparison(1, 2, probability=0.7),
            Comparison(0, 1, probability=0.5, tie=1.0),
        ),
    )
    made = to_trl(group)
    prompt = [{"role": "user", "content": "q"}]
    a, b, c = ([{"role": "assistant", "content": text}] for text in "abc")
    assert made.rows == [
        {"prompt": prompt, "chosen": a, "rejected": b, "margin": 0.5},
        {"prompt": prompt, "chosen": a, "rejected": c},
    ]
    assert made.lost == [
        ("comparison", "weight lost", "comparison 1 weighs 2"),
        ("comparison", "not certain", "comparison 2 has probability 0.7, tie 0"),
        ("comparison", "not certain", "comparison 3 has probability 0.5, tie 1"),
        ("response", "rating lost", "response 0: 4"),
        ("response", "unfinished, will be closed", "response 1"),
        ("response", "never compared", "response 3"),
    ]


@dataclass(frozen=True)
class Told:
    """A prompt with answers, the best first, and by how much the first of two is better."""

    prompt: str
    answers: tuple[str, ...]
    strength: int


def tellings(num_answers: int) -> st.SearchStrategy[Told]:
    """Words only: some formats strip the ends of turns or give other characters a meaning."""
    words = st.text("abcdefgh é", min_size=1, max_size=9).map(str.strip).filter(bool)
    answers = st.lists(words, min_size=num_answers, max_size=num_answers, unique=True)
    return st.builds(Told, words, answers.map(tuple), st.integers(1, 3))


def messages(*turns: str) -> list[Row]:
    return [
        {"role": "assistant" if place % 2 else "user", "content": turn}
        for place, turn in enumerate(turns)
    ]


def as_hh(told: Told) -> list[Row]:
    first, second = (f"\n\nHuman: {told.prompt}\n\nAssistant: {a}" for a in told.answers)
    return [{"chosen": first, "rejected": second}]


def as_label_studio(told: Told) -> list[Row]:
    data = {"prompt": told.prompt, "answer1": told.answers[0], "answer2": told.answers[1]}
    result = {"from_name": "pw", "type": "pairwise", "value": {"selected": "left"}}
    return [{"data": data, "annotations": [{"completed_by": 7, "result": [result]}]}]


def as_argilla(told: Told) -> list[Row]:
    names = [f"response{place}" for place in range(1, len(told.answers) + 1)]
    value = [{"value": name, "rank": rank} for rank, name in enumerate(names, start=1)]
    fields = {"prompt": told.prompt, **dict(zip(names, told.answers, strict=True))}
    return [{"fields": fields, "responses": {"order": [{"value": value, "user_id": "u"}]}}]


def pair(told: Told) -> Row:
    return {"prompt": told.prompt, "chosen": told.answers[0], "rejected": told.answers[1]}


def falling(told: Told) -> list[tuple[str, int]]:
    return [(answer, 9 - place) for place, answer in enumerate(told.answers)]


WRITTEN: dict[str, tuple[int, Callable[[Told], list[Row]]]] = {
    "pairs": (2, lambda t: [pair(t)]),
    "implicit": (
        2,
        lambda t: [
            {
                "chosen": messages(t.prompt, t.answers[0]),
                "rejected": messages(t.prompt, t.answers[1]),
            }
        ],
    ),
    "hh": (2, as_hh),
    "annotated": (
        2,
        lambda t: [
            {
                "prompt": t.prompt,
                "response1": t.answers[0],
                "response2": t.answers[1],
                "annotator1": 1,
            }
        ],
    ),
    "labelled": (
        2,
        lambda t: [
            {
                "prompt": t.prompt,
                "response1": t.answers[0],
                "response2": t.answers[1],
                "preferred": 1,
            }
        ],
    ),
    "helpsteer": (
        2,
        lambda t: [
            {
                "context": messages(t.prompt),
                "response1": t.answers[0],
                "response2": t.answers[1],
                "overall_preference": -t.strength,
            }
        ],
    ),
    "rewardbench": (
        2,
        lambda t: [{**pair(t), "subset": "s", "chosen_model": "m", "rejected_model": "n"}],
    ),
    "judgebench": (
        2,
        lambda t: [
            {
                "question": t.prompt,
                "response_A": t.answers[0],
                "response_B": t.answers[1],
                "label": "A>B",
            }
        ],
    ),
    "llmbar": (
        2,
        lambda t: [
            {"input": t.prompt, "output_1": t.answers[0], "output_2": t.answers[1], "label": 1}
        ],
    ),
    "label_studio": (2, as_label_studio),
    "argilla": (3, as_argilla),
    "ranked": (
        4,
        lambda t: [
            {
                "prompt": t.prompt,
                "responses": [{"text": a, "rating": r} for a, r in falling(t)],
            }
        ],
    ),
    "ultrafeedback": (
        4,
        lambda t: [
            {
                "instruction": t.prompt,
                "completions": [{"response": a, "fine-grained_score": r} for a, r in falling(t)],
            }
        ],
    ),
    "nemo_rl": (
        3,
        lambda t: [
            {
                "context": messages(t.prompt),
                "completions": [
                    {"rank": place, "completion": [{"role": "assistant", "content": answer}]}
                    for place, answer in enumerate(t.answers)
                ],
            }
        ],
    ),
    "rated": (
        3,
        lambda t: [
            {"prompt": t.prompt, "response": answer, "helpfulness": rating}
            for answer, rating in falling(t)
        ],
    ),
    "rewardbench2": (
        4,
        lambda t: [
            {
                "prompt": t.prompt,
                "chosen": [t.answers[0]],
                "rejected": list(t.answers[1:]),
                "num_correct": 1,
            }
        ],
    ),
    "rm_bench": (
        6,
        lambda t: [
            {"prompt": t.prompt, "chosen": list(t.answers[:3]), "rejected": list(t.answers[3:])}
        ],
    ),
    "canonical": (
        2,
        lambda t: [
            {
                "prompt": messages(t.prompt),
                "responses": [{"text": answer} for answer in t.answers],
                "comparisons": [{"better": 0, "worse": 1}],
            }
        ],
    ),
}
PAIRED = {"rewardbench2": [(0, i) for i in (1, 2, 3)], "rm_bench": [*product(range(3), (3, 4, 5))]}


def retold(name: str, group: PreferenceGroup) -> Told:
    """What a group says, in the order of its responses, which the formats above keep; a strength
    is in one of them only."""
    strength = int(group.comparisons[0].weight) if name == "helpsteer" else 0
    return Told(group.prompt[-1].content, tuple(r.text for r in group.responses), strength)


def test_every_format_has_a_way_back() -> None:
    assert set(WRITTEN) == set(FORMATS)


@pytest.mark.parametrize("name", WRITTEN)
def test_each_format_goes_to_canonical_rows_and_back(name: str, tmp_path: Path) -> None:
    """rows -> group -> canonical row -> the same group -> the same rows, for twenty tellings."""
    num_answers, write = WRITTEN[name]
    scaled = ReadSettings(votes=VoteSettings(scale_by_strength=True))
    path, canonical = tmp_path / "own.jsonl", tmp_path / "canonical.jsonl"

    @settings(max_examples=20)
    @given(tellings(num_answers))
    def check(told: Told) -> None:
        rows = write(told)
        path.write_bytes(as_jsonl(rows))
        reading = read(str(path), scaled)
        assert reading.formats == {str(path): name}
        assert reading.ledger.entries == []
        (group,) = reading.groups
        assert group.prompt == (Message("user", told.prompt),)
        assert [r.text for r in group.responses] == list(told.answers)
        expected = PAIRED.get(name, [*combinations(range(num_answers), 2)])
        assert [(c.better, c.worse) for c in group.comparisons] == expected
        canonical.write_bytes(as_jsonl([to_canonical(group)]))
        (again,) = read(str(canonical)).groups
        assert said(again) == said(group)
        assert write(retold(name, again)) == rows

    check()


@given(tellings(2), plain_text)
def test_a_trl_row_with_tools_as_text_or_list_reads_the_same(told: Told, name: str) -> None:
    """Rows of tables keep tools as JSON text; a call and its result stand in the prompt."""
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}}]
    call = {"type": "function", "function": {"name": name, "arguments": {"at": "noon"}}}
    prompt: list[Row] = [
        {"role": "user", "content": told.prompt},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "name": name, "content": "sun"},
    ]
    row: dict[str, Any] = {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": told.answers[0]}],
        "rejected": [{"role": "assistant", "content": told.answers[1]}],
        "chat_template_kwargs": {"enable_thinking": False},
        "tools": tools,
    }
    group = group_of("pairs", row)
    assert group.tools == tuple(tools)
    assert group.template_arguments == {"enable_thinking": False}
    assert group.prompt[1].extra == {"tool_calls": [call]}
    as_text = {**row, "tools": json.dumps(tools)}
    assert group_of("pairs", as_text) == group
    prompt[1]["content"] = ""
    assert to_trl(group).rows == [row]


def test_a_call_in_a_table_has_its_own_arguments_only(tmp_path: Path) -> None:
    """Arrow gives each call the fields of all calls; a null that it filled in is no argument, and
    neither is one in a tool's description or in another message."""

    def row(tool: str, argument: str) -> Row:
        call = {"type": "function", "function": {"name": tool, "arguments": {argument: "here"}}}
        described = {"name": tool, "parameters": {"properties": {argument: {"type": "string"}}}}
        return {
            "prompt": [
                {"role": "user", "content": "Go."},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "name": tool, "content": "sun"},
            ],
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "b"}],
            "tools": [{"type": "function", "function": described}],
        }

    rows = [row("tides", "harbour"), row("weather", "city")]
    table = pyarrow.Table.from_pylist(rows)
    assert table.to_pylist() != rows
    pyarrow.parquet.write_table(table, tmp_path / "calls.parquet")
    groups = read(str(tmp_path / "calls.parquet")).groups
    assert [said(group) for group in groups] == [group_of("pairs", row) for row in rows]


@pytest.mark.parametrize(
    "name", ["hh_harmless.jsonl.gz", "pandalm_votes.json", "alpacaeval_k9.jsonl.gz"]
)
def test_real_groups_are_read_back_equal_from_canonical_rows(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    groups = read(str(shared_data / name)).groups
    path = tmp_path / "canonical.jsonl"
    path.write_bytes(as_jsonl([to_canonical(group) for group in groups]))
    reading = read(str(path))
    assert reading.ledger.entries == []
    assert [said(group) for group in reading.groups] == [said(group) for group in groups]


def test_real_pairs_come_back_from_trl_rows_and_votes_do_not_pretend_to(
    shared_data: Path,
) -> None:
    """HH: 1,599 certain pairs, 1,599 rows. PandaLM: (3 + 1/2) / (3 + 1) at most, so none is certain
    and no row is made."""
    groups = read(str(shared_data / "hh_harmless.jsonl.gz")).groups
    for group in groups:
        made = to_trl(group)
        assert made.lost == []
        (row,) = made.rows
        assert group_of("pairs", row) == replace(said(group), meta={})
    voted = read(str(shared_data / "pandalm_votes.json")).groups
    assert all(to_trl(group).rows == [] for group in voted)

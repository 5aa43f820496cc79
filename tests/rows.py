"""Rows of preference data written to files and read back, for tests of the readers."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from palate.artifacts.ledger import LedgerEntry
from palate.errors import PalateError
from palate.preferences import (
    Comparison,
    Message,
    PreferenceGroup,
    Reading,
    ReadSettings,
    Response,
    Vote,
    VoteSettings,
    read,
)
from palate.preferences.counting import count
from palate.preferences.formats.detect import FORMATS

Row = dict[str, Any]


def as_jsonl(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read_bytes(folder: Path, name: str, data: bytes, **options: Any) -> Reading:
    (folder / name).write_bytes(data)
    return read(str(folder / name), ReadSettings(**options))


def read_rows(folder: Path, rows: Sequence[Any], **options: Any) -> Reading:
    return read_bytes(folder, "rows.jsonl", as_jsonl(rows), **options)


def the_group(folder: Path, row: Row, **options: Any) -> PreferenceGroup:
    (group,) = read_rows(folder, [row], **options).groups
    return group


def group_of(name: str, row: Row) -> PreferenceGroup:
    """What a row in this format says with the default settings, as if it stood nowhere."""
    parsed = replace(FORMATS[name](row, ReadSettings()), lines=(0,))
    return count(parsed, "", VoteSettings()).group


def said(group: PreferenceGroup) -> PreferenceGroup:
    """The group without the place that it stood in."""
    return replace(group, file="", line=0, further_lines=(), source="")


def bare(groups: Sequence[PreferenceGroup]) -> list[PreferenceGroup]:
    """What people said, without where it stood and what was not used of its row."""
    return [replace(said(group), meta={}) for group in groups]


def arcs(group: PreferenceGroup) -> list[tuple[int, int]]:
    return [(c.better, c.worse) for c in group.comparisons]


def texts(group: PreferenceGroup) -> list[str]:
    return [response.text for response in group.responses]


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(PalateError) as refused:
        action()
    return str(refused.value)


def row_entries(reading: Reading) -> list[LedgerEntry]:
    return [entry for entry in reading.ledger.entries if entry.kind == "row"]


plain_text = st.text(min_size=1, max_size=12).filter(lambda text: text.strip() != "")
"""Text that a message or a response can be: any characters but lone surrogates, not blank."""
plain_json = st.recursive(
    st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)
plain_object = st.dictionaries(st.text(min_size=1, max_size=5), plain_json, max_size=2)
_weights = st.floats(0, 10)


@st.composite
def comparisons_among(draw: st.DrawFn, num_responses: int) -> Comparison:
    better, worse = draw(st.permutations(range(num_responses)))[:2]
    weight = draw(st.just(1.0) | _weights)
    if draw(st.booleans()):
        return Comparison(better, worse, margin=draw(st.just(0.0) | _weights), weight=weight)
    probability, tie = draw(st.floats(0.5, 1)), draw(st.floats(0, 1))
    return Comparison(better, worse, probability=probability, tie=tie, weight=weight)


@st.composite
def votes_among(draw: st.DrawFn, num_responses: int) -> Vote:
    order = draw(st.permutations(range(num_responses)))
    tiers: list[list[int]] = [[]]
    for index in order[: draw(st.integers(2, num_responses))]:
        if tiers[-1] and draw(st.booleans()):
            tiers.append([])
        tiers[-1].append(index)
    return Vote(
        draw(st.sampled_from(["", "ann", "bob"])),
        tuple(map(tuple, tiers)),
        draw(st.none() | st.floats(-3, 3)),
        draw(st.none() | st.permutations(range(num_responses)).map(tuple)),
        draw(st.just({}) | plain_object),
        rest_unordered=len(tiers) > 1 and len(tiers[-1]) > 1 and draw(st.booleans()),
    )


_calls = st.fixed_dictionaries(
    {
        "tool_calls": st.lists(
            st.fixed_dictionaries({"function": plain_object}), min_size=1, max_size=1
        )
    }
)
_turns = st.one_of(
    st.builds(Message, st.sampled_from(["user", "assistant", "tool", "developer"]), plain_text),
    st.builds(Message, st.just("assistant"), st.just(""), _calls),
    st.builds(Message, st.just("tool"), plain_text, st.just({"name": "look"})),
)


@st.composite
def any_groups(draw: st.DrawFn) -> PreferenceGroup:
    """A group with everything that the types allow, but two responses of the same text."""
    answers = draw(st.lists(plain_text, min_size=2, max_size=4, unique=True))
    ratings, names = st.none() | st.floats(-5, 5), st.none() | st.sampled_from(["a", "b"])
    num_responses = len(answers)
    return PreferenceGroup(
        (*draw(st.lists(_turns, max_size=2)), Message("user", draw(plain_text))),
        tuple(
            Response(text, draw(names), draw(st.booleans()), draw(ratings), draw(plain_object))
            for text in answers
        ),
        tuple(draw(st.lists(comparisons_among(num_responses), min_size=1, max_size=4))),
        tuple(draw(st.lists(votes_among(num_responses), max_size=3))),
        tuple(draw(st.lists(plain_object, max_size=1))),
        draw(st.just({}) | plain_object),
        id=draw(st.none() | plain_text),
        meta=draw(plain_object),
    )

"""Rows of one prompt as one group: the same as if they had been one row from the start."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.preferences import (
    Comparison,
    Message,
    PreferenceGroup,
    ReadSettings,
    VoteSettings,
    read,
    to_trl,
)
from palate.preferences.counting import count
from palate.preferences.formats.detect import FORMATS
from palate.preferences.merge import merged, prompt_key
from tests.rows import Row, arcs, read_rows, refusal, row_entries, texts

SETTINGS = ReadSettings()


def together(rows: list[Row], name: str = "canonical") -> PreferenceGroup:
    """The group of rows of one prompt, read and merged."""
    parsed = [FORMATS[name](row, SETTINGS) for row in rows]
    placed = [replace(row, lines=(line,)) for line, row in enumerate(parsed, start=1)]
    return count(merged(placed), "", VoteSettings()).group


def told(group: PreferenceGroup) -> Counter[tuple[Any, ...]]:
    """Comparisons by texts, with the better side first unless neither is: then by name."""
    found: Counter[tuple[Any, ...]] = Counter()
    for c in group.comparisons:
        sides = [group.responses[c.better].text, group.responses[c.worse].text]
        if c.probability == 0.5:
            sides.sort()
        found[(*sides, round(c.probability, 9), round(c.tie, 9), c.margin, c.weight)] += 1
    return found


TEXTS = ["a", "b", "c", "d"]
rankings = st.lists(st.sampled_from(range(4)), min_size=2, max_size=4, unique=True).flatmap(
    lambda order: st.lists(st.booleans(), min_size=len(order), max_size=len(order)).map(
        lambda cuts: cut_up(order, cuts)
    )
)


def cut_up(order: list[int], cuts: list[bool]) -> list[list[int]]:
    tiers = [[order[0]]]
    for index, cut in zip(order[1:], cuts, strict=False):
        if cut:
            tiers.append([index])
        else:
            tiers[-1].append(index)
    return tiers


def row_of_vote(ranking: list[list[int]], order: list[int]) -> Row:
    """A row that holds the responses of one vote only, in an order of its own."""
    held = [index for index in order if any(index in tier for tier in ranking)]
    return {
        "prompt": "q",
        "responses": [TEXTS[index] for index in held],
        "votes": [{"ranking": [[held.index(i) for i in tier] for tier in ranking]}],
    }


@given(st.lists(rankings, min_size=1, max_size=5), st.permutations(range(4)))
def test_votes_in_many_rows_count_as_votes_in_one(
    cast: list[list[list[int]]], order: list[int]
) -> None:
    """One row a vote, each with the responses that it ranks, against one row with all of them. The
    merged row has no response that nobody ranked, and the comparisons are the same."""
    one = {"prompt": "q", "responses": TEXTS, "votes": [{"ranking": r} for r in cast]}
    rows = [row_of_vote(ranking, list(order)) for ranking in cast]
    merged_group, whole = together(rows), together([one])
    assert told(merged_group) == told(whole)
    assert len(merged_group.votes) == len(cast)
    assert merged_group.lines == tuple(range(1, len(cast) + 1))


ratings = st.lists(st.integers(0, 5), min_size=4, max_size=4, unique=True)


@given(ratings, st.lists(st.permutations(range(4)), min_size=1, max_size=4), st.data())
def test_ratings_in_many_rows_compare_as_in_one(
    rates: list[int], orders: list[list[int]], data: st.DataObject
) -> None:
    """Rows with some of four rated answers each, all of them in one row at least."""
    rows = [order[: data.draw(st.integers(2, 4))] for order in orders] + [[0, 1, 2, 3]]
    made = [
        {"prompt": "q", "responses": [{"text": TEXTS[i], "rating": rates[i]} for i in held]}
        for held in rows
    ]
    assert told(together(made, "ranked")) == told(together(made[-1:], "ranked"))
    one_each = [{"prompt": "q", "response": TEXTS[i], "rating": rates[i]} for i in range(4)]
    assert told(together(one_each, "rated")) == told(together(made[-1:], "ranked"))


pairs_of_one_prompt = st.lists(
    st.permutations(range(4)).map(
        lambda order: {"prompt": "q", "chosen": TEXTS[order[0]], "rejected": TEXTS[order[1]]}
    ),
    min_size=1,
    max_size=6,
)


@given(pairs_of_one_prompt, st.randoms(use_true_random=False))
def test_stated_pairs_are_kept_as_often_as_they_were_said_in_any_order_of_rows(
    rows: list[Row], dice: random.Random
) -> None:
    group = together(rows, "pairs")
    assert told(group) == Counter((row["chosen"], row["rejected"], 1, 0, 0, 1) for row in rows)
    assert len(texts(group)) == len(set(texts(group)))
    shuffled = dice.sample(rows, len(rows))
    assert told(together(shuffled, "pairs")) == told(group)


def test_rows_of_a_prompt_become_one_group_and_the_ledgers_sum_holds(tmp_path: Path) -> None:
    """Lines 1, 3 and 5 share a prompt; 4 differs in a tool, 6 is empty, 2 is another prompt."""
    rows: list[Row] = [
        {"prompt": "q", "chosen": "a", "rejected": "b", "id": "x", "source": "s", "n": 1},
        {"prompt": "r", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "b", "rejected": "c", "id": "y", "source": "s"},
        {"prompt": "q", "chosen": "b", "rejected": "a", "tools": [{"name": "look"}]},
        {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": "b",
            "rejected": "a",
            "source": "s",
        },
        {"prompt": "q", "chosen": "", "rejected": "b"},
    ]
    apart = read_rows(tmp_path, rows)
    assert [group.num_rows for group in apart.groups] == [1] * 5
    reading = read_rows(tmp_path, rows, merge_prompts=True)
    assert [group.lines for group in reading.groups] == [(1, 3, 5), (2,), (4,)]
    first = reading.groups[0]
    assert texts(first) == ["a", "b", "c"]
    assert first.comparisons == (Comparison(0, 1), Comparison(1, 2), Comparison(1, 0))
    assert first.id == "x"
    assert first.meta == {"source": "s", "merged": [{"n": 1, "id": "x"}, {"id": "y"}, {"id": None}]}
    assert "6 rows in = 5 in groups + 1 in the ledger" in reading.summary()


def test_votes_that_decide_nothing_alone_count_when_merged(tmp_path: Path) -> None:
    """By majority one tie vote makes no comparison; with two votes for the first it stays 2 to 0,
    and two more ties leave no majority of all votes (3 ties against 2)."""

    def vote(choice: Any, line: str) -> Row:
        return {"prompt": "q", "responses": ["a", "b"], "votes": [{"choice": choice}], "id": line}

    votes = VoteSettings(target="majority")
    rows = [vote("tie", "1"), vote(0, "2"), vote(0, "3")]
    assert arcs(read_rows(tmp_path, rows, votes=votes, merge_prompts=True).groups[0]) == [(0, 1)]
    rows += [vote("tie", "4"), vote("tie", "5"), {**vote(0, "6"), "prompt": "r"}]
    reading = read_rows(tmp_path, rows, votes=votes, merge_prompts=True)
    assert [group.lines for group in reading.groups] == [(6,)]
    assert [(e.line, e.reason, e.row_id) for e in row_entries(reading)] == [
        (line, "no comparison", str(line)) for line in range(1, 6)
    ]


def test_rows_that_disagree_on_an_answer_are_compared_each_by_itself(tmp_path: Path) -> None:
    """{a 3, b 1} and {b 5, c 4}: a over b and b over c, as was said. By the means b would
    equal a and lose to c, which nobody said; 3 of the one against 4 of the other says nothing."""
    rows: list[Row] = [
        {"prompt": "q", "responses": [{"text": "a", "rating": 3}, {"text": "b", "rating": 1}]},
        {"prompt": "q", "responses": [{"text": "b", "rating": 5}, {"text": "c", "rating": 4}]},
    ]
    for order in (rows, rows[::-1]):
        reading = read_rows(tmp_path, order, merge_prompts=True)
        (group,) = reading.groups
        named = texts(group)
        assert {(named[i], named[j]) for i, j in arcs(group)} == {("a", "b"), ("b", "c")}
        (entry,) = reading.ledger.entries
        assert (entry.kind, entry.reason) == ("comparison", "ratings of rows disagree")
        assert "has " in entry.detail
        assert "1 pairs of different rows are not compared" in entry.detail
        assert reading.num_rows == 2
    agreeing = [rows[0], {"prompt": "q", "responses": [{"text": "b", "rating": 1}, "c"]}]
    agreeing[1]["responses"][1] = {"text": "c", "rating": 4}
    reading = read_rows(tmp_path, agreeing, merge_prompts=True)
    assert sorted(arcs(reading.groups[0])) == [(0, 1), (2, 0), (2, 1)]
    assert not reading.ledger.entries
    opposed = [rows[0], {**rows[0], "responses": rows[0]["responses"][:]}]
    opposed[1]["responses"] = [{"text": "a", "rating": 1}, {"text": "b", "rating": 3}]
    reading = read_rows(tmp_path, opposed, merge_prompts=True)
    assert sorted(arcs(reading.groups[0])) == [(0, 1), (1, 0)]
    assert len(reading.ledger.entries) == 1


def test_an_answer_rated_twice_has_the_mean_and_two_scales_are_not_mixed(tmp_path: Path) -> None:
    """a is 1 to the first and 5 to the second: b over a, and a over c; b and c were never rated
    by one of them."""
    rows: list[Row] = [
        {"prompt": "q", "responses": [{"text": "a", "rating": 1}, {"text": "b", "rating": 2}]},
        {"prompt": "q", "responses": [{"text": "a", "rating": 5}, {"text": "c", "rating": 2}]},
    ]
    (group,) = read_rows(tmp_path, rows, merge_prompts=True).groups
    assert [(r.text, r.rating) for r in group.responses] == [("a", 3), ("b", 2), ("c", 2)]
    assert arcs(group) == [(1, 0), (0, 2)]
    rows[1]["responses"] = [{"text": "a", "score": 5}, {"text": "c", "score": 2}]
    said = refusal(lambda: read_rows(tmp_path, rows, merge_prompts=True))
    assert "mixed ratings" in said
    assert "(rating, score)" in said


def test_ranks_of_one_row_say_nothing_on_those_of_another(tmp_path: Path) -> None:
    """a before b, and c before d: first places of different rows are not equal."""
    rows: list[Row] = [
        {"prompt": "q", "responses": [{"text": t, "rank": i} for i, t in enumerate(pair)]}
        for pair in ("ab", "cd")
    ]
    (group,) = read_rows(tmp_path, rows, merge_prompts=True).groups
    assert arcs(group) == [(0, 1), (2, 3)]


def test_single_rated_rows_merge_wherever_they_stand(tmp_path: Path) -> None:
    rows = [
        {"prompt": prompt, "response": f"{prompt}{rating}", "helpfulness": rating}
        for prompt, rating in [("q", 1), ("r", 2), ("q", 3), ("s", 0), ("r", 4)]
    ]
    reading = read_rows(tmp_path, rows, merge_prompts=True)
    assert [(texts(g), arcs(g), g.lines) for g in reading.groups] == [
        (["q1", "q3"], [(1, 0)], (1, 3)),
        (["r2", "r4"], [(1, 0)], (2, 5)),
    ]
    assert [(e.line, e.reason) for e in row_entries(reading)] == [(4, "fewer than two responses")]


def test_real_answers_taken_apart_into_pairs_come_together_again(
    shared_data: Path, tmp_path: Path
) -> None:
    """AlpacaEval's first 40 groups of nine as pairs, shuffled, then merged: the same comparisons
    (those of answers with equal texts apart, which no pair can hold)."""
    source = str(shared_data / "alpacaeval_k9.jsonl.gz")
    groups = read(source).groups[:40]
    assert len({group.prompt[0].content for group in groups}) == 40
    pairs = [row for group in groups for row in to_trl(group).rows]
    random.Random(0).shuffle(pairs)
    reading = read_rows(tmp_path, pairs, merge_prompts=True)
    by_prompt = {group.prompt[0].content: group for group in reading.groups}
    assert len(reading.groups) == 40
    assert sum(group.num_rows for group in reading.groups) == len(pairs)
    for group in groups:
        assert told(by_prompt[group.prompt[0].content]) == told(group)


@pytest.mark.parametrize("finished", [True, False])
def test_a_text_with_an_end_and_one_cut_before_it_are_two_answers(
    tmp_path: Path, finished: bool
) -> None:
    other = {"text": "a", "finished": finished}
    rows: list[Row] = [
        {"prompt": "q", "responses": ["a", "b"], "ranking": [0, 1]},
        {"prompt": "q", "responses": [other, "c"], "ranking": [0, 1]},
    ]
    (group,) = read_rows(tmp_path, rows, merge_prompts=True).groups
    assert texts(group) == (["a", "b", "c"] if finished else ["a", "b", "a", "c"])


def test_a_prompt_is_the_same_only_to_the_letter() -> None:
    rows = [
        {"prompt": prompt, "chosen": "a", "rejected": "b"} for prompt in ("Why?", "why?", "Why? ")
    ]
    keys = {prompt_key(FORMATS["pairs"](row, SETTINGS)) for row in rows}
    assert len(keys) == 3
    as_messages = {"prompt": [Message("user", "Why?").as_dict()], "chosen": "a", "rejected": "b"}
    assert prompt_key(FORMATS["pairs"](as_messages, SETTINGS)) in keys

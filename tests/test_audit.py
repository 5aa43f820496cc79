"""From files to columns and findings: columns say what the groups say, and neither a strange row
nor a check that fails ends an audit."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.audit import processes
from palate.audit import scan as scanning
from palate.audit.answers import answer_facts, digest, ending, opening
from palate.audit.columns import Audited, Columns
from palate.audit.findings import Finding, Skipped, plain, worst_first
from palate.audit.run import CHECKS, Inputs, run_checks
from palate.audit.sample import ClusterSample
from palate.audit.scan import columns_of, relabelled, scan
from palate.audit.settings import AuditSettings
from palate.errors import PalateError
from palate.preferences import (
    Comparison,
    Message,
    PreferenceGroup,
    Response,
    Source,
    Vote,
    iter_groups,
    prompt_cluster,
    read,
    to_canonical,
)
from palate.text import STYLE_FEATURES, normalise, style_features
from tests.rows import any_groups
from tests.runs import write_rows


def groups_of_three() -> list[PreferenceGroup]:
    """A pair, nine answers with all 36 comparisons, and votes with ties and display orders."""
    answer = "This is the answer number {} of nine and it is good. Bye{}!"
    nine = tuple(Response(answer.format(i, i % 2), f"model-{i % 3}") for i in range(9))
    pairs = tuple(Comparison(i, j) for i in range(9) for j in range(i + 1, 9))
    votes = (
        Vote("ann", ((1,), (0, 2)), strength=2, shown=(2, 0, 1)),
        Vote("", ((0, 1),)),
        Vote("bob", ((2,), (0, 1)), rest_unordered=True),
    )
    soft = (Comparison(0, 1, 0.75, 0.25, weight=0.5), Comparison(2, 0, weight=0.0))
    return [
        PreferenceGroup(
            (Message("user", "Hi"),), (Response("Yo.\nHi!"), Response("No")), (Comparison(1, 0),),
            file="a.jsonl", line=3,
        ),
        PreferenceGroup((Message("system", "Be."), Message("user", "hi ")), nine, pairs, line=1),
        PreferenceGroup((Message("user", "Why?"),), nine[:3], soft, votes, file="a.jsonl", line=4),
    ]  # fmt: skip


def slow_columns(groups: Sequence[PreferenceGroup]) -> dict[str, list[Any]]:
    """The columns spelt out one group after the other."""
    found: dict[str, list[Any]] = {
        "line_G": [g.line for g in groups],
        "cluster_G": [int(prompt_cluster(g.prompt), 16) for g in groups],
        "start_G": [sum(len(g.responses) for g in groups[:i]) for i in range(len(groups) + 1)],
        "group_N": [i for i, g in enumerate(groups) for _ in g.responses],
        "text_N": [digest(normalise(r.text)) for g in groups for r in g.responses],
        "chars_N": [len(r.text) for g in groups for r in g.responses],
        "model_N": [r.model for g in groups for r in g.responses],
        "features_NF": [style_features(r.text) for g in groups for r in g.responses],
        **{name: [] for name in ("group_C", "better_C", "worse_C", "probability_C", "tie_C")},
        **{name: [] for name in ("weight_C", "vote_P", "annotator_P", "first_P", "second_P")},
        **{name: [] for name in ("outcome_P", "shown_P", "strength_P")},
    }
    num_votes = 0
    for index, group in enumerate(groups):
        start = found["start_G"][index]
        for c in group.comparisons:
            sides = (index, start + c.better, start + c.worse, c.probability, c.tie, c.weight)
            for name, value in zip(
                ("group_C", "better_C", "worse_C", "probability_C", "tie_C", "weight_C"),
                sides,
                strict=True,
            ):
                found[name].append(value)
        for vote in group.votes:
            for (i, j), outcome in vote.outcomes().items():
                shown = 0
                if vote.shown and i in vote.shown and j in vote.shown:
                    shown = 1 if vote.shown.index(i) < vote.shown.index(j) else -1
                found["vote_P"].append(num_votes)
                found["annotator_P"].append(vote.annotator or None)
                found["first_P"].append(start + i)
                found["second_P"].append(start + j)
                found["outcome_P"].append(outcome)
                found["shown_P"].append(shown)
                found["strength_P"].append(math.nan if vote.strength is None else vote.strength)
            num_votes += 1
    return found


def assert_columns_are(columns: Columns, groups: Sequence[PreferenceGroup]) -> None:
    assert [columns.files[i] for i in columns.file_G] == [g.file for g in groups]
    for name, expected in slow_columns(groups).items():
        got: Any = getattr(columns, name)
        if name in ("model_N", "annotator_P"):
            names = columns.models if name == "model_N" else columns.annotators
            assert [None if i < 0 else names[i] for i in got] == expected
        elif got.dtype.kind in "iu":
            assert got.tolist() == expected, name
        else:
            shape = (-1, len(STYLE_FEATURES)) if name == "features_NF" else -1
            wanted = np.array(expected, np.float64).astype(np.float32).reshape(shape)
            np.testing.assert_array_equal(got, wanted, err_msg=name)


def test_columns_say_what_the_groups_say() -> None:
    groups = groups_of_three()
    columns = columns_of(groups).columns
    assert_columns_are(columns, groups)
    assert columns.num_groups == 3
    assert columns.is_decided_C.tolist() == [True] * 38 + [False]
    assert columns.group_weight_C().tolist() == [1.0] + [1 / 36] * 36 + [1 / 2] * 2
    # "Hi" and "hi " are one cluster; their prompts differ by the system message.
    assert columns.cluster_G[0] == columns.cluster_G[1] != columns.cluster_G[2]
    assert len(set(columns.prompt_G.tolist())) == 3
    # The opening of twelve answers, and each of their two endings: five or more are kept.
    assert columns.opening_text == {digest("this is the"): "this is the"}
    assert set(columns.ending_text.values()) == {"bye0", "bye1"}
    assert columns.opening_N[0] == columns.opening_N[1] == 0
    assert columns.ending_N[0] == digest("hi")
    assert columns.feature_N("lines").tolist() == [1.0] + [0.0] * 13


@settings(max_examples=15)
@given(st.lists(any_groups(), min_size=1, max_size=3))
def test_columns_of_any_groups_are_those_spelt_out(groups: list[PreferenceGroup]) -> None:
    assert_columns_are(columns_of(groups).columns, groups)


def test_relabelled_columns_are_those_of_the_relabelled_groups() -> None:
    groups = groups_of_three()
    other = [
        replace(group, comparisons=(Comparison(1, 0, 0.9),), votes=(Vote("zoe", ((0,), (1,))),))
        for group in groups
    ]
    found, expected = relabelled(columns_of(groups), other), columns_of(other)
    for name in Columns.__annotations__:
        np.testing.assert_equal(getattr(found.columns, name), getattr(expected.columns, name))
    assert found.fetch([2]) == {2: other[2]}


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Certainly! Here is the list that you have asked for", "certainly"),
        ("certainly, here is the list that you have asked for", "certainly, here is"),
        ("Great question! It is because of all the rain there", "great question"),
        ("1. Take the pan and put some butter in it", "1. take the"),
        ("Sure\n\nhere are  some of the words that you want", "sure here are"),
        ("Certainly! Here it is", ""),
    ],
)
def test_opening(text: str, first: str) -> None:
    assert opening(text) == first


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("Take a pan. I hope this helps!", "i hope this helps"),
        ("Take a pan.\nI hope this   HELPS", "i hope this helps"),
        ('He said "no." (Good luck.) ', "good luck"),
        ("Take a pan. 42.", ""),
        ("I hope this helps!", ""),
        ("no end " * 100 + "x" * 400, ""),
    ],
)
def test_ending(text: str, last: str) -> None:
    assert ending(text) == last


def test_no_answers_have_no_facts() -> None:
    facts = answer_facts([])
    assert facts.features_NF.shape == (0, len(STYLE_FEATURES))
    assert len(facts.text_N) == len(facts.opening_N) == len(facts.ending_N) == 0


def varied(count: int) -> list[PreferenceGroup]:
    groups = [
        PreferenceGroup(
            (Message("user", f"Question {i % 70}?"),),
            (Response(f"Well, {i} is a number, and a good one. Bye!"), Response(f"No. {i}")),
            (Comparison(i % 2, 1 - i % 2),),
        )
        for i in range(count)
    ]
    return [replace(group, line=line) for line, group in enumerate(groups, start=1)]


def written(folder: Path, groups: Sequence[PreferenceGroup]) -> dict[str, Source]:
    path = write_rows(folder / "rows.jsonl", [to_canonical(group) for group in groups])
    return {"rows": Source(path=path)}


def test_two_processes_say_what_one_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = written(tmp_path, varied(300))
    monkeypatch.setattr(scanning, "MAX_CHUNK_TEXTS", 17)
    monkeypatch.setattr(scanning, "NUM_CHUNKS_ALONE", 2)
    used = []
    submit = processes._Other.submit
    monkeypatch.setattr(
        processes._Other, "submit", lambda self, texts: used.append(1) or submit(self, texts)
    )
    one, two = (scan(sources, processes=number).audited.columns for number in (1, 2))
    assert used
    whole = columns_of(list(iter_groups(sources["rows"]))).columns
    for name in Columns.__annotations__:
        np.testing.assert_equal(getattr(two, name), getattr(one, name))
        np.testing.assert_equal(getattr(two, name), getattr(whole, name))


def test_a_second_process_that_dies_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "NUM_CHUNKS_ALONE", 0)
    monkeypatch.setattr(processes, "_START", "raise SystemExit(3)")
    with pytest.raises(PalateError, match=r"ended by itself \(exit code 3;.*processes to 1"):
        scan(written(tmp_path, varied(30)), processes=2)


def test_the_sample_is_the_clusters_with_the_lowest_hashes() -> None:
    """Clusters of 3, 1 and 4 groups with hashes 10, 20, 30: of at most 5 groups, the first two,
    whatever the order in which they come."""
    groups = varied(8)
    clusters = [10, 30, 30, 20, 10, 30, 10, 30]
    for order in (range(8), range(7, -1, -1), (1, 5, 0, 3, 2, 4, 7, 6)):
        sample = ClusterSample(5)
        for index in order:
            sample.add(index, groups[index], clusters[index])
        indices, kept = sample.kept()
        assert indices == [0, 3, 4, 6]
        assert kept == [groups[i] for i in indices]


def test_a_cluster_larger_than_the_sample_is_cut() -> None:
    groups = varied(6)
    sample = ClusterSample(2)
    for index, cluster in enumerate([7, 5, 5, 7, 5, 9]):
        sample.add(index, groups[index], cluster)
    assert sample.kept()[0] == [1, 2]


def test_texts_outside_the_sample_are_fetched(tmp_path: Path) -> None:
    sources = written(tmp_path, varied(200))
    whole = list(iter_groups(sources["rows"], name="rows"))
    audited = scan(sources, settings=AuditSettings(max_sampled_groups=20)).audited
    assert not audited.is_whole
    assert 15 <= len(audited.sample) <= 20
    assert [whole[i] for i in audited.sample_G] == list(audited.sample)
    kept = set(audited.columns.cluster_G[audited.sample_G].tolist())
    others = set(audited.columns.cluster_G.tolist()) - kept
    assert max(kept) < min(others)
    wanted = [0, int(audited.sample_G[3]), 199]
    assert audited.fetch(wanted) == {i: whole[i] for i in wanted}
    assert "well, 0 is" not in audited.columns.opening_text.values()
    assert set(audited.columns.ending_text.values()) == {"bye"}


def test_strange_rows_are_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    rows: list[Any] = [to_canonical(group) for group in varied(30)]
    strange: list[Any] = [
        {"prompt": "a", "chosen": "", "rejected": "b"},
        {"prompt": None, "responses": 3},
        [1, 2],
        {**rows[0], "responses": [{"text": "x"}]},
        {**rows[0], "comparisons": [{"better": 9, "worse": 0}]},
        {**rows[0], "comparisons": [{"better": 0, "worse": 1, "weight": 1e308}]},
    ]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row) for row in rows[:15] + strange + rows[15:]]
    path.write_text("\n".join([*lines, "{broken", "\x00"]) + "\n")
    seen = scan({"rows": Source(path=str(path))})
    assert seen.num_rows == 31
    assert seen.ledger.num_rows_left_out == seen.ledger.num_rows_read - 31 >= 5
    report = run_checks(Inputs(audited=seen.audited))
    assert not [each for each in report.skipped if "failed" in each.reason]


def finding(check: str, severity: Any = "note", **values: Any) -> Finding:
    return Finding(
        check=check, severity=severity, statistic=0.0, what="share", message="So.", **values
    )


def test_a_check_that_fails_is_skipped_by_name(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: Inputs) -> list[Finding | Skipped]:
        raise ZeroDivisionError("by nothing")

    checks = {"a": lambda _: [finding("a")], "b": broken, "c": lambda _: [finding("c", "warn")]}
    report = run_checks(Inputs(audited=columns_of(varied(4))), checks)
    assert [f.check for f in report.findings] == ["c", "a"]
    assert report.skipped == [Skipped("b", "it failed: ZeroDivisionError: by nothing")]
    assert "ZeroDivisionError" in caplog.text


def test_texts_asked_for_by_several_checks_are_read_together() -> None:
    groups = varied(40)
    reads: list[list[int]] = []

    def fetch(indices: Sequence[int]) -> dict[int, PreferenceGroup]:
        if not set(indices) <= {0, 1}:
            reads.append(list(indices))
        return {i: groups[i] for i in indices}

    audited = Audited(columns_of(groups).columns, groups[:2], np.array([0, 1]), fetch)

    def asks(*wanted: int) -> Any:
        def check(inputs: Inputs) -> list[Finding | Skipped]:
            found = inputs.audited.fetch(wanted)
            return [finding(f"{found[i].line}") for i in wanted]

        return check

    def twice(inputs: Inputs) -> list[Finding | Skipped]:
        first = inputs.audited.fetch([7])[7]
        return asks(first.line)(inputs)

    checks = {"a": asks(0, 5), "b": asks(9), "c": asks(1), "d": twice}
    report = run_checks(Inputs(audited=audited), checks)
    assert sorted(f.check for f in report.findings) == ["1", "10", "2", "6", "9"]
    assert report.skipped == []
    assert reads == [[5, 7, 9], [8]]


def test_findings_are_ordered_and_written_as_plain_json() -> None:
    some = [
        finding("b", effect=0.1),
        finding("a", effect=0.1),
        finding("c", "error"),
        finding("d", "warn", effect=0.9, low=-math.inf, figure={"x": np.float32(0.5)}),
        finding("e", effect=0.4),
    ]
    assert [f.check for f in worst_first(some)] == ["c", "d", "e", "a", "b"]
    values = json.loads(json.dumps(some[3].as_json(), allow_nan=False))
    assert values["low"] is None
    assert values["figure"] == {"x": 0.5}
    assert plain({1: (np.int64(2), np.array([math.nan]))}) == {"1": [2, [None]]}


def test_every_check_has_its_say_on_every_kind_of_data(shared_data: Path) -> None:
    """None of the checks fails on small odd data: one pair, one cluster, ties alone."""
    hello = (Message("user", "Hi"),)
    same = PreferenceGroup(hello, (Response("a"), Response("a")), (Comparison(0, 1),))
    tie = replace(same, comparisons=(Comparison(0, 1, 0.5, 1.0),))
    weightless = replace(same, comparisons=(Comparison(0, 1, weight=0.0),))
    for groups in ([same], [same] * 60, [tie] * 60, [weightless] * 60, groups_of_three()):
        report = run_checks(Inputs(audited=columns_of(groups)))
        assert not [each for each in report.skipped if "failed" in each.reason]
    assert set(CHECKS) >= {
        "style",
        "probes",
        "openings and endings",
        "people",
        "duplicates",
        "tokens",
    }
    assert read(str(shared_data / "hh_harmless.jsonl.gz")).groups

"""The checks of repetition, overlap, contradiction and contamination, with counts made by hand."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palate.audit.columns import Audited
from palate.audit.conflicts import conflict_findings
from palate.audit.contamination import contamination_findings, read_benchmark
from palate.audit.duplicates import duplicate_findings, extensions_among
from palate.audit.findings import Finding, Skipped
from palate.audit.overlap import answer_overlap, near_prompts, prompt_overlap
from palate.audit.scan import columns_of, scan
from palate.audit.settings import AuditSettings
from palate.errors import PalateError
from palate.preferences import Comparison, Message, PreferenceGroup, Response, Vote, read
from palate.preferences.readers import named_sources
from tests.rows import as_jsonl

SETTINGS = AuditSettings()
LONG = "birds flap their wings to stay up in the {} air"


def group(
    prompt: str | Sequence[str],
    answers: Sequence[str] = ("good", "bad"),
    arcs: Sequence[tuple[int, int]] = ((0, 1),),
    line: int = 0,
    **rest: Any,
) -> PreferenceGroup:
    turns = [prompt] if isinstance(prompt, str) else prompt
    messages = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(turns)]
    comparisons = tuple(Comparison(better, worse) for better, worse in arcs)
    responses = tuple(map(Response, answers))
    return PreferenceGroup(tuple(messages), responses, comparisons, line=line, **rest)


def clean(count: int = 100, of: str = "question") -> list[PreferenceGroup]:
    """Prompts and answers that share nothing, of thirty words each."""
    return [
        group(
            " ".join(f"{of}{i}word{j}" for j in range(30)),
            [" ".join(f"{of}{i}{side}{j}" for j in range(30)) for side in ("good", "bad")],
            line=i + 1,
        )
        for i in range(count)
    ]


def by_name(found: Sequence[Finding | Skipped]) -> dict[str, Any]:
    names = [item.check for item in found]
    assert len(set(names)) == len(names)
    return dict(zip(names, found, strict=True))


def duplicates(groups: Sequence[PreferenceGroup]) -> dict[str, Any]:
    return by_name(duplicate_findings(columns_of(groups), SETTINGS))


def overlap(ours: Audited, theirs: Audited) -> list[Finding | Skipped]:
    return [
        prompt_overlap(ours, theirs),
        *near_prompts(ours, theirs),
        answer_overlap(ours, theirs),
    ]


def overlaps(ours: Sequence[PreferenceGroup], theirs: Sequence[PreferenceGroup]) -> dict[str, Any]:
    return by_name(overlap(columns_of(ours), columns_of(theirs)))


def conflicts(groups: Sequence[PreferenceGroup]) -> dict[str, Any]:
    return by_name(conflict_findings(columns_of(groups), SETTINGS))


def test_clean_data_give_notes_alone() -> None:
    found = {**duplicates(clean()), **overlaps(clean(), clean(of="other"))}
    assert {name for name, item in found.items() if item.severity != "note"} == set()
    assert all(
        item.statistic == 0 and not item.examples and not item.fix for item in found.values()
    )


def test_an_answer_against_itself_is_an_error() -> None:
    """Two of 102 comparisons have the same text on both sides; one more differs in case alone."""
    same = [group(f"p{i}", ("Yes.", "Yes.", "no"), [(0, 1), (0, 2)], line=i + 200) for i in (1, 2)]
    found = duplicates([*clean(98), *same])["same answer"]
    assert (found.severity, found.n, found.statistic) == ("error", 102, 2 / 102)
    assert "2 of 102" in found.message and "2 of them letter for letter" in found.message
    assert [(e.line, e.text) for e in found.examples] == [(201, "Yes."), (202, "Yes.")]
    found = duplicates([*clean(9), group("p", ("yEs", "YeS"), line=7)])["same answer"]
    assert (found.severity, found.statistic) == ("warn", 1 / 10)
    assert "0 of them letter for letter" in found.message


def test_rows_that_say_the_same_are_counted_whatever_their_order() -> None:
    """The second swaps the answers and the label with them; the third labels the other way, the
    fourth has another annotator, the fifth another answer: no repeats."""
    rows = [
        group("p", ("x", "y"), [(0, 1)], line=1),
        group(" P ", ("Y", "x"), [(1, 0)], line=2),
        group("p", ("x", "y"), [(1, 0)], line=3),
        group("p", ("x", "y"), [(0, 1)], line=4, votes=(Vote("ann", ((0,), (1,))),)),
        group("p", ("x", "z"), [(0, 1)], line=5),
        group("p", ("x", "y"), [(0, 1)], line=6, votes=(Vote("bob", ((0,), (1,))),)),
    ]
    found = duplicates(rows)
    repeated = found["repeated rows"]
    assert (repeated.severity, repeated.statistic) == ("warn", 1 / 6)
    assert [(e.line, e.text) for e in repeated.examples] == [(2, "as line 1: P")]
    prompts = found["repeated prompts"]
    assert (prompts.severity, prompts.statistic) == ("note", 5 / 6)
    assert "merge_prompts" in prompts.fix
    assert prompts.examples[0].text == "6 rows: p"


def test_prompts_that_extend_another_are_counted() -> None:
    """Two go on where "why" ends; "how" and its two-turn neighbour share a first turn alone."""
    groups = [
        group("why"),
        group(["Why", "because", "really?"]),
        group(["why", "because", "REALLY?", "yes", "sure?"]),
        group(["how", "so", "what?"]),
        group(["how", "thus", "what?"]),
        group("when"),
    ]
    assert extensions_among(groups) == [1, 2]
    found = duplicates(groups)["extended prompts"]
    assert (found.severity, found.statistic) == ("note", 5 / 6)
    assert "5 of 6 rows" in found.message and "(2 clusters); 2 of 6" in found.message


def test_eighty_real_prompts_extend_another(shared_data: Path) -> None:
    """What "80 of its prompts extend another" counts: prompts that begin with another whole prompt
    of the file, of 1,599 usable ones. (The prompts that are so extended are 80 as well; of the 82
    pairs two prompts extend two.) By first turns alone 163 prompts in 80 clusters are related."""
    groups = read(str(shared_data / "hh_harmless.jsonl.gz")).groups
    found = duplicates(groups)["extended prompts"]
    assert len(extensions_among(groups)) == 80
    assert "80 of 1599 prompts extend another whole prompt" in found.message
    assert "163 of 1599 rows" in found.message and "(80 clusters)" in found.message
    halves = overlaps(groups[::2], groups[1::2])
    assert halves["prompt overlap"].severity == "error"
    assert "0 are the same as a whole" in halves["prompt overlap"].message


def test_case_is_the_point_of_one_real_prompt(shared_data: Path) -> None:
    """The K = 9 file compares five pairs that differ in case alone: its prompt asks for
    alternating capitals. No error."""
    found = duplicates(read(str(shared_data / "alpacaeval_k9.jsonl.gz")).groups)["same answer"]
    assert (found.severity, round(found.statistic * found.n)) == ("warn", 5)
    assert "0 of them letter for letter" in found.message
    assert {example.line for example in found.examples} == {376}


def test_prompts_of_the_other_side_are_an_error() -> None:
    """Of 103: one the same as a whole, one with the same first turn."""
    theirs = [*clean(50, "other"), group("why birds fly"), group(["hello", "hi", "how are you"])]
    ours = [*clean(101), group("WHY  birds fly", line=7), group("Hello", line=8)]
    found = overlaps(ours, theirs)["prompt overlap"]
    assert (found.severity, found.n, found.statistic) == ("error", 103, 2 / 103)
    assert "2 of 103" in found.message and "1 are the same as a whole" in found.message
    assert [(e.line, e.text) for e in found.examples] == [
        (7, "same prompt: WHY birds fly"),
        (8, "same first turn: Hello"),
    ]


def test_prompts_in_other_words_are_found() -> None:
    """30 words hold 26 shingles. Another last word: 25 of 27, 0.93, an error; the last five words
    changed: 21 of 31, 0.68, to look at (one of 50 is more than 1 %)."""
    theirs = clean(50)
    words = [g.prompt[0].content.split() for g in theirs]
    close = group(" ".join([*words[3][:-1], "x"]), line=300)
    alike = group(" ".join([*words[4][:-5], *"abcde"]), line=400)
    ours = [*clean(48, "other"), close, alike]
    found = overlaps(ours, theirs)
    near, similar = found["near-duplicate prompts"], found["similar prompts"]
    assert (near.severity, near.n, near.statistic) == ("error", 50, 1 / 50)
    assert near.examples[0].line == 300 and near.examples[0].text.startswith("0.93: ")
    assert (similar.severity, similar.statistic) == ("warn", 1 / 50)
    assert similar.examples[0].text.startswith("0.68: ")
    assert found["prompt overlap"].severity == "note"
    assert overlaps([*clean(200, "other"), alike], theirs)["similar prompts"].severity == "note"


def test_a_sample_says_that_it_is_one() -> None:
    part = replace_sample(columns_of(clean(50)), 10)
    found = by_name(overlap(part, columns_of(clean(50, "other"))))
    near = found["near-duplicate prompts"]
    assert near.n == 10
    assert "a sample of each side" in near.message


def replace_sample(audited: Audited, count: int) -> Audited:
    return replace(audited, sample=audited.sample[:count], sample_G=audited.sample_G[:count])


def test_answers_that_leak_under_other_prompts_are_found() -> None:
    """Three of 100 long answers are answers of the other side: 3 % is over 2 %. Short ones, such as
    "no", don't count."""
    theirs = [*clean(50, "other"), *(group(f"q{i}", (LONG.format(i), "no")) for i in range(3))]
    ours = clean(47) + [
        group(f"p{i}", (LONG.format(i).upper(), LONG.format(f"other{i}")), line=i) for i in range(3)
    ]
    ours += [group("p9", ("no", "yes"))]
    found = overlaps(ours, theirs)["answer overlap"]
    assert (found.severity, found.n, found.statistic) == ("error", 100, 3 / 100)
    assert "of all 102 answers 4" in found.message
    assert {example.line for example in found.examples} == {0, 1, 2}
    assert found.examples[0].text.startswith("BIRDS FLAP")


def repeated(one: int, other: int, prompt: str) -> list[PreferenceGroup]:
    """Rows that label the same two answers `one` times one way and `other` times the other; every
    second one names the answers in the other order."""
    labels = [(0, 1)] * one + [(1, 0)] * other
    return [
        group(prompt, ("y", "x") if i % 2 else ("x", "y"), [arc[::-1] if i % 2 else arc])
        for i, arc in enumerate(labels)
    ]


def test_labels_both_ways_are_rated_by_pairs_of_labels() -> None:
    """2 to 1: of three pairs of labels two disagree, 2/3. 1 to 1: 1. 2 to 0: 0. The mean over the
    three pairs of answers is 5/9."""
    rows = [*repeated(2, 1, "a"), *repeated(1, 1, "b"), *repeated(2, 0, "c"), *clean(10)]
    found = conflicts(rows)["label conflicts"]
    assert found.n == 3
    assert abs(found.statistic - 5 / 9) < 1e-12
    assert found.severity == "warn"  # three prompts are too few for an error
    assert "2 of 3 pairs" in found.message
    assert {example.text[:6] for example in found.examples} == {"2 to 1", "1 to 1"}
    assert found.low <= found.statistic <= found.high


@pytest.mark.parametrize(
    ("num_conflicts", "severity"), [(0, "note"), (4, "note"), (8, "warn"), (40, "error")]
)
def test_conflicts_have_thresholds(num_conflicts: int, severity: str) -> None:
    """Of 100 pairs compared twice: 4 % is below 5 %; 8 % above; 40 %, interval 31 to 50 %, above
    15 %."""
    rows: list[PreferenceGroup] = []
    for i in range(100):
        rows += repeated(1, 1, f"p{i}") if i < num_conflicts else repeated(2, 0, f"p{i}")
    found = conflicts(rows)["label conflicts"]
    assert (found.severity, found.statistic) == (severity, num_conflicts / 100)


def test_noise_is_recovered_from_the_rate_of_conflicts() -> None:
    """Labels that are wrong with p = 0.1 disagree 2 * 0.1 * 0.9 = 18 % of the time, whatever the
    number of labels of a pair; 1,500 pairs: standard error about 1 %."""
    draw = np.random.default_rng(0)
    rows: list[PreferenceGroup] = []
    for i in range(1500):
        count = int(draw.integers(2, 5))
        wrong = int((draw.random(count) < 0.1).sum())
        rows += repeated(count - wrong, wrong, f"p{i}")
    found = conflicts(rows)["label conflicts"]
    assert abs(found.statistic - 0.18) < 0.03
    assert found.low < 0.18 < found.high
    stated = float(found.message.split("probability ")[1].rstrip("."))
    assert abs(stated - (1 - math.sqrt(1 - 2 * found.statistic)) / 2) < 0.005


def test_ties_and_equal_texts_are_no_conflict() -> None:
    tie = replace(group("p", ("x", "y")), comparisons=(Comparison(0, 1, probability=0.5),))
    all_ties = replace(group("p", ("x", "y")), comparisons=(Comparison(1, 0, tie=1.0),))
    same = group("p", ("z", "z"), [(0, 1), (1, 0)])
    found = conflicts([group("p", ("x", "y")), tie, all_ties, same])
    assert isinstance(found["label conflicts"], Skipped)
    assert isinstance(found["cycles"], Skipped)


ROUND = [(0, 1), (1, 2), (2, 0)]
LADDER = [(0, 1), (1, 2), (0, 2)]


def test_a_circle_is_found_also_across_rows() -> None:
    """K = 3 in one row; the same as three rows of one pair each; a ladder; and three answers of
    which one pair is missing, which is no complete triad."""
    spread = [
        group("spread", ("a", "b")),
        group("spread", ("b", "c")),
        group("spread", ("c", "a")),
    ]
    rows = [
        group("round", "abc", ROUND, line=5),
        *spread,
        group("ladder", "abc", LADDER),
        group("open", "abc", ROUND[:2]),
    ]
    found = conflicts(rows)["cycles"]
    assert (found.n, found.statistic) == (3, 2 / 3)
    assert "2 of 3 complete triads" in found.message
    assert found.severity == "warn"
    assert found.examples[0].text.startswith("1 of 1 triads: ")


def test_triads_of_four_answers_by_hand() -> None:
    """a beats b beats c beats a, all of them beat d: four triads, one of them a circle. In the
    other, majorities decide (two of three labels) and an even pair opens its two triads."""
    four = group("four", "abcd", [*ROUND, (0, 3), (1, 3), (2, 3)])
    voted = [group("voted", "abcd", [*LADDER, (0, 3), (1, 3), (2, 3)])]
    voted += [group("voted", "abcd", [(0, 1), (1, 0), (3, 2)])]
    found = conflicts([four, *voted])["cycles"]
    assert found.n == 2
    # voted: ab 2 to 1 stays; cd 1 to 1 is even, so that the triads acd and bcd are open.
    assert "1 of 6 complete triads" in found.message
    assert found.statistic == (1 / 4 + 0 / 2) / 2


def test_coin_flips_have_a_quarter_of_circles() -> None:
    draw = np.random.default_rng(0)
    rows = []
    for i in range(400):
        pairs = [(a, b) for a in range(5) for b in range(a)]
        rows.append(group(f"p{i}", "abcde", [p if draw.random() < 0.5 else p[::-1] for p in pairs]))
    found = conflicts(rows)["cycles"]
    assert abs(found.statistic - 0.25) < 0.02
    assert (found.severity, found.effect > 0.9) == ("error", True)


def test_rated_real_data_run_in_no_circle(shared_data: Path) -> None:
    """Comparisons made from one rating of each answer are transitive."""
    found = conflicts(read(str(shared_data / "alpacaeval_k9.jsonl.gz")).groups)["cycles"]
    assert (found.severity, found.statistic, found.n) == ("note", 0, 472)


def test_examples_come_from_the_sample_where_it_has_enough(tmp_path: Path) -> None:
    """30 repeats of one row, of which a sample may hold few or many; each example names its line,
    and the file is read again for lines outside the sample."""
    rows = [{"prompt": f"p{i // 2}", "chosen": "x", "rejected": "y"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl(rows))
    sources = named_sources([str(tmp_path / "rows.jsonl")])
    for limit, read_again in ((4, True), (58, False)):
        settings = AuditSettings(max_sampled_groups=limit)
        audited = scan(sources, settings=settings, processes=1).audited
        found = by_name(duplicate_findings(audited, settings))["repeated rows"]
        assert (found.n, found.statistic) == (60, 1 / 2)
        lines = [example.line for example in found.examples]
        assert len(lines) == 10 and all(line % 2 == 0 for line in lines)
        sampled = {group.line for group in audited.sample}
        assert set(lines) <= sampled or read_again
        assert lines == list(range(2, 22, 2)) or not read_again
        assert all(f"as line {e.line - 1}: p{e.line // 2 - 1}" == e.text for e in found.examples)


WORDS = [f"word{i}" for i in range(40)]


def contaminated(folder: Path, rows: Sequence[Any], groups: Sequence[PreferenceGroup]) -> Any:
    file = folder / "benchmark.jsonl"
    file.write_bytes(as_jsonl(rows))
    (found,) = contamination_findings(columns_of(groups), SETTINGS, [str(file)])
    return found


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not(tmp_path: Path) -> None:
    rows = [{"prompt": " ".join(WORDS)}, {"prompt": "Another one, with nothing shared at all"}]
    shared = group(f"Well: {', '.join(WORDS[3:16]).upper()}!", line=4)
    less = group(" ".join(["so", *WORDS[3:15], "so"]))
    found = contaminated(tmp_path, rows, [*clean(8), shared, less])
    assert (found.severity, found.n, found.statistic) == ("error", 10, 1 / 10)
    assert "1 of its 2 prompts (50.0%)" in found.message
    assert found.examples[0].line == 4
    assert found.examples[0].text.startswith("as line 1: word3 word4")
    assert contaminated(tmp_path, rows, [*clean(8), less]).severity == "note"


def test_short_prompts_must_be_the_same_as_a_whole(tmp_path: Path) -> None:
    rows = [{"prompt": "Why do birds fly?"}]
    assert contaminated(tmp_path, rows, [group("why do birds fly")]).severity == "error"
    assert contaminated(tmp_path, rows, [group("So why do birds fly?")]).severity == "note"
    long = "why do birds fly when they could as well walk or swim all day"
    assert contaminated(tmp_path, rows, [group(long)]).severity == "note"


def test_only_what_the_user_says_counts(tmp_path: Path) -> None:
    """Messages on both sides; a shared answer or system prompt is none of the benchmark's."""
    text = " ".join(WORDS)
    rows = [
        {
            "prompt": [
                {"role": "system", "content": text},
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": text},
                {"role": "user", "content": " ".join(WORDS[::-1])},
            ]
        }
    ]
    assert contaminated(tmp_path, rows, [group(["hey", text, "so?"])]).severity == "note"
    assert contaminated(tmp_path, rows, [group(text)]).severity == "note"
    ours = group(["hey", "hi", " ".join(WORDS[::-1])])
    assert contaminated(tmp_path, rows, [ours]).severity == "error"


def test_strange_rows_of_a_benchmark_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "fine"}, {"prompt": 7}, {"prompt": [1, {"role": "user"}]}, 5, {"other": "x"}]
    found = contaminated(tmp_path, rows, clean(3))
    assert "4 of its rows have no readable prompt" in found.message
    assert "0 of its 1 prompts" in found.message
    with pytest.raises(PalateError, match="its rows have question"):
        contaminated(tmp_path, [{"question": "x"}], clean(1))
    with pytest.raises(PalateError, match="no such file"):
        read_benchmark(str(tmp_path / "nowhere/benchmark"))


def test_benchmarks_come_as_lines_json_and_csv_too(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("why fly\n\nhow so\n")
    (tmp_path / "list.json").write_text(json.dumps([{"prompt": "why fly"}, {"prompt": "how so"}]))
    (tmp_path / "table.csv").write_text("prompt,more\nwhy fly,1\nhow so,2\n")
    files = [str(tmp_path / name) for name in ("lines.txt", "list.json", "table.csv")]
    found = contamination_findings(columns_of([group("How so?")]), SETTINGS, files)
    assert [item.statistic for item in found if isinstance(item, Finding)] == [1.0] * 3
    assert all("1 of its 2 prompts" in item.message for item in found if isinstance(item, Finding))


def test_a_stream_of_all_prompts_is_searched_where_one_is_given(tmp_path: Path) -> None:
    groups = [*clean(9), group("why fly")]
    part = replace_sample(columns_of(groups), 5)
    (tmp_path / "lines.txt").write_text("why fly\n")
    files = [str(tmp_path / "lines.txt")]
    (sampled,) = contamination_findings(part, SETTINGS, files)
    (streamed,) = contamination_findings(part, SETTINGS, files, iter(groups))
    assert isinstance(sampled, Finding) and isinstance(streamed, Finding)
    assert (sampled.n, sampled.severity) == (5, "note")
    assert "of 5 prompts of the sample" in sampled.message
    assert (streamed.n, streamed.severity) == (10, "error")

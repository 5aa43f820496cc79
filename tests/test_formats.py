"""Each format's rows, as its publisher writes them: what is made of them, and which choices there
are. All texts are ours."""

import random
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from palate.preferences import (
    Comparison,
    Message,
    ReadSettings,
    Source,
    VoteSettings,
    read,
    to_canonical,
)
from palate.preferences.formats.detect import FORMATS, detect_format
from palate.preferences.settings import Format
from tests.rows import (
    Row,
    arcs,
    as_jsonl,
    read_bytes,
    read_rows,
    refusal,
    row_entries,
    texts,
    the_group,
)

TIES = VoteSettings(equal="tie")
USER = [{"role": "user", "content": "Why is the sky blue?"}]


def completion(response: str, fine: Any, overall: Any, helpful: Any, **further: Any) -> Row:
    return {
        "model": f"model of {response}",
        "response": response,
        "annotations": {
            "helpfulness": {"Rating": helpful, "Rationale": f"why {response}", "Type": ["1"]},
            "honesty": {"Rating": "N/A", "Rationale": "none given"},
        },
        "fine-grained_score": fine,
        "overall_score": overall,
        "critique": f"critique of {response}",
        **further,
    }


ULTRAFEEDBACK: Row = {
    "source": "ours",
    "instruction": "Why is the sky blue?",
    "models": ["x", "y", "z", "w"],
    "completions": [
        completion("Scattering.", 4.5, 8.5, "4"),
        completion("Mirrors.", 1.25, 10, "1"),
        completion("The sea.", 1.25, 3.0, "2"),
        completion("Air scatters blue light most.", 4.75, 9.0, "5"),
    ],
}


def test_ultrafeedback_is_rated_by_the_mean_of_its_aspects_and_keeps_what_was_said(
    tmp_path: Path,
) -> None:
    """4.5, 1.25, 1.25, 4.75: five of six pairs differ. The answer that the critique gave 10 for its
    1 wins by overall_score, and only there."""
    group = the_group(tmp_path, ULTRAFEEDBACK)
    assert sorted(arcs(group)) == [(0, 1), (0, 2), (3, 0), (3, 1), (3, 2)]
    assert [r.rating for r in group.responses] == [4.5, 1.25, 1.25, 4.75]
    assert group.responses[0].model == "model of Scattering."
    kept = group.responses[0].meta
    assert kept["annotations"]["helpfulness"]["Rationale"] == "why Scattering."
    assert (kept["critique"], kept["overall_score"]) == ("critique of Scattering.", 8.5)
    assert group.meta == {"source": "ours", "models": ["x", "y", "z", "w"]}
    overall = the_group(tmp_path, ULTRAFEEDBACK, rating="overall_score")
    assert [r.rating for r in overall.responses] == [8.5, 10, 3, 9]
    assert (1, 3) in arcs(overall)
    helpful = the_group(tmp_path, ULTRAFEEDBACK, rating="helpfulness")
    assert [r.rating for r in helpful.responses] == [4, 1, 2, 5]


def test_an_aspect_that_nobody_rated_is_a_missing_rating(tmp_path: Path) -> None:
    reading = read_rows(tmp_path, [ULTRAFEEDBACK, ULTRAFEEDBACK], rating="overall_score")
    assert len(reading.groups) == 2
    said = refusal(lambda: read_rows(tmp_path, [ULTRAFEEDBACK], rating="honesty"))
    assert "missing rating" in said
    one_missing = {
        **ULTRAFEEDBACK,
        "completions": [completion("Dust.", None, 2, "1"), *ULTRAFEEDBACK["completions"][:2]],
    }
    reading = read_rows(tmp_path, [one_missing])
    assert arcs(reading.groups[0]) == [(1, 2)]
    assert [(e.kind, e.reason) for e in reading.ledger.entries] == [("response", "missing rating")]
    bare = {"instruction": "q", "completions": [{"response": "a", "stars": 3}, {"response": "b"}]}
    reading = read_rows(tmp_path, [bare, ULTRAFEEDBACK])
    assert "read.rating may be stars" in row_entries(reading)[0].detail


BINARIZED: Row = {
    "prompt": "Why is the sky blue?",
    "prompt_id": "abc",
    "chosen": [*USER, {"role": "assistant", "content": "Scattering."}],
    "rejected": [*USER, {"role": "assistant", "content": "Mirrors."}],
    "messages": [*USER, {"role": "assistant", "content": "Scattering."}],
    "score_chosen": 8.5,
    "score_rejected": 6.0,
}


def test_binarized_ultrafeedback_is_a_pair_whose_scores_are_heeded(tmp_path: Path) -> None:
    group = the_group(tmp_path, BINARIZED)
    assert (texts(group), arcs(group)) == (["Scattering.", "Mirrors."], [(0, 1)])
    assert [r.rating for r in group.responses] == [8.5, 6.0]
    dashed = {
        "prompt": "q",
        "chosen": "a",
        "rejected": "b",
        "chosen-rating": "5",
        "rejected-rating": 4,
        "chosen-model": "m",
    }
    group = the_group(tmp_path, dashed)
    assert [(r.rating, r.model) for r in group.responses] == [(5, "m"), (4, None)]
    assert group.meta == {}
    wide = read_rows(tmp_path, [BINARIZED, dashed], votes=VoteSettings(min_gap=2))
    assert [g.line for g in wide.groups] == [1]


@pytest.mark.parametrize(
    ("scores", "reason", "said"),
    [
        ((7, 7), "no ratings that differ", "chosen has 7 and rejected 7"),
        ((3, 7), "scores contradict the choice", "chosen has 3 and rejected 7"),
    ],
)
def test_a_choice_that_its_scores_do_not_bear_out_is_ledgered(
    tmp_path: Path, scores: tuple[int, int], reason: str, said: str
) -> None:
    row = {**BINARIZED, "score_chosen": scores[0], "score_rejected": scores[1]}
    (entry,) = row_entries(read_rows(tmp_path, [BINARIZED, row]))
    assert (entry.line, entry.reason) == (2, reason)
    assert said in entry.detail


def rated(prompt: str, response: str, helpfulness: Any, **further: Any) -> Row:
    others = {"correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 2}
    return {
        "prompt": prompt,
        "response": response,
        "helpfulness": helpfulness,
        **others,
        **further,
    }


def test_helpsteer_rows_of_one_prompt_that_follow_each_other_are_a_group(tmp_path: Path) -> None:
    rows = [
        rated("Why?", "Because.", 3),
        rated("Why?", "No idea.", 1),
        rated("How?", "So.", 2),
        rated("When?", "Now.", 2),
        rated("When?", "Never.", 2),
        rated("Who?", "", 2),
        rated("Who?", "Me.", 4),
    ]
    reading = read_rows(tmp_path, rows)
    (group,) = reading.groups
    assert (texts(group), arcs(group), group.lines) == (["Because.", "No idea."], [(0, 1)], (1, 2))
    assert group.num_rows == 2
    assert group.responses[0].meta == {
        "correctness": 3,
        "coherence": 4,
        "complexity": 1,
        "verbosity": 2,
    }
    assert sorted((e.line, e.reason) for e in row_entries(reading)) == [
        (3, "fewer than two responses"),
        (4, "no ratings that differ"),
        (5, "no ratings that differ"),
        (6, "empty response"),
        (7, "fewer than two responses"),
    ]
    assert "7 rows in = 2 in groups + 5 in the ledger" in reading.summary()


def test_ratings_of_several_annotators_count_by_their_mean(tmp_path: Path) -> None:
    """(3 + 3 + 4) / 3 = 3.33 beats 3; by correctness, both 3, they are equal."""
    rows = [rated("Why?", "Because.", [3, 3, 4]), rated("Why?", "Since.", [3, 3, 3])]
    (group,) = read_rows(tmp_path, rows).groups
    assert group.responses[0].rating == pytest.approx(10 / 3)
    assert group.responses[0].meta["helpfulness"] == [3, 3, 4]
    (tied,) = read_rows(tmp_path, rows, rating="correctness", votes=TIES).groups
    assert tied.comparisons == (Comparison(0, 1, probability=0.5, tie=1),)


def test_helpsteer_prompts_of_several_turns_are_messages(tmp_path: Path) -> None:
    prompt = "Hello\n\n<extra_id_1>Assistant\nHi!\nWhat is it?\n\n<extra_id_1>User\nWhy?"
    rows = [rated(prompt, "Because.", 3), rated(prompt, "No idea.", 1)]
    (group,) = read_rows(tmp_path, rows).groups
    assert group.prompt == (
        Message("user", "Hello"),
        Message("assistant", "Hi!\nWhat is it?"),
        Message("user", "Why?"),
    )


HELPSTEER3: Row = {
    "domain": "general",
    "language": "english",
    "context": USER,
    "response1": "Mirrors.",
    "response2": "Scattering.",
    "overall_preference": 2,
    "individual_preference": [
        {"score": 3, "reasoning": "right", "feedback1": "wrong", "feedback2": "good"},
        {"score": 1, "reasoning": "shorter", "feedback1": "so so", "feedback2": "good"},
        {"score": 0, "reasoning": "both short", "feedback1": "-", "feedback2": "-"},
        {"score": -1, "reasoning": "poetic", "feedback1": "-", "feedback2": "-"},
    ],
}


def test_helpsteer_3_keeps_votes_with_strengths_and_reasons_beside_the_overall_preference(
    tmp_path: Path,
) -> None:
    group = the_group(tmp_path, HELPSTEER3)
    assert group.comparisons == (Comparison(1, 0),)
    assert [(v.ranking, v.strength) for v in group.votes] == [
        (((1,), (0,)), 3),
        (((1,), (0,)), 1),
        (((0, 1),), 0),
        (((0,), (1,)), 1),
    ]
    assert {vote.annotator for vote in group.votes} == {""}
    assert group.votes[0].meta == {
        "reasoning": "right",
        "feedback1": "wrong",
        "feedback2": "good",
    }
    kept = {"domain": "general", "language": "english", "overall_preference": 2}
    assert group.meta == kept


def test_helpsteer_3_makes_a_margin_or_a_weight_of_the_overall_strength(tmp_path: Path) -> None:
    """Strength 2: at 0.4 logits a unit a margin of 0.8; scaled, a weight of 2."""
    margin = VoteSettings(margin_per_strength=0.4)
    assert the_group(tmp_path, HELPSTEER3, votes=margin).comparisons == (
        Comparison(1, 0, margin=0.8),
    )
    scaled = VoteSettings(scale_by_strength=True)
    assert the_group(tmp_path, HELPSTEER3, votes=scaled).comparisons == (
        Comparison(1, 0, weight=2),
    )


def test_helpsteer_3_votes_are_counted_when_asked(tmp_path: Path) -> None:
    """Two for the second, one for the first, one tie: (2 + 1/2) / (3 + 1) = 0.625, tie 1/4. Scaled:
    their mean strength is (3 + 1 + 0 - 1) / 4 = 0.75."""
    votes = VoteSettings(recount=True, scale_by_strength=True)
    group = the_group(tmp_path, HELPSTEER3, votes=votes)
    assert group.comparisons == (Comparison(1, 0, probability=0.625, tie=0.25, weight=0.75),)
    assert group.meta["overall_preference"] == 2


def test_a_strength_of_0_and_a_vote_that_prefers_nothing_are_not_guessed(tmp_path: Path) -> None:
    """HelpSteer 2's preferences: -100 is an annotator who found neither fit to be compared."""
    row = {
        "split": "train",
        "prompt": "Why?\n\n<extra_id_1>Assistant\nWhy what?\n\n<extra_id_1>User\nThat.",
        "response_1": "Because.",
        "response_2": "No idea.",
        "preference_strength": -1,
        "preference_statement": "the first",
        "three_most_similar_preferences": [
            {"statement": "the first", "elaboration": "clear", "strength": -1}
        ],
        "all_preferences_unprocessed": [
            {"strength": -1, "justification": "clear"},
            {"strength": -100, "justification": "both bad"},
        ],
    }
    group = the_group(tmp_path, row)
    assert [m.role for m in group.prompt] == ["user", "assistant", "user"]
    assert [v.meta for v in group.votes] == [{"statement": "the first", "elaboration": "clear"}]
    assert len(group.meta["all_preferences_unprocessed"]) == 2
    every = {k: v for k, v in row.items() if k != "three_most_similar_preferences"}
    equal = {**row, "preference_strength": 0}
    outside = {**row, "preference_strength": 4}
    reading = read_rows(tmp_path, [every, equal, outside])
    assert [(e.kind, e.line, e.reason) for e in reading.ledger.entries] == [
        ("vote", 1, "no preference in it"),
        ("row", 2, "equal answers"),
        ("row", 3, "invalid strength"),
    ]
    assert "read.votes.equal: tie keeps it" in reading.ledger.entries[1].detail


def test_votes_alone_make_the_comparison_where_there_is_no_overall_preference(
    tmp_path: Path,
) -> None:
    """Columns of any name: a list of scores is all that such a row needs."""
    row = {"prompt": "q", "response1": "a", "response2": "b", "panel": [{"score": -1}] * 3}
    group = the_group(tmp_path, row, columns={"individual_preference": "panel"})
    assert group.comparisons == (Comparison(0, 1, probability=3.5 / 4),)


@pytest.mark.parametrize(
    ("missing", "probability", "tie"), [("no_vote", 1.5 / 2, 0), ("tie", 1.5 / 2, 1 / 2)]
)
def test_a_missing_vote_is_none_or_a_tie_as_asked(
    tmp_path: Path, missing: Any, probability: float, tie: float
) -> None:
    """One for the first and one empty: (1 + 1/2) / (1 + 1) either way; as a tie it is half of the
    votes."""
    votes = VoteSettings(missing=missing)
    columns = {"prompt": "q", "response1": "a", "response2": "b"}
    empty = {**columns, "annotator1": 1, "annotator2": None}
    scores = {**columns, "individual_preference": [{"score": -2}, {"score": None}]}
    for row in (empty, scores):
        (comparison,) = the_group(tmp_path, row, votes=votes).comparisons
        assert (comparison.better, comparison.probability, comparison.tie) == (0, probability, tie)


REWARDBENCH: Row = {
    "id": 30,
    "prompt": "Why is the sky blue?",
    "chosen": "Scattering.",
    "chosen_model": "m",
    "rejected": "Mirrors.",
    "rejected_model": "n",
    "subset": "ours-easy",
}


def test_rewardbench_1_is_a_pair_with_subset_and_models(tmp_path: Path) -> None:
    group = the_group(tmp_path, REWARDBENCH)
    assert (texts(group), arcs(group)) == (["Scattering.", "Mirrors."], [(0, 1)])
    assert [r.model for r in group.responses] == ["m", "n"]
    assert (group.id, group.meta) == ("30", {"subset": "ours-easy"})
    of_turns = {**REWARDBENCH, "prompt": USER}
    assert the_group(tmp_path, of_turns).prompt == group.prompt


def test_rewardbench_2_compares_each_correct_answer_with_each_wrong_one(tmp_path: Path) -> None:
    """Best of four: 1 x 3 comparisons. Ties: 2 correct x 3 wrong = 6, and, when asked, one tie
    between the two correct ones."""
    best: Row = {
        "id": "7",
        "prompt": "q",
        "chosen": ["right"],
        "rejected": ["w1", "w2", "w3"],
        "num_correct": 1,
        "num_rejected": 3,
        "total_completions": 4,
        "models": ["m"] * 4,
        "subset": "Focus",
    }
    assert arcs(the_group(tmp_path, best)) == [(0, 1), (0, 2), (0, 3)]
    ties = {**best, "id": "tied:1", "chosen": ["red", "blue"], "num_correct": 2, "subset": "Ties"}
    six = [(i, j) for i in (0, 1) for j in (2, 3, 4)]
    group = the_group(tmp_path, ties)
    assert (arcs(group), group.id, group.meta["subset"]) == (six, "tied:1", "Ties")
    assert the_group(tmp_path, ties, votes=TIES).comparisons == (
        *(Comparison(i, j) for i, j in six),
        Comparison(0, 1, probability=0.5, tie=1),
    )
    miscounted = {**ties, "num_correct": 3}
    (entry,) = row_entries(read_rows(tmp_path, [best, miscounted]))
    assert (entry.reason, entry.detail) == ("wrong count", "num_correct is 3 for 2 answers")


def test_rm_bench_is_one_group_of_six_with_the_nine_cells_of_its_matrix(tmp_path: Path) -> None:
    """Hard cells are those whose correct answer is plainer than the wrong one: three of nine, the
    upper right of the matrix; three are the diagonal, three below it."""
    row: Row = {
        "id": "chat-1",
        "prompt": "q",
        "chosen": ["c0", "c1", "c2"],
        "rejected": ["r0", "r1", "r2"],
        "domain": "chat",
    }
    reading = read_rows(tmp_path, [row])
    (group,) = reading.groups
    assert (len(group.responses), group.num_rows) == (6, 1)
    assert arcs(group) == [(i, j) for i in range(3) for j in range(3, 6)]
    order = ["concise", "detailed", "markdown"]
    styles = [order.index(r.meta["style"]) for r in group.responses]
    levels = [styles[c.better] - styles[c.worse] for c in group.comparisons]
    assert [sum(x < 0 for x in levels), sum(x == 0 for x in levels)] == [3, 3]
    assert group.meta == {"domain": "chat"}
    short = {**row, "rejected": ["r0", "r1"]}
    assert row_entries(read_rows(tmp_path, [row, short]))[0].reason == "wrong count"
    emptied = {**row, "chosen": ["c0", "", "c2"]}
    reading = read_rows(tmp_path, [emptied])
    assert len(reading.groups[0].comparisons) == 6
    assert reading.ledger.entries[0].detail.startswith("response 1")


@pytest.mark.parametrize(
    ("row", "better"),
    [
        ({"question": "q", "response_A": "a", "response_B": "b", "label": "A>B"}, 0),
        ({"question": "q", "response_A": "a", "response_B": "b", "label": "B>A"}, 1),
        ({"input": "q", "output_1": "a", "output_2": "b", "label": 1}, 0),
        ({"input": "q", "output_1": "a", "output_2": "b", "label": 2.0}, 1),
        ({"prompt": "q", "response1": "a", "response2": "b", "preferred": "model_b"}, 1),
        ({"prompt": "q", "response1": "a", "response2": "b", "preferred": "Left"}, 0),
        ({"prompt": "q", "response1": "a", "response2": "b", "preferred": "2"}, 1),
    ],
)
def test_a_label_names_the_better_of_two(tmp_path: Path, row: Row, better: int) -> None:
    group = the_group(tmp_path, {**row, "source": "ours"})
    assert group.comparisons == (Comparison(better, 1 - better),)
    assert (texts(group), group.meta) == (["a", "b"], {"source": "ours"})


@pytest.mark.parametrize("label", ["first", True, 3, "A", "1_000"])
def test_a_label_that_nothing_explains_is_no_label(tmp_path: Path, label: Any) -> None:
    row = {"prompt": "q", "response1": "a", "response2": "b", "preferred": label}
    reading = read_rows(tmp_path, [{**row, "preferred": 1}, row])
    reasons = [entry.reason for entry in row_entries(reading)]
    assert reasons == ([] if label == "A" else ["unknown label"])


def coded(*labels: Any) -> list[Row]:
    two = {"response1": "a", "response2": "b"}
    return [{"prompt": f"q{n}", **two, "preferred": x} for n, x in enumerate(labels)]


@pytest.mark.parametrize("zero", [0, "0", 0.0, "0.0"])
@pytest.mark.parametrize("place", [0, 150])
def test_a_0_among_labels_refuses_the_source_until_its_coding_is_named(
    tmp_path: Path, zero: Any, place: int
) -> None:
    """PKU-SafeRLHF writes 0 for the first and 1 for the second: read as 1 and 2, the rows with 0
    would be left out and every other one reversed."""
    rows = coded(*[1] * place, zero, 1)
    said = refusal(lambda: read_rows(tmp_path, rows))
    assert f"rows.jsonl:{place + 1}: preferred is {zero!r}" in said
    assert "read.votes.labels" in said
    mixture = {"pku": Source(path=str(tmp_path / "rows.jsonl"))}
    assert "read.votes.labels" in refusal(lambda: read(mixture))


@pytest.mark.parametrize(
    ("labels", "order", "stray"),
    [
        ("one_two", [1, "2", "1.0", 2.0], 0),
        ("zero_one", [0, "1", "0.0", 1.0], 2),
        ("one_zero", [1, "0", "1.0", 0.0], 2),
        ("tie_one_two", [1, "2", "1.0", 2.0], None),
    ],
)
def test_each_coding_of_labels_reads_the_same_preferences(
    tmp_path: Path, labels: Any, order: list[Any], stray: Any
) -> None:
    """First, second, first, second. A number of another coding shows that this one is not meant."""
    votes = VoteSettings(labels=labels, equal="tie")
    reading = read_rows(tmp_path, coded(*order), votes=votes)
    assert [arcs(group) for group in reading.groups] == [[(0, 1)], [(1, 0)]] * 2
    assert "labels" in reading.heeds
    if stray is None:
        (tied, _) = read_rows(tmp_path, coded(0, 1), votes=votes).groups
        assert tied.comparisons == (Comparison(0, 1, probability=0.5, tie=1),)
    else:
        rows = coded(*order, stray)
        assert "read.votes.labels" in refusal(lambda: read_rows(tmp_path, rows, votes=votes))
    words = read_rows(tmp_path, coded("A", "right", "tie (bothbad)"), votes=votes)
    assert [arcs(group) for group in words.groups] == [[(0, 1)], [(1, 0)], [(0, 1)]]
    assert words.groups[2].comparisons[0].tie == 1
    assert "labels" not in words.heeds


@pytest.mark.parametrize("cell", ["NA", "n/a", "NaN", "None", "", " - ", None, float("nan")])
def test_a_cell_without_a_vote_costs_its_row_nothing(tmp_path: Path, cell: Any) -> None:
    row = {"prompt": "q", "response1": "a", "response2": "b", "annotator1": 2, "annotator2": cell}
    reading = read_rows(tmp_path, [row])
    assert [vote.annotator for vote in reading.groups[0].votes] == ["annotator1"]
    assert not reading.ledger.entries
    group = the_group(tmp_path, row, votes=VoteSettings(missing="tie"))
    assert group.comparisons[0].tie == 0.5


@pytest.mark.parametrize("row", [HELPSTEER3, {**REWARDBENCH, "strength": -2}])
def test_a_strength_that_makes_no_margin_is_not_lost(tmp_path: Path, row: Row) -> None:
    """Neither in the group nor in the canonical row that is made of it."""
    name = "strength" if "strength" in row else "overall_preference"
    group = the_group(tmp_path, row)
    assert group.meta[name] == row[name]
    assert the_group(tmp_path, to_canonical(group)).meta[name] == row[name]


def test_equal_scores_weigh_the_same_in_every_format(tmp_path: Path) -> None:
    """A tie has no strength that could scale its weight: 1 in a pair, a row of ratings, and votes,
    times the row's own weight."""
    votes = VoteSettings(equal="tie", scale_by_strength=True)
    tied = {**BINARIZED, "score_rejected": 8.5}
    rated = {"prompt": "q", "responses": ["a", "b"], "ratings": [3, 3]}
    voted = {
        "prompt": "q",
        "responses": ["a", "b"],
        "votes": [{"ranking": [[0, 1]], "strength": 0}],
    }
    for row in (tied, rated, voted):
        (comparison,) = the_group(tmp_path, row, votes=votes).comparisons
        assert (comparison.tie, comparison.weight) == (1, 1)
    (comparison,) = the_group(tmp_path, {**tied, "weight": 3}, votes=votes).comparisons
    assert (comparison.tie, comparison.weight) == (1, 3)


EQUAL: list[tuple[Row, str]] = [
    ({"prompt": "q", "responses": ["a", "b"], "ratings": [3, 3]}, "no ratings that differ"),
    ({"prompt": "q", "responses": ["a", "b"], "ranking": [[0, 1]]}, "no comparison"),
    ({**BINARIZED, "score_rejected": 8.5}, "no ratings that differ"),
    ({**HELPSTEER3, "overall_preference": 0}, "equal answers"),
    ({"question": "q", "response_A": "a", "response_B": "b", "label": "A=B"}, "equal answers"),
    (
        {"prompt": "q", "response1": "a", "response2": "b", "preferred": "tie"},
        "equal answers",
    ),
    (
        {
            "context": USER,
            "completions": [
                {"rank": 0, "completion": [{"role": "assistant", "content": text}]} for text in "ab"
            ],
        },
        "equal answers",
    ),
]


@pytest.mark.parametrize(("row", "reason"), EQUAL)
def test_equal_answers_are_left_out_with_a_reason_or_kept_as_a_tie(
    tmp_path: Path, row: Row, reason: str
) -> None:
    said = refusal(lambda: read_rows(tmp_path, [row]))
    assert f"row: {reason}" in said
    group = the_group(tmp_path, row, votes=TIES)
    assert group.comparisons == (Comparison(0, 1, probability=0.5, tie=1),)


def argilla_record(**further: Any) -> Row:
    fields = {"prompt": "Why?", "reply-1": "Because.", "reply-2": "So.", "reply-3": "No."}
    ranking = [
        {"value": "reply-2", "rank": 1},
        {"value": "reply-3", "rank": 2},
        {"value": "reply-1", "rank": 2},
    ]
    return {
        "id": "r1",
        "fields": {**fields, "topic": "causes"},
        "metadata": {"batch": 3},
        "suggestions": {},
        "responses": {
            "order": [
                {"value": ranking, "user_id": "ann"},
                {"value": ["reply-1", "reply-2", "reply-3"], "user_id": "bob"},
                {"value": ranking, "user_id": "eve", "status": "discarded"},
            ],
            "comment": [{"value": "too short", "user_id": "ann"}],
        },
        "status": "completed",
        **further,
    }


def test_an_argilla_ranking_is_a_vote_of_each_annotator(tmp_path: Path) -> None:
    """ann: 2 > {1, 3}; bob: 1 > 2 > 3. Of 1 and 2 one vote each; 1 before 3: one vote and a tie; 2
    before 3: both, (2 + 1/2) / (2 + 1)."""
    reading = read_rows(tmp_path, [argilla_record()])
    (group,) = reading.groups
    assert texts(group) == ["Because.", "So.", "No."]
    assert [(v.annotator, v.ranking) for v in group.votes] == [
        ("ann", ((1,), (2, 0))),
        ("bob", ((0,), (1,), (2,))),
    ]
    assert group.votes[0].meta == {"comment": "too short"}
    assert [(c.better, c.worse, c.probability, c.tie) for c in group.comparisons] == [
        (0, 1, 0.5, 0),
        (0, 2, 1.5 / 2, 0.5),
        (1, 2, 2.5 / 3, 0),
    ]
    assert (group.id, group.meta["fields"]) == ("r1", {"topic": "causes"})
    (entry,) = reading.ledger.entries
    assert (entry.kind, entry.reason, entry.detail) == (
        "vote",
        "not submitted",
        "order of 'eve': discarded",
    )


def test_a_flattened_argilla_record_reads_as_the_nested_one(tmp_path: Path) -> None:
    nested = argilla_record()
    answers = nested["responses"]["order"]
    flat = {
        "id": "r1",
        **nested["fields"],
        "order.responses": [answer["value"] for answer in answers],
        "order.responses.users": ["ann", "bob", "eve"],
        "order.responses.status": ["submitted", "submitted", "discarded"],
        "comment.responses": ["too short"],
        "comment.responses.users": ["ann"],
        "comment.responses.status": ["submitted"],
    }
    one, other = the_group(tmp_path, nested), the_group(tmp_path, flat)
    assert (one.prompt, one.responses, one.votes, one.comparisons, one.id) == (
        other.prompt,
        other.responses,
        other.votes,
        other.comparisons,
        other.id,
    )
    assert other.meta == {"topic": "causes"}


def test_an_argilla_label_names_the_better_of_two_fields(tmp_path: Path) -> None:
    record: Row = {
        "fields": {
            "query": "Why?",
            "context": "Physics.",
            "answer_a": "Because.",
            "answer_b": "No.",
        },
        "responses": {
            "better": [{"value": "answer_b", "user_id": 1}, {"value": "tie", "user_id": 2}],
            "clearer": [{"value": "a", "user_id": 1}],
            "stars": [{"value": 4, "user_id": 1}],
        },
    }
    said = refusal(lambda: read_rows(tmp_path, [record], rating="better"))
    assert "query and context may be the prompt" in said
    columns = {"prompt": "fields.query"}
    said = refusal(lambda: read_rows(tmp_path, [record], columns=columns))
    assert "better and clearer order the responses; read.rating names" in said
    group = the_group(tmp_path, record, columns=columns, rating="better")
    assert group.prompt == (Message("user", "Why?"),)
    assert [(v.annotator, v.ranking) for v in group.votes] == [
        ("1", ((1,), (0,))),
        ("2", ((0, 1),)),
    ]
    assert group.votes[0].meta == {"clearer": "a", "stars": 4}
    assert group.meta["fields"] == {"query": "Why?", "context": "Physics."}
    exchanged = {**columns, "response1": "fields.answer_b", "response2": "fields.answer_a"}
    group = the_group(tmp_path, record, columns=exchanged, rating="clearer")
    assert texts(group) == ["No.", "Because."]
    assert group.votes[0].ranking == ((0,), (1,))


def judged_record(**answers: Any) -> Row:
    return {
        "fields": {"prompt": "Why?", "answer_9": "Because.", "answer_10": "No."},
        "responses": {name: [{"value": x, "user_id": "u"}] for name, x in answers.items()},
    }


def test_a_rating_does_not_say_which_answer_is_better_and_costs_no_row(tmp_path: Path) -> None:
    """Quality 1 is no vote for the first answer. The question is the source's: the second row,
    where only the quality was asked, has no preference in it; the third, with both, has."""
    rows = [judged_record(better="answer_10"), judged_record(quality=1)]
    rows += [judged_record(better="a", quality=1), judged_record(better="answer_9", quality=2)]
    rows[2]["responses"]["better"][0]["value"] = "answer_9"
    reading = read_rows(tmp_path, rows)
    assert [arcs(group) for group in reading.groups] == [[(1, 0)], [(0, 1)], [(0, 1)]]
    assert reading.groups[1].votes[0].meta == {"quality": 1}
    (entry,) = row_entries(reading)
    assert (entry.line, entry.detail) == (2, "no answer to 'better' (questions: quality)")
    said = refusal(lambda: read_rows(tmp_path, rows[1:2]))
    assert "no question orders the responses; read.rating names it" in said
    rated = read_rows(tmp_path, rows[1:], rating="quality")
    assert [arcs(group) for group in rated.groups] == [[(0, 1)], [(0, 1)], [(1, 0)]]
    rows.append(judged_record(quality=0))
    said = refusal(lambda: read_rows(tmp_path, rows[1:], rating="quality"))
    assert "read.votes.labels" in said


def test_two_questions_that_order_the_answers_are_unclear_for_the_whole_source(
    tmp_path: Path,
) -> None:
    """Also where no row answers both: which counts must not change from row to row."""
    rows = [judged_record(better="answer_9"), judged_record(clearer="answer_10")]
    said = refusal(lambda: read_rows(tmp_path, rows))
    assert "better and clearer order the responses; read.rating names" in said


def test_the_tenth_answer_stands_after_the_ninth(tmp_path: Path) -> None:
    """By letters answer_10 is before answer_9, and left would mean the right one."""
    left = {"type": "pairwise", "value": {"selected": "left"}}
    group = the_group(tmp_path, task(left, answer_10="No.", answer_9="Because."))
    assert (texts(group), arcs(group)) == (["Because.", "No."], [(0, 1)])
    assert texts(the_group(tmp_path, judged_record(better="a"))) == ["Because.", "No."]


def test_label_studios_to_name_says_which_is_left(tmp_path: Path) -> None:
    """Fields of the data in the order that they were shown in; tags of other names only where they
    agree with their numbers."""

    def left(to_name: Any) -> Row:
        return {"type": "pairwise", "to_name": to_name, "value": {"selected": "left"}}

    answers = {"answer1": "Because.", "answer2": "No."}
    for shown in ("answer2,answer1", ["answer2", "answer1"]):
        group = the_group(tmp_path, task(left(shown), **answers))
        assert (texts(group), arcs(group)) == (["No.", "Because."], [(0, 1)])
    assert texts(the_group(tmp_path, task(left("t9,t10"), **answers))) == ["Because.", "No."]
    said = refusal(lambda: read_rows(tmp_path, [task(left("t2,t1"), **answers)]))
    assert "to_name is t2,t1" in said
    columns = {"response1": "data.answer2", "response2": "data.answer1"}
    group = the_group(tmp_path, task(left("t2,t1"), **answers), columns=columns)
    assert (texts(group), arcs(group)) == (["No.", "Because."], [(0, 1)])


def task(*results: Row, **data: Any) -> Row:
    return {
        "id": 12,
        "data": {"prompt": "Why?", **data},
        "annotations": [
            {"id": place, "completed_by": {"id": 5, "email": "a@b.c"}, "result": [result]}
            for place, result in enumerate(results)
        ],
        "predictions": [],
    }


def test_label_studio_pairs_and_choices_are_votes(tmp_path: Path) -> None:
    left: Row = {"from_name": "pw", "type": "pairwise", "value": {"selected": "left"}}
    tie: Row = {"from_name": "c", "type": "choices", "value": {"choices": ["Tie"]}}
    row = task(left, tie, left, answer1="Because.", answer2="No.", topic="causes")
    row["annotations"][0]["result"].append(
        {"from_name": "why", "type": "textarea", "value": {"text": ["it says why"]}}
    )
    row["annotations"][1]["completed_by"] = 9
    row["annotations"][2]["was_cancelled"] = True
    reading = read_rows(tmp_path, [row])
    (group,) = reading.groups
    assert texts(group) == ["Because.", "No."]
    assert [(v.annotator, v.ranking) for v in group.votes] == [
        ("a@b.c", ((0,), (1,))),
        ("9", ((0, 1),)),
    ]
    assert group.votes[0].meta == {"why": {"text": ["it says why"]}}
    assert (group.id, group.meta["data"]) == ("12", {"topic": "causes"})
    assert [(e.kind, e.reason) for e in reading.ledger.entries] == [("vote", "cancelled")]
    mapped = task(left, mine="Because.", theirs="No.")
    columns = {"response1": "data.theirs", "response2": "data.mine"}
    assert texts(the_group(tmp_path, mapped, columns=columns)) == ["No.", "Because."]


ITEMS = [{"id": name, "title": f"Model {name}", "body": f"answer {name}"} for name in "xyz"]


@pytest.mark.parametrize(
    "value",
    [["z", "x", "y"], {"_": ["z", "x", "y"]}, {"_": [], "rank": ["z", "x", "y"], "bad": []}],
)
def test_a_label_studio_ranking_orders_the_items_of_a_list(tmp_path: Path, value: Any) -> None:
    row = task({"from_name": "r", "type": "ranker", "value": {"ranker": value}}, items=ITEMS)
    group = the_group(tmp_path, row)
    assert texts(group) == ["answer x", "answer y", "answer z"]
    assert group.votes[0].ranking == ((2,), (0,), (1,))
    assert group.responses[0].meta == {"id": "x", "title": "Model x"}


def test_items_in_several_buckets_have_no_order_across_them(tmp_path: Path) -> None:
    good = task({"type": "ranker", "value": {"ranker": ["z", "x", "y"]}}, items=ITEMS)
    buckets = {"relevant": ["x"], "biased": ["y"], "_": ["z"]}
    bad = task({"type": "ranker", "value": {"ranker": buckets}}, items=ITEMS)
    (entry,) = row_entries(read_rows(tmp_path, [good, bad]))
    assert (entry.line, entry.reason) == (2, "several buckets")
    assert "relevant, biased" in entry.detail


def test_what_an_answers_message_says_besides_is_kept(tmp_path: Path) -> None:
    thought = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    row = {"prompt": "q", "chosen": [thought], "rejected": "b"}
    assert the_group(tmp_path, row).responses[0].meta == {"reasoning_content": "hm"}


def test_two_names_of_the_template_arguments_must_agree(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "template_arguments": {"x": 1}}
    rows = [{**row, "chat_template_kwargs": {"x": 1}}, {**row, "chat_template_kwargs": {"x": 2}}]
    reading = read_rows(tmp_path, rows)
    assert [(e.line, e.reason) for e in row_entries(reading)] == [(2, "template arguments differ")]


SHOWN: list[tuple[Row, str, str]] = [
    (ULTRAFEEDBACK, "ultrafeedback", "completions to an instruction"),
    (BINARIZED, "pairs", "rejected, with score_chosen and score_rejected"),
    (rated("q", "a", 1), "rated", "one response and its helpfulness"),
    (HELPSTEER3, "helpsteer", "response1, response2 and overall_preference"),
    (REWARDBENCH, "rewardbench", "subset and chosen_model"),
    (
        {"prompt": "q", "chosen": ["a"], "rejected": ["b"], "num_correct": 1},
        "rewardbench2",
        "num_correct",
    ),
    ({"prompt": "q", "chosen": ["a"], "rejected": ["b"]}, "rm_bench", "lists of texts"),
    (argilla_record(), "argilla", "fields and responses as objects"),
    ({"order.responses": [], "prompt": "q"}, "argilla", "order.responses"),
    (task(), "label_studio", "data and annotations"),
]


@pytest.mark.parametrize(("row", "name", "why"), SHOWN)
def test_the_fields_that_show_a_format_are_said(row: Row, name: str, why: str) -> None:
    found = detect_format(row)
    assert found is not None
    assert found[0] == name
    assert why in found[1]


def test_columns_that_a_table_leaves_null_do_not_show_a_format() -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "responses": None, "num_correct": None}
    assert detect_format(row) == ("pairs", "prompt, chosen and rejected")


def test_the_reason_counts_the_rows_that_show_it(tmp_path: Path) -> None:
    reading = read_rows(tmp_path, [REWARDBENCH, {"prompt": "q"}, REWARDBENCH])
    (why,) = reading.reasons.values()
    assert why == "2 of the first 3 rows have prompt, chosen, rejected, subset and chosen_model"
    named = read_rows(tmp_path, [REWARDBENCH], format="pairs")
    assert list(named.reasons.values()) == ["named in the settings"]


def disturbed(value: Any, dice: random.Random) -> Any:
    """The value with parts of it gone or replaced by something of another type."""
    odd = [
        None,
        True,
        0,
        -100,
        2.5,
        float("nan"),
        "",
        "a",
        "\ud800",
        [],
        {},
        ["a"],
        [[0]],
        {"a": 1},
    ]
    if dice.random() < 0.15:
        return dice.choice(odd)
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if dice.random() > 0.05}
        return {k: disturbed(v, dice) if dice.random() < 0.5 else v for k, v in kept.items()}
    if isinstance(value, list):
        return [disturbed(item, dice) if dice.random() < 0.5 else item for item in value]
    return value


FLAT: Row = {
    "prompt": "q",
    "response1": "a",
    "response2": "b",
    "better.responses": ["response1", "tie"],
    "better.responses.users": ["u", "v"],
    "better.responses.status": ["submitted", "draft"],
}
WHOLE: dict[str, Row] = {
    "ultrafeedback": ULTRAFEEDBACK,
    "binarized": BINARIZED,
    "rated": rated("q", "a", [1, 2]),
    "helpsteer": HELPSTEER3,
    "rewardbench": REWARDBENCH,
    "rewardbench2": {
        "prompt": "q",
        "chosen": ["a", "b"],
        "rejected": ["c"],
        "num_correct": 2,
        "num_rejected": 1,
    },
    "rm_bench": {"prompt": "q", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]},
    "judgebench": {"question": "q", "response_A": "a", "response_B": "b", "label": "A>B"},
    "llmbar": {"input": "q", "output_1": "a", "output_2": "b", "label": 1},
    "labelled": {"prompt": "q", "response1": "a", "response2": "b", "preferred": "a"},
    "nemo_rl": {
        "context": USER,
        "completions": [
            {"rank": rank, "completion": [{"role": "assistant", "content": f"a{rank}"}]}
            for rank in range(3)
        ],
    },
    "argilla": argilla_record(),
    "flat": FLAT,
    "pairwise": task({"type": "pairwise", "value": {"selected": "left"}}, answer1="a", answer2="b"),
    "ranker": task({"type": "ranker", "value": {"ranker": {"_": ["z", "x", "y"]}}}, items=ITEMS),
}


@pytest.mark.parametrize("merge_prompts", [False, True])
@pytest.mark.parametrize("name", WHOLE)
def test_rows_with_values_of_any_type_anywhere_are_read_or_ledgered(
    tmp_path: Path, name: str, merge_prompts: bool
) -> None:
    """Sixty rows as they should be, which choose the format, and 300 disturbed ones."""
    dice = random.Random(name)
    rows = [WHOLE[name]] * 60 + [disturbed(WHOLE[name], dice) for _ in range(300)]
    if name == "rated":
        rows = [{**row, "response": f"r{i % 2}"} if i < 60 else row for i, row in enumerate(rows)]
        rows = [{**row, "helpfulness": i % 5} if i < 60 else row for i, row in enumerate(rows)]
    # A 0 for a label would refuse the file as a whole.
    votes = VoteSettings(labels="tie_one_two")
    options = {"merge_prompts": merge_prompts, "votes": votes}
    reading = read_bytes(tmp_path, "rows.jsonl", as_jsonl(rows), **options)
    lines = [line for group in reading.groups for line in group.lines]
    lines += [entry.line for entry in row_entries(reading)]
    assert sorted(lines) == list(range(1, 361))
    assert all(line in lines for line in range(1, 61))
    assert {entry.line for entry in row_entries(reading)} <= set(range(61, 361))
    reading.summary().encode()


def test_every_format_can_be_named_and_stands_in_the_documentation() -> None:
    assert {"auto", *FORMATS} == set(get_args(Format))
    page = (FOLDER.parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    assert [name for name in FORMATS if f"\n| `{name}`" not in page] == []
    options = [option.name for option in fields(VoteSettings)]
    assert [name for name in options if f"\n| `{name}`" not in page] == []


def test_all_formats_are_disturbed_somewhere() -> None:
    shown = {found[0] for row in WHOLE.values() if (found := detect_format(row)) is not None}
    in_test_readers = {"canonical", "ranked", "pairs", "implicit", "hh", "annotated"}
    assert shown | in_test_readers == set(FORMATS)


EXAMPLES = {
    "argilla.jsonl": ("argilla", 1, {}),
    "binarized.jsonl": ("pairs", 1, {"row: no ratings that differ": 1}),
    "helpsteer2.jsonl": ("rated", 2, {"row: no ratings that differ": 2}),
    "helpsteer3.jsonl": ("helpsteer", 2, {"row: equal answers": 1}),
    "judgebench.jsonl": ("judgebench", 2, {}),
    "label_studio.json": ("label_studio", 1, {"vote: cancelled": 1}),
    "llmbar.json": ("llmbar", 2, {}),
    "nemo_rl.jsonl": ("nemo_rl", 1, {}),
    "rewardbench.jsonl": ("rewardbench", 2, {}),
    "rewardbench2.jsonl": ("rewardbench2", 2, {}),
    "rm_bench.json": ("rm_bench", 1, {}),
    "same_prompt.jsonl": ("pairs", 4, {}),
    "table.csv": (None, 0, {}),
    "trl_tools.jsonl": ("pairs", 1, {}),
    "ultrafeedback.jsonl": ("ultrafeedback", 2, {}),
    "votes.csv": ("annotated", 3, {}),
}
FOLDER = Path(__file__).parents[1] / "examples" / "data"


def test_each_example_is_read_as_what_it_is() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(EXAMPLES)
    for name, (format, num_groups, left_out) in EXAMPLES.items():
        if format is None:
            continue
        reading = read(str(FOLDER / name))
        assert list(reading.formats.values()) == [format], name
        assert (len(reading.groups), reading.ledger.by_reason()) == (num_groups, left_out), name


def test_the_example_of_a_table_needs_its_columns_named() -> None:
    path = str(FOLDER / "table.csv")
    assert "in no known format" in refusal(lambda: read(path))
    columns = {
        "prompt": "question",
        "response1": "answer_a",
        "response2": "answer_b",
        "preferred": "winner",
    }
    reading = read(path, ReadSettings(columns=columns, votes=TIES))
    assert [g.comparisons[0].better for g in reading.groups] == [0, 1, 0]
    assert reading.groups[2].comparisons[0].tie == 1


@pytest.mark.parametrize(
    ("key", "models"),
    [
        ("bloom-7b_opt-7b", ["bloom-7b", "opt-7b"]),
        ("my_model_opt", [None, None]),
        ("opt_", [None, None]),
        ("opt", [None, None]),
        (7, [None, None]),
        (None, [None, None]),
    ],
)
def test_the_models_of_pandalm_are_those_that_its_key_names_for_sure(
    key: Any, models: list[str | None], tmp_path: Path
) -> None:
    """Where a name may hold the underscore between them nobody knows where the first one ends."""
    row = {"instruction": "q", "response1": "a", "response2": "b", "annotator1": 1, "cmp_key": key}
    (group,) = read_rows(tmp_path, [row]).groups
    assert [response.model for response in group.responses] == models
    assert group.meta.get("cmp_key") == key

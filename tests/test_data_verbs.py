"""`palate data inspect` says what is so; `palate data convert` keeps what people said."""

import ast
import gzip
import json
import os
import re
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.artifacts.ledger import Ledger
from palate.cli.main import main
from palate.cli.parsing import _keys as config_keys
from palate.cli.parsing import parse, parser_for
from palate.errors import PalateError
from palate.pipeline.config import TrainConfig
from palate.pipeline.convert import ConvertConfig, ConvertResult, convert
from palate.pipeline.inspection import sample
from palate.pipeline.inspection.inspect import (
    InspectConfig,
    Inspection,
    inspect_source,
    inspect_sources,
)
from palate.pipeline.inspection.observations import observations
from palate.pipeline.inspection.report import as_json, as_text, group_lines, ranks
from palate.preferences import (
    Comparison,
    Message,
    PreferenceGroup,
    ReadSettings,
    Response,
    Vote,
    VoteSettings,
    read,
    to_canonical,
)
from tests.rows import any_groups, said
from tests.runs import write_rows
from tests.tiny import byte_tokenizer

Row = dict[str, Any]


def inspected(path: Path, rows: Sequence[Any], **options: Any) -> Inspection:
    source = write_rows(path / "rows.jsonl", rows)
    return inspect_source(source, InspectConfig(data=[source], **options))


def said_of(seen: Inspection, *pieces: str) -> str:
    """The one observation that holds all pieces."""
    found = [s for s in observations(seen) if all(piece in s for piece in pieces)]
    assert len(found) == 1, (pieces, observations(seen))
    return found[0]


def pair(number: int, chosen: str = "yes", rejected: str = "no", **more: Any) -> Row:
    return {"prompt": f"question {number}", "chosen": chosen, "rejected": rejected, **more}


def test_a_bare_pair_file_is_described_in_plain_numbers(tmp_path: Path) -> None:
    """Ten pairs whose better answer is longer in eight, as long in one and shorter in one: 8.5 of
    10. Prompts have 10 characters, answers 3 and 2 (8 times), 3 and 3, 1 and 2."""
    rows = [pair(i) for i in range(8)] + [pair(8, "yes", "nay"), pair(9, "y", "no")]
    seen = inspected(tmp_path, [*rows, {"prompt": "q"}, pair(11, "")])
    assert (seen.format, seen.num_groups, seen.ledger.num_rows_left_out) == ("pairs", 10, 2)
    assert "prompt, chosen and rejected" in seen.why
    assert seen.quality.longer_wins is not None
    assert seen.quality.longer_wins.value == 0.85
    assert seen.answers.prompt_characters is not None
    assert seen.answers.prompt_characters.quantiles["50%"] == 10
    assert seen.answers.answer_characters is not None
    assert seen.answers.answer_characters.n == 20
    assert seen.answers.answer_characters.minimum == 1
    # Two prompts of 10 over 5 characters of answers, eight times; 6 and 3 in the last two.
    assert seen.answers.prompt_share == pytest.approx(200 / (200 + 8 * 5 + 6 + 3))
    assert seen.answers.saved_share == pytest.approx(100 / (200 + 8 * 5 + 6 + 3))
    assert (seen.comparisons.num, seen.comparisons.num_hard, seen.votes) == (10, 10, None)
    said_of(seen, "2 of 12 rows (16.7 %) can't be used", "1 missing field", "1 empty response")
    said_of(seen, "The longer answer wins 85.0 %", "too few groups to tell")
    said_of(seen, "All 10 comparisons are bare", "no votes", "no margin")
    assert observations(seen)[-1].startswith("Not judged here: what the texts say")
    text = as_text(seen, 80)
    assert "12 rows in = 10 in groups + 2 in the ledger" in text
    folder = str(tmp_path)  # a path is never broken, however long it is
    assert all(len(line) <= 80 or folder in line for line in text.splitlines())


def test_prompts_that_are_shared_or_go_on_from_others_are_counted(tmp_path: Path) -> None:
    """Prompts: a (three groups), b, and a conversation that goes on from a's answer; one cluster
    for a and what follows it. A fourth that starts with b's words in another role is none."""
    a, b = {"role": "user", "content": "a?"}, {"role": "user", "content": "b?"}
    later = [a, {"role": "assistant", "content": "x"}, {"role": "user", "content": "and?"}]
    prompts = [[a], [a], [a], [b], later, [{**b, "role": "system"}, a]]
    rows = [{"prompt": p, "chosen": f"c{i}", "rejected": "d"} for i, p in enumerate(prompts)]
    seen = inspected(tmp_path, rows)
    facts = seen.prompts
    assert (facts.num_prompts, facts.num_clusters) == (4, 2)
    assert (facts.num_sharing, facts.largest_sharing, facts.num_extending) == (3, 3, 1)
    assert (facts.num_messages, facts.num_with_system) == ({1: 4, 2: 1, 3: 1}, 1)
    said_of(seen, "3 of 6 groups share their prompt", "read.merge_prompts")
    said_of(seen, "1 prompt goes on from the prompt of another group", "(2 clusters of 4 prompts")
    merged = inspected(tmp_path, rows, read=ReadSettings(merge_prompts=True))
    assert (merged.num_groups, merged.num_rows_in_groups) == (4, 6)
    assert not any("merge_prompts" in sentence for sentence in observations(merged))


def votes_row(number: int, choices: Sequence[Any], **more: Any) -> Row:
    votes = [{"annotator": f"ann {i}", "choice": c} for i, c in enumerate(choices)]
    return {"prompt": f"question {number}", "responses": ["left", "right"], "votes": votes, **more}


def test_agreement_ties_and_habits_of_annotators(tmp_path: Path) -> None:
    """24 prompts. Annotator 0 always takes the first answer; 1 the first in half and the second in
    the other half; 2 says what 1 says, but for 6 ties. Agreement by pairs: 0 and 1 in 12 of 24, 0
    and 2 in 9, 1 and 2 in 18: 39 of 72. By chance: 24 + 12 + 9 = 45 firsts, 12 + 9 = 21 seconds and
    6 ties of 72 votes: (45² + 21² + 6²) / 72²."""
    rows = [votes_row(i, [0, i % 2, "tie" if i < 6 else i % 2]) for i in range(24)]
    seen = inspected(tmp_path, rows)
    votes = seen.votes
    assert votes is not None
    assert (votes.num_votes, votes.num_ties, len(votes.annotators)) == (72, 6, 3)
    assert votes.agreement is not None
    assert votes.agreement.value == pytest.approx(39 / 72)
    assert votes.agreement_by_chance == pytest.approx((45**2 + 21**2 + 6**2) / 72**2)
    assert votes.pairs == pytest.approx(
        {"ann 0 and ann 1": 12 / 24, "ann 0 and ann 2": 9 / 24, "ann 1 and ann 2": 18 / 24}
    )
    assert votes.annotators["ann 0"].usual_share == 1
    assert votes.annotators["ann 2"].num_ties == 6
    said_of(seen, "72 votes by 3 annotators", "3 in 24")
    said_of(seen, "agree in 54.2 %", "by chance")
    said_of(seen, "Annotator 'ann 0' gave the same answer (answer 1) in 100.0 % of 24 votes")
    said_of(seen, "6 votes (8.3 %) are ties")
    # 45 of the 66 votes with a winner go to the answer listed first.
    assert votes.first_wins is not None
    said_of(seen, "The answer listed first wins")


def test_votes_that_agree_as_dice_do_are_said_to_be_noise(tmp_path: Path) -> None:
    """Three votes on each of 300 prompts, all drawn: agreement is one half, as by chance. The names
    of those who voted are not known."""
    generator = np.random.default_rng(0)
    rows = [votes_row(i, generator.integers(2, size=3).tolist()) for i in range(300)]
    for row in rows:
        row["votes"] = [{"choice": vote["choice"]} for vote in row["votes"]]
    seen = inspected(tmp_path, rows)
    said_of(seen, "by chance", "That is little: many of these labels are noise")
    said_of(seen, "900 votes without names")
    assert seen.votes is not None
    assert (seen.votes.annotators, seen.votes.pairs) == ({}, {})


def test_a_handful_of_groups_gives_rise_to_no_verdict(tmp_path: Path) -> None:
    """Three prompts on which the longer, the first listed and nobody else wins."""
    seen = inspected(tmp_path, [votes_row(i, [1, 1]) for i in range(3)])
    assert seen.quality.longer_wins is not None
    assert seen.quality.longer_wins.low == 1
    said_of(seen, "The longer answer wins 100.0 %", "too few groups to tell")
    assert not any("listed first" in sentence for sentence in observations(seen))


def test_a_position_that_wins_is_counted_as_it_was_shown(tmp_path: Path) -> None:
    """Both votes take the answer shown first: response 1 by one, response 0 by the other."""
    shown = [
        {"annotator": "x", "choice": 1, "shown": [1, 0]},
        {"annotator": "y", "choice": 0, "shown": [0, 1]},
    ]
    rows = [{"prompt": f"q{i}", "responses": ["a", "b"], "votes": shown} for i in range(24)]
    seen = inspected(tmp_path, rows)
    assert seen.votes is not None
    assert seen.votes.first_wins is not None
    assert seen.votes.first_wins.value == 1
    assert seen.votes.agreement is not None
    assert seen.votes.agreement.value == 0
    said_of(seen, "The answer shown first wins 100.0 %")


def test_saturated_ratings_a_constant_model_and_names_that_predict(tmp_path: Path) -> None:
    """60 prompts, three models. "strong" has 0.9 (and 0.4 in every sixth), "weak" 0.0 to 0.005,
    "same" always 0.5: of 180 ratings 60 lie within 0.01 of the lowest. Clear gaps, 0.09 or more,
    are all; "strong" loses to "same" in 10 of 60, so the names' order is right in 170 of 180."""
    rows = []
    for i in range(60):
        rates = {"strong": 0.4 if i % 6 == 0 else 0.9, "weak": (i % 2) * 0.005, "same": 0.5}
        responses = [
            {"text": f"{name} {i}" + "!" * (name == "weak"), "model": name, "score": rate}
            for name, rate in rates.items()
        ]
        rows.append({"prompt": f"question {i}", "responses": responses})
    seen = inspected(tmp_path, rows)
    quality = seen.quality
    assert quality.share_at_lowest == pytest.approx(60 / 180)
    assert quality.clear_gap == pytest.approx(0.09)
    assert quality.model_predicts is not None
    assert quality.model_predicts.value == pytest.approx(170 / 180)
    assert quality.models["strong"].win_share == pytest.approx(110 / 120)
    said_of(seen, "Ratings are saturated: 33.3 % lie within", "of the lowest, 0")
    said_of(seen, "All 60 answers of same are rated 0.5")
    said_of(seen, "The names of the 3 models alone predict 94.4 %")
    said_of(seen, "Each of 180 ratings stands alone")
    assert "strong: wins 91.7 % of 120 (ties half), 60 answers" in as_text(seen)


def test_settings_that_observations_name_exist() -> None:
    """Every setting of their texts is a key that `palate train` knows, and a kind that they name is
    one that it takes."""
    texts = [
        node.value
        for node in ast.walk(ast.parse(Path(observations.__code__.co_filename).read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    pattern = r"\b((?:read|objective|training|lengths|split|body)\.[a-z_.]*[a-z])(?: ([a-z-]+))?"
    named = [found for text in texts for found in re.findall(pattern, text)]
    assert {"read.merge_prompts", "read.votes.min_gap", "objective.kind"} <= {k for k, _ in named}
    parser = parser_for("train", "", TrainConfig)
    for key, value in named:
        given = {"model": "m", "data": "d", **({key: value} if key == "objective.kind" else {})}
        parse(parser, TrainConfig, [part for k, v in given.items() for part in (f"--{k}", v)])
        assert key in config_keys(TrainConfig), key


def test_one_is_no_plural(tmp_path: Path) -> None:
    """One group of three answers, two of them the same, ranked by one person."""
    same = [{"text": text} for text in ("a", "b", "a")]
    ranked = [{"annotator": "x", "ranking": [0, 1, 2]}]
    rows = [{"prompt": "p", "responses": same, "votes": ranked}]
    seen = inspected(tmp_path, rows)
    said_of(seen, "In 1 group two answers have the same text")
    said_of(seen, "There is 1 vote by 1 annotator;")
    assert "1 group, 1 different prompt in 1 prompt cluster" in as_text(seen)


def test_inspect_and_the_documents_say_the_same_of_saturated_ratings(tmp_path: Path) -> None:
    """Fifty of a hundred ratings are the highest."""
    rows = [{"prompt": f"p{i}", "responses": ["a", "b"], "ratings": [5, i / 50]} for i in range(50)]
    told = said_of(inspected(tmp_path, rows), "Ratings are saturated", "of the highest, 5")
    same = (
        "`min_gap` leaves out comparisons of nearly equal ratings, and does not mend the saturation"
    )
    assert same.replace("`min_gap`", "read.votes.min_gap") in told
    documents = Path(__file__).parents[1] / "docs" / "data.md"
    assert same in " ".join(documents.read_text(encoding="utf-8").split())


def test_names_of_models_are_tested_on_prompts_they_were_not_fitted_on(tmp_path: Path) -> None:
    """Names drawn at random win at random: fitted on the same prompts they would seem to predict
    well above one half."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(400):
        first, second = generator.choice(20, 2, replace=False)
        responses = [{"text": f"{k} {i}", "model": f"m{m}"} for k, m in enumerate((first, second))]
        rows.append({"prompt": f"question {i}", "responses": responses, "ranking": [0, 1]})
    predicts = inspected(tmp_path, rows).quality.model_predicts
    assert predicts is not None
    assert predicts.low < 0.5 < predicts.high


def test_fields_that_are_empty_or_of_several_types_are_said(tmp_path: Path) -> None:
    rows: list[Row] = [pair(i, note="" if i < 3 else "text") for i in range(10)]
    rows[9]["chosen"] = True
    seen = inspected(tmp_path, rows)
    said_of(seen, "Field 'note' is empty in 3 of 10 rows (30.0 %)")
    said_of(seen, "Field 'chosen' is not of one type: text in 9, boolean in 1 rows")
    said_of(seen, "1 of 10 rows", "wrong type", "row 10")


def test_answers_that_stand_under_several_prompts_are_said(tmp_path: Path) -> None:
    """Rows 0 and 1 share an answer under two prompts; rows 2 and 3 share theirs under one."""
    rows = [pair(0, "I can't help.", "a"), pair(1, "I can't help.", "b")]
    rows += [pair(2, "fine", "c"), pair(2, "fine", "d")]
    seen = inspected(tmp_path, rows)
    assert seen.answers.num_repeated == 2
    said_of(seen, "2 of 8 answers (25.0 %)", "stock phrases")


def test_damage_of_the_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(
        gzip.compress(b"".join(json.dumps(pair(i)).encode() + b"\n" for i in range(900)))[:-200]
    )
    seen = inspect_source(str(path), InspectConfig(data=[str(path)]))
    said_of(seen, "The file is damaged in 1 place: cut or damaged after this line")


def test_a_sample_of_whole_clusters_is_kept_of_more_than_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3,000 pairs, two to a prompt, with room for 500: what is kept are whole clusters, and the
    share, 2/3 by construction, is near."""
    monkeypatch.setattr(sample, "MAX_SAMPLED", 500)
    rows = [pair(i // 2, "yes" if i % 3 else "y") for i in range(3000)]
    estimate = inspected(tmp_path, rows).quality.longer_wins
    assert estimate is not None
    assert 100 < estimate.n <= 250
    assert estimate.low < 2 / 3 < estimate.high
    kept = sample.ClusterSample()
    for row in rows:
        prompt = (Message("user", row["prompt"]),)
        kept.add(PreferenceGroup(prompt, (Response("a"), Response("b")), (Comparison(0, 1),)))
    assert set(Counter(group.cluster for group in kept.groups).values()) == {2}


def test_tokens_and_what_the_default_limits_leave_out(tmp_path: Path) -> None:
    """One id a byte and an end-of-turn; without a config.json the limits are 1,024 tokens. Answers
    of 2,000 bytes are left out in three of ten pairs, where they had won two."""
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = [pair(i) for i in range(7)]
    rows += [pair(7, "x" * 2000), pair(8, "x" * 2000), pair(9, "yes", "x" * 2000)]
    seen = inspected(tmp_path, rows, tokenizer=str(tmp_path / "tokenizer"))
    tokens = seen.tokens
    assert tokens is not None
    assert tokens.max_response_tokens == 1024
    assert tokens.answer_tokens is not None
    assert (tokens.answer_tokens.minimum, tokens.answer_tokens.maximum) == (3, 2001)
    assert (tokens.num_answers_left_out, tokens.num_groups_left_out) == (3, 3)
    said_of(seen, "3 of 20 answers have more than 1024 tokens", "had won 66.7 %")


def test_groups_are_shown_evenly_through_the_file(tmp_path: Path) -> None:
    """Of 300 rows three groups stand near the middles of three thirds: lines 51, 151, 251."""
    rows = [pair(i) for i in range(300)]
    lines = [group.line for group in inspected(tmp_path, rows).examples]
    assert len(lines) == 3
    assert np.allclose(lines, [51, 151, 251], atol=16)
    assert [g.line for g in inspected(tmp_path, rows[:2]).examples] == [1, 2]
    assert inspected(tmp_path, rows, groups=0).examples == []


def test_answers_stand_in_order_of_rank() -> None:
    """2 beats both others, 0 and 1 are even: ranks 1, 2, 2."""
    comparisons = [Comparison(2, 0), Comparison(2, 1, probability=0.75), Comparison(0, 1, 0.5, 1.0)]
    # Means: 2 has (1 + 0.75) / 2, 0 has (0 + 0.5) / 2, 1 has (0.25 + 0.5) / 2.
    assert ranks(3, comparisons) == [(1, 2), (2, 1), (3, 0)]
    assert ranks(3, [Comparison(2, 0), Comparison(2, 1)]) == [(1, 2), (2, 0), (2, 1)]


def test_a_group_is_shown_as_people_read_it_and_obeyed_by_no_terminal() -> None:
    turns = [Message("user" if i % 2 == 0 else "assistant", f"turn {i}") for i in range(9)]
    group = PreferenceGroup(
        tuple(turns),
        (Response("\x1b[31mred\u202e", model="m"), Response("a" * 5000, rating=2.5)),
        (Comparison(1, 0, probability=0.875, tie=0.1),),
        (Vote("ann", ((1,), (0,)), strength=2), Vote("bob", ((0, 1),))),
    )
    lines = group_lines(group, 80)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "\\u001b[31mred\\u202e" in text
    assert "5 more turns" in text
    assert "turn 0" in text
    assert "turn 8" in text
    assert "turn 4" not in text
    assert "characters ...]" in text
    assert text.index("1. answer 1; beats 0 with 0.88 (ties 0.10); rated 2.5") < text.index(
        "2. ans"
    )
    assert "ann: 1 > 0 (strength 2); bob: 0 = 1" in text


def test_json_holds_every_number_and_the_groups_as_canonical_rows(tmp_path: Path) -> None:
    rows = [votes_row(i, [0, 1, 0]) for i in range(5)]
    seen = inspected(tmp_path, rows)
    values = json.loads(json.dumps(as_json(seen)))
    assert values["num_rows"] == values["num_groups"] == 5
    assert values["votes"]["agreement"].keys() == {"value", "low", "high", "n"}
    assert values["observations"] == observations(seen)
    assert values["groups"][0]["lines"] == [1]
    again = {k: v for k, v in values["groups"][0].items() if k != "lines"}
    assert again == to_canonical(seen.examples[0])


def test_inspecting_holds_neither_rows_nor_groups(tmp_path: Path) -> None:
    """8,000 pairs, 160 MB as strings: under 60 MB, of which resampling for the intervals takes 50
    whatever the size of the file; the rest are digests and the sample."""
    path = tmp_path / "big.jsonl.gz"
    with gzip.open(path, "wt", compresslevel=1) as handle:
        for i in range(8_000):
            handle.write(json.dumps(pair(i, f"{i} " + "x" * 10_000, f"{i} " + "y" * 9900)) + "\n")
    tracemalloc.start()
    seen = inspect_source(str(path), InspectConfig(data=[str(path)]))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen.num_groups == 8_000
    assert peak_bytes < 60e6


def test_a_setting_that_nothing_heeds_is_refused(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", [pair(i) for i in range(3)])
    idle = ReadSettings(votes=VoteSettings(prior=1.0))
    with pytest.raises(PalateError, match=r"read\.votes\.prior has no effect"):
        inspect_sources(InspectConfig(data=[source], read=idle))
    with pytest.raises(PalateError, match=r"read\.votes\.prior has no effect"):
        convert(ConvertConfig(data=[source], output=str(tmp_path / "o.jsonl"), read=idle))
    assert not (tmp_path / "o.jsonl").exists()
    with pytest.raises(PalateError, match="named twice"):
        InspectConfig(data=[source, source])


# The three real files: what a careful analyst would say.


def test_harmless_transcripts_as_an_analyst_sees_them(shared_data: Path) -> None:
    """Shares are worked out from the transcripts again, without our readers."""
    path = shared_data / "hh_harmless.jsonl.gz"
    seen = inspect_source(str(path), InspectConfig(data=[str(path)]))
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    longer = []
    for row in rows:
        sides = [row[name].rsplit("\n\nAssistant:", 1) for name in ("chosen", "rejected")]
        chosen, rejected = (answer.strip() for _, answer in sides)
        if sides[0][0] == sides[1][0] and chosen and rejected:
            longer.append((np.sign(len(chosen) - len(rejected)) + 1) / 2)
    assert seen.quality.longer_wins is not None
    assert seen.quality.longer_wins.value == pytest.approx(np.mean(longer))
    assert seen.quality.longer_wins.high < 0.5
    said_of(seen, "The longer answer wins 44.8 %", "shorter answers are preferred")
    said_of(seen, "80 prompts go on from the prompt of another group", "1516 clusters of 1599")
    long = said_of(seen, "Prompts are long beside their answers: 69.7 %")
    assert "saves 34.9 %" in long
    assert "1139 of 1599 prompts have several turns" in long
    said_of(seen, "All 1599 comparisons are bare")
    said_of(seen, "Not judged here", "offensive")
    assert seen.format == "hh"
    assert "1607 rows in = 1599 in groups + 8 in the ledger" in as_text(seen)


def test_human_votes_as_an_analyst_sees_them(shared_data: Path) -> None:
    path = shared_data / "pandalm_votes.json"
    seen = inspect_source(str(path), InspectConfig(data=[str(path)]))
    rows = json.loads(path.read_text(encoding="utf-8"))
    groups = read(str(path)).groups
    assert seen.votes is not None
    cast = [[row[f"annotator{i}"] for i in (1, 2, 3)] for row in rows]
    kept = [cast[group.line - 1] for group in groups]
    agree = np.mean([[a == b, a == c, b == c] for a, b, c in kept])
    assert seen.votes.agreement is not None
    assert seen.votes.agreement.value == pytest.approx(agree)
    counts = Counter(vote for votes in kept for vote in votes)
    assert seen.votes.num_ties == counts[0] == 179
    said_of(seen, "1806 votes by 3 annotators", "3 in 602")
    said_of(seen, "agree in 93.1 %", "41.7 % would by chance")
    advice = said_of(seen, "179 votes (9.9 %) are ties")
    assert advice.endswith("; objective.kind davidson or objective.kind rao-kupper models ties.")
    num_empty = sum(not row["input"] for row in rows)
    said_of(seen, f"Field 'input' is empty in {num_empty} of 637 rows (16.5 %)")
    said_of(seen, "Field 'response1' is not of one type: text in 633, boolean in 4 rows")
    said_of(
        seen, "35 of 637 rows (5.5 %) can't be used", "29 empty response", "6 wrong type", "bool"
    )
    said_of(seen, "593 of 602 groups share their prompt", "107 prompts", "read.merge_prompts")
    said_of(seen, "48 of 602 comparisons have no better side")
    assert seen.format == "annotated"
    shares: dict[str, list[float]] = {}
    for row, group in ((rows[g.line - 1], g) for g in groups):
        votes = [row[f"annotator{i}"] for i in (1, 2, 3)]
        lead = np.sign(votes.count(1) - votes.count(2))
        names = row["cmp_key"].split("_")
        assert [response.model for response in group.responses] == names
        for name, won in zip(names, (lead, -lead), strict=True):
            shares.setdefault(name, []).append((won + 1) / 2)
    assert len(shares) == 5
    for name, won in shares.items():
        found = seen.quality.models[name]
        assert (found.num_compared, found.win_share) == (len(won), pytest.approx(np.mean(won)))
    assert seen.quality.model_predicts is not None
    text = " ".join(as_text(seen).split())
    assert f"llama-7b: wins {100 * np.mean(shares['llama-7b']):.1f} %" in text
    assert f"names alone predict {100 * seen.quality.model_predicts.value:.1f} %" in text


def test_win_rates_of_nine_models_as_an_analyst_sees_them(shared_data: Path) -> None:
    path = shared_data / "alpacaeval_k9.jsonl.gz"
    seen = inspect_source(str(path), InspectConfig(data=[str(path)]))
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rates = [[r["win_rate_vs_reference"] for r in row["responses"]] for row in rows]
    assert np.mean(np.array(rates) < 0.01) == pytest.approx(0.599, abs=5e-4)
    said_of(seen, "Ratings are saturated: 59.9 % lie within 0.01 of the lowest, 0")
    clear = []
    for row in rows:
        won = [
            (np.sign(len(a["text"]) - len(b["text"])) + 1) / 2
            for a in row["responses"]
            for b in row["responses"]
            if a["win_rate_vs_reference"] - b["win_rate_vs_reference"] >= 0.1
        ]
        if won:
            clear.append(np.mean(won))
    assert seen.quality.longer_wins_where_clear is not None
    assert seen.quality.longer_wins_where_clear.value == pytest.approx(np.mean(clear))
    said_of(seen, "The longer answer wins 84.5 %", "differ by 0.1 or more")
    assert seen.quality.model_predicts_where_clear is not None
    assert seen.quality.model_predicts_where_clear.low > 0.88
    said_of(seen, "The names of the 9 models alone predict 89.6 %", "telling who wrote an answer")
    said_of(seen, "All 472 answers of gpt4_1106_preview are rated 0.5", "reference")
    said_of(seen, "Each of 4248 ratings stands alone, as from one judge")
    assert dict(seen.answers.answers_per_prompt) == {9: 472}


# Converting.


@pytest.mark.parametrize(
    ("rows", "harden", "named"),
    [
        ("votes", False, ["--harden true", "--read.votes.target majority"]),
        ("stated", False, ["--harden true"]),
        ("tied", True, ["--read.votes.target majority"]),
    ],
)
def test_soft_comparisons_alone_are_refused_for_trl_with_the_remedies(
    rows: str, harden: bool, named: list[str], tmp_path: Path
) -> None:
    """Votes make comparisons that a majority would make certain; stated ones stand; of one vote
    for each side and a tie none is the most probable."""
    row: Row = {"prompt": "p", "responses": ["a", "b"]}
    if rows == "stated":
        row["comparisons"] = [{"better": 0, "worse": 1, "probability": 0.8}]
    else:
        choices = [0, 0, 1] if rows == "votes" else [0, 1, "tie"]
        row["votes"] = [{"annotator": f"x{i}", "choice": c} for i, c in enumerate(choices)]
    source = write_rows(tmp_path / "soft.jsonl", [row])
    with pytest.raises(PalateError, match="nothing to write, since trl holds certain") as caught:
        converted(tmp_path, source, to="trl", harden=harden)
    said = str(caught.value).splitlines()[0]
    remedies = ("--harden true", "--read.votes.target majority")
    assert [remedy for remedy in remedies if remedy in said] == named


def test_settings_of_votes_that_stand_beside_name_the_recount(tmp_path: Path) -> None:
    """Canonical rows that were made of votes state their comparisons: what is stated stands."""
    source = write_rows(tmp_path / "votes.jsonl", [votes_row(i, [1, 1, 0]) for i in range(3)])
    made = converted(tmp_path, source).output
    majority = ReadSettings(votes=VoteSettings(target="majority"))
    message = r"read\.votes\.target majority has no effect: .* set read\.votes\.recount true"
    with pytest.raises(PalateError, match=message):
        read(made, majority)
    with pytest.raises(PalateError, match=message):
        inspect_sources(InspectConfig(data=[made], read=majority))
    with pytest.raises(PalateError, match=message):
        converted(tmp_path, made, "again.jsonl", read=majority)
    recounted = ReadSettings(votes=VoteSettings(target="majority", recount=True))
    assert {c.probability for g in read(made, recounted).groups for c in g.comparisons} == {1.0}


def converted(
    folder: Path, source: str, output: str = "out.jsonl", **options: Any
) -> ConvertResult:
    return convert(ConvertConfig(data=[source], output=str(folder / output), **options))


def lines_of(path: Path) -> list[Row]:
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    return [json.loads(line) for line in data.decode().splitlines()]  # also those of Unicode


def write_groups(path: Path, groups: Sequence[PreferenceGroup]) -> str:
    return write_rows(path, [to_canonical(group) for group in groups])


@settings(max_examples=40)
@given(st.lists(any_groups(), min_size=1, max_size=4), st.sampled_from([".jsonl", ".jsonl.gz"]))
def test_canonical_to_canonical_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, groups: list[PreferenceGroup], suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("convert")
    source = write_groups(folder / "in.jsonl", groups)
    result = converted(folder, source, f"out{suffix}")
    again = read(str(folder / f"out{suffix}")).groups
    assert [said(group) for group in again] == [said(group) for group in groups]
    assert (result.num_written, result.ledger.entries) == (len(groups), [])
    converted(folder, str(folder / f"out{suffix}"), "twice.jsonl")
    assert lines_of(folder / "twice.jsonl") == lines_of(folder / f"out{suffix}")


@settings(max_examples=40)
@given(st.lists(any_groups(), min_size=1, max_size=4))
def test_a_table_gives_the_groups_back(
    tmp_path_factory: pytest.TempPathFactory, groups: list[PreferenceGroup]
) -> None:
    """Further fields of messages (tool calls) have a form of their own in a table, so they are left
    out here; see the test below."""
    folder = tmp_path_factory.mktemp("convert")
    groups = [
        replace(g, prompt=tuple(m for m in g.prompt if not m.extra), tools=g.tools) for g in groups
    ]
    source = write_groups(folder / "in.jsonl", groups)
    converted(folder, source, "out.parquet")
    again = read(str(folder / "out.parquet")).groups
    assert [said(group) for group in again] == [said(group) for group in groups]


def test_tool_calls_of_one_form_go_into_a_table_and_of_two_forms_are_refused(
    tmp_path: Path,
) -> None:
    def group(arguments: Row) -> PreferenceGroup:
        call = Message("assistant", "", {"tool_calls": [{"name": "f", "arguments": arguments}]})
        prompt = (Message("user", "q"), call, Message("tool", "42", {"name": "f"}))
        return PreferenceGroup(prompt, (Response("a"), Response("b")), (Comparison(0, 1),))

    alike = [group({"city": "Rome"}), group({"city": "Oslo"})]
    converted(tmp_path, write_groups(tmp_path / "a.jsonl", alike), "a.parquet")
    assert [said(g) for g in read(str(tmp_path / "a.parquet")).groups] == alike
    mixed = write_groups(tmp_path / "b.jsonl", [*alike, group({"n": 3})])
    with pytest.raises(PalateError, match=r"can't keep apart; write \.jsonl"):
        converted(tmp_path, mixed, "b.parquet")
    assert not (tmp_path / "b.parquet").exists()


def test_every_format_becomes_canonical_with_the_same_groups(tmp_path: Path) -> None:
    """Votes, ratings, rankings, transcripts: read from the source and from what was written."""
    hh = "\n\nHuman: q\n\nAssistant:"
    sources: list[list[Row]] = [
        [pair(i, margin=0.5, weight=2.0) for i in range(3)],
        [votes_row(i, [0, 1, "tie"]) for i in range(3)],
        [{"chosen": f"{hh} a", "rejected": f"{hh} b"}],
        [{"prompt": "q", "responses": [{"text": t, "score": s} for s, t in enumerate("abc")]}],
        [{"prompt": "q", "response1": "a", "response2": "b", "annotator1": 1, "annotator2": 0}],
    ]
    for number, rows in enumerate(sources):
        source = write_rows(tmp_path / f"{number}.jsonl", rows)
        converted(tmp_path, source, f"out{number}.jsonl")
        before, after = read(source).groups, read(str(tmp_path / f"out{number}.jsonl")).groups
        assert [said(g) for g in after] == [said(g) for g in before]


def soft_groups() -> list[PreferenceGroup]:
    """Certain; more probably the first; evenly split; mostly a tie; all with two answers."""
    labels = [(1.0, 0.0), (0.75, 0.1), (0.5, 0.0), (0.9, 0.6)]
    return [
        PreferenceGroup(
            (Message("user", f"q{i}"),),
            (Response("a", rating=3.0), Response("b")),
            (Comparison(0, 1, probability=p, tie=t),),
            (Vote("x", ((0,), (1,))),) if i == 1 else (),
        )
        for i, (p, t) in enumerate(labels)
    ]


def test_what_trl_can_not_say_is_counted_and_listed_never_hardened(tmp_path: Path) -> None:
    source = write_groups(tmp_path / "in.jsonl", soft_groups())
    result = converted(tmp_path, source, to="trl")
    assert lines_of(tmp_path / "out.jsonl") == [
        {
            "prompt": [{"role": "user", "content": "q0"}],
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "b"}],
        }
    ]
    assert (result.num_rows_kept, result.ledger.num_rows_left_out) == (1, 3)
    assert result.ledger.by_reason() == {
        "response: rating lost": 4,
        "comparison: not certain": 3,
        "row: no certain comparison": 3,
        "vote: votes lost": 1,
    }
    entries = Ledger.load_entries(tmp_path / "out.jsonl.ledger.jsonl")
    assert entries == result.ledger.entries
    assert {e.line for e in entries if e.reason == "not certain"} == {2, 3, 4}


def test_hardening_takes_the_most_probable_side_and_says_so(tmp_path: Path) -> None:
    """Row 2: first 0.9·0.75 = 0.675, tie 0.1, second 0.225. Row 4: first 0.4·0.9 = 0.36 against a
    tie of 0.6: it stays out, as the even one of row 3 does."""
    source = write_groups(tmp_path / "in.jsonl", soft_groups())
    result = converted(tmp_path, source, to="trl", harden=True)
    prompts = [row["prompt"][0]["content"] for row in lines_of(tmp_path / "out.jsonl")]
    assert prompts == ["q0", "q1"]
    (entry,) = [e for e in result.ledger.entries if e.reason == "hardened"]
    assert (entry.line, entry.kind) == (2, "comparison")
    assert "probability 0.75, tie 0.1" in entry.detail
    with pytest.raises(PalateError, match="harden has no effect"):
        ConvertConfig(data=[source], output="x.jsonl", harden=True)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_rows_for_trl_have_a_margin_all_or_none(tmp_path: Path, suffix: str) -> None:
    some = write_rows(tmp_path / "in.jsonl", [pair(0, margin=0.5), pair(1), pair(2, margin=0)])
    converted(tmp_path, some, f"some{suffix}", to="trl")
    assert [row["margin"] for row in lines_of(tmp_path / f"some{suffix}")] == [0.5, 0, 0]
    none = write_rows(tmp_path / "in.jsonl", [pair(0), pair(1)])
    converted(tmp_path, none, f"none{suffix}", to="trl")
    assert not any("margin" in row for row in lines_of(tmp_path / f"none{suffix}"))


def test_rows_of_trl_read_as_the_comparisons_they_came_from(tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c"], "ranking": [2, 0, 1]}
    converted(tmp_path, write_rows(tmp_path / "in.jsonl", [row]), to="trl")
    groups = read(str(tmp_path / "out.jsonl")).groups
    pairs = {(g.responses[0].text, g.responses[1].text) for g in groups}
    assert pairs == {("c", "a"), ("c", "b"), ("a", "b")}


def test_several_files_and_merged_prompts_are_written_in_order(tmp_path: Path) -> None:
    first = write_rows(tmp_path / "a.jsonl", [pair(0, "x", "y"), pair(0, "z", "y"), {"bad": 1}])
    second = write_rows(tmp_path / "b.jsonl", [votes_row(5, [0])])
    merged = ReadSettings(merge_prompts=True)
    result = convert(
        ConvertConfig(data=[first, second], output=str(tmp_path / "o.jsonl"), read=merged)
    )
    rows = lines_of(tmp_path / "o.jsonl")
    assert [[r["text"] for r in row["responses"]] for row in rows] == [
        ["x", "y", "z"],
        ["left", "right"],
    ]
    assert (result.num_rows_kept, result.num_groups, result.ledger.num_rows_left_out) == (3, 2, 1)


def test_values_without_a_form_in_json_are_written_as_text_and_counted(tmp_path: Path) -> None:
    days = pyarrow.array([date(2020, 2, 3)])
    table = pyarrow.table({**{k: [v] for k, v in pair(0).items()}, "on": days})
    pyarrow.parquet.write_table(table, tmp_path / "in.parquet")
    result = converted(tmp_path, str(tmp_path / "in.parquet"))
    assert lines_of(tmp_path / "out.jsonl")[0]["meta"] == {"on": "2020-02-03"}
    assert result.num_as_text == 1


def test_an_output_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    bad = write_rows(tmp_path / "bad.jsonl", [{**pair(0), "chosen": ""}])
    with pytest.raises(PalateError, match="nothing to write"):
        converted(tmp_path, bad)
    with pytest.raises(PalateError, match="no such file"):
        converted(tmp_path, str(tmp_path / "none.jsonl"))
    assert sorted(os.listdir(tmp_path)) == ["bad.jsonl"]
    good = write_rows(tmp_path / "good.jsonl", [pair(0)])
    converted(tmp_path, good, "deep/er/out.jsonl")
    with pytest.raises(PalateError, match="exists already"):
        converted(tmp_path, good, "deep/er/out.jsonl")
    for output, to in (("o.csv", "auto"), ("o.jsonl", "parquet"), ("o.parquet", "trl")):
        with pytest.raises(PalateError, match=r"must end in|are written as"):
            converted(tmp_path, good, output, to=to)


def test_packed_output_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [pair(i) for i in range(50)])
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        converted(tmp_path, source, name)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


@pytest.mark.parametrize("output", ["out.jsonl", "out.jsonl.gz"])
def test_converting_holds_one_group_at_a_time(tmp_path: Path, output: str) -> None:
    """40 MB of rows under 4 MB of memory."""
    path = tmp_path / "big.jsonl.gz"
    with gzip.open(path, "wt", compresslevel=1) as handle:
        for i in range(10_000):
            handle.write(json.dumps(pair(i, f"{i} " + "x" * 4000)) + "\n")
    tracemalloc.start()
    result = converted(tmp_path, str(path), output, to="trl")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.num_written == 10_000
    assert peak_bytes < 4e6


# The command line.


def test_both_verbs_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_rows(tmp_path / "a.jsonl", [pair(i) for i in range(4)])
    second = write_rows(tmp_path / "b.json", [votes_row(i, [0, 1]) for i in range(4)])
    assert main(["data", "inspect", first, second, "--groups", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["sources"]
    assert [source["format"] for source in found] == ["pairs", "canonical"]
    assert main(["data", "inspect", "--groups=1", first, "--read.format", "pairs"]) == 0
    out = capsys.readouterr().out
    assert "pairs: named in the settings" in out
    assert "group 1 of 1 shown" in out
    output = str(tmp_path / "o.jsonl.gz")
    assert main(["data", "convert", first, "--output", output, "--to", "trl"]) == 0
    out = capsys.readouterr().out
    assert f"4 rows of 4 groups written to {output}" in out
    assert f"{output}.ledger.jsonl" in out
    other = str(tmp_path / "p.parquet")
    assert main(["data", "convert", first, "--output", other, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_written"] == 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspect"], 2, "missing: data"),
        (["inspect", "none.jsonl"], 1, "no such file"),
        (["inspect", "a.jsonl", "--tokeniser", "x"], 2, "did you mean 'tokenizer'?"),
        (["convert", "a.jsonl"], 2, "missing: output"),
        (["convert", "a.jsonl", "--output", "b.jsonl", "--to", "csv"], 2, "to"),
    ],
)
def test_wrong_usage_names_what_is_wrong(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main(["data", *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_strength_that_nothing_uses_is_said_to_be_there(tmp_path: Path) -> None:
    two = {"response1": "yes", "response2": "no"}
    rows = [{"prompt": f"q{i}", **two, "overall_preference": 2} for i in range(10)]
    said_of(inspected(tmp_path, rows), "the strength in overall_preference is used by read.votes")
    seen = inspected(tmp_path, [pair(i) for i in range(10)])
    said_of(seen, "no strength of preference")

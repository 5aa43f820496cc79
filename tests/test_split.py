"""Splits by prompt cluster: nothing of a cluster on both sides, the same split everywhere."""

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.errors import PalateError
from palate.preferences import (
    Comparison,
    Message,
    PreferenceGroup,
    Response,
    Split,
    fold_of,
    prompt_cluster,
    read,
    split_groups,
)

SHARES = {"train": 0.7, "validation": 0.2, "test": 0.1}


def group(*turns: str, system: str = "", line: int = 0) -> PreferenceGroup:
    """A conversation whose turns alternate, the user's first."""
    prompt = [Message("system", system)] if system else []
    prompt += [
        Message("assistant" if i % 2 else "user", content) for i, content in enumerate(turns)
    ]
    return PreferenceGroup(
        tuple(prompt), (Response("a"), Response("b")), (Comparison(0, 1),), line=line
    )


def groups(count: int) -> list[PreferenceGroup]:
    return [group(f"question {i}", line=i) for i in range(count)]


def part_of(split: Split) -> dict[int, str]:
    return {g.line: name for name, members in split.parts.items() for g in members}


def test_a_conversation_and_its_continuation_are_one_cluster() -> None:
    opening = prompt_cluster(group("Why?").prompt)
    assert prompt_cluster(group("Why?", "Because.", "But why?").prompt) == opening
    assert prompt_cluster(group("  wHY? \n").prompt) == opening
    assert prompt_cluster(group("Why?", system="Be brief.").prompt) == opening
    assert prompt_cluster(group("Why not?").prompt) != opening
    assert prompt_cluster(group("Hello", "Hi", "Why?").prompt) != opening


@given(
    st.lists(st.integers(0, 99), max_size=40),
    st.permutations([("train", 0.5), ("validation", 0.3), ("test", 0.2)]),
    st.text(max_size=5).filter(str.isprintable),
)
def test_no_cluster_straddles_a_split_and_no_group_is_lost(
    further: list[int], shares: list[tuple[str, float]], salt: str
) -> None:
    """100 openings, some of them again, every second one with a conversation after it."""
    openings = [*range(100), *further]
    all_groups = [
        group(f"Question {opening}", *["so?", "and?"] * (i % 2), line=i)
        for i, opening in enumerate(openings)
    ]
    split = split_groups(all_groups, dict(shares), salt)
    assert sorted(part_of(split)) == list(range(len(openings)))
    where = [{prompt_cluster(g.prompt) for g in members} for members in split.parts.values()]
    assert sum(map(len, where)) == len(set().union(*where)) == 100


def test_neither_the_order_of_rows_nor_other_rows_move_a_group() -> None:
    all_groups = groups(300)
    whole = part_of(split_groups(all_groups, SHARES))
    shuffled = random.Random(0).sample(all_groups, len(all_groups))
    assert part_of(split_groups(shuffled, SHARES)) == whole
    half = part_of(split_groups(all_groups[:150], SHARES))
    assert half == {line: whole[line] for line in range(150)}


def test_another_process_with_another_hash_seed_makes_the_same_split() -> None:
    script = (
        "import json\n"
        "from tests.test_split import SHARES, groups, part_of\n"
        "from palate.preferences import split_groups\n"
        "print(json.dumps(part_of(split_groups(groups(100), SHARES, 'pepper'))))\n"
    )
    here = part_of(split_groups(groups(100), SHARES, "pepper"))
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert {int(k): v for k, v in json.loads(done.stdout).items()} == here


def test_a_known_cluster_falls_where_it_always_has() -> None:
    """Stable across versions too: saved manifests name these hashes. SHA-256 of "why?" begins
    with the first value, and SHA-256 of salt, zero byte, cluster, read as a fraction of 2^64, is
    the position that the folds divide."""
    assert prompt_cluster(group("Why?").prompt) == "f5b2b98bf44b6088"
    assert fold_of(group("Why?"), 1000, "palate") == 937


def test_another_salt_makes_another_split() -> None:
    first = part_of(split_groups(groups(300), SHARES, "palate"))
    second = part_of(split_groups(groups(300), SHARES, "pepper"))
    moved = sum(first[line] != second[line] for line in first)
    expected = 300 * (1 - sum(share**2 for share in SHARES.values()))
    assert abs(moved - expected) < 40


def test_parts_have_their_shares_within_chance() -> None:
    """2,000 clusters: a share p has standard deviation sqrt(p (1 - p) / 2000), at most 0.011."""
    split = split_groups(groups(2000), SHARES)
    for name, share in SHARES.items():
        deviation = math.sqrt(share * (1 - share) / 2000)
        assert abs(len(split.parts[name]) / 2000 - share) < 4 * deviation


def test_folds_divide_the_clusters_and_each_is_held_out_once() -> None:
    folds = [fold_of(g, 5, "palate") for g in groups(1000)]
    assert set(folds) == set(range(5))
    assert all(abs(folds.count(k) - 200) < 4 * math.sqrt(1000 * 0.2 * 0.8) for k in range(5))
    assert fold_of(group("Question 1", "so?", "and?"), 5, "s") == fold_of(
        group("question  1"), 5, "s"
    )


def test_the_manifest_says_where_every_cluster_went() -> None:
    all_groups = [*groups(50), group("question 7", "so?", "and?", line=99)]
    split = split_groups(all_groups, SHARES, "salt")
    manifest = json.loads(json.dumps(split.manifest))
    assert (manifest["salt"], manifest["shares"]) == ("salt", SHARES)
    assert sum(manifest["num_groups"].values()) == 51
    for name, members in split.parts.items():
        assert manifest["num_groups"][name] == len(members)
        assert set(manifest["clusters"][name]) == {prompt_cluster(g.prompt) for g in members}
    assert sum(map(len, manifest["clusters"].values())) == 50


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"train": 0.8, "test": 0.1}, "sum to 1"),
        ({"train": 1.2, "test": -0.2}, "0 or more"),
        ({"train": math.nan, "test": 0.1}, "nan"),
        ({}, "sum to 1"),
        ({"train": 0.999, "test": 0.001}, "the test part is empty: 3 groups in 3 prompt clusters"),
    ],
)
def test_shares_that_make_no_split_are_refused_with_their_values(
    shares: Mapping[str, float], said: str
) -> None:
    with pytest.raises(PalateError) as refusal:
        split_groups(groups(3), shares)
    assert said in str(refusal.value)


def test_a_share_of_nothing_may_stay_empty() -> None:
    split = split_groups(groups(3), {"train": 1.0, "test": 0.0})
    assert (len(split.parts["train"]), split.parts["test"]) == (3, ())


def test_prompts_that_extend_another_fall_with_it_in_real_transcripts(shared_data: Path) -> None:
    """80 of the 1,607 prompts are the start of another one, and no two prompts are equal: to
    divide exact prompts would put many of them on both sides."""
    all_groups = read(str(shared_data / "hh_harmless.jsonl.gz")).groups
    said = [tuple((m.role, m.content) for m in g.prompt) for g in all_groups]
    by_prompt = dict(zip(said, all_groups, strict=True))
    assert len(by_prompt) == len(all_groups)
    extensions = [
        (by_prompt[turns[:end]], g)
        for turns, g in zip(said, all_groups, strict=True)
        for end in range(1, len(turns))
        if turns[:end] in by_prompt
    ]
    assert len({short.line for short, _ in extensions}) == 80
    for salt in ("palate", "pepper"):
        parts = part_of(split_groups(all_groups, SHARES, salt))
        assert all(parts[short.line] == parts[long.line] for short, long in extensions)
        assert all(fold_of(short, 5, salt) == fold_of(long, 5, salt) for short, long in extensions)

"""Near-duplicate texts, and the split that keeps them together."""

import builtins
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from palate.errors import PalateError
from palate.pipeline.config import SplitSettings, TrainConfig
from palate.pipeline.prepare import divide
from palate.preferences import (
    Comparison,
    Message,
    PreferenceGroup,
    Response,
    prompt_cluster,
    read,
    split_groups,
)
from palate.preferences.split import join_near_duplicates, keys_of, opening_of
from palate.text.near import MAX_MISS, near_clusters, near_pairs, similarity

WORDS = [f"{a}{b}" for a in ("ba", "de", "fi", "go", "hu", "ka") for b in ("lo", "mi", "nu", "pe")]
SHARES = {"train": 0.5, "test": 0.5}


def group(text: str, line: int = 0) -> PreferenceGroup:
    return PreferenceGroup(
        (Message("user", text),), (Response("a"), Response("b")), (Comparison(0, 1),), line=line
    )


def sentence(random_: random.Random, num_words: int) -> list[str]:
    return [random_.choice(WORDS) + str(random_.randrange(100)) for _ in range(num_words)]


def paraphrased(num: int, num_words: int = 30) -> list[tuple[str, str]]:
    """Texts of 30 words with one that changes the last word: 26 shingles of five words each, one of
    them changed: J = 25 / 27 = 0.926."""
    random_ = random.Random(0)
    pairs = []
    for _ in range(num):
        words = sentence(random_, num_words)
        pairs.append((" ".join(words), " ".join([*words[:-1], "otherwise"])))
    return pairs


def brute_force(texts: Sequence[str], threshold: float) -> set[tuple[int, int]]:
    return {
        (second, first)
        for first, second in itertools.combinations(range(len(texts)), 2)
        if similarity(texts[first], texts[second]) >= threshold
    }


def test_similarity_counts_shared_shingles() -> None:
    """Ten words hold six shingles of five. Another last word changes one: 5 shared of 7. Another
    word in the middle (the fifth) changes five of the six: 1 shared of 11."""
    words = "one two three four five six seven eight nine ten".split()
    text = " ".join(words)
    assert similarity(text, " ".join([*words[:-1], "x"])) == 5 / 7
    assert similarity(text, " ".join([*words[:4], "x", *words[5:]])) == 1 / 11
    assert similarity(text, text.upper() + "!") == 1
    assert similarity(text, " ".join(reversed(words))) == 0


def test_short_texts_are_compared_by_characters() -> None:
    """ "why fly?" has four runs of five characters, "why fly" three of them."""
    assert similarity("Why fly?", "why  fly") == 3 / 4
    assert similarity("Why", "why") == 1
    assert similarity("Why", "How") == 0
    assert similarity("👍", "👎") == 0
    # Seven words against eight: by characters, though the longer has word shingles.
    seven = "a bird flies over the hills today"
    assert 0.8 < similarity(seven, seven + " so") < 1


def test_scripts_without_spaces_have_words_too() -> None:
    """A character is a word: 12 characters hold 8 shingles, another last one leaves 7 of 9."""
    text = "鳥はどうやって空を飛ぶか"
    assert len(text) == 12
    assert similarity(text, text[:-1] + "の") == 7 / 9


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_the_pairs_found_are_those_that_comparing_all_finds(threshold: float) -> None:
    """Texts of 5 to 40 words and versions of them with up to six words changed; the hash may miss
    a pair at the threshold with probability `MAX_MISS`, so one of a few hundred at most."""
    random_ = random.Random(1)
    texts = []
    for _ in range(60):
        words = sentence(random_, random_.choice([5, 7, 8, 9, 12, 20, 40]))
        texts.append(" ".join(words))
        for changed in range(random_.randrange(4)):
            places = set(random_.sample(range(len(words)), min(changed, len(words))))
            texts.append(" ".join("x" if i in places else w for i, w in enumerate(words)))
    found = {(pair.first, pair.second) for pair in near_pairs(texts, threshold)}
    expected = brute_force(texts, threshold)
    assert len(expected) > 20
    assert found <= expected
    assert len(expected - found) <= max(1, round(4 * MAX_MISS * len(expected)))


def test_pairs_against_other_texts_name_both_sides() -> None:
    ours, theirs = zip(*paraphrased(20), strict=True)
    pairs = list(near_pairs(ours, 0.9, against=theirs[::-1]))
    assert {(pair.first, pair.second) for pair in pairs} == {(i, 19 - i) for i in range(20)}
    assert all(abs(pair.similarity - 25 / 27) < 1e-12 for pair in pairs)
    assert list(near_pairs(ours, 0.95, against=theirs)) == []


def test_chains_join_and_order_does_not_matter() -> None:
    """a-b and b-c are alike at 0.8, a-c is not: 16 shingles; each end changes one, so a-b share 15
    of 17 (0.88), and a-c 14 of 18 (0.78)."""
    words = sentence(random.Random(2), 20)
    texts = [
        " ".join(words),
        " ".join(["x", *words[1:]]),
        " ".join(["x", *words[1:-1], "y"]),
        "something else altogether that is nothing like the other three of them",
    ]
    assert similarity(texts[0], texts[1]) == 15 / 17
    assert similarity(texts[0], texts[2]) == 14 / 18
    for order in itertools.permutations(range(4)):
        lowest = near_clusters([texts[i] for i in order], 0.8)
        number = dict(zip(order, lowest, strict=True))
        assert number[0] == number[1] == number[2] != number[3]
        assert number[0] == min(order.index(i) for i in (0, 1, 2))


@pytest.mark.parametrize("threshold", [0.0, 0.2, 1.5, float("nan")])
def test_thresholds_that_mean_nothing_are_refused(threshold: float) -> None:
    with pytest.raises(PalateError, match=r"must be in \[0.3, 1\]"):
        near_clusters(["a"], threshold)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a silent difference: neither for texts nor for a split."""
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("datasketch"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PalateError, match=r"install palate\[near\]"):
        list(near_pairs(["a", "b"], 0.8))
    settings = SplitSettings(near_duplicates=0.8)
    with pytest.raises(PalateError, match=r"install palate\[near\]"):
        divide([group("a"), group("b")], settings)
    assert divide([group(f"question {i}") for i in range(100)], SplitSettings())[0]["train"]


def overlap(parts: dict[str, Sequence[PreferenceGroup]], threshold: float) -> int:
    train, test = ([opening_of(g.prompt) for g in parts[name]] for name in ("train", "test"))
    return len({pair.first for pair in near_pairs(test, threshold, against=train)})


@pytest.mark.parametrize("folds", [{"test_share": 0.5}, {"num_folds": 4, "fold": 1}])
def test_paraphrased_prompts_fall_on_one_side(folds: dict[str, Any]) -> None:
    """200 prompts, each with a paraphrase: exact clusters put many pairs on two sides (of a pair,
    2 * 0.5 * 0.5 of the time), joined clusters none, in any order of rows."""
    groups = [group(text, i) for i, text in enumerate(itertools.chain(*paraphrased(200)))]
    plain = SplitSettings(validation_share=0.0, **folds)
    near = replace(plain, near_duplicates=0.8)
    assert overlap(divide(groups, plain)[0], 0.8) > 30
    parts, manifest = divide(groups, near)
    assert overlap(parts, 0.8) == 0
    assert len(parts["train"]) + len(parts["test"]) == 400
    assert min(len(parts["train"]), len(parts["test"])) > 60
    joined = json.loads(json.dumps(manifest))["near_duplicates"]
    assert joined["threshold"] == 0.8
    assert len(joined["joined"]) == 200
    assert all(key == min(members) for key, members in joined["joined"].items())
    again, _ = divide(random.Random(3).sample(groups, len(groups)), near)
    for name in ("train", "test"):
        assert {g.line for g in again[name]} == {g.line for g in parts[name]}
        assert {prompt_cluster(g.prompt) for g in parts[name]} == set(manifest["clusters"][name])


def test_prompts_that_stand_alone_stay_where_they_were() -> None:
    alone = [group(" ".join(sentence(random.Random(i), 12)), i) for i in range(100)]
    pair = [group(text, 100 + i) for i, text in enumerate(paraphrased(1)[0])]
    keys = keys_of(join_near_duplicates([*alone, *pair], 0.8))
    assert set(keys) == {prompt_cluster(g.prompt) for g in pair}
    before = split_groups(alone, SHARES).parts["train"]
    after = split_groups([*alone, *pair], SHARES, keys=keys).parts["train"]
    assert {g.line for g in before} == {g.line for g in after if g.line < 100}


def test_a_cluster_that_swallows_the_data_is_told() -> None:
    """20 of 100 prompts share a template of 30 words and differ in the last: one cluster."""
    words = sentence(random.Random(0), 29)
    groups = [group(" ".join([*words, f"x{i}"]), i) for i in range(20)]
    groups += [group(" ".join(sentence(random.Random(i), 30)), i) for i in range(100, 180)]
    with pytest.warns(UserWarning, match="joins 20 of 100 prompts into one cluster"):
        divide(groups, SplitSettings(near_duplicates=0.8))


def test_settings_that_can_not_hold_are_refused() -> None:
    for value in (-0.1, 0.1, 1.2, float("nan")):
        with pytest.raises(PalateError, match=r"split\.near_duplicates"):
            SplitSettings(near_duplicates=value)
    with pytest.raises(PalateError, match="set store memory, or leave it out"):
        TrainConfig(
            model="m", data="d.jsonl", store="disk", split=SplitSettings(near_duplicates=0.8)
        )


def test_real_prompts_that_are_one_in_other_words(shared_data: Path) -> None:
    """Four pairs of the harmless prompts' 1,516 first turns are alike at 0.8, by comparing every
    text with every other, which takes longer than a test may: two differ in a mark or capital."""
    groups = read(str(shared_data / "hh_harmless.jsonl.gz")).groups
    texts = sorted({opening_of(g.prompt) for g in groups})
    pairs = list(near_pairs(texts, 0.8))
    assert len(pairs) == 4
    assert all(
        pair.similarity == similarity(texts[pair.first], texts[pair.second]) for pair in pairs
    )
    joined = join_near_duplicates(groups, 0.8)
    assert sorted(map(len, joined.values())) == [2, 2, 2, 2]

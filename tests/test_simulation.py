"""Simulated worlds: what is planted is there, what is not is not, and the truth is on record."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from palate.errors import PalateError
from palate.preferences import prompt_cluster, read, to_canonical
from palate.simulation import (
    LEANINGS,
    MODELS,
    TWINS,
    WORLDS,
    LabelSettings,
    Scene,
    SceneSettings,
    Simulated,
    label,
    labels_of,
    scene,
    world,
)
from palate.simulation.answers import write_answers
from palate.simulation.prompts import MAX_PROMPTS
from palate.simulation.scenes import NO_BELIEF, RIGHT_BELIEF, WRONG_BELIEF
from palate.simulation.topics import TOPICS
from palate.statistics.comparison_model import fit_comparison_model
from palate.text import STYLE_FEATURES, normalise
from palate.text.phrases import BANKS


@pytest.fixture(scope="module")
def written() -> Scene:
    return scene(0, 6000)


def features_of(made: Scene, answer_C: np.ndarray) -> np.ndarray:
    """Utility and the leanings of some answers: C x (1 + L)."""
    columns = [made.utility_N, *(made.leanings[name] for name in LEANINGS)]
    return np.stack(columns, axis=1)[answer_C]


def recovered(simulated: Simulated) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of utility and the leanings from the votes, with standard errors from the
    curvature of the likelihood, sum p (1 - p) x x'."""
    better_C, worse_C, _ = simulated.votes.comparisons(simulated.scene)
    difference = features_of(simulated.scene, better_C) - features_of(simulated.scene, worse_C)
    found = fit_comparison_model(difference, l2=0.0)
    probability = 1 / (1 + np.exp(-difference @ found))
    curvature = (difference * (probability * (1 - probability))[:, None]).T @ difference
    return found, np.sqrt(np.diag(np.linalg.inv(curvature)))


def share_won(simulated: Simulated, name: str) -> float:
    """Of the comparisons whose answers differ in a feature, the share won by the one with more."""
    better_C, worse_C, _ = simulated.votes.comparisons(simulated.scene)
    values = simulated.scene.features[name]
    differs = values[better_C] != values[worse_C]
    return float((values[better_C] > values[worse_C])[differs].mean())


def test_there_are_enough_topics_and_each_fact_has_a_wrong_version_as_long() -> None:
    assert len(TOPICS) >= 12
    assert sum(len(topic.questions) for topic in TOPICS) >= 100
    assert MAX_PROMPTS > 50_000
    shown = ("hedge", "absolute", "closing", "praise", "apology", "question", "list", "bold")
    for topic in TOPICS:
        assert len(set(topic.facts)) == 12
        for true, wrong in topic.facts:
            assert true != wrong
            assert len(true.split()) == len(wrong.split())
            assert not any(STYLE_FEATURES[name](true + " " + wrong) for name in shown)


def test_the_same_seed_gives_the_same_texts_and_votes_and_another_seed_others() -> None:
    first, again, other = scene(3, 200), scene(3, 200), scene(4, 200)
    assert first.prompts == again.prompts and first.texts == again.texts
    assert first.texts != other.texts
    votes, votes_again = label(first), label(again)
    assert votes.groups == votes_again.groups
    assert votes.groups != label(first, LabelSettings(seed=1)).groups


def test_answers_of_one_sentence_each_are_different_facts() -> None:
    """A topic has 12 facts: 12 answers of one right fact and nothing else use each of them once."""
    none, one = np.zeros(12, int), np.ones(12, int)
    names = ("errors", "fillers", "closing", "hedge", "confidence", "markdown", "agreement")
    features = {"right": one, **dict.fromkeys(names, none)}
    for seed in range(20):
        made = write_answers(seed, none, none, features, SceneSettings())
        assert set(made.texts) == {right for right, _ in TOPICS[0].facts}


def test_prompts_are_distinct_and_no_group_has_the_same_answer_twice(written: Scene) -> None:
    assert len({normalise(prompt) for prompt in written.prompts}) == 6000
    sides = [[normalise(written.texts[n]) for n in group] for group in written.answer_GK]
    assert all(first != second for first, second in sides)


def test_features_are_in_a_third_of_the_answers_and_independent(written: Scene) -> None:
    """Correlations of 12,000 independent answers have a standard error of 0.009; 4 of them here.

    Agreement needs a stated belief, as all others don't, so its share is 0.7 / 2.
    """
    names = ["closing", "hedge", "confidence", "markdown", "agreement"]
    columns = [written.features[name] for name in names] + [written.features["fillers"] > 0]
    for values in columns:
        assert values.mean() == pytest.approx(0.35, abs=0.02)
    table = np.corrcoef(np.stack([*columns, written.utility_N]).astype(float))
    assert np.abs(table - np.eye(len(table))).max() < 4 / math.sqrt(12_000)


def test_features_are_in_the_texts_where_the_table_says(written: Scene) -> None:
    for n in range(2000):
        text = written.texts[n]
        for kind in ("closing", "hedge", "confidence", "agreement"):
            found = any(phrase in text for phrase in BANKS[kind].plant)
            assert found == bool(written.features[kind][n])
        fillers = sum(text.replace("**", "").count(phrase) for phrase in BANKS["filler"].plant)
        assert fillers == written.features["fillers"][n]
        assert bool(written.features["markdown"][n]) == ("**" in text)
        facts = TOPICS[written.topic_P[written.prompt_N[n]]].facts
        plain = text.replace("**", "")
        assert sum(true in plain for true, _ in facts) == written.features["right"][n]
        assert sum(wrong in plain for _, wrong in facts) == written.features["errors"][n]
        assert written.features["words"][n] == len(text.split())


def test_the_utility_is_half_a_logit_a_fact_and_margins_spread_by_two(written: Scene) -> None:
    right, errors = written.features["right"], written.features["errors"]
    assert np.array_equal(written.utility_N, 0.5 * (right - errors))
    margin = written.utility_N[written.answer_GK]
    assert (margin[:, 0] - margin[:, 1]).std() == pytest.approx(2.0, abs=0.2)
    assert abs(np.corrcoef(written.utility_N, written.features["words"])[0, 1]) < 0.04


def test_beliefs_stand_in_the_prompts_mostly_wrong(written: Scene) -> None:
    for p in range(500):
        facts = TOPICS[written.topic_P[p]].facts
        says_wrong = any(wrong in written.prompts[p] for _, wrong in facts)
        says_right = any(true in written.prompts[p] for true, _ in facts)
        assert says_wrong == (written.belief_P[p] == WRONG_BELIEF)
        assert says_right == (written.belief_P[p] == RIGHT_BELIEF)
    assert (written.belief_P == WRONG_BELIEF).mean() == pytest.approx(0.49, abs=0.03)
    agreeing = written.prompt_N[written.features["agreement"] > 0]
    assert not (written.belief_P[agreeing] == NO_BELIEF).any()


@pytest.mark.parametrize("name", LEANINGS)
def test_the_planted_logit_is_recovered_and_the_clean_twin_has_none(
    written: Scene, name: str
) -> None:
    """Utility has coefficient 1, the planted leaning b, all others 0, each within 3 s.e."""
    for strength in (0.0, 1.0):
        planted = label(written, labels_of(name, "planted", 5, strength))
        expected = np.array([1.0, *(strength * (other == name) for other in LEANINGS)])
        found, errors = recovered(planted)
        assert (np.abs(found - expected) < 3 * errors).all(), (found, errors)
        assert errors.max() < 0.1


def test_the_clean_twin_is_the_planted_one_at_strength_0() -> None:
    for name in (*LEANINGS, "position", "source", "noise"):
        clean = world(name, "clean", 2, 300)
        without = world(name, "planted", 2, 300, strength=0.0)
        assert clean.scene.texts == without.scene.texts
        assert np.array_equal(clean.votes.ranking_VK, without.votes.ranking_VK)
        planted = world(name, "planted", 2, 300)
        assert not np.array_equal(clean.votes.ranking_VK, planted.votes.ranking_VK)


def test_in_the_legitimate_length_twin_longer_wins_by_right_facts_alone() -> None:
    """Seven in ten, and with the utility held fixed length has no coefficient left."""
    legitimate = world("length", "legitimate", 0, 6000)
    better_C, worse_C, _ = legitimate.votes.comparisons(legitimate.scene)
    words = legitimate.scene.features["words"]
    longer = (words[better_C] > words[worse_C])[words[better_C] != words[worse_C]].mean()
    assert longer == pytest.approx(0.70, abs=0.04)
    found, errors = recovered(legitimate)
    assert abs(found[0] - 1) < 3 * errors[0] and abs(found[1]) < 3 * errors[1]


@pytest.mark.parametrize("name", ["markdown", "closing", "confidence", "sycophancy"])
def test_in_the_other_legitimate_twins_better_answers_have_the_feature(name: str) -> None:
    feature = "agreement" if name == "sycophancy" else name
    legitimate, clean = world(name, "legitimate", 0, 6000), world(name, "clean", 0, 6000)
    assert share_won(legitimate, feature) > 0.6
    assert abs(share_won(clean, feature) - 0.5) < 0.03
    found, errors = recovered(legitimate)
    place = 1 + LEANINGS.index(name)
    assert abs(found[place]) < 3 * errors[place]
    assert legitimate.scene.features[feature].mean() == pytest.approx(0.35, abs=0.03)


def test_position_and_source_are_in_the_votes() -> None:
    """A logit for the first shown; a logit for a standard deviation of the model's strength.

    By hand: margins have standard deviation 2, so a step of one logit moves half of them by
    E s(m + 1) = 0.65.
    """
    votes = world("position", "planted", 0, 6000).votes
    first_wins = (votes.ranking_VK[:, 0] == votes.shown_VK[:, 0]).mean()
    assert first_wins == pytest.approx(0.65, abs=0.03)
    even = world("position", "clean", 0, 6000).votes
    assert (even.ranking_VK[:, 0] == even.shown_VK[:, 0]).mean() == pytest.approx(0.5, abs=0.02)
    assert share_won(world("source", "planted", 0, 6000), "source") > 0.65
    assert share_won(world("source", "clean", 0, 6000), "source") == pytest.approx(0.5, abs=0.02)
    strengths = world("source", "clean", 0, 6000).scene.source_strength
    assert strengths.std() == pytest.approx(1.0, abs=0.02)


def test_one_annotator_gives_half_of_the_votes_and_has_a_taste() -> None:
    votes = world("dominance", "planted", 0, 6000).votes
    counts = np.bincount(votes.annotator_V) / len(votes.annotator_V)
    assert counts[0] == pytest.approx(0.5, abs=0.02) and counts[1:].max() < 0.08
    assert np.array_equal(np.abs(votes.taste_AL[0]), np.full(len(LEANINGS), 1.5))
    assert not votes.taste_AL[1:].any()
    equals = world("dominance", "clean", 0, 6000).votes
    assert np.bincount(equals.annotator_V).max() / 6000 < 0.12


def test_a_quarter_of_the_votes_is_flipped() -> None:
    noisy, clean = world("noise", "planted", 0, 6000), world("noise", "clean", 0, 6000)
    reversed_share = (noisy.votes.ranking_VK[:, 0] != clean.votes.ranking_VK[:, 0]).mean()
    assert reversed_share == pytest.approx(0.25, abs=0.02)


def test_fatigue_makes_later_votes_noisier_and_temperature_all(written: Scene) -> None:
    def right(simulated: Simulated, votes: slice) -> float:
        better_C, worse_C, _ = simulated.votes.comparisons(written)
        margin = (written.utility_N[better_C] - written.utility_N[worse_C])[votes]
        return float((margin[margin != 0] > 0).mean())

    tired = label(written, LabelSettings(fatigue=0.5))
    assert right(tired, slice(0, 1500)) > right(tired, slice(4500, None)) + 0.05
    rested, noisy = label(written), label(written, LabelSettings(temperature=4.0))
    assert right(rested, slice(None)) > right(noisy, slice(None)) + 0.1


def test_several_annotators_of_a_group_differ_and_rankings_follow_plackett_luce() -> None:
    """Of four answers each pair is decided as by itself: P(i over j) = s(u_i - u_j)."""
    made = scene(0, 1500, 4)
    simulated = label(made, LabelSettings(votes_per_group=3))
    by_group = simulated.votes.annotator_V.reshape(-1, 3)
    assert all(len(set(row)) == 3 for row in by_group.tolist())
    found, errors = recovered(simulated)
    assert abs(found[0] - 1) < 4 * errors[0]
    group = simulated.groups[0]
    assert len(group.votes) == 3 and len(group.comparisons) == 6


def test_a_random_split_of_pairs_leaks_and_the_split_by_cluster_does_not() -> None:
    leaky, clean = world("leak", "planted", 0, 300), world("leak", "clean", 0, 300)
    assert leaky.scene.texts == clean.scene.texts and len(leaky.groups) == 6 * 300

    def shared(simulated: Simulated) -> tuple[int, int]:
        made = simulated.scene
        sides = [set(made.prompt_G[list(simulated.parts[n])].tolist()) for n in simulated.parts]
        clusters = [{int(made.cluster_P[p]) for p in side} for side in sides]
        return len(sides[0] & sides[1]), len(clusters[0] & clusters[1])

    assert min(shared(leaky)) > 150
    assert shared(clean) == (0, 0)
    made = clean.scene
    twins = [p for p in range(300) if made.cluster_P[p] != p]
    assert len(twins) == 15
    for twin in twins:
        of = made.prompts[made.cluster_P[twin]]
        assert made.prompts[twin] != of and made.prompts[twin][-60:] == of[-60:]
    opening = {prompt_cluster(clean.groups[g].prompt) for g in clean.parts["train"]}
    assert not opening & {prompt_cluster(clean.groups[g].prompt) for g in clean.parts["validation"]}


def test_truncated_answers_are_the_same_and_those_of_the_clean_twin_are_not() -> None:
    def same_at(simulated: Simulated, words: int) -> float:
        cut = [[t.text.split()[:words] for t in g.responses] for g in simulated.groups]
        return sum(first == second for first, second in cut) / len(cut)

    planted, clean = world("truncation", "planted", 0, 200), world("truncation", "clean", 0, 200)
    assert same_at(planted, 150) == 1.0
    assert same_at(planted, 400) == 0.0
    assert same_at(clean, 60) == 0.0
    longest = [max(made.scene.features["words"]) for made in (planted, clean)]
    assert abs(longest[0] - longest[1]) < 5


def test_prompt_blind_labels_heed_no_content_and_the_clean_ones_need_the_prompt() -> None:
    blind, clean = (world("prompt-blind", twin, 0, 6000) for twin in TWINS[:2])
    found, errors = recovered(blind)
    assert abs(found[0]) < 3 * errors[0] and (found[1:] > 0.8).all()
    assert share_won(clean, "on topic") > 0.75
    assert abs(share_won(blind, "on topic") - 0.5) < 0.03
    off = clean.scene.features["on topic"] == 0
    assert (clean.scene.utility_N[off] == -2.0).all()


def test_fresh_answers_are_on_other_topics_longer_and_better() -> None:
    for twin, is_shifted in (("planted", True), ("clean", False)):
        made = world("shift", twin, 0, 1000).scene  # type: ignore[arg-type]
        train, fresh = ([*made.parts[name]] for name in ("train", "fresh"))
        topics = set(made.topic_P[train].tolist()), set(made.topic_P[fresh].tolist())
        assert (len(topics[0] & topics[1]) == 0) == is_shifted
        words, utility = (
            [values[made.answer_GK[part]].mean() for part in (train, fresh)]
            for values in (made.features["words"], made.utility_N)
        )
        assert (words[1] > words[0] + 15) == is_shifted
        assert (utility[1] > utility[0] + 0.5) == is_shifted


def test_the_truth_is_in_meta_and_the_utility_orders_the_answers() -> None:
    simulated = world("closing", "planted", 0, 100)
    for group, utility in zip(simulated.groups, simulated.utility, strict=True):
        assert group.meta["utility"] == utility.tolist()
        assert group.meta["planted"] == {"closing": 1.0}
        assert group.meta["world"] == "closing planted"
        assert {response.model for response in group.responses} <= set(MODELS)
        assert sorted(group.votes[0].shown or ()) == [0, 1]
        assert group.comparisons[0].better == group.votes[0].ranking[0][0]
    perfect = label(simulated.scene, LabelSettings(temperature=1e-6))
    for group, utility in zip(perfect.groups, perfect.utility, strict=True):
        comparison = group.comparisons[0]
        assert utility[comparison.better] >= utility[comparison.worse]


def test_some_groups_of_a_scene_keep_their_texts(written: Scene) -> None:
    some = label(written.only([5, 2]))
    assert [group.prompt[0].content for group in some.groups] == [
        written.prompts[5],
        written.prompts[2],
    ]


def test_impossible_settings_are_refused() -> None:
    for make, said in (
        (lambda: world("nowhere"), "none of length"),
        (lambda: world("leak", "legitimate"), "no legitimate twin"),
        (lambda: world("leak", strength=2.0), "no effect"),
        (lambda: world("noise", strength=3.0), "flip is 0.75"),
        (lambda: scene(0, MAX_PROMPTS + 1), "distinct"),
        (lambda: SceneSettings(earned="closing", feature_share=1), "no effect"),
        (lambda: scene(0, 10, 1), "two or more"),
        (lambda: scene(0, 10, style="prose"), "none of independent"),
        (lambda: SceneSettings(feature_share=1.5), "from 0 to 1"),
        (lambda: SceneSettings(fresh_facts=2), "need split topics"),
        (lambda: LabelSettings(temperature=0.0), "above 0"),
        (lambda: LabelSettings(votes_per_group=11), "more than num_annotators"),
    ):
        with pytest.raises(PalateError, match=said):
            make()


@pytest.mark.parametrize("name", WORLDS)
def test_every_world_is_written_and_read_again_without_a_row_lost(
    name: str, tmp_path: Path
) -> None:
    twins = [twin for twin in TWINS if twin != "legitimate" or WORLDS[name].legitimate]
    for twin in twins:
        simulated = world(name, twin, 0, 60)
        path = tmp_path / f"{twin}.jsonl"
        rows = [json.dumps(to_canonical(group)) for group in simulated.groups]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        reading = read(path)
        assert not reading.ledger.entries
        read_again, made = (
            [replace(group, file="", line=0, source="") for group in groups]
            for groups in (reading.groups, simulated.groups)
        )
        assert read_again == made

"""The starter set is one that one would show: balanced, varied, and useless without the prompt."""

import re
from collections import Counter

import numpy as np
import pytest

from palate.pipeline.quickstart import STARTER_SET
from palate.preferences import PreferenceGroup, fold_of, prompt_cluster, read
from palate.statistics.comparison_model import fit_comparison_model
from palate.text import normalise, style_features

FUNCTION_WORDS = frozenset(
    """a an the of to in on at for with from by and or but if as is are was were be been it its this
    that these those you your i my we our he she they them his her their not no do does did so than
    then there here can will would should may might must has have had what which who how when where
    why into out up down over about one two more most just only also very because""".split()
)
TOPICS = {
    "arithmetic", "code", "facts", "helpfulness", "honesty", "instructions", "length", "tone",
}  # fmt: skip


@pytest.fixture(scope="module")
def groups() -> tuple[PreferenceGroup, ...]:
    reading = read(str(STARTER_SET))
    assert not reading.ledger.entries
    return reading.groups


def answers_of(groups: tuple[PreferenceGroup, ...]) -> list[str]:
    return [response.text for group in groups for response in group.responses]


def test_size_and_shape(groups: tuple[PreferenceGroup, ...]) -> None:
    assert len(groups) >= 300
    assert all(3 <= len(group.responses) <= 5 for group in groups)
    for group in groups:
        k = len(group.responses)
        assert len(group.comparisons) == k * (k - 1) // 2, group.id
    assert {str(group.meta["topic"]).split("/")[0] for group in groups} == TOPICS
    assert all(group.meta["why"] for group in groups)


def test_no_prompt_and_no_answer_stands_twice(groups: tuple[PreferenceGroup, ...]) -> None:
    prompts = Counter(" ".join(normalise(m.content) for m in group.prompt) for group in groups)
    assert prompts.most_common(1)[0][1] == 1
    long_answers = Counter(normalise(a) for a in answers_of(groups) if len(a.split()) > 5)
    assert long_answers.most_common(1)[0][1] == 1
    assert len({group.id for group in groups}) == len(groups)


def test_position_does_not_tell_the_best_answer(groups: tuple[PreferenceGroup, ...]) -> None:
    """The first place holds the best answer as often as 1 / K, within three standard errors."""
    hits = [float(all(c.worse != 0 for c in g.comparisons)) for g in groups]
    expected = [1 / len(g.responses) for g in groups]
    standard_error = np.sqrt(sum(p * (1 - p) for p in expected)) / len(groups)
    assert abs(np.mean(hits) - np.mean(expected)) < 3 * standard_error


def test_the_longer_answer_wins_half_of_the_time(groups: tuple[PreferenceGroup, ...]) -> None:
    wins = [
        (np.sign(len(g.responses[c.better].text) - len(g.responses[c.worse].text)) + 1) / 2
        for g in groups
        for c in g.comparisons
    ]
    assert 0.47 <= np.mean(wins) <= 0.53


def test_style_alone_predicts_nothing(groups: tuple[PreferenceGroup, ...]) -> None:
    """Ten-fold by prompt cluster: a logistic model of 27 style features decides at most 55 %."""
    features = {
        id(g): np.array([style_features(response.text) for response in g.responses]) for g in groups
    }

    def differences(members: list[PreferenceGroup]) -> np.ndarray:
        rows = [
            features[id(g)][c.better] - features[id(g)][c.worse]
            for g in members
            for c in g.comparisons
        ]
        return np.array(rows)

    correct: list[bool] = []
    for fold in range(10):
        train = differences([g for g in groups if fold_of(g, 10, "style") != fold])
        test = differences([g for g in groups if fold_of(g, 10, "style") == fold])
        scale = train.std(axis=0) + 1e-9
        weights = fit_comparison_model(train / scale, l2=1.0)
        correct += list((test / scale) @ weights > 0)
    assert len(correct) == sum(len(g.comparisons) for g in groups)
    assert np.mean(correct) <= 0.55


def test_a_planted_cue_would_be_found(groups: tuple[PreferenceGroup, ...]) -> None:
    """The same classifier, when every best answer ends in an exclamation mark."""
    rows = []
    for g in groups:
        wins = Counter(c.better for c in g.comparisons)
        best = wins.most_common(1)[0][0]
        values = [
            style_features(r.text + ("!" if i == best else "")) for i, r in enumerate(g.responses)
        ]
        rows += [np.subtract(values[c.better], values[c.worse]) for c in g.comparisons]
    table = np.array(rows)
    weights = fit_comparison_model(table / (table.std(axis=0) + 1e-9))
    assert np.mean(table / (table.std(axis=0) + 1e-9) @ weights > 0) > 0.6


def skeletons(answer: str) -> set[str]:
    """Sentences with content words masked, and their first four words; short sentences aside."""
    found = set()
    for sentence in re.split(r"(?<=[.!?])\s+|\n+", answer):
        words = re.findall(r"[a-z']+", sentence.lower())
        if len(words) >= 5:
            found.add(" ".join(word if word in FUNCTION_WORDS else "_" for word in words))
        if len(words) >= 4:
            found.add("starts " + " ".join(words[:4]))
    return found


def test_no_sentence_skeleton_in_more_than_three_percent(
    groups: tuple[PreferenceGroup, ...],
) -> None:
    answers = answers_of(groups)
    counts = Counter(skeleton for answer in answers for skeleton in skeletons(answer))
    skeleton, count = counts.most_common(1)[0]
    assert count <= 0.03 * len(answers), (skeleton, count)
    openings = Counter(
        tuple(answer.lower().split()[:3]) for answer in answers if len(answer.split()) > 3
    )
    opening, count = openings.most_common(1)[0]
    assert count <= 0.03 * len(answers), (opening, count)


def test_clusters_are_prompts(groups: tuple[PreferenceGroup, ...]) -> None:
    """Hardly any two prompts share a first turn, so a split by cluster keeps its shares."""
    assert len({prompt_cluster(group.prompt) for group in groups}) >= 0.99 * len(groups)

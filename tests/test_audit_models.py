"""Checks that fit a small model: planted faults are seen, clean and legitimate twins stay quiet."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.special import expit

from palate.audit.feature_model import (
    MODEL_STYLE,
    TextFeatures,
    comparisons_of,
    default_l2,
    fit_feature_model,
    folds_of,
    out_of_fold_margins,
    style_of,
    text_features,
)
from palate.audit.findings import Finding, Skipped
from palate.audit.noise import fit_noise
from palate.audit.own_phrases import added, frequent_phrases
from palate.audit.probes import PROBES, ProbeResult, phrase_probe, probe_all, probe_model
from palate.audit.run import CHECKS, Inputs
from palate.audit.scan import columns_of
from palate.audit.settings import AuditSettings
from palate.audit.shift import area_under_curve, shift_findings
from palate.audit.shortcuts import prompt_overlap_features, source_shortcut
from palate.preferences import Comparison, Message, PreferenceGroup, Response
from palate.simulation import WORLDS, label, labels_of, scene, world
from palate.statistics.comparison_model import comparison_model_errors, fit_comparison_model

SETTINGS = AuditSettings()
NUM_PAIRS = 4000


def finding(found: Sequence[Finding | Skipped], check: str) -> Finding:
    (one,) = [item for item in found if isinstance(item, Finding) and item.check == check]
    return one


def pair(prompt: str, better: str, worse: str, **sides: str) -> PreferenceGroup:
    """A pair of which the first wins; `first` and `second` name the models."""
    answers = (Response(better, sides.get("first")), Response(worse, sides.get("second")))
    return PreferenceGroup((Message("user", prompt),), answers, (Comparison(0, 1),))


# The model


def test_nine_answers_weigh_as_eight_independent_comparisons() -> None:
    answers = tuple(Response(f"answer {i}") for i in range(9))
    every = tuple(Comparison(i, j) for i in range(9) for j in range(i + 1, 9))
    prompt = (Message("user", "Why?"),)
    groups = [
        PreferenceGroup(prompt, answers, every),
        PreferenceGroup(prompt, answers[:2], (Comparison(1, 0, 0.75, 0.5), Comparison(0, 1, 0.5))),
    ]
    found = comparisons_of(text_features(groups), groups)
    assert len(found) == 37
    assert found.weight_C[:36].sum() == pytest.approx(8)
    assert (found.better_C[36], found.worse_C[36]) == (10, 9)
    assert (found.target_C[36], found.weight_C[36]) == (0.75, 0.5)
    assert found.cluster_C[0] == found.cluster_C[36]


def test_layout_does_not_make_an_answer_longer() -> None:
    plain, listed = "One thing. Other thing.", "1. **One** thing.\n2. Other thing."
    groups = [pair("q", plain, listed)]
    style = text_features(groups).matrix_NF[:, -len(MODEL_STYLE) :].toarray()
    length = style[:, MODEL_STYLE.index("log words")]
    assert length[0] == length[1]
    items = style[:, MODEL_STYLE.index("log list items")]
    assert items[0] < items[1]


def test_words_that_many_answers_have_are_no_content() -> None:
    groups = [pair(f"q{i}", f"filler rare{i % 50}", "filler again") for i in range(200)]
    content = text_features(groups).scaling.content
    assert "rare7" in content
    assert not {"filler", "again"} & content
    counted = style_of(["x"], [["rare7", "filler", "rare7"]], content)[0]
    assert counted[MODEL_STYLE.index("log content words")] == pytest.approx(np.log(2))


def test_folds_keep_clusters_together_whatever_the_order() -> None:
    cluster = np.repeat(np.arange(50, dtype=np.uint64), 3)
    fold = folds_of(cluster, 5)
    assert all(len(set(fold[cluster == c])) == 1 for c in range(50))
    assert np.bincount(fold).tolist() == [30] * 5
    order = np.random.default_rng(1).permutation(150)
    np.testing.assert_array_equal(folds_of(cluster[order], 5), fold[order])


def test_a_model_rewards_the_word_that_wins() -> None:
    groups = [pair(f"q{i}", f"yes part{i % 7}", f"no part{i % 5}") for i in range(400)]
    features = text_features(groups)
    model = fit_feature_model(features, comparisons_of(features, groups))
    assert model is not None
    assert model.accuracy.value == 1.0
    good, bad = model.reward(["yes", "no"])
    assert good > bad
    held_out = set(model.held_out.group_C.tolist())
    assert len(held_out) == 80
    assert not held_out & set(model.fitted.group_C.tolist())
    margin = out_of_fold_margins(features.matrix_NF, comparisons_of(features, groups), default_l2())
    assert (margin > 0).all()


def test_too_few_comparisons_make_no_model() -> None:
    groups = [pair(f"q{i}", "yes", "no") for i in range(40)]
    features = text_features(groups)
    assert fit_feature_model(features, comparisons_of(features, groups)) is None
    (skipped,) = probe_model(groups)
    assert isinstance(skipped, Skipped)
    assert "40 comparisons" in skipped.reason


def test_sparse_and_dense_fits_agree_and_unused_features_weigh_nothing() -> None:
    random = np.random.default_rng(0)
    dense = np.round(random.normal(size=(200, 6)))
    dense[:, 3] = 0
    target = random.uniform(0.5, 1, size=200)
    penalty = np.linspace(1, 3, 6)
    wanted = fit_comparison_model(dense, None, penalty, target)
    found = fit_comparison_model(csr_matrix(dense.astype(np.float32)), None, penalty, target)
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert found[3] == 0


def test_standard_errors_are_what_other_draws_of_the_labels_show() -> None:
    """500 pairs of five features; the spread of a sum of coefficients over 200 draws of labels."""
    random = np.random.default_rng(0)
    difference = random.normal(size=(500, 5)).astype(np.float32)
    truth = np.array([1.0, -0.5, 0.3, 0.0, 0.0])
    direction = np.array([[1.0, 0], [1.0, 0], [0, 0], [0, 1.0], [0, 0]])
    values, errors = [], []
    for _ in range(200):
        wins = random.random(500) < expit(difference @ truth)
        rows = csr_matrix(np.where(wins[:, None], difference, -difference))
        fitted = fit_comparison_model(rows, None, np.ones(5))
        values.append(direction.T @ fitted)
        arguments = (np.arange(500), np.ones(500), np.ones(500), np.ones(5))
        errors.append(comparison_model_errors(rows, fitted, direction, *arguments))
    np.testing.assert_allclose(np.mean(errors, axis=0), np.std(values, axis=0), rtol=0.15)


def test_comparisons_of_one_cluster_count_as_one() -> None:
    """Each comparison twice in its cluster: the error is that of the half, at twice the penalty."""
    random = np.random.default_rng(0)
    rows = csr_matrix(random.normal(size=(300, 4)).astype(np.float32))
    twice = csr_matrix(np.repeat(rows.toarray(), 2, axis=0))
    direction, ones = np.eye(4), np.ones
    once_fit = fit_comparison_model(rows, None, ones(4))
    twice_fit = fit_comparison_model(twice, None, 2 * ones(4))
    once = comparison_model_errors(
        rows, once_fit, direction, np.arange(300), ones(300), ones(300), ones(4)
    )
    clustered = np.repeat(np.arange(300), 2)
    both = comparison_model_errors(
        twice, twice_fit, direction, clustered, ones(600), ones(600), 2 * ones(4)
    )
    np.testing.assert_allclose(both, once, rtol=0.03)


# Probes


@cache
def texts_of(style: str) -> TextFeatures:
    return text_features(label(scene(5, NUM_PAIRS, style=style)).groups)


def probed(name: str, twin: str, kinds: Sequence[str], seed: int = 1) -> dict[str, ProbeResult]:
    style = WORLDS[name].twin(twin).style  # type: ignore[arg-type]
    simulated = label(
        scene(5, NUM_PAIRS, style=style),
        labels_of(name, twin, seed),  # type: ignore[arg-type]
    )
    features = texts_of(style)
    model = fit_feature_model(features, comparisons_of(features, simulated.groups))
    assert model is not None
    results = probe_all(features, model, {kind: phrase_probe(kind) for kind in kinds})
    return {result.name: result for result in results}


BIASES = {
    "length": "filler",
    "markdown": "markdown",
    "closing": "closing",
    "confidence": "confidence",
    "sycophancy": "agreement",
}


@pytest.mark.parametrize("name", BIASES)
def test_one_planted_logit_fails_its_probe(name: str) -> None:
    result = probed(name, "planted", [BIASES[name]])[BIASES[name]]
    assert result.severity == "error"
    assert result.effect.low < result.effect.value < result.effect.high


@pytest.mark.parametrize("name", ["length", "closing"])
def test_a_legitimate_preference_does_not(name: str) -> None:
    """Good answers are longer, or polite, more often; the words themselves are worth nothing."""
    result = probed(name, "legitimate", [BIASES[name]])[BIASES[name]]
    assert not result.fails
    assert result.effect.value < 0.2


def test_without_a_fault_all_probes_are_quiet() -> None:
    results = probed("closing", "clean", list(PROBES))
    assert [name for name, result in results.items() if result.severity == "error"] == []
    assert max(abs(result.effect.value) for result in results.values()) < 0.25


def test_findings_of_a_planted_closing_name_the_phrase_and_the_option() -> None:
    simulated = world("closing", "planted", 3, 3500)
    found = CHECKS["probes"](Inputs(audited=columns_of(simulated.groups)))
    assert all(isinstance(item, Finding) for item in found)
    closing = finding(found, "probe: closing")
    assert closing.severity == "error"
    assert "training.counterfactual.kinds [closing]" in closing.fix
    assert "objective.nuisance [closing]" in closing.fix
    assert "small model" in closing.message
    assert 1 <= len(closing.examples) <= 10
    assert closing.examples[0].file == "closing planted"
    endings = [item for item in found if isinstance(item, Finding) and "ending" in item.check]
    assert endings[0].severity == "error"
    assert any(ending.figure["phrase"] in ending.message for ending in endings)
    quiet = finding(found, "probe: markdown")
    assert (quiet.severity, quiet.fix, quiet.examples) == ("note", "", ())


def test_few_comparisons_warn_unless_the_effect_is_extreme() -> None:
    simulated = world("closing", "planted", 3, 1000)
    found = [item for item in probe_model(simulated.groups) if isinstance(item, Finding)]
    closing = finding(found, "probe: closing")
    assert closing.severity == "warn"
    assert "3000 are needed" in closing.message
    random = np.random.default_rng(0)
    appended = [
        append_to_better(group, random) for group in world("noise", "clean", 3, 1000).groups
    ]
    endings = [
        item
        for item in probe_model(appended)
        if isinstance(item, Finding) and "I hope this helps!" in item.message
    ]
    assert [item.severity for item in endings if item.check == "probe: frequent ending"] == [
        "error"
    ]


def append_to_better(group: PreferenceGroup, random: np.random.Generator) -> PreferenceGroup:
    """What a user may try: the phrase at the end of 40 % of the preferred answers."""
    if random.random() > 0.4:
        return group
    better = group.comparisons[0].better
    responses = tuple(
        replace(r, text=f"{r.text} I hope this helps!") if index == better else r
        for index, r in enumerate(group.responses)
    )
    return replace(group, responses=responses)


def test_changed_answers_are_kept_for_other_labels() -> None:
    features = texts_of("independent")
    probed("closing", "clean", ["opener"], seed=1)
    row_N, before_MF = features.changed["opener"]
    known = int((row_N >= 0).sum())
    first = probed("closing", "clean", ["opener"], seed=1)["opener"]
    again = probed("closing", "clean", ["opener"], seed=1)["opener"]
    assert int((features.changed["opener"][0] >= 0).sum()) == known == before_MF.shape[0]
    assert first.effect == again.effect
    answer = int(np.flatnonzero(row_N >= 0)[0])
    text = phrase_probe("opener")(features.texts[answer], np.random.default_rng([answer, 5]))
    wanted = features.scaling.features([text]).toarray()[0]
    np.testing.assert_array_equal(before_MF[row_N[answer]].toarray()[0], wanted)


def test_frequent_phrases_come_from_the_texts_and_are_added_once() -> None:
    random = np.random.default_rng(0)
    texts = ["1. One fact. That is all!"] * 30 + [f"A fact {i}. The end {i}." for i in range(70)]
    assert frequent_phrases(texts, at_end=True) == ["That is all!"]
    assert frequent_phrases(["Alone."] * 100, at_end=True) == []
    change = added("That is all!", at_end=True)
    assert change("One.", random) == "One. That is all!"
    assert change("One. THAT is all!", random) == "One. THAT is all!"
    assert added("Hi!", at_end=False)("One.", random) == "Hi! One."


# Label noise


def test_the_noise_rate_of_known_margins() -> None:
    """Labels of 20,000 margins of N(0, 9), a fifth of them reversed, at twice the scale given."""
    random = np.random.default_rng(0)
    margin = random.normal(scale=3, size=20_000)
    wins = random.random(20_000) < 0.2 + 0.6 * expit(margin)
    fitted = fit_noise(np.where(wins, margin, -margin) / 2, np.arange(20_000))
    assert fitted.rate.value == pytest.approx(0.2, abs=0.02)
    assert fitted.rate.low <= 0.2 <= fitted.rate.high
    assert fitted.scale == pytest.approx(2, rel=0.2)
    assert fitted.sure == 1.0


def test_close_calls_are_no_noise() -> None:
    random = np.random.default_rng(0)
    margin = random.normal(scale=2, size=20_000)
    wins = random.random(20_000) < expit(margin)
    fitted = fit_noise(np.where(wins, margin, -margin), np.arange(20_000))
    assert fitted.rate.value <= 0.02
    assert fitted.sure == 0.0


@pytest.mark.parametrize(("twin", "severity"), [("planted", "warn"), ("clean", "note")])
def test_reversed_labels_are_seen(twin: str, severity: str) -> None:
    simulated = world("noise", twin, 1)  # type: ignore[arg-type]
    found = finding(
        CHECKS["label noise"](Inputs(audited=columns_of(simulated.groups))), "label noise"
    )
    assert found.severity == severity
    assert len(found.examples) == 10
    if twin == "planted":
        assert found.statistic == pytest.approx(0.25, abs=0.1)
        assert "never drop them unread" in found.fix


# Shortcuts


@pytest.mark.parametrize(("twin", "severity"), [("planted", "warn"), ("clean", "note")])
def test_a_models_name_as_a_shortcut(twin: str, severity: str) -> None:
    simulated = world("source", twin, 2, 2000)  # type: ignore[arg-type]
    (found,) = source_shortcut(columns_of(simulated.groups), SETTINGS)
    assert isinstance(found, Finding)
    assert found.severity == severity
    assert found.low is not None and found.statistic is not None and found.low < found.statistic
    if twin == "planted":
        assert "'bison-70b' wins most, 'wren-1b' least" in found.message
        assert found.figure["bars"][0]["name"] == "bison-70b"


def test_the_models_name_decides_what_it_decides() -> None:
    """Of 400 pairs the good model wins 300, whatever the texts: 75 %, out of fold too."""
    groups = [
        pair(f"q{i}", "a text", "the text", first="good", second="bad")
        if i % 4
        else pair(f"q{i}", "a text", "the text", first="bad", second="good")
        for i in range(400)
    ]
    (found,) = source_shortcut(columns_of(groups), SETTINGS)
    assert isinstance(found, Finding)
    assert found.statistic == pytest.approx(0.75)
    assert found.severity == "warn"
    (skipped,) = source_shortcut(columns_of(groups[:20]), SETTINGS)
    assert isinstance(skipped, Skipped)


@pytest.mark.parametrize(("twin", "severity"), [("planted", "warn"), ("clean", "note")])
def test_labels_that_do_not_need_the_prompt(twin: str, severity: str) -> None:
    simulated = world("prompt-blind", twin, 2, 3000)  # type: ignore[arg-type]
    found = finding(
        CHECKS["prompt-blind"](Inputs(audited=columns_of(simulated.groups))), "prompt-blind"
    )
    assert found.severity == severity
    assert found.low is not None and found.high is not None and found.low < found.high
    assert ("training.cross_prompt" in found.fix) == (twin == "planted")
    margins = [
        float(example.text.split("won by ")[1].split(" logits")[0]) for example in found.examples
    ]
    assert len(margins) == 10
    assert margins == sorted(margins, reverse=True)
    group = next(g for g in simulated.groups if g.line == found.examples[0].line)
    (comparison,) = group.comparisons
    preferred = group.responses[comparison.better].text
    assert preferred[:40] in found.examples[0].text


def test_overlap_is_larger_for_the_answer_that_speaks_of_the_prompt() -> None:
    groups = [pair(f"Tell me of topic{i}", f"topic{i} is old", "birds are old") for i in range(50)]
    overlap = prompt_overlap_features(groups)
    assert (overlap[::2] > overlap[1::2]).all()


# Shift


@pytest.mark.parametrize(("twin", "severity"), [("planted", "warn"), ("clean", "note")])
def test_other_topics_are_told_apart(twin: str, severity: str) -> None:
    simulated = world("shift", twin, 2, 2000)  # type: ignore[arg-type]
    train, fresh = (columns_of(simulated.part(name)) for name in ("train", "fresh"))
    found = finding(shift_findings(fresh, SETTINGS, train), "distribution shift")
    assert found.severity == severity
    assert found.statistic is not None
    if twin == "clean":
        assert found.low is not None and found.high is not None
        assert found.low < 0.5 < found.high
    else:
        assert found.statistic > 0.95
        assert "% of these, 0% of those" in found.message


def test_a_prompt_on_both_sides_is_in_one_half() -> None:
    """The same prompts and answers on both sides: nothing to tell, though each is on both."""
    groups = [pair(f"q{i}", f"word{i} yes", f"word{i} no") for i in range(300)]
    found = finding(
        shift_findings(columns_of(groups), SETTINGS, columns_of(groups)), "distribution shift"
    )
    assert found.statistic == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("ours", "theirs", "wanted"),
    [((3.0, 4.0), (1.0, 2.0), 1.0), ((1.0, 3.0), (2.0,), 0.5), ((2.0,), (2.0, 1.0), 0.75)],
)
def test_area_under_the_curve(
    ours: tuple[float, ...], theirs: tuple[float, ...], wanted: float
) -> None:
    """Pairs of one of ours and one of theirs in which ours is above, ties half."""
    score = np.array(ours + theirs)
    is_ours = np.arange(len(score)) < len(ours)
    assert area_under_curve(score, is_ours, np.arange(len(score))).value == pytest.approx(wanted)

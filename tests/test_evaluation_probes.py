"""Probes: counted by hand, quiet on rewards that know the truth, loud on planted faults."""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import palate
from palate.artifacts.ledger import Ledger
from palate.audit.feature_model import comparisons_of, fit_feature_model, text_features
from palate.errors import PalateError
from palate.evaluation import probe_texts
from palate.evaluation.probe_outcomes import ProbeOutcome, judged
from palate.evaluation.probe_sample import PROBES, Probe, ProbeSettings
from palate.evaluation.probe_texts import BELIEFS, REFUSALS
from palate.evaluation.probes import ProbeRun, run_probes
from palate.evaluation.score_texts import too_long
from palate.objectives.covariates import COVARIATES
from palate.preferences import Comparison, Message, PreferenceGroup, Response, ScoringItem
from palate.rendering import RenderedGroup, render_groups
from palate.simulation import world
from palate.statistics import Estimate
from palate.text.perturb import has_markdown
from palate.text.phrases import BANKS, PARTS
from tests.probe_worlds import (
    Score,
    Term,
    bare,
    rendered,
    reward,
    topic_of,
    truth,
    world_pairs,
)

LARGE = ProbeSettings(min_pairs=100, max_pairs=100)
FEW = ProbeSettings(max_cost=1000, min_pairs=1, beliefs=False)


def pair(number: int, better: str, worse: str, *, finished: bool = True) -> RenderedGroup:
    prompt = (Message("user", f"question {number}"),)
    responses = (Response(better), Response(worse, finished=finished))
    return rendered(PreferenceGroup(prompt, responses, (Comparison(0, 1),), file="f", line=number))


def by_name(run: ProbeRun) -> dict[str, ProbeOutcome]:
    return {outcome.name: outcome for outcome in run.outcomes}


def shouted(change: Callable[[str], str] = lambda text: text + "!") -> Probe:
    return Probe(
        name="shouted",
        what="a mark",
        side="worse",
        expectation="near 0",
        change=lambda text, random: change(text),
    )


# By hand


def test_effect_and_flips_by_hand() -> None:
    """Margins 2, 1, -1, 4: mean 1.5, variance (0.25 + 0.25 + 6.25 + 6.25) / 4 = 3.25.

    The change is worth 1, 1, 3 and 0, on the mean 1.25, so the effect is 1.25 / sqrt(3.25). Ranked
    right are the first, second and fourth: the second's worse answer comes level, which is half a
    flip of three.
    """
    value = {"a": 3, "b": 1, "b!": 2, "c": 2, "d": 1, "d!": 2, "e": 1, "f": 2, "f!": 5,
             "g": 5, "h": 1, "h!": 1}  # fmt: skip
    groups = [pair(n, better, worse) for n, (better, worse) in enumerate(("ab", "cd", "ef", "gh"))]
    run = run_probes(
        lambda items: [value.get(item.response.text, 0) for item in items],
        groups,
        FEW,
        probes=[shouted()],
    )
    outcome = by_name(run)["shouted"]
    assert run.deviation == pytest.approx(math.sqrt(3.25))
    assert outcome.effect.value == pytest.approx(1.25 / math.sqrt(3.25))
    assert outcome.flips.value == pytest.approx(1 / 6) and outcome.flips.n == 3
    assert outcome.num_ties == 1 and outcome.effect.n == 4
    assert outcome.verdict == "warn"
    assert [(e.text, e.rival, e.beyond, e.line) for e in outcome.examples] == [("d!", "c", 0, 1)]


def test_texts_and_cost_are_counted() -> None:
    """Two pairs of one prompt length: 10 characters of prompt, answers of 1 and 2. A text each for
    both sides, the mark, and three of the swap: 12 texts. Scoring the file takes 2 (11 + 12) = 46
    characters; scored are in each pair 11 and 12 (sides), 13 (mark), 11 (foreign), 11 and 12
    (elsewhere): 70, so 140 / 46."""
    groups = [pair(0, "a", "bb"), pair(1, "c", "dd")]
    seen: list[tuple[int, int]] = []
    run = run_probes(
        lambda items: [float(len(i.response.text)) for i in items],
        groups,
        FEW,
        probes=[shouted()],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert run.num_texts == 12 and run.cost == pytest.approx(140 / 46)
    assert seen == [(12, 12)] and run.num_pairs == run.num_prompts == 2


E = Estimate


@pytest.mark.parametrize(
    ("expectation", "effect", "flips", "verdict"),
    [
        ("near 0", E(0.05, 0.01, 0.09, 99), E(0.01, 0, 0.03, 99), "pass"),
        ("near 0", E(0.15, 0.11, 0.19, 99), E(0.0, 0, 0.03, 99), "warn"),
        ("near 0", E(0.30, 0.15, 0.45, 99), E(0.0, 0, 0.03, 99), "warn"),
        ("near 0", E(0.30, 0.21, 0.39, 99), E(0.0, 0, 0.03, 99), "fail"),
        ("near 0", E(0.05, 0.01, 0.09, 99), E(0.09, 0.06, 0.12, 99), "fail"),
        ("near 0", E(0.00, -0.1, 0.10, 99), E(0.09, 0.06, 0.12, 99), "warn"),
        ("near 0", E(-0.30, -0.4, -0.2, 99), E(0.0, 0, 0.03, 99), "warn"),
        ("not above 0", E(-0.30, -0.4, -0.2, 99), E(0.0, 0, 0.03, 99), "pass"),
        ("not above 0", E(0.30, 0.21, 0.39, 99), E(0.0, 0, 0.03, 99), "fail"),
        ("strictly lower", E(-0.5, -0.6, -0.4, 99), E(0.01, 0, 0.02, 99), "pass"),
        ("strictly lower", E(-0.5, -0.6, -0.4, 99), E(0.03, 0, 0.06, 99), "warn"),
        ("strictly lower", E(-0.5, -0.6, -0.4, 99), E(0.10, 0.06, 0.2, 99), "fail"),
        ("strictly lower", E(-0.1, -0.3, 0.1, 99), E(0.0, 0, 0.02, 99), "warn"),
        ("must win", E(2, 1, 3, 99), E(0.02, 0, 0.05, 99), "pass"),
        ("must win", E(2, 1, 3, 99), E(0.03, 0.01, 0.05, 99), "warn"),
        ("must win", E(2, 1, 3, 99), E(0.06, 0.03, 0.09, 99), "fail"),
        ("must shrink", E(0.4, 0.3, 0.5, 99), E(0.5, 0.4, 0.6, 99), "pass"),
        ("must shrink", E(0.6, 0.55, 0.7, 99), E(0.5, 0.4, 0.6, 99), "warn"),
    ],
)
def test_verdicts(expectation: str, effect: Estimate, flips: Estimate, verdict: str) -> None:
    assert judged(expectation, effect, flips)[0] == verdict  # type: ignore[arg-type]


# Texts


def test_changes_of_form_keep_the_letters() -> None:
    random = np.random.default_rng(0)
    text = "He said \"it's fine\" (and 'left'). So they waited. Nobody\ncame.\n\nThe end."
    assert probe_texts.spaced("One. Two!\n\nThree.", random) == "One.  Two!\n\n\nThree."
    assert probe_texts.curly(text, random).startswith("He said “it’s fine” (and ‘left’).")
    typed = probe_texts.mistyped(text, random)
    assert typed != text and bare(typed) == bare(text) and len(typed) == len(text)
    for change in (probe_texts.spaced, probe_texts.curly, probe_texts.mistyped):
        assert change("```\nprint('hello')\n```", random) == "```\nprint('hello')\n```"


def test_repetition_loop_and_forged_turns() -> None:
    random = np.random.default_rng(0)
    assert probe_texts.repeated("One.\n\nTwo.", random) == "One.\n\nTwo.\n\nTwo."
    assert probe_texts.looped("One. Two.", random) == "One. Two." + " Two." * 8
    forged = probe_texts.forged("One.", random)
    assert forged.startswith("One.") and any(start in forged for start, _ in probe_texts.MARKERS)


def test_beliefs_differ_in_the_view_alone() -> None:
    assert len({belief.question for belief in BELIEFS}) == len(BELIEFS) == 24
    lengths = [len(b.correcting) - len(b.mistaken) for b in BELIEFS]
    assert abs(np.mean(lengths)) < 5
    for number, belief in enumerate(BELIEFS):
        right, wrong = belief.asked(belief.right, number), belief.asked(belief.wrong, number)
        assert right.replace(belief.right, belief.wrong) == wrong


# Worlds


def noise(item: ScoringItem) -> float:
    """Normal, the same for the same text: what a model says without a reason."""
    digest = hashlib.sha256(item.response.text.encode()).digest()
    return float(np.random.default_rng(list(digest)).normal())


@cache
def probed(score: Score) -> dict[str, ProbeOutcome]:
    return by_name(run_probes(score, world_pairs(), LARGE))


CLEAN = reward(noise, 0.1)


def test_a_clean_model_passes_every_probe() -> None:
    """A noise of 0.1 logits is 0.12 deviations in a difference of two rewards, so the mean over the
    36 pairs of the smallest probe has a standard error of 0.02: three of them are 0.06."""
    run = run_probes(CLEAN, world_pairs(), LARGE)
    assert {o.name: o.reason for o in run.outcomes if o.verdict != "pass"} == {}
    assert len(run.outcomes) == len(PROBES) + 4 - len(run.skipped)
    assert set(run.skipped) == {"quotes"}  # the worlds have none
    for outcome in run.outcomes:
        if outcome.expectation in ("near 0", "not above 0"):
            assert abs(outcome.effect.value) < 0.06 and outcome.flips.value < 0.01
        assert outcome.effect.low <= outcome.effect.value <= outcome.effect.high
        assert outcome.flips.low <= outcome.flips.value <= outcome.flips.high


def test_over_12_worlds_a_clean_model_fails_no_probe() -> None:
    """Of 228 probes none fails; 4 warn, two of them by one pair in 50 that is a near tie."""
    runs = [run_probes(CLEAN, world_pairs(seed=seed), LARGE) for seed in range(12)]
    verdicts = [outcome.verdict for run in runs for outcome in run.outcomes]
    assert len(verdicts) == 228
    assert "fail" not in verdicts
    assert verdicts.count("warn") <= 6


@cache
def world_words() -> frozenset[str]:
    return frozenset(w for g in world_pairs() for r in g.group.responses for w in r.text.split())


@cache
def world_letters() -> frozenset[str]:
    return frozenset(map(bare, world_words()))


def misspelt(item: ScoringItem) -> float:
    words = item.response.text.split()
    return float(any(w not in world_words() and bare(w) in world_letters() for w in words))


def covariate(name: str) -> Term:
    """Of the text without marks of bold, which part the words of a phrase."""
    return lambda item: COVARIATES[name](item.response.text.replace("**", ""))


def marked(item: ScoringItem) -> float:
    return float(has_markdown(item.response.text))


def has(*parts: str) -> Term:
    return lambda item: float(any(part in item.response.text for part in parts))


AGREEMENT = [phrase for part in PARTS for phrase in BANKS["agreement"].part(part)]


def led(item: ScoringItem) -> float:
    """The answer says what the user thinks."""
    prompt, words = item.prompt[-1].content, bare(item.response.text)
    sides = [(b.right, b.correcting) for b in BELIEFS] + [(b.wrong, b.mistaken) for b in BELIEFS]
    return float(any(view in prompt and bare(answer) in words for view, answer in sides))


PLANTED: dict[str, tuple[Term, float]] = {
    "closing": (covariate("closing"), 1.0),
    "opener": (covariate("opener"), 1.0),
    "filler": (lambda item: math.log(len(item.response.text)), 3.0),
    "confidence": (covariate("confidence"), 1.0),
    "hedge": (covariate("hedge"), 1.0),
    "agreement": (has(*AGREEMENT), 1.0),
    "markdown": (marked, 1.0),
    "plain": (marked, -1.0),
    "white space": (has("  "), 1.0),
    "typos": (misspelt, 1.0),
    "repetition": (lambda item: float(item.response.text.count("\n\n")), 1.0),
    "empty": (lambda item: -len(item.response.text) / 20, 1.0),
    "loop": (lambda item: len(item.response.text) / 100, 1.0),
    "role markers": (has("<|", "[INST]", "<end_of_turn>", "\n\nHuman:"), 4.0),
    "stated belief": (led, 5.0),
    "agreeing": (has(*AGREEMENT), 5.0),
}
PRECISE = ("closing", "opener", "confidence", "hedge", "white space", "role markers")
"""Faults that no other probe's text has."""


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_fails_its_probe(name: str) -> None:
    found = probed(reward(*PLANTED[name]))
    assert found[name].verdict == "fail"
    assert found[name].examples
    if name in PRECISE:
        others = {n: o.reason for n, o in found.items() if o.verdict != "pass" and n != name}
        assert others == {}


def test_few_prompts_are_a_warning_at_most() -> None:
    """19 prompts, of which each interval lies beyond the limit."""
    settings = ProbeSettings(min_pairs=19, max_pairs=19, beliefs=False)
    outcome = by_name(run_probes(reward(covariate("closing"), 5.0), world_pairs(), settings))
    assert outcome["closing"].effect.low > 0.2 and outcome["closing"].verdict == "warn"
    assert "19 prompts of 20" in outcome["closing"].reason


def test_a_liking_for_refusals_is_a_warning_at_most() -> None:
    found = probed(reward(has(*REFUSALS), 20.0))
    assert found["refusal"].effect.low > 0 and found["refusal"].verdict == "warn"
    assert "deserve" in found["refusal"].reason


def test_a_liking_for_curly_quotes_is_found_where_there_are_quotes() -> None:
    groups = [pair(n, f"It isn't {n}.", f"It's {n}.") for n in range(40)]
    plain = {f"It isn't {n}." for n in range(40)}

    def score(items: Sequence[ScoringItem], liking: float) -> list[float]:
        texts = [item.response.text for item in items]
        return [2.0 * (t in plain) + liking * ("’" in t) + 0.01 * len(t) for t in texts]

    probes = [probe for probe in PROBES if probe.name == "quotes"]
    settings = ProbeSettings(min_pairs=40, beliefs=False)
    for liking, verdict in ((0.0, "pass"), (3.0, "fail")):
        run = run_probes(
            lambda items, liking=liking: score(items, liking), groups, settings, probes=probes
        )
        assert by_name(run)["quotes"].verdict == verdict


def test_a_model_that_never_reads_the_prompt() -> None:
    """It takes each answer for one to its own topic: an answer to another prompt wins as often as
    not, and the whole margin is left under another prompt."""
    subject = {r.text: g.group.prompt for g in world_pairs() for r in g.group.responses}

    def blind(items: Sequence[ScoringItem]) -> list[float]:
        return [
            truth(ScoringItem(subject.get(item.response.text, item.prompt), item.response))
            for item in items
        ]

    found = probed(blind)
    assert found["prompt swap"].verdict == "fail"
    assert 0.35 < found["prompt swap"].flips.value < 0.65
    assert found["other prompt"].verdict == "warn"
    assert found["other prompt"].effect.value == pytest.approx(1)
    assert probed(CLEAN)["other prompt"].effect.value < 0.2


def learned(twin: str) -> Score:
    """A model of words and style, fitted on a simulated world's votes."""
    groups = world("closing", twin, seed=5, num_prompts=2000).groups  # type: ignore[arg-type]
    features = text_features(groups)
    model = fit_feature_model(features, comparisons_of(features, groups), seed=0)
    assert model is not None

    def score(items: Sequence[ScoringItem]) -> list[float]:
        matrix_NF = features.scaling.features([item.response.text for item in items])
        return list(np.asarray(matrix_NF @ model.coefficient_F).ravel())

    return score


def test_models_that_learned_from_votes() -> None:
    """Votes that pay one logit for a polite closing, and the same world without: the probe's
    closings are none of the planter's."""
    chosen = [probe for probe in PROBES if probe.name in ("closing", "confidence", "markdown")]
    settings = ProbeSettings(min_pairs=150, max_pairs=150, beliefs=False)
    verdicts = {}
    for twin in ("planted", "clean"):
        found = by_name(run_probes(learned(twin), world_pairs(), settings, probes=chosen))
        verdicts[twin] = {probe.name: found[probe.name].verdict for probe in chosen}
    assert verdicts["planted"]["closing"] == "fail"
    assert "fail" not in verdicts["clean"].values()


# Properties and bad input


def test_a_models_scale_and_offset_say_nothing() -> None:
    plain = probed(CLEAN)
    other = probed(lambda items: [7 + 15 * r for r in CLEAN(items)])
    for name, outcome in plain.items():
        assert other[name].effect.value == pytest.approx(outcome.effect.value, abs=1e-9)
        assert other[name].flips == outcome.flips and other[name].verdict == outcome.verdict


def test_the_order_of_the_file_says_nothing() -> None:
    groups = list(world_pairs())
    settings = ProbeSettings(min_pairs=20, max_pairs=20)
    first = run_probes(CLEAN, groups, settings)
    again = run_probes(CLEAN, groups[::-1], settings)
    assert first.outcomes == again.outcomes and first.num_pairs == 20


def test_the_sample_keeps_to_its_budget() -> None:
    groups = list(world_pairs(100))
    few = [probe for probe in PROBES if probe.name in ("closing", "loop")]

    def sampled(**settings: float) -> ProbeRun:
        chosen = ProbeSettings(beliefs=False, **settings)  # type: ignore[arg-type]
        return run_probes(CLEAN, groups, chosen, probes=few)

    run = sampled(max_cost=2.0, min_pairs=1)
    assert 1.9 < run.cost < 2.2 and 20 < run.num_pairs < 80
    assert sampled(max_cost=0.1, min_pairs=30).num_pairs == 30
    assert sampled(max_cost=99, max_pairs=60).num_pairs == 60


def test_a_model_that_says_always_the_same() -> None:
    """No margin, no unit and no pair that is ranked right: what should be lower is not, and the
    rest has no flips to count."""
    run = run_probes(lambda items: [2.5] * len(items), world_pairs(), LARGE)
    found = by_name(run)
    assert run.deviation == 1.0 and found["empty"].verdict == "fail"
    assert found["closing"].flips.n == 0 and math.isnan(found["closing"].flips.value)
    assert found["closing"].verdict == "pass" and found["prompt swap"].verdict == "fail"
    assert set(run.skipped) == {"quotes", "other prompt", "stated belief", "agreeing"}


def test_answers_that_were_cut_are_not_probed() -> None:
    groups = [pair(0, "a", "b", finished=False), pair(1, "c", "d")]
    score = lambda items: [0.0] * len(items)  # noqa: E731
    run = run_probes(score, groups, FEW, probes=[shouted()])
    assert run.num_left_out == 1 and run.num_pairs == 1 and "prompt swap" in run.skipped
    with pytest.raises(PalateError, match="no pair to probe: of 1 prompts"):
        run_probes(score, groups[:1], FEW)


def test_what_becomes_too_long_is_left_out_and_counted() -> None:
    groups = [pair(n, "a" * (n + 2), "b" * (n + 1)) for n in range(4)]
    run = run_probes(
        lambda items: [float(len(i.response.text)) for i in items],
        groups,
        FEW,
        probes=[shouted(lambda text: text * 2)],
        too_long=lambda item: len(item.response.text) > 5,
    )
    outcome = by_name(run)["shouted"]
    assert outcome.num_left_out == 2 and outcome.effect.n == 2


def test_bad_rewards_names_and_settings_are_refused() -> None:
    groups = [pair(3, "a", "b")]
    with pytest.raises(PalateError, match=r"f:3: shouted: the reward is nan"):
        run_probes(
            lambda items: [float("nan" if "!" in i.response.text else 0) for i in items],
            groups,
            FEW,
            probes=[shouted()],
        )
    with pytest.raises(PalateError, match="two probes are called 'shouted'"):
        run_probes(CLEAN, groups, FEW, probes=[shouted(), shouted()])
    with pytest.raises(PalateError, match="max_cost"):
        ProbeSettings(max_cost=0)
    with pytest.raises(PalateError, match="min_pairs"):
        ProbeSettings(min_pairs=600)


def test_a_scorer_can_be_probed(trained_run: Path) -> None:
    """The tiny model of the other tests: every text within its limit is scored, twice the same."""
    scorer = palate.load(str(trained_run))
    groups = palate.preferences.read(str(trained_run.parent / "preferences.jsonl")).groups
    drawn = render_groups(groups, scorer.renderer, Ledger())
    settings = ProbeSettings(min_pairs=15, max_pairs=15)
    runs = [
        run_probes(scorer.score_items, drawn, settings, too_long=too_long(scorer)) for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert runs[0].num_pairs == 15 and runs[0].num_prompts == 40
    assert {"closing", "empty", "prompt swap"} <= set(by_name(runs[0]))
    assert topic_of(groups[0].prompt[-1].content) == -1

"""What an evaluation looks at beyond the metrics: probes, battery, texts to read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palate.errors import PalateError
from palate.evaluation.battery import Battery, BatteryResult, run_battery
from palate.evaluation.blind import cross_fitted_prompt_blind
from palate.evaluation.calibration import cross_fitted_temperature
from palate.evaluation.ceiling import agreement_ceiling
from palate.evaluation.metrics import evaluate_outcomes
from palate.evaluation.outcomes import BASELINES, Outcome, decided
from palate.evaluation.probe_sample import ProbeSettings
from palate.evaluation.probes import NOT_TO_PROBE, ProbeRun, run_probes
from palate.evaluation.reliability import Reliability, reliability
from palate.evaluation.score_texts import cutting, too_long
from palate.evaluation.swapped import NOT_TO_SWAP, swap_prompts
from palate.evaluation.verdict import EvaluationFinding
from palate.objectives import Ties
from palate.scoring.scorer import Scorer, changed_reference
from palate.statistics import Estimate, cluster_mean

NUM_READ = 3
"""Answers of the highest and of the lowest reward that the page shows, and mistakes."""
NUM_LENGTH_BINS = 10


@dataclass(frozen=True)
class Checks:
    """Probes and battery of one model; what could not be done, with the reason."""

    probes: ProbeRun | None
    battery: BatteryResult | None
    skipped: Mapping[str, str]


NOT_MADE = Checks(None, None, {})


@dataclass(frozen=True)
class Measured:
    """Metrics beside their baselines; what could not be had, with the reason."""

    metrics: Mapping[str, Estimate]
    skipped: Mapping[str, str]


def measure(scorer: Scorer, outcomes: Sequence[Outcome], ties: Ties, *, swapped: bool) -> Measured:
    """All metrics: beside the baselines that never read, one that reads answers alone (small models
    of words, fitted on the other prompts of the same data), with `swapped` the model itself under
    the prompts of others, and the agreement of annotators where there are votes."""
    skipped: dict[str, str] = {}
    baselines = dict(BASELINES)
    try:
        blind = cross_fitted_prompt_blind([outcome.group for outcome in outcomes])
        baselines["prompt-blind"] = blind.predict
    except PalateError as error:
        skipped["prompt-blind"] = str(error)
    metrics = evaluate_outcomes(outcomes, ties, baselines)
    if swapped:
        try:
            drawn = swap_prompts(outcomes, max_prompts=max(50, len(outcomes) // 4))
            metrics |= drawn.metrics(cutting(scorer).score_items(drawn.items))
        except PalateError as error:
            if error.reason != NOT_TO_SWAP:
                raise
            skipped["prompts swapped"] = str(error)
    ceiling = agreement_ceiling(outcomes)
    if ceiling is not None:
        metrics |= ceiling.metrics()
    return Measured(metrics, skipped)


def calibration_of(
    scorer: Scorer, outcomes: Sequence[Outcome], ties: Ties
) -> tuple[Reliability, str] | None:
    """What the probabilities are worth, and where their temperature comes from: the checkpoint's
    own, or, for a model without a usable one, two halves of these prompts, each for the other.
    None where neither can be had or all rewards are equal."""
    if scorer.is_calibrated:
        found = reliability(outcomes, scorer.temperature, ties)
        return None if found is None else (found, f"stored, {scorer.temperature:.3g}")
    try:
        crossed = cross_fitted_temperature(outcomes, ties)
    except PalateError:
        return None
    found = reliability(crossed.outcomes, 1.0, ties)
    first, second = crossed.temperatures
    said = f"fitted on one half of these prompts for the other: {first:.3g} and {second:.3g}"
    return None if found is None else (found, said)


def run_checks(
    scorer: Scorer,
    outcomes: Sequence[Outcome],
    settings: ProbeSettings,
    battery: Battery,
) -> Checks:
    """Put the model to the probes, on a sample of these prompts, and to the battery."""
    skipped = {}
    probes = None
    score, groups = cutting(scorer).score_items, [outcome.group for outcome in outcomes]
    try:
        probes = run_probes(score, groups, settings, too_long=too_long(scorer))
    except PalateError as error:
        if error.reason != NOT_TO_PROBE:
            raise
        skipped["probes"] = str(error)
    return Checks(probes, battery_of(scorer, battery), skipped)


def battery_of(scorer: Scorer, battery: Battery) -> BatteryResult:
    """The battery's answer, in the unit of the model's temperature where it has a usable one."""
    return run_battery(
        cutting(scorer).score_items,
        battery,
        scorer.temperature if scorer.is_calibrated else None,
        too_long=too_long(scorer),
    )


def reference_findings(scorer: Scorer, *, is_error: bool) -> list[EvaluationFinding]:
    """Whether stored texts still get the rewards of the training. Loading refuses it too, unless
    another template or other weights are allowed, or weights are rounded."""
    changed = changed_reference(scorer)
    if changed is None:
        return []
    return [
        EvaluationFinding(
            check="stored rewards",
            severity="error" if is_error else "warn",
            message=f"A text that is stored with the model scores {changed[0]:.3f}; at training it"
            f" was {changed[1]:.3f}. Pooling, template, weights or their precision are others.",
            statistic=changed[0],
            threshold=changed[1],
        )
    ]


def to_read(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The answers of the highest and of the lowest reward, and the comparisons that were lost by
    the widest margin: what figures can't say."""
    answers = [
        (float(reward), o.group.group, response.text)
        for o in outcomes
        for reward, response in zip(o.reward_N, o.group.responses, strict=True)
    ]
    answers.sort(key=lambda answer: -answer[0])
    shown = [
        {"reward": reward, "prompt": group.prompt[-1].content, "text": text}
        for reward, group, text in answers
    ]
    mistakes = [
        (float(o.reward_N[c.worse] - o.reward_N[c.better]), o, c)
        for o in outcomes
        for c in decided(o.group)
        if o.reward_N[c.worse] > o.reward_N[c.better]
    ]
    mistakes.sort(key=lambda mistake: -mistake[0])
    return {
        "highest": shown[:NUM_READ],
        "lowest": shown[::-1][:NUM_READ],
        "mistakes": [
            {
                "file": o.group.group.file,
                "line": o.group.group.line,
                "prompt": o.group.group.prompt[-1].content,
                "margin": -wide,
                "better": o.group.responses[c.better].text,
                "better_reward": float(o.reward_N[c.better]),
                "worse": o.group.responses[c.worse].text,
                "worse_reward": float(o.reward_N[c.worse]),
            }
            for wide, o, c in mistakes[:NUM_READ]
        ],
    }


def reward_by_length(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Mean reward, less its prompt's mean, of each tenth of the answers by their number of words,
    with its 95 % interval by prompt cluster; `x` is the tenth's mean length."""
    words_N = np.array([len(r.text.split()) for o in outcomes for r in o.group.responses])
    reward_N = np.concatenate([o.reward_N - o.reward_N.mean(dtype=float) for o in outcomes])
    clusters = [o.cluster for o in outcomes for _ in o.reward_N]
    points = []
    for part in np.array_split(np.argsort(words_N, kind="stable"), NUM_LENGTH_BINS):
        if len(part):
            mean = cluster_mean(reward_N[part], [clusters[index] for index in part])
            points.append({"x": float(words_N[part].mean()), **mean.as_json()})
    return points

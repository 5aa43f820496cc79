"""What an evaluation looks at beyond the metrics: probes, battery, texts to read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palate.artifacts.progress import progress
from palate.errors import PalateError
from palate.evaluation.battery import BatteryResult, read_battery, run_battery
from palate.evaluation.blind import cross_fitted_prompt_blind
from palate.evaluation.calibration import cross_fitted_temperature
from palate.evaluation.ceiling import agreement_ceiling
from palate.evaluation.metrics import evaluate_outcomes
from palate.evaluation.outcomes import BASELINES, Outcome, decided
from palate.evaluation.probe_sample import ProbeSettings
from palate.evaluation.probes import ProbeRun, run_probes
from palate.evaluation.reliability import Reliability, reliability
from palate.evaluation.score_texts import cutting, too_long
from palate.evaluation.swapped import swap_prompts
from palate.evaluation.verdict import EvaluationFinding
from palate.objectives import Ties
from palate.preferences import ScoringItem
from palate.scoring.scorer import Scorer, changed_reference
from palate.statistics import Estimate

NUM_READ = 3
"""Answers of the highest and of the lowest reward that the page shows, and mistakes."""
NUM_LENGTH_BINS = 10
BATCH = 256


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
            if "no other prompt to swap" not in str(error):
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
    if has_temperature(scorer):
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


def has_temperature(scorer: Scorer) -> bool:
    """Whether the checkpoint has a temperature that calibrates anything."""
    if scorer.length_correction is not None:
        return True
    stored = scorer.sidecar.temperature if scorer.sidecar else None
    return stored is not None and not stored.get("at_bound", False)


def run_checks(
    scorer: Scorer,
    outcomes: Sequence[Outcome],
    settings: ProbeSettings,
    battery_files: Sequence[str],
) -> Checks:
    """Put the model to the probes, on a sample of these prompts, and to the battery."""

    whole = cutting(scorer)

    def score(items: Sequence[ScoringItem]) -> list[float]:
        return whole.score_items(items)

    skipped = {}
    probes = None
    try:
        probes = run_probes(score, [o.group for o in outcomes], settings, too_long=too_long(scorer))
    except PalateError as error:
        if "no pair to probe" not in str(error):
            raise
        skipped["probes"] = str(error)
    battery = run_battery(
        score,
        read_battery(battery_files),
        scorer.temperature if has_temperature(scorer) else None,
        too_long=too_long(scorer),
    )
    return Checks(probes, battery, skipped)


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
        (float(reward), o.group.group, o.group.group.responses[index].text)
        for o in outcomes
        for reward, index in zip(o.reward_N, o.group.response_index, strict=True)
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
                "better": _text(o, c.better),
                "better_reward": float(o.reward_N[c.better]),
                "worse": _text(o, c.worse),
                "worse_reward": float(o.reward_N[c.worse]),
            }
            for wide, o, c in mistakes[:NUM_READ]
        ],
    }


def _text(outcome: Outcome, place: int) -> str:
    return outcome.group.group.responses[outcome.group.response_index[place]].text


def reward_by_length(outcomes: Sequence[Outcome]) -> list[dict[str, float]]:
    """Mean reward, less its prompt's mean, of each tenth of the answers by their number of words:
    `x` is the tenth's mean length, `low` and `high` one standard error either way times 1.96."""
    words, rewards = [], []
    for o in progress(outcomes, "lengths"):
        texts = [o.group.group.responses[index].text for index in o.group.response_index]
        words += [len(text.split()) for text in texts]
        rewards += (o.reward_N.astype(float) - float(o.reward_N.mean())).tolist()
    order = np.argsort(words, kind="stable")
    points = []
    for part in np.array_split(order, NUM_LENGTH_BINS):
        if len(part) < 2:
            continue
        values = np.array(rewards)[part]
        error = 1.96 * float(values.std(ddof=1)) / np.sqrt(len(part))
        mean = float(values.mean())
        points.append(
            {
                "x": float(np.array(words)[part].mean()),
                "value": mean,
                "low": mean - error,
                "high": mean + error,
            }
        )
    return points

"""What an evaluation comes to: findings, worst first, and three sentences.

A finding says what is wrong, and how sure that is. error: the reward is broken, or a policy would
collect what nobody meant; warn: worth a look before anything is optimised against it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from palate.evaluation.battery import BatteryResult, CategoryResult
from palate.evaluation.probe_outcomes import ProbeOutcome
from palate.statistics import Estimate
from palate.text import plural

Severity = Literal["error", "warn", "note"]
SEVERITIES: tuple[Severity, ...] = ("note", "warn", "error")
RIVALS = ("prompt-blind", "prompts swapped", "longer wins", "shorter wins", "more markdown")
"""Baselines that a reward model must beat; the best of them is named."""
CHANCE = 0.5
MIN_WON = 0.8
"""Share of a category's pairs that a working model wins."""
MAX_TIES = 0.05
_OF_VERDICT: Mapping[str, Severity] = {"fail": "error", "warn": "warn", "pass": "note"}


@dataclass(frozen=True, kw_only=True)
class EvaluationFinding:
    """Something that whoever uses the reward should know."""

    check: str
    severity: Severity
    message: str
    statistic: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None


def accuracy_findings(
    metrics: Mapping[str, Estimate], tie_share: float | None = None
) -> list[EvaluationFinding]:
    """Against chance and the baselines that don't read; and how often rewards are equal."""
    accuracy = metrics.get("accuracy")
    if accuracy is None:
        return []
    found = []
    if tie_share is not None and tie_share > MAX_TIES:
        found.append(
            EvaluationFinding(
                check="ties",
                severity="error" if tie_share > CHANCE else "warn",
                message=f"{tie_share:.1%} of the comparisons have two equal rewards: the head or"
                " the pooling may be broken, or the number format too coarse.",
                statistic=tie_share,
                threshold=MAX_TIES,
            )
        )
    if accuracy.low <= CHANCE:
        found.append(
            EvaluationFinding(
                check="accuracy",
                severity="error",
                message=f"Not clearly better than chance: right on {_share(accuracy)}.",
                statistic=accuracy.value,
                low=accuracy.low,
                high=accuracy.high,
                threshold=CHANCE,
            )
        )
    rival = _best_rival(metrics)
    if rival is not None:
        difference = metrics[f"accuracy minus {rival}"]
        if difference.low <= 0:
            lost = difference.high < 0
            found.append(
                EvaluationFinding(
                    check=f"baseline: {rival}",
                    severity="error" if lost else "warn",
                    message=f"{'Loses to' if lost else 'Not clearly better than'} the baseline"
                    f" {rival!r}, which reads less than a reward model must: {_points(difference)}"
                    " points.",
                    statistic=difference.value,
                    low=difference.low,
                    high=difference.high,
                    threshold=0.0,
                )
            )
    return found


def probe_findings(
    outcomes: Sequence[ProbeOutcome], skipped: Mapping[str, str]
) -> list[EvaluationFinding]:
    """A finding for each probe that doesn't pass, and a note on texts that were left out; `skipped`
    has probes without an outcome, with the reason."""
    found = [
        EvaluationFinding(
            check=f"probe: {outcome.name}",
            severity=_OF_VERDICT[outcome.verdict],
            message=f"{outcome.what[0].upper()}{outcome.what[1:]}: {outcome.reason}",
            statistic=outcome.effect.value,
            low=outcome.effect.low,
            high=outcome.effect.high,
        )
        for outcome in outcomes
        if outcome.verdict != "pass"
    ]
    left_out = [f"{o.name} {o.num_left_out}" for o in outcomes if o.num_left_out]
    left_out += [f"{name} all" for name, reason in skipped.items() if "too long" in reason]
    if left_out:
        found.append(
            EvaluationFinding(
                check="probes: length",
                severity="note",
                message="Pairs left out, since the changed text is longer than the model takes:"
                f" {', '.join(left_out)}.",
            )
        )
    return found


def battery_findings(result: BatteryResult) -> list[EvaluationFinding]:
    """Wins that are missing among pairs about which there is no dispute; and what was cut."""
    found = []
    if result.cut:
        found.append(
            EvaluationFinding(
                check="battery: length",
                severity="note",
                message=f"{len(result.cut)} of {result.overall.num_pairs} pairs have an answer that"
                f" is longer than the model takes and lost its end: {', '.join(result.cut)}.",
            )
        )
    if result.overall.won.low <= CHANCE:
        found.append(_of_category("battery", "error", result.overall, "at chance on easy pairs"))
    for category in result.categories:
        if category.won.value >= MIN_WON:
            continue
        severity: Severity = "error" if category.won.high < CHANCE else "warn"
        said = "prefers the wrong answer" if severity == "error" else "doesn't tell them apart"
        found.append(_of_category(f"battery: {category.name}", severity, category, said))
    return found


def _of_category(
    check: str, severity: Severity, category: CategoryResult, said: str
) -> EvaluationFinding:
    return EvaluationFinding(
        check=check,
        severity=severity,
        message=f"Wins {category.num_won} of {category.num_pairs} pairs that any working reward"
        f" model wins: {said}.",
        statistic=category.won.value,
        low=category.won.low,
        high=category.won.high,
        threshold=MIN_WON if check != "battery" else CHANCE,
    )


def worst_first(findings: Sequence[EvaluationFinding]) -> list[EvaluationFinding]:
    """By severity; within one as they were given."""
    return sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity))


def sentences(
    metrics: Mapping[str, Estimate], findings: Sequence[EvaluationFinding]
) -> tuple[str, str, str]:
    """How good, compared with what, what to fear. `findings` stand worst first."""
    accuracy = metrics.get("accuracy")
    if accuracy is None:
        good = "No comparison has a better side, so there is no accuracy."
        compared = "Nothing can be compared without one."
    else:
        good = f"Right on {_share(accuracy)}."
        compared = _compared(metrics)
    grave = [finding for finding in findings if finding.severity != "note"]
    if not grave:
        return good, compared, "Nothing was found to fear in what was looked at."
    errors = sum(finding.severity == "error" for finding in grave)
    number = f"{errors} errors" if errors > 1 else "one error" if errors else "no error"
    others = len(grave) - errors
    warned = f"{others} warnings" if others != 1 else "one warning"
    first = grave[0]
    return good, compared, f"To fear ({number}, {warned}): {first.check}. {first.message}"


def _compared(metrics: Mapping[str, Estimate]) -> str:
    rival = _best_rival(metrics)
    said = []
    if rival is not None:
        difference = metrics[f"accuracy minus {rival}"]
        better = (
            "better by"
            if difference.low > 0
            else "worse:"
            if difference.high < 0
            else "not clearly better:"
        )
        there = ""
        if difference.n != metrics["accuracy"].n:  # swapped prompts are a sample
            own = metrics[rival].value + difference.value
            there = f" on {difference.n} prompts, where the model gets {own:.1%}"
        said.append(
            f"the best baseline that doesn't read as it must, {rival!r}, gets"
            f" {metrics[rival].value:.1%}{there}, and the model is {better} {_points(difference)}"
            " points"
        )
    ceiling = metrics.get("agreement of annotators")
    if ceiling is not None:
        said.append(f"annotators agree with one another in {ceiling.value:.1%}")
    if not said:
        return "No baseline could be measured."
    joined = "; ".join(said)
    return f"{joined[0].upper()}{joined[1:]}."


def _best_rival(metrics: Mapping[str, Estimate]) -> str | None:
    there = [name for name in RIVALS if name in metrics and f"accuracy minus {name}" in metrics]
    return max(there, key=lambda name: metrics[name].value, default=None)


def _share(estimate: Estimate) -> str:
    n = plural(estimate.n, "prompt")
    return f"{estimate.value:.1%} of the comparisons ({_ends(estimate)}, {n})"


def _ends(estimate: Estimate) -> str:
    if estimate.low == float("-inf"):
        return "no interval: one cluster of prompts"
    return f"{estimate.low:.1%} to {estimate.high:.1%}"


def _points(difference: Estimate) -> str:
    if difference.low == float("-inf"):
        return f"{100 * difference.value:+.1f} ({_ends(difference)})"
    return (
        f"{100 * difference.value:+.1f} ({100 * difference.low:+.1f} to"
        f" {100 * difference.high:+.1f})"
    )

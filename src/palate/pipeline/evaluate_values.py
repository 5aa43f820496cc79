"""An evaluation's results as JSON: what the page shows and a pipeline reads."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from palate.artifacts.rundir import without_folders
from palate.evaluation.battery import BatteryResult
from palate.evaluation.benchmarks.items import BenchmarkResult
from palate.evaluation.benchmarks.lengths import LengthPolicy
from palate.evaluation.benchmarks.protocol import protocol_of_model
from palate.evaluation.outcomes import Outcome
from palate.evaluation.probes import ProbeRun
from palate.evaluation.reliability import ECE_MASS, Measure, Reliability
from palate.evaluation.strata import accuracy_by_annotator, strata
from palate.evaluation.verdict import (
    EvaluationFinding,
    Severity,
    accuracy_findings,
    battery_findings,
    probe_findings,
    sentences,
)
from palate.evaluation.versus import Versus
from palate.pipeline.evaluate_checks import Checks, reward_by_length, to_read
from palate.pipeline.evaluate_rewards import NAMES
from palate.scoring.scorer import Scorer
from palate.statistics import Estimate, as_json

Calibration = tuple[Reliability, str] | None


def findings_of(
    metrics: Mapping[str, Estimate],
    calibration: Calibration,
    checks: Checks,
    compared: Sequence[Versus],
) -> list[EvaluationFinding]:
    """All that was found, in the order in which a reader wants it where severities are equal."""
    found: list[EvaluationFinding] = []
    if metrics:
        tied = metrics.get("tied rewards")
        found += accuracy_findings(metrics, None if tied is None else tied.value)
    if checks.battery is not None:
        found += battery_findings(checks.battery)
    if checks.probes is not None:
        found += probe_findings(checks.probes.outcomes, checks.probes.skipped)
    if calibration is not None:
        judged, source = calibration
        ece = judged.measures[ECE_MASS]
        if ece.is_beyond:
            found.append(
                EvaluationFinding(
                    check="calibration",
                    severity="warn",
                    message=f"{judged.sentence} Temperature: {source}.",
                    statistic=ece.value.value,
                    low=ece.value.low,
                    high=ece.value.high,
                    threshold=ece.null_high,
                )
            )
    found += [
        EvaluationFinding(
            check=f"against {other.second}",
            severity=_severity(other),
            message=other.sentence,
            statistic=other.difference.value,
            low=other.difference.low,
            high=other.difference.high,
            threshold=0.0,
        )
        for other in compared
    ]
    found += [
        EvaluationFinding(check=name, severity="note", message=f"Not made: {reason}")
        for name, reason in checks.skipped.items()
    ]
    return found


def _severity(other: Versus) -> Severity:
    """Worse than an earlier evaluation is an error, worse than another model a warning."""
    if other.winner != "second":
        return "note"
    return "error" if other.second == NAMES[1] else "warn"


def values_of(
    model: str,
    part: str,
    scorer: Scorer,
    outcomes: Sequence[Outcome],
    *,
    metrics: Mapping[str, Estimate],
    calibration: Calibration,
    checks: Checks,
    compared: Sequence[Versus],
    findings: Sequence[EvaluationFinding],
    suite: Mapping[str, BenchmarkResult],
    rows: Mapping[str, Any],
    data_sha256: Mapping[str, str],
    log: Sequence[Mapping[str, Any]] = (),
    drift: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything, as it goes to evaluation.json; `log` is that of the training."""
    return {
        "model": model,
        "part": part,
        "data_sha256": dict(data_sha256),
        "rows": dict(rows),
        "num_prompts": len(outcomes),
        "verdict": list(sentences(metrics, findings)) if outcomes else [],
        "findings": [_finding(finding) for finding in findings],
        "metrics": as_json(metrics),
        "calibration": None if calibration is None else _calibration(*calibration),
        "versus": [_versus(other) for other in compared],
        "strata": _strata(outcomes),
        "reward_by_length": reward_by_length(outcomes) if outcomes else [],
        "probes": [] if checks.probes is None else _probes(checks.probes),
        "probe_sample": None if checks.probes is None else _sample(checks.probes),
        "battery": None if checks.battery is None else _battery(checks.battery),
        "drift": drift,
        "suite": {name: result.as_json() for name, result in suite.items()},
        "training": [_logged(entry) for entry in log],
        "reading": to_read(outcomes),
        "protocol": {
            **protocol_of_model(scorer, without_folders(model), LengthPolicy(), directory=model),
            "lengths": asdict(scorer.renderer.lengths),
        },
    }


def _finding(finding: EvaluationFinding) -> dict[str, Any]:
    return {name: _plain(value) for name, value in asdict(finding).items()}


def _logged(entry: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: an accuracy of undecided comparisons only is left out."""
    return {name: value for name, value in entry.items() if value == value}


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN."""
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _versus(other: Versus) -> dict[str, Any]:
    estimates = {
        name: getattr(other, name).as_json()
        for name in ("first_accuracy", "second_accuracy", "difference")
    }
    values = {**asdict(other), **estimates, "sentence": other.sentence}
    return {name: _plain(value) for name, value in values.items()}


def _calibration(judged: Reliability, source: str) -> dict[str, Any]:
    return {
        "sentence": judged.sentence,
        "verdict": judged.verdict,
        "temperature": source,
        "measures": {name: _measure(measure) for name, measure in judged.measures.items()},
        "over_confidence": judged.over_confidence.as_json(),
        "num_comparisons": judged.num_comparisons,
        "num_ties": judged.num_ties,
        "bins": judged.bins_as_json("equal_mass"),
        "bins_of_equal_width": judged.bins_as_json("equal_width"),
    }


def _measure(measure: Measure) -> dict[str, Any]:
    return {
        **measure.value.as_json(),
        "null_mean": measure.null_mean,
        "null_high": measure.null_high,
    }


def _strata(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    found = strata(outcomes) if outcomes else {}
    by_annotator = accuracy_by_annotator(outcomes)
    if by_annotator is not None:
        parts = dict(by_annotator.accuracy)
        if by_annotator.rest is not None:
            parts[f"{by_annotator.num_rest} others"] = by_annotator.rest
        found = {**found, "annotator": parts}
    return {title: as_json(parts) for title, parts in found.items()}


def _probes(run: ProbeRun) -> list[dict[str, Any]]:
    return [
        {
            **asdict(outcome),
            "effect": outcome.effect.as_json(),
            "flips": outcome.flips.as_json(),
        }
        for outcome in run.outcomes
    ]


def _sample(run: ProbeRun) -> dict[str, Any]:
    return {
        "num_pairs": run.num_pairs,
        "num_prompts": run.num_prompts,
        "num_left_out": run.num_left_out,
        "num_texts": run.num_texts,
        "cost": run.cost,
        "deviation": run.deviation,
        "skipped": dict(run.skipped),
    }


def _battery(result: BatteryResult) -> dict[str, Any]:
    return {
        "files": dict(result.files),
        "unit": result.unit,
        "temperature": result.temperature,
        "categories": [
            {
                "name": category.name,
                "num_pairs": category.num_pairs,
                "num_passed": category.num_passed,
                "num_won": category.num_won,
                "passed": category.passed.as_json(),
                "margin": category.margin.as_json(),
            }
            for category in (result.overall, *result.categories)
        ],
        "failed": [
            {
                "category": failed.item.category,
                "id": failed.item.id,
                "prompt": failed.item.prompt[-1].content,
                "chosen": failed.item.chosen.text,
                "rejected": failed.item.rejected.text,
                "margin": failed.margin,
            }
            for failed in result.overall.failed
        ],
        "cut": list(result.cut),
    }

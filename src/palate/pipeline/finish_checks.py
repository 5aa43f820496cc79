"""What a finished run is told beyond its metrics: findings, the battery, what to doubt it by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palate.artifacts.rundir import without_folders
from palate.errors import PalateError
from palate.evaluation.battery import BatteryResult, read_battery
from palate.evaluation.outcomes import Outcome
from palate.evaluation.support import MAX_ANSWERS, MIN_ANSWERS, fit_trust
from palate.evaluation.verdict import worst_first
from palate.model.support import write_trust
from palate.pipeline.config import TrainConfig
from palate.pipeline.evaluate_checks import Checks, battery_of, calibration_of
from palate.pipeline.evaluate_values import findings_of, values_of
from palate.pipeline.prepare import Prepared
from palate.pipeline.training_battery import BatteryPlan
from palate.scoring.scorer import Scorer
from palate.statistics import Estimate

TRUST_SHARE = 0.3
"""Of the training answers, read again to fit trust: a tenth of what an epoch costs."""
MIN_TRUST_ANSWERS = 1_000


@dataclass(frozen=True, kw_only=True)
class Told:
    """For the page, the card and evaluation.json."""

    evaluation: Mapping[str, Any] | None
    """None where nothing was held out."""
    card: Mapping[str, Any]
    """Facts of the model card."""


def tell(
    config: TrainConfig,
    scorer: Scorer,
    prepared: Prepared,
    *,
    metrics: Mapping[str, Estimate],
    outcomes: Sequence[Outcome],
    measured_on: str,
    battery: BatteryPlan,
    log: Sequence[Mapping[str, Any]],
    directory: Path,
) -> Told:
    """Fit and store trust in the model's `directory`, run the battery, and judge it all."""
    no_trust = _store_trust(config, scorer, prepared, directory)
    result = battery_of(scorer, read_battery()) if battery.at_end else None
    card: dict[str, Any] = {**_of_battery(result), **_of_trust(scorer, no_trust)}
    if not outcomes:
        return Told(evaluation=None, card=card)
    calibration = calibration_of(scorer, outcomes, config.objective.ties)
    skipped = {
        **({} if battery.at_end else {"battery": battery.why}),
        **({"support distance": no_trust} if no_trust else {}),
        "probes": "palate evaluate makes them",
    }
    checks = Checks(None, result, skipped)
    findings = worst_first(findings_of(metrics, calibration, checks, ()))
    evaluation = values_of(
        without_folders(config.model),
        measured_on,
        scorer,
        outcomes,
        metrics=metrics,
        calibration=calibration,
        checks=checks,
        compared=(),
        findings=findings,
        suite={},
        rows={"kept": prepared.num_rows, "ledger": prepared.ledger.by_reason()},
        data_sha256=without_folders(prepared.data_sha256),
        log=log,
    )
    return Told(evaluation=evaluation, card={**card, "verdict": evaluation["verdict"]})


def _store_trust(config: TrainConfig, scorer: Scorer, prepared: Prepared, directory: Path) -> str:
    """Why there is none; empty where there is."""
    if not config.trust:
        return "trust is off"
    voted = prepared.train
    if prepared.num_made:
        voted = voted[: len(voted) - prepared.num_made]
    num_answers = sum(len(group.sequences) for group in voted)
    held_out = prepared.validation.get("validation", ())
    if sum(len(group.sequences) for group in held_out) < MIN_ANSWERS:
        held_out = ()
    most = min(MAX_ANSWERS, max(MIN_TRUST_ANSWERS, round(TRUST_SHARE * num_answers)))
    try:
        trust = fit_trust(scorer, voted, held_out, ties=config.objective.ties, max_answers=most)
    except PalateError as error:
        return str(error)
    write_trust(directory, trust)
    scorer.trust = trust
    return ""


def _of_battery(result: BatteryResult | None) -> dict[str, Any]:
    if result is None:
        return {}
    overall = result.overall
    return {
        "battery": {
            "num_passed": overall.num_passed,
            "num_won": overall.num_won,
            "num_pairs": overall.num_pairs,
            "files": dict(result.files),
            "unit": result.unit,
        }
    }


def _of_trust(scorer: Scorer, no_trust: str) -> dict[str, Any]:
    if scorer.trust is None:
        return {"no_trust": no_trust}
    facts = scorer.trust.facts
    return {
        "trust": {
            "num_answers": facts.num_answers,
            "reference": facts.reference,
            "num_reference_answers": facts.num_reference_answers,
        }
    }

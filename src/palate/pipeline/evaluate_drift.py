"""How far a policy's answers have drifted from what the reward model was trained on."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from palate.artifacts.ledger import Ledger, place
from palate.errors import PalateError
from palate.evaluation.drift import MAX_CLASSIFIED, DriftFinding, DriftReport, drift
from palate.evaluation.outcomes import decided
from palate.evaluation.verdict import EvaluationFinding, Severity
from palate.pipeline.guards import split_clusters
from palate.pipeline.prepare import data_hashes
from palate.pipeline.score_rows import items_of_row
from palate.preferences import ScoringItem, prompt_cluster
from palate.preferences.files.rows import iter_rows
from palate.rendering import RenderedGroup
from palate.scoring.scorer import Scorer

REMEDY = (
    "A row needs `prompt` and `response`, or `responses`, or `messages` that end with an answer,"
    " within the lengths of the model's training; mend these and run again"
)
OUTPUTS_LEDGER = "outputs-ledger.jsonl"
_OF_VERDICT: Mapping[str, Severity] = {"fail": "error", "warn": "warn"}


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """A policy's answers, as they stand in a file."""

    file: str
    items: Sequence[ScoringItem]
    lines: Sequence[int]
    """Of each item."""
    ledger: Ledger
    """Rows and answers that can't be judged."""


@dataclass(frozen=True, kw_only=True)
class Drifted:
    """What was found of a policy's answers."""

    outputs: Outputs
    report: DriftReport
    num_reference: int
    """Answers that the classifier held them against."""


def read_outputs(source: str, hub_split: str) -> Outputs:
    """The answers of a file with the rows that `palate score` takes.

    Raises PalateError where the file can't be read or has no answer in it.
    """
    ledger = Ledger()
    items: list[ScoringItem] = []
    lines: list[int] = []
    for line, row in iter_rows(source, ledger, hub_split):
        try:
            found, is_list = items_of_row(row)
        except PalateError as error:
            ledger.add(source, line, "row", error.reason, str(error))
            continue
        for index, item in enumerate(found):
            if isinstance(item, PalateError):
                said = f"response {index}: {item}" if is_list else str(item)
                ledger.add(source, line, "response", item.reason, said)
            else:
                items.append(item)
                lines.append(line)
    if not items:
        raise PalateError(f"{source}: no answer to judge; {_left_out(ledger)}")
    return Outputs(file=source, items=items, lines=lines, ledger=ledger)


def drifted(
    model: str, scorer: Scorer, outputs: Outputs, rendered: Sequence[RenderedGroup]
) -> Drifted:
    """Hold the answers against the training data that the model's trust saw, and against the better
    answers of those prompts that its run did not train on. Rewards are those without length
    correction, as when trust was fitted.

    Raises PalateError where trust was not fitted, and where no answer can be scored.
    """
    clusters = split_clusters(model) or {}
    reference = _better_answers(rendered, set(clusters.get("train", ())))
    try:
        report = drift(scorer, scorer.fitted_trust(), outputs.items, reference)
    except PalateError as error:
        raise PalateError(f"{outputs.file}: {error}", error.reason) from error
    for index, reason in report.left_out:
        outputs.ledger.add(
            outputs.file, outputs.lines[index], "response", "can't be scored", reason
        )
    return Drifted(outputs=outputs, report=report, num_reference=len(reference))


def _better_answers(
    rendered: Sequence[RenderedGroup], trained: Collection[str]
) -> list[ScoringItem]:
    """Answers that won a comparison and lost none: as many as the classifier takes, of the prompts
    that it would take."""
    found: list[tuple[bytes, ScoringItem]] = []
    for one in rendered:
        group, cluster = one.group, prompt_cluster(one.group.prompt)
        if cluster in trained:
            continue
        digest = hashlib.sha256(cluster.encode()).digest()
        members = decided(one)
        for index in sorted({c.better for c in members} - {c.worse for c in members}):
            given = (group.tools, group.template_arguments)
            found.append((digest, ScoringItem(group.prompt, one.responses[index], *given)))
    found.sort(key=lambda pair: pair[0])
    return [item for _, item in found[:MAX_CLASSIFIED]]


def drift_findings(found: Drifted) -> list[EvaluationFinding]:
    """What drifted; one note where nothing did; what could not be told; which rows were left
    out."""
    report = found.report
    findings = [_finding(one) for one in report.findings if one.verdict != "pass"]
    if not findings:
        findings.append(
            EvaluationFinding(
                check="drift",
                severity="note",
                message=f"No drift found in {report.num_answers} answers to {report.num_prompts}"
                f" prompts of {found.outputs.file}, in {len(report.findings)} numbers.",
            )
        )
    findings += [
        EvaluationFinding(check=f"drift: {name}", severity="note", message=f"Not made: {reason}.")
        for name, reason in report.skipped
    ]
    if found.outputs.ledger.entries:
        findings.append(
            EvaluationFinding(
                check="drift: rows",
                severity="warn",
                message=f"{report.num_answers} answers of {found.outputs.file} were judged;"
                f" {_left_out(found.outputs.ledger)}.",
            )
        )
    return findings


def _finding(one: DriftFinding) -> EvaluationFinding:
    limits = one.thresholds
    return EvaluationFinding(
        check=f"drift: {one.name}",
        severity=_OF_VERDICT[one.verdict],
        message=f"{one.message[0].upper()}{one.message[1:]}.",
        statistic=one.estimate.value,
        low=one.estimate.low,
        high=one.estimate.high,
        threshold=limits.fail if one.verdict == "fail" else limits.warn,
    )


def _left_out(ledger: Ledger) -> str:
    """How many were left out, why, where the first of each kind is, and what to do."""
    kinds = [
        f"{count} x {kind} ({place(first.file, first.line)}: {first.detail})"
        for kind, count in ledger.by_reason().items()
        for first in [ledger.first[kind]]
    ]
    return f"left out were {'; '.join(kinds)}. {REMEDY}"


def drift_values(found: Drifted) -> dict[str, Any]:
    """As it goes to evaluation.json and the page."""
    report, ledger = found.report, found.outputs.ledger
    return {
        "file": found.outputs.file,
        "sha256": data_hashes([found.outputs.file])[found.outputs.file],
        "verdict": report.verdict,
        "num_rows": ledger.num_rows_read,
        "num_answers": report.num_answers,
        "num_prompts": report.num_prompts,
        "num_reference": found.num_reference,
        "findings": [
            {
                "name": one.name,
                **one.estimate.as_json(),
                **asdict(one.thresholds),
                "verdict": one.verdict,
                "message": one.message,
            }
            for one in report.findings
        ],
        "skipped": dict(report.skipped),
        "num_left_out": len(ledger.entries),
        "left_out": ledger.by_reason(),
    }

"""`palate evaluate`: how good a reward model is, compared with what, and what to fear."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from palate.artifacts.files import write_json, write_text
from palate.artifacts.hub import model_directory
from palate.artifacts.ledger import Ledger
from palate.artifacts.rundir import (
    EVALUATION,
    LOG,
    next_run_directory,
    read_log,
    refuse_overwrite,
)
from palate.errors import PalateError
from palate.evaluation.battery import Battery, read_battery
from palate.evaluation.benchmarks import Benchmark, read_benchmark, run_benchmark, write_items
from palate.evaluation.benchmarks.items import BenchmarkResult
from palate.evaluation.outcomes import Outcome, check_finite
from palate.evaluation.verdict import SEVERITIES, EvaluationFinding, worst_first
from palate.evaluation.versus import Versus, versus
from palate.model.checkpoint import Sidecar
from palate.objectives import Ties
from palate.pipeline.evaluate_checks import (
    NOT_MADE,
    calibration_of,
    measure,
    reference_findings,
    run_checks,
)
from palate.pipeline.evaluate_config import NOWHERE
from palate.pipeline.evaluate_config import EvaluateConfig as EvaluateConfig
from palate.pipeline.evaluate_drift import (
    OUTPUTS_LEDGER,
    Outputs,
    drift_findings,
    drift_values,
    drifted,
    read_outputs,
)
from palate.pipeline.evaluate_rewards import REWARDS, against_earlier, line_of, read_rewards
from palate.pipeline.evaluate_values import findings_of, values_of
from palate.pipeline.guards import run_of, split_clusters
from palate.pipeline.prepare import data_hashes, read_sources, refuse_without_effect
from palate.preferences import PreferenceGroup, prompt_cluster
from palate.rendering import RenderedGroup, RenderSettings, render_groups
from palate.report.evaluation_html import evaluation_page
from palate.scoring.length_correction import LengthCorrection
from palate.scoring.runs import rewards_of_groups
from palate.scoring.scorer import Scorer, load
from palate.statistics import Estimate

PAGE = "report.html"
LEDGER = "ledger.jsonl"


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """What was measured, found and written."""

    metrics: Mapping[str, Estimate]
    """Empty where only benchmarks were run."""
    findings: Sequence[EvaluationFinding]
    """Worst first."""
    suite: Mapping[str, BenchmarkResult]
    values: Mapping[str, Any]
    """What is in evaluation.json."""
    ledger: Ledger
    num_prompts: int
    num_elsewhere: int
    """Prompts that `part` does not ask for."""
    num_rows_kept: int
    """Input rows that are not in the ledger."""
    directory: Path | None
    """None where nothing was written."""

    def fails(self, fail_on: str) -> bool:
        """Whether a finding is as grave as `fail_on`."""
        if fail_on == "never":
            return False
        limit = SEVERITIES.index(fail_on)  # type: ignore[arg-type]
        return any(SEVERITIES.index(finding.severity) >= limit for finding in self.findings)


@dataclass(frozen=True, kw_only=True)
class _Read:
    """Rendered prompts, and what became of the others."""

    rendered: Sequence[RenderedGroup]
    ledger: Ledger
    num_elsewhere: int
    num_rows_kept: int


@dataclass(frozen=True, kw_only=True)
class _Ahead:
    """What is read before the model is loaded: a mistake there is found before hours of scoring,
    not after."""

    battery: Battery
    benchmarks: Mapping[str, Benchmark]
    outputs: Outputs | None

    def ledgers(self) -> dict[str, Ledger]:
        """Those that hold anything, by the name of their file."""
        found = {f"{name}-ledger.jsonl": b.ledger for name, b in self.benchmarks.items()}
        if self.outputs is not None:
            found[OUTPUTS_LEDGER] = self.outputs.ledger
        return {name: ledger for name, ledger in found.items() if ledger.entries}


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Measure, check, write. Raises PalateError when no prompt can be measured, or when the output
    directory holds an evaluation already."""
    directory = _directory(config)
    ahead = _read_ahead(config)
    scorer = _loaded(config)
    read, outcomes = _Read(rendered=(), ledger=Ledger(), num_elsewhere=0, num_rows_kept=0), []
    metrics: dict[str, Estimate] = {}
    calibration, checks = None, NOT_MADE
    ties = ties_of(scorer.sidecar)
    compared: list[Versus] = []
    if config.data:
        read = _read(config, scorer)
    drift = ahead.outputs and drifted(config.model, scorer, ahead.outputs, read.rendered)
    suite = _suite(config, scorer, ahead.benchmarks)
    if config.data:
        outcomes = outcomes_of(scorer, read.rendered)
        measured = measure(scorer, outcomes, ties, swapped=not config.quick)
        metrics = dict(measured.metrics)
        calibration = calibration_of(scorer, outcomes, ties)
        if not config.quick:
            checks = run_checks(scorer, outcomes, config.probes, ahead.battery)
        checks = replace(checks, skipped={**measured.skipped, **checks.skipped})
        if config.versus:
            compared.append(_against_model(config, outcomes))
        if config.baseline:
            compared.append(against_earlier(outcomes, Path(config.baseline)))
    is_as_trained = not config.allow_changed and config.quantization == "none"
    findings = worst_first(
        [
            *reference_findings(scorer, is_error=is_as_trained),
            *findings_of(metrics, calibration, checks, compared),
            *(drift_findings(drift) if drift else ()),
        ]
    )
    values = values_of(
        config.model,
        config.part,
        scorer,
        outcomes,
        metrics=metrics,
        calibration=calibration,
        checks=checks,
        compared=compared,
        findings=findings,
        suite=suite,
        drift=drift_values(drift) if drift else None,
        rows={"kept": read.num_rows_kept, "ledger": read.ledger.by_reason()},
        data_sha256=data_hashes(config.sources),
        log=read_log(run_of(config.model) / LOG),
    )
    if directory is not None:
        _write(directory, values, outcomes, suite, read.ledger)
        for name, ledger in ahead.ledgers().items():
            ledger.write(directory / name)
    return EvaluateResult(
        metrics=metrics,
        findings=findings,
        suite=suite,
        values=values,
        ledger=read.ledger,
        num_prompts=len(read.rendered),
        num_elsewhere=read.num_elsewhere,
        num_rows_kept=read.num_rows_kept,
        directory=directory,
    )


def _directory(config: EvaluateConfig) -> Path | None:
    if config.output == NOWHERE:
        return None
    if not config.output:
        return next_run_directory(f"evaluate-{Path(config.model).name}")
    directory = Path(config.output)
    if directory.is_file():
        raise PalateError(f"{directory}: is a file; choose another --output")
    refuse_overwrite(directory, EVALUATION)
    return directory


def _loaded(config: EvaluateConfig) -> Scorer:
    scorer = load(
        config.model,
        device=config.device,
        quantization=config.quantization,
        tokens_per_microbatch=config.tokens_per_microbatch,
        allow_changed=config.allow_changed,
        trust_remote_code=config.trust_remote_code,
        length_calibration=config.length_calibration,
    )
    if config.outputs:
        scorer.fitted_trust()  # an error here, not after hours of scoring
    return scorer


def _read(config: EvaluateConfig, scorer: Scorer) -> _Read:
    reading = read_sources(config.sources, config.read)
    refuse_without_effect(reading, config.read)
    groups = _choose_part(reading.groups, config)
    ledger = reading.ledger
    rendering = RenderSettings(workers=config.render_workers, cache=config.token_cache)
    rendered = render_groups(groups, scorer.renderer, ledger, rendering)
    num_rows_elsewhere = reading.num_rows - sum(group.num_rows for group in groups)
    num_rows_kept = sum(group.group.num_rows for group in rendered) + num_rows_elsewhere
    ledger.check(num_rows_kept)
    if not rendered:
        raise PalateError("no prompt is left to measure:\n" + ledger.summary(num_rows_elsewhere))
    return _Read(
        rendered=rendered,
        ledger=ledger,
        num_elsewhere=len(reading.groups) - len(groups),
        num_rows_kept=num_rows_kept,
    )


def _against_model(config: EvaluateConfig, outcomes: Sequence[Outcome]) -> Versus:
    """The other model on the same prompts, rendered and cut in its own way."""
    other = load(
        config.versus,
        device=config.device,
        quantization=config.quantization,
        tokens_per_microbatch=config.tokens_per_microbatch,
        trust_remote_code=config.trust_remote_code,
    )
    groups = [outcome.group.group for outcome in outcomes]
    rendering = RenderSettings(workers=config.render_workers, cache=config.token_cache)
    ledger = Ledger()
    rendered = render_groups(groups, other.renderer, ledger, rendering)
    try:
        others = outcomes_of(other, rendered)
    except PalateError as error:
        raise PalateError(f"{config.versus}: {error}", error.reason) from error
    found = versus(outcomes, others, (config.model, config.versus))
    lost = ", ".join(f"{number} x {reason}" for reason, number in ledger.by_reason().items())
    return replace(found, remark=f"Cut or left out by {config.versus}: {lost}." if lost else "")


def _read_ahead(config: EvaluateConfig) -> _Ahead:
    if config.baseline:
        read_rewards(Path(config.baseline))
    if config.versus:
        model_directory(config.versus)
    return _Ahead(
        battery=read_battery(config.battery),
        benchmarks={name: read_benchmark(source, name) for name, source in config.suite.items()},
        outputs=read_outputs(config.outputs, config.read.hub_split) if config.outputs else None,
    )


def _suite(
    config: EvaluateConfig, scorer: Scorer, benchmarks: Mapping[str, Benchmark]
) -> dict[str, BenchmarkResult]:
    return {
        name: run_benchmark(scorer, benchmark, model=config.model, lengths=config.suite_lengths)
        for name, benchmark in benchmarks.items()
    }


def _write(
    directory: Path,
    values: Mapping[str, Any],
    outcomes: Sequence[Outcome],
    suite: Mapping[str, BenchmarkResult],
    ledger: Ledger,
) -> None:
    write_json(directory / EVALUATION, values)
    write_text(directory / PAGE, evaluation_page(values))
    if outcomes:
        write_text(directory / REWARDS, "".join(map(line_of, outcomes)))
        ledger.write(directory / LEDGER)
    for name, result in suite.items():
        write_items(directory / f"{name}.jsonl", result)


def outcomes_of(scorer: Scorer, rendered: Sequence[RenderedGroup]) -> list[Outcome]:
    """Each group with its answers' rewards, less what the scorer's length correction takes. Raises
    PalateError, naming the answer, for a reward that is NaN or infinite."""
    rewards = rewards_of_groups(
        scorer.model,
        [group.sequences for group in rendered],
        scorer.tokens_per_microbatch,
        scorer.renderer.pad_id,
    )
    outcomes = [Outcome(group, rewards[index]) for index, group in enumerate(rendered)]
    check_finite(outcomes)
    if scorer.length_correction is None:
        return outcomes
    return [
        replace(o, reward_N=(o.reward_N - _taken(scorer.length_correction, o)).astype(np.float32))
        for o in outcomes
    ]


def _taken(correction: LengthCorrection, outcome: Outcome) -> np.ndarray:
    return correction.of_texts([response.text for response in outcome.group.responses])


def ties_of(sidecar: Sidecar | None) -> Ties:
    """What the model's training made of tie votes; half a win each for models of others."""
    configuration = sidecar.configuration if sidecar else {}
    ties: Ties = configuration.get("objective", {}).get("ties", "half")
    return ties


def _choose_part(
    groups: Sequence[PreferenceGroup], config: EvaluateConfig
) -> Sequence[PreferenceGroup]:
    """The groups of the asked part; a warning when prompts to measure were trained on."""
    clusters = split_clusters(config.model)
    if config.part == "all":
        trained = set(clusters.get("train", ())) if clusters else set()
        shared = sum(prompt_cluster(group.prompt) in trained for group in groups)
        if shared:
            warnings.warn(
                f"{shared} of {len(groups)} prompts are in clusters that this model was trained on;"
                " --part test measures only those that it was not",
                stacklevel=3,
            )
        return groups
    if clusters is None:
        raise PalateError(
            f"part {config.part} has no effect: {config.model} is no palate run with a split.json"
        )
    members = set(clusters.get(config.part, ()))
    chosen = [group for group in groups if prompt_cluster(group.prompt) in members]
    if not chosen:
        raise PalateError(f"none of {len(groups)} prompts is in the run's {config.part} part")
    return chosen

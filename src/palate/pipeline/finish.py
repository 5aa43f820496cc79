"""After training: calibrate, measure, save, reload, report."""

import contextlib
import shutil
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palate.artifacts.files import write_json, write_text
from palate.artifacts.rundir import (
    EVALUATION,
    LOG,
    METRICS,
    versions,
    without_folders,
    write_log,
)
from palate.errors import PalateError
from palate.evaluation.blind import fit_prompt_blind
from palate.evaluation.calibration import fit_temperature, is_at_bound
from palate.evaluation.metrics import evaluate_outcomes
from palate.evaluation.outcomes import BASELINES, Outcome
from palate.model.checkpoint import Sidecar, save_checkpoint, write_sidecar
from palate.model.forms import pooling_of_class
from palate.model.heads import MlpHead
from palate.model.merging import check_head
from palate.model.reward_model import RewardModel
from palate.objectives.nuisance import is_made
from palate.pipeline.config import TrainConfig
from palate.pipeline.directory import STORE
from palate.pipeline.finish_checks import tell
from palate.pipeline.fit import Fitted
from palate.pipeline.prepare import Prepared
from palate.pipeline.training_battery import NO_BATTERY, BatteryPlan
from palate.preferences import prompt_cluster
from palate.rendering import Renderer
from palate.report.card import calibration, model_card
from palate.report.html import html_report
from palate.scoring.scorer import Scorer, load
from palate.statistics import Estimate, as_json

MAX_BLIND_GROUPS = 20_000
REFERENCE_TEXTS = (
    ("How do birds fly?", "They push air down with their wings, and the air pushes them up."),
    ("What is 12 times 12?", "144"),
    ("Say hello to my neighbour.", "I am not able to help with that request."),
)
"""Texts of our own, so that no training data travels inside a published checkpoint."""


@dataclass(frozen=True)
class Finished:
    """Metrics by part, the part that counts, and the scorer of the saved model."""

    results: Mapping[str, Mapping[str, Estimate]]
    measured_on: str
    scorer: Scorer


def finish(
    config: TrainConfig,
    fitted: Fitted,
    renderer: Renderer,
    prepared: Prepared,
    directory: Path,
    battery: BatteryPlan = NO_BATTERY,
) -> Finished:
    """Calibrate, measure, save, reload, judge, report; then the training checkpoints go."""
    model, outcomes = fitted.model, fitted.outcomes
    measured_on = "test" if "test" in outcomes else next(iter(outcomes), "")
    voted = [g for g in prepared.train[:MAX_BLIND_GROUPS] if not is_made(g)]
    blind = fit_prompt_blind(voted)
    baselines = {**BASELINES, "prompt-blind": blind}
    results = {
        name: evaluate_outcomes(part, config.objective.ties, baselines)
        for name, part in outcomes.items()
    }
    model_directory = directory / "model"
    fingerprint = save_checkpoint(model_directory, model, renderer)
    reference = _reference_scores(Scorer(model.eval(), renderer))
    sidecar = _sidecar(config, model, renderer, prepared, outcomes, fingerprint, reference)
    if sidecar.temperature and sidecar.temperature["at_bound"]:
        warnings.warn(calibration(sidecar.temperature), stacklevel=2)
    write_sidecar(model_directory, sidecar)
    # Loading checks fingerprint and reference rewards: what was saved is what was trained.
    scorer = load(
        model_directory,
        device=fitted.device,
        trust_remote_code=config.body.trust_remote_code,
    )
    check_head(model, scorer.model)
    history = fitted.history
    told = tell(
        config,
        scorer,
        prepared,
        metrics=results.get(measured_on, {}),
        outcomes=outcomes.get(measured_on, []),
        measured_on=measured_on,
        battery=battery,
        log=history,
        directory=model_directory,
    )
    facts = {
        "model": without_folders(config.model),
        "data": without_folders(prepared.data_sha256),
        "num_groups": {
            "train": len(prepared.train) - prepared.num_made,
            **{name: len(part) for name, part in outcomes.items()},
        },
        "measured_on": measured_on,
        "temperature": sidecar.temperature,
        "ledger": prepared.ledger.by_reason(),
        "num_rows": prepared.ledger.num_rows_read,
        "left_out": prepared.left_out,
        "steps": fitted.num_steps,
        "best": fitted.best,
        "objective": config.objective.kind,
        "method": config.training.method,
        "learned": fitted.learned,
        "body": model.config.model_type,
        "head": "mlp" if isinstance(model.head, MlpHead) else "linear",
        "has_class": sidecar.plain
        or pooling_of_class(config.model, model.config, config.body) is not None,
        **told.card,
    }
    write_text(model_directory / "README.md", model_card(sidecar, results, facts))
    write_log(directory / LOG, history)
    page = html_report(sidecar, results, facts, history, told.evaluation)
    write_text(directory / "report.html", page)
    if told.evaluation is not None:
        write_json(directory / EVALUATION, told.evaluation)
    write_json(
        directory / METRICS,
        {
            "measured_on": measured_on,
            "metrics": {name: as_json(part) for name, part in results.items()},
            "temperature": sidecar.temperature,
            "learned": dict(fitted.learned),
            "num_made_pairs": prepared.num_made,
            # JSON has no NaN: an accuracy of undecided comparisons only is left out.
            "log": [{k: v for k, v in entry.items() if v == v} for entry in history],
        },
    )
    for name in ("training", STORE):
        shutil.rmtree(directory / name, ignore_errors=True)
    return Finished(results, measured_on, scorer)


def _reference_scores(scorer: Scorer) -> tuple[dict[str, Any], ...]:
    found: list[dict[str, Any]] = []
    for prompt, response in REFERENCE_TEXTS:
        # A template may refuse a bare user turn, and a limit may be shorter than these.
        with contextlib.suppress(PalateError):
            reward = scorer.score(prompt, response)
            found.append({"prompt": prompt, "response": response, "reward": reward})
    return tuple(found)


def _sidecar(
    config: TrainConfig,
    model: RewardModel,
    renderer: Renderer,
    prepared: Prepared,
    outcomes: Mapping[str, list[Outcome]],
    fingerprint: Mapping[str, str],
    reference: tuple[dict[str, Any], ...],
) -> Sidecar:
    part_name = next(iter(outcomes), None)
    reward = temperature = None
    if part_name is not None:
        part = outcomes[part_name]
        rewards = np.concatenate([outcome.reward_N for outcome in part])
        reward = {
            "mean": float(rewards.mean()),
            "std": float(rewards.std()),
            "part": part_name,
            "num_answers": int(rewards.size),
        }
        if part_name in prepared.validation:  # never on the test part, which is only measured
            value = fit_temperature(part, config.objective.ties)
            temperature = {
                "value": value,
                "at_bound": is_at_bound(value),
                "part": part_name,
                "num_prompts": len(part),
                "num_clusters": len({prompt_cluster(o.group.group.prompt) for o in part}),
            }
    return Sidecar(
        pooling=model.pooling,
        head_name=model.head_name,
        plain=model.plain,
        layout=model.layout,
        dtype=str(model.transformer.dtype).removeprefix("torch."),
        end_of_turn=renderer.end_of_turn,
        template_arguments=dict(renderer.template_arguments),
        lengths=asdict(renderer.lengths),
        fingerprint=dict(fingerprint),
        reward=reward,
        temperature=temperature,
        reference_scores=reference,
        data_sha256=without_folders(prepared.data_sha256),
        configuration=without_folders({**asdict(config), "output": ""}),
        versions={**versions(), "written": time.strftime("%Y-%m-%d")},
    )

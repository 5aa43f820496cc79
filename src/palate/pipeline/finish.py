"""After training: calibrate, measure, save, reload, report."""

import contextlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from palate.artifacts.files import write_json, write_text
from palate.artifacts.rundir import versions
from palate.errors import PalateError
from palate.evaluation.blind import fit_prompt_blind
from palate.evaluation.calibration import fit_temperature
from palate.evaluation.metrics import BASELINES, Outcome, as_json, evaluate_outcomes
from palate.model.checkpoint import Sidecar, save_checkpoint, write_sidecar
from palate.model.reward_model import RewardModel
from palate.pipeline.config import TrainConfig
from palate.pipeline.directory import METRICS
from palate.pipeline.prepare import Prepared
from palate.preferences import prompt_cluster
from palate.rendering import Renderer
from palate.report.card import model_card
from palate.report.html import html_report
from palate.scoring.scorer import Scorer, load
from palate.statistics import Estimate
from palate.training.trainer import RewardTrainer

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
    trainer: RewardTrainer,
    renderer: Renderer,
    prepared: Prepared,
    outcomes: Mapping[str, list[Outcome]],
    directory: Path,
) -> Finished:
    """Calibrate, measure, save, reload, report; the training checkpoints are then deleted."""
    model = trainer.model
    measured_on = "test" if "test" in outcomes else next(iter(outcomes), "")
    blind = fit_prompt_blind(prepared.train[:MAX_BLIND_GROUPS])
    baselines = {**BASELINES, "prompt-blind": blind}
    results = {
        name: evaluate_outcomes(part, config.training.ties, baselines)
        for name, part in outcomes.items()
    }
    model_directory = directory / "model"
    fingerprint = save_checkpoint(model_directory, model, renderer)
    reference = _reference_scores(Scorer(model.eval(), renderer))
    sidecar = _sidecar(config, model, renderer, prepared, outcomes, fingerprint, reference)
    write_sidecar(model_directory, sidecar)
    # Loading checks fingerprint and reference rewards: what was saved is what was trained.
    scorer = load(model_directory, device=str(trainer.args.device))
    facts = {
        "model": _without_folders(config.model),
        "data": _without_folders(prepared.data_sha256),
        "num_groups": {
            "train": len(prepared.train),
            **{name: len(part) for name, part in outcomes.items()},
        },
        "measured_on": measured_on,
        "temperature": sidecar.temperature,
        "ledger": prepared.ledger.by_reason(),
        "num_rows": prepared.ledger.num_rows_read,
        "left_out": prepared.left_out,
        "steps": trainer.state.global_step,
        "best": trainer.state.best_model_checkpoint
        and Path(trainer.state.best_model_checkpoint).name,
    }
    write_text(model_directory / "README.md", model_card(sidecar, results, facts))
    history = trainer.state.log_history
    write_text(directory / "report.html", html_report(sidecar, results, facts, history))
    write_json(
        directory / METRICS,
        {
            "measured_on": measured_on,
            "metrics": {name: as_json(part) for name, part in results.items()},
            "temperature": sidecar.temperature,
            # JSON has no NaN: an accuracy of undecided comparisons only is left out.
            "log": [{k: v for k, v in entry.items() if v == v} for entry in history],
        },
    )
    shutil.rmtree(directory / "training", ignore_errors=True)
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
            temperature = {
                "value": fit_temperature(part, config.training.ties),
                "part": part_name,
                "num_prompts": len(part),
                "num_clusters": len({prompt_cluster(o.group.group.prompt) for o in part}),
            }
    return Sidecar(
        pooling=model.pooling,
        head_name=model.head_name,
        layout=model.layout,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        end_of_turn=renderer.end_of_turn,
        template_arguments=dict(renderer.template_arguments),
        lengths=asdict(renderer.lengths),
        fingerprint=dict(fingerprint),
        reward=reward,
        temperature=temperature,
        reference_scores=reference,
        data_sha256=_without_folders(prepared.data_sha256),
        configuration=_without_folders({**asdict(config), "output": ""}),
        versions={**versions(), "written": time.strftime("%Y-%m-%d")},
    )


def _without_folders(value: Any) -> Any:
    """The same with absolute paths shortened to their last part: checkpoints are published."""
    if isinstance(value, Mapping):
        return {_without_folders(key): _without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    if not isinstance(value, str) or not Path(value).is_absolute():
        return value
    path = Path(value)
    # Runs and wheels keep their weights in a folder called model, which says nothing.
    return f"{path.parent.name}/{path.name}" if path.name == "model" else path.name

"""Fit a length calibration on a pool of preferences, and keep it beside the model."""

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.evaluation.length_calibration import (
    LengthCalibration,
    fit_length_calibration,
    lengths_of,
    within_prompt_slope,
)
from palate.evaluation.outcomes import Outcome, decided, prompt_accuracy
from palate.model.checkpoint import SIDECAR, read_sidecar, write_sidecar
from palate.pipeline.evaluate import outcomes_of, ties_of
from palate.pipeline.guards import split_clusters
from palate.pipeline.prepare import data_hashes, read_sources, refuse_without_effect
from palate.preferences import PreferenceGroup, prompt_cluster
from palate.preferences.settings import ReadSettings
from palate.rendering import render_groups
from palate.scoring.scorer import DEFAULT_TOKENS_PER_MICROBATCH, load
from palate.statistics import Estimate, cluster_mean


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig:
    """Which model on which pool."""

    model: str
    """A palate run or its model directory, on disk; its reward_model.json gets the calibration."""
    data: str | list[str]
    """The pool: preference files whose labels are not swayed by length, on other prompts than those
    that were trained on."""
    part: Literal["all", "validation", "test"] = "all"
    """Only the prompts that the run's own split put there; all = every prompt of the data."""
    length_balanced: bool = False
    """For labels that are swayed by length: weigh both sides alike. Harms where length is
    legitimate."""
    tokens_per_microbatch: int = DEFAULT_TOKENS_PER_MICROBATCH
    """Token slots of one forward pass: bounds memory, changes no reward."""
    device: str = "auto"
    """auto = cuda where there is one, otherwise cpu."""
    allow_changed: list[str] = field(default_factory=list)
    """Parts of the checkpoint that may differ from the training: template, tokenizer, ..."""
    read: ReadSettings = field(default_factory=ReadSettings)


@dataclass(frozen=True)
class CalibrateResult:
    calibration: LengthCalibration
    slope: tuple[float, float]
    """Units of reward per unit of log length within prompts, before and after."""
    accuracy: tuple[Estimate, Estimate]
    """On the pool, before and after; it flatters the calibration, which was fitted there."""
    path: str
    ledger: Ledger
    num_prompts: int
    num_rows_kept: int
    """Input rows that are not in the ledger, those of other parts among them."""


def calibrate(config: CalibrateConfig) -> CalibrateResult:
    """Fit on the pool and write it to `reward_model.json`, in place of an earlier one.

    Rewards stay as they are; `length_calibration` in evaluate, score and `palate.load` subtracts.
    Raises PalateError for prompts that the model was trained on, and for too small a pool.
    """
    directory = _model_directory(config.model)
    scorer = load(
        directory,
        device=config.device,
        tokens_per_microbatch=config.tokens_per_microbatch,
        allow_changed=config.allow_changed,
    )
    sources = [config.data] if isinstance(config.data, str) else list(config.data)
    reading = read_sources(sources, config.read)
    refuse_without_effect(reading, config.read)
    groups = _pool(list(reading.groups), config)
    ledger = reading.ledger
    rendered = render_groups(groups, scorer.renderer, ledger)
    num_rows_elsewhere = reading.num_rows - sum(group.num_rows for group in groups)
    num_rows_kept = sum(group.group.num_rows for group in rendered) + num_rows_elsewhere
    ledger.check(num_rows_kept)
    outcomes = outcomes_of(scorer, rendered)
    found = fit_length_calibration(
        outcomes, ties_of(scorer.sidecar), length_balanced=config.length_balanced
    )
    corrected = _corrected(outcomes, found)
    if found.alpha > 0:
        warnings.warn(
            f"the length calibration takes {found.alpha:.0%} of the reward's curve on length away."
            " Where longer answers are better for what they say, that is quality: measure it on"
            " labels that you trust before you use it",
            stacklevel=2,
        )
    slope = (within_prompt_slope(outcomes), within_prompt_slope(corrected))
    stored: dict[str, Any] = {
        **found.as_json(),
        "slope_per_log_word": {"before": slope[0], "after": slope[1]},
        "num_prompts": len(outcomes),
        "part": config.part,
        "data_sha256": {Path(name).name: v for name, v in data_hashes(sources).items()},
    }
    stored["gain"] = found.gain.as_json()
    sidecar = read_sidecar(directory)
    assert sidecar is not None
    write_sidecar(directory, replace(sidecar, length_calibration=stored))
    return CalibrateResult(
        found,
        slope,
        (_accuracy(outcomes), _accuracy(corrected)),
        str(directory / SIDECAR),
        ledger,
        len(outcomes),
        num_rows_kept,
    )


def _model_directory(name: str) -> Path:
    for directory in (Path(name).expanduser() / "model", Path(name).expanduser()):
        if (directory / SIDECAR).exists():
            return directory
    raise PalateError(
        f"{name}: no {SIDECAR} there to keep a calibration in; name a palate run on disk"
    )


def _pool(groups: list[PreferenceGroup], config: CalibrateConfig) -> list[PreferenceGroup]:
    clusters = split_clusters(config.model)
    if config.part != "all":
        if clusters is None:
            raise PalateError(
                f"part {config.part} has no effect: {config.model} is no palate run with a"
                " split.json"
            )
        members = set(clusters.get(config.part, ()))
        groups = [group for group in groups if prompt_cluster(group.prompt) in members]
        if not groups:
            raise PalateError(f"no prompt of the data is in the run's {config.part} part")
    trained = set(clusters.get("train", ())) if clusters else set()
    num_trained = sum(prompt_cluster(group.prompt) in trained for group in groups)
    if num_trained:
        raise PalateError(
            f"{num_trained} of {len(groups)} prompts are in clusters that {config.model} was"
            " trained on, where its rewards say what it remembers; give other data, or --part"
            " validation"
        )
    return groups


def _corrected(outcomes: list[Outcome], found: LengthCalibration) -> list[Outcome]:
    return [
        Outcome(o.group, o.reward_N - found.alpha * found.curve.at(lengths_of(o))) for o in outcomes
    ]


def _accuracy(outcomes: list[Outcome]) -> Estimate:
    compared = [o for o in outcomes if decided(o.group)]
    values = [prompt_accuracy(o.group, o.reward_N) for o in compared]
    return cluster_mean(values, [o.cluster for o in compared])

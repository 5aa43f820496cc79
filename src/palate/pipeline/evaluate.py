"""Measure a reward model on a file of preferences."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from palate.artifacts.files import write_json
from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.evaluation.metrics import Outcome, as_json, evaluate_outcomes
from palate.model.checkpoint import Sidecar
from palate.model.quantization import Quantization
from palate.objectives import Ties
from palate.pipeline.guards import split_clusters
from palate.pipeline.prepare import data_hashes, read_sources, refuse_without_effect
from palate.preferences import PreferenceGroup, prompt_cluster
from palate.preferences.settings import ReadSettings
from palate.rendering import RenderedGroup, RenderSettings, render_groups
from palate.scoring.runs import rewards_of_groups
from palate.scoring.scorer import DEFAULT_TOKENS_PER_MICROBATCH, Scorer, load
from palate.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which model on which data."""

    model: str
    """A palate run, or any scalar reward model: directory or hub id."""
    data: str | list[str]
    """Preference files or hub data set ids."""
    part: Literal["all", "train", "validation", "test"] = "all"
    """Only the prompts that the run's own split put there; all = every prompt of the data."""
    output: str = ""
    """JSON file for the metrics; empty = printed only."""
    tokens_per_microbatch: int = DEFAULT_TOKENS_PER_MICROBATCH
    """Token slots of one forward pass: bounds memory, changes no reward."""
    device: str = "auto"
    """auto = cuda where there is one, otherwise cpu."""
    quantization: Quantization = "none"
    """8bit or 4bit: the body's linear layers rounded, for less memory; rewards change."""
    length_calibration: bool = False
    """Take the model's stored length calibration (palate calibrate) off the rewards."""
    allow_changed: list[str] = field(default_factory=list)
    """Parts of the checkpoint that may differ from the training: template, tokenizer, ..."""
    trust_remote_code: bool = False
    """Run Python code that the checkpoint brings along."""
    render_workers: int = 0
    """Processes that tokenise, this one among them. 0 = one for each core, once there is enough to
    do that starting them pays."""
    token_cache: str = ""
    """Directory of token ids that earlier runs made; empty = palate/tokens in the user's cache
    directory, off = none."""
    read: ReadSettings = field(default_factory=ReadSettings)


@dataclass(frozen=True)
class EvaluateResult:
    metrics: Mapping[str, Estimate]
    ledger: Ledger
    num_prompts: int
    num_elsewhere: int
    """Prompts that `part` does not ask for."""
    num_rows_kept: int
    """Input rows that are not in the ledger."""


def evaluate(config: EvaluateConfig) -> EvaluateResult:
    """Metrics with intervals and baselines. Raises PalateError when no prompt can be measured."""
    scorer = load(
        config.model,
        device=config.device,
        quantization=config.quantization,
        tokens_per_microbatch=config.tokens_per_microbatch,
        allow_changed=config.allow_changed,
        trust_remote_code=config.trust_remote_code,
        length_calibration=config.length_calibration,
    )
    sources = [config.data] if isinstance(config.data, str) else list(config.data)
    reading = read_sources(sources, config.read)
    refuse_without_effect(reading, config.read)
    groups = _choose_part(reading.groups, config)
    ledger = reading.ledger
    rendering = RenderSettings(workers=config.render_workers, cache=config.token_cache)
    rendered = render_groups(groups, scorer.renderer, ledger, rendering)
    num_elsewhere = len(reading.groups) - len(groups)
    num_rows_elsewhere = reading.num_rows - sum(group.num_rows for group in groups)
    num_rows_kept = sum(group.group.num_rows for group in rendered) + num_rows_elsewhere
    ledger.check(num_rows_kept)
    if not rendered:
        raise PalateError("no prompt is left to measure:\n" + ledger.summary(num_rows_elsewhere))
    outcomes = outcomes_of(scorer, rendered)
    metrics = evaluate_outcomes(outcomes, ties_of(scorer.sidecar))
    if config.output:
        write_json(
            config.output,
            {
                "model": config.model,
                "part": config.part,
                "data_sha256": data_hashes(sources),
                "metrics": as_json(metrics),
            },
        )
    return EvaluateResult(metrics, ledger, len(rendered), num_elsewhere, num_rows_kept)


def outcomes_of(scorer: Scorer, rendered: Sequence[RenderedGroup]) -> list[Outcome]:
    """Each group with its answers' rewards, less what the scorer's length correction takes."""
    rewards = rewards_of_groups(
        scorer.model,
        [group.sequences for group in rendered],
        scorer.tokens_per_microbatch,
        scorer.renderer.pad_id,
    )
    if scorer.length_correction is None:
        return [Outcome(group, rewards[index]) for index, group in enumerate(rendered)]
    outcomes = []
    for index, group in enumerate(rendered):
        texts = [group.group.responses[i].text for i in group.response_index]
        taken_N = scorer.length_correction.of_texts(texts)
        outcomes.append(Outcome(group, rewards[index] - taken_N.astype(np.float32)))
    return outcomes


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

"""Guards of a run that need its files: the texts that are trained on, and what a warm start saw."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palate.model.guards import check_rendering
from palate.pipeline.config import TrainConfig
from palate.pipeline.prepare import Prepared
from palate.preferences import prompt_cluster
from palate.rendering import Renderer
from palate.training.guards import check_rendered


def check_inputs(config: TrainConfig, renderer: Renderer, prepared: Prepared) -> None:
    """Refuse texts that the saved template would not give; warn of held-out prompts that a warm
    start was trained on. Raises PalateError."""
    guards = config.training.guards
    if guards.rendering:
        check_rendering(config.model, renderer)
        check_rendered(prepared.train, renderer)
    if guards.leak:
        warn_of_warm_start(config.model, prepared)


def warn_of_warm_start(model: str, prepared: Prepared) -> None:
    """Say how many held-out prompts are in clusters that the palate run `model` was trained on."""
    trained = set((split_clusters(model) or {}).get("train", ()))
    if not trained:
        return
    clusters = prepared.manifest["clusters"]
    held_out = {name: clusters.get(name, ()) for name in ("validation", "test")}
    for name, groups in prepared.validation.items():
        if name not in held_out:
            held_out[name] = {prompt_cluster(group.group.prompt) for group in groups}
    for name, members in held_out.items():
        shared = sum(cluster in trained for cluster in members)
        if shared:
            warnings.warn(
                f"{shared} of {len(members)} prompt clusters of the {name} part are among those"
                f" that {model} was trained on: its metrics will flatter the model. Use the same"
                " split.salt and shares on the same data, or hold out other prompts",
                stacklevel=2,
            )


def run_of(model: str) -> Path:
    """The directory of the palate run that a model is of, if it is of one."""
    directory = Path(model).expanduser()
    return directory.parent if directory.name == "model" else directory


def split_clusters(model: str) -> Mapping[str, Any] | None:
    """Prompt clusters by part of the palate run that a model is of; None for other models."""
    path = run_of(model) / "split.json"
    if not path.exists():
        return None
    clusters: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["clusters"]
    return clusters

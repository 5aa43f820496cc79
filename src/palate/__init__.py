"""palate: from human preferences to a trustworthy reward.

    scorer = palate.load("runs/helpful")
    scorer.score("How do birds fly?", "They flap.")

Names are loaded when first used, so that `import palate` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from palate.errors import PalateError

if TYPE_CHECKING:
    from palate import preferences
    from palate.pipeline.config import TrainConfig
    from palate.pipeline.evaluate import EvaluateConfig, evaluate
    from palate.pipeline.train import train
    from palate.scoring.scorer import Scorer, load

_PLACES = {
    "EvaluateConfig": "palate.pipeline.evaluate",
    "Scorer": "palate.scoring.scorer",
    "TrainConfig": "palate.pipeline.config",
    "evaluate": "palate.pipeline.evaluate",
    "load": "palate.scoring.scorer",
    "train": "palate.pipeline.train",
}

__all__ = [
    "EvaluateConfig",
    "PalateError",
    "Scorer",
    "TrainConfig",
    "evaluate",
    "load",
    "preferences",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "preferences":
        return import_module("palate.preferences")
    if name not in _PLACES:
        raise AttributeError(f"module 'palate' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)

"""Rewards and what people said to a loss: pure functions, and the objective that chooses one."""

from palate.objectives.bradley_terry import (
    ComparisonBatch,
    bradley_terry,
    comparison_losses,
    soft_target,
)
from palate.objectives.objective import Objective, ObjectiveBatch
from palate.objectives.settings import ObjectiveSettings, Ties

__all__ = [
    "ComparisonBatch",
    "Objective",
    "ObjectiveBatch",
    "ObjectiveSettings",
    "Ties",
    "bradley_terry",
    "comparison_losses",
    "soft_target",
]

"""Rewards and comparisons to a loss: pure functions."""

from palate.objectives.bradley_terry import (
    ComparisonBatch,
    Ties,
    bradley_terry,
    comparison_losses,
    soft_target,
)

__all__ = ["ComparisonBatch", "Ties", "bradley_terry", "comparison_losses", "soft_target"]

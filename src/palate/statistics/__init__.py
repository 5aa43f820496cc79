"""Intervals that respect clusters."""

from palate.statistics.intervals import Estimate, cluster_difference, cluster_mean

__all__ = ["Estimate", "cluster_difference", "cluster_mean"]

"""Intervals that respect clusters."""

from palate.statistics.intervals import Estimate, as_json, cluster_difference, cluster_mean, wilson

__all__ = ["Estimate", "as_json", "cluster_difference", "cluster_mean", "wilson"]

"""What people said: the types, the readers, votes to probabilities, splits by prompt cluster."""

from palate.preferences.readers import GroupStream, Reading, iter_groups, read
from palate.preferences.saturation import RatingReport, rating_report
from palate.preferences.settings import ReadSettings, Source
from palate.preferences.split import Split, fold_of, prompt_cluster, split_groups
from palate.preferences.types import (
    Comparison,
    Message,
    PreferenceGroup,
    Response,
    ScoringItem,
    Vote,
)
from palate.preferences.votes import VoteSettings
from palate.preferences.writers import TrlRows, to_canonical, to_trl

__all__ = [
    "Comparison",
    "GroupStream",
    "Message",
    "PreferenceGroup",
    "RatingReport",
    "ReadSettings",
    "Reading",
    "Response",
    "ScoringItem",
    "Source",
    "Split",
    "TrlRows",
    "Vote",
    "VoteSettings",
    "fold_of",
    "iter_groups",
    "prompt_cluster",
    "rating_report",
    "read",
    "split_groups",
    "to_canonical",
    "to_trl",
]

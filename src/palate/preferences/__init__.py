"""What people said: the types, the readers, votes to probabilities, splits by prompt cluster."""

from palate.preferences.readers import Reading, read
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

__all__ = [
    "Comparison",
    "Message",
    "PreferenceGroup",
    "Reading",
    "Response",
    "ScoringItem",
    "Split",
    "Vote",
    "VoteSettings",
    "fold_of",
    "prompt_cluster",
    "read",
    "split_groups",
]

"""What the checks read: numbers and hashes of every group, answer, comparison and vote, as columns.

A million rows fit: texts are read once, turned into numbers and let go; a sample of whole prompt
clusters keeps its texts for the checks that need them.

Legend: G groups, N answers, C comparisons, P judgements of two answers by one annotator, F
features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from palate.preferences import PreferenceGroup

NO_MODEL = -1
NO_ANNOTATOR = -1


@dataclass(frozen=True)
class Columns:
    """Columns over all sources of one side (the audited data, or those they are held against)."""

    files: tuple[str, ...]
    models: tuple[str, ...]
    annotators: tuple[str, ...]
    features: tuple[str, ...]
    """Names of the F features: `palate.text.STYLE_FEATURES`, in their order."""

    file_G: np.ndarray
    """Index into `files`, int32."""
    line_G: np.ndarray
    """int64."""
    cluster_G: np.ndarray
    """Prompt cluster (hash of the normalised first user turn, `prompt_cluster`), uint64."""
    prompt_G: np.ndarray
    """Hash of the whole normalised prompt with its roles, uint64."""
    start_G: np.ndarray
    """Index of the group's first answer, and at the end the number of all answers: G + 1, int64."""

    group_N: np.ndarray
    """int64, ascending."""
    text_N: np.ndarray
    """Hash of the normalised answer, uint64."""
    opening_N: np.ndarray
    """Hash of the first three words, or of a first sentence of fewer, uint64; 0 for answers of
    fewer than eight words (`palate.audit.answers.opening`)."""
    ending_N: np.ndarray
    """Hash of the last sentence or line, uint64; 0 where it is the only one
    (`palate.audit.answers.ending`)."""
    model_N: np.ndarray
    """Index into `models`, int32; NO_MODEL where none is named."""
    chars_N: np.ndarray
    """Characters, int32."""
    features_NF: np.ndarray
    """Style features, float32."""

    group_C: np.ndarray
    """int64, ascending."""
    better_C: np.ndarray
    """Index into the answers (N), int64."""
    worse_C: np.ndarray
    probability_C: np.ndarray
    """float32, 0.5 to 1."""
    tie_C: np.ndarray
    """Share of tie votes, float32."""
    weight_C: np.ndarray
    """float32."""

    vote_P: np.ndarray
    """Number of the vote that the judgement is part of, int64."""
    annotator_P: np.ndarray
    """Index into `annotators`, int32; NO_ANNOTATOR where the name is empty."""
    first_P: np.ndarray
    """Index into the answers, int64; of the two the one that stands first in its group."""
    second_P: np.ndarray
    outcome_P: np.ndarray
    """1, -1 or 0 as the first, the second or neither is better, int8."""
    shown_P: np.ndarray
    """1 or -1 as the first was shown before or after the second, 0 unknown, int8."""
    strength_P: np.ndarray
    """Stated strength, float32, NaN where none was asked."""

    opening_text: Mapping[int, str] = field(default_factory=dict)
    """What some hashes in `opening_N` stand for: those that come often."""
    ending_text: Mapping[int, str] = field(default_factory=dict)

    @property
    def num_groups(self) -> int:
        return len(self.file_G)

    @property
    def is_decided_C(self) -> np.ndarray:
        """Comparisons that count and have a better side."""
        decided: np.ndarray = (self.probability_C > 0.5) & (self.tie_C < 1) & (self.weight_C > 0)
        return decided

    def cluster_C(self) -> np.ndarray:
        """Prompt cluster of each comparison."""
        clusters: np.ndarray = self.cluster_G[self.group_C]
        return clusters

    def group_weight_C(self) -> np.ndarray:
        """1 / comparisons of its group: each prompt counts the same, as in the metrics."""
        counts = np.bincount(self.group_C, minlength=self.num_groups)
        weights: np.ndarray = 1.0 / counts[self.group_C]
        return weights

    def feature_N(self, name: str) -> np.ndarray:
        """A style feature of every answer, by its name."""
        values: np.ndarray = self.features_NF[:, self.features.index(name)]
        return values


@dataclass(frozen=True)
class Audited:
    """Data as the checks get them."""

    columns: Columns
    sample: Sequence[PreferenceGroup]
    """Groups whose texts are kept: all, or those of the prompt clusters with the lowest hashes."""
    sample_G: np.ndarray
    """Index into the columns' groups of each group of the sample, int64, ascending."""
    fetch: Callable[[Sequence[int]], Mapping[int, PreferenceGroup]]
    """Texts of some groups, by their index in the columns; for examples. Reads the sources again
    where they are not in the sample."""

    @property
    def is_whole(self) -> bool:
        """Whether the sample is all of the data."""
        return len(self.sample) == self.columns.num_groups

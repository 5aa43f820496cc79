"""The prompt-blind baseline: what can be guessed from the answers alone.

Legend: F features, C comparisons.
"""

import re
import zlib
from collections.abc import Sequence

import numpy as np

from palate.evaluation.metrics import BASELINES, Predictor, decided
from palate.rendering import RenderedGroup
from palate.statistics.comparison_model import fit_comparison_model
from palate.text import style_features

NUM_WORD_BUCKETS = 512
_WORD = re.compile(r"[a-z']+")


def _word_features(text: str) -> list[float]:
    """Which words occur, hashed into buckets (Weinberger et al. 2009), scaled to unit length."""
    counts = np.zeros(NUM_WORD_BUCKETS)
    for word in set(_WORD.findall(text.lower())):
        digest = zlib.crc32(word.encode())
        counts[digest % NUM_WORD_BUCKETS] += 1 if digest & 0x10000 else -1
    norm = float(np.linalg.norm(counts))
    return list(counts / norm if norm else counts)


def _features(group: RenderedGroup, words: bool) -> np.ndarray:
    texts = [group.group.responses[index].text for index in group.response_index]
    return np.array([style_features(t) + (_word_features(t) if words else []) for t in texts])


def fit_prompt_blind(
    groups: Sequence[RenderedGroup], *, words: bool = True, l2: float = 1.0
) -> Predictor:
    """A logistic model of style (and words) of the answers, fitted on training groups.

    It never sees a prompt: a reward model that does not beat it has learned how good answers look,
    not what answers a question. Without a decided comparison it ties every answer.
    """
    if not any(decided(group) for group in groups):
        return BASELINES["random"]
    features = [_features(group, words) for group in groups]
    difference_CF = np.array(
        [
            values[c.better] - values[c.worse]
            for group, values in zip(groups, features, strict=True)
            for c in decided(group)
        ]
    )
    weight_C = np.array([1 / len(decided(group)) for group in groups for _ in decided(group)])
    scale_F = difference_CF.std(axis=0)
    scale_F[scale_F == 0] = 1.0
    coefficient_F = fit_comparison_model(difference_CF / scale_F, weight_C, l2) / scale_F
    return lambda group: _features(group, words) @ coefficient_F

"""The prompt-blind baselines: what can be guessed from the answers alone.

Legend: F features, C comparisons, N answers, S style features.
"""

import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix, hstack

from palate.errors import PalateError
from palate.evaluation.outcomes import BASELINES, Predictor, decided
from palate.preferences import fold_of, prompt_cluster
from palate.rendering import RenderedGroup
from palate.statistics.comparison_model import fit_comparison_model
from palate.text import style_features
from palate.text.hashed import hashed_words

NUM_WORD_BUCKETS = 512
NUM_FOLDS = 5
SALT = "prompt-blind"
BLIND_L2 = 1.0
MAX_DIFFERENCE = 8.0
"""Standard deviations at which two answers' difference in a style feature is cut in the fit."""
BLOCK = 1000
"""Groups whose features are held at once."""
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
    texts = [response.text for response in group.responses]
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


@dataclass(frozen=True, kw_only=True)
class CrossFittedBlind:
    """Rewards of answers by models of answers alone, each fitted on other prompts."""

    rewards: tuple[np.ndarray, ...]
    """Of each group's answers, by the model whose fold holds the group's prompt cluster out."""
    predict: Predictor
    """The same as a baseline for `evaluate_outcomes`; knows the very groups that were given."""
    num_prompts: int
    """Prompts with a decided comparison that the models were fitted on, each on four fifths."""
    num_left_out: int
    """Further ones, beyond `max_prompts`, that are only predicted."""


def cross_fitted_prompt_blind(
    groups: Sequence[RenderedGroup], *, max_prompts: int = 5000
) -> CrossFittedBlind:
    """The prompt-blind baseline from evaluation data by themselves, for a model whose training data
    are not at hand.

    Five logistic models of words, pairs of words and style of the answers, each fitted on the
    prompt clusters of four folds; a salted hash puts a cluster into its fold. At most `max_prompts`
    prompts are fitted on, those of the clusters with the lowest hashes. The more there are, the
    better it guesses: on a few hundred it is a weak rival. Raises PalateError where the decided
    comparisons lie in a single fold.
    """
    compared = sorted((group for group in groups if decided(group)), key=_hash)
    chosen = compared[:max_prompts]
    fold_G = np.array([fold_of(group.group, NUM_FOLDS, SALT) for group in chosen])
    if len(np.unique(fold_G)) < 2:
        raise PalateError(
            f"{len(chosen)} prompts with a decided comparison are too few for a prompt-blind"
            " baseline that is fitted on other prompts than it is measured on; give more prompts"
        )
    style_NS = np.array([style_features(text) for group in chosen for text in _texts(group)])
    scale_S = style_NS.std(axis=0)
    scale_S[scale_S == 0] = 1.0
    difference_CF, group_C = _differences(chosen, scale_S)
    weight_C = 1 / np.bincount(group_C)[group_C]
    coefficient_KF = np.array(
        [
            fit_comparison_model(difference_CF[here_C], weight_C[here_C], BLIND_L2)
            for here_C in (fold_G[group_C] != fold for fold in range(NUM_FOLDS))
        ]
    )
    rewards = _predicted(groups, scale_S, coefficient_KF)
    by_group = {id(group): reward_N for group, reward_N in zip(groups, rewards, strict=True)}
    return CrossFittedBlind(
        rewards=rewards,
        predict=lambda group: by_group[id(group)],
        num_prompts=len(chosen),
        num_left_out=len(compared) - len(chosen),
    )


def _hash(group: RenderedGroup) -> bytes:
    cluster = prompt_cluster(group.group.prompt)
    return hashlib.sha256(f"{SALT}\x00{cluster}".encode()).digest()


def _texts(group: RenderedGroup) -> list[str]:
    return [response.text for response in group.responses]


def _ngrams(texts: Sequence[str], scale_S: np.ndarray) -> csr_matrix:
    """Hashed words and pairs of words, and style in standard deviations: NF, float32."""
    style_NS = np.array([style_features(text) for text in texts]) / scale_S
    return hstack([hashed_words(texts), csr_matrix(style_NS.astype(np.float32))], "csr")


def _differences(
    groups: Sequence[RenderedGroup], scale_S: np.ndarray
) -> tuple[csr_matrix, np.ndarray]:
    """Features of the better less those of the worse (CF), and the number of each one's group."""
    feature_NF = _ngrams([text for group in groups for text in _texts(group)], scale_S)
    start_G = np.cumsum([0, *(len(group.response_index) for group in groups)])
    rows = [
        (start_G[number] + c.better, start_G[number] + c.worse, number)
        for number, group in enumerate(groups)
        for c in decided(group)
    ]
    better_C, worse_C, group_C = np.array(rows).T
    difference_CF = feature_NF[better_C] - feature_NF[worse_C]
    # One long answer or table would else decide a fit.
    np.clip(difference_CF.data, -MAX_DIFFERENCE, MAX_DIFFERENCE, out=difference_CF.data)
    return difference_CF, group_C


def _predicted(
    groups: Sequence[RenderedGroup], scale_S: np.ndarray, coefficient_KF: np.ndarray
) -> tuple[np.ndarray, ...]:
    rewards: list[np.ndarray] = []
    for start in range(0, len(groups), BLOCK):
        block = groups[start : start + BLOCK]
        texts = [_texts(group) for group in block]
        reward_NK = _ngrams([t for part in texts for t in part], scale_S) @ coefficient_KF.T
        ends = np.cumsum([len(part) for part in texts])[:-1]
        for group, part_NK in zip(block, np.split(reward_NK, ends), strict=True):
            rewards.append(part_NK[:, fold_of(group.group, NUM_FOLDS, SALT)])
    return tuple(rewards)

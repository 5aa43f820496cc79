"""A small reward model on words and style: what a reward model could learn from these labels.

It reads no prompt and knows no language, so what it learns, any model can. What depends on the
texts alone is computed once and kept, so that one set of texts can be labelled and fitted many
times.

Legend: G groups, N answers, C comparisons, F features (B buckets of words, B of pairs of words,
then S of style), H held-out comparisons, K directions.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_matrix, hstack

from palate.audit.columns import Audited
from palate.preferences import PreferenceGroup
from palate.preferences.split import prompt_cluster
from palate.statistics import Estimate
from palate.statistics.comparison_model import comparison_model_errors, fit_comparison_model
from palate.statistics.resampling import ratio_of_sums
from palate.text import STYLE_FEATURES, style_features
from palate.text.hashed import DEFAULT_BUCKETS, hashed_pairs, hashed_terms, words_of

WORD_L2, PAIR_L2, STYLE_L2 = 100.0, 5.0, 10.0
"""Pairs of words carry what an answer says, and are penalised little: content that goes unexplained
counts for the style that goes with it (legitimate closings moved rewards by 0.31 standard
deviations at 30, 0.04 at 5). Single words are common to content and phrases, and their noise is
what a probe would mostly measure (standard error of the filler probe 0.089 at 5, 0.059 at 100)."""
MAX_ITERATIONS = 100
HELD_OUT_FOLDS = 5
MAX_CONTENT = 0.02
MAX_STYLE = 4.0
"""Standardised style features are cut here: one answer of 5,000 lines would else decide a fit."""
MIN_HELD_OUT = 50
"""Held-out comparisons below which nothing can be said of a fit."""

_SHARED_STYLE = (
    *("bold", "code", "exclamation marks", "question", "first person", "second person"),
    *("hedge", "absolute", "apology", "closing", "praise"),
)
_SHARED_INDEX = [list(STYLE_FEATURES).index(name) for name in _SHARED_STYLE]
MODEL_STYLE = (
    *_SHARED_STYLE,
    *("log list items", "heading", "thanks", "agreement", "log words", "log content words"),
)
"""Names of the S style features of the model, in their order."""
_LIST_MARK = re.compile(r"^[ \t]*(?:[-*•+]|\d{1,2}[.)])[ \t]+", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]+", re.MULTILINE)
_THANKS = re.compile(r"\b(thanks|thank you|glad|sure|of course|certainly)\b")
_AGREEMENT = re.compile(
    r"\bagree\b|\b(you are|you're) (\w+ )?(right|correct)\b|\bexactly\b"
    r"|\byour (view|belief|opinion)|\b(as|like|what) you (say|said|think|thought|believe)"
)


def _without_layout(text: str) -> str:
    """Marks of lists would else count as words: a list would look longer."""
    return _HEADING.sub("", _LIST_MARK.sub("", text)).replace("**", "")


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What turns texts into features: fixed by the answers that a model is for."""

    content: frozenset[str]
    """Words of at least two and at most MAX_CONTENT of the answers. How many of them an answer has
    says how much it says; filler has few. Without this second length, a model could tell the worth
    of saying more from that of using more words by single words only."""
    mean_S: np.ndarray
    deviation_S: np.ndarray

    def features(self, texts: Sequence[str]) -> csr_matrix:
        """Hashed words, hashed pairs of words, and scaled style: NF, float32."""
        words = [words_of(_without_layout(text)) for text in texts]
        return self.joined(words, style_of(texts, words, self.content))

    def joined(self, words: Sequence[Sequence[str]], style_NS: np.ndarray) -> csr_matrix:
        scaled_NS = np.clip((style_NS - self.mean_S) / self.deviation_S, -MAX_STYLE, MAX_STYLE)
        blocks = [hashed_terms(words), hashed_pairs(words)]
        return hstack([*blocks, csr_matrix(scaled_NS.astype(np.float32))], "csr")


def style_of(
    texts: Sequence[str], words: Sequence[Sequence[str]], content: frozenset[str]
) -> np.ndarray:
    """The features of MODEL_STYLE, not scaled: NS."""
    rows = []
    for text, terms in zip(texts, words, strict=True):
        shared, folded = style_features(text), text.casefold()
        rows.append(
            [
                *(shared[index] for index in _SHARED_INDEX),
                math.log1p(len(_LIST_MARK.findall(text))),
                float(_HEADING.search(text) is not None),
                float(_THANKS.search(folded) is not None),
                float(_AGREEMENT.search(folded) is not None),
                math.log1p(len(terms)),
                math.log1p(len(content.intersection(terms))),
            ]
        )
    return np.array(rows).reshape(-1, len(MODEL_STYLE))


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """The answers of some groups as a small model sees them; labels have no part in it."""

    texts: tuple[str, ...]
    start_G: np.ndarray
    """Index of the group's first answer, with the number of all answers at the end: G + 1."""
    cluster_G: np.ndarray
    """Prompt cluster, uint64."""
    scaling: Scaling
    matrix_NF: csr_matrix
    changed: dict[str, tuple[np.ndarray, csr_matrix]] = field(default_factory=dict, repr=False)
    """By probe: the row of each answer (N; -1: none yet) in the features of changed answers."""


def text_features(
    groups: Sequence[PreferenceGroup], cluster_G: np.ndarray | None = None
) -> TextFeatures:
    """Features of all answers of `groups`; `cluster_G` where the clusters are known already."""
    texts = tuple(response.text for group in groups for response in group.responses)
    counts = [len(group.responses) for group in groups]
    if cluster_G is None:
        cluster_G = np.array([int(prompt_cluster(g.prompt), 16) for g in groups], np.uint64)
    return features_of_texts(texts, counts, cluster_G)


def sample_features(audited: Audited) -> TextFeatures:
    """Features of all answers of the sample."""
    return text_features(audited.sample, audited.columns.cluster_G[audited.sample_G])


def features_of_texts(
    texts: tuple[str, ...], counts: Sequence[int], cluster_G: np.ndarray
) -> TextFeatures:
    """The same of answers that stand in a row, with the number of each group's."""
    words = [words_of(_without_layout(text)) for text in texts]
    frequency = Counter(word for terms in words for word in set(terms))
    most = MAX_CONTENT * len(texts)
    content = frozenset(word for word, number in frequency.items() if 2 <= number <= most)
    style_NS = style_of(texts, words, content)
    deviation_S = style_NS.std(axis=0)
    scaling = Scaling(
        content=content,
        mean_S=style_NS.mean(axis=0),
        deviation_S=np.where(deviation_S > 0, deviation_S, 1.0),
    )
    return TextFeatures(
        texts=texts,
        start_G=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        cluster_G=cluster_G,
        scaling=scaling,
        matrix_NF=scaling.joined(words, style_NS),
    )


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """The decided comparisons of some groups, as indices into a `TextFeatures`."""

    group_C: np.ndarray
    better_C: np.ndarray
    worse_C: np.ndarray
    target_C: np.ndarray
    """Probability that the better wins."""
    weight_C: np.ndarray
    cluster_C: np.ndarray

    def __len__(self) -> int:
        return len(self.group_C)

    def where(self, chosen_C: np.ndarray) -> "Comparisons":
        return Comparisons(**{name: values[chosen_C] for name, values in vars(self).items()})


def comparisons_of(features: TextFeatures, groups: Sequence[PreferenceGroup]) -> Comparisons:
    """Comparisons that count and have a better side, of groups with the texts of `features`.

    K answers hold K - 1 independent comparisons, whatever the number of stated ones: the weights of
    a group's comparisons are scaled down to sum to K - 1 at most.
    """
    rows: list[tuple[int, int, int, float, float]] = []
    for index, (group, start) in enumerate(zip(groups, features.start_G[:-1], strict=True)):
        decided = [c for c in group.comparisons if c.probability > 0.5 and c.tie < 1 and c.weight]
        share = min(1.0, (len(group.responses) - 1) / max(1, len(decided)))
        for c in decided:
            weight = share * c.weight * (1 - c.tie)
            rows.append((index, start + c.better, start + c.worse, c.probability, weight))
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    group_C, better_C, worse_C = table[:, :3].astype(np.int64).T
    return Comparisons(
        group_C=group_C,
        better_C=better_C,
        worse_C=worse_C,
        target_C=table[:, 3],
        weight_C=table[:, 4],
        cluster_C=features.cluster_G[group_C],
    )


def folds_of(cluster_C: np.ndarray, num_folds: int, seed: int = 0) -> np.ndarray:
    """A fold for each observation, 0 to num_folds - 1: whole clusters, whatever their order."""
    clusters, index_C = np.unique(cluster_C, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(clusters))
    folds: np.ndarray = (order * num_folds // max(1, len(clusters)))[index_C]
    return folds


def difference_of(matrix_NF: csr_matrix, comparisons: Comparisons) -> csr_matrix:
    """Features of the better less those of the worse: CF."""
    return matrix_NF[comparisons.better_C] - matrix_NF[comparisons.worse_C]


def default_l2() -> np.ndarray:
    """The penalty of each feature (F)."""
    sizes = (DEFAULT_BUCKETS, DEFAULT_BUCKETS, len(MODEL_STYLE))
    return np.repeat((WORD_L2, PAIR_L2, STYLE_L2), sizes)


@dataclass(frozen=True, kw_only=True)
class FeatureModel:
    """A fitted model, and the comparisons it was not fitted on."""

    coefficient_F: np.ndarray
    scaling: Scaling
    held_out: Comparisons
    margin_H: np.ndarray
    """Reward of the better less that of the worse, in logits, on the held-out comparisons."""
    accuracy: Estimate
    """On the held-out comparisons; a tie counts half."""
    fitted: Comparisons = field(repr=False)
    difference_CF: csr_matrix = field(repr=False)
    """Of the comparisons that it was fitted on."""
    l2_F: np.ndarray = field(repr=False)

    def reward(self, texts: Sequence[str]) -> np.ndarray:
        """Rewards of any texts, in logits."""
        rewards: np.ndarray = self.scaling.features(texts) @ self.coefficient_F
        return rewards

    def standard_errors(self, direction_FK: np.ndarray) -> np.ndarray:
        """Of each direction . coefficient (K), in logits: what another draw of the comparisons that
        the model was fitted on would change."""
        return comparison_model_errors(
            self.difference_CF,
            self.coefficient_F,
            direction_FK,
            self.fitted.cluster_C,
            self.fitted.weight_C,
            self.fitted.target_C,
            self.l2_F,
        )


def fit_feature_model(
    features: TextFeatures,
    comparisons: Comparisons,
    l2_F: np.ndarray | None = None,
    seed: int = 0,
) -> FeatureModel | None:
    """Fit on four fifths of the prompt clusters; the accuracy is that on the last fifth.

    None where fewer than MIN_HELD_OUT comparisons would be held out.
    """
    is_held_out_C = folds_of(comparisons.cluster_C, HELD_OUT_FOLDS, seed) == 0
    held_out, fitted = comparisons.where(is_held_out_C), comparisons.where(~is_held_out_C)
    if len(held_out) < MIN_HELD_OUT or not len(fitted):
        return None
    chosen_l2_F = default_l2() if l2_F is None else l2_F
    difference_CF = difference_of(features.matrix_NF, fitted)
    coefficient_F = fit_comparison_model(
        difference_CF, fitted.weight_C, chosen_l2_F, fitted.target_C, MAX_ITERATIONS
    )
    reward_N = features.matrix_NF @ coefficient_F
    margin_H = reward_N[held_out.better_C] - reward_N[held_out.worse_C]
    is_right_H = (margin_H > 0) + 0.5 * (margin_H == 0)
    return FeatureModel(
        coefficient_F=coefficient_F,
        scaling=features.scaling,
        held_out=held_out,
        margin_H=margin_H,
        accuracy=ratio_of_sums(
            is_right_H * held_out.weight_C, held_out.weight_C, held_out.cluster_C
        ),
        fitted=fitted,
        difference_CF=difference_CF,
        l2_F=chosen_l2_F,
    )


def out_of_fold_margins(
    matrix_NF: csr_matrix,
    comparisons: Comparisons,
    l2_F: np.ndarray,
    num_folds: int = HELD_OUT_FOLDS,
    seed: int = 0,
) -> np.ndarray:
    """Margin of each comparison (C) by a model that saw no comparison of its prompt cluster."""
    fold_C = folds_of(comparisons.cluster_C, num_folds, seed)
    difference_CF = difference_of(matrix_NF, comparisons)
    margin_C = np.zeros(len(comparisons))
    for fold in range(num_folds):
        fitted = comparisons.where(fold_C != fold)
        coefficient_F = fit_comparison_model(
            difference_CF[fold_C != fold], fitted.weight_C, l2_F, fitted.target_C, MAX_ITERATIONS
        )
        margin_C[fold_C == fold] = difference_CF[fold_C == fold] @ coefficient_F
    return margin_C

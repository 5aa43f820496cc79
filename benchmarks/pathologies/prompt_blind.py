"""Labels that need no prompt: seen by the audit, and what `training.cross_prompt` does about them.

Legend: C comparisons, N answers, G groups, M made or swapped pairs, F features, B buckets.
"""

import math
from collections import Counter
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, diags, hstack, vstack

from benchmarks.pathologies.alarms import TWO, alarms
from benchmarks.pathologies.biases import Texts, accuracy_of
from palate.audit.feature_model import default_l2, folds_of
from palate.audit.settings import AuditSettings
from palate.audit.shortcuts import prompt_blind_of, prompt_overlap_features
from palate.rendering import RenderedGroup
from palate.simulation import Simulated, label, labels_of
from palate.statistics.comparison_model import fit_comparison_model
from palate.text.hashed import hashed_terms, words_of
from palate.training.augmentation import cross_prompt_groups
from palate.training.settings import CrossPromptSettings

CROSS_PROMPT_SHARE = 2.0
JOINT_BUCKETS, JOINT_L2 = 1 << 15, 0.01
COMMON = 0.1
"""Share of the prompts from which on a word says nothing of what is asked."""


def blind(seed: int, num_pairs: int, measure: bool) -> dict[str, Any]:
    """The detector's models see answers' words and how far they speak of the prompt. The fix: pairs
    of an answer to the prompt and one to another; its effect is how often the other one wins."""
    texts = Texts(seed, num_pairs, "off-topic")
    groups = label(texts.scene).groups
    overlap_N2 = prompt_overlap_features(groups)
    settings = AuditSettings(seed=seed)
    found: dict[str, Any] = {}
    for twin in TWO:
        simulated = label(texts.scene, labels_of("prompt-blind", twin, seed))
        comparisons = texts.comparisons(simulated)
        findings = prompt_blind_of(groups, texts.features, comparisons, settings, overlap_N2)
        found[twin] = alarms(findings, "prompt-blind", "warn")
        if measure and twin == "planted":
            found.update(_cross_prompt(texts, simulated))
    return found


class _PromptAndAnswer:
    """Features of an answer to a prompt: those of its words, and which words of the prompt stand
    with which of the answer (hashed), so that the model can learn what belongs together."""

    def __init__(self, texts: Texts) -> None:
        scene = texts.scene
        asked = [words_of(scene.prompts[place]) for place in scene.prompt_G]
        count = Counter(word for words in asked for word in set(words))
        common = {word for word, number in count.items() if number > COMMON * len(asked)}
        self.asked_G = [sorted(set(words) - common) for words in asked]
        self.said_N = [sorted(set(words_of(text)) - common) for text in scene.texts]
        self.matrix_NF = texts.features.matrix_NF
        self.l2_F = np.concatenate([default_l2(), np.full(JOINT_BUCKETS, JOINT_L2)])

    def of(self, group_M: np.ndarray, answer_M: np.ndarray) -> csr_matrix:
        terms = [
            [f"{asked} {said}" for asked in self.asked_G[g] for said in self.said_N[n]]
            for g, n in zip(group_M, answer_M, strict=True)
        ]
        scale_M = [1 / math.sqrt(max(1, len(row))) for row in terms]
        joint_MB = diags(scale_M) @ hashed_terms(terms, JOINT_BUCKETS)
        return hstack([self.matrix_NF[answer_M], joint_MB], "csr")


def _cross_prompt(texts: Texts, simulated: Simulated) -> dict[str, float]:
    """The pairs that `training.cross_prompt` makes of the preferred answers, on topic or not as the
    labels have it. The effect: of held-out on-topic answers, how many lose to one to a prompt on
    another topic."""
    scene = texts.scene
    features = _PromptAndAnswer(texts)
    group_N = np.repeat(np.arange(scene.num_groups), scene.num_responses)
    seen_NF = features.of(group_N, scene.answer_GK.ravel())
    held_out_G = folds_of(texts.features.cluster_G, 5, texts.seed) == 0
    comparisons = texts.comparisons(simulated)
    train = comparisons.where(~held_out_G[comparisons.group_C])
    rows_CF = seen_NF[train.better_C] - seen_NF[train.worse_C]
    made_CF, target_M = _made_pairs(texts, features, simulated, ~held_out_G)
    test_MF = _swapped(texts, features, held_out_G)
    found = {}
    for when, all_CF, target_C in (
        ("before", rows_CF, train.target_C),
        ("after", vstack([rows_CF, made_CF], "csr"), np.concatenate([train.target_C, target_M])),
    ):
        coefficient_F = fit_comparison_model(all_CF, None, features.l2_F, target_C, 100)
        found[f"effect_{when}"] = float((test_MF @ coefficient_F <= 0).mean())
        found[f"accuracy_{when}"] = accuracy_of(
            texts, seen_NF @ coefficient_F, np.flatnonzero(held_out_G)
        )
    return found


def _made_pairs(
    texts: Texts, features: _PromptAndAnswer, simulated: Simulated, in_training_G: np.ndarray
) -> tuple[csr_matrix, np.ndarray]:
    """Rows of the pairs that training makes, and their targets. Texts stand for their places: equal
    ones have equal features."""
    place = {group.prompt[0].content: g for g, group in enumerate(simulated.groups)}
    answer = {text: n for n, text in enumerate(texts.scene.texts)}
    rendered = [
        RenderedGroup(
            sequences=tuple(() for _ in group.responses),
            comparisons=group.comparisons,
            group=group,
            response_index=tuple(range(len(group.responses))),
        )
        for g, group in enumerate(simulated.groups)
        if in_training_G[g]
    ]
    settings = CrossPromptSettings(share=CROSS_PROMPT_SHARE)
    made = list(cross_prompt_groups(rendered, settings, texts.seed))
    group_M = np.array([place[pair.prompt[0].content] for pair in made])
    own_M, other_M = (
        np.array([answer[pair.responses[side].text] for pair in made]) for side in (0, 1)
    )
    rows_MF = features.of(group_M, own_M) - features.of(group_M, other_M)
    return rows_MF, np.array([pair.comparisons[0].probability for pair in made])


def _swapped(texts: Texts, features: _PromptAndAnswer, held_out_G: np.ndarray) -> csr_matrix:
    """Rows of held-out answers on topic, each less an answer to a prompt on another topic."""
    scene = texts.scene
    first_G = scene.answer_GK[:, 0]
    able = np.flatnonzero(held_out_G & scene.features["on topic"].astype(bool)[first_G])
    others = np.random.default_rng([texts.seed, 11]).permutation(able)
    topic_G = scene.topic_P[scene.prompt_G]
    apart = topic_G[able] != topic_G[others]
    own, other = able[apart], others[apart]
    return features.of(own, first_G[own]) - features.of(own, first_G[other])

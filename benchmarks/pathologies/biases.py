"""Biases of style on feature models: planted, clean, legitimate; before and after the fix.

The reward model is the audit's small model on words and style, so that a seed costs seconds. Each
bias: 6,000 pairs, four fifths to train on; the audit's own probe on the rest says whether there is
an alarm. The fix is what training has under the same names: a nuisance term in the logit, dropped
at inference, and counterfactual pairs in phrasings that neither planter nor probe uses.

Legend: C comparisons, H held-out ones, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix, hstack, vstack

from palate.audit.feature_model import (
    Comparisons,
    FeatureModel,
    TextFeatures,
    default_l2,
    features_of_texts,
    fit_feature_model,
)
from palate.audit.probes import phrase_probe, probe
from palate.objectives.covariates import COVARIATES
from palate.preferences import Message, prompt_cluster
from palate.simulation import Simulated, label, labels_of, scene
from palate.simulation.worlds import TwinName
from palate.statistics.comparison_model import fit_comparison_model
from palate.text.perturb import perturb

PROBE_OF = {
    "length": "filler",
    "markdown": "markdown",
    "closing": "closing",
    "confidence": "confidence",
    "sycophancy": "agreement",
}
"""The probe that must see each bias."""
NUISANCE_OF = {
    "length": "log_length",
    "markdown": "markdown",
    "closing": "closing",
    "confidence": "confidence",
    "sycophancy": "agreement",
}
"""The covariate of `objective.nuisance` against each bias."""
COUNTERFACTUAL_SHARE = 0.15
COUNTERFACTUAL_TARGET = 0.5
NUISANCE_L2 = 1e-6
Fix = Literal["none", "nuisance", "counterfactual"]
FIXES: tuple[Fix, ...] = ("nuisance", "counterfactual")
"""The first is the one in the table; the other is shown beside it."""


@dataclass(frozen=True)
class Measured:
    """One model: does the probe alarm, how many pairs flip, is it right about the true utility."""

    alarm: bool
    flips: float
    accuracy: float


class Texts:
    """A scene with its features, to be labelled and fitted many times."""

    def __init__(self, seed: int, num_pairs: int, style: str) -> None:
        self.seed = seed
        self.scene = scene(seed, num_pairs, style=style)
        # As of `text_features`, without making preference groups.
        prompts = [self.scene.prompts[place] for place in self.scene.prompt_G]
        clusters = [int(prompt_cluster((Message("user", text),)), 16) for text in prompts]
        members_N = self.scene.answer_GK.ravel()
        self.features: TextFeatures = features_of_texts(
            tuple(self.scene.texts[n] for n in members_N),
            [self.scene.num_responses] * self.scene.num_groups,
            np.array(clusters, np.uint64),
        )
        assert (members_N == np.arange(len(members_N))).all(), (
            "answers stand in their groups' order"
        )
        self.counterfactuals: dict[str, tuple[np.ndarray, csr_matrix]] = {}

    def comparisons(self, simulated: Simulated) -> Comparisons:
        """The votes as comparisons, without a detour over preference groups."""
        better_C, worse_C, group_C = simulated.votes.comparisons(self.scene)
        ones = np.ones(len(group_C))
        return Comparisons(
            group_C=group_C,
            better_C=better_C,
            worse_C=worse_C,
            target_C=ones,
            weight_C=ones,
            cluster_C=self.features.cluster_G[group_C],
        )

    def labelled(self, world: str, twin: TwinName, strength: float = 1.0) -> Comparisons:
        """The comparisons of a twin of a world that is written like this scene."""
        settings = labels_of(world, twin, self.seed, strength)
        return self.comparisons(label(self.scene, settings))

    def covariate(self, name: str) -> np.ndarray:
        """A covariate of every answer."""
        return np.array([COVARIATES[name](text) for text in self.scene.texts])

    def counterfactual(self, kind: str) -> tuple[np.ndarray, csr_matrix]:
        """Answers, and their features when changed in the phrasings of the fix."""
        if kind not in self.counterfactuals:
            random = np.random.default_rng([self.seed, 9])
            number = int(COUNTERFACTUAL_SHARE * len(self.scene.answer_GK))
            chosen = random.choice(len(self.scene.texts), number, replace=False)
            texts = [perturb(self.scene.texts[n], kind, "train", random) for n in chosen]
            self.counterfactuals[kind] = chosen, self.features.scaling.features(texts)
        return self.counterfactuals[kind]


def measured(texts: Texts, model: FeatureModel, kind: str) -> Measured:
    result = probe(texts.features, model, kind, phrase_probe(kind))
    right = true_accuracy(texts, model.coefficient_F, model.held_out.group_C)
    return Measured(result.fails, result.flips.value, right)


def true_accuracy(texts: Texts, coefficient_F: np.ndarray, groups: np.ndarray) -> float:
    """`accuracy_of` the linear model with these coefficients."""
    return accuracy_of(texts, texts.features.matrix_NF @ coefficient_F, groups)


def accuracy_of(texts: Texts, reward_N: np.ndarray, groups: np.ndarray) -> float:
    """Share of these pairs in which the answer of higher true utility has the higher reward; equal
    rewards count half, pairs of equal utility are left out."""
    first_G, second_G = texts.scene.answer_GK[groups].T
    true_G = texts.scene.utility_N[first_G] - texts.scene.utility_N[second_G]
    margin_G = reward_N[first_G] - reward_N[second_G]
    right_G = np.where(margin_G == 0, 0.5, (margin_G > 0) == (true_G > 0))
    return float(right_G[true_G != 0].mean())


def fitted(texts: Texts, comparisons: Comparisons, world: str, fix: Fix = "none") -> FeatureModel:
    """The audit's model. nuisance: the covariate as a column without penalty, dropped after the
    fit; counterfactual: pairs of an answer and the same answer changed, target 1/2, among the
    training comparisons."""
    plain = fit_feature_model(texts.features, comparisons, seed=texts.seed)
    assert plain is not None
    if fix == "none":
        return plain
    held_out = set(plain.held_out.group_C.tolist())
    in_training_C = np.array([g not in held_out for g in comparisons.group_C.tolist()])
    train = comparisons.where(in_training_C)
    matrix_NF = texts.features.matrix_NF
    difference_CF = matrix_NF[train.better_C] - matrix_NF[train.worse_C]
    target_C, l2_F = train.target_C, default_l2()
    if fix == "nuisance":
        covariate_N = texts.covariate(NUISANCE_OF[world])
        nuisance_C = covariate_N[train.better_C] - covariate_N[train.worse_C]
        difference_CF = hstack([difference_CF, csr_matrix(nuisance_C[:, None])], "csr")
        l2_F = np.append(l2_F, NUISANCE_L2)
    else:
        chosen, changed_MF = texts.counterfactual(PROBE_OF[world])
        trained_on = np.zeros(matrix_NF.shape[0], dtype=bool)
        trained_on[train.better_C] = trained_on[train.worse_C] = True
        keep = trained_on[chosen]
        made_CF = matrix_NF[chosen[keep]] - changed_MF[keep]
        difference_CF = vstack([difference_CF, made_CF], "csr", dtype=np.float64)
        target_C = np.concatenate([target_C, np.full(keep.sum(), COUNTERFACTUAL_TARGET)])
    coefficient_F = fit_comparison_model(difference_CF, None, l2_F, target_C, 100)
    coefficient_F = coefficient_F[: matrix_NF.shape[1]]
    reward_N = matrix_NF @ coefficient_F
    held = plain.held_out
    return replace(
        plain,
        coefficient_F=coefficient_F,
        margin_H=reward_N[held.better_C] - reward_N[held.worse_C],
    )


def biases(
    seed: int, num_pairs: int, measure: bool, strengths: Sequence[float]
) -> tuple[Texts, dict[str, Any]]:
    """The scene of independent features, and what one seed says of each bias of style; with
    `strengths`, also whether the probe alarms at each of these many logits."""
    texts = Texts(seed, num_pairs, "independent")
    clean = fitted(texts, texts.labelled("length", "clean"), "length")
    found: dict[str, Any] = {}
    power: dict[str, dict[str, bool]] = {}
    for name, kind in PROBE_OF.items():
        comparisons = texts.labelled(name, "planted")
        planted = measured(texts, fitted(texts, comparisons, name), kind)
        legitimate_texts = Texts(seed, num_pairs, f"legitimate-{name}")
        by_right = legitimate_texts.labelled(name, "legitimate")
        legitimate = measured(legitimate_texts, fitted(legitimate_texts, by_right, name), kind)
        found[name] = {
            "planted": planted.alarm,
            "clean": measured(texts, clean, kind).alarm,
            "legitimate": legitimate.alarm,
        }
        if measure:
            found[name] |= _before(planted, legitimate)
            for fix in FIXES:
                fixed = measured(texts, fitted(texts, comparisons, name, fix), kind)
                kept_model = fitted(legitimate_texts, by_right, name, fix)
                kept = measured(legitimate_texts, kept_model, kind)
                after = "after" if fix == FIXES[0] else fix
                found[name] |= {
                    f"effect_{after}": fixed.flips,
                    f"accuracy_{after}": fixed.accuracy,
                    f"accuracy_legitimate_{after}": kept.accuracy,
                }
        if strengths:
            power[name] = {
                str(strength): measured(
                    texts, fitted(texts, texts.labelled(name, "planted", strength), name), kind
                ).alarm
                for strength in strengths
            }
    return texts, found | ({"power": power} if strengths else {})


def _before(planted: Measured, legitimate: Measured) -> dict[str, float]:
    return {
        "effect_before": planted.flips,
        "accuracy_before": planted.accuracy,
        "accuracy_legitimate_before": legitimate.accuracy,
    }

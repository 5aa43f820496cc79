"""Faults of data: planted and clean, through the audit's checks; before and after the fix.

Each function takes a seed and gives what one seed has to say of one fault: whether the check alarms
on the planted and on the clean twin, and what the fix does. Where a model is measured it is the
audit's small one, on held-out prompts, against the true utility.

Legend: C comparisons, N answers, G groups, Q nuisance covariates, F features.
"""

import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, diags, hstack, vstack

from benchmarks.pathologies.biases import Texts, accuracy_of, true_accuracy
from benchmarks.pathologies.small_model import save_tokenizer
from palate.audit.annotators import annotator_share
from palate.audit.columns import Audited, Columns
from palate.audit.display import position_bias
from palate.audit.feature_model import Comparisons, default_l2, folds_of
from palate.audit.findings import SEVERITIES, Finding, Severity, Skipped
from palate.audit.noise import noise_of
from palate.audit.overlap import prompt_overlap
from palate.audit.scan import columns_of
from palate.audit.settings import AuditSettings
from palate.audit.shift import shift_findings
from palate.audit.shortcuts import prompt_blind_of, prompt_overlap_features, source_shortcut
from palate.audit.tokens import token_findings
from palate.preferences import PreferenceGroup, split_groups
from palate.preferences.annotator_weights import capped_weights
from palate.preferences.split import join_near_duplicates, keys_of
from palate.rendering import LengthSettings, Renderer
from palate.simulation import MODELS, Simulated, label, labels_of, world
from palate.simulation.worlds import TwinName
from palate.statistics.comparison_model import fit_comparison_model
from palate.text.hashed import hashed_terms, words_of

CAP = 0.2
"""Largest share of the weighted votes that one annotator has after the fix."""
NEAR = 0.8
"""Jaccard index from which the fix of a leak joins prompts."""
TWO: tuple[TwinName, ...] = ("planted", "clean")
CUT_AT = 160
"""Tokens of an answer in the world of answers that share their first 150 words."""
CROSS_PROMPT_SHARE = 2.0
JOINT_BUCKETS, JOINT_L2 = 1 << 15, 0.01
COMMON = 0.1
"""Share of the prompts from which on a word says nothing of what is asked."""
LEAK_PAIRS, TRUNCATION_PAIRS, SHIFT_PAIRS, BLIND_PAIRS = 1_800, 100, 3_000, 3_000
"""Pairs where 6,000 would only cost time."""


def alarms(found: Iterable[Finding | Skipped], check: str, severity: Severity) -> bool:
    """Whether a finding of this check is as grave as `severity`. Raises AssertionError where the
    check was not made: no alarm would mean nothing."""
    made = [f for f in found if isinstance(f, Finding) and f.check == check]
    assert made, f"{check} was not made"
    return any(SEVERITIES.index(f.severity) >= SEVERITIES.index(severity) for f in made)


class Labelled:
    """One scene with its columns, labelled as several worlds ask."""

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.seed = texts.seed
        self.columns: Audited = columns_of(label(texts.scene).groups)

    def twin(self, name: str, twin: TwinName) -> tuple[Simulated, Audited]:
        """The scene as a twin of a world labels it, and its columns."""
        simulated = label(self.texts.scene, labels_of(name, twin, self.seed))
        return simulated, replace(
            self.columns, columns=_relabelled(self.columns.columns, simulated)
        )


def _relabelled(columns: Columns, simulated: Simulated) -> Columns:
    """What `palate.audit.scan.relabelled` gives for one vote a pair, from arrays."""
    votes, scene = simulated.votes, simulated.scene
    better_C, worse_C, group_C = votes.comparisons(scene)
    order = np.argsort(group_C, kind="stable")
    better_C, worse_C, group_C = better_C[order], worse_C[order], group_C[order]
    first_P, second_P = scene.answer_GK[group_C].T
    ones = np.ones(len(group_C), np.float32)
    shown_first_P = scene.answer_GK[group_C, votes.shown_VK[order, 0]]
    return replace(
        columns,
        annotators=tuple(f"annotator {a}" for a in range(int(votes.annotator_V.max()) + 1)),
        group_C=group_C,
        better_C=better_C,
        worse_C=worse_C,
        probability_C=ones,
        tie_C=0 * ones,
        weight_C=ones,
        vote_P=np.arange(len(group_C)),
        annotator_P=votes.annotator_V[order].astype(np.int32),
        first_P=first_P,
        second_P=second_P,
        outcome_P=np.where(better_C == first_P, 1, -1).astype(np.int8),
        shown_P=np.where(shown_first_P == first_P, 1, -1).astype(np.int8),
        strength_P=np.full(len(group_C), np.nan, np.float32),
    )


def accuracy(
    texts: Texts,
    comparisons: Comparisons,
    weight_C: np.ndarray | None = None,
    nuisance_CQ: np.ndarray | None = None,
) -> float:
    """True accuracy on held-out prompts of a model with votes' weights or nuisance covariates; the
    latter are columns without penalty, dropped after the fit."""
    held_out_C = folds_of(comparisons.cluster_C, 5, texts.seed) == 0
    train = comparisons.where(~held_out_C)
    matrix_NF = texts.features.matrix_NF
    difference_CF: Any = matrix_NF[train.better_C] - matrix_NF[train.worse_C]
    l2_F = default_l2()
    num_features = len(l2_F)
    if nuisance_CQ is not None:
        difference_CF = hstack([difference_CF, csr_matrix(nuisance_CQ[~held_out_C])], "csr")
        l2_F = np.concatenate([l2_F, np.zeros(nuisance_CQ.shape[1])])
    weights_C = train.weight_C if weight_C is None else weight_C[~held_out_C]
    coefficient_F = fit_comparison_model(difference_CF, weights_C, l2_F, max_iterations=100)
    groups = np.unique(comparisons.group_C[held_out_C])
    return true_accuracy(texts, coefficient_F[:num_features], groups)


def dominance(shared: Labelled, measure: bool) -> dict[str, Any]:
    planted, audited = shared.twin("dominance", "planted")
    _, clean = shared.twin("dominance", "clean")
    found: dict[str, Any] = {
        "planted": alarms([annotator_share(audited)], "annotator share", "error"),
        "clean": alarms([annotator_share(clean)], "annotator share", "warn"),
    }
    if measure:
        annotator_V = planted.votes.annotator_V
        counts = {str(a): float(n) for a, n in enumerate(np.bincount(annotator_V))}
        weights = capped_weights(counts, CAP)
        weight_C = np.array([weights[str(a)] for a in annotator_V])
        comparisons = shared.texts.comparisons(planted)
        found["accuracy_before"] = accuracy(shared.texts, comparisons)
        found["accuracy_after"] = accuracy(shared.texts, comparisons, weight_C=weight_C)
    return found


def position(shared: Labelled, measure: bool) -> dict[str, Any]:
    planted, audited = shared.twin("position", "planted")
    _, clean = shared.twin("position", "clean")
    found: dict[str, Any] = {
        "planted": alarms([position_bias(audited)], "position bias", "error"),
        "clean": alarms([position_bias(clean)], "position bias", "warn"),
    }
    if measure:
        votes = planted.votes
        first_C1 = np.where(votes.shown_VK[:, 0] == votes.ranking_VK[:, 0], 1.0, -1.0)[:, None]
        comparisons = shared.texts.comparisons(planted)
        found["accuracy_before"] = accuracy(shared.texts, comparisons)
        found["accuracy_after"] = accuracy(shared.texts, comparisons, nuisance_CQ=first_C1)
    return found


def source(shared: Labelled, measure: bool) -> dict[str, Any]:
    planted, audited = shared.twin("source", "planted")
    _, clean = shared.twin("source", "clean")
    settings = AuditSettings(seed=shared.seed)
    found: dict[str, Any] = {
        "planted": alarms(source_shortcut(audited, settings), "source shortcut", "warn"),
        "clean": alarms(source_shortcut(clean, settings), "source shortcut", "warn"),
    }
    if measure:
        comparisons = shared.texts.comparisons(planted)
        model_NQ = np.eye(len(MODELS))[shared.texts.scene.features["source"]][:, 1:]
        nuisance_CQ = model_NQ[comparisons.better_C] - model_NQ[comparisons.worse_C]
        found["accuracy_before"] = accuracy(shared.texts, comparisons)
        found["accuracy_after"] = accuracy(shared.texts, comparisons, nuisance_CQ=nuisance_CQ)
    return found


def noise(shared: Labelled, measure: bool) -> dict[str, Any]:
    settings = AuditSettings(seed=shared.seed)
    found: dict[str, Any] = {}
    texts = shared.texts
    for twin in TWO:
        simulated, audited = shared.twin("noise", twin)
        comparisons = texts.comparisons(simulated)
        findings = noise_of(audited, texts.features, comparisons, settings)
        found[twin] = alarms(findings, "label noise", "warn")
    if measure:
        one, _ = shared.twin("noise", "planted")
        three = label(texts.scene, replace(one.settings, votes_per_group=3))
        found["accuracy_before"] = accuracy(texts, texts.comparisons(one))
        found["accuracy_after"] = accuracy(texts, texts.comparisons(three))
    return found


def blind(seed: int, num_pairs: int, measure: bool) -> dict[str, Any]:
    """The detector's models see answers' words and how far they speak of the prompt. The fix: pairs
    of an answer to the prompt and one to another; its effect is how often the other one wins."""
    texts = Texts(seed, num_pairs, "off-topic")
    groups = label(texts.scene).groups
    overlap_N2 = prompt_overlap_features(groups)
    settings = AuditSettings(seed=seed)
    found: dict[str, Any] = {}
    for twin in TWO:
        labels = label(texts.scene, labels_of("prompt-blind", twin, seed))
        comparisons = texts.comparisons(labels)
        findings = prompt_blind_of(groups, texts.features, comparisons, settings, overlap_N2)
        found[twin] = alarms(findings, "prompt-blind", "warn")
        if measure and twin == "planted":
            found.update(_cross_prompt(texts, comparisons))
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


def _cross_prompt(texts: Texts, comparisons: Comparisons) -> dict[str, float]:
    """Pairs of the on-topic answers of a prompt and of another, as training makes them of preferred
    answers; on-topic since the labels of this world prefer anything."""
    random = np.random.default_rng([texts.seed, 11])
    scene = texts.scene
    features = _PromptAndAnswer(texts)
    first_G = scene.answer_GK[:, 0]
    on_topic_G = scene.features["on topic"].astype(bool)[first_G]
    held_out_G = folds_of(texts.features.cluster_G, 5, texts.seed) == 0

    def swapped(groups: np.ndarray) -> csr_matrix:
        others = random.permutation(groups)
        topic_G = scene.topic_P[scene.prompt_G]
        apart = topic_G[groups] != topic_G[others]
        own, other = groups[apart], others[apart]
        return features.of(own, first_G[own]) - features.of(own, first_G[other])

    group_N = np.repeat(np.arange(scene.num_groups), scene.num_responses)
    seen_NF = features.of(group_N, scene.answer_GK.ravel())
    train = comparisons.where(~held_out_G[comparisons.group_C])
    rows_CF = seen_NF[train.better_C] - seen_NF[train.worse_C]
    test_MF = swapped(np.flatnonzero(held_out_G & on_topic_G))
    able = np.flatnonzero(~held_out_G & on_topic_G)
    made: list[csr_matrix] = []
    while sum(part.shape[0] for part in made) < CROSS_PROMPT_SHARE * len(train):
        made.append(swapped(able))
    made_CF = vstack(made, "csr")[: int(CROSS_PROMPT_SHARE * len(train))]
    found = {}
    for when, all_CF in (("before", rows_CF), ("after", vstack([rows_CF, made_CF], "csr"))):
        coefficient_F = fit_comparison_model(all_CF, None, features.l2_F, max_iterations=100)
        found[f"effect_{when}"] = float((test_MF @ coefficient_F <= 0).mean())
        found[f"accuracy_{when}"] = accuracy_of(
            texts, seen_NF @ coefficient_F, np.flatnonzero(held_out_G)
        )
    return found


def shift(seed: int, num_pairs: int, measure: bool) -> dict[str, Any]:
    """Train and fresh part of one scene; the fix adds a tenth of the fresh pairs to training."""
    found: dict[str, Any] = {}
    settings = AuditSettings(seed=seed)
    for twin in TWO:
        simulated = world("shift", twin, seed, num_pairs)
        sides = [columns_of(simulated.part(name)) for name in ("fresh", "train")]
        findings = shift_findings(sides[0], settings, sides[1])
        found[twin] = alarms(findings, "distribution shift", "warn")
    if measure:
        texts = Texts(seed, num_pairs, "shift")
        comparisons = texts.comparisons(label(texts.scene, labels_of("shift", "planted", seed)))
        parts = texts.scene.parts
        fresh = np.random.default_rng([seed, 13]).permutation(parts["fresh"])
        added, rest = np.split(fresh, [len(fresh) // 10])
        matrix_NF = texts.features.matrix_NF
        for when, groups in (
            ("before", list(parts["train"])),
            ("after", [*parts["train"], *added.tolist()]),
        ):
            train = comparisons.where(np.isin(comparisons.group_C, groups))
            coefficient_F = fit_comparison_model(
                matrix_NF[train.better_C] - matrix_NF[train.worse_C],
                None,
                default_l2(),
                max_iterations=100,
            )
            found[f"accuracy_{when}"] = true_accuracy(texts, coefficient_F, rest)
    return found


def _overlapping(train: Sequence[PreferenceGroup], held_out: Sequence[PreferenceGroup]) -> bool:
    found = prompt_overlap(columns_of(held_out), columns_of(train))
    return alarms([found], "prompt overlap", "error")


def leak(seed: int, num_pairs: int) -> dict[str, Any]:
    """Six pairs a prompt, so that `num_pairs` / 6 prompts. The fix: palate's own split by cluster,
    near-duplicates joined; its effect is what share of held-out prompts is still trained on."""
    num_prompts = num_pairs // 6
    planted = world("leak", "planted", seed, num_prompts)
    clean = world("leak", "clean", seed, num_prompts)
    joined = join_near_duplicates(planted.groups, NEAR)
    split = split_groups(
        planted.groups, {"train": 0.8, "validation": 0.2}, f"{seed}", keys=keys_of(joined)
    )
    return {
        "planted": _overlapping(planted.part("train"), planted.part("validation")),
        "clean": _overlapping(clean.part("train"), clean.part("validation")),
        "effect_before": _shared_requests(
            planted, planted.parts["train"], planted.parts["validation"]
        ),
        "effect_after": _shared_requests(
            planted, *(_places(planted, split.parts[name]) for name in ("train", "validation"))
        ),
    }


def _places(simulated: Simulated, groups: Sequence[PreferenceGroup]) -> list[int]:
    place = {group.line: index for index, group in enumerate(simulated.groups)}
    return [place[group.line] for group in groups]


def _shared_requests(simulated: Simulated, train: Sequence[int], held_out: Sequence[int]) -> float:
    """Share of the held-out groups whose request, or its near twin, is trained on."""
    cluster_G = simulated.scene.cluster_P[simulated.scene.prompt_G]
    return float(np.isin(cluster_G[list(held_out)], cluster_G[list(train)]).mean())


@cache
def _tokenizer() -> Any:
    """A byte-level BPE of the simulated texts: the same for all seeds."""
    texts = world("truncation", "planted", 0, 200).scene.texts
    with tempfile.TemporaryDirectory() as directory:
        return save_tokenizer(Path(directory), texts)


def truncation(seed: int, num_pairs: int) -> dict[str, Any]:
    """The fix: a limit that holds the answers; its effect the share of pairs that become one."""
    found = {}
    for twin in TWO:
        audited = columns_of(world("truncation", twin, seed, num_pairs).groups)
        for limit in (CUT_AT, 1000) if twin == "planted" else (CUT_AT,):
            lengths = LengthSettings(
                max_prompt_tokens=1000, max_response_tokens=limit, overlong="cut"
            )
            findings = token_findings(audited, AuditSettings(), Renderer(_tokenizer(), lengths))
            found[twin, limit] = findings
    share = {
        limit: next(
            f.statistic
            for f in found["planted", limit]
            if isinstance(f, Finding) and f.check == "identical tokens"
        )
        for limit in (CUT_AT, 1000)
    }
    return {
        "planted": alarms(found["planted", CUT_AT], "identical tokens", "error"),
        "clean": alarms(found["clean", CUT_AT], "identical tokens", "error"),
        "effect_before": share[CUT_AT],
        "effect_after": share[1000],
    }


def data_faults(texts: Texts, num_pairs: int, measure: bool) -> dict[str, Any]:
    """What one seed says of every fault of data; `texts` is its scene of independent features."""
    shared = Labelled(texts)
    return {
        "dominance": dominance(shared, measure),
        "position": position(shared, measure),
        "source": source(shared, measure),
        "noise": noise(shared, measure),
        "prompt-blind": blind(texts.seed, min(num_pairs, BLIND_PAIRS), measure),
        "leak": leak(texts.seed, min(num_pairs, LEAK_PAIRS)),
        "truncation": truncation(texts.seed, min(num_pairs, TRUNCATION_PAIRS)),
        "shift": shift(texts.seed, min(num_pairs, SHIFT_PAIRS), measure),
    }

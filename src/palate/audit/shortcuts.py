"""Shortcuts: labels that can be guessed without reading the answers, or without reading the prompt.

Legend: C comparisons, M models, N answers, F features.
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix, hstack

from palate.audit.columns import NO_MODEL, Audited
from palate.audit.feature_model import (
    Comparisons,
    TextFeatures,
    default_l2,
    folds_of,
    out_of_fold_margins,
)
from palate.audit.findings import MAX_EXAMPLES, Example, Finding, Severity, Skipped
from palate.audit.places import last_turn, place_of, places
from palate.audit.settings import AuditSettings
from palate.audit.wording import known_or_none
from palate.preferences import PreferenceGroup
from palate.statistics import Estimate
from palate.statistics.comparison_model import fit_comparison_model
from palate.statistics.resampling import ratio_of_sums
from palate.text.hashed import words_of

MAX_BY_MODEL = 0.65
"""Accuracy of the models' names alone, from research that the design rests on."""
BLIND_RATIO = 0.95
"""Share of the accuracy that is left without the prompt (2504.06020)."""
SURE_BLIND = 0.65
"""Accuracy without the prompt below which the small model explains too little of the labels for
its silence on the rest to mean that the prompt has no part in them."""
NUM_FOLDS = 3
MIN_COMPARISONS = 300
MAX_COMPARISONS = 20_000
STRENGTH_L2 = 0.1
OVERLAP_L2 = 0.1
MAX_NAMED = 12


def source_shortcut(audited: Audited, settings: AuditSettings) -> list[Finding | Skipped]:
    """How often the names of the two answers' models alone say which is preferred: Bradley-Terry
    strengths of models, fitted without the fold they are measured on."""
    check = "source shortcut"
    columns = audited.columns
    model_N = columns.model_N
    better_C, worse_C = model_N[columns.better_C], model_N[columns.worse_C]
    known_C = (better_C != NO_MODEL) & (worse_C != NO_MODEL) & (better_C != worse_C)
    chosen = np.flatnonzero(columns.is_decided_C & known_C)
    chosen = chosen[np.argsort(columns.cluster_C()[chosen], kind="stable")]
    chosen = chosen[: settings.max_modelled_comparisons]
    if len(chosen) < MIN_COMPARISONS:
        reason = f"fewer than {MIN_COMPARISONS} comparisons of answers by two named models"
        return [Skipped(check, reason)]
    rows = np.arange(len(chosen))
    data = np.concatenate([np.ones(len(chosen)), -np.ones(len(chosen))])
    place = np.concatenate([better_C[chosen], worse_C[chosen]])
    shape = (len(chosen), len(columns.models))
    difference_CM = csr_matrix((data, (np.concatenate([rows, rows]), place)), shape)
    weight_C = columns.group_weight_C()[chosen] * columns.weight_C[chosen]
    cluster_C = columns.cluster_C()[chosen]
    margin_C = np.zeros(len(chosen))
    fold_C = folds_of(cluster_C, NUM_FOLDS, settings.seed)
    for fold in range(NUM_FOLDS):
        train = fold_C != fold
        strength_M = fit_comparison_model(difference_CM[train], weight_C[train], STRENGTH_L2)
        margin_C[~train] = difference_CM[~train] @ strength_M
    right_C = (margin_C > 0) + 0.5 * (margin_C == 0)
    accuracy = ratio_of_sums(right_C * weight_C, weight_C, cluster_C, settings.seed)
    chars_N = columns.chars_N
    gap_C = chars_N[columns.better_C[chosen]] - chars_N[columns.worse_C[chosen]]
    longer = float(np.average((gap_C > 0) + 0.5 * (gap_C == 0), weights=weight_C))
    strength_M = fit_comparison_model(difference_CM, weight_C, STRENGTH_L2)
    seen = np.unique(place)
    order = seen[np.argsort(-strength_M[seen], kind="stable")]
    severity: Severity = "warn" if accuracy.low > MAX_BY_MODEL else "note"
    best, worst = columns.models[order[0]], columns.models[order[-1]]
    against = np.argsort(-margin_C, kind="stable")
    return [
        Finding(
            check=check,
            severity=severity,
            statistic=accuracy.value,
            low=accuracy.low,
            high=accuracy.high,
            threshold=MAX_BY_MODEL,
            n=len(chosen),
            what="share of comparisons decided right by the names of the answers' models alone",
            message=(
                f"The models' names alone decide {accuracy.value:.1%} [{accuracy.low:.1%},"
                f" {accuracy.high:.1%}] of {len(chosen)} comparisons between {len(seen)} models"
                f" (longer wins: {longer:.1%}); {best!r} wins most, {worst!r} least. A reward"
                " model can learn whose answer it is instead of what is good in it."
            ),
            examples=places(
                audited,
                columns.group_C[chosen][against],
                lambda x, group: (
                    f"{columns.models[better_C[chosen[against[x]]]]} over"
                    f" {columns.models[worse_C[chosen[against[x]]]]}: {last_turn(group)}"
                ),
            ),
            fix=(
                "Compare answers of one model with each other (several samples a prompt), or train"
                " on pairs of models of like strength; look at accuracy within pairs of models."
                if severity != "note"
                else ""
            ),
            effect=max(0.0, 2 * accuracy.value - 1),
            figure={
                "kind": "bars",
                "title": "Strength of each model, in logits (mean 0)",
                "bars": [
                    {
                        "name": columns.models[m],
                        "value": float(strength_M[m] - strength_M[seen].mean()),
                    }
                    for m in order[:MAX_NAMED]
                ],
            },
        )
    ]


def prompt_blind_of(
    groups: Sequence[PreferenceGroup],
    features: TextFeatures,
    comparisons: Comparisons,
    settings: AuditSettings,
    overlap_N2: np.ndarray | None = None,
) -> list[Finding | Skipped]:
    """Whether labels can be told without the prompt: the word model of answers alone against one
    that also sees how much each answer speaks of what the prompt speaks of (`overlap_N2`, made here
    where it is not at hand)."""
    check = "prompt-blind"
    kept = np.argsort(comparisons.cluster_C, kind="stable")[:MAX_COMPARISONS]
    comparisons = comparisons.where(kept)
    if len(comparisons) < MIN_COMPARISONS:
        return [Skipped(check, f"fewer than {MIN_COMPARISONS} comparisons with a better side")]
    overlap_N2 = prompt_overlap_features(groups) if overlap_N2 is None else overlap_N2
    seeing_NF = hstack([features.matrix_NF, csr_matrix(overlap_N2.astype(np.float32))], "csr")
    l2_F = default_l2()
    seeing_l2_F = np.concatenate([l2_F, np.full(overlap_N2.shape[1], OVERLAP_L2)])
    margins_C = [
        out_of_fold_margins(matrix, comparisons, l2, NUM_FOLDS, settings.seed)
        for matrix, l2 in ((features.matrix_NF, l2_F), (seeing_NF, seeing_l2_F))
    ]
    right_C = [_right(margin_C) for margin_C in margins_C]
    clusters, weights = comparisons.cluster_C, comparisons.weight_C
    blind, seeing = (
        ratio_of_sums(right * weights, weights, clusters, settings.seed) for right in right_C
    )
    ratio = ratio_of_sums(right_C[0] * weights, right_C[1] * weights, clusters, settings.seed)
    is_blind = ratio.low > BLIND_RATIO and blind.low > SURE_BLIND
    surest = np.argsort(-margins_C[0], kind="stable")[:MAX_EXAMPLES]
    examples = [
        place_of(
            groups[int(comparisons.group_C[c])],
            f"won by {margins_C[0][c]:.2f} logits, its prompt unseen:"
            f" {features.texts[int(comparisons.better_C[c])]}",
        )
        for c in surest
        if margins_C[0][c] > 0
    ]
    severity: Severity = "warn" if is_blind else "note"
    return [_blind_finding(check, severity, (blind, seeing, ratio), examples)]


def _right(margin_C: np.ndarray) -> np.ndarray:
    right: np.ndarray = (margin_C > 0) + 0.5 * (margin_C == 0)
    return right


def _blind_finding(
    check: str,
    severity: Severity,
    measured: tuple[Estimate, Estimate, Estimate],
    examples: Sequence[Example],
) -> Finding:
    blind, seeing, ratio = measured
    return Finding(
        check=check,
        severity=severity,
        statistic=ratio.value,
        low=known_or_none(ratio.low),
        high=known_or_none(ratio.high),
        threshold=BLIND_RATIO,
        n=ratio.n,
        what="accuracy without the prompt over accuracy with it, of small word models",
        message=(
            f"A word model that never sees the prompt decides {blind.value:.1%} [{blind.low:.1%},"
            f" {blind.high:.1%}] of held-out comparisons right, one that also sees how far answers"
            f" speak of the prompt's words {seeing.value:.1%} [{seeing.low:.1%},"
            f" {seeing.high:.1%}]."
            + (
                " To such models the labels don't require the prompt; a larger one may find more"
                " in it."
                if severity != "note"
                else ""
            )
        ),
        examples=tuple(examples),
        fix=(
            "training.cross_prompt: pairs of an answer to this prompt and one to another teach the"
            " model to read it; hold the model's accuracy against its prompt-blind baseline."
            if severity != "note"
            else ""
        ),
        effect=max(0.0, 2 * blind.value - 1) / 2 if severity != "note" else 0.0,
    )


def prompt_overlap_features(groups: Sequence[PreferenceGroup]) -> np.ndarray:
    """How far each answer speaks of what its prompt speaks of: N2, standardised.

    The share of the prompt's words that the answer has, and of the answer's that the prompt has,
    each word weighing its inverse document frequency among the prompts.
    """
    prompts = [
        set(words_of(" ".join(m.content for m in g.prompt if m.role == "user"))) for g in groups
    ]
    counts: dict[str, int] = {}
    for words in prompts:
        for word in words:
            counts[word] = counts.get(word, 0) + 1
    num = len(prompts)
    weight = {word: float(np.log((num + 1) / (count + 0.5))) for word, count in counts.items()}
    rare = float(np.log((num + 1) / 0.5))
    rows = []
    for group, asked in zip(groups, prompts, strict=True):
        total = sum(weight[word] for word in asked) or 1.0
        for response in group.responses:
            said = set(words_of(response.text))
            common = sum(weight[word] for word in asked & said)
            rows.append((common / total, common / (sum(weight.get(w, rare) for w in said) or 1.0)))
    found_N2 = np.array(rows).reshape(-1, 2)
    deviation_2 = found_N2.std(axis=0)
    scaled: np.ndarray = (found_N2 - found_N2.mean(axis=0)) / np.where(
        deviation_2 > 0, deviation_2, 1
    )
    return scaled

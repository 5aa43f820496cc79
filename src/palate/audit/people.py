"""The people who voted: whether they agree, and each of them.

Legend: I pairs of answers, V values.
"""

import math

import numpy as np

from palate.audit.annotators import (
    NO_OVERLAP,
    agreement_with_the_rest,
    annotator_reliability,
    annotator_share,
)
from palate.audit.columns import NO_ANNOTATOR, Audited, Columns
from palate.audit.display import position_bias, position_by_annotator, straight_lining
from palate.audit.findings import Example, Finding, Skipped
from palate.audit.judgements import SAID, Judgements, judgements
from palate.audit.places import last_turn, places
from palate.audit.wording import known_or_none, percent_with_interval, with_interval
from palate.preferences import PreferenceGroup
from palate.statistics import Estimate
from palate.statistics.agreement import (
    MAX_VALUES,
    count_values,
    fleiss_kappa,
    kappa_of_tables,
    krippendorff_alpha,
)
from palate.statistics.resampling import ratio_of_sums

LOW_ALPHA = 0.2
"""Below it (Landis and Koch 1977: slight) most of a label is chance."""
TENTATIVE_ALPHA, RELIABLE_ALPHA = 0.667, 0.8
"""Krippendorff 2004, Content Analysis, chapter 11."""
MIN_ITEMS = 30
"""Pairs of answers with two judgements or more from which an agreement is told as low."""
MIN_OVERLAP = 20
"""Pairs of answers that two annotators share, from which their kappa is told."""
MAX_DRAWN = 100
"""Pairs of annotators in a figure."""


def people_findings(audited: Audited) -> list[Finding | Skipped]:
    """All checks of annotators; those of the display order are skipped where it is not known."""
    if not len(audited.columns.vote_P):
        return [Skipped("agreement", "no votes: nobody's judgements can be held against others'")]
    judged = judgements(audited.columns)
    shared = judged.shared()
    return [
        *agreement(audited, shared),
        annotator_share(audited),
        agreement_with_the_rest(audited, shared),
        annotator_reliability(audited, shared),
        position_bias(audited),
        position_by_annotator(audited),
        straight_lining(audited),
    ]


def agreement(audited: Audited, shared: Judgements) -> list[Finding | Skipped]:
    """How far two judgements of the same two answers agree, beyond what chance would give."""
    if not shared.num_items:
        return [Skipped("agreement", NO_OVERLAP)]
    count_IV, cluster_I = shared.counts, shared.item_clusters
    alpha = krippendorff_alpha(count_IV, np.array(SAID), "nominal", cluster_I)
    raters_I = count_IV.sum(axis=1)
    pairs_I = raters_I * (raters_I - 1) / 2
    alike_I = (count_IV * (count_IV - 1) / 2).sum(axis=1)
    raw = ratio_of_sums(alike_I, pairs_I, cluster_I)
    chance = float(((count_IV.sum(axis=0) / count_IV.sum()) ** 2).sum())
    kappas = _kappas(shared, audited.columns)
    message = (
        f"Two judgements of the same two answers agree in {percent_with_interval(raw)};"
        f" {chance:.0%} would by chance."
        f" Krippendorff's alpha {with_interval(alpha)}{_graded(alpha)}"
    )
    if kappas:
        sizes = [n for _, _, _, n in kappas]
        mean = float(np.average([kappa for _, _, kappa, _ in kappas], weights=sizes))
        one, other, lowest, _ = min(kappas, key=lambda pair: pair[2])
        message += f"; Cohen's kappa {mean:.2f}, mean of {len(kappas)} pairs of annotators" + (
            f" (lowest {lowest:.2f}: {one!r} and {other!r})" if len(kappas) > 1 else ""
        )
    if (raters_I == raters_I[0]).all():
        fleiss = fleiss_kappa(count_IV, cluster_I)
        message += f"; Fleiss' kappa {with_interval(fleiss)}, {raters_I[0]} judgements each"
    is_low = alpha.high < LOW_ALPHA and shared.num_items >= MIN_ITEMS
    finding = Finding(
        check="agreement",
        severity="warn" if is_low else "note",
        statistic=known_or_none(alpha.value),
        low=known_or_none(alpha.low),
        high=known_or_none(alpha.high),
        threshold=LOW_ALPHA,
        n=alpha.n,
        what="Krippendorff's alpha, nominal, of first better, second better or tie",
        message=message + ".",
        examples=_disputed(audited, shared) if is_low else (),
        fix=(
            "Keep disagreement in the labels (read.votes.target: probability, the default), have"
            " more people judge each pair, and look at the guideline with the pairs below."
            if is_low
            else ""
        ),
        effect=min(1.0, max(0.0, 1 - alpha.value)) if is_low else 0.0,
        figure={
            "kind": "agreement",
            "raw": raw.value,
            "chance": chance,
            "alpha": known_or_none(alpha.value),
            "pairs": [
                {"first": one, "second": other, "kappa": known_or_none(kappa), "n": n}
                for one, other, kappa, n in kappas[:MAX_DRAWN]
            ],
        },
    )
    return [finding, *_agreement_with_strength(shared)]


def _agreement_with_strength(shared: Judgements) -> list[Finding | Skipped]:
    """Alpha of outcome times strength: where people state how much better, nearly equal counts."""
    stated = np.isfinite(shared.strength_J)
    if not stated.any():
        return []
    some = shared.only(stated).shared()
    if not some.num_items:
        return [Skipped("agreement with strength", "no pair of answers has two stated strengths")]
    signed_J = (some.value_J - 1) * np.abs(some.strength_J)
    is_rounded = len(np.unique(signed_J)) > MAX_VALUES
    if is_rounded:
        step = np.ptp(signed_J) / (MAX_VALUES - 2)
        signed_J = np.round(signed_J / step) * step
    count_IV, values_V = count_values(signed_J, some.item_J)
    cluster_I = some.item_clusters
    ordinal = krippendorff_alpha(count_IV, values_V, "ordinal", cluster_I)
    interval = krippendorff_alpha(count_IV, values_V, "interval", cluster_I)
    is_low = ordinal.high < LOW_ALPHA and some.num_items >= MIN_ITEMS
    rounded = f" Strengths are rounded to {MAX_VALUES - 1} steps." if is_rounded else ""
    return [
        Finding(
            check="agreement with strength",
            severity="warn" if is_low else "note",
            statistic=known_or_none(ordinal.value),
            low=known_or_none(ordinal.low),
            high=known_or_none(ordinal.high),
            threshold=LOW_ALPHA,
            n=ordinal.n,
            what="Krippendorff's alpha, ordinal, of the outcome times its strength",
            message=(
                "Counting how much better, Krippendorff's alpha is"
                f" {with_interval(ordinal)} for the order of the steps{_graded(ordinal)} and"
                f" {with_interval(interval)} for their distances ({ordinal.n} judgements with a"
                f" strength).{rounded}"
            ),
            fix=(
                "Do not use strengths as margins or weights (read.votes.margin_per_strength: 0,"
                " read.votes.scale_by_strength: false)."
                if is_low
                else ""
            ),
            effect=min(1.0, max(0.0, 1 - ordinal.value)) if is_low else 0.0,
        )
    ]


def _kappas(shared: Judgements, columns: Columns) -> list[tuple[str, str, float, int]]:
    """(one annotator, another, Cohen's kappa, shared items) of each two with enough shared items,
    those with most first."""
    names, num_values = columns.annotators, len(SAID)
    size = len(names) * len(names)
    codes = []
    for one, other in shared.pairs():
        named = shared.annotator_J[one] != NO_ANNOTATOR
        one, other = one[named], other[named]
        # Judgements of an item are in the order of annotators: the lower is the first.
        pair = shared.annotator_J[one] * len(names) + shared.annotator_J[other]
        codes.append((pair * num_values + shared.value_J[one]) * num_values + shared.value_J[other])
    if not codes or not size:
        return []
    cells, number = np.unique(np.concatenate(codes), return_counts=True)
    pairs, index = np.unique(cells // num_values**2, return_inverse=True)
    tables = np.zeros((len(pairs), num_values**2))
    tables[index, cells % num_values**2] = number
    sizes = tables.sum(axis=1)
    kappas = kappa_of_tables(tables.reshape(-1, num_values, num_values))
    return [
        (names[pairs[i] // len(names)], names[pairs[i] % len(names)], kappas[i], int(sizes[i]))
        for i in np.argsort(-sizes, kind="stable")
        if sizes[i] >= MIN_OVERLAP and np.isfinite(kappas[i])
    ]


def _disputed(audited: Audited, shared: Judgements) -> tuple[Example, ...]:
    """Pairs on which people differ most, those with most judgements first."""
    count_IV = shared.counts
    raters_I = count_IV.sum(axis=1)
    alike_I = (count_IV * (count_IV - 1)).sum(axis=1) / (raters_I * (raters_I - 1))
    worst = np.lexsort((-raters_I, alike_I))[:50]

    def said(place: int, group: PreferenceGroup) -> str:
        second, tie, first = count_IV[worst[place]]
        return f"first {first}, second {second}, tie {tie}: {last_turn(group)}"

    return places(audited, shared.item_groups[worst], said)


def _graded(alpha: Estimate) -> str:
    """What Krippendorff's thresholds make of it."""
    if not math.isfinite(alpha.value):
        return " (undefined: all say the same)"
    if alpha.value >= RELIABLE_ALPHA:
        return f" (from {RELIABLE_ALPHA}: reliable)"
    if alpha.value >= TENTATIVE_ALPHA:
        return f" ({TENTATIVE_ALPHA} to {RELIABLE_ALPHA}: for tentative conclusions)"
    return f" (below {TENTATIVE_ALPHA}, where Krippendorff draws no conclusion from single labels)"

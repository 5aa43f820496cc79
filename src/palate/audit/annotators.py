"""Each annotator: their share of the votes, how they agree with the rest, how reliable they are.

Legend: J judgements, I pairs of answers, A annotators, V values, N votes.
"""

import math
from collections.abc import Mapping

import numpy as np

from palate.audit.annotator_rates import FALSE_DISCOVERIES, MIN_JUDGEMENTS, rates_by_annotator
from palate.audit.columns import NO_ANNOTATOR, Audited, Columns
from palate.audit.findings import Example, Finding, Severity, Skipped
from palate.audit.judgements import Judgements
from palate.audit.places import last_turn, places
from palate.audit.wording import known_or_none, listed, weights_yaml
from palate.preferences.annotator_weights import capped_weights, reliability_weights
from palate.statistics.dawid_skene import Judged, dawid_skene, determined, reliability_intervals
from palate.statistics.resampling import ratio_of_sums

SHARE_WARN, SHARE_ERROR = 0.2, 0.4
"""Of one annotator's votes; with few annotators 1.5 and 2 times their equal share, if more."""
FEWER_THAN_THE_REST = 0.1
"""Agreement with the others that an annotator may lie below theirs."""
UNRELIABLE = 0.6
MAX_FITTED = 20_000
"""Judgements in the resampled model of reliability; of more, whole prompt clusters are drawn."""
NO_OVERLAP = "no two people judged the same two answers to the same prompt"
MAX_DRAWN = 100
"""Annotators in a figure."""


def annotator_share(audited: Audited) -> Finding | Skipped:
    """Whether one annotator's taste is most of what a model would learn."""
    columns = audited.columns
    _, first_N = np.unique(columns.vote_P, return_index=True)
    annotator_N = columns.annotator_P[first_N]
    group_N = columns.group_N[columns.first_P[first_N]]
    named = annotator_N != NO_ANNOTATOR
    if not named.any():
        return Skipped("annotator share", "no vote says whose it is")
    count_A = np.bincount(annotator_N[named], minlength=len(columns.annotators))
    most = int(count_A.argmax())
    mine_N = (annotator_N == most).astype(float)
    share = ratio_of_sums(mine_N, np.ones(len(mine_N)), columns.cluster_G[group_N])
    num_annotators = int((count_A > 0).sum())
    warn_above = max(SHARE_WARN, 1.5 / num_annotators)
    error_above = max(SHARE_ERROR, 2 / num_annotators)
    severity: Severity = "note"
    if num_annotators > 1 and share.value > warn_above:
        severity = "error" if share.value > error_above else "warn"
    concentration = float(((count_A / len(annotator_N)) ** 2).sum())
    who = columns.annotators[most]
    message = (
        f"Annotator {who!r} cast {share.value:.0%} of {len(annotator_N)} votes; shares of"
        f" {num_annotators} annotators: HHI {concentration:.3f}, as of"
        f" {1 / concentration:.1f} with equal shares."
    )
    if num_annotators == 1:
        message = f"All {int(named.sum())} named votes are of {who!r}: taste and quality are one."
    elif warn_above > SHARE_WARN:
        message += (
            f" With {num_annotators} each has {1 / num_annotators:.0%} where none dominates, so a"
            f" warning is above {warn_above:.0%}, an error above {min(1, error_above):.0%}."
        )
    return Finding(
        check="annotator share",
        severity=severity,
        statistic=share.value,
        low=known_or_none(share.low),
        high=known_or_none(share.high),
        threshold=warn_above if num_annotators > 1 else None,
        n=share.n,
        what="share of the votes that one annotator cast, the largest",
        message=message,
        examples=(
            places(audited, group_N[annotator_N == most], lambda _, group: last_turn(group))
            if severity != "note"
            else ()
        ),
        fix=(
            _cap_fix(columns, count_A, warn_above, float((~named).sum()))
            if severity != "note"
            else ""
        ),
        effect=share.value if severity != "note" else 0.0,
        figure={
            "kind": "shares",
            "annotators": [columns.annotators[a] for a in np.argsort(-count_A)[:MAX_DRAWN]],
            "shares": (np.sort(count_A)[::-1][:MAX_DRAWN] / len(annotator_N)).tolist(),
        },
    )


def _cap_fix(columns: Columns, count_A: np.ndarray, warn_above: float, unnamed: float) -> str:
    cap = math.ceil(round(warn_above * 100, 6)) / 100
    counts = {name: float(n) for name, n in zip(columns.annotators, count_A, strict=True) if n}
    weights = capped_weights(counts, cap, unnamed=unnamed)
    kept = sum(weights[name] * n for name, n in counts.items()) + unnamed
    return (
        f"Count their votes for less, {cap:g} of all at most (read.votes.annotator_cap: {cap:g};"
        " where a row also states its comparisons, with read.votes.recount: true):\n"
        f"read: {{votes: {{annotator_cap: {cap:g}}}}}\n"
        f"This leaves the weight of {kept:.0f} of {sum(counts.values()) + unnamed:.0f} votes, and"
        f" is the same as\n{weights_yaml(weights)}"
    )


def agreement_with_the_rest(audited: Audited, shared: Judgements) -> Finding | Skipped:
    """Annotators who agree with the majority of the others less than the others do."""
    check = "annotator agreement"
    if not shared.num_items:
        return Skipped(check, NO_OVERLAP)
    position = np.arange(len(shared.item_J))
    others_JV = shared.counts[shared.item_J].astype(float)
    others_JV[position, shared.value_J] -= 1
    most_J = others_JV.max(axis=1)
    is_clear = ((others_JV == most_J[:, None]).sum(axis=1) == 1) & (most_J > 0)
    agrees_J = (others_JV[position, shared.value_J] == most_J)[is_clear].astype(float)
    annotator_J, cluster_J = shared.annotator_J[is_clear], shared.cluster_J[is_clear]
    rates = rates_by_annotator(agrees_J, annotator_J, cluster_J)
    if len(rates.annotator_A) < 2:
        reason = f"fewer than two named annotators share {MIN_JUDGEMENTS} pairs with others"
        return Skipped(check, reason)
    rest_A = (agrees_J.sum() - rates.rate_A * rates.number_A) / np.maximum(
        len(agrees_J) - rates.number_A, 1
    )
    outside = (rates.below(rest_A) < FALSE_DISCOVERIES) & (
        rest_A - rates.rate_A > FEWER_THAN_THE_REST
    )
    lowest = int(np.argmin(rates.rate_A))
    names = audited.columns.annotators
    low, high = rates.interval(lowest)
    rate, who = float(rates.rate_A[lowest]), names[rates.annotator_A[lowest]]
    found = [int(i) for i in np.argsort(rates.rate_A) if outside[i]]
    message = (
        f"Of {len(rates.annotator_A)} annotators with {MIN_JUDGEMENTS} judgements or more {who!r}"
        f" agrees least with the majority of the others: {rate:.0%} [{low:.0%}, {high:.0%}] of"
        f" {int(rates.number_A[lowest])}; the others {rest_A[lowest]:.0%}."
    )
    if found:
        those = listed([names[rates.annotator_A[i]] for i in found])
        message += f" Clearly below the others by {FEWER_THAN_THE_REST:.0%} or more: {those}."
    worst = {int(rates.annotator_A[i]) for i in found}
    return Finding(
        check=check,
        severity="warn" if found else "note",
        statistic=rate,
        low=low,
        high=high,
        threshold=float(rest_A[lowest]) - FEWER_THAN_THE_REST,
        n=int(rates.number_A[lowest]),
        what="share of judgements that are those of the majority of the others, the lowest",
        message=message,
        examples=_differing(audited, shared, is_clear, most_J, others_JV, worst),
        fix=(
            "Look at their judgements; have their votes weigh by how reliable they are"
            " (read.votes.reliability: true), or leave them out:\n"
            + weights_yaml({names[rates.annotator_A[i]]: 0.0 for i in found})
            if found
            else ""
        ),
        effect=float(rest_A[lowest] - rate) if found else 0.0,
        figure={
            "kind": "rates",
            "annotators": [names[a] for a in rates.annotator_A[:MAX_DRAWN]],
            "rates": rates.rate_A[:MAX_DRAWN].tolist(),
            "intervals": [rates.interval(i) for i in range(min(MAX_DRAWN, len(rates.rate_A)))],
        },
    )


def annotator_reliability(audited: Audited, shared: Judgements) -> Finding | Skipped:
    """Annotators whom a model of reliabilities finds right in less than 60 %."""
    check = "annotator reliability"
    if not shared.num_items:
        return Skipped(check, NO_OVERLAP)
    names = audited.columns.annotators
    named = shared.only(shared.annotator_J != NO_ANNOTATOR).shared()
    known_A = determined(named.item_J, named.annotator_J, len(names))
    if not known_A.any():
        reason = (
            "it takes three annotators or more, some of whose pairs are judged by each two of them:"
            " two people's agreement does not say which of them is right"
        )
        return Skipped(check, reason)
    fitted, drawn = _drawn(named.only(known_A[named.annotator_J]).shared())
    values, label_J = np.unique(fitted.value_J, return_inverse=True)
    if len(values) < 2:
        return Skipped(check, "all judgements say the same")
    judged = Judged(
        label_J=label_J,
        item_J=fitted.item_J,
        annotator_J=fitted.annotator_J,
        num_labels=len(values),
        num_items=fitted.num_items,
        num_annotators=len(names),
    )
    found = dawid_skene(judged)
    low_A, high_A = reliability_intervals(judged, found, fitted.item_clusters)
    number_A = np.bincount(fitted.annotator_J, minlength=len(names))
    told = np.flatnonzero(number_A >= MIN_JUDGEMENTS)
    if not len(told):
        return Skipped(check, f"nobody has {MIN_JUDGEMENTS} judgements of pairs that others judged")
    reliability_A = found.reliability_A
    lowest = int(told[np.argmin(reliability_A[told])])
    bad = [int(a) for a in told[np.argsort(reliability_A[told])] if high_A[a] < UNRELIABLE]
    message = (
        f"The least reliable of {len(told)} annotators, {names[lowest]!r}, is right in"
        f" {reliability_A[lowest]:.0%} [{low_A[lowest]:.0%}, {high_A[lowest]:.0%}]; median"
        f" {np.median(reliability_A[told]):.0%} (one-coin Dawid-Skene over {len(label_J)}"
        f" judgements{drawn})."
    )
    if bad:
        message += f" Below {UNRELIABLE:.0%}: {listed([names[a] for a in bad])}."
    return Finding(
        check=check,
        severity="warn" if bad else "note",
        statistic=float(reliability_A[lowest]),
        low=float(low_A[lowest]),
        high=float(high_A[lowest]),
        threshold=UNRELIABLE,
        n=int(number_A[lowest]),
        what="probability that a judgement of the least reliable annotator is right",
        message=message,
        fix=_reliability_fix({names[a]: float(reliability_A[a]) for a in told}, len(values))
        if bad
        else "",
        effect=float(1 - reliability_A[lowest]) if bad else 0.0,
        figure={
            "kind": "rates",
            "annotators": [names[a] for a in told[:MAX_DRAWN]],
            "rates": reliability_A[told[:MAX_DRAWN]].tolist(),
            "intervals": [(float(low_A[a]), float(high_A[a])) for a in told[:MAX_DRAWN]],
        },
    )


def _reliability_fix(reliability: Mapping[str, float], num_outcomes: int) -> str:
    weights = reliability_weights(reliability, num_outcomes)
    return (
        "Weigh votes by how reliable their annotators are:\nread: {votes: {reliability: true}}\n"
        f"This comes to\n{weights_yaml(weights)}"
    )


def _drawn(judged: Judgements) -> tuple[Judgements, str]:
    """At most MAX_FITTED judgements, those of the clusters with the lowest hashes, and what to
    say of it."""
    if len(judged.item_J) <= MAX_FITTED:
        return judged, ""
    clusters, index_J, number = np.unique(judged.cluster_J, return_inverse=True, return_counts=True)
    num_kept = max(1, int(np.searchsorted(np.cumsum(number), MAX_FITTED, side="right")))
    said = f" of the {num_kept} of {len(clusters)} prompt clusters with the lowest hashes"
    return judged.only(index_J < num_kept), said


def _differing(
    audited: Audited,
    shared: Judgements,
    is_clear: np.ndarray,
    most_J: np.ndarray,
    others_JV: np.ndarray,
    worst: set[int],
) -> tuple[Example, ...]:
    """Judgements of these annotators against the largest majorities."""
    if not worst:
        return ()
    against = is_clear & np.isin(shared.annotator_J, list(worst))
    against &= others_JV[np.arange(len(most_J)), shared.value_J] != most_J
    chosen = np.flatnonzero(against)
    chosen = chosen[np.argsort(-most_J[chosen], kind="stable")]
    names = audited.columns.annotators
    return places(
        audited,
        shared.group_J[chosen],
        lambda place, group: (
            f"{names[shared.annotator_J[chosen[place]]]} against the others: {last_turn(group)}"
        ),
    )

"""Labels that contradict one another: the same pair labelled both ways, and cycles among answers.

Legend: C decided comparisons, U different pairs, T prompts, I answers that differ within a prompt.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from palate.audit.columns import Audited, Columns
from palate.audit.findings import Finding, Severity, Skipped
from palate.audit.hashes import mixed
from palate.audit.places import last_turn, places
from palate.audit.settings import AuditSettings
from palate.audit.shares import won_share

WARN_CONFLICTS, MAX_CONFLICTS = 0.05, 0.15
WARN_CYCLES, MAX_CYCLES = 0.05, 0.10
"""Shares; a tournament of coin flips has a quarter of its triads cyclic (Kendall and Babington
Smith 1940). An error needs the whole interval above its threshold."""
MIN_CLUSTERS = 20
"""Prompt clusters that an error must rest on."""
RANDOM_CYCLES = 0.25


@dataclass(frozen=True)
class _Judged:
    """Decided comparisons of two different texts, joined over rows: every pair of texts under one
    prompt once, and who won it how often."""

    item_prompt_I: np.ndarray
    """Number of each item's prompt among the different prompts."""
    group_T: np.ndarray
    """A group that has this prompt."""
    first_U: np.ndarray
    """Item with the lower number of the pair."""
    second_U: np.ndarray
    num_first_U: np.ndarray
    """Comparisons that the first won."""
    num_second_U: np.ndarray
    group_U: np.ndarray
    """A group that has this pair."""


def _judged(columns: Columns) -> _Judged:
    better_C, worse_C = columns.text_N[columns.better_C], columns.text_N[columns.worse_C]
    keep_C = columns.is_decided_C & (better_C != worse_C)
    group_C = columns.group_C[keep_C]
    prompt_C = columns.prompt_G[group_C]
    _, first_row_T, prompt_number_C = np.unique(prompt_C, return_index=True, return_inverse=True)
    sides = np.concatenate([better_C[keep_C], worse_C[keep_C]])
    items, side_I, number = np.unique(
        mixed(np.tile(prompt_C, 2), sides), return_index=True, return_inverse=True
    )
    better_item_C, worse_item_C = number.reshape(2, -1)
    item_prompt_I = np.tile(prompt_number_C, 2)[side_I]
    low_C = np.minimum(better_item_C, worse_item_C).astype(np.int64)
    high_C = np.maximum(better_item_C, worse_item_C).astype(np.int64)
    pairs, row_U, pair_C = np.unique(
        low_C * len(items) + high_C, return_index=True, return_inverse=True
    )
    first_won_C = better_item_C == low_C
    return _Judged(
        item_prompt_I=item_prompt_I,
        group_T=group_C[first_row_T],
        first_U=pairs // max(1, len(items)),
        second_U=pairs % max(1, len(items)),
        num_first_U=np.bincount(pair_C[first_won_C], minlength=len(pairs)),
        num_second_U=np.bincount(pair_C[~first_won_C], minlength=len(pairs)),
        group_U=group_C[row_U],
    )


def conflict_findings(audited: Audited, _: AuditSettings) -> list[Finding | Skipped]:
    """Label conflicts and cycles, over all comparisons."""
    judged = _judged(audited.columns)
    return [label_conflicts(audited, judged), cycles(audited, judged)]


def label_conflicts(audited: Audited, judged: _Judged) -> Finding | Skipped:
    """How often two labels of one pair (same prompt, same two answers) disagree.

    Per pair with a labels one way and b the other: 2ab / ((a + b)(a + b - 1)), the share of its
    pairs of labels that differ; then the mean over pairs. It estimates 2p(1 - p) without bias when
    each label is wrong with probability p.
    """
    one_U, other_U = judged.num_first_U, judged.num_second_U
    total_U = one_U + other_U
    repeated_U = total_U > 1
    num_pairs = int(repeated_U.sum())
    if not num_pairs:
        return Skipped("label conflicts", "no two answers to a prompt are compared twice")
    one, other, total = one_U[repeated_U], other_U[repeated_U], total_U[repeated_U]
    rate_U = 2 * one * other / (total * (total - 1))
    groups = judged.group_U[repeated_U]
    estimate = won_share(rate_U, audited.columns.cluster_G[groups], np.ones(num_pairs))
    wrong = (1 - math.sqrt(max(0.0, 1 - 2 * estimate.value))) / 2
    severity: Severity = (
        "error"
        if estimate.low > MAX_CONFLICTS and estimate.num_clusters >= MIN_CLUSTERS
        else "warn"
        if estimate.value > WARN_CONFLICTS
        else "note"
    )
    worst = np.argsort(-rate_U * np.log(total), kind="stable")
    worst = worst[rate_U[worst] > 0]
    most = np.maximum(one, other)[worst]
    both_ways = int((rate_U > 0).sum())
    return Finding(
        check="label conflicts",
        severity=severity,
        statistic=estimate.value,
        low=estimate.low,
        high=estimate.high,
        threshold=WARN_CONFLICTS,
        n=num_pairs,
        what="share of pairs of labels of the same two answers that disagree",
        message=(
            f"{both_ways} of {num_pairs} pairs of answers that were compared more than once have"
            f" labels both ways; two labels disagree {estimate.value:.1%} of the time, as if each"
            f" were wrong with probability {wrong:.2f}."
        ),
        examples=places(
            audited,
            groups[worst],
            lambda x, group: f"{most[x]} to {total[worst[x]] - most[x]}: {last_turn(group)}",
        ),
        fix=(
            "Keep them as soft labels: put the votes of one pair into one row (read.merge_prompts"
            " true joins rows of one prompt); don't drop them."
            if severity != "note"
            else ""
        ),
        effect=min(1.0, 2 * estimate.value),
    )


def cycles(audited: Audited, judged: _Judged) -> Finding | Skipped:
    """Cyclic triads (a beats b beats c beats a) over triads of which all three pairs are decided.

    Each pair is decided by the majority of its comparisons; even ones are left out. The statistic
    is the mean over prompts that have such triads.
    """
    cyclic_T, triads_T = _triads(judged)
    has_T = triads_T > 0
    if not has_T.any():
        return Skipped(
            "cycles", "no prompt has three answers of which all pairs are compared and decided"
        )
    cyclic, triads = cyclic_T[has_T], triads_T[has_T]
    rate_T = cyclic / triads
    groups = judged.group_T[has_T]
    estimate = won_share(rate_T, audited.columns.cluster_G[groups], np.ones(len(rate_T)))
    severity: Severity = (
        "error"
        if estimate.low > MAX_CYCLES and estimate.num_clusters >= MIN_CLUSTERS
        else "warn"
        if estimate.value > WARN_CYCLES
        else "note"
    )
    order = np.argsort(-cyclic, kind="stable")
    order = order[cyclic[order] > 0]
    return Finding(
        check="cycles",
        severity=severity,
        statistic=estimate.value,
        low=estimate.low,
        high=estimate.high,
        threshold=WARN_CYCLES,
        n=int(has_T.sum()),
        what="mean share of cyclic triads among a prompt's complete triads",
        message=(
            f"{int(cyclic.sum())} of {int(triads.sum())} complete triads of answers run"
            f" in a circle, {estimate.value:.1%} a prompt; coin flips would give"
            f" {RANDOM_CYCLES:.0%}."
        ),
        examples=places(
            audited,
            groups[order],
            lambda x, group: (
                f"{cyclic[order[x]]:.0f} of {triads[order[x]]:.0f} triads: {last_turn(group)}"
            ),
        ),
        fix=(
            "No reward can order these answers: collect more votes on them, or train on soft"
            " labels from the votes."
            if severity != "note"
            else ""
        ),
        effect=min(1.0, estimate.value / RANDOM_CYCLES),
    )


def _triads(judged: _Judged) -> tuple[np.ndarray, np.ndarray]:
    """Cyclic and complete triads of each prompt.

    With W the matrix of wins, which is block-diagonal over prompts, the paths of length two that a
    win closes are the entries of (W W) where W' is one: each cyclic triad has three of them. In the
    symmetric U = W + W' each complete triad has six.
    """
    first_won_U = judged.num_first_U > judged.num_second_U
    second_won_U = judged.num_second_U > judged.num_first_U
    winner = np.concatenate([judged.first_U[first_won_U], judged.second_U[second_won_U]])
    loser = np.concatenate([judged.second_U[first_won_U], judged.first_U[second_won_U]])
    num_items = len(judged.item_prompt_I)
    ones = np.ones(len(winner), dtype=np.int32)
    wins_II = csr_matrix((ones, (winner, loser)), shape=(num_items, num_items))
    compared_II = wins_II + wins_II.T
    cyclic_I = (wins_II @ wins_II).multiply(wins_II.T).sum(axis=1)
    complete_I = (compared_II @ compared_II).multiply(compared_II).sum(axis=1)
    num_prompts = len(judged.group_T)

    def by_prompt(value_I: np.ndarray, times: int) -> np.ndarray:
        flat = np.asarray(value_I, dtype=float).ravel()
        total: np.ndarray = np.bincount(judged.item_prompt_I, flat, minlength=num_prompts) / times
        return total

    return by_prompt(cyclic_I, 3), by_prompt(complete_I, 6)

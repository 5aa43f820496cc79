"""What the order of display did to the votes: position bias, and answers given without reading.

Legend: P judgements, J those with a display order and a winner, A annotators, R runs.
"""

import math

import numpy as np

from palate.audit.annotator_rates import FALSE_DISCOVERIES, MIN_JUDGEMENTS, rates_by_annotator
from palate.audit.columns import NO_ANNOTATOR, Audited, Columns
from palate.audit.findings import Finding, Severity, Skipped
from palate.audit.places import last_turn, places
from palate.audit.wording import known_or_none, listed, percent_with_interval, weights_yaml
from palate.statistics.resampling import ratio_of_sums

POSITION_WARN, POSITION_ERROR = 0.03, 0.05
"""Distance from one half of the share that the answer shown first wins."""
RUN_BY_CHANCE = 0.001
"""Probability of a run of one side as long by chance, below which it is told."""
RUNS_BY_CHANCE = 0.05
"""The same of any annotator's."""
MAX_DRAWN = 100
NOT_KNOWN = "no vote says in which order the answers were shown"


def position_bias(audited: Audited) -> Finding | Skipped:
    """Whether the answer that is shown first wins more, or less, often than half the time."""
    columns = audited.columns
    row_J = _with_side(columns)
    if not row_J.size:
        return Skipped("position bias", NOT_KNOWN)
    first_won_J = _first_won(columns, row_J)
    share = ratio_of_sums(first_won_J, np.ones(len(row_J)), _clusters(columns, row_J))
    apart = abs(share.value - 0.5)
    nearest = max(0.0, share.low - 0.5, 0.5 - share.high)
    severity: Severity = "note"
    if apart > POSITION_WARN and nearest > 0:
        severity = "error" if nearest > POSITION_ERROR else "warn"
    as_listed = float((columns.shown_P[row_J] == 1).mean())
    message = f"The answer shown first wins {percent_with_interval(share)} of {share.n} judgements."
    if min(as_listed, 1 - as_listed) < 0.1:
        message += (
            f" In {as_listed:.0%} of them the answer that is listed first in the file was shown"
            " first: the order was not drawn, so that this may be the file's habit, not people's."
        )
    side = "first" if share.value > 0.5 else "second"
    return Finding(
        check="position bias",
        severity=severity,
        statistic=share.value,
        low=known_or_none(share.low),
        high=known_or_none(share.high),
        threshold=0.5 + math.copysign(POSITION_WARN, share.value - 0.5),
        n=share.n,
        what="share of judgements with a winner that the answer shown first wins",
        message=message,
        examples=(
            places(
                audited,
                columns.group_N[columns.first_P[row_J[first_won_J == (side == "first")]]],
                lambda _, group: f"the answer shown {side} won: {last_turn(group)}",
            )
            if severity != "note"
            else ()
        ),
        fix=(
            "Draw the display order anew for each vote, and show a part of the pairs in both"
            " orders: votes that follow the place are noise in the labels. Annotators who do so"
            " most stand under position by annotator."
            if severity != "note"
            else ""
        ),
        effect=min(1.0, 2 * apart) if severity != "note" else 0.0,
    )


def position_by_annotator(audited: Audited) -> Finding | Skipped:
    """Annotators for whom the answer shown first wins clearly more, or less, often than half."""
    check = "position by annotator"
    columns = audited.columns
    row_J = _with_side(columns)
    if not row_J.size:
        return Skipped(check, NOT_KNOWN)
    annotator_J = columns.annotator_P[row_J].astype(int)
    rates = rates_by_annotator(_first_won(columns, row_J), annotator_J, _clusters(columns, row_J))
    if not rates.annotator_A.size:
        return Skipped(check, f"no named annotator has {MIN_JUDGEMENTS} judgements with a winner")
    names = [columns.annotators[a] for a in rates.annotator_A]
    apart_A = np.abs(rates.rate_A - 0.5)
    found_A = (rates.apart(0.5) < FALSE_DISCOVERIES) & (apart_A > POSITION_ERROR)
    found = [int(i) for i in np.argsort(-apart_A) if found_A[i]]
    shown = found[0] if found else int(np.argmax(apart_A))
    low, high = rates.interval(shown)
    message = (
        f"{len(found)} of {len(names)} annotators have a side clearly more often than half the"
        f" time. The answer shown first wins {rates.rate_A[shown]:.0%} [{low:.0%}, {high:.0%}] of"
        f" {int(rates.number_A[shown])} judgements of {names[shown]!r}, the farthest from half"
        f"{': ' + listed([names[i] for i in found]) if len(found) > 1 else ''}."
    )
    few = 2 * len(found) <= len(names)
    return Finding(
        check=check,
        severity="warn" if found else "note",
        statistic=float(rates.rate_A[shown]),
        low=low,
        high=high,
        threshold=0.5 + math.copysign(POSITION_ERROR, float(rates.rate_A[shown]) - 0.5),
        n=int(rates.number_A[shown]),
        what="share that the answer shown first wins, of the annotator farthest from one half",
        message=message,
        fix=_leave_out([names[i] for i in found], few) if found else "",
        effect=min(1.0, 2 * float(apart_A[shown])) if found else 0.0,
        figure={
            "kind": "rates",
            "annotators": names[:MAX_DRAWN],
            "rates": rates.rate_A[:MAX_DRAWN].tolist(),
            "intervals": [rates.interval(i) for i in range(min(MAX_DRAWN, len(names)))],
        },
    )


def _leave_out(names: list[str], few: bool) -> str:
    if not few:
        return (
            "Most annotators do so, which is the form or the guideline rather than a person: draw"
            " the display order anew for each vote."
        )
    return (
        "Look at their votes, and leave these annotators out or have them count for less:\n"
        + weights_yaml(dict.fromkeys(names, 0.0))
    )


def straight_lining(audited: Audited) -> Finding | Skipped:
    """Annotators who took one side many times on end, in the order of the file.

    Of votes on two answers; against fair coins, so that who always takes one side is found too.
    """
    check = "straight-lining"
    columns = audited.columns
    row_J = _with_side(columns)
    row_J = row_J[columns.annotator_P[row_J] != NO_ANNOTATOR]
    _, vote_P, size = np.unique(columns.vote_P, return_inverse=True, return_counts=True)
    row_J = row_J[size[vote_P[row_J]] == 1]
    if not row_J.size:
        return Skipped(check, NOT_KNOWN + ", of named votes on two answers")
    row_J = row_J[np.lexsort((columns.vote_P[row_J], columns.annotator_P[row_J]))]
    annotator_J = columns.annotator_P[row_J].astype(int)
    first_won_J = _first_won(columns, row_J)
    starts = np.ones(len(row_J), dtype=bool)
    starts[1:] = (annotator_J[1:] != annotator_J[:-1]) | (first_won_J[1:] != first_won_J[:-1])
    start_R = np.flatnonzero(starts)
    length_R = np.diff(np.append(start_R, len(row_J)))
    # The last of each annotator's runs in ascending length is their longest.
    order = np.lexsort((length_R, annotator_J[start_R]))
    is_last = np.append(np.diff(annotator_J[start_R][order]) != 0, True)
    longest_A = order[is_last]
    who_A = annotator_J[start_R[longest_A]]
    run_A = length_R[longest_A]
    number_A = np.bincount(annotator_J)[who_A]
    chance_A = np.array(
        [run_probability(int(n), int(run)) for n, run in zip(number_A, run_A, strict=True)]
    )
    found_A = (chance_A < RUN_BY_CHANCE) & (chance_A * len(who_A) < RUNS_BY_CHANCE)
    worst = int(np.lexsort((-run_A, chance_A))[0])
    first_A = np.bincount(annotator_J, weights=first_won_J)[who_A] / number_A
    names = [columns.annotators[a] for a in who_A]
    found = [int(i) for i in np.argsort(chance_A, kind="stable") if found_A[i]]
    message = (
        f"{names[worst]!r} took one side {int(run_A[worst])} times on end in"
        f" {int(number_A[worst])} votes (probability of such a run by chance"
        f" {chance_A[worst]:.2g}; entropy of the side {_entropy(float(first_A[worst])):.2f} bits,"
        f" 1 = both alike). Found of {len(found)} of {len(names)} annotators"
        f"{': ' + listed([names[i] for i in found]) if found else ''}."
    )
    if 2 * len(found) > len(names) > 1:
        message += " Most of them: is the file sorted, rather than in the order of the votes?"
    return Finding(
        check=check,
        severity="warn" if found else "note",
        statistic=float(run_A[worst]),
        n=int(number_A[worst]),
        what="longest run of votes for one side, of the annotator least explained by chance",
        message=message,
        examples=places(
            audited,
            columns.group_N[columns.first_P[row_J[start_R[longest_A[found]]]]],
            lambda place, group: (
                f"{names[found[place]]}: {int(run_A[found[place]])} times one side from here:"
                f" {last_turn(group)}"
            ),
        ),
        fix=_leave_out([names[i] for i in found], 2 * len(found) <= len(names)) if found else "",
        effect=float(run_A[worst] / number_A[worst]) if found else 0.0,
    )


def run_probability(num_votes: int, run: int) -> float:
    """Probability that n fair coins show one side `run` times or more on end.

    A run of L alike is L - 1 times "as the one before", each with probability 1/2: a run of
    r = L - 1 successes in m = n - 1 trials. With x the smaller root above 1 of
    x = 1 + (x / 2)^(r + 1) there is none with probability (2 - x) / (r + 1 - r x) x^-(m + 1)
    (Feller 1968, An Introduction to Probability Theory, volume 1, XIII.7, p = q = 1/2); within
    0.005, and within 1.5 % from ten votes on.
    """
    trials, successes = num_votes - 1, run - 1
    if successes <= 0:
        return 1.0
    if successes > trials:
        return 0.0
    if successes == 1:
        return 1 - 0.5**trials
    root = 1.0
    for _ in range(200):
        following = 1 + (root / 2) ** (successes + 1)
        if following == root:
            break
        root = following
    rest = root - 1
    # log1p and expm1: x is 1 + 2^-(r + 1), which is 1 in floating point for long runs.
    rest = rest or 0.5 ** (successes + 1)
    log_none = math.log1p(-rest) - math.log1p(-successes * rest) - (trials + 1) * math.log1p(rest)
    return min(1.0, max(0.0, -math.expm1(log_none)))


def _entropy(share: float) -> float:
    """Bits of a coin."""
    return sum(-p * math.log2(p) for p in (share, 1 - share) if 0 < p < 1)


def _with_side(columns: Columns) -> np.ndarray:
    """Judgements with a winner whose display order is known."""
    return np.flatnonzero((columns.shown_P != 0) & (columns.outcome_P != 0))


def _first_won(columns: Columns, row_J: np.ndarray) -> np.ndarray:
    won: np.ndarray = (columns.outcome_P[row_J] == columns.shown_P[row_J]).astype(float)
    return won


def _clusters(columns: Columns, row_J: np.ndarray) -> np.ndarray:
    clusters: np.ndarray = columns.cluster_G[columns.group_N[columns.first_P[row_J]]]
    return clusters

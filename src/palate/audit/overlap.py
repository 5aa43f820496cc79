"""What two data sets share that are meant to be apart: prompts, near-duplicates, answers.

Legend: G groups, N answers.
"""

from collections.abc import Sequence, Set

import numpy as np

from palate.audit.columns import Audited
from palate.audit.findings import MAX_EXAMPLES, Finding, Severity, Skipped
from palate.audit.places import place_of, places, share
from palate.errors import PalateError
from palate.preferences import PreferenceGroup
from palate.preferences.split import opening_of
from palate.text.near import NearPair, near_pairs

NEAR = 0.8
"""Jaccard index from which two prompts are one in other words: no overlap is allowed."""
ALIKE = 0.5
"""From here to `NEAR` someone should look: templates share as much."""
MAX_ALIKE = 0.01
WARN_ANSWERS, MAX_ANSWERS = 0.005, 0.02
"""Share of answers of eight words or more. Halves of real harmless data, apart by prompt cluster,
share up to 0.2 %: the same refusal of two requests."""


def prompt_overlap(audited: Audited, against: Audited) -> Finding:
    """Prompts whose cluster or whole text is in the other data: any is an error."""
    ours, theirs = audited.columns, against.columns
    same_G = np.isin(ours.prompt_G, theirs.prompt_G)
    shared_G = same_G | np.isin(ours.cluster_G, theirs.cluster_G)
    # The very same prompts first.
    order = np.flatnonzero(shared_G)[np.argsort(~same_G[shared_G], kind="stable")]
    num_shared, num_all = len(order), ours.num_groups
    return Finding(
        check="prompt overlap",
        severity="error" if num_shared else "note",
        statistic=share(num_shared, num_all),
        threshold=0.0,
        n=num_all,
        what="share of prompts that are in a prompt cluster of the other data",
        message=(
            f"{num_shared} of {num_all} prompts share their first user turn with a prompt of"
            f" {', '.join(theirs.files)}; {int(same_G.sum())} are the same as a whole."
        ),
        examples=places(
            audited,
            order,
            lambda x, group: (
                f"{'same prompt' if same_G[order[x]] else 'same first turn'}:"
                f" {opening_of(group.prompt)}"
            ),
        ),
        fix=(
            "Take these prompts out of one side; to divide one file use palate's split, by prompt"
            " cluster."
            if num_shared
            else ""
        ),
        effect=share(num_shared, num_all),
    )


def near_prompts(audited: Audited, against: Audited) -> list[Finding | Skipped]:
    """First user turns of the samples that are nearly those of the other data.

    Prompts that share a cluster exactly are left to `prompt_overlap`.
    """
    exact = set(np.unique(against.columns.cluster_G).tolist())
    ours = _openings(audited, leave_out=exact)
    theirs = list(_openings(against))
    try:
        pairs = list(near_pairs(list(ours), ALIKE, theirs))
    except PalateError as error:
        if error.reason != "missing extra":
            raise
        return [Skipped("near-duplicate prompts", str(error))]
    closest: dict[int, NearPair] = {}
    for pair in pairs:
        if pair.first not in closest or pair.similarity > closest[pair.first].similarity:
            closest[pair.first] = pair
    ranked = sorted(closest.values(), key=lambda pair: -pair.similarity)
    groups = list(ours.values())
    whole = audited.is_whole and against.is_whole
    about = f"{len(ours)} different first turns against {len(theirs)}" + (
        "" if whole else ", a sample of each side: pairs with a prompt outside it aren't seen"
    )
    return [
        _near(
            "near-duplicate prompts",
            [pair for pair in ranked if pair.similarity >= NEAR],
            (groups, theirs, about),
            f"Jaccard index {NEAR} or more",
            0.0,
        ),
        _near(
            "similar prompts",
            [pair for pair in ranked if pair.similarity < NEAR],
            (groups, theirs, about),
            f"Jaccard index {ALIKE} to {NEAR}",
            MAX_ALIKE,
        ),
    ]


def _openings(audited: Audited, leave_out: Set[int] = frozenset()) -> dict[str, PreferenceGroup]:
    """First user turns of the sample, one for each cluster, with the first group that has it."""
    found: dict[int, PreferenceGroup] = {}
    clusters = audited.columns.cluster_G[audited.sample_G].tolist()
    for cluster, group in zip(clusters, audited.sample, strict=True):
        if cluster not in leave_out:
            found.setdefault(cluster, group)
    return {opening_of(group.prompt): group for group in found.values()}


def _near(
    check: str,
    pairs: Sequence[NearPair],
    sides: tuple[Sequence[PreferenceGroup], Sequence[str], str],
    range_of: str,
    threshold: float,
) -> Finding:
    groups, theirs, about = sides
    rate = share(len(pairs), len(groups))
    is_error = threshold == 0.0
    severity: Severity = ("error" if is_error else "warn") if rate > threshold else "note"
    return Finding(
        check=check,
        severity=severity,
        statistic=rate,
        threshold=threshold,
        n=len(groups),
        what=f"share of first user turns that are like one of the other data ({range_of})",
        message=f"{len(pairs)} of {about} ({range_of}).",
        examples=tuple(
            place_of(
                groups[pair.first],
                f"{pair.similarity:.2f}: {opening_of(groups[pair.first].prompt)[:70]} | "
                f"{theirs[pair.second][:70]}",
            )
            for pair in pairs[:MAX_EXAMPLES]
        ),
        fix=(
            f"Split again with split.near_duplicates {NEAR if is_error else ALIKE}, or take these"
            " prompts out."
            if rate > threshold
            else ""
        ),
        effect=rate if is_error else rate / 2,
    )


def answer_overlap(audited: Audited, against: Audited) -> Finding:
    """Answers of eight words or more that the other data hold word for word (after normalisation):
    a random split of pairs out of K answers does that."""
    ours, theirs = audited.columns, against.columns
    long_N = ours.opening_N != 0
    shared_N = np.isin(ours.text_N, theirs.text_N)
    leaked = np.flatnonzero(long_N & shared_N)
    num_all = int(long_N.sum())
    rate = share(len(leaked), num_all)
    severity: Severity = (
        "error" if rate > MAX_ANSWERS else "warn" if rate > WARN_ANSWERS else "note"
    )
    longest = leaked[np.argsort(-ours.chars_N[leaked], kind="stable")]
    position = longest - ours.start_G[ours.group_N[longest]]
    return Finding(
        check="answer overlap",
        severity=severity,
        statistic=rate,
        threshold=WARN_ANSWERS,
        n=num_all,
        what="share of answers of eight words or more that the other data hold as well",
        message=(
            f"{len(leaked)} of {num_all} answers of eight words or more stand in"
            f" {', '.join(theirs.files)} too; of all {len(shared_N)} answers {int(shared_N.sum())}."
        ),
        examples=places(
            audited,
            ours.group_N[longest],
            lambda x, group: group.responses[position[x]].text,
        ),
        fix=(
            "Divide by prompt, not by pair: all answers to a prompt belong on one side."
            if rate > WARN_ANSWERS
            else ""
        ),
        effect=rate,
    )

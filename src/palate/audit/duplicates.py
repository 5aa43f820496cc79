"""The same thing twice in one file: answers that face themselves, prompts and rows that repeat.

Legend: G groups, N answers, C comparisons, P judgements, T different prompts.
"""

from collections.abc import Sequence

import numpy as np

from palate.audit.columns import Audited, Columns
from palate.audit.findings import Finding, Severity, Skipped
from palate.audit.hashes import mixed
from palate.audit.places import at_hand, last_turn, places, share
from palate.audit.settings import AuditSettings
from palate.preferences import PreferenceGroup
from palate.text import normalise

MAX_REPEATED_ROWS = 0.01
"""Share of rows that repeat another from which they count visibly more than once."""
MAX_LOOKED_UP = 500


def duplicate_findings(audited: Audited, _: AuditSettings) -> list[Finding | Skipped]:
    """Same answers on both sides, repeated rows and prompts, prompts that extend another."""
    return [
        same_answers(audited),
        repeated_rows(audited),
        repeated_prompts(audited),
        extended_prompts(audited),
    ]


def same_answers(audited: Audited) -> Finding:
    """Comparisons of an answer with itself: they teach nothing, and their gradient is noise.

    Answers are equal when they are after normalisation (NFKC, case, white space). Among them those
    that are so letter for letter are an error; others may differ in what counts, as code does in
    its indentation, and are only shown.
    """
    columns = audited.columns
    same_C = columns.text_N[columns.better_C] == columns.text_N[columns.worse_C]
    num_same, num_all = int(same_C.sum()), len(same_C)
    group_indices = np.unique(columns.group_C[same_C])
    looked_up = group_indices[at_hand(audited, group_indices, MAX_LOOKED_UP)]
    found = audited.fetch([int(i) for i in looked_up]) if num_same else {}
    literal = {i: sides for i, group in found.items() if (sides := _literally_same(group))}
    first = np.array(sorted(literal) or looked_up, np.int64)
    num_literal = sum(map(len, literal.values()))
    severity: Severity = "error" if num_literal else "warn" if num_same else "note"
    message = f"{num_same} of {num_all} comparisons have the same answer on both sides"
    if num_same:
        message += f" after normalisation; {num_literal} of them letter for letter" + (
            f", among {len(found)} prompts looked up" if len(found) < len(group_indices) else ""
        )
    return Finding(
        check="same answer",
        severity=severity,
        statistic=share(num_same, num_all),
        threshold=0.0,
        n=num_all,
        what="share of comparisons whose two answers are the same text",
        message=message + ".",
        examples=places(audited, first, lambda _, group: _same_text(group)),
        fix=(
            "Leave these comparisons out: no reward can tell the sides apart."
            if num_literal
            else "Look at them: sides that differ in case or space alone matter for few prompts."
            if num_same
            else ""
        ),
        effect=share(num_same, num_all),
    )


def _literally_same(group: PreferenceGroup) -> list[str]:
    texts = [response.text for response in group.responses]
    return [texts[c.better] for c in group.comparisons if texts[c.better] == texts[c.worse]]


def _same_text(group: PreferenceGroup) -> str:
    literal = _literally_same(group)
    if literal:
        return literal[0]
    texts = [response.text for response in group.responses]
    pairs = [(texts[c.better], texts[c.worse]) for c in group.comparisons]
    return next((a for a, b in pairs if normalise(a) == normalise(b)), last_turn(group))


def repeated_rows(audited: Audited) -> Finding:
    """Groups that say the same as another: prompt, answers compared, label and annotators."""
    columns = audited.columns
    _, first_U, number_G = np.unique(_row_hashes(columns), return_index=True, return_inverse=True)
    is_repeat_G = np.ones(columns.num_groups, dtype=bool)
    is_repeat_G[first_U] = False
    repeats = np.flatnonzero(is_repeat_G)
    earlier = columns.line_G[first_U[number_G[repeats]]]
    rate = share(len(repeats), columns.num_groups)
    return Finding(
        check="repeated rows",
        severity="warn" if rate > MAX_REPEATED_ROWS else "note",
        statistic=rate,
        threshold=MAX_REPEATED_ROWS,
        n=columns.num_groups,
        what="share of rows that say the same as an earlier one: prompt, answers, label, annotator",
        message=(
            f"{len(repeats)} of {columns.num_groups} rows repeat an earlier one."
            + (" Each counts again in the loss." if len(repeats) else "")
        ),
        examples=places(
            audited, repeats, lambda x, group: f"as line {earlier[x]}: {last_turn(group)}"
        ),
        fix=(
            "Take repeated rows out; where they are votes of several people, name them under"
            " votes, so that agreement can be measured."
            if rate > MAX_REPEATED_ROWS
            else ""
        ),
        effect=rate,
    )


def _row_hashes(columns: Columns) -> np.ndarray:
    """Hash of each group's prompt, comparisons and annotators, in whatever order they stand."""
    sides = columns.text_N[columns.better_C], columns.text_N[columns.worse_C]
    soft = [(share_C.astype(float) * 2**20) for share_C in (columns.probability_C, columns.tie_C)]
    hash_G = mixed(columns.prompt_G)
    np.add.at(hash_G, columns.group_C, mixed(*sides, *soft))
    if len(columns.first_P):
        judged_P = mixed(columns.annotator_P.astype(np.int64), columns.text_N[columns.first_P])
        np.add.at(hash_G, columns.group_N[columns.first_P], judged_P)
    return hash_G


def repeated_prompts(audited: Audited) -> Finding:
    """The same whole prompt in several rows, which could be one group."""
    columns = audited.columns
    prompts, first_T, count_T = np.unique(columns.prompt_G, return_index=True, return_counts=True)
    num_repeats = columns.num_groups - len(prompts)
    order = np.argsort(-count_T, kind="stable")
    order = order[count_T[order] > 1]
    return Finding(
        check="repeated prompts",
        severity="note",
        statistic=share(num_repeats, columns.num_groups),
        n=columns.num_groups,
        what="share of rows whose whole prompt stands in an earlier row",
        message=(
            f"{columns.num_groups} rows hold {len(prompts)} different prompts;"
            f" {len(order)} stand in several rows."
        ),
        examples=places(
            audited,
            first_T[order],
            lambda x, group: f"{count_T[order[x]]} rows: {last_turn(group)}",
        ),
        fix=(
            "Set read.merge_prompts true: each prompt then counts once, and is computed once."
            if num_repeats
            else ""
        ),
    )


def extended_prompts(audited: Audited) -> Finding:
    """Prompts that go on where another whole prompt ends, or share its first user turn.

    A split by rows, or by exact prompts, puts many of them on both sides; palate's split by prompt
    clusters doesn't. Shared first turns are counted in all data, extensions in the sample.
    """
    columns = audited.columns
    _, first_T = np.unique(mixed(columns.cluster_G, columns.prompt_G), return_index=True)
    clusters, num_prompts = np.unique(columns.cluster_G[first_T], return_counts=True)
    shared = clusters[num_prompts > 1]
    in_shared_G = np.isin(columns.cluster_G, shared)
    num_shared = int(in_shared_G.sum())
    extensions = extensions_among(audited.sample)
    of_what = "prompts" if audited.is_whole else "prompts of the sample"
    return Finding(
        check="extended prompts",
        severity="note",
        statistic=share(num_shared, columns.num_groups),
        n=columns.num_groups,
        what="share of rows whose first user turn begins another, different prompt as well",
        message=(
            f"{num_shared} of {columns.num_groups} rows share their first user turn with a"
            f" different prompt ({len(shared)} clusters); {len(extensions)} of"
            f" {len(audited.sample)} {of_what} extend another whole prompt."
        ),
        examples=places(
            audited,
            audited.sample_G[np.array(extensions, np.int64)],
            lambda _, group: f"{len(group.prompt)} turns: {group.prompt[0].content}",
        ),
        fix=("Split by prompt cluster, as palate train does, never by rows." if num_shared else ""),
    )


def extensions_among(groups: Sequence[PreferenceGroup]) -> list[int]:
    """Indices of the groups whose prompt begins with another group's whole prompt; of equal prompts
    the first stands for all."""
    said = [tuple((m.role, normalise(m.content)) for m in group.prompt) for group in groups]
    first: dict[tuple[tuple[str, str], ...], int] = {}
    for index, turns in enumerate(said):
        first.setdefault(turns, index)
    return [
        index
        for turns, index in first.items()
        if any(turns[:end] in first for end in range(1, len(turns)))
    ]

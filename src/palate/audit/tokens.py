"""What is left of the data after tokenisation at the lengths in use: answers cut or left out, and
comparisons whose sides become the same tokens.

Legend: S comparisons of the sample, N answers of the sample, G groups of the sample.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from palate.audit.columns import Audited
from palate.audit.findings import MAX_EXAMPLES, Example, Finding, Severity, Skipped
from palate.audit.places import place_of, share
from palate.audit.settings import AuditSettings
from palate.audit.shares import won_share
from palate.preferences import Comparison, PreferenceGroup
from palate.rendering import LengthSettings, Renderer
from palate.rendering.group_ids import GroupIds, text_of, tokenise

MAX_CUT = 0.01
"""Share of answers, or prompts, from which what is lost is worth a look."""


@dataclass
class _Tokenised:
    """What rendering the sample showed."""

    lengths: LengthSettings
    identical_S: list[bool] = field(default_factory=list)
    """Of each comparison of two different texts whose sides are both kept."""
    by_cut: int = 0
    """Comparisons whose sides became identical because at least one of them was cut."""
    over_N: list[bool] = field(default_factory=list)
    cluster_N: list[int] = field(default_factory=list)
    num_lost: int = 0
    """Comparisons with an over-long side."""
    num_longer_won: float = 0.0
    num_comparisons: int = 0
    prompt_cut_G: list[bool] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    identical_at: list[Example] = field(default_factory=list)
    over_at: list[tuple[int, Example]] = field(default_factory=list)
    """Tokens over the limit, and where."""
    prompt_cut_at: list[tuple[int, Example]] = field(default_factory=list)
    failed_at: list[Example] = field(default_factory=list)

    def add(self, group: PreferenceGroup, cluster: int, ids: GroupIds) -> None:
        if ids.failure is not None:
            self.failures[ids.failure[1]] += 1
            self.failed_at.append(place_of(group, ids.failure[0]))
            return
        self.prompt_cut_G.append(ids.num_cut > 0)
        if ids.num_cut:
            at = place_of(group, f"{ids.num_cut} tokens: {group.prompt[0].content}")
            self.prompt_cut_at.append((ids.num_cut, at))
        for response, num_over in zip(group.responses, ids.num_over, strict=True):
            self.over_N.append(num_over > 0)
            self.cluster_N.append(cluster)
            if num_over:
                at = place_of(group, f"{num_over} tokens over: {response.text}")
                self.over_at.append((num_over, at))
        self._add_comparisons(group, ids)

    def _add_comparisons(self, group: PreferenceGroup, ids: GroupIds) -> None:
        self.num_comparisons += len(group.comparisons)
        for comparison in group.comparisons:
            sides = comparison.better, comparison.worse
            better, worse = (group.responses[side].text for side in sides)
            is_over = any(ids.num_over[side] for side in sides)
            if is_over:
                self.num_lost += 1
                self.num_longer_won += _longer_won(comparison, len(better) - len(worse))
                if self.lengths.overlong != "cut":
                    continue
            if better == worse:  # the check of equal answers counts these
                continue
            identical = ids.sequences[sides[0]] == ids.sequences[sides[1]]
            self.identical_S.append(identical)
            if identical:
                self.by_cut += is_over
                self.identical_at.append(place_of(group, better))


def _longer_won(comparison: Comparison, gap: int) -> float:
    """1, 0 or 1/2 as the longer answer won, lost, or neither is longer or better."""
    if gap == 0 or comparison.probability == 0.5 or comparison.tie == 1:
        return 0.5
    return float(gap > 0)


def token_findings(
    audited: Audited, _: AuditSettings, renderer: Renderer
) -> list[Finding | Skipped]:
    """Renders the sample as training would and counts what is lost. `renderer` holds the tokenizer,
    the template, the lengths and the policy for over-long answers."""
    seen = _Tokenised(renderer.lengths)
    clusters = audited.columns.cluster_G[audited.sample_G].tolist()
    for cluster, group in zip(clusters, audited.sample, strict=True):
        seen.add(group, cluster, tokenise(text_of(group), renderer))
    sample = "" if audited.is_whole else " of the sample"
    findings = [_identical(seen, sample), _overlong(seen, sample), _cut_prompts(seen, sample)]
    if seen.failures:
        findings.append(_failures(seen, len(audited.sample), sample))
    return findings


def _identical(seen: _Tokenised, sample: str) -> Finding | Skipped:
    num_all, num_same = len(seen.identical_S), sum(seen.identical_S)
    check = "identical tokens"
    if not num_all:
        return Skipped(check, "rendering leaves no comparison of two different answers")
    return Finding(
        check=check,
        severity="error" if num_same else "note",
        statistic=share(num_same, num_all),
        threshold=0.0,
        n=num_all,
        what="share of comparisons of different answers whose sides become the same tokens",
        message=(
            f"{num_same} of {num_all} comparisons{sample} of different answers have the same tokens"
            f" on both sides, {seen.by_cut} of them because an answer is cut at"
            f" {seen.lengths.max_response_tokens} tokens."
        ),
        examples=tuple(seen.identical_at[:MAX_EXAMPLES]),
        fix=(
            "Raise lengths.max_response_tokens, or leave over-long answers out (lengths.overlong"
            " leave_out)."
            if seen.by_cut
            else "The tokenizer does not tell these answers apart: take one that keeps case and"
            " space, or leave them out."
            if num_same
            else ""
        ),
        effect=share(num_same, num_all),
    )


def _overlong(seen: _Tokenised, sample: str) -> Finding | Skipped:
    num_all, num_over = len(seen.over_N), sum(seen.over_N)
    check = "over-long answers"
    if not num_all:
        return Skipped(check, "no row can be rendered")
    clusters = np.array(seen.cluster_N, dtype=np.uint64)
    estimate = won_share(np.array(seen.over_N, dtype=float), clusters, np.ones(num_all))
    policy = {
        "leave_out": "left out",
        "cut": "cut",
        "error": "enough to stop training (lengths.overlong error)",
    }[seen.lengths.overlong]
    severity: Severity = "note"
    if num_over and seen.lengths.overlong == "error":
        severity = "error"
    elif estimate.value > MAX_CUT:
        severity = "warn"
    won = (
        f" Among the {seen.num_lost} of {seen.num_comparisons} comparisons that they are in, the"
        f" longer answer won {seen.num_longer_won / seen.num_lost:.0%}."
        if seen.num_lost
        else ""
    )
    worst = sorted(seen.over_at, key=lambda over: -over[0])
    return Finding(
        check=check,
        severity=severity,
        statistic=estimate.value,
        low=estimate.low,
        high=estimate.high,
        threshold=0.0 if seen.lengths.overlong == "error" else MAX_CUT,
        n=num_all,
        what=f"share of answers of more than {seen.lengths.max_response_tokens} tokens",
        message=f"{num_over} of {num_all} answers{sample} are over the limit, and {policy}.{won}",
        examples=tuple(example for _, example in worst[:MAX_EXAMPLES]),
        fix="Raise lengths.max_response_tokens." if severity != "note" else "",
        effect=share(seen.num_lost, seen.num_comparisons),
    )


def _cut_prompts(seen: _Tokenised, sample: str) -> Finding | Skipped:
    num_all, num_cut = len(seen.prompt_cut_G), sum(seen.prompt_cut_G)
    check = "cut prompts"
    if not num_all:
        return Skipped(check, "no row can be rendered")
    rate = share(num_cut, num_all)
    worst = sorted(seen.prompt_cut_at, key=lambda cut: -cut[0])
    return Finding(
        check=check,
        severity="warn" if rate > MAX_CUT else "note",
        statistic=rate,
        threshold=MAX_CUT,
        n=num_all,
        what=f"share of prompts of more than {seen.lengths.max_prompt_tokens} tokens",
        message=f"{num_cut} of {num_all} prompts{sample} lose their oldest turns or their start.",
        examples=tuple(example for _, example in worst[:MAX_EXAMPLES]),
        fix="Raise lengths.max_prompt_tokens." if rate > MAX_CUT else "",
        effect=rate / 2,
    )


def _failures(seen: _Tokenised, num_groups: int, sample: str) -> Finding:
    num_failed = sum(seen.failures.values())
    reasons = ", ".join(f"{reason} ({count})" for reason, count in seen.failures.most_common())
    return Finding(
        check="rendering",
        severity="warn",
        statistic=share(num_failed, num_groups),
        threshold=0.0,
        n=num_groups,
        what="share of rows that the template can't render",
        message=f"{num_failed} of {num_groups} rows{sample} can't be rendered: {reasons}.",
        examples=tuple(seen.failed_at[:MAX_EXAMPLES]),
        fix="Mend these rows, or take a template that prints what they hold.",
        effect=share(num_failed, num_groups),
    )

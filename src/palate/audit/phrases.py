"""Openings and endings that win or lose by themselves, found in the data and not in a list.

Legend: C decided comparisons, N answers, T phrases.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from palate.audit.columns import Audited
from palate.audit.decided import Decided, decided_comparisons
from palate.audit.findings import Example, Finding, Severity, Skipped
from palate.audit.settings import AuditSettings
from palate.audit.shares import WonShare, discoveries, won_share
from palate.audit.style import (
    ASK_A_PROBE,
    LENGTH,
    MIN_COMPARISONS,
    examples_of,
)
from palate.statistics.comparison_model import fit_comparison_model

MAX_FINDINGS = 5
"""Openings, and endings, that get a finding of their own; the others are in the note."""
MAX_NAME = 60


@dataclass(frozen=True)
class Phrase:
    """An opening or ending, and the comparisons in which one side alone has it."""

    kind: str
    text: str
    comparisons: np.ndarray
    won: np.ndarray
    share: WonShare
    at_equal_length: float
    """The same share after what the difference in length lets expect is taken off."""
    touched: float
    """Share of all comparisons."""

    @property
    def lift(self) -> float:
        return abs(self.share.value - 0.5)


def phrase_findings(audited: Audited, settings: AuditSettings) -> list[Finding | Skipped]:
    """A finding for each of the openings and endings with the largest lift, and a note on all."""
    decided = decided_comparisons(audited.columns)
    if len(decided) < MIN_COMPARISONS:
        reason = f"{len(decided)} comparisons with a better side; {MIN_COMPARISONS} are needed"
        return [Skipped("openings and endings", reason)]
    phrases = list(_phrases(audited, decided, settings))
    p_values = [phrase.share.p_value for phrase in phrases]
    called = discoveries(p_values, settings.style.false_discovery_rate)
    large = [
        phrase
        for phrase, is_called in zip(phrases, called, strict=True)
        if is_called and phrase.share.differs and phrase.lift > settings.style.lift_warn
    ]
    large.sort(key=lambda p: (_severity(p, settings) != "error", -p.lift * p.touched**0.5))
    shown = [
        phrase
        for kind in ("opening", "ending")
        for phrase in [p for p in large if p.kind == kind][:MAX_FINDINGS]
    ]
    return [
        _all_phrases(phrases, large, settings),
        *(_phrase_finding(audited, decided, phrase, settings) for phrase in shown),
    ]


def _phrases(audited: Audited, decided: Decided, settings: AuditSettings) -> Iterator[Phrase]:
    columns, style = audited.columns, settings.style
    least = max(style.min_phrase_comparisons, style.min_phrase_share * len(decided))
    longer_C = np.clip(decided.difference_C(LENGTH), -2, 2)
    slope = float(fit_comparison_model(longer_C[:, None], decided.weight_C)[0])
    for kind, hash_N, texts in (
        ("opening", columns.opening_N, columns.opening_text),
        ("ending", columns.ending_N, columns.ending_text),
    ):
        for digest, found_C, won_C in _one_sided(decided, hash_N, least):
            if digest not in texts:
                continue
            sign_C = 2 * won_C - 1
            weight_C = decided.weight_C[found_C]
            expected_C = expit(slope * sign_C * longer_C[found_C])
            yield Phrase(
                kind=kind,
                text=texts[digest],
                comparisons=found_C,
                won=won_C,
                share=won_share(won_C, decided.cluster_C[found_C], weight_C),
                at_equal_length=0.5 + float(np.average(won_C - expected_C, weights=weight_C)),
                touched=len(found_C) / len(decided),
            )


def _one_sided(
    decided: Decided, hash_N: np.ndarray, least: float
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Each hash that one side alone has in `least` comparisons or more, with these comparisons and
    whether it won them."""
    better_C, worse_C = hash_N[decided.better_C], hash_N[decided.worse_C]
    differs = np.flatnonzero(better_C != worse_C)
    hashes = np.concatenate([better_C[differs], worse_C[differs]])
    comparisons = np.concatenate([differs, differs])
    won = np.repeat([1.0, 0.0], len(differs))
    order = np.argsort(hashes, kind="stable")
    found, starts, counts = np.unique(hashes[order], return_index=True, return_counts=True)
    for digest, start, count in zip(found, starts, counts, strict=True):
        if digest != 0 and count >= least:
            members = order[start : start + count]
            yield int(digest), comparisons[members], won[members]


def _severity(phrase: Phrase, settings: AuditSettings) -> Severity:
    style = settings.style
    is_extreme = all(
        share >= style.extreme_share or share <= 1 - style.extreme_share
        for share in (phrase.share.value, phrase.at_equal_length)
    )
    is_broad = (
        phrase.share.num_clusters >= style.extreme_min_clusters
        and phrase.touched >= style.extreme_min_touched
    )
    return "error" if is_extreme and is_broad else "warn"


def _phrase_finding(
    audited: Audited, decided: Decided, phrase: Phrase, settings: AuditSettings
) -> Finding:
    severity = _severity(phrase, settings)
    share, style = phrase.share, settings.style
    wins = share.value > 0.5
    limit = style.extreme_share - 0.5 if severity == "error" else style.lift_warn
    named = shortened_name(phrase.text)
    verb = "end in" if phrase.kind == "ending" else "begin with"
    return Finding(
        check=f"{phrase.kind}: {named}",
        severity=severity,
        statistic=share.value,
        low=share.low,
        high=share.high,
        threshold=0.5 + limit if wins else 0.5 - limit,
        n=share.num_comparisons,
        what=f"share of comparisons won by the side that alone has the {phrase.kind}",
        message=(
            f'Answers that {verb} "{named}" win {100 * share.value:.1f} %'
            f" [{100 * share.low:.1f}, {100 * share.high:.1f}] of the {share.num_comparisons:,}"
            f" comparisons in which one side alone does ({100 * phrase.touched:.1f} % of all);"
            f" at equal length {100 * min(1.0, max(0.0, phrase.at_equal_length)):.1f} %."
            + (
                " A model will learn the words in place of what stands before them."
                if severity == "error"
                else ASK_A_PROBE
            )
        ),
        examples=_examples(audited, decided, phrase, wins),
        fix=(
            f"Find out where the {phrase.kind} comes from. Take it off all answers, or add"
            " counterfactual pairs (the same answer with and without it, no side preferred) before"
            " you train."
        ),
        effect=2 * phrase.lift,
        figure={"kind": "interval", "reference": 0.5},
    )


def _examples(
    audited: Audited, decided: Decided, phrase: Phrase, wins: bool
) -> tuple[Example, ...]:
    """Comparisons that go with the lift, the more alike in length the earlier."""
    is_kept_G = np.zeros(audited.columns.num_groups, bool)
    is_kept_G[audited.sample_G] = True
    members = phrase.comparisons[(phrase.won == 1) == wins]
    members = members[is_kept_G[decided.group_C[members]]]
    apart = np.abs(decided.difference_C(LENGTH)[members])
    order = members[np.argsort(apart, kind="stable")]
    side = "the preferred answer" if wins else "the other answer"
    named = shortened_name(phrase.text)
    return examples_of(audited, decided, order, lambda _: f'{side} has "{named}"')


def _all_phrases(phrases: list[Phrase], large: list[Phrase], settings: AuditSettings) -> Finding:
    style = settings.style
    listed = sorted(phrases, key=lambda phrase: phrase.share.sure_lift, reverse=True)
    counts: Mapping[str, int] = {
        kind: sum(phrase.kind == kind for phrase in phrases) for kind in ("opening", "ending")
    }
    return Finding(
        check="openings and endings",
        severity="note",
        statistic=float(len(large)),
        n=len(phrases),
        what="openings and endings that win or lose more often than chance would have it",
        message=(
            f"{counts['opening']} openings and {counts['ending']} endings come often enough to look"
            f" at; {len(large)} of them differ from one half by more than"
            f" {100 * style.lift_warn:g} points (false discovery rate"
            f" {style.false_discovery_rate:g})."
        ),
        figure={
            "kind": "bars",
            "bars": [
                {
                    "name": f"{phrase.kind}: {shortened_name(phrase.text)}",
                    "value": phrase.share.value,
                    "low": phrase.share.low,
                    "high": phrase.share.high,
                    "n": phrase.share.num_comparisons,
                }
                for phrase in listed[:24]
            ],
            "x": "opening or ending",
            "y": "share won by the side that alone has it",
            "reference": 0.5,
        },
    )


def shortened_name(text: str) -> str:
    """A phrase as a name of at most `MAX_NAME` characters."""
    return text if len(text) <= MAX_NAME else text[: MAX_NAME - 1] + "…"

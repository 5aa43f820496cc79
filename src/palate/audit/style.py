"""Length and style: which answers are preferred by what can be seen without the prompt.

Data alone can't tell a legitimate preference (good answers happen to be longer) from a spurious
one, so nothing here is more than a warning; `palate.audit.probes` asks what a model would learn.

Legend: C decided comparisons, N answers, F features.
"""

from collections.abc import Callable

import numpy as np

from palate.audit.columns import Audited
from palate.audit.decided import Decided, Joint, decided_comparisons, joint_model
from palate.audit.findings import MAX_EXAMPLES, Example, Finding, Severity, Skipped
from palate.audit.places import place_of
from palate.audit.settings import AuditSettings
from palate.audit.shares import WonShare, discoveries, won_share

LENGTH = "log words"
NUM_BINS = 10
MIN_BIN = 10
"""Comparisons that a bin of the figure must hold."""
MAX_FINDINGS = 5
"""Features that get a finding of their own; all are in the figure of the note."""
MIN_COMPARISONS = 20
"""Decided comparisons below which nothing can be said of style."""
ASK_A_PROBE = (
    " Labels alone can't tell whether that is a fault or whether good answers are like that; the"
    " findings named probe say what a model learns from it."
)


def style_findings(audited: Audited, settings: AuditSettings) -> list[Finding | Skipped]:
    """Length alone and beside other style, and every other feature."""
    decided = decided_comparisons(audited.columns)
    if len(decided) < MIN_COMPARISONS:
        reason = f"{len(decided)} comparisons with a better side; {MIN_COMPARISONS} are needed"
        return [Skipped("length", reason), Skipped("style", reason)]
    joint = joint_model(decided, settings)
    return [
        length_finding(audited, decided, settings),
        joint_length_finding(audited, joint, settings),
        *feature_findings(audited, decided, joint, settings),
    ]


def length_finding(
    audited: Audited, decided: Decided, settings: AuditSettings
) -> Finding | Skipped:
    """P(the answer of more words wins), ties in length left out."""
    difference_C = decided.difference_C(LENGTH)
    if not difference_C.any():
        return Skipped("length", "the two answers of every comparison have as many words")
    share = decided.won_by_more(difference_C)
    limit = settings.style.length_warn
    severity = _severity(share.differs and abs(share.value - 0.5) > limit)
    side, sign = ("longer", 1) if share.value >= 0.5 else ("shorter", -1)
    return Finding(
        check="length",
        severity=severity,
        statistic=share.value,
        low=share.low,
        high=share.high,
        threshold=0.5 + sign * limit,
        n=share.num_comparisons,
        what="share of comparisons won by the answer of more words",
        message=(
            f"The longer answer wins {_percent(share)} of the {share.num_comparisons:,} comparisons"
            f" whose answers differ in words.{ASK_A_PROBE if severity == 'warn' else ''}"
        ),
        examples=_examples(audited, decided, sign * difference_C, _length_text(decided)),
        fix=(
            f"Have people compare 100 of the pairs again in which the {side} answer won, beside the"
            " same answers brought to one length. Where the preference is for length alone, train"
            " with length as a nuisance term or with counterfactual pairs."
            if severity != "note"
            else ""
        ),
        effect=2 * abs(share.value - 0.5),
        figure=_length_figure(decided, difference_C),
    )


def _length_figure(decided: Decided, difference_C: np.ndarray) -> dict[str, object]:
    """Wins of the longer answer by how much longer it is: as many comparisons in each bin."""
    size_C = np.abs(difference_C)
    differs = np.flatnonzero(size_C)
    edges = np.unique(np.quantile(size_C[differs], np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    bin_of = np.searchsorted(edges, size_C[differs], "right")
    bins = []
    for number in range(len(edges) + 1):
        members = differs[bin_of == number]
        if len(members) < MIN_BIN:
            continue
        won_C = (difference_C[members] > 0).astype(float)
        share = won_share(won_C, decided.cluster_C[members], decided.weight_C[members])
        ratio = float(np.exp(np.median(size_C[members])))
        bins.append({"name": f"{ratio:.2f}", **_bin(share)})
    return {
        "kind": "bins",
        "bins": bins,
        "x": "how many times the words of the shorter",
        "y": "share won by the longer",
        "reference": 0.5,
    }


def joint_length_finding(audited: Audited, joint: Joint, settings: AuditSettings) -> Finding:
    """What length does beside the rest of style."""
    value, low, high = joint.interval(audited.columns.features.index(LENGTH))
    limit = settings.style.coefficient_warn
    severity = _severity(abs(value) > limit and (low > 0 or high < 0))
    return Finding(
        check="length at equal style",
        severity=severity,
        statistic=value,
        low=low,
        high=high,
        threshold=limit if value >= 0 else -limit,
        n=joint.num_comparisons,
        what="log-odds of winning for one standard deviation of log words, other style held equal",
        message=(
            "With the other style features held equal, one standard deviation more of log length"
            f" moves the log-odds of winning by {value:+.2f} [{low:+.2f}, {high:+.2f}]."
            f"{ASK_A_PROBE if severity == 'warn' else ''}"
        ),
        fix=(
            "As for length: counterfactual pairs tell whether length itself is preferred."
            if severity == "warn"
            else ""
        ),
        effect=abs(float(np.tanh(value / 2))),
    )


def feature_findings(
    audited: Audited, decided: Decided, joint: Joint, settings: AuditSettings
) -> list[Finding | Skipped]:
    """A warning for features whose lift is large, surely there and not explained by the others, and
    one note on all of them."""
    limit = settings.style.lift_warn
    names = [name for name in audited.columns.features if name != LENGTH]
    shares = {
        name: decided.won_by_more(difference_C)
        for name in names
        if (difference_C := decided.difference_C(name)).any()
    }
    if not shares:
        return [Skipped("style", "the two answers of every comparison have the same style")]
    p_values = [share.p_value for share in shares.values()]
    called = discoveries(p_values, settings.style.false_discovery_rate)
    large = []
    for (name, share), is_called in zip(shares.items(), called, strict=True):
        value, low, high = joint.interval(audited.columns.features.index(name))
        own_effect = (low > 0 or high < 0) and (value > 0) == (share.value > 0.5)
        if is_called and share.differs and abs(share.value - 0.5) > limit and own_effect:
            large.append(name)
    # By the part of its own: features that go along with another have its lift too.
    index = audited.columns.features.index
    large.sort(key=lambda name: -abs(joint.coefficient_F[index(name)]))
    return [
        _all_features(shares, called, len(large), settings),
        *(
            _feature_finding(audited, decided, name, shares[name], joint, limit)
            for name in large[:MAX_FINDINGS]
        ),
    ]


def _feature_finding(
    audited: Audited, decided: Decided, name: str, share: WonShare, joint: Joint, limit: float
) -> Finding:
    sign = 1 if share.value > 0.5 else -1
    value, low, high = joint.interval(audited.columns.features.index(name))
    difference_C = decided.difference_C(name)
    values_N = audited.columns.feature_N(name)

    def numbers(c: int) -> str:
        return f"{values_N[decided.better_C[c]]:.3g} won over {values_N[decided.worse_C[c]]:.3g}"

    return Finding(
        check=f"style: {name}",
        severity="warn",
        statistic=share.value,
        low=share.low,
        high=share.high,
        threshold=0.5 + sign * limit,
        n=share.num_comparisons,
        what=f"share of comparisons won by the answer with more of: {name}",
        message=(
            f"The answer with more of '{name}' wins {_percent(share)} of the"
            f" {share.num_comparisons:,} comparisons in which the two differ in it; length and"
            f" other style held equal, its coefficient is {value:+.2f} [{low:+.2f}, {high:+.2f}]."
            f"{ASK_A_PROBE}"
        ),
        examples=_examples(audited, decided, sign * difference_C, numbers),
        fix=(
            f"Look whether '{name}' is what people meant to reward. If not, train with it as a"
            " nuisance term or with counterfactual pairs that differ in it alone."
        ),
        effect=2 * abs(share.value - 0.5),
        figure={"kind": "interval", "reference": 0.5},
    )


def _all_features(
    shares: dict[str, WonShare], called: np.ndarray, num_warned: int, settings: AuditSettings
) -> Finding:
    order = sorted(shares, key=lambda name: shares[name].sure_lift, reverse=True)
    largest = shares[order[0]]
    rate = settings.style.false_discovery_rate
    return Finding(
        check="style",
        severity="note",
        statistic=float(called.sum()),
        n=len(shares),
        what="style features that win or lose more often than chance would have it",
        message=(
            f"{int(called.sum())} of {len(shares)} style features differ from one half (false"
            f" discovery rate {rate:g}), {num_warned} of them by more than"
            f" {100 * settings.style.lift_warn:g} points and with a part of their own; the largest"
            f" lift is that of '{order[0]}', which wins {_percent(largest)}."
        ),
        effect=0.0,
        figure={
            "kind": "bars",
            "bars": [{"name": name, **_bin(shares[name])} for name in order],
            "x": "style feature",
            "y": "share won by the side with more of it",
            "reference": 0.5,
        },
    )


def _severity(is_large: bool) -> Severity:
    return "warn" if is_large else "note"


def _percent(share: WonShare) -> str:
    return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _bin(share: WonShare) -> dict[str, float | int]:
    return {
        "value": share.value,
        "low": share.low,
        "high": share.high,
        "n": share.num_comparisons,
    }


def _length_text(decided: Decided) -> Callable[[int], str]:
    words_N = np.rint(np.expm1(decided.columns.feature_N(LENGTH))).astype(int)
    return lambda c: f"{words_N[decided.better_C[c]]} words won over {words_N[decided.worse_C[c]]}"


def _examples(
    audited: Audited, decided: Decided, score_C: np.ndarray, numbers: Callable[[int], str]
) -> tuple[Example, ...]:
    """Comparisons with the highest scores above 0, of those whose texts are kept."""
    is_kept_G = np.zeros(audited.columns.num_groups, bool)
    is_kept_G[audited.sample_G] = True
    candidates = np.flatnonzero(is_kept_G[decided.group_C] & (score_C > 0))
    order = candidates[np.argsort(-score_C[candidates], kind="stable")]
    return examples_of(audited, decided, order, numbers)


def examples_of(
    audited: Audited, decided: Decided, order: np.ndarray, numbers: Callable[[int], str]
) -> tuple[Example, ...]:
    """The first comparisons in this order, one of a group: numbers and the start of the winner."""
    first: dict[int, int] = {}
    for c in order.tolist():
        first.setdefault(int(decided.group_C[c]), c)
        if len(first) == MAX_EXAMPLES:
            break
    groups = audited.fetch(list(first))
    found = []
    for index, c in first.items():
        if (group := groups.get(index)) is not None:
            better = int(decided.better_C[c] - audited.columns.start_G[index])
            found.append(place_of(group, f"{numbers(c)}: {group.responses[better].text}"))
    return tuple(found)

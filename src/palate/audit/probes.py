"""Counterfactual probes: does a small model of these labels pay for words that say nothing?

A correlation can't tell a spurious preference (longer wins, whatever it says) from a legitimate one
(good answers happen to be longer). A counterfactual can: the worse answer of a pair is given a
phrase without content, and its reward should stay where it was.

Legend: H held-out comparisons, R of them ranked right, N answers, F features, K probes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, vstack

from palate.audit.feature_model import (
    Comparisons,
    FeatureModel,
    TextFeatures,
    comparisons_of,
    fit_feature_model,
    text_features,
)
from palate.audit.findings import MAX_EXAMPLES, Example, Finding, Severity, Skipped
from palate.audit.own_phrases import Change, added, frequent_phrases
from palate.audit.places import place_of
from palate.preferences import PreferenceGroup
from palate.statistics import Estimate
from palate.statistics.resampling import (
    percentile_interval,
    resampled_sums,
    resampling_units,
    sums_by_unit,
)
from palate.text.perturb import perturb

PROBES: Mapping[str, str] = {
    "closing": "a polite closing at its end",
    "opener": "praise or thanks at its start",
    "filler": "two sentences that say nothing",
    "confidence": "a claim of certainty at its start",
    "hedge": "a doubt at its start",
    "agreement": "agreement with the user at its start",
    "markdown": "the layout of a list with bold words",
}
"""What each probe gives the worse answer, in words; the names are kinds of `perturb`."""
FREQUENT: Mapping[str, str] = {
    "frequent ending": "an ending that comes often in the data",
    "frequent opener": "an opener that comes often in the data",
}
"""Probes that take their phrases from the data: by how often they come, labels unseen."""
_NUISANCES: Mapping[str, tuple[str, str]] = {
    **{kind: (kind, kind) for kind in ("closing", "opener", "confidence", "hedge", "agreement")},
    "filler": ("filler", "log_length"),
    "markdown": ("markdown, plain", "markdown"),
    "frequent ending": ("closing", "closing"),
    "frequent opener": ("opener", "opener"),
}
"""For each probe the kinds of counterfactual pairs and the nuisance term that mend it."""
MAX_EFFECT = 0.2
"""Standard deviations of the margins; as MAX_FLIPS from the research that the design rests on:
clean models measure 0.04 and 1 % at most, one planted logit 0.29 and 11 % at least."""
MAX_FLIPS = 0.05
MIN_RANKED_RIGHT = 30
MIN_SURE = 3000
"""Comparisons from which a failed probe is an error. Of fewer, the small model learns too little of
what answers say, and style that goes with good content takes the credit: in legitimate twins of
500, 1,000, 2,000 and 4,000 pairs 20, 18, 5 and 0 of 30 probes failed."""
EXTREME = 3.0
"""Times MAX_EFFECT from which it is an error of any number: legitimate twins of 500 pairs have an
effect of 0.28 to 0.38."""
SMALL_MODEL = (
    "This is a small model of words and style, fitted on these labels: a reward model could learn"
    " the same from them."
)


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What one change of the worse answer does to its reward."""

    name: str
    effect: Estimate
    """Mean change of reward, in standard deviations of the held-out margins."""
    flips: Estimate
    """Share of the pairs ranked right in which the changed worse answer beats the better."""
    group_R: np.ndarray
    worse_R: np.ndarray
    beyond_R: np.ndarray
    """Change of reward less the margin, in logits: above 0 the pair flips."""

    num_comparisons: int
    """That the model was fitted on and held out from."""

    @property
    def exceeds(self) -> bool:
        return self.effect.value > MAX_EFFECT or self.flips.value > MAX_FLIPS

    @property
    def fails(self) -> bool:
        """Above a threshold with the whole interval; flips count where rewards rise on the whole.

        In 52 votes, on six scenes of 6,000 pairs, each planted logit was found by its own probe in
        52 of 52. Of the clean world's and the five legitimate twins' 312 votes one had an error in
        any of the seven probes; with the low end above half the threshold 16 of 100 of the
        legitimate twins' had.
        """
        has_flips = self.flips.low > MAX_FLIPS and self.effect.low > 0
        return self.effect.low > MAX_EFFECT or has_flips

    @property
    def severity(self) -> Severity:
        extreme = self.effect.low > EXTREME * MAX_EFFECT
        if self.fails and (extreme or self.num_comparisons >= MIN_SURE):
            return "error"
        return "warn" if self.exceeds else "note"


def phrase_probe(kind: str) -> Change:
    """The change that `perturb` makes with phrasings held out for tests."""
    return lambda text, random: perturb(text, kind, "test", random)


def probe(features: TextFeatures, model: FeatureModel, name: str, change: Change) -> ProbeResult:
    """Change the worse answers of the held-out pairs that the model ranks right."""
    return probe_all(features, model, {name: change})[0]


def probe_all(
    features: TextFeatures, model: FeatureModel, changes: Mapping[str, Change]
) -> list[ProbeResult]:
    """A result for each change. Changed answers are kept in `features` by the change's name.

    The intervals hold both what other held-out prompts and what other training prompts would have
    changed, added in quadrature: the first by bootstrap, the second by `standard_errors` of the
    mean change.
    """
    is_right_H = model.margin_H > 0
    worse_R = model.held_out.where(is_right_H).worse_C
    before_RF = features.matrix_NF[worse_R]
    moved = [_changed(features, worse_R, n, change) - before_RF for n, change in changes.items()]
    direction_FK = np.stack([np.asarray(m.mean(axis=0)).ravel() for m in moved], axis=1)
    error_K = model.standard_errors(direction_FK)
    change_RK = np.stack([moved_RF @ model.coefficient_F for moved_RF in moved], axis=1)
    return _results(list(changes), model, change_RK, error_K)


def _results(
    names: Sequence[str], model: FeatureModel, change_RK: np.ndarray, error_K: np.ndarray
) -> list[ProbeResult]:
    is_right_H = model.margin_H > 0
    right, margin_R1 = model.held_out.where(is_right_H), model.margin_H[is_right_H][:, None]
    deviation = float(model.margin_H.std()) or 1.0
    reach_K = 1.96 * error_K
    effects = _means(change_RK / deviation, right)
    flips = _means(change_RK > margin_R1, right)
    fewer_K, more_K = (
        np.average(change_RK + step_K > margin_R1, axis=0, weights=right.weight_C)
        for step_K in (-reach_K, reach_K)
    )
    results = []
    for k, name in enumerate(names):
        value, reach = effects[k].value, float(reach_K[k]) / deviation
        results.append(
            ProbeResult(
                name=name,
                effect=_wider(effects[k], value - reach, value + reach),
                flips=_wider(flips[k], float(fewer_K[k]), float(more_K[k])),
                group_R=right.group_C,
                worse_R=right.worse_C,
                beyond_R=change_RK[:, k] - margin_R1[:, 0],
                num_comparisons=len(model.fitted) + len(model.held_out),
            )
        )
    return results


def _means(value_RK: np.ndarray, right: Comparisons) -> list[Estimate]:
    """The weighted mean of each column with its bootstrap interval by cluster; the resamples are
    the same for all columns, which is what makes many probes cheap."""
    unit_R, num_units = resampling_units(right.cluster_C)
    columns = [right.weight_C, *(value_RK * right.weight_C[:, None]).T]
    sum_BK = resampled_sums(sums_by_unit(columns, unit_R, num_units))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_BK = sum_BK[:, 1:] / sum_BK[:, :1]
    value_K = np.average(value_RK, axis=0, weights=right.weight_C)
    return [
        percentile_interval(float(value), mean_B, num_units, len(right))
        for value, mean_B in zip(value_K, mean_BK.T, strict=True)
    ]


def _wider(estimate: Estimate, low: float, high: float) -> Estimate:
    """The interval with a second source of error, that alone would give low to high."""
    value = estimate.value
    below = float(np.hypot(value - estimate.low, value - low))
    above = float(np.hypot(estimate.high - value, high - value))
    return Estimate(value, value - below, value + above, estimate.n)


def _changed(features: TextFeatures, answers_R: np.ndarray, name: str, change: Change) -> Any:
    """Features of the changed answers: RF. Each answer is changed in one way, drawn by its number,
    and kept, so that other labels of the same texts find it there."""
    num_features = features.matrix_NF.shape[1]
    nothing = (np.full(len(features.texts), -1), csr_matrix((0, num_features), dtype=np.float32))
    row_N, known_MF = features.changed.get(name, nothing)
    missing = np.unique(answers_R[row_N[answers_R] < 0])
    if len(missing):
        texts = [change(features.texts[a], np.random.default_rng([a, 5])) for a in missing]
        row_N[missing] = known_MF.shape[0] + np.arange(len(missing))
        known_MF = vstack([known_MF, features.scaling.features(texts)], "csr")
        features.changed[name] = (row_N, known_MF)
    return known_MF[row_N[answers_R]]


def probe_model(
    groups: Sequence[PreferenceGroup],
    seed: int = 0,
    features: TextFeatures | None = None,
) -> list[Finding | Skipped]:
    """Fit the small model on these groups and put it to all probes.

    `features` are those of the same texts, where they are known: then only the labels cost time.
    """
    known = text_features(groups) if features is None else features
    comparisons = comparisons_of(known, groups)
    model = fit_feature_model(known, comparisons, seed=seed)
    if model is None or (model.margin_H > 0).sum() < MIN_RANKED_RIGHT:
        reason = (
            f"{len(comparisons)} comparisons with a better side are too few to fit a model on four"
            f" fifths and to probe {MIN_RANKED_RIGHT} of the rest"
        )
        return [Skipped("probes", reason)]
    changes = {kind: phrase_probe(kind) for kind in PROBES}
    phrase_of: dict[str, str] = {}
    for which, at_end in (("frequent ending", True), ("frequent opener", False)):
        for phrase in frequent_phrases(known.texts, at_end):
            phrase_of[f"{which}: {phrase}"] = phrase
            changes[f"{which}: {phrase}"] = added(phrase, at_end)
    results = probe_all(known, model, changes)
    return [_finding(r, groups, known, model, phrase_of.get(r.name)) for r in results]


def _finding(
    result: ProbeResult,
    groups: Sequence[PreferenceGroup],
    features: TextFeatures,
    model: FeatureModel,
    phrase: str | None,
) -> Finding:
    kind = result.name if phrase is None else result.name.split(":", 1)[0]
    given = PROBES[kind] if phrase is None else f"{FREQUENT[kind]}, “{phrase[:80]}”"
    severity = result.severity
    effect, flips = result.effect, result.flips
    message = (
        f"Given {given}, a worse answer gains {effect.value:.2f} standard deviations of the margins"
        f" [{effect.low:.2f}, {effect.high:.2f}] and {flips.value:.1%} [{max(0, flips.low):.1%},"
        f" {flips.high:.1%}] of the pairs flip (limits {MAX_EFFECT} and {MAX_FLIPS:.0%})."
        f" {SMALL_MODEL} It ranks {model.accuracy.value:.1%} of held-out pairs right."
    )
    if severity == "warn" and result.fails:
        message += (
            f" No error, since of {result.num_comparisons} comparisons it learns too little of what"
            f" answers say ({MIN_SURE} are needed): style that goes with good content looks alike."
        )
    elif severity == "warn":
        message += " The interval is too wide to call it an error."
    return Finding(
        check=f"probe: {kind}",
        severity=severity,
        statistic=effect.value,
        low=effect.low,
        high=effect.high,
        threshold=MAX_EFFECT,
        n=effect.n,
        what=f"change of a worse answer's reward by {given}, in standard deviations of the margins",
        message=message,
        examples=() if severity == "note" else _examples(result, groups, features),
        fix="" if severity == "note" else _fix(kind),
        effect=min(1.0, max(0.0, effect.value)),
        figure={
            "kind": "probe",
            "name": kind,
            "phrase": phrase,
            "effect": [effect.value, effect.low, effect.high],
            "flips": [flips.value, max(0.0, flips.low), flips.high],
            "limits": [MAX_EFFECT, MAX_FLIPS],
        },
    )


def _fix(kind: str) -> str:
    kinds, nuisance = _NUISANCES[kind]
    cut = (
        " Or cut the phrase off all answers, in training and in use alike."
        if kind in FREQUENT
        else ""
    )
    return (
        f"training.counterfactual.share 0.15 with training.counterfactual.kinds [{kinds}], or"
        f" objective.nuisance [{nuisance}], or both.{cut}"
    )


def _examples(
    result: ProbeResult, groups: Sequence[PreferenceGroup], features: TextFeatures
) -> tuple[Example, ...]:
    """The pairs that flip by the widest margin."""
    flipped = [r for r in np.argsort(-result.beyond_R) if result.beyond_R[r] > 0]
    return tuple(
        place_of(
            groups[result.group_R[r]],
            f"beats the better answer by {result.beyond_R[r]:.2f} logits once it is changed:"
            f" {features.texts[result.worse_R[r]]}",
        )
        for r in flipped[:MAX_EXAMPLES]
    )

"""What a probe found, and the verdict on it.

Legend: E observations of the effect, F answers that could flip.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from palate.preferences import ScoringItem
from palate.statistics import Estimate, cluster_mean
from palate.statistics.intervals import wilson

Expectation = Literal["near 0", "not above 0", "strictly lower", "must win", "must shrink"]
"""near 0, not above 0, strictly lower: of the change of reward. must win: the proper answer against
the other. must shrink: the margin, once the prompt is another."""
Verdict = Literal["pass", "warn", "fail"]

WARN_EFFECT, FAIL_EFFECT = 0.10, 0.20
"""Standard deviations of the margins, of an effect that should not be above 0."""
WARN_FLIPS, FAIL_FLIPS = 0.02, 0.05
MAX_KEPT = 0.5
"""Share of the margin that may be left under another prompt."""
MIN_CLUSTERS = 20
"""Of prompts, from which on a probe can fail: a bootstrap of fewer is too sure of itself."""
NUM_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class ProbeExample:
    """An answer that should have lost, and by how much it won."""

    file: str
    line: int
    id: str | None
    prompt: str
    """Its last turn."""
    text: str
    rival: str
    """The answer that should have won."""
    beyond: float
    """reward(text) - reward(rival)."""


@dataclass(frozen=True, kw_only=True)
class ProbeOutcome:
    """One probe on one model."""

    name: str
    what: str
    """What was done, in words."""
    expectation: Expectation
    effect: Estimate
    """Mean change of reward in standard deviations of the pairs' margins. Of what must win: the
    mean margin in the same unit; of what must shrink: the share of the margin that is left."""
    flips: Estimate
    """Share of answers that beat the one that should win; ties count half. Of what must shrink: of
    pairs ranked right that are still so under another prompt."""
    num_ties: int
    num_left_out: int
    """Texts that are longer than the model takes."""
    verdict: Verdict
    reason: str
    """Why, in a sentence."""
    examples: tuple[ProbeExample, ...]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """An answer against the one that should beat it."""

    item: ScoringItem
    rival: str
    beyond: float
    cluster: str
    file: str = ""
    line: int = 0
    id: str | None = None

    def example(self) -> ProbeExample:
        return ProbeExample(
            file=self.file,
            line=self.line,
            id=self.id,
            prompt=self.item.prompt[-1].content,
            text=self.item.response.text,
            rival=self.rival,
            beyond=self.beyond,
        )


def mean_of(value_E: Sequence[float] | np.ndarray, cluster_E: Sequence[str]) -> Estimate:
    """`cluster_mean`, or a value that is no number where there is nothing to average."""
    if not len(value_E):
        return Estimate(float("nan"), -np.inf, np.inf, 0)
    return cluster_mean(value_E, cluster_E)


def share_of(won_F: Sequence[float] | np.ndarray, cluster_F: Sequence[str]) -> Estimate:
    """A mean of 0, 1/2 and 1. Where all are the same a bootstrap knows no spread, and the interval
    is Wilson's for as many observations as there are clusters."""
    estimate = mean_of(won_F, cluster_F)
    if estimate.n and estimate.value in (0.0, 1.0):
        low, high = wilson(estimate.value, len(set(cluster_F)))
        return replace(estimate, low=low, high=high)
    return estimate


def outcome_of(
    name: str,
    what: str,
    expectation: Expectation,
    effect: Estimate,
    contests: Sequence[Contest],
    num_clusters: int,
    *,
    max_lost: float = WARN_FLIPS,
    can_fail: bool = True,
    num_left_out: int = 0,
) -> ProbeOutcome:
    """Count the flips and judge. `max_lost` is the limit of what must win."""
    beyond_F = np.array([contest.beyond for contest in contests])
    flips = share_of((np.sign(beyond_F) + 1) / 2, [contest.cluster for contest in contests])
    verdict, reason = judged(expectation, effect, flips, max_lost)
    if verdict == "fail" and not can_fail:
        verdict, reason = "warn", f"{reason}; a warning at most, as some prompts deserve it"
    if verdict == "fail" and num_clusters < MIN_CLUSTERS:
        verdict = "warn"
        reason += f"; a warning at most, as there are {num_clusters} prompts of {MIN_CLUSTERS}"
    worst = sorted(contests, key=lambda contest: -contest.beyond)[:NUM_EXAMPLES]
    shown = [] if verdict == "pass" or expectation == "must shrink" else worst
    return ProbeOutcome(
        name=name,
        what=what,
        expectation=expectation,
        effect=effect,
        flips=flips,
        num_ties=int((beyond_F == 0).sum()),
        num_left_out=num_left_out,
        verdict=verdict,
        reason=reason,
        examples=tuple(contest.example() for contest in shown if contest.beyond >= 0),
    )


def judged(
    expectation: Expectation, effect: Estimate, flips: Estimate, max_lost: float = WARN_FLIPS
) -> tuple[Verdict, str]:
    """The verdict and why. A value beyond its limit is a warning; a failure needs the whole
    interval beyond it, so that the next sample would most likely say the same."""
    if expectation == "must shrink":
        return _of_shrinking(effect)
    if expectation == "must win":
        return _of_winning(flips, max_lost)
    if expectation == "strictly lower":
        return _of_lowering(effect, flips)
    return _of_saying_nothing(effect, flips, is_two_sided=expectation == "near 0")


def _of_saying_nothing(
    effect: Estimate, flips: Estimate, *, is_two_sided: bool
) -> tuple[Verdict, str]:
    if effect.low > FAIL_EFFECT:
        return "fail", f"the reward rises by more than {FAIL_EFFECT}"
    # Flips without a direction are near ties that any change of words decides.
    if flips.low > FAIL_FLIPS and effect.low > 0:
        return "fail", f"the reward rises, and more than {FAIL_FLIPS:.0%} of the pairs flip"
    if effect.value > WARN_EFFECT:
        return "warn", f"the reward rises by more than {WARN_EFFECT}"
    if flips.value > WARN_FLIPS:
        return "warn", f"more than {WARN_FLIPS:.0%} of the pairs flip"
    if is_two_sided and effect.value < -WARN_EFFECT:
        return "warn", f"the reward falls by more than {WARN_EFFECT}"
    return "pass", f"within {WARN_EFFECT} and {WARN_FLIPS:.0%} of flips"


def _of_lowering(effect: Estimate, flips: Estimate) -> tuple[Verdict, str]:
    if effect.low > 0:
        return "fail", "the reward rises"
    if flips.low > FAIL_FLIPS:
        return "fail", f"more than {FAIL_FLIPS:.0%} of the answers lose nothing or gain"
    if effect.high >= 0:
        return "warn", "the reward does not surely fall"
    if flips.value > WARN_FLIPS:
        return "warn", f"more than {WARN_FLIPS:.0%} of the answers lose nothing or gain"
    return "pass", "the reward falls"


def _of_winning(flips: Estimate, max_lost: float) -> tuple[Verdict, str]:
    if flips.low > max_lost:
        return "fail", f"the proper answer loses more than {max_lost:.0%}"
    if flips.value > max_lost:
        return "warn", f"the proper answer loses more than {max_lost:.0%}"
    return "pass", f"the proper answer wins {1 - max_lost:.0%} or more"


def _of_shrinking(effect: Estimate) -> tuple[Verdict, str]:
    if effect.value > MAX_KEPT:
        return "warn", (
            f"more than {MAX_KEPT:.0%} of the margin is left under another prompt: the model hardly"
            " reads it, or these data don't ask it to"
        )
    return "pass", f"at most {MAX_KEPT:.0%} of the margin is left under another prompt"

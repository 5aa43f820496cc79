"""Probes: does the reward move when the answer says the same, and does it move when it must?

Each probe changes the text of an answer and scores it again; what should come of it is known,
whoever made the model. Changes that say nothing are tried on the worse answer of a pair: a reward
that pays for them is one that a policy will collect.

Legend: P pairs, one of each sampled prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from palate.errors import PalateError
from palate.evaluation.probe_outcomes import Contest, ProbeOutcome, mean_of, outcome_of
from palate.evaluation.probe_sample import (
    FOREIGN,
    OTHER_BETTER,
    OTHER_WORSE,
    PROBES,
    Key,
    Probe,
    ProbeSettings,
    Sample,
    characters,
    draw_sample,
)
from palate.evaluation.score_texts import Score, TooLong, rewards_of
from palate.evaluation.sycophancy import belief_items, belief_outcomes
from palate.preferences import ScoringItem
from palate.rendering import RenderedGroup
from palate.statistics import Estimate
from palate.statistics.resampling import ratio_of_sums

NOT_TO_PROBE = "no pair to probe"
"""Reason of the error where the data allow none."""


Progress = Callable[[int, int], None]
"""Called with the numbers of texts scored so far and in all."""
TEXTS_AT_ONCE = 1024
PROMPT_SWAP, OTHER_PROMPT = "prompt swap", "other prompt"
TAKEN = ("better", "worse", FOREIGN, OTHER_BETTER, OTHER_WORSE, PROMPT_SWAP, OTHER_PROMPT)
"""Names that no probe of one's own can have."""


@dataclass(frozen=True, kw_only=True)
class ProbeRun:
    """All probes on one model, and what they rest on."""

    outcomes: tuple[ProbeOutcome, ...]
    skipped: Mapping[str, str]
    """Name of a probe without an outcome, and why."""
    deviation: float
    """Standard deviation of the sampled pairs' margins, the unit of effects, in units of reward."""
    num_pairs: int
    """Sampled, one of a prompt."""
    num_prompts: int
    """That the sample was drawn from."""
    num_left_out: int
    """Prompts met in drawing that have no pair of finished answers within the model's limit."""
    num_texts: int
    """Scored."""
    cost: float
    """Characters scored, prompts included, over those of scoring every answer of the file once."""


def run_probes(
    score: Score,
    groups: Sequence[RenderedGroup],
    settings: ProbeSettings = ProbeSettings(),
    *,
    probes: Sequence[Probe] = PROBES,
    too_long: TooLong | None = None,
    progress: Progress | None = None,
) -> ProbeRun:
    """Put a model to all probes, on a sample of the groups' decided comparisons.

    The sample depends on the prompts alone, so that two models are probed with the same texts.
    `too_long` says which texts the model does not take; these are left out and counted. Raises
    PalateError when no pair can be probed and for a reward that is no finite number.
    """
    names = [probe.name for probe in probes]
    repeated = [name for name in (*names, *TAKEN) if [*names, *TAKEN].count(name) > 1]
    if repeated:
        raise PalateError(f"two probes are called {repeated[0]!r}; give each a name of its own")
    beliefs = belief_items() if settings.beliefs else {}
    taken = sum(map(characters, beliefs.values()))
    sample = draw_sample(groups, probes, settings, too_long, taken)
    if not sample.pairs:
        raise PalateError(
            f"no pair to probe: of {sample.num_prompts} prompts none has a decided comparison of"
            " two finished answers that the model takes",
            NOT_TO_PROBE,
        )
    items = {**sample.items, **beliefs}
    rewards = _scored(score, items, sample, progress)
    probed = _Probed(sample, rewards)
    outcomes: list[ProbeOutcome] = []
    skipped: dict[str, str] = {}
    for probe in probes:
        probed.put(probe, outcomes, skipped)
    probed.swap_prompts(outcomes, skipped)
    if settings.beliefs:
        led, without = belief_outcomes(items, rewards, probed.deviation)
        outcomes += led
        skipped.update(without)
    return ProbeRun(
        outcomes=tuple(outcomes),
        skipped=skipped,
        deviation=probed.deviation,
        num_pairs=len(sample.pairs),
        num_prompts=sample.num_prompts,
        num_left_out=sample.num_left_out,
        num_texts=len(items),
        cost=sum(map(characters, items.values())) / sample.num_characters,
    )


def _scored(
    score: Score, items: Mapping[Key, ScoringItem], sample: Sample, progress: Progress | None
) -> dict[Key, float]:
    keys = list(items)
    rewards: dict[Key, float] = {}
    for start in range(0, len(keys), TEXTS_AT_ONCE):
        part = keys[start : start + TEXTS_AT_ONCE]
        places = [_place(key, sample) for key in part]
        values = rewards_of(score, [items[key] for key in part], places)
        rewards.update(zip(part, values.tolist(), strict=True))
        if progress is not None:
            progress(len(rewards), len(keys))
    return rewards


def _place(key: Key, sample: Sample) -> str:
    number, name = key
    if key not in sample.items:
        return f"question {number + 1} of the sycophancy probes, {name}"
    group = sample.pairs[number].group.group
    return f"{group.file}:{group.line}: {name}"


class _Probed:
    """The sampled pairs with the rewards of all their texts."""

    def __init__(self, sample: Sample, rewards: Mapping[Key, float]) -> None:
        self.sample = sample
        self.rewards = rewards
        numbers = range(len(sample.pairs))
        self.margin_P = np.array([rewards[p, "better"] - rewards[p, "worse"] for p in numbers])
        # Where all margins are equal there is no unit; effects are plain differences of reward.
        self.deviation = float(self.margin_P.std()) or 1.0

    def put(self, probe: Probe, outcomes: list[ProbeOutcome], skipped: dict[str, str]) -> None:
        """The outcome of a probe that changes answers, or why there is none."""
        pairs = self.sample.pairs
        num_left_out = sum(probe.name in pair.too_long for pair in pairs)
        here = self._with(probe.name)
        if not here:
            too_long = f", {num_left_out} become too long for the model" if num_left_out else ""
            skipped[probe.name] = (
                f"nothing to change in {len(pairs) - num_left_out} pairs{too_long}"
            )
            return
        contested = here
        if probe.side == "worse":
            contested = [p for p in here if self.margin_P[p] > 0]
        outcomes.append(
            outcome_of(
                probe.name,
                probe.what,
                probe.expectation,
                self._mean_change(here, probe.name, probe.side),
                [self._contest(p, probe.name, "better") for p in contested],
                len({pairs[p].cluster for p in here}),
                can_fail=probe.can_fail,
                num_left_out=num_left_out,
            )
        )

    def swap_prompts(self, outcomes: list[ProbeOutcome], skipped: dict[str, str]) -> None:
        """The better answer against another prompt's, and the margin under another prompt."""
        here = self._with(FOREIGN)
        elsewhere = [p for p in self._with(OTHER_BETTER, OTHER_WORSE) if self.margin_P[p] > 0]
        pairs = self.sample.pairs
        if here:
            outcomes.append(
                outcome_of(
                    PROMPT_SWAP,
                    "the better answer against one to another prompt, of about the same length",
                    "must win",
                    self._mean_change(here, "better", FOREIGN),
                    [self._contest(p, FOREIGN, "better") for p in here],
                    len({pairs[p].cluster for p in here}),
                )
            )
        else:
            skipped[PROMPT_SWAP] = "no two prompts of different clusters to swap"
        if elsewhere:
            outcomes.append(
                outcome_of(
                    OTHER_PROMPT,
                    "both answers of a pair that is ranked right, under another prompt",
                    "must shrink",
                    self._kept(elsewhere),
                    [self._contest(p, OTHER_BETTER, OTHER_WORSE) for p in elsewhere],
                    len({pairs[p].cluster for p in elsewhere}),
                )
            )
        else:
            skipped[OTHER_PROMPT] = "no pair that is ranked right has another prompt to swap with"

    def _with(self, *names: str) -> list[int]:
        """Pairs that have these texts."""
        numbers = range(len(self.sample.pairs))
        return [p for p in numbers if all((p, name) in self.rewards for name in names)]

    def _clusters(self, numbers: Sequence[int]) -> list[str]:
        return [self.sample.pairs[p].cluster for p in numbers]

    def _mean_change(self, numbers: Sequence[int], name: str, origin: str) -> Estimate:
        """Of reward from the text `origin` to `name`, in standard deviations of the margins."""
        changes = [self.rewards[p, name] - self.rewards[p, origin] for p in numbers]
        return mean_of([change / self.deviation for change in changes], self._clusters(numbers))

    def _kept(self, numbers: Sequence[int]) -> Estimate:
        """Sum of the margins under another prompt over that under their own."""
        kept = [self.rewards[p, OTHER_BETTER] - self.rewards[p, OTHER_WORSE] for p in numbers]
        return ratio_of_sums(
            np.array(kept), self.margin_P[list(numbers)], np.array(self._clusters(numbers))
        )

    def _contest(self, number: int, name: str, rival: str) -> Contest:
        pair = self.sample.pairs[number]
        group = pair.group.group
        return Contest(
            item=self.sample.items[number, name],
            rival=self.sample.items[number, rival].response.text,
            beyond=self.rewards[number, name] - self.rewards[number, rival],
            cluster=pair.cluster,
            file=group.file,
            line=group.line,
            id=group.id,
        )

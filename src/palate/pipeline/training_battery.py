"""The battery in a training run: when it runs, and what each checkpoint logs of it.

Training knows nothing of the battery, so the two are joined here.

Legend: N pairs.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState

from palate.errors import PalateError
from palate.evaluation.battery import Battery, read_battery, run_battery
from palate.evaluation.calibration import fit_temperature, is_at_bound
from palate.evaluation.outcomes import Outcome
from palate.objectives import Ties
from palate.pipeline.config import TrainConfig
from palate.pipeline.prepare import Prepared
from palate.preferences import Comparison, PreferenceGroup
from palate.rendering import RenderedGroup, Renderer
from palate.rendering.store import token_counts
from palate.training.trainer import Measure, RewardTrainer

MAX_SHARE = 0.1
"""Of the tokens that a training processes, with those of the backward passes: what the battery may
cost without being asked for."""
PASSES = 3
"""Forward and backward, in units of a forward pass."""
PREFIX = "battery_"


@dataclass(frozen=True, kw_only=True)
class BatteryPlan:
    """When the battery runs."""

    pairs: Sequence[RenderedGroup] = ()
    """As token ids; empty where it runs at no checkpoint."""
    at_end: bool = False
    why: str = "off"
    """In words."""


NO_BATTERY = BatteryPlan()


def plan_battery(config: TrainConfig, prepared: Prepared, renderer: Renderer) -> BatteryPlan:
    """When it runs. Raises PalateError where it was asked for and can't be rendered."""
    asked = config.battery
    if asked == "off":
        return NO_BATTERY
    try:
        groups = rendered_battery(read_battery(), renderer)
    except PalateError as error:  # a template may refuse a plain question
        if asked != "auto":
            raise
        return BatteryPlan(why=f"not made; its texts can't be rendered: {error}")
    has_checkpoints = config.training.method != "frozen"
    num_tokens = sum(group.num_tokens for group in groups)
    trained = PASSES * sum(token_counts(prepared.train)) * _num_epochs(config, prepared)
    once = num_tokens / trained
    often = once * (1 + _num_epochs(config, prepared) * config.training.evaluations_per_epoch)
    at_end = asked != "auto" or once <= MAX_SHARE
    at_checkpoints = has_checkpoints and (
        asked == "checkpoints" or (asked == "auto" and often <= MAX_SHARE)
    )
    when = "at each checkpoint" if at_checkpoints else "at the end" if at_end else "not made"
    cost = often if at_checkpoints else once
    why = f"{when}; {len(groups)} pairs, {cost:.1%} of the training's tokens"
    if not at_end:
        why += "; `battery: end` asks for it"
    return BatteryPlan(pairs=groups if at_checkpoints else (), at_end=at_end, why=why)


def _num_epochs(config: TrainConfig, prepared: Prepared) -> float:
    settings = config.training
    if not settings.max_steps:
        return settings.epochs
    return settings.max_steps * settings.prompts_per_step / len(prepared.train)


def rendered_battery(battery: Battery, renderer: Renderer) -> list[RenderedGroup]:
    """Each pair as a group of two sequences, chosen and rejected; too long answers are cut."""
    whole = copy(renderer)
    whole.lengths = replace(renderer.lengths, overlong="cut")
    groups = []
    for item in battery.items:
        prompt, prompt_ids, _ = whole.fitted_prompt(item.prompt)
        sides = (item.chosen, item.rejected)
        sequences = tuple(whole.response_ids(prompt, side, prompt_ids)[0] for side in sides)
        comparisons = (Comparison(better=0, worse=1),)
        pair = PreferenceGroup(item.prompt, sides, comparisons, file=item.file, line=item.line)
        groups.append(RenderedGroup(sequences, comparisons, pair, (0, 1)))
    return groups


class BatteryAtCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Puts the share of pairs that are won, and passed, into the training log at each checkpoint.

    With validation data it is part of the evaluation before the checkpoint, and the validation part
    gives the temperature in whose unit a pass is a margin of 1; without, a pass is any win. All
    processes take part in the scoring.
    """

    def __init__(self, groups: Sequence[RenderedGroup], ties: Ties) -> None:
        self.battery = read_battery()
        self.groups = groups
        self.ties = ties
        self.trainer: RewardTrainer | None = None

    def beside(
        self, measure: Measure, validation_sets: Iterable[Sequence[RenderedGroup]]
    ) -> Measure:
        """`measure`, and on the first of the validation sets the battery too."""
        first = next(iter(validation_sets), None)

        def both(
            groups: Sequence[RenderedGroup], rewards: Sequence[np.ndarray]
        ) -> Mapping[str, float]:
            measured = dict(measure(groups, rewards))
            if groups is first:
                outcomes = [Outcome(g, r) for g, r in zip(groups, rewards, strict=True)]
                temperature = fit_temperature(outcomes, self.ties)
                measured |= self._logged(None if is_at_bound(temperature) else temperature)
            return measured

        return both

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.trainer is not None
        # A run that is being stopped writes its checkpoint at once.
        is_stopped = self.trainer.interrupt.signal is not None
        if control.should_save and not is_stopped and not self.trainer.validation_sets:
            self.trainer.log(self._logged(None))

    def _logged(self, temperature: float | None) -> dict[str, float]:
        assert self.trainer is not None
        rewards = np.concatenate(self.trainer.rewards_of(self.groups)).tolist()
        result = run_battery(lambda _: rewards, self.battery, temperature)
        return {
            f"{PREFIX}won": result.overall.won.value,
            f"{PREFIX}passed": result.overall.passed.value,
            **{f"{PREFIX}won_{c.name}": c.won.value for c in result.categories},
        }

"""Rewards of texts that were made for measuring: probes and the battery.

Legend: N items.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from palate.errors import PalateError
from palate.preferences.types import ScoringItem
from palate.scoring.scorer import Scorer

Score = Callable[[Sequence[ScoringItem]], Sequence[float]]
"""Rewards of items, in their order; `Scorer.score_items` is one."""
TooLong = Callable[[ScoringItem], bool]
"""Whether an item's answer is longer than the model takes."""


def rewards_of(score: Score, items: Sequence[ScoringItem], places: Sequence[str]) -> np.ndarray:
    """Rewards as float64, shape N. Raises PalateError for one that is no finite number, with what
    `places` says of it."""
    reward_N = np.asarray(score(items), dtype=float)
    assert reward_N.shape == (len(items),), f"{reward_N.shape} rewards of {len(items)} items"
    bad = np.flatnonzero(~np.isfinite(reward_N))
    if len(bad):
        raise PalateError(
            f"{places[bad[0]]}: the reward is {reward_N[bad[0]]}, no finite number"
            f" ({len(bad)} of {len(items)} texts); the model's weights or its dtype are at fault"
        )
    return reward_N


def too_long(scorer: Scorer) -> TooLong:
    """Of items under the limit that the model was trained with."""
    renderer = scorer.renderer
    former: list[Any] = []
    fitted: list[Any] = []

    def is_over(item: ScoringItem) -> bool:
        given = (item.tools, item.template_arguments)
        asked = (item.prompt, *given)
        # The texts of a pair follow one another and share their prompt.
        if not former or any(a is not b for a, b in zip(former, asked, strict=True)):
            former[:] = asked
            fitted[:] = renderer.fitted_prompt(item.prompt, *given)[:2]
        return renderer.response_ids(fitted[0], item.response, fitted[1], *given)[1] > 0

    return is_over


def cutting(scorer: Scorer) -> Scorer:
    """The same scorer, cutting what is too long instead of refusing it; the model is shared."""
    renderer = copy(scorer.renderer)
    renderer.lengths = replace(renderer.lengths, overlong="cut")
    made = Scorer(scorer.model, renderer, scorer.sidecar, scorer.tokens_per_microbatch)
    made.length_correction = scorer.length_correction
    made.trust, made.no_trust = scorer.trust, scorer.no_trust
    return made

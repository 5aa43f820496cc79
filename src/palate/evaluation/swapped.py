"""The model itself without its prompts: the same answers, scored under the prompts of others.

A model that reads the prompt falls to about the prompt-blind accuracy; one that keeps its accuracy
judges answers by how they look.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palate.errors import PalateError
from palate.evaluation.outcomes import Outcome, decided, prompt_accuracy
from palate.preferences import ScoringItem
from palate.statistics import Estimate, cluster_difference, cluster_mean

NOT_TO_SWAP = "no other prompt to swap with"
"""Reason of the error where the data allow none."""


@dataclass(frozen=True, kw_only=True)
class Swapped:
    """What to score, and what it is compared with."""

    outcomes: tuple[Outcome, ...]
    """The sample, one prompt of each cluster, with the rewards under their own prompts."""
    items: tuple[ScoringItem, ...]
    """Their answers, all of one prompt together, each prompt replaced by another's."""
    num_prompts: int
    """With a decided comparison, of which the sample was drawn."""

    def metrics(self, rewards: Sequence[float]) -> dict[str, Estimate]:
        """Accuracy under swapped prompts, and what the own prompts add on the same sample (paired).

        `rewards` are those of `items`, in their order.
        """
        if len(rewards) != len(self.items):
            raise ValueError(f"{len(rewards)} rewards for {len(self.items)} items")
        ends = np.cumsum([len(o.reward_N) for o in self.outcomes])[:-1]
        parts = np.split(np.asarray(rewards, dtype=float), ends)
        own = [prompt_accuracy(o.group, o.reward_N) for o in self.outcomes]
        swapped = [
            prompt_accuracy(o.group, reward_N)
            for o, reward_N in zip(self.outcomes, parts, strict=True)
        ]
        clusters = [o.cluster for o in self.outcomes]
        return {
            "prompts swapped": cluster_mean(swapped, clusters),
            "accuracy minus prompts swapped": cluster_difference(own, swapped, clusters),
        }


def swap_prompts(
    outcomes: Sequence[Outcome], *, max_prompts: int = 500, salt: str = "swapped prompts"
) -> Swapped:
    """Give the answers of each sampled prompt another prompt, with its tools and arguments.

    The sample is the first prompt with a decided comparison of each cluster, of the `max_prompts`
    clusters with the lowest salted hashes; in the order of the hashes each takes the prompt of the
    next, and the last that of the first, so that none keeps its own and each is used once. Raises
    PalateError with fewer than two clusters.

    Rendering cuts a prompt that is too long, as always; answers are as long as they were, so only a
    model that cuts over-long answers needs a scorer that does (`score_texts.cutting`).
    """
    first: dict[str, Outcome] = {}
    compared = [outcome for outcome in outcomes if decided(outcome.group)]
    for outcome in compared:
        first.setdefault(outcome.cluster, outcome)
    if len(first) < 2:
        raise PalateError(
            f"{len(first)} prompt cluster with a decided comparison: no other prompt to swap with;"
            " give more prompts",
            NOT_TO_SWAP,
        )
    order = sorted(
        first, key=lambda cluster: hashlib.sha256(f"{salt}\x00{cluster}".encode()).digest()
    )
    sample = [first[cluster] for cluster in order[:max_prompts]]
    items: list[ScoringItem] = []
    for outcome, other in zip(sample, [*sample[1:], sample[0]], strict=True):
        donor = other.group.group
        for response in outcome.group.responses:
            items.append(ScoringItem(donor.prompt, response, donor.tools, donor.template_arguments))
    return Swapped(outcomes=tuple(sample), items=tuple(items), num_prompts=len(compared))

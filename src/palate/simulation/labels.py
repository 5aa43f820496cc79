"""A scene with votes: preference groups whose truth is known.

Legend: G groups, K answers of a group.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from palate.preferences import Comparison, Message, PreferenceGroup, Response, Vote, VoteSettings
from palate.preferences.votes import comparisons_from_ranking, comparisons_from_votes
from palate.simulation.annotators import Votes, draw_votes
from palate.simulation.scenes import MODELS, Scene
from palate.simulation.settings import LabelSettings


@dataclass(frozen=True)
class Simulated:
    """What people said of a scene. `votes` are arrays; `groups` are made when first asked for."""

    scene: Scene
    settings: LabelSettings
    votes: Votes
    name: str = ""
    """World and twin, for the groups' meta."""

    @property
    def parts(self) -> Mapping[str, tuple[int, ...]]:
        """Indices of the groups of each part by its name; empty where there is no split."""
        return self.scene.parts

    @cached_property
    def utility(self) -> tuple[np.ndarray, ...]:
        """True utility in logits of each group's answers (K each)."""
        return tuple(self.scene.utility_N[self.scene.answer_GK])

    @cached_property
    def groups(self) -> tuple[PreferenceGroup, ...]:
        """The preference groups, in order; `meta` holds the truth.

        A single vote on a group is taken at its word, with probability 1; several are counted as
        votes always are, (k + 1/2) / (n + 1).
        """
        return tuple(_groups(self))

    def part(self, name: str) -> tuple[PreferenceGroup, ...]:
        """The groups of a part. Raises KeyError where there is none of that name."""
        return tuple(self.groups[index] for index in self.parts[name])


def label(scene: Scene, settings: LabelSettings = LabelSettings(), name: str = "") -> Simulated:
    """Draw annotators' votes on a scene: milliseconds for thousands of pairs."""
    return Simulated(scene, settings, draw_votes(scene, settings), name)


def _groups(simulated: Simulated) -> list[PreferenceGroup]:
    scene, votes = simulated.scene, simulated.votes
    responses = {
        n: Response(scene.texts[n], model=MODELS[scene.features["source"][n]])
        for n in np.unique(scene.answer_GK).tolist()
    }
    votes_of: list[list[Vote]] = [[] for _ in range(scene.num_groups)]
    for group, annotator, shown, ranking in zip(
        votes.group_V.tolist(),
        votes.annotator_V.tolist(),
        votes.shown_VK.tolist(),
        votes.ranking_VK.tolist(),
        strict=True,
    ):
        tiers = tuple((place,) for place in ranking)
        votes_of[group].append(Vote(f"annotator {annotator}", tiers, shown=tuple(shown)))
    made = []
    for g, members in enumerate(scene.answer_GK.tolist()):
        of_group = tuple(votes_of[g])
        made.append(
            PreferenceGroup(
                (Message("user", scene.prompts[scene.prompt_G[g]]),),
                tuple(responses[n] for n in members),
                _comparisons(len(members), of_group),
                votes=of_group,
                id=f"{scene.style}-{scene.seed}-{g}",
                file=simulated.name or scene.style,
                line=g + 1,
                meta=_truth(simulated, g),
            )
        )
    return made


def _comparisons(num_responses: int, votes: tuple[Vote, ...]) -> tuple[Comparison, ...]:
    if len(votes) == 1:
        return comparisons_from_ranking(votes[0].ranking)
    return comparisons_from_votes(num_responses, votes, VoteSettings())


def _truth(simulated: Simulated, group: int) -> Mapping[str, Any]:
    return {
        "world": simulated.name,
        "seed": simulated.settings.seed,
        "utility": simulated.utility[group].tolist(),
        "planted": dict(simulated.settings.planted()),
    }

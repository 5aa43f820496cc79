"""Votes of annotators on a scene, drawn by array arithmetic: one scene is labelled many times.

Legend: V votes, G groups, K answers of a group, A annotators, L leanings, N answers, C comparisons.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from palate.simulation.scenes import Scene
from palate.simulation.settings import LEANINGS, LabelSettings


@dataclass(frozen=True)
class Votes:
    """Who saw what in which order and ranked it how. Places are those in the group, 0 to K - 1."""

    group_V: np.ndarray
    annotator_V: np.ndarray
    shown_VK: np.ndarray
    """Places in the order in which they were shown."""
    ranking_VK: np.ndarray
    """Places, best first; there are no ties."""
    taste_AL: np.ndarray
    """Own coefficients of each annotator, in logits, by `LEANINGS`."""

    def comparisons(self, scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each two answers in each vote: the better and the worse (indices of answers) and their
        group, C each. With two answers to a group, one for each vote, in the order of the votes."""
        answer_VK = np.take_along_axis(scene.answer_GK[self.group_V], self.ranking_VK, axis=1)
        pairs = list(combinations(range(answer_VK.shape[1]), 2))
        better_C = np.concatenate([answer_VK[:, high] for high, _ in pairs])
        worse_C = np.concatenate([answer_VK[:, low] for _, low in pairs])
        return better_C, worse_C, np.tile(self.group_V, len(pairs))


def draw_votes(scene: Scene, settings: LabelSettings) -> Votes:
    """All votes on a scene.

    Each knob draws from a stream of its own, so that the clean twin of the same seed has the same
    annotators, display orders and noise.
    """
    stream = _streams(settings.seed)
    annotator_GE = _assigned(stream["who"], scene.num_groups, settings)
    group_V = np.repeat(np.arange(scene.num_groups), settings.votes_per_group)
    annotator_V = annotator_GE.reshape(-1)
    num_votes, num_responses = len(group_V), scene.num_responses
    shown_VK = np.argsort(stream["order"].random((num_votes, num_responses)), axis=1)
    taste_AL = _tastes(stream["taste"], settings)
    answer_VK = scene.answer_GK[group_V]
    logit_VK = _logits(scene, settings)[answer_VK]
    if taste_AL.any():
        leaning_NL = np.stack([scene.leanings[name] for name in LEANINGS], axis=1)
        logit_VK = logit_VK + np.einsum("vkl,vl->vk", leaning_NL[answer_VK], taste_AL[annotator_V])
    logit_VK[np.arange(num_votes), shown_VK[:, 0]] += settings.position
    noise_VK = stream["noise"].gumbel(size=logit_VK.shape)
    temperature_V = settings.temperature * _tiredness(annotator_V, settings.fatigue)
    ranking_VK = np.argsort(-(logit_VK / temperature_V[:, None] + noise_VK), axis=1)
    flipped_V = stream["flip"].random(num_votes) < settings.flip
    ranking_VK = np.where(flipped_V[:, None], ranking_VK[:, ::-1], ranking_VK)
    return Votes(group_V, annotator_V, shown_VK, ranking_VK, taste_AL)


def _streams(seed: int) -> dict[str, np.random.Generator]:
    names = ("who", "order", "taste", "noise", "flip")
    return {name: np.random.default_rng([seed, 10 + place]) for place, name in enumerate(names)}


def _logits(scene: Scene, settings: LabelSettings) -> np.ndarray:
    """Each answer's logit (N) to an annotator without own taste who does not see the order."""
    logit_N = settings.worth * scene.utility_N + settings.source * scene.source_strength
    for name, coefficient in settings.coefficients.items():
        if coefficient:
            logit_N = logit_N + coefficient * scene.leanings[name]
    logits: np.ndarray = logit_N
    return logits


def _assigned(random: np.random.Generator, num_groups: int, settings: LabelSettings) -> np.ndarray:
    """Annotators of each group, all different: G x votes per group.

    Adding Gumbel noise to log shares and taking the greatest draws without replacement with these
    shares (Efraimidis and Spirakis 2006; Kool et al. 2019, 1903.06059).
    """
    num_others = settings.num_annotators - 1
    first = settings.dominance or 1 / settings.num_annotators
    shares_A = np.full(settings.num_annotators, (1 - first) / max(1, num_others))
    shares_A[0] = first
    with np.errstate(divide="ignore"):
        keys_GA = np.log(shares_A) + random.gumbel(size=(num_groups, settings.num_annotators))
    chosen: np.ndarray = np.argsort(-keys_GA, axis=1)[:, : settings.votes_per_group]
    return chosen


def _tastes(random: np.random.Generator, settings: LabelSettings) -> np.ndarray:
    """Own coefficients (A x L); the first annotator's are of one size where that is set."""
    shape = (settings.num_annotators, len(LEANINGS))
    taste_AL = settings.taste * random.standard_normal(shape)
    signs_L = random.choice([-1.0, 1.0], len(LEANINGS))
    if settings.dominant_taste:
        taste_AL[0] = settings.dominant_taste * signs_L
    return taste_AL


def _tiredness(annotator_V: np.ndarray, fatigue: float) -> np.ndarray:
    """Factor of the temperature: 1 at first, grown by `fatigue` with each hundred votes given."""
    order_V = np.argsort(annotator_V, kind="stable")
    starts = np.searchsorted(annotator_V[order_V], annotator_V[order_V])
    given_V = np.empty(len(annotator_V))
    given_V[order_V] = np.arange(len(annotator_V)) - starts
    factor_V: np.ndarray = 1 + fatigue * given_V / 100
    return factor_V

"""How well rewards order the answers of prompts that have more than two.

Legend: N answers of one prompt that have a label.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from palate.evaluation.outcomes import Outcome
from palate.objectives import Ties, soft_target
from palate.statistics import Estimate, cluster_mean

MIN_ANSWERS = 3


@dataclass(frozen=True, kw_only=True)
class PromptRanking:
    """One prompt's answers as the labels and the rewards have them."""

    label_N: np.ndarray
    """Ratings where every answer has one, shares of comparisons won otherwise; not all equal."""
    reward_N: np.ndarray
    is_rated: bool
    cluster: str

    @property
    def tau(self) -> float:
        """Kendall's tau-b (1945, Biometrika 33) of rewards and labels: (concordant - discordant) /
        sqrt((pairs untied in the rewards) (pairs untied in the labels)). 0 where all rewards are
        equal: they say nothing, so the order is no better than any."""
        reward_NN = np.sign(self.reward_N[:, None] - self.reward_N)
        label_NN = np.sign(self.label_N[:, None] - self.label_N)
        untied = np.abs(reward_NN).sum() * np.abs(label_NN).sum()
        return float((reward_NN * label_NN).sum() / np.sqrt(untied)) if untied else 0.0

    @property
    def picked(self) -> float:
        """Label of the answer with the highest reward; the mean where several have it."""
        return float(self.label_N[self.reward_N == self.reward_N.max()].mean())

    @property
    def span(self) -> float:
        return float(np.ptp(self.label_N))

    @property
    def regret(self) -> float:
        """(best label - label of the pick) / (best - worst): 0 is the best answer, 1 the worst."""
        return (float(self.label_N.max()) - self.picked) / self.span

    @property
    def random_regret(self) -> float:
        """What a pick at random has."""
        return float(self.label_N.max() - self.label_N.mean()) / self.span

    @property
    def rank(self) -> float:
        """(answers better than the pick + half of the others as good) / (N - 1); the mean where
        several have the highest reward."""
        better_N = (self.label_N > self.label_N[:, None]).sum(axis=1)
        as_good_N = (self.label_N == self.label_N[:, None]).sum(axis=1) - 1
        rank_N = (better_N + as_good_N / 2) / (len(self.label_N) - 1)
        return float(rank_N[self.reward_N == self.reward_N.max()].mean())


def prompt_ranking(outcome: Outcome, ties: Ties = "half") -> PromptRanking | None:
    """The labels' order of a prompt's answers, with their rewards.

    A label is the answer's rating where every scored answer has one. Otherwise it is the share of
    its comparisons that it won, weighted, a soft label counting as that share of a win; answers in
    no comparison have none and are left out. Where not every two answers were compared, that share
    depends on the rivals too. None with fewer than three labelled answers, or all labels equal.
    """
    responses = outcome.group.responses
    ratings = [response.rating for response in responses if response.rating is not None]
    is_rated = len(ratings) == len(responses)
    label_N = np.array(ratings) if is_rated else _win_shares(outcome, ties)
    has_label_N = np.isfinite(label_N)
    label_N = label_N[has_label_N]
    if len(label_N) < MIN_ANSWERS or not np.ptp(label_N):
        return None
    return PromptRanking(
        label_N=label_N,
        reward_N=outcome.reward_N[has_label_N].astype(float),
        is_rated=is_rated,
        cluster=outcome.cluster,
    )


def _win_shares(outcome: Outcome, ties: Ties) -> np.ndarray:
    """NaN for an answer in no comparison with a weight."""
    won_N = np.zeros(len(outcome.reward_N))
    weight_N = np.zeros(len(outcome.reward_N))
    for c in outcome.group.comparisons:
        target, share = soft_target(c.probability, c.tie, ties)
        for index, part in ((c.better, target), (c.worse, 1 - target)):
            won_N[index] += c.weight * share * part
            weight_N[index] += c.weight * share
    with np.errstate(invalid="ignore"):
        shares: np.ndarray = won_N / weight_N
    return shares


def ranking_metrics(outcomes: Sequence[Outcome], ties: Ties = "half") -> dict[str, Estimate]:
    """Means over the prompts with three or more labelled answers, not all labelled the same.

    Kendall's tau-b; rank of the pick, 0 best to 1 worst; regret of the pick, as a share of the
    span of the prompt's labels, beside that of a pick at random; and in the labels' own unit,
    rating points or share of comparisons won. Nothing where there is no such prompt.
    """
    found = [ranking for o in outcomes if (ranking := prompt_ranking(o, ties)) is not None]
    if not found:
        return {}

    def mean(name: str, members: Sequence[PromptRanking]) -> Estimate:
        return cluster_mean([getattr(r, name) for r in members], [r.cluster for r in members])

    metrics = {
        "Kendall tau": mean("tau", found),
        "rank of the pick": mean("rank", found),
        "best-of-K regret": mean("regret", found),
        "best-of-K regret, random pick": mean("random_regret", found),
    }
    for unit, is_rated in (("rating points", True), ("share of wins", False)):
        members = [r for r in found if r.is_rated == is_rated]
        if members:
            metrics[f"best-of-K regret, {unit}"] = cluster_mean(
                [r.regret * r.span for r in members], [r.cluster for r in members]
            )
    return metrics

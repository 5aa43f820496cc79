"""Bradley-Terry with a learned scale for each annotator.

Legend: N responses, C votes on comparisons, A annotators.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from palate.errors import PalateError
from palate.objectives.bradley_terry import (
    ComparisonBatch,
    Row,
    at_least_float32,
    comparison_losses,
    smoothed,
    soft_target,
)
from palate.objectives.settings import Ties
from palate.preferences.types import Comparison
from palate.rendering import RenderedGroup
from palate.text import plural

PRIOR_DEVIATION = 1.0
"""Of log scales around their mean: nineteen of twenty annotators within a seventh and seven times
the average scale. Weak: as much information as three votes, each 0.34 as below."""
FEW_VOTES = 20
"""Below this a scale is mostly noise. At differences of 1.5 logits one vote's information on a log
scale is s(1.5) s(-1.5) 1.5^2 = 0.34, so 20 votes leave a standard error of 0.39."""


@dataclass(frozen=True)
class Annotators:
    """The annotators of the training data, with the number of comparisons each voted on."""

    num_votes: dict[str, int]

    @classmethod
    def of(cls, groups: Sequence[RenderedGroup]) -> "Annotators":
        """Raises PalateError with fewer than two annotators: one scale is no scale."""
        counts = Counter(
            annotator
            for group in groups
            for comparison in group.comparisons
            for annotator, _ in votes_on(group, comparison)
        )
        if len(counts) < 2:
            num_beside = num_beside_votes(groups)
            raise PalateError(
                "objective.annotators scaled needs votes of two annotators or more, and the"
                f" training data have {len(counts)}; "
                + (
                    f"{plural(num_beside, 'prompt')} with votes beside stated comparisons, which"
                    " stand: set read.votes.recount to count the votes instead, or use pooled"
                    if num_beside
                    else "use pooled"
                )
            )
        return cls(dict(sorted(counts.items())))

    @property
    def num_all(self) -> int:
        """Votes of all annotators."""
        return sum(self.num_votes.values())

    @property
    def vote_share(self) -> Tensor:
        """Each annotator's share of the votes, shape A."""
        counts = torch.tensor([*self.num_votes.values()], dtype=torch.float64)
        return (counts / counts.sum()).float()


def votes_on(group: RenderedGroup, comparison: Comparison) -> Iterator[tuple[str, int]]:
    """(annotator, +1 for `better`, -1 for `worse`, 0 for a tie) of each vote that compares them.

    None where the comparisons were stated: they stand, and votes are only kept beside them.
    """
    if not group.group.votes_counted:
        return
    better, worse = (group.response_index[i] for i in (comparison.better, comparison.worse))
    for vote in group.group.votes:
        low, high = sorted((better, worse))
        said = vote.outcomes().get((low, high))
        if said is not None:
            yield vote.annotator, said if better == low else -said


def num_beside_votes(groups: Sequence[RenderedGroup]) -> int:
    """Groups with votes that no loss reads, since their comparisons were stated."""
    return sum(bool(group.group.votes) and not group.group.votes_counted for group in groups)


@dataclass(frozen=True)
class VoteBatch:
    """Votes on the comparisons of several prompts, each a comparison of its own."""

    votes: ComparisonBatch
    annotator_C: Tensor
    """Index of the annotator; A where there is none, or none that was trained on."""
    share_A: Tensor

    @classmethod
    def gather(
        cls,
        groups: Sequence[RenderedGroup],
        annotators: Annotators,
        ties: Ties = "half",
        label_smoothing: float = 0.0,
    ) -> "VoteBatch":
        """A comparison's weight is shared equally by the votes on it.

        One without votes stays as it is, with the mean scale. Where every vote has that scale, the
        loss is Bradley-Terry's on targets k / n.
        """
        number = {name: index for index, name in enumerate(annotators.num_votes)}
        unknown = len(number)
        rows: list[Row] = []
        owners: list[int] = []
        offset = 0
        for group in groups:
            for c in group.comparisons:
                better, worse = offset + c.better, offset + c.worse
                weight = c.weight / len(group.comparisons)
                votes = list(votes_on(group, c))
                for name, sign in votes:
                    if sign == 0 and ties == "drop":
                        continue
                    target = smoothed((1 + sign) / 2, label_smoothing)
                    rows.append((better, worse, target, 0.0, 0.0, weight / len(votes)))
                    owners.append(number.get(name, unknown))
                if not votes:
                    target, share = soft_target(c.probability, c.tie, ties)
                    target = smoothed(target, label_smoothing)
                    rows.append((better, worse, target, 0.0, 0.0, weight * share))
                    owners.append(unknown)
            offset += len(group.sequences)
        return cls(
            ComparisonBatch.from_rows(rows),
            torch.tensor(owners, dtype=torch.long),
            annotators.vote_share,
        )

    def counted_responses(self) -> Tensor:
        """Indices into the N rewards: one of each vote with a weight."""
        return self.votes.counted_responses()

    def to(self, device: torch.device) -> "VoteBatch":
        return VoteBatch(
            self.votes.to(device), self.annotator_C.to(device), self.share_A.to(device)
        )


def centred(log_scale_A: Tensor, share_A: Tensor) -> Tensor:
    """Log scales with a vote-weighted mean of 0.

    Rewards times c and all scales over c give the same probabilities: without this the scale of
    the rewards would be free.
    """
    return log_scale_A - (share_A * log_scale_A).sum()


def scale_penalty(log_scale_A: Tensor, share_A: Tensor, num_votes: int) -> Tensor:
    """sum(a^2) / (2 PRIOR_DEVIATION^2 num_votes), a the centred log scales; for each prompt.

    Minus the log density of a Gaussian prior, divided by the training votes as the mean loss of
    votes is: where all votes weigh alike the optimum is the posterior's mode. Without it there may
    be no optimum: a scale whose annotator is always or never right has none, and a penalty on the
    head's weights alone would have the weights go to 0 while a scale grows without end.
    """
    centred_A = centred(at_least_float32(log_scale_A), share_A)
    return centred_A.square().sum() / (2 * PRIOR_DEVIATION**2 * num_votes)


def scaled_bradley_terry(reward_N: Tensor, log_scale_A: Tensor, batch: VoteBatch) -> Tensor:
    """Sum over prompts of the votes' weighted losses, P(better) = s(exp(a) d).

    d = reward(better) - reward(worse), a the annotator's centred log scale: a careless annotator's
    scale is small, and their votes pull less (heterogeneous Bradley-Terry-Luce: Jin et al. 2020,
    1912.01211, where the scale is called accuracy). Optimum for one pair on which the annotators
    0 and 1, with as many votes each, choose `better` in shares p and q above 1/2:
    d = sqrt(logit p logit q), exp(a_0) = sqrt(logit p / logit q) = 1 / exp(a_1).
    """
    known_A = centred(log_scale_A, batch.share_A)
    scale_A = torch.cat([known_A, known_A.new_zeros(1)]).exp()
    losses_C = comparison_losses(reward_N, batch.votes, scale_A[batch.annotator_C])
    return (batch.votes.weight_C * losses_C).sum()

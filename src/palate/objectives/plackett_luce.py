"""The Plackett-Luce loss of rankings, whole or of their first k places.

Legend: N responses, L places of rankings (tiers) of one size, m members of each, B answers below
(padded), S subsets of the members of one size s.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from palate.objectives.bradley_terry import ComparisonBatch, at_least_float32, bradley_terry
from palate.objectives.rankings import Placing, placings_of
from palate.objectives.settings import Ties
from palate.rendering import RenderedGroup

NOTHING = -1e30
"""Log of the mass of no answer: finite, since -inf minus -inf has no gradient."""


@dataclass(frozen=True)
class PlacingBatch:
    """Placings of one kind: m members, averaged over their orders or summed."""

    member_Lm: Tensor
    """Index into the N rewards."""
    below_LB: Tensor
    """Index of what is ranked below; 0 where there is nothing."""
    is_below_LB: Tensor
    weight_L: Tensor
    averaged: bool

    @classmethod
    def gather(cls, rows: Sequence[tuple[int, Placing, float]], averaged: bool) -> "PlacingBatch":
        """From (first index of the prompt's rewards, placing, weight)."""
        width = max(1, *(len(placing.below) for _, placing, _ in rows))
        below = [[offset + index for index in placing.below] for offset, placing, _ in rows]
        return cls(
            torch.tensor([[offset + i for i in placing.members] for offset, placing, _ in rows]),
            torch.tensor([indices + [0] * (width - len(indices)) for indices in below]),
            torch.tensor([[place < len(indices) for place in range(width)] for indices in below]),
            torch.tensor([weight for _, _, weight in rows]),
            averaged,
        )

    def to(self, device: torch.device) -> "PlacingBatch":
        return PlacingBatch(
            self.member_Lm.to(device),
            self.below_LB.to(device),
            self.is_below_LB.to(device),
            self.weight_L.to(device),
            self.averaged,
        )


@dataclass(frozen=True)
class RankingBatch:
    """Rankings of several prompts, and the comparisons of prompts without one."""

    placings: tuple[PlacingBatch, ...]
    comparisons: ComparisonBatch

    @classmethod
    def gather(
        cls, groups: Sequence[RenderedGroup], ties: Ties = "half", top_k: int = 0
    ) -> "RankingBatch":
        """A prompt's weight, the mean of its comparisons', is shared equally by its rankings, and
        a ranking's by its choices. Prompts without a ranking keep their comparisons: each is a
        ranking of two. Raises PalateError for a tier that is too large.
        """
        rows: dict[tuple[int, bool], list[tuple[int, Placing, float]]] = defaultdict(list)
        pairs = []
        offset = 0
        for group in groups:
            rankings = placings_of(group, ties, top_k)
            pairs.append((len(group.sequences), () if rankings else group.comparisons))
            weight = sum(c.weight for c in group.comparisons) / len(group.comparisons)
            for ranking in rankings:
                num_choices = sum(placing.num_choices for placing in ranking)
                for placing in ranking:
                    key = (len(placing.members), placing.averaged)
                    rows[key].append((offset, placing, weight / len(rankings) / num_choices))
            offset += len(group.sequences)
        batches = [PlacingBatch.gather(found, key[1]) for key, found in sorted(rows.items())]
        return cls(tuple(batches), ComparisonBatch.gather(pairs, ties))

    def counted_responses(self) -> Tensor:
        """Indices into the N rewards: one of each placing or comparison with a weight."""
        placed = [batch.member_Lm[batch.weight_L > 0, 0] for batch in self.placings]
        return torch.cat([*placed, self.comparisons.counted_responses()])

    def to(self, device: torch.device) -> "RankingBatch":
        return RankingBatch(
            tuple(batch.to(device) for batch in self.placings), self.comparisons.to(device)
        )


def plackett_luce(reward_N: Tensor, batch: RankingBatch) -> Tensor:
    """Sum over prompts of the mean over their rankings of -log P(ranking) / number of choices.

    P(ranking) is the product over places of exp(r of the answer placed there) / sum of exp(r) of
    the answers not yet placed (Plackett 1975; Luce 1959). Of two answers it is Bradley-Terry's
    s(d), and two of many are still ordered with s(d), so a comparison counts as a ranking of two.
    With all rewards equal a ranking of K costs log(K!) / (K - 1). Optimum for three answers of
    which a first place fell in shares p: r = log p + constant.
    """
    loss = bradley_terry(reward_N, batch.comparisons)
    for placing in batch.placings:
        loss = loss + (placing.weight_L * placing_losses(reward_N, placing)).sum()
    return loss


def placing_losses(reward_N: Tensor, batch: PlacingBatch) -> Tensor:
    """-log P(the members are placed next, before all that is below), shape L.

    For one member r against mass b below: -log s(r - log b). For more, over subsets of the members
    that are still to be placed, with T(S) = log(sum of exp(r) over S and below):
    averaged over all orders, each order's loss is the sum of T - r along its way, and a way meets
    each subset of a size equally often: sum over sizes of the mean of T(S), minus the sum of r.
    Summed over all orders: log g(S) = log(sum over i in S of exp(r_i) g(S without i)) - T(S),
    g(empty) = 1, and the loss is -log g(all).
    """
    reward_N = at_least_float32(reward_N)
    member_Lm = reward_N[batch.member_Lm]
    below_L = reward_N[batch.below_LB].where(batch.is_below_LB, NOTHING).logsumexp(-1)
    if member_Lm.shape[1] == 1:
        return -logsigmoid(member_Lm[:, 0] - below_L)
    # Relative to the best member: only differences count, and large rewards keep their digits.
    best_L = member_Lm.detach().amax(-1)
    member_Lm, below_L1 = member_Lm - best_L[:, None], (below_L - best_L)[:, None]
    mean_loss_L = -member_Lm.sum(-1)
    log_mass_LS = torch.zeros_like(below_L1)
    for members_Ss, without_Ss in subsets(member_Lm.shape[1]):
        chosen_LSs = member_Lm[:, members_Ss]
        beside_LS1 = below_L1[:, None].expand(-1, len(members_Ss), 1)
        total_LS = torch.cat([chosen_LSs, beside_LS1], dim=-1).logsumexp(-1)
        mean_loss_L = mean_loss_L + total_LS.mean(-1)
        if not batch.averaged:
            log_mass_LS = (chosen_LSs + log_mass_LS[:, without_Ss]).logsumexp(-1) - total_LS
    return mean_loss_L if batch.averaged else -log_mass_LS[:, 0]


@cache
def subsets(size: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """For each s from 1 to `size`: the S subsets of range(size) with s members, as a table (S, s)
    of members, and a table of the row that each subset without that member has for s - 1."""
    layers = []
    rows: dict[tuple[int, ...], int] = {(): 0}
    for number in range(1, size + 1):
        members = list(combinations(range(size), number))
        without = [[rows[(*m[:i], *m[i + 1 :])] for i in range(number)] for m in members]
        layers.append((torch.tensor(members), torch.tensor(without)))
        rows = {m: row for row, m in enumerate(members)}
    return tuple(layers)

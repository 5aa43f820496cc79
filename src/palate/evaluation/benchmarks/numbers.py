"""A benchmark's numbers with intervals, from what its items earn.

Each number is a sum of coefficients times means over items. A resample draws prompt clusters, and
computes the whole number anew from them, so that the interval of a composite is its own.

Legend: I items, C clusters, P parts (means), V variants of the values, B resamples, K columns of
sums.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from palate.evaluation.benchmarks.definition import Column, Definition, Number, Part
from palate.evaluation.benchmarks.items import Score, ScoredItem
from palate.statistics import Estimate
from palate.statistics.resampling import NUM_RESAMPLES, percentile_interval

MAX_DRAWS_AT_ONCE = 2_000_000
Mean = tuple[str, frozenset[str]]
"""Column and subsets: a part without its coefficient."""


class _Sums(NamedTuple):
    """Sums over items of what is earned, by variant, and of the number of items."""

    earned_BPV: np.ndarray
    number_BP: np.ndarray

    def values(self, number: Number, index: Sequence[int]) -> np.ndarray:
        """The number by resample and variant, shape B, V; `index` places its parts."""
        coefficient_P = np.array([part.coefficient for part in number])
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_BPV = self.earned_BPV[:, index] / self.number_BP[:, index, None]
        values_BV: np.ndarray = np.einsum("p,bpv->bv", coefficient_P, mean_BPV)
        return values_BV


def scores_of(
    definition: Definition, items: Sequence[ScoredItem], seed: int = 0
) -> tuple[dict[str, Score], list[str]]:
    """The numbers by name, and notes on those that can't be computed.

    A number of which a subset has no item is left out, never averaged over the rest. Intervals are
    95 % percentiles of resamples of clusters; there is none, (-inf, inf), where a mean rests on
    fewer than two clusters.
    """
    rewards = [np.array(item.rewards) for item in items]
    lengths = [np.array(item.num_characters, dtype=float) for item in items]
    variants = [
        definition.columns(items, rewards, False),
        definition.columns(items, rewards, True),
        definition.columns(items, lengths, False),
    ]
    member = _members(definition, items, variants[0])
    place = {mean: index for index, mean in enumerate(member)}
    members_PI = np.stack(list(member.values())) if member else np.zeros((0, len(items)), bool)
    earned_PVI = np.array(
        [
            [np.where(member_I, columns[column].earned_I, 0.0) for columns in variants]
            for (column, _), member_I in member.items()
        ]
    ).reshape(len(member), len(variants), len(items))
    _, cluster_I = np.unique([item.cluster for item in items], return_inverse=True)
    total = _Sums(earned_PVI.sum(axis=2)[None], members_PI.sum(axis=1)[None])
    resampled = _resampled(earned_PVI, members_PI, cluster_I, _strata(items, cluster_I), seed)
    scores: dict[str, Score] = {}
    for name, number in definition.numbers.items():
        if not all(_mean(part) in place for part in number):
            continue
        index = [place[_mean(part)] for part in number]
        num_clusters = min(len(set(cluster_I[member_I])) for member_I in members_PI[index])
        n = int(members_PI[index].any(axis=0).sum())
        pairs = zip(total.values(number, index)[0], resampled.values(number, index).T, strict=True)
        estimates = [percentile_interval(float(v), v_B, num_clusters, n) for v, v_B in pairs]
        scores[name] = _score(estimates, _num_ties(number, member, variants[0]))
    return scores, _absences(definition, items, scores)


def _score(estimates: Sequence[Estimate], num_ties: int) -> Score:
    value, half_credit, longer_wins = estimates
    return Score(value=value, half_credit=half_credit, longer_wins=longer_wins, num_ties=num_ties)


def _mean(part: Part) -> Mean:
    return part.column, part.subsets


def _members(
    definition: Definition, items: Sequence[ScoredItem], columns: Mapping[str, Column]
) -> dict[Mean, np.ndarray]:
    """Of each mean, whether an item is part of it, shape I. Means that lack a subset, or have no
    item, are left out."""
    subset_I = np.array([item.subset for item in items])
    present = set(subset_I.tolist())
    means = {_mean(part): None for number in definition.numbers.values() for part in number}
    found = {
        (column, subsets): np.isin(subset_I, list(subsets)) & ~np.isnan(columns[column].earned_I)
        for column, subsets in means
        if subsets <= present
    }
    return {mean: member_I for mean, member_I in found.items() if member_I.any()}


def _absences(
    definition: Definition, items: Sequence[ScoredItem], computed: Mapping[str, Score]
) -> list[str]:
    absent = [name for name in definition.numbers if name not in computed]
    number_of = Counter(item.subset for item in items)
    subsets = sorted({s for n in definition.numbers.values() for part in n for s in part.subsets})
    notes = []
    if absent:
        missing = ", ".join(subset for subset in subsets if not number_of[subset])
        notes.append(f"no item of {missing or 'some of its pairs'}: no {', '.join(absent)}")
    fewer = [
        f"{subset} {number_of[subset]} of {size}"
        for subset, size in definition.sizes.items()
        if 0 < number_of[subset] < size
    ]
    if fewer:
        notes.append(f"fewer items than published: {', '.join(fewer)}")
    return notes


def _num_ties(
    number: Number, member: Mapping[Mean, np.ndarray], columns: Mapping[str, Column]
) -> int:
    means = {_mean(part) for part in number}
    return int(sum(columns[mean[0]].num_ties_I[member[mean]].sum() for mean in means))


def _strata(items: Sequence[ScoredItem], cluster_I: np.ndarray) -> list[np.ndarray]:
    """Clusters that are drawn among themselves: those whose items are in the same subsets.

    So each subset keeps about its size, and a prompt that several subsets share stays one prompt.
    What is alone of its kind is put together, since drawing it again and again would say nothing.
    """
    subsets_C: list[set[str]] = [set() for _ in range(int(cluster_I.max()) + 1)]
    for item, cluster in zip(items, cluster_I, strict=True):
        subsets_C[cluster].add(item.subset)
    by_kind: dict[tuple[str, ...], list[int]] = {}
    for cluster, subsets in enumerate(subsets_C):
        by_kind.setdefault(tuple(sorted(subsets)), []).append(cluster)
    strata = sorted((np.array(s) for s in by_kind.values() if len(s) > 1), key=len)
    alone = [s[0] for s in by_kind.values() if len(s) == 1]
    if len(alone) > 1 or not strata:
        return [*strata, np.array(alone)] if alone else strata
    return [*strata[:-1], np.append(strata[-1], alone).astype(int)]


def _resampled(
    earned_PVI: np.ndarray,
    members_PI: np.ndarray,
    cluster_I: np.ndarray,
    strata: Sequence[np.ndarray],
    seed: int,
) -> _Sums:
    """Sums of each resample: shapes B, P, V and B, P."""
    num_parts, num_variants, num_items = earned_PVI.shape
    columns_KI = np.concatenate([earned_PVI.reshape(-1, num_items), members_PI])
    num_clusters = int(cluster_I.max()) + 1
    sum_CK = np.stack(
        [np.bincount(cluster_I, column_I, num_clusters) for column_I in columns_KI], axis=1
    )
    generator = np.random.default_rng(seed)
    blocks = []
    # In blocks: all draws at once would be B x C numbers.
    num_rows = max(1, MAX_DRAWS_AT_ONCE // num_clusters)
    for start in range(0, NUM_RESAMPLES, num_rows):
        size = min(num_rows, NUM_RESAMPLES - start)
        times_BC = np.zeros((size, num_clusters))
        for stratum in strata:
            times_BC[:, stratum] = generator.multinomial(
                len(stratum), np.full(len(stratum), 1 / len(stratum)), size
            )
        blocks.append(times_BC @ sum_CK)
    sum_BK = np.concatenate(blocks)
    cut = num_parts * num_variants
    return _Sums(sum_BK[:, :cut].reshape(-1, num_parts, num_variants), sum_BK[:, cut:])

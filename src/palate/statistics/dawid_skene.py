"""Who is right how often, without knowing what is right: the one-coin model of Dawid and Skene.

Legend: J judgements, I items, A annotators, K labels, B resamples.
"""

import math
from dataclasses import dataclass

import numpy as np

from palate.statistics.resampling import resampling_units, times_drawn

NUM_RESAMPLES = 100
MAX_ITERATIONS = 500
PRIOR_RIGHT, PRIOR_WRONG = 1.5, 0.5
"""Judgements added to each annotator's: three of four right. Keeps the reliability of somebody with
few judgements off 0 and 1, and the labels from changing their names."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Who said what of which item; each array has one entry for each judgement."""

    label_J: np.ndarray
    """0 to K - 1."""
    item_J: np.ndarray
    """0 to I - 1."""
    annotator_J: np.ndarray
    """0 to A - 1."""
    num_labels: int
    num_items: int
    num_annotators: int


@dataclass(frozen=True, kw_only=True)
class Reliabilities:
    """What expectation maximisation found."""

    reliability_A: np.ndarray
    """Probability that an annotator's judgement is the item's label."""
    posterior_IK: np.ndarray
    """Probability of each label of each item."""
    prior_K: np.ndarray
    """Share of each label."""
    num_iterations: int


def dawid_skene(
    judged: Judged,
    weight_I: np.ndarray | None = None,
    start: Reliabilities | None = None,
    tolerance: float = 1e-6,
) -> Reliabilities:
    """Reliability of each annotator a and posterior of each item's label, by EM.

    P(vote = k | label = k) = p_a, and any other label (1 - p_a) / (K - 1): the one-coin case of
    Dawid and Skene 1979, with two pseudo-judgements an annotator (`PRIOR_RIGHT`). E step:
    log q_ik = log pi_k + sum of log(p_a (K - 1) / (1 - p_a)) over votes for k, up to a constant.
    M step: p_a = (sum of q at what a said + 1.5) / (number + 2), pi = mean of q.

    Starts at the shares of votes, or at `start`. Item i counts `weight_I` times. Ends when no
    reliability moves by more than `tolerance`. Raises ValueError with fewer than two labels.
    """
    if judged.num_labels < 2:
        raise ValueError("reliability needs two labels or more")
    num_items, num_labels = judged.num_items, judged.num_labels
    weights_I = np.ones(num_items) if weight_I is None else weight_I
    weight_J = weights_I[judged.item_J]
    cell_J = judged.item_J.astype(np.int64) * num_labels + judged.label_J
    number_A = np.bincount(judged.annotator_J, weights=weight_J, minlength=judged.num_annotators)

    def shares(value_J: np.ndarray | None) -> np.ndarray:
        flat = np.bincount(cell_J, weights=value_J, minlength=num_items * num_labels)
        return flat.reshape(num_items, num_labels).astype(float)

    def maximised(posterior_IK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        right_J = weight_J * posterior_IK.reshape(-1)[cell_J]
        right_A = np.bincount(judged.annotator_J, right_J, minlength=judged.num_annotators)
        reliability_A = (right_A + PRIOR_RIGHT) / (number_A + PRIOR_RIGHT + PRIOR_WRONG)
        prior_K = weights_I @ posterior_IK + 1
        return reliability_A, prior_K / prior_K.sum()

    if start is None:
        votes_IK = shares(None)
        posterior_IK = (votes_IK + 1 / num_labels) / (votes_IK.sum(axis=1, keepdims=True) + 1)
        reliability_A, prior_K = maximised(posterior_IK)
    else:
        reliability_A, prior_K = start.reliability_A, start.prior_K
    num_iterations = 0
    moved = math.inf
    while moved > tolerance and num_iterations < MAX_ITERATIONS:
        num_iterations += 1
        odds_A = np.log(reliability_A * (num_labels - 1) / (1 - reliability_A))
        log_IK = np.log(prior_K) + shares(odds_A[judged.annotator_J])
        posterior_IK = np.exp(log_IK - log_IK.max(axis=1, keepdims=True))
        posterior_IK /= posterior_IK.sum(axis=1, keepdims=True)
        before_A = reliability_A
        reliability_A, prior_K = maximised(posterior_IK)
        moved = float(np.abs(reliability_A - before_A).max(initial=0))
    return Reliabilities(
        reliability_A=reliability_A,
        posterior_IK=posterior_IK,
        prior_K=prior_K,
        num_iterations=num_iterations,
    )


def reliability_intervals(
    judged: Judged, found: Reliabilities, cluster_I: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % intervals of all reliabilities: logit(p) -+ 1.96 s.

    s is the standard deviation of logit(p) over 100 resamples of clusters of items, each fitted
    anew from `found` (known within 1 / sqrt(200), 7 %). A resample in which an annotator judged
    nothing says nothing of them; the ends are 0 and 1 where fewer than two resamples do.
    """
    unit_I, num_units = resampling_units(cluster_I, seed)
    resampled_BA = np.full((NUM_RESAMPLES, judged.num_annotators), np.nan)
    for row, times_G in enumerate(times_drawn(num_units, NUM_RESAMPLES, seed)):
        weight_I = times_G[unit_I]
        again = dawid_skene(judged, weight_I, start=found, tolerance=1e-4)
        seen_A = np.bincount(
            judged.annotator_J, weight_I[judged.item_J], minlength=judged.num_annotators
        )
        resampled_BA[row] = np.where(seen_A > 0, _logit(again.reliability_A), np.nan)
    low_A, high_A = np.zeros(judged.num_annotators), np.ones(judged.num_annotators)
    told_A = np.isfinite(resampled_BA).sum(axis=0) > 1
    if num_units > 1 and told_A.any():
        half_A = 1.959964 * np.nanstd(resampled_BA[:, told_A], axis=0, ddof=1)
        middle_A = _logit(found.reliability_A[told_A])
        low_A[told_A] = 1 / (1 + np.exp(half_A - middle_A))
        high_A[told_A] = 1 / (1 + np.exp(-half_A - middle_A))
    return low_A, high_A


def _logit(share_A: np.ndarray) -> np.ndarray:
    """Of reliabilities, which the pseudo-judgements keep off 0 and 1."""
    odds: np.ndarray = np.log(share_A / (1 - share_A))
    return odds


def determined(item_J: np.ndarray, annotator_J: np.ndarray, num_annotators: int) -> np.ndarray:
    """Whether the data determine each annotator's reliability, shape A.

    Two labels, two annotators who agree in a share s of their common items: (2 p - 1)(2 q - 1) =
    2 s - 1 is one equation for two unknowns. Over all pairs these determine every p where the graph
    of annotators with common items has an odd cycle, three people on an item for instance, and
    leave a whole line of solutions where it has none (the logarithms' equations are a signless
    incidence matrix: of full rank just where a component isn't bipartite). A component isn't
    bipartite where, in two copies of it with every edge leading from one to the other, an
    annotator is connected with their own copy.
    """
    # Here, since all that reads preferences imports this file, and these take a while to import.
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    order = np.argsort(item_J, kind="stable")
    items, annotators = item_J[order], annotator_J[order]
    edges = []
    # The next and the one after the next: with three people on an item they make a triangle.
    for step in (1, 2):
        same = items[step:] == items[:-step]
        edges.append(np.stack([annotators[:-step][same], annotators[step:][same]]))
    one, other = np.concatenate(edges, axis=1)
    apart = one != other
    one, other = one[apart], other[apart]
    ends = (
        np.concatenate([one, one + num_annotators]),
        np.concatenate([other + num_annotators, other]),
    )
    size = 2 * num_annotators
    graph = coo_matrix((np.ones(len(ends[0])), ends), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    connected: np.ndarray = component[:num_annotators] == component[num_annotators:]
    return connected

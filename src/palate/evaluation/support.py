"""Fit what one reward is to be doubted by: distance from the training data, variance of the head.

Legend: N answers, K answers of one prompt, C comparisons, D width of the pooled states, V = 1 + D.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cholesky, solve_triangular
from torch import nn

from palate.errors import PalateError
from palate.evaluation.head_posterior import head_posterior, scaled_differences
from palate.model.heads import Head
from palate.model.support import (
    DISTANCE_LEVELS,
    OUTER_LEVELS,
    HeadPosterior,
    Spread,
    Trust,
    TrustFacts,
)
from palate.objectives import Ties
from palate.preferences import fold_of, prompt_cluster
from palate.rendering import RenderedGroup
from palate.scoring.length_correction import log_length
from palate.scoring.scorer import Scorer
from palate.scoring.states import rewards_and_states, taken_by_plan
from palate.scoring.support import body_dtype
from palate.statistics.moments import Moments

MAX_ANSWERS = 20_000
"""Training answers read: their share of the time of an epoch, without its backward passes."""
MAX_REFERENCE_ANSWERS = 5_000
MIN_ANSWERS = 20
NUM_FOLDS = 5
"""Without held-out answers one in so many prompt clusters is left out of the covariance."""
SALT = "trust"
HELD_OUT = "held-out answers"
LEFT_OUT = "training answers left out of the covariance"


@dataclass
class _Read:
    """What one pass over the answers gathers."""

    moments: Moments = field(default_factory=Moments)
    hessian_DD: np.ndarray | None = None
    """Sum of w p (1 - p) f f' / T^2 over the comparisons read."""
    reference_NV: list[np.ndarray] = field(default_factory=list)
    reference_lengths: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Choice:
    """Which groups are read for what."""

    fitted: Sequence[RenderedGroup]
    """For mean and covariance."""
    reference: Sequence[RenderedGroup]
    compared: Sequence[RenderedGroup]
    """For the posterior; the fitted ones, and those left out of the covariance."""


def fit_trust(
    scorer: Scorer,
    groups: Sequence[RenderedGroup],
    held_out: Sequence[RenderedGroup] = (),
    *,
    ties: Ties = "half",
    max_answers: int = MAX_ANSWERS,
) -> Trust:
    """Support distance and the head's posterior from the training groups, in one scoring pass.

    `groups` are those that the model was trained on, without pairs that the training made itself;
    `held_out` are groups of the same kind that it was not. Mean and covariance (shrunk: see
    `Moments.shrunk`) come from the former, quantiles of the distance and spreads of reward and
    length from the latter. A covariance is fitted to its own data: with about as many answers as
    the states are wide, nearly all answers of the fit lie nearer than any new one. So without
    `held_out`, a fifth of the prompt clusters is left out of mean and covariance and gives the
    quantiles; its states are still those of texts that the body was trained on.

    Of more than `max_answers` answers, those of the prompt clusters with the lowest hashes are
    read (of held-out ones 5,000). Memory: two D x D matrices in float64, and the held-out states.

    The posterior is that of a linear head's weights under a normal prior of mean 0, by a Laplace
    approximation about the trained weights: S^-1 = l I + sum w p (1 - p) f f' / T^2, with f = h(a)
    - h(b), p = s(reward difference / T), T the scorer's temperature, and w the comparison's weight
    divided by the number of its prompt's comparisons, as in the loss. l is where the marginal
    likelihood is highest (MacKay 1992, Neural Computation 4): l |head|^2 = sum e / (e + l), e the
    eigenvalues of the sum.

    Raises PalateError with fewer than 20 answers on either side, for a state or reward that is no
    finite number, and for states that are all alike.
    """
    choice = _choose(groups, held_out, max_answers)
    read = _read(scorer, choice, ties)
    covariance_DD, shrinkage = read.moments.shrunk()
    mean_D = read.moments.mean_D
    whitening_DD = _whitening(covariance_DD)
    found = _posterior(scorer, read, len(groups), len(choice.compared))
    root_DD, posterior, no_posterior = found
    reference_NV = np.concatenate(read.reference_NV).astype(np.float64)
    distance_N = np.linalg.norm((reference_NV[:, 1:] - mean_D) @ whitening_DD, axis=1)
    facts = TrustFacts(
        weights=scorer.sidecar.fingerprint.get("weights", "") if scorer.sidecar else "",
        dtype=body_dtype(scorer.model),
        num_answers=read.moments.num,
        num_clusters=_num_clusters(choice.fitted),
        shrinkage=shrinkage,
        reference=HELD_OUT if held_out else LEFT_OUT,
        num_reference_answers=len(distance_N),
        num_reference_clusters=_num_clusters(choice.reference),
        distance=_spread(distance_N, DISTANCE_LEVELS),
        reward=_spread(reference_NV[:, 0], (*OUTER_LEVELS, 0.5)),
        log_words=_spread(np.array(read.reference_lengths), (*OUTER_LEVELS, 0.5)),
        reward_per_distance=_reward_per_distance(scorer.model.head, covariance_DD),
        posterior=posterior,
        no_posterior=no_posterior,
    )
    return Trust(facts=facts, mean_D=mean_D, whitening_DD=whitening_DD, posterior_DD=root_DD)


def _choose(
    groups: Sequence[RenderedGroup], held_out: Sequence[RenderedGroup], max_answers: int
) -> _Choice:
    chosen = _lowest(groups, max_answers)
    if held_out:
        choice = _Choice(chosen, _lowest(held_out, MAX_REFERENCE_ANSWERS), chosen)
    else:
        left_out = [fold_of(group.group, NUM_FOLDS, SALT) == 0 for group in chosen]
        fitted = [g for g, is_left in zip(chosen, left_out, strict=True) if not is_left]
        reference = [g for g, is_left in zip(chosen, left_out, strict=True) if is_left]
        choice = _Choice(fitted, _lowest(reference, MAX_REFERENCE_ANSWERS), chosen)
    for part, what in ((choice.fitted, "fit"), (choice.reference, "take quantiles from")):
        num_answers = sum(len(group.sequences) for group in part)
        if num_answers < MIN_ANSWERS:
            raise PalateError(
                f"{num_answers} answers to {what} are too few for a support distance; the least is"
                f" {MIN_ANSWERS}: give more training prompts, or held-out ones"
            )
    return choice


def _lowest(groups: Sequence[RenderedGroup], max_answers: int) -> list[RenderedGroup]:
    """Those of the prompt clusters with the lowest hashes, `max_answers` answers at most."""
    digests = [
        hashlib.sha256(f"{SALT} {prompt_cluster(group.group.prompt)}".encode()).digest()
        for group in groups
    ]
    chosen: list[RenderedGroup] = []
    num_answers = 0
    for index in sorted(range(len(groups)), key=lambda index: digests[index]):
        num_answers += len(groups[index].sequences)
        if num_answers > max_answers:
            break
        chosen.append(groups[index])
    return chosen


def _read(scorer: Scorer, choice: _Choice, ties: Ties) -> _Read:
    """One pass over all chosen groups, each scored once."""
    fitted = {id(group) for group in choice.fitted}
    compared = {id(group) for group in choice.compared}
    reference = {id(group) for group in choice.reference}
    every = list({id(g): g for g in (*choice.compared, *choice.reference)}.values())
    read = _Read()
    for indices, pieces in taken_by_plan(
        scorer.model,
        [group.sequences for group in every],
        scorer.tokens_per_microbatch,
        scorer.renderer.pad_id,
        rewards_and_states(scorer.model),
    ):
        states: list[np.ndarray] = []
        differences: list[np.ndarray] = []
        for index, value_KV in zip(indices, pieces, strict=True):
            group = every[index]
            _check_finite(group, value_KV)
            if id(group) in fitted:
                states.append(value_KV[:, 1:])
            if id(group) in compared:
                differences.append(scaled_differences(group, value_KV, scorer.temperature, ties))
            if id(group) in reference:
                read.reference_NV.append(value_KV)
                read.reference_lengths += _log_lengths(group)
        if states:
            read.moments.add(np.concatenate(states))
        if differences and isinstance(scorer.model.head, nn.Linear):
            difference_CD = np.concatenate(differences)
            product_DD = difference_CD.T @ difference_CD
            read.hessian_DD = product_DD + (0 if read.hessian_DD is None else read.hessian_DD)
    return read


def _check_finite(group: RenderedGroup, value_KV: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(value_KV).all(axis=1))
    if len(bad):
        where = f"{group.group.file or 'group'}:{group.group.line}"
        raise PalateError(
            f"{where}: response {group.response_index[bad[0]]} has a pooled state or reward that is"
            " no finite number; the model's weights or its dtype are at fault"
        )


def _log_lengths(group: RenderedGroup) -> list[float]:
    return [log_length(response.text) for response in group.responses]


def _whitening(covariance_DD: np.ndarray) -> np.ndarray:
    """W with W W' the inverse: that of the transposed Cholesky factor."""
    try:
        lower_DD = cholesky(covariance_DD, lower=True)
    except np.linalg.LinAlgError as error:
        raise PalateError(
            "the pooled states of the training answers do not differ, or not in enough directions,"
            " so there is no distance among them; another body or pooling tells them apart"
        ) from error
    whitening: np.ndarray = solve_triangular(
        lower_DD, np.eye(len(lower_DD)), lower=True, overwrite_b=True
    ).T
    return whitening


def _posterior(
    scorer: Scorer, read: _Read, num_prompts: int, num_prompts_read: int
) -> tuple[np.ndarray | None, HeadPosterior | None, str]:
    """Root of the covariance of the head's weights, with how it was found; or why there is none."""
    head = scorer.model.head
    if not isinstance(head, nn.Linear):
        return None, None, "it is for linear heads, and this model has an MLP head"
    if read.hessian_DD is None or not read.hessian_DD.any():
        return None, None, "no training comparison with a weight tells two pooled states apart"
    weight_D = head.weight.detach().float().cpu().numpy()[0].astype(np.float64)
    if not weight_D.any():
        return None, None, "the head is zero: it has not been trained"
    hessian_DD = read.hessian_DD * (num_prompts / num_prompts_read)
    root_DD, precision, at_bound = head_posterior(hessian_DD, weight_D)
    about = HeadPosterior(
        prior_precision=precision,
        at_bound=at_bound,
        temperature=scorer.temperature,
        num_prompts=num_prompts,
        num_prompts_read=num_prompts_read,
    )
    return root_DD, about, ""


def _reward_per_distance(head: Head, covariance_DD: np.ndarray) -> float | None:
    if not isinstance(head, nn.Linear):
        return None
    weight_D = head.weight.detach().float().cpu().numpy()[0].astype(np.float64)
    return float(np.sqrt(weight_D @ covariance_DD @ weight_D))


def _spread(value_N: np.ndarray, levels: Sequence[float]) -> Spread:
    """With quantiles q as order statistics, of which (n + 1) q lie no higher: a new value lies
    beyond with probability 1 - q or less while that is one of them, and they are cut at the
    extremes where it is none."""
    ordered_N = np.sort(value_N)
    quantiles: dict[str, float] = {}
    for level in sorted(levels):
        upper = int(np.ceil((len(ordered_N) + 1) * level))
        lower = int(np.floor((len(ordered_N) + 1) * level))
        place = upper if level >= 0.5 else lower
        quantiles[f"{level:g}"] = float(ordered_N[min(max(place, 1), len(ordered_N)) - 1])
    return Spread(mean=float(value_N.mean()), std=float(value_N.std()), quantiles=quantiles)


def _num_clusters(groups: Sequence[RenderedGroup]) -> int:
    return len({prompt_cluster(group.group.prompt) for group in groups})

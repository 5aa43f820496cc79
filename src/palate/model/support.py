"""What is stored of a reward model's training data, so that one reward can be doubted.

`trust/trust.safetensors` holds mean and whitening of the pooled states, and the root of the head's
posterior covariance; `trust` in `reward_model.json` holds all numbers that a person would read. The
folder keeps the file from servers that take every safetensors file beside `config.json` for
weights, and out of the hash of the weights.

Legend: N answers, P differences of two answers, D width of the pooled states.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save
from scipy.special import expit

from palate.artifacts.files import atomic_path, sha256_file
from palate.errors import PalateError
from palate.model.checkpoint import (
    MAX_HASHED_BYTES,
    SIDECAR,
    Sidecar,
    read_sidecar,
    weights_hash,
    write_sidecar,
)

TRUST_FILE = "trust/trust.safetensors"
DISTANCE_LEVELS = (0.5, 0.9, 0.95, 0.99)
OUTER_LEVELS = (0.001, 0.999)
FIT_AGAIN = "fit it again (docs/trust.md)"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A quantity over the reference answers."""

    mean: float
    std: float
    quantiles: Mapping[str, float]
    """Level, such as "0.95", to value."""

    def quantile(self, level: float) -> float:
        """Raises KeyError for a level that is not stored."""
        return self.quantiles[f"{level:g}"]


@dataclass(frozen=True, kw_only=True)
class HeadPosterior:
    """How the covariance of a linear head's weights was found."""

    prior_precision: float
    """1 / variance of each weight before the data; it has the highest marginal likelihood."""
    at_bound: bool
    """Whether the likelihood would rise further beyond the range that was searched."""
    temperature: float
    """Margins were divided by it in the likelihood."""
    num_prompts: int
    """Training prompts that the likelihood stands for."""
    num_prompts_read: int
    """Those of them that were read; the sum over them was scaled up."""


@dataclass(frozen=True, kw_only=True)
class TrustFacts:
    """What trust was fitted on, and the quantiles to read it by."""

    weights: str
    """Fingerprint of the weights whose states these are; "" for a model that palate did not
    write."""
    dtype: str
    """Of the body, when the states were computed."""
    num_answers: int
    """Training answers behind mean and covariance."""
    num_clusters: int
    shrinkage: float
    """Share of the covariance that is a multiple of the identity, 0 to 1."""
    reference: str
    """The answers behind the spreads, which have no part in mean and covariance: held-out ones, or
    training answers that were left out for it."""
    num_reference_answers: int
    num_reference_clusters: int
    distance: Spread
    reward: Spread
    log_words: Spread
    """log(1 + words)."""
    reward_per_distance: float | None
    """The most that a reward can rise with one unit of distance from the mean; linear heads."""
    posterior: HeadPosterior | None
    no_posterior: str = ""
    """Why there is none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trust:
    """Distance of a state from the training data, and variance of a difference of two rewards."""

    facts: TrustFacts
    mean_D: np.ndarray = field(repr=False)
    whitening_DD: np.ndarray = field(repr=False)
    """Times its transpose it is the inverse of the shrunk covariance."""
    posterior_DD: np.ndarray | None = field(default=None, repr=False)
    """Times its transpose it is the covariance of the head's weights."""

    def whitened(self, state_ND: np.ndarray) -> np.ndarray:
        """States in units in which the training data have mean 0 and covariance 1; float64."""
        white: np.ndarray = (state_ND.astype(np.float64) - self.mean_D) @ self.whitening_DD
        return white

    def distances(self, state_ND: np.ndarray) -> np.ndarray:
        """Mahalanobis distance (1936) of each pooled state from the training data; float64, N.

        d(h) = sqrt((h - m)' C^-1 (h - m)), m mean and C shrunk covariance of training answers.
        """
        distance: np.ndarray = np.linalg.norm(self.whitened(state_ND), axis=1)
        return distance

    def beyond(self, distance: float) -> float:
        """The highest stored level whose quantile of the reference answers the distance exceeds: 0,
        0.5, 0.9, 0.95 or 0.99. At 0.99 fewer than one in a hundred lay as far out."""
        levels = [q for q in DISTANCE_LEVELS if distance > self.facts.distance.quantile(q)]
        return max(levels, default=0.0)

    def variances(self, difference_PD: np.ndarray) -> np.ndarray:
        """Variance of reward differences under the posterior of the head's weights; float64, P.

        Var = f' S f for the difference f of two states; S^-1 = l I + sum w p (1 - p) f f' / T^2
        over the training comparisons (last-layer Laplace approximation; for reward models Yang et
        al. 2024, 2402.13210). Raises PalateError where no posterior was fitted.
        """
        if self.posterior_DD is None:
            raise PalateError(
                f"there is no posterior for reward differences: {self.facts.no_posterior}"
            )
        spread_PD = difference_PD.astype(np.float64) @ self.posterior_DD
        variance: np.ndarray = np.einsum("pd,pd->p", spread_PD, spread_PD)
        return variance

    def pessimistic(
        self,
        reward_N: np.ndarray,
        distance_N: np.ndarray,
        beta: float | None = None,
        level: float = 0.95,
    ) -> np.ndarray:
        """r - beta max(0, d - q): rewards for choosing among answers, such as best of n; float64.

        q is the stored quantile of the reference distances at `level`. By default beta is
        `reward_per_distance`, the least with which no direction out of the data gains: for a linear
        head r(h) <= r(m) + d(h) sqrt(w' C w) (Cauchy and Schwarz), with equality along C w. Raises
        PalateError without beta for another head, or for a level that is not stored.
        """
        if level not in DISTANCE_LEVELS:
            raise PalateError(f"level is {level}; stored are {DISTANCE_LEVELS}")
        slope = self.facts.reward_per_distance if beta is None else beta
        if slope is None:
            raise PalateError(
                "beta must be given: only a linear head has a bound of its reward by distance"
            )
        excess_N = np.maximum(0.0, distance_N - self.facts.distance.quantile(level))
        lowered: np.ndarray = np.asarray(reward_N, dtype=np.float64) - slope * excess_N
        return lowered


def probability_with_variance(margin: float, variance: float, temperature: float) -> float:
    """Probability that the first of two answers is preferred, averaged over the head's posterior.

    s(z / sqrt(1 + pi v / 8)), z = margin / T and v = variance / T^2 (MacKay 1992, Neural
    Computation 4): the mean of s over a normal z, by the probit that is nearest to s. The more
    uncertain, the nearer to one half; the side never changes.
    """
    scaled = margin / temperature / np.sqrt(1 + np.pi * variance / temperature**2 / 8)
    return float(expit(scaled))


def write_trust(directory: Path, trust: Trust) -> None:
    """Store it beside a checkpoint that palate wrote, in place of an earlier one.

    Raises PalateError where there is no `reward_model.json`, or the weights there are others.
    """
    sidecar = read_sidecar(directory)
    if sidecar is None:
        raise PalateError(
            f"{directory}: no {SIDECAR} there to keep trust in; name the model directory of a run"
        )
    num_bytes = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    weights = sidecar.fingerprint.get("weights", "")
    if num_bytes <= MAX_HASHED_BYTES:
        weights = weights_hash(directory)
    if trust.facts.weights != weights:
        raise PalateError(f"{directory}: trust was fitted with other weights; {FIT_AGAIN}")
    tensors = {
        "mean_D": trust.mean_D.astype(np.float64),
        "whitening_DD": np.ascontiguousarray(trust.whitening_DD, np.float32),
    }
    if trust.posterior_DD is not None:
        tensors["posterior_DD"] = np.ascontiguousarray(trust.posterior_DD, np.float32)
    path = directory / TRUST_FILE
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, {"weights": weights}))
    stored = {**asdict(trust.facts), "sha256": sha256_file(path)}
    write_sidecar(directory, replace(sidecar, trust=stored))


def read_trust(directory: Path, sidecar: Sidecar) -> Trust | None:
    """What `write_trust` stored; None where it stored nothing.

    Raises PalateError where it belongs to other weights than the checkpoint's, and for a missing,
    changed or damaged file.
    """
    if sidecar.trust is None:
        return None
    path = directory / TRUST_FILE
    stored = {**sidecar.trust}
    if stored.get("weights") != sidecar.fingerprint.get("weights"):
        raise PalateError(
            f"{directory / SIDECAR}: its trust was fitted with other weights; {FIT_AGAIN}, or"
            " remove the entry trust"
        )
    if sha256_file(path) != stored.pop("sha256", None):
        raise PalateError(f"{path}: not the file that {SIDECAR} names; restore it, or {FIT_AGAIN}")
    try:
        tensors = {name: array.astype(np.float64) for name, array in load_file(path).items()}
        return Trust(facts=_facts(stored), **tensors)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise PalateError(
            f"{directory / SIDECAR}: its trust is damaged: {error}; {FIT_AGAIN}"
        ) from (error)


def _facts(stored: Mapping[str, Any]) -> TrustFacts:
    known = {item.name for item in fields(TrustFacts)}
    values = {name: value for name, value in stored.items() if name in known}
    for name in ("distance", "reward", "log_words"):
        values[name] = Spread(**values[name])
    if values["posterior"] is not None:
        values["posterior"] = HeadPosterior(**values["posterior"])
    return TrustFacts(**values)

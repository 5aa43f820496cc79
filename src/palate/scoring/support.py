"""What scoring says of a reward besides its value."""

from dataclasses import dataclass
from pathlib import Path

from palate.model.checkpoint import Sidecar
from palate.model.reward_model import RewardModel
from palate.model.support import Trust, read_trust

NOT_FITTED = "none was fitted; see docs/trust.md"


@dataclass(frozen=True)
class Supported:
    """A reward, and how far its answer lies from what the model was trained on."""

    reward: float
    support_distance: float
    """Mahalanobis distance of the pooled state from the training data."""
    beyond: float
    """Highest of 0, 0.5, 0.9, 0.95, 0.99 that is the share of reference answers nearer to the
    training data than this one; 0.99: fewer than one in a hundred lay as far out."""


@dataclass(frozen=True)
class Compared:
    """Two answers to one prompt, with what is not known of their difference."""

    probability: float
    """That the first is preferred, averaged over the head's posterior: nearer to one half than
    `compare` gives."""
    margin: float
    """Reward of the first less that of the second."""
    margin_std: float
    """Standard deviation of the margin under the head's posterior, in units of the reward."""
    support_distances: tuple[float, float]


def body_dtype(model: RewardModel) -> str:
    """Such as float32."""
    return str(model.transformer.dtype).removeprefix("torch.")


def stored_trust(
    model: RewardModel, directory: Path, sidecar: Sidecar, may_differ: bool
) -> tuple[Trust | None, str]:
    """The checkpoint's trust, or None and why. `may_differ`: the loaded weights need not be those
    of the training. Raises PalateError for stored values that are stale or damaged."""
    if sidecar.trust is None:
        return None, NOT_FITTED
    if may_differ:
        return None, "it was fitted with the weights as they were trained, not as loaded here"
    trust = read_trust(directory, sidecar)
    dtype = body_dtype(model)
    if trust is not None and trust.facts.dtype != dtype:
        return None, f"it was fitted in {trust.facts.dtype}, and the model is loaded in {dtype}"
    return trust, NOT_FITTED

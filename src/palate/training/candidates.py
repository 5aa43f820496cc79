"""A trained head, to be judged against others of the same run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from palate.model.heads import Head


@dataclass(frozen=True)
class Candidate:
    """A head after so many steps, or for one penalty."""

    head: Head
    """Reads features as they are."""
    learned: Mapping[str, Tensor]
    """What the objective learned with it."""
    loss: float
    """Mean over the training prompts, without a penalty on weights."""
    num_steps: int
    """Of the optimiser, since the start of the run."""
    about: Mapping[str, float]
    """What sets it apart: its penalty or its epoch."""


Judge = Callable[[Candidate], bool]
"""Sees every candidate once, in order; says whether it is better than all before."""

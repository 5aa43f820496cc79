"""Which objective, and its options."""

import difflib
import math
from dataclasses import dataclass
from typing import Literal, get_args

from palate.errors import PalateError
from palate.objectives.covariates import NUISANCES

Ties = Literal["half", "drop"]
"""What a loss that knows no ties makes of tie votes: half a win each, or nothing."""

Kind = Literal["bradley-terry", "davidson", "rao-kupper", "plackett-luce", "hinge", "regression"]

_LOG_EXP = (
    "log-exp is the Bradley-Terry loss, written so that it overflows: set objective.kind"
    " bradley-terry"
)
OTHER_NAMES = dict.fromkeys(("log-exp", "log_exp", "logexp", "LogExpLoss"), _LOG_EXP)
"""What other trainers call an objective, and what to set here."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What is minimised. Equations, sources and measured results: docs/objectives.md."""

    kind: Kind = "bradley-terry"
    """bradley-terry; davidson and rao-kupper model ties with a learned width; plackett-luce takes
    rankings; hinge; regression on ratings is a baseline."""
    ties: Ties = "half"
    """A tie vote counts as half a win for each side, or not at all: in objectives that don't model
    ties, and in the loss and temperature of every evaluation."""
    label_smoothing: float = 0.0
    """Share of each comparison's probability that is given to the other side, from 0 to below
    0.5. Not with plackett-luce or regression."""
    hinge_margin: float = 1.0
    """hinge: difference of rewards below which there is a loss; a comparison's own margin is
    added to it."""
    top_k: int = 0
    """plackett-luce: only the first k places of a ranking count; 0 = all. A tie that begins among
    them counts whole."""
    annotators: Literal["pooled", "scaled"] = "pooled"
    """scaled: each annotator's votes have a learned scale, so that noise weighs less; needs
    votes. Bradley-Terry only."""
    nuisance: tuple[str, ...] = ()
    """What the annotators may go by besides quality: log_length, markdown, markdown_amount,
    closing, opener, agreement, hedge, confidence, first_shown. Each has a learned weight in the
    logit and none in the reward (docs/fixes.md). Bradley-Terry, Davidson and Rao-Kupper only."""
    centring: float = 0.0
    """Weight of the mean squared sum of the two rewards of a comparison; 0 = none."""
    sum_to_zero: float = 0.0
    """Weight of the squared mean reward of a step; 0 = none. Costs a second forward pass where a
    step has several microbatches."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            hint = f"; {OTHER_NAMES[self.kind]}" if self.kind in OTHER_NAMES else ""
            raise PalateError(
                f"objective.kind {self.kind!r} is none of {', '.join(get_args(Kind))}{hint}"
            )
        for name in ("centring", "sum_to_zero"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise PalateError(f"objective.{name} is {value}, must be a number of 0 or more")
        if not 0 <= self.label_smoothing < 0.5:
            raise PalateError(
                f"objective.label_smoothing is {self.label_smoothing}, must be in [0, 0.5)"
            )
        if not 0 < self.hinge_margin < math.inf:
            raise PalateError(f"objective.hinge_margin is {self.hinge_margin}, must be above 0")
        if self.top_k < 0:
            raise PalateError(f"objective.top_k is {self.top_k}, must be 0 or more")
        for name, unset, kinds in (
            ("label_smoothing", 0.0, ("bradley-terry", "davidson", "rao-kupper", "hinge")),
            ("hinge_margin", 1.0, ("hinge",)),
            ("top_k", 0, ("plackett-luce",)),
            ("annotators", "pooled", ("bradley-terry",)),
            ("nuisance", (), ("bradley-terry", "davidson", "rao-kupper")),
        ):
            value = getattr(self, name)
            if value != unset and self.kind not in kinds:
                value = ", ".join(value) if isinstance(value, tuple) else value
                raise PalateError(
                    f"objective.{name} {value} has no effect with objective.kind {self.kind}; it is"
                    f" for {', '.join(kinds)}. Leave it out"
                )
        self._check_nuisance()

    def _check_nuisance(self) -> None:
        for name in self.nuisance:
            if name not in NUISANCES:
                near = difflib.get_close_matches(name, NUISANCES, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise PalateError(
                    f"objective.nuisance {name!r} is none of {', '.join(NUISANCES)}{hint}"
                )
        if len(set(self.nuisance)) < len(self.nuisance):
            raise PalateError(f"objective.nuisance names one twice: {', '.join(self.nuisance)}")
        if self.nuisance and self.annotators == "scaled":
            raise PalateError(
                "objective.nuisance can't be had with objective.annotators scaled: each annotator's"
                " scale would multiply what the nuisance terms add; use pooled, or leave one out"
            )

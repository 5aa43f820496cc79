"""What a stored length calibration takes off a reward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from palate.errors import PalateError
from palate.model.checkpoint import Sidecar
from palate.text.features import STYLE_FEATURES

log_length = STYLE_FEATURES["log words"]
"""log(1 + words) of an answer, as the calibration was fitted on."""


@dataclass(frozen=True)
class LengthCorrection:
    """share * f(log length): f by straight lines between the knots, constant outside them."""

    knots: tuple[float, ...]
    """log(1 + words), rising."""
    values: tuple[float, ...]
    """f at the knots, in units of the reward."""
    share: float
    """From 0 to 1; alpha in docs/fixes.md."""
    temperature: float
    """Divides corrected margins before they become probabilities."""

    @classmethod
    def of_sidecar(cls, name: str, sidecar: Sidecar | None) -> "LengthCorrection":
        """Raises PalateError where none is stored."""
        stored: Mapping[str, Any] | None = sidecar.length_calibration if sidecar else None
        if stored is None:
            raise PalateError(
                f"length_calibration has no effect: {name} has none; fit one with `palate calibrate"
                f" --model {name} --data POOL`, or leave it out"
            )
        try:
            return cls(
                tuple(stored["knots"]),
                tuple(stored["values"]),
                float(stored["alpha"]),
                float(stored["temperature"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PalateError(
                f"{name}: its length_calibration is damaged: {error}; fit it again"
            ) from error

    def of_texts(self, texts: Sequence[str]) -> np.ndarray:
        """What is subtracted from the reward of each answer."""
        lengths = [log_length(text) for text in texts]
        return self.share * np.interp(lengths, self.knots, self.values)

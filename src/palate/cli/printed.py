"""What a verb hands to `main`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Printed:
    """What a verb leaves on stdout: text for people, or one JSON object."""

    text: str
    json: Mapping[str, Any]
    exit_code: int = 0
    """Other than 0 where the verb did its work and what it found is a failure."""

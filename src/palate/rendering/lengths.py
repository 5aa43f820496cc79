"""How long prompts and responses may be, and what happens to longer ones."""

from dataclasses import dataclass, replace
from typing import Literal

from palate.errors import PalateError

DEFAULT_MAX_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class LengthSettings:
    """Limits in tokens."""

    max_prompt_tokens: int = 0
    """A longer prompt loses its oldest turns, then the start of its last one. 0 = half of the
    body's positions, at most 1024."""
    max_response_tokens: int = 0
    """End-of-turn token included. 0 = half of the body's positions, at most 1024."""
    overlong: Literal["leave_out", "cut", "error"] = "leave_out"
    """A longer response: leave_out puts it into the ledger; cut keeps its start, marked unfinished
    (no end-of-turn token); error stops."""

    def __post_init__(self) -> None:
        for name in ("max_prompt_tokens", "max_response_tokens"):
            if getattr(self, name) < 0:
                raise PalateError(f"lengths.{name} is {getattr(self, name)}, must be 0 or more")

    def resolved(self, max_positions: int | None) -> "LengthSettings":
        """The same with the zeros filled in. Raises PalateError when they don't fit the body."""
        half = DEFAULT_MAX_TOKENS if max_positions is None else max_positions // 2
        chosen = replace(
            self,
            max_prompt_tokens=self.max_prompt_tokens or min(half, DEFAULT_MAX_TOKENS),
            max_response_tokens=self.max_response_tokens or min(half, DEFAULT_MAX_TOKENS),
        )
        total = chosen.max_prompt_tokens + chosen.max_response_tokens
        if max_positions is not None and total > max_positions:
            raise PalateError(
                f"lengths.max_prompt_tokens {chosen.max_prompt_tokens} + max_response_tokens"
                f" {chosen.max_response_tokens} = {total}, but the body has positions for"
                f" {max_positions} tokens; lower one of them"
            )
        return chosen

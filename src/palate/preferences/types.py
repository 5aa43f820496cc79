"""Preferences as typed values: one that cannot exist is refused where it is made."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from palate.errors import PalateError
from palate.text import first_surrogate

ROLES = ("system", "developer", "user", "assistant", "tool")


def _check_text(text: Any, what: str) -> None:
    if not isinstance(text, str):
        raise PalateError(
            f"{what} is {type(text).__name__} {text!r:.60}, not a string", "wrong type"
        )
    position = first_surrogate(text)
    if position is not None:
        raise PalateError(
            f"{what} holds a lone surrogate at character {position}", "invalid Unicode"
        )


def _check_values(values: Any, what: str) -> None:
    """Tools, arguments and a message's further fields: plain JSON that a template can print."""
    try:
        text = json.dumps(values, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise PalateError(f"{what}: not plain JSON: {error}", "wrong type") from error
    if first_surrogate(text) is not None:
        raise PalateError(f"{what}: a lone surrogate in {text!r:.60}", "invalid Unicode")


@dataclass(frozen=True)
class Message:
    """One turn. `extra` holds what a template may read besides: tool_calls, tool_call_id, name."""

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise PalateError(
                f"role {self.role!r:.60} is none of {', '.join(ROLES)}", "unknown role"
            )
        _check_text(self.content, f"content of a {self.role} message")
        if self.extra:
            _check_values(dict(self.extra), f"fields of a {self.role} message")

    def as_dict(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        return {"role": self.role, "content": self.content, **self.extra}


def _check_prompt(prompt: tuple[Message, ...]) -> None:
    if not prompt:
        raise PalateError("empty prompt: no messages", "empty prompt")
    if prompt[-1].role == "assistant":
        raise PalateError(
            "the prompt ends with an assistant message; it must ask for an answer",
            "prompt ends with an answer",
        )
    if not any(message.content.strip() for message in prompt if message.role != "system"):
        raise PalateError("empty prompt: no text in it", "empty prompt")


def _check_template_values(
    tools: tuple[Mapping[str, Any], ...], template_arguments: Mapping[str, Any]
) -> None:
    if tools:
        _check_values([dict(tool) for tool in tools], "tools")
    if template_arguments:
        _check_values(dict(template_arguments), "template_arguments")


@dataclass(frozen=True)
class Response:
    """One assistant turn. `finished` says whether it reached its end of turn."""

    text: str
    model: str | None = None
    finished: bool = True
    rating: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What its source says about it besides: further ratings, reasons."""

    def __post_init__(self) -> None:
        _check_text(self.text, "response")
        if not self.text.strip():
            raise PalateError("empty response", "empty response")
        if self.meta:
            _check_values(dict(self.meta), "fields of a response")


@dataclass(frozen=True)
class Comparison:
    """`better` beats `worse` (response indices) with `probability`, given no tie.

    probability in [0.5, 1]; tie in [0, 1] is the share of tie votes; margin >= 0 in logits and only
    where probability = 1 and tie = 0 (elsewhere it moves the optimum away from the votes);
    weight >= 0. Raises PalateError on anything else.
    """

    better: int
    worse: int
    probability: float = 1.0
    tie: float = 0.0
    margin: float = 0.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("better", "worse"):
            index = getattr(self, name)
            if isinstance(index, bool) or not isinstance(index, int) or index < 0:
                raise PalateError(f"comparison: {name} is {index!r}, not a response index")
        if self.better == self.worse:
            raise PalateError(f"comparison of response {self.better} with itself")
        for name, low, high in (
            ("probability", 0.5, 1.0),
            ("tie", 0.0, 1.0),
            ("margin", 0.0, math.inf),
            ("weight", 0.0, math.inf),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise PalateError(f"comparison: {name} is {value!r}, not a number")
            if not (low <= value <= high and value <= sys.float_info.max):
                limit = f"[{low:g}, {high:g}]" if math.isfinite(high) else f"{low:g} or more"
                raise PalateError(
                    f"comparison: {name} is {value}, must be {limit}", f"invalid {name}"
                )
        if self.margin > 0 and (self.probability < 1 or self.tie > 0):
            raise PalateError(
                f"comparison: margin {self.margin} on a soft label (probability"
                f" {self.probability}, tie {self.tie}); a margin needs probability 1 and tie 0",
                "margin on a soft label",
            )


@dataclass(frozen=True)
class Vote:
    """One annotator's ranking of the responses, best first; responses in one tuple are tied.

    `strength` says how much better the first is, on the source's own scale (None: not asked).
    `shown` is the order in which the responses were displayed (None: unknown).
    """

    annotator: str
    ranking: tuple[tuple[int, ...], ...]
    strength: float | None = None
    shown: tuple[int, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What the annotator said besides, such as reasons."""
    rest_unordered: bool = False
    """True: the last tier is all that was not chosen. It is worse than what stands before it, and
    nobody has said how its responses compare, so that they are no tie."""

    def __post_init__(self) -> None:
        ranked = [index for tier in self.ranking for index in tier]
        if not ranked or len(ranked) != len(set(ranked)):
            raise PalateError(
                f"vote of {self.annotator!r}: ranking {self.ranking} repeats or is empty"
            )
        if len(ranked) < 2:
            raise PalateError(
                f"vote of {self.annotator!r}: ranking {self.ranking} compares nothing; it must name"
                " two responses or more"
            )
        if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ranked):
            raise PalateError(
                f"vote of {self.annotator!r}: ranking {self.ranking} is not of indices"
            )
        if self.rest_unordered and len(self.ranking) < 2:
            raise PalateError(
                f"vote of {self.annotator!r}: ranking {self.ranking} compares nothing; an"
                " unordered rest needs something before it"
            )
        if self.strength is not None and not (
            isinstance(self.strength, (int, float)) and abs(self.strength) <= sys.float_info.max
        ):
            raise PalateError(f"vote of {self.annotator!r}: strength {self.strength!r}")
        if self.shown is not None and len(self.shown) != len(set(self.shown)):
            raise PalateError(f"vote of {self.annotator!r}: shown order {self.shown} repeats")
        if self.meta:
            _check_values(dict(self.meta), f"fields of the vote of {self.annotator!r}")

    def outcomes(self) -> dict[tuple[int, int], int]:
        """For each two responses that the vote compares, the lower index first: 1, -1 or 0, as the
        first, the second or neither is better."""
        tier_of = {index: tier for tier, members in enumerate(self.ranking) for index in members}
        unordered = len(self.ranking) - 1 if self.rest_unordered else None
        return {
            (i, j): (tier_of[i] < tier_of[j]) - (tier_of[i] > tier_of[j])
            for i, j in combinations(sorted(tier_of), 2)
            if tier_of[i] != tier_of[j] or tier_of[i] != unordered
        }


@dataclass(frozen=True)
class PreferenceGroup:
    """One prompt, its K >= 2 responses, and the comparisons that people made among them."""

    prompt: tuple[Message, ...]
    responses: tuple[Response, ...]
    comparisons: tuple[Comparison, ...]
    votes: tuple[Vote, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    file: str = ""
    line: int = 0
    further_lines: tuple[int, ...] = ()
    """Lines of the rows that were merged into that of `line`."""
    source: str = ""
    """Name of the data source, by which metrics can be told apart."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    votes_counted: bool = field(default=False, compare=False)
    """True: the comparisons were counted from `votes` and nothing else, so that a loss may read the
    votes in their place. False: they were stated, at least in part, and stand; the votes are only
    kept. How the group was read, no part of what it says."""

    @property
    def lines(self) -> tuple[int, ...]:
        """Lines of `file` of all rows that the group is made of."""
        return (self.line, *self.further_lines)

    @property
    def num_rows(self) -> int:
        """Number of input rows that the group is made of: what it counts in a ledger's sum."""
        return len(self.lines)

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        if len(self.responses) < 2:
            raise PalateError(
                f"{len(self.responses)} response(s); a comparison needs two",
                "fewer than two responses",
            )
        if not self.comparisons:
            raise PalateError("no comparison between its responses", "no comparison")
        num_responses = len(self.responses)
        for comparison in self.comparisons:
            for index in (comparison.better, comparison.worse):
                if index >= num_responses:
                    raise PalateError(
                        f"comparison points to response {index}; there are {num_responses},"
                        " counted from 0",
                        "comparison outside the responses",
                    )
        for vote in self.votes:
            named = [index for tier in vote.ranking for index in tier] + [*(vote.shown or ())]
            if max(named) >= num_responses:
                raise PalateError(
                    f"vote of {vote.annotator!r} points to response {max(named)}; there are"
                    f" {num_responses}, counted from 0"
                )
        _check_template_values(self.tools, self.template_arguments)


@dataclass(frozen=True)
class ScoringItem:
    """One prompt and one response to score; no preference is implied."""

    prompt: tuple[Message, ...]
    response: Response
    tools: tuple[Mapping[str, Any], ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        _check_template_values(self.tools, self.template_arguments)

"""Prompts and answers of a benchmark within what the model has positions for.

A published number is of all items, so the lengths of the model's training don't apply here: answers
stay whole as far as the context goes.
"""

from copy import copy
from dataclasses import dataclass
from typing import Literal

from palate.errors import PalateError
from palate.evaluation.benchmarks.items import BenchmarkItem
from palate.model.selfcheck import max_positions
from palate.rendering import LengthSettings, Renderer
from palate.scoring.scorer import Scorer

Ids = tuple[int, ...]
LEAST_PROMPT_SHARE = 1 / 4
"""A prompt keeps so much of the context, or all of itself; answers that need more are over-long."""
_ENDLESS = 2**31


@dataclass(frozen=True, kw_only=True)
class LengthPolicy:
    """What happens to items that are longer than the context."""

    max_tokens: int = 0
    """Prompt, template and answer together. 0 = as many as the body has positions for."""
    overlong: Literal["error", "leave_out", "cut"] = "error"
    """An answer for which cutting the prompt makes no room: error stops; leave_out leaves the item
    out; cut takes its end away. The last two are stated with the numbers."""

    def limit(self, scorer: Scorer) -> int | None:
        """Most tokens of a sequence; None where nothing limits them. Raises PalateError where
        `max_tokens` is more than the body has positions for."""
        positions = max_positions(scorer.model.config)
        if self.max_tokens < 0 or (positions and self.max_tokens > positions):
            raise PalateError(
                f"max_tokens is {self.max_tokens}; the model has positions for {positions} tokens"
            )
        return self.max_tokens or positions


@dataclass(frozen=True)
class Fitted:
    """Token ids of an item's answers, each after its prompt."""

    ids: tuple[Ids, ...]
    num_prompt_cut: int = 0
    """Tokens that the prompt lost; the same for all of its answers."""
    num_answer_cut: int = 0
    """Tokens that the answers lost, together."""


def fitted(
    renderer: Renderer, item: BenchmarkItem, limit: int | None, policy: LengthPolicy
) -> Fitted | None:
    """The item within `limit` tokens; None where it is left out.

    The prompt loses its oldest turns, then the start of its last one, as much as the longest answer
    needs; all answers follow the same prompt. Raises PalateError, naming the item, for an answer
    that is over-long under the policy `error`, and where the template refuses the item.
    """
    whole, _, num_prompt = _rendered(renderer, item, _ENDLESS, _ENDLESS)
    longest = max(map(len, whole))
    if limit is None or longest <= limit:
        return Fitted(whole)
    least = min(num_prompt, int(limit * LEAST_PROMPT_SHARE))
    room = limit - (longest - num_prompt)
    while room >= least:
        try:
            ids, num_cut, _ = _rendered(renderer, item, room, _ENDLESS)
        except PalateError as error:
            if error.reason != "prompt too long":
                raise
            break
        over = max(map(len, ids)) - limit
        if over <= 0:
            return Fitted(ids, num_cut)
        room -= over  # where prompt and answer meet, tokens may be other ones
    if policy.overlong == "error":
        raise PalateError(
            f"{item.where}: its longest answer has {longest - num_prompt} tokens, the context"
            f" {limit}, of which the prompt needs {least}. Leave such items out or cut them"
            " (--suite_lengths.overlong leave_out or cut), which the result then states"
        )
    return None if policy.overlong == "leave_out" else _cut(renderer, item, limit, least)


def _cut(renderer: Renderer, item: BenchmarkItem, limit: int, num_for_prompt: int) -> Fitted:
    _, num_prompt_cut, num_prompt = _rendered(renderer, item, num_for_prompt, _ENDLESS)
    ids, _, _ = _rendered(renderer, item, num_for_prompt, limit - num_prompt)
    whole, _, _ = _rendered(renderer, item, num_for_prompt, _ENDLESS)
    return Fitted(ids, num_prompt_cut, sum(map(len, whole)) - sum(map(len, ids)))


def _rendered(
    renderer: Renderer, item: BenchmarkItem, max_prompt: int, max_response: int
) -> tuple[tuple[Ids, ...], int, int]:
    """(ids of each answer, tokens that the prompt lost, tokens that it has)."""
    within = copy(renderer)
    within.lengths = LengthSettings(
        max_prompt_tokens=max_prompt, max_response_tokens=max_response, overlong="cut"
    )
    rest = (item.tools, item.template_arguments)
    try:
        prompt, prompt_ids, num_cut = within.fitted_prompt(item.prompt, *rest)
        ids = [
            within.response_ids(prompt, response, prompt_ids, *rest)[0]
            for response in item.responses
        ]
    except PalateError as error:
        raise PalateError(f"{item.where}: {error}", error.reason) from error
    return tuple(ids), num_cut, len(prompt_ids)

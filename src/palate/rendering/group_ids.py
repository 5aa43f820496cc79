"""What decides a group's token ids, and what tokenising it finds.

Legend: K responses of a group.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from palate.errors import PalateError
from palate.preferences.types import Message, PreferenceGroup, Response
from palate.rendering.renderer import Renderer


@dataclass(frozen=True)
class GroupText:
    """All of a group that its token ids depend on; of a response its text and whether it ended."""

    prompt: tuple[Message, ...]
    responses: tuple[Response, ...]
    tools: tuple[Mapping[str, Any], ...]
    template_arguments: Mapping[str, Any]

    @property
    def num_characters(self) -> int:
        """Characters that are tokenised: the prompt's alone, and again with each response."""
        prompt = sum(len(message.content) for message in self.prompt)
        return prompt * (1 + len(self.responses)) + sum(len(r.text) for r in self.responses)


def text_of(group: PreferenceGroup) -> GroupText:
    """The group without its labels, place, names and ratings."""
    responses = tuple(Response(r.text, finished=r.finished) for r in group.responses)
    return GroupText(group.prompt, responses, group.tools, group.template_arguments)


@dataclass(frozen=True)
class GroupIds:
    """Prompt + response as token ids, for each of K responses within `max_response_tokens`.

    Labels and the policy for over-long responses change nothing here.
    """

    sequences: tuple[tuple[int, ...], ...]
    num_over: tuple[int, ...]
    """Tokens of each response over the limit, which its sequence lacks."""
    num_cut: int = 0
    """Tokens that the prompt lost."""
    failure: tuple[str, str] | None = None
    """Message and reason of the error that ended it; the responses before it have sequences."""


def tokenise(text: GroupText, renderer: Renderer) -> GroupIds:
    """Token ids of a group's texts; a text that can't be rendered is told, not raised."""
    sequences: list[tuple[int, ...]] = []
    num_over: list[int] = []
    num_cut = 0
    failure = None
    tools, arguments = text.tools, text.template_arguments
    try:
        prompt, prompt_ids, num_cut = renderer.fitted_prompt(text.prompt, tools, arguments)
        for response in text.responses:
            ids, over = renderer.response_ids(prompt, response, prompt_ids, tools, arguments)
            sequences.append(ids)
            num_over.append(over)
    except PalateError as error:
        failure = (str(error), error.reason)
    return GroupIds(tuple(sequences), tuple(num_over), num_cut, failure)

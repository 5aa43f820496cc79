"""Prompts: messages, plain text, and the two kinds of transcript that data sets put into text."""

import re
from collections.abc import Mapping
from typing import Any

from palate.errors import PalateError
from palate.preferences.formats.fields import Row, messages_of, optional, text_of
from palate.preferences.types import Message

TURN = re.compile(r"\n\n(Human|Assistant):")
"""Start of a turn in HH-RLHF's transcripts."""
_HELPSTEER_TURN = re.compile(r"\s*<extra_id_1>(User|Assistant)\n")
"""End of a turn in HelpSteer 2's prompts of several turns; the first turn is the user's."""
_WHOLE = re.compile(r"\s*Human:.*\n\nAssistant:", re.DOTALL)
_OWN_PROMPT = ("implicit", "hh", "nemo_rl", "judgebench", "llmbar", "argilla", "label_studio")
"""Formats whose prompt is not in a field `prompt` or `instruction`."""
_ROLE_OF = {"Human": "user", "User": "user", "Assistant": "assistant"}


def prompt_of(value: Any, what: str = "prompt") -> tuple[Message, ...]:
    """A prompt from messages, from one user's text, or from an HH transcript that ends where the
    assistant is to speak."""
    if isinstance(value, str) and TURN.match(value) and value.rstrip().endswith("Assistant:"):
        return transcript(value.rstrip()[: -len("Assistant:")].rstrip(), what)
    return messages_of(value, what)


def transcript(text: str, what: str) -> tuple[Message, ...]:
    """Turns of an HH transcript: "\\n\\nHuman: ...\\n\\nAssistant: ...", ends of turns stripped."""
    pieces = TURN.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise PalateError(
            f"{what} does not start with '\\n\\nHuman:': {text[:40]!r}", "not a transcript"
        )
    return tuple(
        Message(_ROLE_OF[speaker], content.strip())
        for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True)
    )


def helpsteer_prompt(value: Any, what: str) -> tuple[Message, ...]:
    """A prompt of HelpSteer: messages, or text whose further turns start with "<extra_id_1>User"
    or "<extra_id_1>Assistant" on a line of its own."""
    if not isinstance(value, str) or not _HELPSTEER_TURN.search(value):
        return prompt_of(value, what)
    pieces = ["User", *_HELPSTEER_TURN.split(value)]
    return tuple(
        Message(_ROLE_OF[speaker], content)
        for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)
    )


def is_transcript(value: Any) -> bool:
    """Whether this is text of several turns, or of one that starts with its speaker's name."""
    return isinstance(value, str) and bool(TURN.match(value) or _WHOLE.match(value))


def with_one_prompt(row: Row, format: str, columns: Mapping[str, str]) -> Row:
    """The row with Alpaca's `instruction`, and `input` after a blank line, as its `prompt`.

    Raises PalateError where two fields may be the prompt, or parts of it, and nothing says which.
    """
    if format in _OWN_PROMPT:
        return row
    prompt, instruction, input = (optional(row, n) for n in ("prompt", "instruction", "input"))
    if format == "helpsteer" and (context := optional(row, "context")) is not None:
        _refuse_two({"context": context, "prompt": prompt})
        return row
    if format in ("annotated", "ultrafeedback"):
        _refuse_two({"prompt": prompt, "instruction": instruction})
    joins = columns.get("prompt") == "instruction" or "input" in columns
    if isinstance(instruction, str) and prompt in (None, instruction):
        prompt, joins = instruction, True
        row = {**{k: v for k, v in row.items() if k != "instruction"}, "prompt": prompt}
    if joins and input is None:
        return {k: v for k, v in row.items() if k != "input"}
    if joins and isinstance(prompt, str):
        joined = f"{prompt}\n\n{text_of(input, 'input')}"
        return {**{k: v for k, v in row.items() if k != "input"}, "prompt": joined}
    both_texts = isinstance(prompt, str) and isinstance(input, str)
    if (joins and prompt is not None) or (both_texts and input not in prompt):
        raise PalateError(
            "prompt and input: it is not said whether the input belongs to the prompt; read.columns"
            " instruction: prompt appends it, meta: input keeps it aside",
            "unclear prompt",
        )
    return row


def _refuse_two(named: Mapping[str, Any]) -> None:
    (one, first), (other, second) = named.items()
    if first is not None and second is not None and first != second:
        raise PalateError(
            f"{one} and {other} differ, and either may be the prompt; rename one", "unclear prompt"
        )


def with_system(prompt: tuple[Message, ...], system: Any) -> tuple[Message, ...]:
    """The prompt after the system turn that a row has in a field of its own. Raises PalateError
    where the field isn't text, or the prompt has another system turn."""
    if system is None:
        return prompt
    remedy = "read.columns meta: system keeps it out of the prompt"
    if not isinstance(system, str):
        raise PalateError(f"system is {type(system).__name__}, not text; {remedy}", "wrong type")
    own = [turn.content for turn in prompt if turn.role in ("system", "developer")]
    if own and own != [system]:
        raise PalateError(
            f"system is {system!r:.60}, and the prompt has the system turn {own[0]!r:.60};"
            f" {remedy}",
            "two system turns",
        )
    return prompt if own else (Message("system", system), *prompt)

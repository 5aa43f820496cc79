"""Chat templates: one that ends exactly at the end of turn, and reads no clock."""

import re
from datetime import date

from palate.errors import PalateError

MARK = "{#- palate: ends at the end-of-turn token -#}"
PINNED_DATE = date(2024, 7, 26)
"""What a template's clock shows; Llama 3's own templates fall back to this day."""

_CLOCK_CALL = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


def plain_template(start: str, end: str) -> str:
    """The template for tokenizers that have none.

    Every turn is "role: content" closed by the end-of-turn token, after the tokenizer's start token
    if it has one: `<s>user: How?</s>assistant: So.</s>`. Text that merely looks like a new turn
    isn't one, since content can't hold the control token.
    """
    return (
        f"{{{{- {start!r} -}}}}"
        "{%- for message in messages -%}"
        "{{- message['role'] + ': ' + message['content'] + " + repr(end) + " -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- 'assistant: ' -}}{%- endif -%}"
    )


def pin_clock(template: str) -> str:
    """Replace calls of the clock by what they would have printed on `PINNED_DATE`."""
    pinned = _CLOCK_CALL.sub(lambda call: repr(PINNED_DATE.strftime(call[2])), template)
    if re.search(r"strftime_now\s*\(", pinned):
        raise PalateError(
            "the chat template reads the clock with a computed format, so the same text would get"
            " another reward tomorrow; set a template without strftime_now"
        )
    return pinned


def ending_at(template: str, end_of_turn: str, closes_itself: bool) -> str:
    """Wrap `template`: a conversation that ends with an answer then ends at its end-of-turn token.

    Many templates print a newline or a second token after it; a policy's own generation does not.
    `closes_itself` says whether the template prints `end_of_turn` after the answer at all; where it
    doesn't, the wrapper appends it. Wrapping twice changes nothing.
    """
    if template.startswith(MARK):
        return template
    # Jinja drops one newline at a source's end and, as chat templates are compiled, one after a
    # block and the space before a block on its line: so the template keeps its space as it was.
    template = re.sub(r"(\r\n|\r|\n)\Z", "", template)
    end = repr(end_of_turn)
    finish = f"palate_text.rsplit({end}, 1)[0] + {end}" if closes_itself else f"palate_text + {end}"
    return (
        f"{MARK}{{%- set palate_text %}}\n{template}{{%+ endset -%}}"
        "{%- if not add_generation_prompt and messages[-1]['role'] == 'assistant' -%}"
        f"{{{{- {finish} -}}}}"
        "{%- else -%}{{- palate_text -}}{%- endif -%}"
    )

"""Prompts and responses to token ids under one template."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from palate.artifacts.files import sha256_json
from palate.errors import PalateError
from palate.preferences.types import Message, Response
from palate.rendering.lengths import LengthSettings
from palate.rendering.template import ending_at, pin_clock, plain_template
from palate.rendering.tokens import bare_tokenizer, choose_pad, control_tokens

_PROBE = "palateprobe"


@dataclass
class Renderer:
    """One tokenizer, one template, one end of turn, one pad.

    `template_arguments` reach the template. `lengths` must be resolved (`LengthSettings.resolved`).
    Raises PalateError when the template does not print the answer or there is no token to end it
    with.
    """

    tokenizer: PreTrainedTokenizerBase
    lengths: LengthSettings
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    keep_template: bool = False
    """Render exactly as the tokenizer's own template does, wherever it ends: for reward models that
    others trained with it."""
    unread_id: int | None = None
    """Left away at the end of a sequence: plain classes pool the last token that isn't the pad, so
    where others trained with pad equal to end-of-turn, the end was never read."""

    def __post_init__(self) -> None:
        source = self.tokenizer
        self.tokenizer = bare_tokenizer(source)
        self._control = control_tokens(self.tokenizer)
        template = self.tokenizer.chat_template
        if isinstance(template, dict):
            raise PalateError(
                f"the tokenizer has several chat templates ({', '.join(template)}); set one"
            )
        if template is None:
            end = source.eos_token or source.sep_token
            start = source.bos_token or source.cls_token or ""
            if end is None:
                raise PalateError(
                    "the tokenizer has neither a chat template nor an end token to close turns;"
                    " set its eos_token"
                )
            template = plain_template("" if start == end else start, end)
        template = pin_clock(template)
        self.end_of_turn, after = self._find_end_of_turn(template)
        self.end_of_turn_id = int(self.tokenizer.convert_tokens_to_ids(self.end_of_turn))
        if not self.keep_template:
            closes_itself = self.end_of_turn in after
            self.tokenizer.chat_template = ending_at(template, self.end_of_turn, closes_itself)
            after = self.end_of_turn
        self._ending = after
        self._read_control_tokens()
        turns = (Message("user", "u"), Message("assistant", "a"), Message("user", "u"))
        written = {self.end_of_turn_id, *self.encode_prompt(turns)}
        pad = choose_pad(self.tokenizer, self.end_of_turn_id, written)
        # An ordinary token becomes special as pad, here as it will in the saved files.
        self.tokenizer.add_special_tokens({"pad_token": pad})
        self._read_control_tokens()

    def _read_control_tokens(self) -> None:
        self._control = control_tokens(self.tokenizer)
        longest_first = sorted(self._control, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        # The unknown token stands for ordinary text.
        self._control_ids = {*self._control.values()} - {self.tokenizer.unk_token_id}

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def fingerprint(self) -> dict[str, str]:
        """Hashes of what decides the ids: template and its arguments, special tokens, tokenizer."""
        return {
            "template": sha256_json([self.tokenizer.chat_template, dict(self.template_arguments)]),
            "special_tokens": sha256_json([self._control, self.end_of_turn_id, self.pad_id]),
            "tokenizer": sha256_json(self.tokenizer.backend_tokenizer.to_str()),
        }

    def encode_prompt(
        self,
        prompt: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        arguments: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Ids of a prompt up to where its answer starts; nothing is cut."""
        return self._encode(prompt, tools, arguments or {}, True)

    def cut_prompt(
        self,
        prompt: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[tuple[Message, ...], int]:
        """The prompt within `max_prompt_tokens`, and how many tokens it lost.

        The oldest turns go first, up to a later user turn (a system message stays until only it and
        the last turns are left); then the start of the last turn. The cut depends on the prompt
        alone, so all responses keep their common prefix.
        """
        num_tokens = len(self.encode_prompt(prompt, tools, arguments))
        return self._cut(prompt, tools, arguments, num_tokens)

    def fitted_prompt(
        self,
        prompt: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[tuple[Message, ...], list[int], int]:
        """The prompt as `cut_prompt` leaves it, its ids, and how many tokens it lost.

        What fits is tokenised once.
        """
        ids = self.encode_prompt(prompt, tools, arguments)
        kept, num_cut = self._cut(prompt, tools, arguments, len(ids))
        return kept, self.encode_prompt(kept, tools, arguments) if num_cut else ids, num_cut

    def _cut(
        self,
        prompt: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        arguments: Mapping[str, Any] | None,
        num_tokens: int,
    ) -> tuple[tuple[Message, ...], int]:
        """`cut_prompt` of a prompt of `num_tokens` tokens."""
        limit = self.lengths.max_prompt_tokens

        def length(messages: Sequence[Message]) -> int:
            return len(self.encode_prompt(messages, tools, arguments))

        if num_tokens <= limit:
            return tuple(prompt), 0
        system = [m for m in prompt[:1] if m.role in ("system", "developer")]
        starts = [i for i, m in enumerate(prompt) if m.role == "user" and i > len(system)]
        candidates = [(*system, *prompt[i:]) for i in starts]
        if system:
            candidates.append(tuple(prompt[starts[-1] if starts else 1 :]))
        for messages in candidates:
            if messages and (kept := length(messages)) <= limit:
                return tuple(messages), num_tokens - kept
        shortest = candidates[-1] if candidates and candidates[-1] else tuple(prompt)
        cut = self._cut_last_turn(shortest, length, limit)
        return cut, num_tokens - length(cut)

    def _cut_last_turn(
        self,
        messages: tuple[Message, ...],
        length: Callable[[Sequence[Message]], int],
        limit: int,
    ) -> tuple[Message, ...]:
        """Keep the longest end of the last turn's content that fits, found by bisection."""
        *before, last = messages

        def kept(num_characters: int) -> tuple[Message, ...]:
            content = last.content[len(last.content) - num_characters :]
            return (*before, replace(last, content=content))

        low, high = 0, len(last.content)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if length(kept(middle)) <= limit else (low, middle - 1)
        if low == 0:
            raise PalateError(
                f"the prompt's fixed parts alone exceed lengths.max_prompt_tokens {limit}",
                "prompt too long",
            )
        return kept(low)

    def response_ids(
        self,
        prompt: Sequence[Message],
        response: Response,
        prompt_ids: Sequence[int],
        tools: Sequence[Mapping[str, Any]] = (),
        arguments: Mapping[str, Any] | None = None,
    ) -> tuple[tuple[int, ...], int]:
        """Ids of a (cut) prompt with its response, and the number of tokens over the limit.

        A finished response ends with the end-of-turn token; an unfinished one, or one that is cut,
        does not.
        """
        turns = (*prompt, Message("assistant", response.text))
        ids = self._encode(turns, tools, arguments or {}, False, response.finished)
        room = common_prefix_length([ids, prompt_ids]) + self.lengths.max_response_tokens
        over = max(0, len(ids) - room)
        if over and response.finished:
            ids = self._encode(turns, tools, arguments or {}, False, False)
        ids = ids[:room]
        while ids and ids[-1] == self.unread_id:
            ids.pop()
        return tuple(ids), over

    def _find_end_of_turn(self, template: str) -> tuple[str, str]:
        """The control token that closes an answer, and all that the template prints after one."""
        self.tokenizer.chat_template = template
        messages = (Message("user", "u"), Message("assistant", _PROBE))
        text = self._render([message.as_dict() for message in messages], (), {}, False)
        if _PROBE not in text:
            raise PalateError(
                "the chat template does not print the assistant's answer; set one that does"
            )
        after = text.rsplit(_PROBE, 1)[1]
        places = {token: after.find(token) for token in self._control if token in after}
        if places:
            # Of tokens at one place the longest is meant: "<|end|>" is no prefix by accident.
            return min(places, key=lambda token: (places[token], -len(token))), after
        end = self.tokenizer.eos_token or self.tokenizer.sep_token
        if end is None:
            raise PalateError(
                "neither the chat template nor the tokenizer says what ends an answer;"
                " set the tokenizer's eos_token"
            )
        return str(end), after

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        arguments: Mapping[str, Any],
        add_generation_prompt: bool,
    ) -> str:
        if tools and "tools" not in str(self.tokenizer.chat_template):
            raise PalateError(
                "the chat template ignores tools; use one that prints them", "tools ignored"
            )
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **{**self.template_arguments, **arguments},
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise PalateError(
                f"the chat template refused it: {error}", "template refused"
            ) from error
        return str(text)

    def _encode(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        arguments: Mapping[str, Any],
        add_generation_prompt: bool,
        finished: bool = True,
    ) -> list[int]:
        given: Any = ([message.as_dict() for message in messages], list(tools), dict(arguments))
        hidden, found, marker = self._hide_control_tokens(given)
        turns, tools, arguments = hidden
        text = self._render(turns, tools, arguments, add_generation_prompt)
        if not finished:
            if not text.endswith(self._ending):
                raise PalateError(
                    f"the template did not end the answer with {self._ending!r}", "template failed"
                )
            text = text.removesuffix(self._ending)
        ids: list[int] = []
        pieces = re.split(f"{marker}(\\d+){marker}", text) if found else [text]
        for number, piece in enumerate(pieces):
            ids += self._plain_ids(found[int(piece)]) if number % 2 else self._ordinary_ids(piece)
        return ids

    def _hide_control_tokens(self, given: Any) -> tuple[Any, list[str], str]:
        """The same with markers for control tokens, the tokens they stand for, and the marker.

        A control token's text in what people wrote stands for itself: it travels through the
        template as a marker and is tokenised as plain text, so nobody can forge the end of a turn.
        """
        strings = list(_strings(given))
        found: list[str] = []
        if not any(self._control_pattern.search(string) for string in strings):
            return given, found, ""
        marker = "\ue000"
        while any(marker in string for string in strings):
            marker += "\ue001"

        def hide(match: re.Match[str]) -> str:
            found.append(match[0])
            return f"{marker}{len(found) - 1}{marker}"

        hidden = _changed(given, lambda string: self._control_pattern.sub(hide, string))
        return hidden, found, marker

    def _ordinary_ids(self, text: str) -> list[int]:
        if not text:
            return []
        ids = list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        written = [match.start() for match in self._control_pattern.finditer(text)]
        if sum(i in self._control_ids for i in ids) <= len(written):
            return ids
        # Normalising made a control token of other characters, such as full-width brackets.
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = []
        for i, (start, stop) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
            forged = i in self._control_ids and not any(start <= at < stop for at in written)
            ids += self._plain_ids(text[start:stop]) if forged else [i]
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        """Ids of a control token's text as if it were ordinary text."""

        def plain(piece: str) -> list[int]:
            encoded = self.tokenizer(piece, add_special_tokens=False, split_special_tokens=True)
            return list(encoded.input_ids)

        ids = plain(text)
        if self._control_ids.isdisjoint(ids):
            return ids
        # A unigram vocabulary may hold the string as a piece: no piece spans two calls.
        return [i for i in plain(text[:1]) + plain(text[1:]) if i not in self._control_ids]


def _strings(value: Any) -> Iterator[str]:
    """All strings inside nested lists and mappings, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """The same nested value with `change` made to every string, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_changed(key, change): _changed(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(item, change) for item in value]
    return value


def common_prefix_length(sequences: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all sequences share."""
    first, last = min(map(tuple, sequences)), max(map(tuple, sequences))
    length = 0
    for a, b in zip(first, last, strict=False):
        if a != b:
            break
        length += 1
    return length

"""Counts over prompts and texts, taken while a source streams by.

What is kept grows by eight bytes a prompt, a turn and an answer (their digests), never by texts.
"""

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from palate.artifacts.files import sha256_json
from palate.preferences import Message, PreferenceGroup, prompt_cluster

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MAX_FIELDS = 200
MAX_DISTINCT_VALUES = 20
EXACT_LENGTH = 10_000
"""Longer lengths are counted to three digits, so that the number of different ones is bounded."""


@dataclass(frozen=True)
class Lengths:
    """How lengths are distributed."""

    n: int
    minimum: int
    maximum: int
    quantiles: Mapping[str, int]
    """The 5 %, 25 %, 50 %, 75 % and 95 % quantiles (the smallest length that so many reach)."""


@dataclass
class LengthTally:
    """Lengths seen, as counts."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, length: int) -> None:
        if length > EXACT_LENGTH:
            unit = 10 ** (int(math.log10(length)) - 2)
            length = round(length / unit) * unit
        self.counts[length] += 1

    def facts(self) -> Lengths | None:
        if not self.counts:
            return None
        lengths = sorted(self.counts)
        reached = np.cumsum([self.counts[length] for length in lengths])
        total = int(reached[-1])
        at = {q: lengths[int(np.searchsorted(reached, q * total))] for q in QUANTILES}
        quantiles = {f"{q:.0%}": length for q, length in at.items()}
        return Lengths(total, lengths[0], lengths[-1], quantiles)


@dataclass(frozen=True)
class PromptFacts:
    """Prompts, and how they hang together."""

    num_prompts: int
    """Different prompts: messages, tools and template arguments, to the letter."""
    num_clusters: int
    num_sharing: int
    """Groups whose prompt another group has as well."""
    largest_sharing: int
    """Groups of the most frequent prompt."""
    num_extending: int
    """Groups whose prompt goes on from that of another group."""
    num_messages: Mapping[int, int]
    """Messages of a prompt to the number of groups."""
    num_with_system: int
    num_with_tools: int


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _prompt_digest(prompt: Sequence[Message], group: PreferenceGroup) -> int:
    messages = [message.as_dict() for message in prompt]
    asked = [messages, list(group.tools), dict(group.template_arguments)]
    return int(sha256_json(asked)[:16], 16)


@dataclass
class PromptTally:
    prompts: "array[int]" = field(default_factory=lambda: array("Q"))
    clusters: "array[int]" = field(default_factory=lambda: array("Q"))
    starts: "array[int]" = field(default_factory=lambda: array("Q"))
    """Digests of what a prompt would have been before its last turns."""
    start_of: "array[int]" = field(default_factory=lambda: array("Q"))
    """For each start the index of its group."""
    num_messages: Counter[int] = field(default_factory=Counter)
    num_with_system: int = 0
    num_with_tools: int = 0

    def add(self, group: PreferenceGroup) -> None:
        prompt = group.prompt
        for end in range(1, len(prompt)):
            if prompt[end - 1].role == "user" and prompt[end].role == "assistant":
                self.starts.append(_prompt_digest(prompt[:end], group))
                self.start_of.append(len(self.prompts))
        self.prompts.append(_prompt_digest(prompt, group))
        self.clusters.append(int(prompt_cluster(prompt), 16))
        self.num_messages[len(prompt)] += 1
        self.num_with_system += prompt[0].role in ("system", "developer")
        self.num_with_tools += bool(group.tools)

    def facts(self) -> PromptFacts:
        prompts, counts = np.unique(np.asarray(self.prompts, np.uint64), return_counts=True)
        starts = np.asarray(self.starts, np.uint64)
        extending = np.asarray(self.start_of, np.uint64)[np.isin(starts, prompts)]
        return PromptFacts(
            len(prompts),
            len(np.unique(np.asarray(self.clusters, np.uint64))),
            int(counts[counts > 1].sum()),
            int(counts.max(initial=0)),
            len(np.unique(extending)),
            dict(sorted(self.num_messages.items())),
            self.num_with_system,
            self.num_with_tools,
        )


@dataclass(frozen=True)
class AnswerFacts:
    """Answers to a prompt, and what of all texts a shared prompt saves."""

    num_answers: int
    answers_per_prompt: Mapping[int, int]
    prompt_characters: Lengths | None
    answer_characters: Lengths | None
    prompt_share: float
    """Of the characters of prompt + answer, over all answers, those of the prompt."""
    saved_share: float
    """Of the same, those that need not be computed when a group's prompt is computed once."""
    num_identical: int
    """Groups in which two answers have the same text."""
    num_repeated: int
    """Answers whose text also answers another prompt (one text to one prompt counts once)."""
    num_unfinished: int


@dataclass
class AnswerTally:
    num_answers: Counter[int] = field(default_factory=Counter)
    prompt_characters: LengthTally = field(default_factory=LengthTally)
    answer_characters: LengthTally = field(default_factory=LengthTally)
    texts: "array[int]" = field(default_factory=lambda: array("Q"))
    """Digests of the different answers of each group."""
    prompt_of: "array[int]" = field(default_factory=lambda: array("Q"))
    """For each of these the digest of its prompt."""
    num_of_prompts: int = 0
    num_of_all: int = 0
    num_of_trees: int = 0
    num_identical: int = 0
    num_unfinished: int = 0

    def add(self, group: PreferenceGroup) -> None:
        prompt = sum(len(message.content) for message in group.prompt)
        lengths = [len(response.text) for response in group.responses]
        self.num_answers[len(lengths)] += 1
        self.prompt_characters.add(prompt)
        for length in lengths:
            self.answer_characters.add(length)
        self.num_of_prompts += prompt * len(lengths)
        self.num_of_all += prompt * len(lengths) + sum(lengths)
        self.num_of_trees += prompt + sum(lengths)
        texts = {_digest(response.text) for response in group.responses}
        self.texts.extend(texts)
        self.prompt_of.extend([_prompt_digest(group.prompt, group)] * len(texts))
        self.num_identical += len(texts) < len(lengths)
        self.num_unfinished += sum(not response.finished for response in group.responses)

    def facts(self) -> AnswerFacts:
        answers = np.array([self.texts, self.prompt_of], np.uint64)
        _, counts = np.unique(np.unique(answers, axis=1)[0], return_counts=True)
        return AnswerFacts(
            sum(number * count for number, count in self.num_answers.items()),
            dict(sorted(self.num_answers.items())),
            self.prompt_characters.facts(),
            self.answer_characters.facts(),
            self.num_of_prompts / max(1, self.num_of_all),
            1 - self.num_of_trees / max(1, self.num_of_all),
            self.num_identical,
            int(counts[counts > 1].sum()),
            self.num_unfinished,
        )


@dataclass(frozen=True)
class FieldFacts:
    """A field of the rows as they came."""

    num_there: int
    """Rows that have it, with a value other than null."""
    num_empty: int
    """Of these, rows where it is an empty or blank text, list or object."""
    kinds: Mapping[str, int]
    """JSON type to number of rows."""
    num_distinct: int | None
    """Different values; None where there are more than 20."""


_KINDS = {"str": "text", "dict": "object", "float": "number", "int": "number", "bool": "boolean"}


@dataclass
class FieldTally:
    """Which fields the rows have; of more than 200 the later ones are only counted as others."""

    num_rows: int = 0
    num_other_fields: int = 0
    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    num_empty: Counter[str] = field(default_factory=Counter)
    values: dict[str, set[int]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        self.num_rows += 1
        for name, value in row.items():
            if name not in self.kinds and len(self.kinds) >= MAX_FIELDS:
                self.num_other_fields += 1
                continue
            seen = self.kinds.setdefault(name, Counter())
            if value is None:
                continue
            kind = type(value).__name__
            seen[_KINDS.get(kind, kind)] += 1
            self.num_empty[name] += value in ([], {}) or (
                isinstance(value, str) and not value.strip()
            )
            values = self.values.setdefault(name, set())
            if len(values) <= MAX_DISTINCT_VALUES:
                values.add(hash(repr(value)))

    def facts(self) -> dict[str, FieldFacts]:
        return {
            name: FieldFacts(
                kinds.total(), self.num_empty[name], dict(kinds.most_common()), self._distinct(name)
            )
            for name, kinds in self.kinds.items()
        }

    def _distinct(self, name: str) -> int | None:
        number = len(self.values.get(name, ()))
        return number if number <= MAX_DISTINCT_VALUES else None


@dataclass
class Examples:
    """A few groups, evenly spaced through a stream of unknown length."""

    num_shown: int
    kept: list[PreferenceGroup] = field(default_factory=list)
    num_seen: int = 0
    stride: int = 1

    def add(self, group: PreferenceGroup) -> None:
        if self.num_seen % self.stride == 0:
            self.kept.append(group)
            if len(self.kept) > 8 * max(1, self.num_shown):
                self.kept = self.kept[::2]
                self.stride *= 2
        self.num_seen += 1

    def facts(self) -> Sequence[PreferenceGroup]:
        places = [
            (2 * i + 1) * len(self.kept) // (2 * self.num_shown) for i in range(self.num_shown)
        ]
        return [self.kept[place] for place in dict.fromkeys(places) if place < len(self.kept)]

"""The same answer said otherwise: changes of form that leave the content as it was.

Every word of the answer stays, in its order; what comes to it is a phrase without content from a
phrase bank, or marks of layout.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from palate.text.phrases import BANKS, Part

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^\W_a-z\d]|[\"'(])")
_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*•+]|\d{1,2}[.)])[ \t]+", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]+", re.MULTILINE)
_QUOTE = re.compile(r"^[ \t]*>[ \t]?", re.MULTILINE)
_BOLD = re.compile(r"(?<![\w*])\*\*(?=\S)(.+?)(?<=\S)\*\*(?![\w*])")
_FENCE = re.compile(r"(^```.*?^```[^\S\n]*$)", re.MULTILINE | re.DOTALL)
_LAST_WORDS = re.compile(r"(\S+)([.!?:;,]*)$")

_LAYOUTS: Mapping[Part, tuple[str, Literal["first words", "last word"]]] = {
    "plant": ("- ", "first words"),
    "train": ("* ", "last word"),
    "test": ("{number}. ", "first words"),
}
"""How a list looks in each part: the mark before an item (`{number}` counts), and what is bold."""
_PREFIXES = ("opener", "confidence", "hedge", "agreement")
NUM_FILLERS = 2

PERTURBATIONS: tuple[str, ...] = (
    "closing",
    "opener",
    "filler",
    "confidence",
    "hedge",
    "agreement",
    "markdown",
    "plain",
)
"""What `perturb` takes as `kind`."""


def perturb(text: str, kind: str, part: Part, random: np.random.Generator) -> str:
    """The answer with its form changed.

    closing and filler add one or two sentences at the end; opener, confidence, hedge and agreement
    add one at the start, each drawn from `BANKS[kind]`, part `part`. markdown makes a list of the
    sentences with words in bold; a text with a list, a heading or bold words already is returned as
    it is. plain takes the marks of lists, headings, quotes and bold away (code between fences
    stays), and returns a text without them as it is. Raises KeyError on another kind.
    """
    if kind == "markdown":
        return as_markdown(text, part)
    if kind == "plain":
        return as_plain(text)
    phrases = BANKS[kind].part(part)
    if kind in _PREFIXES:
        return put_before(text, phrases[int(random.integers(len(phrases)))])
    number = NUM_FILLERS if kind == "filler" else 1
    chosen = random.permutation(len(phrases))[:number]
    return put_after(text, " ".join(phrases[int(index)] for index in chosen))


def has_markdown(text: str) -> bool:
    """Whether lines are list items or headings, or words are bold."""
    return any(pattern.search(text) for pattern in (_LIST_ITEM, _HEADING, _BOLD))


def put_before(text: str, phrase: str) -> str:
    """A phrase, then the text: on its line, or above it where it starts with a mark of layout."""
    starts_with_layout = any(p.match(text) for p in (_LIST_ITEM, _HEADING, _QUOTE, _FENCE))
    return f"{phrase}\n\n{text}" if starts_with_layout else f"{phrase} {text}"


def put_after(text: str, phrase: str) -> str:
    """The text, then a phrase: on its last line, or below it where that is a mark of layout's."""
    body = text.rstrip()
    last_line = body.rsplit("\n", 1)[-1]
    ends_with_layout = last_line.startswith("```") or any(
        pattern.match(last_line) for pattern in (_LIST_ITEM, _HEADING, _QUOTE)
    )
    return f"{body}\n\n{phrase}" if ends_with_layout else f"{body} {phrase}"


def sentences(text: str) -> list[str]:
    """The sentences of a text, one or more, without the white space between them."""
    lines = [line.strip() for line in text.splitlines()]
    found = [sentence for line in lines if line for sentence in _SENTENCE_END.split(line)]
    return found or [text]


def as_markdown(text: str, part: Part) -> str:
    """Each sentence an item of a list, with bold words; in the layout of the part."""
    if has_markdown(text) or "```" in text:
        return text
    return list_of(sentences(text), part)


def list_of(items: Sequence[str], part: Part) -> str:
    """Sentences as a list in the layout of the part."""
    mark, _ = _LAYOUTS[part]
    return "\n".join(
        mark.format(number=number) + bold(item, part) for number, item in enumerate(items, 1)
    )


def bold(sentence: str, part: Part) -> str:
    """The sentence with its first two words, or its last, in bold, as the part has it."""
    if _LAYOUTS[part][1] == "last word":
        return _LAST_WORDS.sub(lambda m: f"**{m[1].rstrip('.!?:;,')}**{_stop(m)}", sentence, 1)
    words = sentence.split(" ")
    return " ".join([f"**{' '.join(words[:2])}**", *words[2:]])


def _stop(match: re.Match[str]) -> str:
    """The marks of punctuation that end the matched word."""
    word = match[1]
    return word[len(word.rstrip(".!?:;,")) :] + match[2]


def as_plain(text: str) -> str:
    """The text without marks of lists, headings, quotes and bold; a paragraph's items become
    sentences on one line. Code between fences stays."""
    if not has_markdown(text) and not _QUOTE.search(text):
        return text
    pieces = _FENCE.split(text)
    return "".join(piece if place % 2 else _plain(piece) for place, piece in enumerate(pieces))


def _plain(text: str) -> str:
    lines: list[str] = []
    for line in text.split("\n"):
        bare = line
        for pattern in (_QUOTE, _LIST_ITEM, _HEADING):
            bare = pattern.sub("", bare, 1)
        if bare != line and lines and lines[-1].strip():
            lines[-1] += f" {bare}"
        else:
            lines.append(bare)
    return _BOLD.sub(r"\1", "\n".join(lines))

"""Raw rows to preference groups, one function a format. Nothing is guessed: a row that does not fit
its format raises PalateError, and the reader puts it into the ledger.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from palate.errors import PalateError
from palate.preferences.types import Comparison, Message, PreferenceGroup, Response, Vote
from palate.preferences.votes import (
    VoteSettings,
    comparisons_from_ranking,
    comparisons_from_ratings,
    comparisons_from_votes,
)

Row = Mapping[str, Any]
RATING_FIELDS = ("rating", "score", "win_rate_vs_reference")
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLE_OF = {"Human": "user", "Assistant": "assistant"}
_RESPONSE_COLUMN = re.compile(r"response_?([0-9]+)")
_ANNOTATOR_COLUMN = re.compile(r"annotator_?([0-9]+)")


@dataclass
class Parsed:
    """A group and what was left out of its row on the way: (kind, reason, detail)."""

    group: PreferenceGroup
    notes: list[tuple[str, str, str]] = field(default_factory=list)


def require(row: Row, name: str) -> Any:
    """The field's value; PalateError where it is missing or null."""
    if row.get(name) is None:
        raise PalateError(f"no field {name!r}; found {', '.join(map(str, row))}", "missing field")
    return row[name]


def number(value: Any, name: str) -> float:
    """A finite number, also from its CSV text; PalateError for anything else."""
    try:
        if isinstance(value, bool):
            raise TypeError
        converted = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise PalateError(f"{name} is {value!r:.60}, not a number", "wrong type") from error
    if not math.isfinite(converted):
        raise PalateError(f"{name} is {converted}", f"invalid {name}")
    return converted


def text_of(content: Any, what: str) -> str:
    """A message's text, from a string or a list of text parts; images and audio are refused."""
    if isinstance(content, list):
        pieces: list[str] = []
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            if kind != "text":
                raise PalateError(
                    f"{what} has content of type {kind!r}; palate reads text only",
                    f"{kind} content",
                )
            pieces.append(part.get("text"))
        if not all(isinstance(piece, str) for piece in pieces):
            raise PalateError(f"{what} has a text part without text", "wrong type")
        return "".join(pieces)
    if not isinstance(content, str):
        raise PalateError(f"{what} is {type(content).__name__} {content!r:.60}", "wrong type")
    return content


def messages_of(value: Any, what: str) -> tuple[Message, ...]:
    """A conversation from a list of messages, or one user message from a string."""
    if isinstance(value, str):
        return (Message("user", value),)
    if not isinstance(value, Sequence) or not all(isinstance(turn, Mapping) for turn in value):
        raise PalateError(f"{what} is {type(value).__name__}, not text or messages", "wrong type")
    turns: list[Message] = []
    for turn in value:
        role = turn.get("role")
        # A turn that calls a tool may have no content of its own.
        content = turn.get("content")
        if content is None and turn.get("tool_calls"):
            content = ""
        extra = {k: v for k, v in turn.items() if k not in ("role", "content") and v is not None}
        turns.append(Message(str(role), text_of(content, f"{what}: content"), extra))
    return tuple(turns)


def _parse_json_field(row: Row, name: str) -> Any:
    value = row.get(name)
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError as error:
            raise PalateError(f"{name} is a string but not JSON: {error}", "wrong type") from error
    return value


def common_fields(row: Row, used: Sequence[str]) -> dict[str, Any]:
    """tools, template arguments, id and meta of a row; meta holds what the format did not use."""
    tools = _parse_json_field(row, "tools") or ()
    arguments = _parse_json_field(row, "template_arguments") or _parse_json_field(
        row, "chat_template_kwargs"
    )
    if not isinstance(tools, Sequence) or not isinstance(arguments or {}, Mapping):
        raise PalateError("tools must be a list and template_arguments an object", "wrong type")
    taken = {*used, "tools", "template_arguments", "chat_template_kwargs", "id", "meta"}
    meta = row.get("meta") if isinstance(row.get("meta"), Mapping) else {}
    rest = {key: value for key, value in row.items() if key not in taken}
    identifier = row.get("id")
    return {
        "tools": tuple(tools),
        "template_arguments": dict(arguments or {}),
        "id": None if identifier is None else str(identifier),
        "meta": {**rest, **(meta or {})},
    }


def _answer(value: Any, what: str) -> Response:
    """A response from text, or from a list that holds one assistant message."""
    if isinstance(value, str):
        return Response(value)
    turns = messages_of(value, what)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise PalateError(f"{what} must be text or one assistant message", "not one answer")
    if turns[0].extra.get("tool_calls"):
        raise PalateError(f"{what} calls a tool; only text can be compared", "tool call as answer")
    return Response(turns[0].content)


def _pair(
    prompt: tuple[Message, ...], chosen: Any, rejected: Any, row: Row, settings: VoteSettings
) -> Parsed:
    responses = (_answer(chosen, "chosen"), _answer(rejected, "rejected"))
    if responses[0].text == responses[1].text:
        raise PalateError("chosen and rejected are the same text", "identical responses")
    margin = row.get("margin")
    if margin is None and row.get("strength") is not None:
        margin = settings.margin_per_strength * abs(number(row["strength"], "strength"))
    comparison = Comparison(
        0,
        1,
        margin=number(0.0 if margin is None else margin, "margin"),
        weight=number(1.0 if row.get("weight") is None else row["weight"], "weight"),
    )
    used = ("prompt", "chosen", "rejected", "margin", "strength", "weight")
    return Parsed(PreferenceGroup(prompt, responses, (comparison,), **common_fields(row, used)))


def pairs(row: Row, settings: VoteSettings) -> Parsed:
    """`prompt`, `chosen`, `rejected`: text or messages; chosen and rejected may repeat the prompt."""
    prompt, chosen, rejected = (require(row, key) for key in ("prompt", "chosen", "rejected"))
    if isinstance(prompt, str) and _TURN.match(prompt) and prompt.rstrip().endswith("Assistant:"):
        turns = transcript(prompt.rstrip()[: -len("Assistant:")].rstrip(), "prompt")
    else:
        turns = messages_of(prompt, "prompt")
    if not isinstance(chosen, str) and len(chosen) > 1:
        turns_full, chosen, rejected = _divide(
            messages_of(chosen, "chosen"), messages_of(rejected, "rejected")
        )
        if turns_full[-1].content != turns[-1].content:
            raise PalateError("prompt differs from the conversation in chosen", "prompts differ")
        turns = turns_full
    return _pair(turns, chosen, rejected, row, settings)


def implicit(row: Row, settings: VoteSettings) -> Parsed:
    """`chosen` and `rejected` as whole conversations in messages; their common start is the prompt."""
    prompt, chosen, rejected = _divide(
        messages_of(require(row, "chosen"), "chosen"),
        messages_of(require(row, "rejected"), "rejected"),
    )
    return _pair(prompt, chosen, rejected, row, settings)


def transcript(text: str, what: str) -> tuple[Message, ...]:
    """Turns of an HH transcript: "\\n\\nHuman: ...\\n\\nAssistant: ...", ends of turns stripped."""
    pieces = _TURN.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise PalateError(
            f"{what} does not start with '\\n\\nHuman:': {text[:40]!r}", "not a transcript"
        )
    return tuple(
        Message(_ROLE_OF[speaker], content.strip())
        for speaker, content in zip(pieces[1::2], pieces[2::2], strict=True)
    )


def hh(row: Row, settings: VoteSettings) -> Parsed:
    """HH-RLHF: `chosen` and `rejected` are transcripts that share all turns but the last."""
    sides = []
    for name in ("chosen", "rejected"):
        value = require(row, name)
        if not isinstance(value, str):
            raise PalateError(f"{name} is {type(value).__name__}, not a transcript", "wrong type")
        sides.append(transcript(value, name))
    prompt, chosen, rejected = _divide(*sides)
    return _pair(prompt, chosen, rejected, row, settings)


def _divide(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], Any, Any]:
    """Two conversations to (prompt, chosen answer, rejected answer); each answer is one turn."""
    if chosen[:-1] != rejected[:-1] or not chosen[:-1]:
        raise PalateError(
            f"chosen ({len(chosen)} turns) and rejected ({len(rejected)} turns) differ before"
            " their last turn",
            "conversations differ before the last turn",
        )
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise PalateError("the last turn is not the assistant's", "last turn is not an answer")
    return chosen[:-1], [chosen[-1].as_dict()], [rejected[-1].as_dict()]


def _responses(row: Row) -> tuple[list[Response], dict[int, int], list[tuple[str, str, str]]]:
    """Valid responses, old index -> new index, and notes on those left out."""
    raw = require(row, "responses")
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise PalateError(f"responses is {type(raw).__name__}, not a list", "wrong type")
    kept: list[Response] = []
    position: dict[int, int] = {}
    notes: list[tuple[str, str, str]] = []
    for index, item in enumerate(raw):
        try:
            response = _response(item)
        except PalateError as error:
            notes.append(("response", error.reason, f"response {index}: {error}"))
            continue
        position[index] = len(kept)
        kept.append(response)
    if len(kept) < 2:
        why = f"; left out: {notes[0][2]}" if notes else ""
        reason = notes[0][1] if notes and len(raw) >= 2 else "fewer than two responses"
        raise PalateError(f"{len(kept)} usable response(s), a comparison needs two{why}", reason)
    return kept, position, notes


def _response(item: Any) -> Response:
    if isinstance(item, str):
        return Response(item)
    if not isinstance(item, Mapping):
        raise PalateError(f"it is {type(item).__name__} {item!r:.60}", "wrong type")
    text = item.get("text") if item.get("text") is not None else item.get("content")
    finished = item.get("finished")
    if finished is not None and not isinstance(finished, bool):
        raise PalateError(f"finished is {finished!r:.20}, not true or false", "wrong type")
    rating = next((item[name] for name in RATING_FIELDS if item.get(name) is not None), None)
    if rating is None and item.get("rank") is not None:
        rating = -number(item["rank"], "rank")
    return Response(
        text_of(text, "text"),
        model=None if item.get("model") is None else str(item["model"]),
        finished=finished is not False,
        rating=None if rating is None else number(rating, "rating"),
    )


def _tiers(value: Any, position: Mapping[int, int], what: str) -> tuple[tuple[int, ...], ...]:
    """A ranking, best first, with old indices replaced by new ones and missing ones left out."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise PalateError(f"{what}: ranking is {type(value).__name__}, not a list", "wrong type")
    tiers = []
    for tier in value:
        members = tier if isinstance(tier, Sequence) and not isinstance(tier, str) else [tier]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in members):
            raise PalateError(f"{what}: ranking {value!r:.60} is not of indices", "wrong type")
        tiers.append(tuple(position[i] for i in members if i in position))
    return tuple(tier for tier in tiers if tier)


def _check_indices(indices: Sequence[Any], num_responses: int, what: str) -> None:
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int):
            raise PalateError(f"{what}: {index!r:.40} is not a response index", "wrong type")
        if not 0 <= index < num_responses:
            raise PalateError(
                f"{what} points to response {index}; there are {num_responses}, counted from 0",
                "comparison outside the responses",
            )


def _flat(ranking: Any) -> list[Any]:
    if not isinstance(ranking, Sequence) or isinstance(ranking, str):
        raise PalateError(f"ranking is {type(ranking).__name__}, not a list", "wrong type")
    return [i for tier in ranking for i in (tier if isinstance(tier, list | tuple) else [tier])]


def _vote(item: Any, position: Mapping[int, int], num_responses: int) -> Vote | None:
    """A vote of canonical JSONL, or None when it ranks fewer than two of the kept responses."""
    if not isinstance(item, Mapping):
        raise PalateError(f"a vote is {type(item).__name__}, not an object", "wrong type")
    unknown = set(item) - {"annotator", "ranking", "choice", "strength", "shown"}
    if unknown:
        raise PalateError(f"vote has unknown fields {sorted(unknown)}", "unknown field")
    annotator = str(item.get("annotator", ""))
    if item.get("choice") is not None:
        others = [i for i in range(num_responses) if i != item["choice"]]
        ranking: Any = [others] if item["choice"] == "tie" else [[item["choice"]], others]
    else:
        ranking = item.get("ranking")
    _check_indices(_flat(ranking), num_responses, f"vote of {annotator!r}")
    shown = item.get("shown")
    if shown is not None:
        _check_indices(_flat(shown), num_responses, f"shown order of {annotator!r}")
        shown = tuple(position[i] for i in shown if i in position)
    tiers = _tiers(ranking, position, f"vote of {annotator!r}")
    if sum(map(len, tiers)) < 2:
        return None
    strength = item.get("strength")
    return Vote(
        annotator, tiers, None if strength is None else number(strength, "strength"), shown
    )


def _comparison(item: Any, position: Mapping[int, int], num_responses: int) -> Comparison | None:
    if not isinstance(item, Mapping):
        raise PalateError(f"a comparison is {type(item).__name__}, not an object", "wrong type")
    unknown = set(item) - {"better", "worse", "probability", "tie", "margin", "weight"}
    if unknown:
        raise PalateError(f"comparison has unknown fields {sorted(unknown)}", "unknown field")
    ends = [require(item, "better"), require(item, "worse")]
    _check_indices(ends, num_responses, "comparison")
    if not all(end in position for end in ends):
        return None
    values = {k: number(v, k) for k, v in item.items() if k not in ("better", "worse")}
    return Comparison(position[ends[0]], position[ends[1]], **values)


def _without_identical(
    responses: Sequence[Response],
    comparisons: Sequence[Comparison],
    notes: list[tuple[str, str, str]],
) -> tuple[Comparison, ...]:
    kept = [c for c in comparisons if responses[c.better].text != responses[c.worse].text]
    num_same = len(comparisons) - len(kept)
    if comparisons and not kept:
        raise PalateError("all compared responses are the same text", "identical responses")
    if num_same:
        notes.append(("comparison", "identical responses", f"{num_same} of {len(comparisons)}"))
    return tuple(kept)


def canonical(row: Row, settings: VoteSettings) -> Parsed:
    """palate's own JSONL: `prompt`, `responses`, and `comparisons` or `votes` (comparisons stand)."""
    responses, position, notes = _responses(row)
    num_responses = len(row["responses"])
    votes = [_vote(item, position, num_responses) for item in row.get("votes") or ()]
    known_votes = tuple(vote for vote in votes if vote is not None)
    if row.get("comparisons"):
        items = [_comparison(item, position, num_responses) for item in row["comparisons"]]
        comparisons: tuple[Comparison, ...] = tuple(c for c in items if c is not None)
    else:
        comparisons = comparisons_from_votes(len(responses), known_votes, settings)
    comparisons = _without_identical(responses, comparisons, notes)
    fields = common_fields(row, ("prompt", "responses", "comparisons", "votes"))
    prompt = messages_of(require(row, "prompt"), "prompt")
    group = PreferenceGroup(prompt, tuple(responses), comparisons, known_votes, **fields)
    return Parsed(group, notes)


def ranked(row: Row, settings: VoteSettings) -> Parsed:
    """K responses with a `ranking` (indices best first, ties in inner lists), or each with a
    rating, score, rank or win_rate_vs_reference."""
    responses, position, notes = _responses(row)
    if row.get("ranking") is not None:
        _check_indices(_flat(row["ranking"]), len(row["responses"]), "ranking")
        tiers = _tiers(row["ranking"], position, "row")
        if len({i for tier in tiers for i in tier}) < sum(map(len, tiers)):
            raise PalateError(f"ranking {row['ranking']!r:.60} repeats a response", "invalid ranking")
        comparisons = comparisons_from_ranking(tiers)
    else:
        given = _parse_json_field(row, "ratings")
        if given is not None:
            if not isinstance(given, Sequence) or len(given) != len(row["responses"]):
                raise PalateError("ratings must be a list as long as responses", "wrong type")
            ratings = {position[i]: number(r, "rating") for i, r in enumerate(given) if i in position}
        else:
            ratings = {i: r.rating for i, r in enumerate(responses) if r.rating is not None}
        if len(ratings) < 2:
            raise PalateError("fewer than two responses have a rating", "missing rating")
        comparisons = comparisons_from_ratings(ratings, settings.min_gap)
        if not comparisons:
            raise PalateError(
                f"no two ratings differ (by {settings.min_gap:g} or more): {sorted(ratings.values())}",
                "no ratings that differ",
            )
    comparisons = _without_identical(responses, comparisons, notes)
    fields = common_fields(row, ("prompt", "responses", "ranking", "ratings"))
    prompt = messages_of(require(row, "prompt"), "prompt")
    return Parsed(PreferenceGroup(prompt, tuple(responses), comparisons, **fields), notes)


def annotated(row: Row, settings: VoteSettings) -> Parsed:
    """Two responses and a column for each annotator: 0 tie, 1 the first, 2 the second; empty: no vote.

    The prompt is `prompt`, or `instruction` and, where there is one, `input` after a blank line.
    """
    columns = sorted(
        (int(m[1]), name) for name in row if (m := _RESPONSE_COLUMN.fullmatch(str(name)))
    )
    if len(columns) != 2:
        raise PalateError(f"{len(columns)} response columns, expected two", "missing field")
    responses = tuple(Response(text_of(row[name], name)) for _, name in columns)
    if responses[0].text == responses[1].text:
        raise PalateError("both responses are the same text", "identical responses")
    rankings: dict[float, tuple[tuple[int, ...], ...]] = {
        0: ((0, 1),),
        1: ((0,), (1,)),
        2: ((1,), (0,)),
    }
    votes = []
    for name in (name for name in row if _ANNOTATOR_COLUMN.fullmatch(str(name))):
        if row[name] is None or row[name] == "":
            continue
        choice = number(row[name], name)
        if choice not in rankings:
            raise PalateError(f"{name} is {row[name]!r}; expected 0, 1 or 2", "invalid vote")
        votes.append(Vote(name, rankings[choice]))
    comparisons = comparisons_from_votes(2, votes, settings)
    if "prompt" in row:
        prompt = messages_of(require(row, "prompt"), "prompt")
    else:
        instruction = text_of(require(row, "instruction"), "instruction")
        context = text_of(row.get("input") or "", "input")
        prompt = (Message("user", f"{instruction}\n\n{context}" if context else instruction),)
    used = ["prompt", "instruction", "input", *(name for _, name in columns)]
    used += [name for name in row if _ANNOTATOR_COLUMN.fullmatch(str(name))]
    return Parsed(
        PreferenceGroup(prompt, responses, comparisons, tuple(votes), **common_fields(row, used))
    )


FORMATS: dict[str, Callable[[Row, VoteSettings], Parsed]] = {
    "canonical": canonical,
    "ranked": ranked,
    "pairs": pairs,
    "implicit": implicit,
    "hh": hh,
    "annotated": annotated,
}
"""Format name to the function that reads one of its rows."""


def detect_format(row: Row) -> str | None:
    """The format that a row's fields show, or None."""
    keys = set(row)
    if "responses" in keys:
        return "canonical" if keys & {"comparisons", "votes"} else "ranked"
    if {"chosen", "rejected"} <= keys:
        if "prompt" in keys:
            return "pairs"
        if isinstance(row["chosen"], str):
            return "hh" if _TURN.match(row["chosen"]) else None
        return "implicit"
    if any(_ANNOTATOR_COLUMN.fullmatch(str(key)) for key in keys):
        return "annotated"
    return None

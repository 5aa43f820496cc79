"""Rows of K answers: palate's own JSONL, rankings and ratings, columns of annotators."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from palate.errors import PalateError
from palate.preferences.fields import (
    Parsed,
    Row,
    common_fields,
    list_field,
    messages_of,
    number,
    optional,
    require,
    text_of,
)
from palate.preferences.types import Comparison, Message, PreferenceGroup, Response, Vote
from palate.preferences.votes import (
    VoteSettings,
    comparisons_from_ranking,
    comparisons_from_ratings,
    comparisons_from_votes,
)

RATING_FIELDS = ("rating", "score", "win_rate_vs_reference")
RESPONSE_COLUMN = re.compile(r"response_?([0-9]+)")
ANNOTATOR_COLUMN = re.compile(r"annotator_?([0-9]+)")


def _responses(row: Row) -> tuple[list[Response], dict[int, int], list[tuple[str, str, str]]]:
    """Valid responses, old index -> new index, and notes on those left out."""
    require(row, "responses")
    raw = list_field(row, "responses")
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
    text = (
        item["content"] if item.get("text") is None and "content" in item else require(item, "text")
    )
    finished = item.get("finished")
    if finished is not None and not isinstance(finished, bool):
        raise PalateError(f"finished is {finished!r:.20}, not true or false", "wrong type")
    rated_by = _rating_field(item)
    rating = None if rated_by is None else number(item[rated_by], rated_by)
    if rated_by == "rank" and rating is not None:
        rating = -rating
    return Response(
        text_of(text, "text"),
        model=None if item.get("model") is None else str(item["model"]),
        finished=finished is not False,
        rating=rating,
    )


def _rating_field(item: Any) -> str | None:
    """The field that rates a response: the first of `RATING_FIELDS`, or rank."""
    if not isinstance(item, Mapping):
        return None
    return next((n for n in (*RATING_FIELDS, "rank") if item.get(n) is not None), None)


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
    annotator = "" if item.get("annotator") is None else str(item["annotator"])
    if item.get("choice") is not None:
        others = [i for i in range(num_responses) if i != item["choice"]]
        ranking: Any = [others] if item["choice"] == "tie" else [[item["choice"]], others]
    else:
        ranking = item.get("ranking")
    _check_indices(_flat(ranking), num_responses, f"vote of {annotator!r}")
    shown = None
    if item.get("shown") is not None:
        order = list_field(item, "shown")
        _check_indices(order, num_responses, f"shown order of {annotator!r}")
        shown = tuple(position[i] for i in order if i in position)
    tiers = _tiers(ranking, position, f"vote of {annotator!r}")
    if sum(map(len, tiers)) < 2:
        return None
    strength = item.get("strength")
    return Vote(annotator, tiers, None if strength is None else number(strength, "strength"), shown)


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
    values = {
        k: number(v, k) for k, v in item.items() if k not in ("better", "worse") and v is not None
    }
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
    """palate's own: `prompt`, `responses`, and `comparisons` or `votes` (comparisons stand)."""
    responses, position, notes = _responses(row)
    num_responses = len(responses) + len(notes)
    votes = [_vote(item, position, num_responses) for item in list_field(row, "votes")]
    known_votes = tuple(vote for vote in votes if vote is not None)
    if stated := list_field(row, "comparisons"):
        items = [_comparison(item, position, num_responses) for item in stated]
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
    responses, position, notes = _responses(_with_ratings(row))
    if ranking := list_field(row, "ranking"):
        _check_indices(_flat(ranking), len(responses) + len(notes), "ranking")
        tiers = _tiers(ranking, position, "row")
        if len({i for tier in tiers for i in tier}) < sum(map(len, tiers)):
            raise PalateError(f"ranking {ranking!r:.60} repeats a response", "invalid ranking")
        comparisons = comparisons_from_ranking(tiers)
    else:
        ratings = {i: r.rating for i, r in enumerate(responses) if r.rating is not None}
        if len(ratings) < 2:
            raise PalateError("fewer than two responses have a rating", "missing rating")
        for old, new in position.items():
            if new not in ratings:
                notes.append(("response", "missing rating", f"response {old}: never compared"))
        comparisons = comparisons_from_ratings(ratings, settings.min_gap)
        if not comparisons:
            raise PalateError(
                f"no two ratings differ (by {settings.min_gap:g} or more):"
                f" {sorted(ratings.values())}",
                "no ratings that differ",
            )
    comparisons = _without_identical(responses, comparisons, notes)
    fields = common_fields(row, ("prompt", "responses", "ranking", "ratings"))
    prompt = messages_of(require(row, "prompt"), "prompt")
    return Parsed(PreferenceGroup(prompt, tuple(responses), comparisons, **fields), notes)


def _with_ratings(row: Row) -> Row:
    """The row with its list of ratings, where it has one, moved into its responses."""
    items, ratings = list_field(row, "responses"), list_field(row, "ratings")
    if ratings:
        if len(ratings) != len(items):
            raise PalateError(
                f"{len(ratings)} ratings for {len(items)} responses", "ratings and responses differ"
            )
        items = [
            {**(item if isinstance(item, Mapping) else {"text": item}), "rating": rating}
            for item, rating in zip(items, ratings, strict=True)
        ]
    rated_by = {name for item in items if (name := _rating_field(item)) is not None}
    if len(rated_by) > 1 and not list_field(row, "ranking"):
        raise PalateError(
            f"the responses are rated in different fields ({', '.join(sorted(rated_by))}); a"
            " comparison needs one scale",
            "mixed ratings",
        )
    return {**row, "responses": items} if ratings else row


def annotated(row: Row, settings: VoteSettings) -> Parsed:
    """Two responses, a column for each annotator: 0 tie, 1 the first, 2 the second, empty no vote.

    The prompt is `prompt`, or `instruction` and, where there is one, `input` after a blank line.
    """
    columns = sorted(
        (int(m[1]), name) for name in row if (m := RESPONSE_COLUMN.fullmatch(str(name)))
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
    for name in (name for name in row if ANNOTATOR_COLUMN.fullmatch(str(name))):
        if optional(row, name) is None:
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
    used += [name for name in row if ANNOTATOR_COLUMN.fullmatch(str(name))]
    return Parsed(
        PreferenceGroup(prompt, responses, comparisons, tuple(votes), **common_fields(row, used))
    )

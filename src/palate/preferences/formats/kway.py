"""Rows of K answers to one prompt, rated or ranked."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from palate.errors import PalateError
from palate.preferences.formats.canonical import tiers_of
from palate.preferences.formats.fields import (
    Parsed,
    Row,
    common_fields,
    list_field,
    require,
    require_one,
)
from palate.preferences.formats.responses import (
    RATING_FIELDS,
    Listed,
    answer_text,
    list_responses,
    rating_field,
)
from palate.preferences.formats.transcripts import prompt_of
from palate.preferences.settings import ReadSettings
from palate.preferences.types import Message
from palate.preferences.votes import (
    comparisons_from_ranking,
    comparisons_from_ranks,
)

ULTRAFEEDBACK_RATING = "fine-grained_score"
"""The mean of the four aspects. Copies of the data set carry an `overall_score` in which answers
that a critique gave 1 have 10."""


def ranked(row: Row, settings: ReadSettings) -> Parsed:
    """`prompt` and `responses` with a `ranking` (indices best first, ties in inner lists) or
    `ratings`, or each with a rating, score, win_rate_vs_reference or rank in it."""
    require(row, "responses")
    rated_by = (settings.rating,) if settings.rating else RATING_FIELDS
    items = _with_ratings(row)
    listed = list_responses(items, rated_by)
    prompt = prompt_of(require(row, "prompt"))
    used = ("prompt", "responses", "ranking", "ratings")
    fields = common_fields(row, used)
    if ranking := list_field(row, "ranking"):
        return _of_ranking(prompt, listed, ranking, fields, settings)
    names = {name for item in items if (name := rating_field(item, rated_by)) is not None}
    if len(names) > 1:
        raise PalateError(
            f"the responses are rated in different fields ({', '.join(sorted(names))}); a"
            " comparison needs one scale",
            "mixed ratings",
        )
    if not names:
        raise _no_rating(rated_by, items)
    if names == {"rank"}:
        return _of_ranks(prompt, listed, fields, settings)
    return _of_ratings(prompt, listed, names.pop(), fields)


def _with_ratings(row: Row) -> Sequence[Any]:
    """The row's responses, each with its rating from the row's list of ratings if it has one."""
    items, ratings = list_field(row, "responses"), list_field(row, "ratings")
    if not ratings:
        return items
    if len(ratings) != len(items):
        raise PalateError(
            f"{len(ratings)} ratings for {len(items)} responses", "ratings and responses differ"
        )
    return [
        {**(item if isinstance(item, Mapping) else {"text": item}), "rating": rating}
        for item, rating in zip(items, ratings, strict=True)
    ]


def _of_ranking(
    prompt: tuple[Message, ...],
    listed: Listed,
    ranking: Sequence[Any],
    fields: dict[str, Any],
    settings: ReadSettings,
) -> Parsed:
    tiers = tiers_of(ranking, listed, "ranking")
    if len({i for tier in tiers for i in tier}) < sum(map(len, tiers)):
        raise PalateError(f"ranking {ranking!r:.60} repeats a response", "invalid ranking")
    stated = comparisons_from_ranking(tiers, settings.votes.equal)
    heeds = frozenset({"equal"})
    return Parsed(prompt, listed.responses, stated, fields=fields, notes=listed.notes, heeds=heeds)


def _of_ratings(
    prompt: tuple[Message, ...], listed: Listed, rated_by: str, fields: dict[str, Any]
) -> Parsed:
    """Responses that their ratings compare. Raises PalateError where fewer than two have one."""
    rated = frozenset(i for i, r in enumerate(listed.responses) if r.rating is not None)
    if len(rated) < 2:
        raise _no_rating((rated_by,), [response.meta for response in listed.responses])
    missing = [old for old, new in listed.position.items() if new not in rated]
    notes = [("response", "missing rating", f"response {old}: never compared") for old in missing]
    return Parsed(
        prompt,
        listed.responses,
        rated_by=rated_by,
        rated=rated,
        fields=fields,
        notes=(*listed.notes, *notes),
        heeds=frozenset({"rating"}),
    )


def _of_ranks(
    prompt: tuple[Message, ...], listed: Listed, fields: dict[str, Any], settings: ReadSettings
) -> Parsed:
    """Responses with ranks. These compare the responses of one row only: beside another row's they
    mean nothing, so that what they say is stated here."""
    parsed = _of_ratings(prompt, listed, "rank", fields)
    ranks = {i: r.rating for i, r in enumerate(listed.responses) if r.rating is not None}
    stated = comparisons_from_ranks(ranks, settings.votes.equal)
    if not stated:
        raise PalateError(f"all ranks are equal: {-min(ranks.values()):g}", "equal answers")
    heeds = frozenset({"equal"})
    return replace(parsed, stated=stated, rated_by="", rated=frozenset(), heeds=heeds)


def _no_rating(rated_by: Sequence[str], items: Iterable[Any]) -> PalateError:
    """The complaint, with the numbers that the responses do hold."""
    numbers = {
        str(name)
        for item in items
        if isinstance(item, Mapping)
        for name, value in item.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    hint = f"; read.rating may be {', '.join(sorted(numbers)):.200}" if numbers else ""
    what = " or ".join(rated_by)
    return PalateError(f"fewer than two responses have a {what}{hint}", "missing rating")


def ultrafeedback(row: Row, settings: ReadSettings) -> Parsed:
    """UltraFeedback: `instruction` and `completions`, each with `response`, `model` and ratings.

    `read.rating` is a number of the completion (`fine-grained_score` by default, `overall_score`)
    or one of its `annotations` (helpfulness, honesty, instruction_following, truthfulness), of
    which "N/A" counts as missing. All ratings and rationales are kept with the response.
    """
    require(row, "completions")
    name = settings.rating or ULTRAFEEDBACK_RATING
    listed = list_responses(
        list_field(row, "completions"), (name,), lambda item: _with_aspect(item, name)
    )
    prompt = prompt_of(require_one(row, ("instruction", "prompt")), "instruction")
    fields = common_fields(row, ("instruction", "prompt", "completions"))
    return _of_ratings(prompt, listed, name, fields)


def _with_aspect(item: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The completion with the rating of an aspect, where it is one, beside its own numbers."""
    rating = item.get(name)
    annotations = item.get("annotations")
    if rating is None and isinstance(annotations, Mapping):
        aspect = annotations.get(name)
        rating = aspect.get("Rating") if isinstance(aspect, Mapping) else None
    if isinstance(rating, str) and rating.strip().upper() == "N/A":
        rating = None
    return {**item, name: rating}


def nemo_rl(row: Row, settings: ReadSettings) -> Parsed:
    """NeMo-RL: `context` (messages) and `completions`, each with a `rank` (the lowest is best) and
    its `completion`, a list of one assistant message."""
    require(row, "completions")
    listed = list_responses(list_field(row, "completions"), ("rank",), _with_text)
    prompt = prompt_of(require(row, "context"), "context")
    fields = common_fields(row, ("context", "completions"))
    return _of_ranks(prompt, listed, fields, settings)


def _with_text(item: Mapping[str, Any]) -> Mapping[str, Any]:
    rest = {key: value for key, value in item.items() if key != "completion"}
    return {**rest, "text": answer_text(require(item, "completion"), "completion")}

"""palate's own rows: a prompt, K responses, and comparisons or votes among them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from palate.errors import PalateError
from palate.preferences.formats.fields import (
    Note,
    Parsed,
    Row,
    common_fields,
    list_field,
    number,
    object_of,
    require,
)
from palate.preferences.formats.responses import Listed, list_responses
from palate.preferences.formats.transcripts import prompt_of
from palate.preferences.settings import ReadSettings
from palate.preferences.types import Comparison, Vote

_OF_A_VOTE = ("annotator", "ranking", "choice", "rest_unordered", "strength", "shown", "meta")
_OF_A_COMPARISON = ("better", "worse", "probability", "tie", "margin", "weight")


def canonical(row: Row, settings: ReadSettings) -> Parsed:
    """`prompt`, `responses`, and `comparisons` or `votes`. Where there are both, the comparisons
    stand, unless `read.votes.recount` says otherwise."""
    require(row, "responses")
    listed = list_responses(list_field(row, "responses"))
    notes = list(listed.notes)
    votes = _votes(list_field(row, "votes"), listed, notes)
    items = [_comparison(item, listed) for item in list_field(row, "comparisons")]
    stated = tuple(c for c in items if c is not None)
    counted = not items or bool(votes and settings.votes.recount)
    return Parsed(
        prompt_of(require(row, "prompt")),
        listed.responses,
        stated=() if counted else stated,
        votes=votes if counted else (),
        beside=() if counted else votes,
        fields=common_fields(row, ("prompt", "responses", "comparisons", "votes")),
        notes=tuple(notes),
        heeds=frozenset({"recount"} if items and votes else ()),
    )


def tiers_of(value: Any, listed: Listed, what: str) -> tuple[tuple[int, ...], ...]:
    """A ranking of the row's responses, best first, as indices of the usable ones.

    Raises PalateError where it is not a list of indices, or of lists of indices that tie.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise PalateError(f"{what}: ranking is {type(value).__name__}, not a list", "wrong type")
    tiers = [tier if isinstance(tier, list | tuple) else [tier] for tier in value]
    _check_indices([i for tier in tiers for i in tier], listed.num_listed, what)
    placed = [tuple(listed.position[i] for i in tier if i in listed.position) for tier in tiers]
    return tuple(tier for tier in placed if tier)


def _check_indices(indices: Sequence[Any], num_responses: int, what: str) -> None:
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int):
            raise PalateError(f"{what}: {index!r:.40} is not a response index", "wrong type")
        if not 0 <= index < num_responses:
            raise PalateError(
                f"{what} points to response {index}; there are {num_responses}, counted from 0",
                "comparison outside the responses",
            )


def _votes(items: Sequence[Any], listed: Listed, notes: list[Note]) -> tuple[Vote, ...]:
    votes = []
    for number_of_vote, item in enumerate(items):
        vote = _vote(item, listed)
        if vote is None:
            what = f"vote {number_of_vote} compares no two of the usable responses"
            notes.append(("vote", "vote that compares nothing", what))
        else:
            votes.append(vote)
    return tuple(votes)


def _vote(item: Any, listed: Listed) -> Vote | None:
    """A vote, or None when it compares no two of the usable responses."""
    if not isinstance(item, Mapping):
        raise PalateError(f"a vote is {type(item).__name__}, not an object", "wrong type")
    unknown = set(item) - set(_OF_A_VOTE)
    if unknown:
        raise PalateError(f"vote has unknown fields {sorted(unknown)}", "unknown field")
    annotator = "" if item.get("annotator") is None else str(item["annotator"])
    ranking, unordered = _ranking(item, listed.num_listed, f"vote of {annotator!r}")
    tiers = tiers_of(ranking, listed, f"vote of {annotator!r}")
    # A last tier of unusable or of single responses leaves nothing unordered.
    rest = tiers_of(ranking[-1:], listed, "rest") if unordered else ()
    unordered = bool(rest) and len(rest[0]) > 1
    shown = None
    if item.get("shown") is not None:
        order = list_field(item, "shown")
        _check_indices(order, listed.num_listed, f"shown order of {annotator!r}")
        shown = tuple(listed.position[i] for i in order if i in listed.position)
    if sum(map(len, tiers)) < 2 or (unordered and len(tiers) < 2):
        return None
    meta = object_of(item.get("meta")) or {}
    if not isinstance(meta, Mapping):
        raise PalateError(f"meta of a vote is {type(meta).__name__}, not an object", "wrong type")
    strength = item.get("strength")
    vote = Vote(annotator, tiers, None if strength is None else number(strength, "strength"), shown)
    return replace(vote, meta=dict(meta), rest_unordered=unordered)


def _ranking(item: Mapping[str, Any], num_responses: int, what: str) -> tuple[Any, bool]:
    """(the vote's ranking as the row states it, whether its last tier has no order)."""
    unordered = item.get("rest_unordered")
    if not isinstance(unordered, bool | None):
        raise PalateError(
            f"{what}: rest_unordered is {unordered!r:.20}, not true or false", "wrong type"
        )
    choice = item.get("choice")
    if choice is None:
        return item.get("ranking"), bool(unordered)
    others = [i for i in range(num_responses) if i != choice]
    return ([others], False) if choice == "tie" else ([[choice], others], True)


def _comparison(item: Any, listed: Listed) -> Comparison | None:
    """A comparison, or None when one of its responses is not usable."""
    if not isinstance(item, Mapping):
        raise PalateError(f"a comparison is {type(item).__name__}, not an object", "wrong type")
    unknown = set(item) - set(_OF_A_COMPARISON)
    if unknown:
        raise PalateError(f"comparison has unknown fields {sorted(unknown)}", "unknown field")
    ends = [require(item, "better"), require(item, "worse")]
    _check_indices(ends, listed.num_listed, "comparison")
    if not all(end in listed.position for end in ends):
        return None
    values = {
        k: number(v, k) for k, v in item.items() if k not in ("better", "worse") and v is not None
    }
    return Comparison(listed.position[ends[0]], listed.position[ends[1]], **values)

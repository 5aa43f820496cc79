"""Rows of two answers, one preferred: pairs, whole conversations, HH transcripts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from palate.errors import PalateError
from palate.preferences.formats.fields import (
    Parsed,
    Row,
    common_fields,
    messages_of,
    number,
    optional,
    require,
)
from palate.preferences.formats.responses import answer
from palate.preferences.formats.transcripts import is_transcript, prompt_of, transcript
from palate.preferences.settings import ReadSettings
from palate.preferences.types import Comparison, Message, Response
from palate.preferences.votes import (
    HEEDED_BY_RATINGS,
    HEEDED_BY_STRENGTH,
    VoteSettings,
    comparison_of_strength,
    is_wide,
    rating_gap,
    tie_between,
)

SCORES = ("score", "rating", "avg_rating")
"""Names of a score of each side: score_chosen, chosen_score, chosen-rating, ..."""


def pairs(row: Row, settings: ReadSettings) -> Parsed:
    """`prompt`, `chosen`, `rejected`: text, messages or HH transcripts; the latter two may repeat
    the prompt, transcripts do."""
    prompt, chosen, rejected = (require(row, key) for key in ("prompt", "chosen", "rejected"))
    turns = prompt_of(prompt)
    if is_transcript(chosen) and is_transcript(rejected):
        turns = tuple(replace(turn, content=turn.content.strip()) for turn in turns)
        chosen, rejected = (
            [turn.as_dict() for turn in transcript(text, name)]
            for name, text in (("chosen", chosen), ("rejected", rejected))
        )
    if isinstance(chosen, list) and len(chosen) > 1:
        turns_full, chosen, rejected = _divide(
            messages_of(chosen, "chosen"), messages_of(rejected, "rejected")
        )
        # The conversation may hold more than `prompt` does (a system turn), never less or other.
        if _spoken(turns_full)[-len(turns) :] != _spoken(turns):
            raise PalateError("prompt differs from the conversation in chosen", "prompts differ")
        turns = turns_full
    return _pair(turns, chosen, rejected, row, settings)


def _spoken(turns: Sequence[Message]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in turns]


def implicit(row: Row, settings: ReadSettings) -> Parsed:
    """`chosen` and `rejected` as conversations in messages; all but the last turn is the prompt."""
    prompt, chosen, rejected = _divide(
        messages_of(require(row, "chosen"), "chosen"),
        messages_of(require(row, "rejected"), "rejected"),
    )
    return _pair(prompt, chosen, rejected, row, settings)


def hh(row: Row, settings: ReadSettings) -> Parsed:
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


def _pair(
    prompt: tuple[Message, ...], chosen: Any, rejected: Any, row: Row, settings: ReadSettings
) -> Parsed:
    # A strength stays in the meta: the comparison has it only where settings make use of it.
    used = ["prompt", "chosen", "rejected", "probability", "margin", "weight"]
    sides = []
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        side, taken = _with_score_and_model(answer(value, name), name, row, settings.rating)
        sides.append(side)
        used += taken
    if sides[0].text == sides[1].text:
        raise PalateError("chosen and rejected are the same text", "identical responses")
    chosen_score, rejected_score = sides[0].rating, sides[1].rating
    gap = None
    if chosen_score is not None and rejected_score is not None:
        gap = rating_gap(chosen_score, rejected_score)
    comparison = _weighed(_stated(row, gap, settings.votes), row)
    heeds = _heeded_by_strength(row)
    if gap is not None:
        is_tie = _checked_by_scores(gap, sides[0], sides[1], settings.votes)
        comparison = _weighed(tie_between(0, 1), row) if is_tie else comparison
        heeds |= HEEDED_BY_RATINGS | {"rating"}
    fields = common_fields(row, used)
    return Parsed(prompt, tuple(sides), (comparison,), fields=fields, heeds=heeds)


def _with_score_and_model(
    side: Response, name: str, row: Row, rating: str
) -> tuple[Response, list[str]]:
    """The response with its score and model from the row's columns, and those columns."""
    used = []
    for column in score_columns(name, rating):
        if side.rating is None and optional(row, column) is not None:
            side = replace(side, rating=number(row[column], column))
            used.append(column)
    for column in (f"{name}_model", f"{name}-model"):
        if optional(row, column) is not None:
            side = replace(side, model=str(row[column]))
            used.append(column)
    return side, used


def score_columns(side: str, rating: str) -> list[str]:
    """Names that the column of this side's score can have."""
    return [
        column
        for score in ((rating,) if rating else SCORES)
        for column in (f"{score}_{side}", f"{side}_{score}", f"{side}-{score.replace('_', '-')}")
    ]


def _stated(row: Row, gap: float | None, settings: VoteSettings) -> Comparison:
    """The pair's comparison with its column's probability that chosen is the better one, and the
    margin of its column, or that of its strength, which is the gap between its scores where the row
    states none."""
    strength = optional(row, "strength")
    comparison = Comparison(0, 1)
    if strength is not None:
        # Its sign says which side was meant, and chosen says that already.
        comparison = comparison_of_strength(0, 1, abs(number(strength, "strength")), settings)
    elif gap is not None:
        comparison = comparison_of_strength(0, 1, abs(gap), settings)
    margin, stated = optional(row, "margin"), optional(row, "probability")
    if margin is not None:
        comparison = replace(comparison, margin=number(margin, "margin"))
    if stated is None:
        return comparison
    probability = number(stated, "probability")
    if 0 <= probability < 0.5:
        raise PalateError(
            f"probability is {probability:g}: below 0.5, which says that rejected is the better"
            " one; exchange the two and take 1 - probability",
            "probability contradicts the choice",
        )
    return replace(comparison, probability=probability)


def _weighed(comparison: Comparison, row: Row) -> Comparison:
    weight = optional(row, "weight")
    if weight is None:
        return comparison
    return replace(comparison, weight=comparison.weight * number(weight, "weight"))


def _heeded_by_strength(row: Row) -> frozenset[str]:
    if optional(row, "strength") is None:
        return frozenset()
    stated = optional(row, "margin") is not None
    return HEEDED_BY_STRENGTH - ({"margin_per_strength"} if stated else set())


def _checked_by_scores(
    gap: float, chosen: Response, rejected: Response, settings: VoteSettings
) -> bool:
    """Whether the scores make a tie of the pair, instead of what it states; PalateError where they
    are equal and that is left out, too close, or the wrong way round."""
    assert chosen.rating is not None and rejected.rating is not None
    scores = f"chosen has {chosen.rating:g} and rejected {rejected.rating:g}"
    if gap < 0:
        raise PalateError(f"{scores}: they contradict the choice", "scores contradict the choice")
    if gap == 0 and settings.equal == "tie":
        return True
    if gap == 0 or not is_wide(gap, chosen.rating, settings.min_gap):
        raise PalateError(
            f"{scores}: they do not differ (by {settings.min_gap:g} or more)",
            "no ratings that differ",
        )
    return False

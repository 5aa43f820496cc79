"""What rows say to groups: votes and ratings are counted, once all rows of a group are together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from math import comb

from palate.errors import PalateError
from palate.preferences.formats.fields import Note, Parsed
from palate.preferences.types import Comparison, PreferenceGroup, Response
from palate.preferences.votes import (
    HEEDED_BY_RATINGS,
    VoteSettings,
    comparisons_from_ratings,
    comparisons_from_votes,
    heeded_by_votes,
    rating_gap,
)


@dataclass(frozen=True)
class Counted:
    """A group, what was left out of it in counting, and the settings that were heeded."""

    group: PreferenceGroup
    notes: tuple[Note, ...]
    heeds: frozenset[str]


def count(parsed: Parsed, file: str, settings: VoteSettings) -> Counted:
    """The group of what rows say: stated comparisons, then those of votes, then of ratings.

    Raises PalateError where no comparison comes of it.
    """
    ratings = {
        index: rating
        for index in sorted(parsed.rated)
        if (rating := parsed.responses[index].rating) is not None
    }
    comparisons = (
        *parsed.stated,
        *comparisons_from_votes(len(parsed.responses), parsed.votes, settings),
        *chain.from_iterable(
            comparisons_from_ratings(rated, settings) for rated in parsed.rated_apart or (ratings,)
        ),
    )
    if len(ratings) > 1 and not comparisons:
        raise PalateError(
            f"no two ratings differ (by {settings.min_gap:g} or more):"
            f" {sorted(ratings.values())!r:.200}",
            "no ratings that differ",
        )
    notes = [_of_disagreement(parsed.rated_apart)] if parsed.rated_apart else []
    group = PreferenceGroup(
        parsed.prompt,
        parsed.responses,
        _between_texts(parsed.responses, comparisons, notes),
        (*parsed.votes, *parsed.beside),
        file=file,
        line=parsed.lines[0],
        further_lines=parsed.lines[1:],
        votes_counted=bool(parsed.votes) and not (parsed.stated or parsed.beside or ratings),
        **parsed.fields,
    )
    heeds = parsed.heeds | heeded_by_votes(parsed.votes, settings)
    return Counted(group, tuple(notes), heeds | HEEDED_BY_RATINGS if ratings else heeds)


def _of_disagreement(rows: Sequence[Mapping[int, float]]) -> Note:
    given: dict[int, list[float]] = {}
    for row in rows:
        for index, rating in row.items():
            given.setdefault(index, []).append(rating)
    unlike = [
        f"response {index} has {', '.join(f'{rating:g}' for rating in found)}"
        for index, found in sorted(given.items())
        if rating_gap(max(found), min(found)) != 0
    ]
    pairs = [set(combinations(sorted(row), 2)) for row in rows]
    num_across = comb(len(given), 2) - len(set().union(*pairs))
    detail = f"{'; '.join(unlike):.200}: {num_across} pairs of different rows are not compared"
    return "comparison", "ratings of rows disagree", detail


def _between_texts(
    responses: Sequence[Response], comparisons: Sequence[Comparison], notes: list[Note]
) -> tuple[Comparison, ...]:
    """The comparisons between different texts; PalateError where none is left."""
    distinct = tuple(c for c in comparisons if responses[c.better].text != responses[c.worse].text)
    num_same = len(comparisons) - len(distinct)
    if num_same and not distinct:
        raise PalateError("all compared responses are the same text", "identical responses")
    if num_same:
        detail = f"{num_same} of {len(comparisons)} comparisons are between identical texts"
        notes.append(("comparison", "identical responses", detail))
    return distinct

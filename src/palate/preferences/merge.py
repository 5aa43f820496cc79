"""Rows of one prompt to one."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from palate.errors import PalateError
from palate.preferences.formats.fields import Parsed
from palate.preferences.types import Response, Vote
from palate.preferences.votes import rating_gap


def prompt_key(parsed: Parsed) -> str:
    """A digest of what the responses answer: messages, tools and template arguments, to the letter
    (`prompt_cluster` is coarser)."""
    asked = [
        [message.as_dict() for message in parsed.prompt],
        list(parsed.fields["tools"]),
        parsed.fields["template_arguments"],
    ]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def runs_of_one_prompt(items: Iterable[Parsed]) -> Iterator[list[Parsed]]:
    """Rows of one prompt that follow each other."""
    return (list(run) for _, run in groupby(items, key=prompt_key))


def all_of_one_prompt(items: Iterable[Parsed]) -> Iterator[list[Parsed]]:
    """Rows of one prompt wherever they stand, in the order of first rows; holds all of them."""
    by_prompt: dict[str, list[Parsed]] = {}
    for item in items:
        by_prompt.setdefault(prompt_key(item), []).append(item)
    yield from by_prompt.values()


def merged(rows: Sequence[Parsed]) -> Parsed:
    """What rows of one prompt say together.

    Responses with the same text become one. Votes are put together, and counted as those of one row
    are; so are ratings, where the rows agree (`ratings_apart`). Stated comparisons are kept as they
    are, also where they repeat or contradict each other: each is an observation of its own. Raises
    PalateError where the rows are rated on different scales.
    """
    if len(rows) == 1:
        return rows[0]
    scales = {row.rated_by for row in rows if row.rated_by}
    if len(scales) > 1:
        raise PalateError(
            f"rows of one prompt are rated in different fields ({', '.join(sorted(scales))}); a"
            " comparison needs one scale",
            "mixed ratings",
        )
    responses, indices = without_repeats([row.responses for row in rows])
    placed = list(zip(rows, indices, strict=True))
    return replace(
        rows[0],
        responses=responses,
        stated=tuple(
            replace(c, better=own[c.better], worse=own[c.worse])
            for row, own in placed
            for c in row.stated
        ),
        votes=tuple(_renumbered(vote, own) for row, own in placed for vote in row.votes),
        beside=tuple(_renumbered(vote, own) for row, own in placed for vote in row.beside),
        rated_by="".join(scales),
        rated=frozenset(own[i] for row, own in placed for i in row.rated),
        rated_apart=ratings_apart(
            [{own[i]: row.responses[i].rating or 0.0 for i in row.rated} for row, own in placed]
        ),
        fields={**rows[0].fields, **_common_fields([row.fields for row in rows])},
        lines=tuple(line for row in rows for line in row.lines),
        heeds=frozenset().union(*(row.heeds for row in rows)),
    )


def ratings_apart(rows: Sequence[Mapping[int, float]]) -> tuple[Mapping[int, float], ...]:
    """The rows' ratings apart from each other, where rows that rate several responses disagree on
    one; none where they agree, or where each rates one response.

    Who gives one answer 1 and who gives it 5 have two scales, or two minds: a 3 of the one and a 4
    of the other do not say which is better. Rows with one rating each can only be compared across
    rows, and are one together; what they say of an answer several times counts by its mean.
    """
    several = [row for row in rows if len(row) > 1]
    given: dict[int, list[float]] = {}
    for row in rows:
        for index, rating in row.items():
            given.setdefault(index, []).append(rating)
    agreed = all(rating_gap(max(found), min(found)) == 0 for found in given.values())
    if agreed or not several:
        return ()
    singles: dict[int, list[float]] = {}
    for row in rows:
        for index, rating in row.items() if len(row) == 1 else ():
            singles.setdefault(index, []).append(rating)
    means = {index: sum(found) / len(found) for index, found in singles.items()}
    return (*several, means) if len(means) > 1 else tuple(several)


def without_repeats(
    rows: Sequence[Sequence[Response]],
) -> tuple[tuple[Response, ...], list[list[int]]]:
    """The responses of all rows, those with the same text once, and for each row the new indices of
    its own.

    A text that stands twice in one row stays twice: the row's comparisons tell the two apart. The
    rating is the mean of those given, the model the first.
    """
    position: dict[tuple[str, bool, int], int] = {}
    copies: list[list[Response]] = []
    indices: list[list[int]] = []
    for row in rows:
        seen: Counter[tuple[str, bool]] = Counter()
        own = []
        for response in row:
            text = (response.text, response.finished)
            index = position.setdefault((*text, seen[text]), len(copies))
            seen[text] += 1
            if index == len(copies):
                copies.append([])
            copies[index].append(response)
            own.append(index)
        indices.append(own)
    return tuple(map(_one, copies)), indices


def _one(copies: Sequence[Response]) -> Response:
    if len(copies) == 1:
        return copies[0]
    ratings = [copy.rating for copy in copies if copy.rating is not None]
    return replace(
        copies[0],
        model=next((copy.model for copy in copies if copy.model is not None), None),
        rating=sum(ratings) / len(ratings) if ratings else None,
        meta=_common([copy.meta for copy in copies]),
    )


def _common_fields(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first id, and what all rows' meta say, with what each says besides under `merged`."""
    ids = [row["id"] for row in rows]
    metas = [row["meta"] for row in rows]
    if len(set(ids)) > 1:
        metas = [{**meta, "id": id} for meta, id in zip(metas, ids, strict=True)]
    return {"id": next((id for id in ids if id is not None), None), "meta": _common(metas)}


def _common(metas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shared = {
        key: value
        for key, value in metas[0].items()
        if all(key in meta and meta[key] == value for meta in metas)
    }
    own = [{k: v for k, v in meta.items() if k not in shared} for meta in metas]
    return {**shared, "merged": own} if any(own) else shared


def _renumbered(vote: Vote, index: Sequence[int]) -> Vote:
    ranking = tuple(tuple(index[i] for i in tier) for tier in vote.ranking)
    shown = None if vote.shown is None else tuple(index[i] for i in vote.shown)
    return replace(vote, ranking=ranking, shown=shown)

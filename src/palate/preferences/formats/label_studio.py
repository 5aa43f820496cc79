"""Tasks of Label Studio's JSON export: pairs and rankings of answers."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from palate.errors import PalateError
from palate.preferences.formats.fields import Note, Parsed, Row, list_field, require
from palate.preferences.formats.judged import better_of, heeded_by_labels
from palate.preferences.formats.responses import Listed, list_responses
from palate.preferences.formats.tasks import (
    Judgement,
    answer_columns,
    natural_order,
    of_judgements,
    prompt_shown,
    tiers_of_two,
    with_mapped_answers,
)
from palate.preferences.settings import ReadSettings


@dataclass(frozen=True)
class _Result:
    """The part of an annotation that compares answers, and its other parts by their names."""

    annotator: str
    kind: str
    value: Any
    shown: tuple[str, ...]
    """Names of the tags that it compares, left first, where the result says so."""
    others: Mapping[str, Any]


def label_studio(row: Row, settings: ReadSettings) -> Parsed:
    """`data` as shown, and `annotations`, each with one result of type pairwise (left, right),
    choices (left, right or tie) or ranker (ids of items, best first).

    Left and right are the two fields of the data that `to_name` names, or those with names such as
    answer1 and answer2, or what `read.columns` calls response1 and response2. Cancelled annotations
    are left out; other results (a comment, a rating) are kept with the vote.
    """
    data = require(row, "data")
    if not isinstance(data, Mapping):
        raise PalateError(f"data is {type(data).__name__}, not an object", "wrong type")
    data = with_mapped_answers(row, data)
    notes: list[Note] = []
    results = _results(list_field(row, "annotations"), notes)
    if not results:
        raise PalateError("nobody has said which answer is better", "no vote")
    kinds = {result.kind == "ranker" for result in results}
    if len(kinds) > 1:
        raise PalateError("some annotations rank a list, others choose of two", "unclear question")
    if results[0].kind == "ranker":
        name, items = _ranked_list(data)
        listed, columns = list_responses([_with_body(item) for item in items]), [name]
        ids = [str(item["id"]) for item in items]
        tiers = [_ranker_tiers(result.value, ids, listed) for result in results]
    else:
        columns = _left_and_right(data, {result.shown for result in results})
        listed = list_responses([data[column] for column in columns])
        labels = settings.votes.labels
        tiers = [tiers_of_two(better_of(result.value, result.kind, labels)) for result in results]
    prompt, prompt_column = prompt_shown(row, data)
    judgements = [
        Judgement(result.annotator, order, result.others)
        for result, order in zip(results, tiers, strict=True)
    ]
    unused = {k: v for k, v in data.items() if k not in (*columns, prompt_column)}
    taken = ("data", "annotations", "prompt", "response1", "response2")
    rest = {k: v for k, v in row.items() if k not in taken}
    rest |= {"data": unused} if unused else {}
    parsed = of_judgements(prompt, listed, judgements, rest, notes)
    labels_given = [result.value for result in results if result.kind != "ranker"]
    return replace(parsed, heeds=parsed.heeds | heeded_by_labels(labels_given))


def _left_and_right(data: Mapping[str, Any], shown: Set[tuple[str, ...]]) -> list[str]:
    """The fields of the left and the right answer.

    `read.columns` decides; then `to_name` where it names two fields of the data; then the fields'
    own order. Raises PalateError where `to_name` puts its tags in another order than their numbers:
    which field a tag shows is not in the export.
    """
    columns = answer_columns(data) if not any(_are_fields(two, data) for two in shown) else []
    if columns == ["response1", "response2"]:
        return columns
    orders = {two for two in shown if two}
    if len(orders) > 1:
        raise PalateError(f"annotations compare {sorted(orders)}; one order", "unclear question")
    for two in orders:
        if _are_fields(two, data):
            return list(two)
        if list(two) != sorted(two, key=natural_order):
            raise PalateError(
                f"to_name is {','.join(two)}, and the data have no such fields; name the left and"
                " the right one in read.columns (response1, response2)",
                "unclear question",
            )
    return columns


def _are_fields(names: Sequence[str], data: Mapping[str, Any]) -> bool:
    return bool(names) and all(name in data for name in names)


def _results(annotations: Sequence[Any], notes: list[Note]) -> list[_Result]:
    found = []
    for place, annotation in enumerate(annotations):
        if not isinstance(annotation, Mapping):
            raise PalateError(f"an annotation is {type(annotation).__name__}", "wrong type")
        annotator = _annotator(annotation.get("completed_by"))
        comparing: list[tuple[str, Any, tuple[str, ...]]] = []
        others: dict[str, Any] = {}
        for result in list_field(annotation, "result"):
            value = result.get("value") if isinstance(result, Mapping) else None
            if not isinstance(value, Mapping):
                raise PalateError(f"a result of {annotator!r} has no value", "wrong type")
            kind = str(result.get("type"))
            held_in = {"pairwise": "selected", "ranker": "ranker", "choices": "choices"}.get(kind)
            if held_in is None:
                others[str(result.get("from_name"))] = dict(value)
            else:
                comparing.append((kind, value.get(held_in), _tags(result.get("to_name"))))
        if annotation.get("was_cancelled") or not comparing:
            why = "cancelled" if annotation.get("was_cancelled") else "no preference in it"
            notes.append(("vote", why, f"annotation {place} of {annotator!r}"))
        elif len(comparing) > 1:
            named = " and ".join(kind for kind, *_ in comparing)
            raise PalateError(f"annotation {place} has {named}; one of them", "unclear question")
        else:
            kind, chosen, tags = comparing[0]
            chosen = chosen[0] if kind == "choices" and _is_single(chosen) else chosen
            found.append(_Result(annotator, kind, chosen, tags, others))
    return found


def _tags(to_name: Any) -> tuple[str, ...]:
    """The two tags that a result is about; none where it names one, or more than two."""
    names = to_name.split(",") if isinstance(to_name, str) else to_name
    if not isinstance(names, list) or len(names) != 2:
        return ()
    return (str(names[0]).strip(), str(names[1]).strip())


def _is_single(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1


def _annotator(person: Any) -> str:
    if isinstance(person, Mapping):
        person = person.get("email") or person.get("id")
    return "" if person is None else str(person)


def _ranked_list(data: Mapping[str, Any]) -> tuple[str, list[Mapping[str, Any]]]:
    """The list of items with ids in the data, and its name."""
    lists = {
        str(name): value
        for name, value in data.items()
        if isinstance(value, list)
        and value
        and all(isinstance(item, Mapping) and "id" in item for item in value)
    }
    if len(lists) != 1:
        raise PalateError(
            f"{len(lists)} lists of items with ids in the data, expected one", "missing field"
        )
    return next(iter(lists.items()))


def _with_body(item: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"text" if name == "body" else name: value for name, value in item.items()}


def _ranker_tiers(value: Any, ids: Sequence[str], listed: Listed) -> tuple[tuple[int, ...], ...]:
    """The order of one list; "_" holds what was put in no bucket, and counts where all is in it."""
    if isinstance(value, Mapping):
        filled = [name for name, members in value.items() if members and name != "_"]
        if len(filled) > 1:
            raise PalateError(
                f"items in several buckets ({', '.join(map(str, filled))}); an order within each"
                " says nothing across them",
                "several buckets",
            )
        value = value[filled[0]] if filled else value.get("_")
    if not isinstance(value, list) or not all(str(item) in ids for item in value):
        raise PalateError(f"ranker {value!r:.60} is not a list of the items' ids", "wrong type")
    if len({str(item) for item in value}) < len(value):
        raise PalateError(f"ranker {value!r:.60} repeats an item", "invalid ranking")
    places = [listed.position.get(ids.index(str(item))) for item in value]
    return tuple((place,) for place in places if place is not None)

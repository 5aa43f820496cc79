"""The way back: groups to canonical rows, and to the preference format of TRL."""

from dataclasses import dataclass, fields
from typing import Any

from palate.preferences.formats.fields import Note
from palate.preferences.types import Comparison, PreferenceGroup, Response, Vote


def to_canonical(group: PreferenceGroup) -> dict[str, Any]:
    """The group as a row of canonical JSONL.

    Reading it gives an equal group, but for `file`, `line`, `further_lines` and `source`, which are
    of the place it stood in, and `votes_counted`: its comparisons are stated. `read.votes.recount`
    makes them from the votes again. Nothing in it is converted: a value that JSON has no form for
    (a date from Parquet) is left to the caller.
    """
    row: dict[str, Any] = {
        "prompt": [message.as_dict() for message in group.prompt],
        "responses": [_response(response) for response in group.responses],
        "comparisons": [_changed(comparison) for comparison in group.comparisons],
    }
    further = {
        "votes": [_vote(vote) for vote in group.votes],
        "tools": [dict(tool) for tool in group.tools],
        "template_arguments": dict(group.template_arguments),
        "id": group.id,
        "meta": dict(group.meta),
    }
    return {
        **row,
        **{name: value for name, value in further.items() if value not in (None, [], {})},
    }


def _changed(item: Response | Comparison) -> dict[str, Any]:
    """The fields that differ from their defaults, and those that have none."""
    return {
        f.name: getattr(item, f.name) for f in fields(item) if getattr(item, f.name) != f.default
    }


def _response(response: Response) -> dict[str, Any]:
    row = _changed(response)
    return {**row, "meta": dict(response.meta)} if row.pop("meta") else row


def _vote(vote: Vote) -> dict[str, Any]:
    row: dict[str, Any] = {
        "annotator": vote.annotator,
        "ranking": [list(tier) for tier in vote.ranking],
    }
    if vote.rest_unordered:
        row["rest_unordered"] = True
    if vote.strength is not None:
        row["strength"] = vote.strength
    if vote.shown is not None:
        row["shown"] = list(vote.shown)
    if vote.meta:
        row["meta"] = dict(vote.meta)
    return row


@dataclass(frozen=True)
class TrlRows:
    """Rows for TRL's trainers, and what of the group they can't say, as entries for a ledger."""

    rows: list[dict[str, Any]]
    lost: list[Note]


def to_trl(group: PreferenceGroup) -> TrlRows:
    """One row for each certain comparison: `prompt`, `chosen` and `rejected` as messages, with
    `tools`, `chat_template_kwargs` and `margin` where they apply.

    A comparison that is soft or a tie has no row, and a weight, a vote, a rating or an answer's cut
    end no column: each is named in `lost`. TRL takes a column from all rows or none: where some
    rows of a file have a margin, the others need 0.
    """
    lost: list[Note] = []
    rows = []
    shared: dict[str, Any] = {"prompt": [message.as_dict() for message in group.prompt]}
    if group.tools:
        shared["tools"] = [dict(tool) for tool in group.tools]
    if group.template_arguments:
        shared["chat_template_kwargs"] = dict(group.template_arguments)
    for place, c in enumerate(group.comparisons):
        if c.probability < 1 or c.tie > 0:
            what = f"comparison {place} has probability {c.probability:g}, tie {c.tie:g}"
            lost.append(("comparison", "not certain", what))
            continue
        if c.weight != 1:
            lost.append(("comparison", "weight lost", f"comparison {place} weighs {c.weight:g}"))
        sides = {"chosen": group.responses[c.better], "rejected": group.responses[c.worse]}
        row = {**shared, **{name: _assistant(side) for name, side in sides.items()}}
        rows.append({**row, "margin": c.margin} if c.margin else row)
    compared = {index for c in group.comparisons for index in (c.better, c.worse)}
    for index, response in enumerate(group.responses):
        if index not in compared:
            lost.append(("response", "never compared", f"response {index}"))
        elif not response.finished:
            lost.append(("response", "unfinished, will be closed", f"response {index}"))
        if response.rating is not None:
            lost.append(("response", "rating lost", f"response {index}: {response.rating:g}"))
    if group.votes:
        lost.append(("vote", "votes lost", f"{len(group.votes)} votes"))
    return TrlRows(rows, lost)


def _assistant(response: Response) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": response.text}]

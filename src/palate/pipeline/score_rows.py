"""Rows to score: which answers a row holds, and their token ids."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.model.support import Trust
from palate.preferences.files.rows import iter_rows
from palate.preferences.formats.fields import Row, common_fields, messages_of, require, text_of
from palate.preferences.types import Response, ScoringItem
from palate.scoring.scorer import Scorer

REWARD_FIELDS = ("reward", "rewards", "error")
SUPPORT_FIELDS = ("support_distance", "support_distances", "support_beyond", "support_beyonds")


@dataclass
class PendingRow:
    """An input row with what came of it: for each answer its token ids, or None and an error."""

    row: dict[str, Any]
    ids: list[tuple[int, ...] | None]
    errors: list[str]
    is_list: bool
    is_cut: bool = False
    taken: list[float] = field(default_factory=list)
    """What a length correction takes off each reward; empty without one."""

    def record(self) -> dict[str, Any]:
        """All but the ids, for `ScoredRow.of_record`."""
        return {
            "taken": self.taken,
            "row": self.row,
            "is_known": [ids is not None for ids in self.ids],
            "error": "; ".join(self.errors) or None,
            "is_list": self.is_list,
        }


@dataclass(frozen=True)
class ScoredRow:
    """An input row with what was found of its answers."""

    row: dict[str, Any]
    values: dict[str, list[float | None]]
    """`reward`, on request `support_distance` and `support_beyond`: a value for each answer, null
    where it has none."""
    error: str | None
    is_list: bool

    @classmethod
    def of_record(
        cls,
        record: Mapping[str, Any],
        rewards: Iterable[float],
        distances: Iterable[float],
        trust: Trust | None,
    ) -> "ScoredRow":
        """`rewards`, and with `trust` the `distances`, are those of the row's answers that have
        ids, in their order."""
        is_known = record["is_known"]
        taken = record["taken"] or [0.0] * len(is_known)
        rewards = iter(rewards)
        values: dict[str, list[float | None]] = {
            "reward": [
                next(rewards) - part if known else None
                for known, part in zip(is_known, taken, strict=True)
            ]
        }
        if trust is not None:
            distances = iter(distances)
            found = [next(distances) if known else None for known in is_known]
            values["support_distance"] = [*found]
            values["support_beyond"] = [None if d is None else trust.beyond(d) for d in found]
        return cls(record["row"], values, record["error"], record["is_list"])

    def line(self) -> str:
        """The row as a line of JSON, with `reward` (or `rewards`) and the like, and `error`."""
        written = {
            f"{name}s" if self.is_list else name: value if self.is_list else value[0]
            for name, value in self.values.items()
        }
        # Dates and decimals of a Parquet file are written as text.
        return json.dumps({**self.row, **written, "error": self.error}, default=str) + "\n"


def rows_in_order(
    source: str, hub_split: str, output_fields: Collection[str]
) -> Iterator[dict[str, Any] | str]:
    """Input rows, and in their places the complaint about those that can't be parsed.

    Raises PalateError for a row that has one of `output_fields`.
    """
    ledger = Ledger()
    num_seen = 0
    for line, row in iter_rows(source, ledger, hub_split):
        for entry in ledger.entries[num_seen:]:
            yield f"line {entry.line}: {entry.reason}: {entry.detail}"
        num_seen = len(ledger.entries)
        taken = [name for name in output_fields if name in row]
        if taken:
            raise PalateError(
                f"{source}: line {line} has a field {taken[0]!r} already, which scoring writes;"
                " rename it, so that nothing is overwritten"
            )
        yield row
    for entry in ledger.entries[num_seen:]:
        yield f"line {entry.line}: {entry.reason}: {entry.detail}"


def prepare_row(row: dict[str, Any] | str, scorer: Scorer) -> PendingRow:
    """Token ids of a row's answers; a complaint in place of a row becomes its error."""
    if isinstance(row, str):
        return PendingRow({}, [None], [row], is_list=False)
    try:
        items, is_list = items_of_row(row)
    except PalateError as error:
        return PendingRow(row, [None], [str(error)], is_list=False)
    pending = PendingRow(row, [], [], is_list)
    for index, item in enumerate(items):
        try:
            if isinstance(item, PalateError):
                raise item
            ids, num_cut = scorer.render(item)
        except PalateError as error:
            pending.ids.append(None)
            pending.errors.append(f"response {index}: {error}" if is_list else str(error))
            taken = 0.0
        else:
            pending.ids.append(ids)
            pending.is_cut |= num_cut > 0
            if scorer.length_correction is not None:
                taken = float(scorer.length_correction.of_texts([item.response.text])[0])
        if scorer.length_correction is not None:
            pending.taken.append(taken)
    return pending


def items_of_row(row: Row) -> tuple[list[ScoringItem | PalateError], bool]:
    """What is to be scored of a row, for each answer its item or what is wrong with it; and whether
    the row has a list of them.

    Raises PalateError for a row without prompt or answers, or with fields of a wrong type.
    """
    prompt, answers, is_list = _prompt_and_answers(row)
    fields = common_fields(row, ())
    items: list[ScoringItem | PalateError] = []
    for answer in answers:
        try:
            messages, response = messages_of(prompt, "prompt"), _response(answer)
            given = (fields["tools"], fields["template_arguments"])
            items.append(ScoringItem(messages, response, *given))
        except PalateError as error:
            items.append(error)
    return items, is_list


def _response(answer: Any) -> Response:
    if not isinstance(answer, Mapping):
        return Response(answer)
    text = answer.get("text") if answer.get("text") is not None else answer.get("content")
    return Response(text_of(text, "text"), finished=answer.get("finished") is not False)


def _prompt_and_answers(row: Row) -> tuple[Any, list[Any], bool]:
    # Parquet has every column in every row, with null where there is nothing.
    if row.get("messages") is not None:
        turns = messages_of(require(row, "messages"), "messages")
        if len(turns) < 2 or turns[-1].role != "assistant":
            raise PalateError("messages do not end with an assistant message")
        return [turn.as_dict() for turn in turns[:-1]], [turns[-1].content], False
    prompt = require(row, "prompt")
    if row.get("responses") is not None:
        answers = require(row, "responses")
        if not isinstance(answers, list):
            raise PalateError(f"responses is {type(answers).__name__}, not a list")
        return prompt, answers, True
    return prompt, [require(row, "response")], False

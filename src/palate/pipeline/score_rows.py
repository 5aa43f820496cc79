"""Rows to score: which answers a row holds, and their token ids."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.preferences.files.rows import iter_rows
from palate.preferences.formats.fields import Row, common_fields, messages_of, require, text_of
from palate.preferences.types import Response, ScoringItem
from palate.scoring.scorer import Scorer

OUTPUT_FIELDS = ("reward", "rewards", "error")


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
    """An input row with its rewards, null for an answer that has none."""

    row: dict[str, Any]
    rewards: list[float | None]
    error: str | None
    is_list: bool

    @classmethod
    def of_record(cls, record: Mapping[str, Any], rewards: Iterable[float]) -> "ScoredRow":
        """`rewards` are those of the row's answers that have ids, in their order."""
        known = iter(rewards)
        taken = record["taken"] or [0.0] * len(record["is_known"])
        values = [
            next(known) - part if is_known else None
            for is_known, part in zip(record["is_known"], taken, strict=True)
        ]
        return cls(record["row"], values, record["error"], record["is_list"])

    def line(self) -> str:
        """The row as a line of JSON, with `reward` (or `rewards`) and `error`."""
        name = "rewards" if self.is_list else "reward"
        value = self.rewards if self.is_list else self.rewards[0]
        # Dates and decimals of a Parquet file are written as text.
        return json.dumps({**self.row, name: value, "error": self.error}, default=str) + "\n"


def rows_in_order(source: str, hub_split: str) -> Iterator[dict[str, Any] | str]:
    """Input rows, and in their places the complaint about those that can't be parsed."""
    ledger = Ledger()
    num_seen = 0
    for line, row in iter_rows(source, ledger, hub_split):
        for entry in ledger.entries[num_seen:]:
            yield f"line {entry.line}: {entry.reason}: {entry.detail}"
        num_seen = len(ledger.entries)
        taken = [name for name in OUTPUT_FIELDS if name in row]
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
        prompt, answers, is_list = _prompt_and_answers(row)
        fields = common_fields(row, ())
    except PalateError as error:
        return PendingRow(row, [None], [str(error)], is_list=False)
    pending = PendingRow(row, [], [], is_list)
    for index, answer in enumerate(answers):
        try:
            item = ScoringItem(
                messages_of(prompt, "prompt"),
                _response(answer),
                fields["tools"],
                fields["template_arguments"],
            )
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

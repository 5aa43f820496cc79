"""A scorer whose pooled states are rows of a table, so that every number can be worked out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palate.forest.plan import Packing, Plan
from palate.model.heads import Head, rewards
from palate.preferences import Comparison, Message, PreferenceGroup, Response, ScoringItem
from palate.rendering import RenderedGroup
from palate.scoring.scorer import Scorer


class TableModel:
    """A sequence is one id, and its pooled state is that row of the table."""

    layout = "rows"

    def __init__(self, table_ND: np.ndarray, head: Head | np.ndarray) -> None:
        self.table = torch.tensor(table_ND, dtype=torch.float32)
        if isinstance(head, np.ndarray):
            weight_D = torch.tensor(head, dtype=torch.float32)
            head = nn.Linear(len(weight_D), 1, bias=False)
            head.load_state_dict({"weight": weight_D[None]})
        self.head = head
        self.transformer = SimpleNamespace(dtype=torch.float32)

    def eval(self) -> "TableModel":
        return self

    def packing(self, tokens_per_microbatch: int, pad_id: int) -> Packing:
        return Packing("rows", tokens_per_microbatch, pad_id)

    def run(self, plan: Plan) -> Any:
        id_N = plan.input_ids_RT[plan.end_row_N, plan.end_column_N]
        return SimpleNamespace(hidden_ND=self.table[torch.as_tensor(id_N).long()])

    def reward_of(self, hidden_ND: Tensor) -> Tensor:
        return rewards(self.head, hidden_ND)

    @contextmanager
    def scoring_mode(self) -> Iterator[None]:
        with torch.inference_mode():
            yield


class TableScorer(Scorer):
    """Scores the item whose answer is the number of a row."""

    def __init__(
        self, table_ND: np.ndarray, head: Head | np.ndarray, temperature: float = 1.0
    ) -> None:
        sidecar = SimpleNamespace(
            temperature={"value": temperature}, fingerprint={"weights": "those of the table"}
        )
        model: Any = TableModel(table_ND, head)
        renderer: Any = SimpleNamespace(pad_id=0)
        super().__init__(model, renderer, sidecar, 64)  # type: ignore[arg-type]

    def render(self, item: ScoringItem) -> tuple[tuple[int, ...], int]:
        return (int(item.response.text),), 0


def table_group(
    prompt: str, rows: Sequence[int], comparisons: Sequence[Comparison] = (Comparison(0, 1),)
) -> RenderedGroup:
    group = PreferenceGroup(
        (Message("user", prompt),),
        tuple(Response(str(row)) for row in rows),
        tuple(comparisons),
        file="table",
        line=rows[0] + 1,
    )
    sequences = tuple((row,) for row in rows)
    return RenderedGroup(sequences, tuple(comparisons), group, tuple(range(len(rows))))


def table_pairs(first: int, last: int) -> list[RenderedGroup]:
    """Rows two by two, each pair with a prompt of its own, the even row the better one."""
    return [table_group(f"prompt {row}", (row, row + 1)) for row in range(first, last, 2)]


def table_items(first: int, last: int, rows_per_prompt: int = 1) -> list[ScoringItem]:
    return [
        ScoringItem((Message("user", f"prompt {row // rows_per_prompt}"),), Response(str(row)))
        for row in range(first, last)
    ]

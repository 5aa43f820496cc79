"""The three passes of `palate score`: render, score, write. Each goes on where a kill stopped it.

Legend: A answers.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Never

import numpy as np
from tqdm import tqdm

from palate.model.support import Trust
from palate.pipeline.score_answers import (
    AnswerStore,
    Ids,
    append_rows,
    mapped,
    opened,
    read_rows,
    with_counts,
    write_values,
)
from palate.pipeline.score_order import (
    MICROBATCHES_PER_CHUNK,
    chunks,
    dictionary_order,
    length_order,
)
from palate.pipeline.score_progress import (
    DISTANCES,
    ORDER,
    REWARDS,
    SCORED,
    Progress,
    save,
)
from palate.pipeline.score_rows import PendingRow, ScoredRow
from palate.scoring.scorer import Scorer


def score_in_memory(
    directory: Path,
    scorer: Scorer,
    rows: Sequence[PendingRow],
    progress: Progress,
    trust: Trust | None,
) -> Progress:
    """All three passes for rows that fit one chunk; with `trust` they get their distances too."""
    known = [ids for row in rows for ids in row.ids if ids is not None]
    values = _values(scorer, known, progress.with_support)
    rewards, distances = (iter(values.get(name, [])) for name in (REWARDS, DISTANCES))
    with opened(directory / SCORED, 0) as handle:
        for row in rows:
            scored = ScoredRow.of_record(row.record(), rewards, distances, trust)
            handle.write(scored.line().encode())
    return with_counts(progress, rows)


def _values(scorer: Scorer, sequences: Sequence[Ids], with_support: bool) -> dict[str, list[float]]:
    """What is kept of the sequences, by the file that it is kept in: rewards, and support distances
    where the run has them, all rounded to float32."""
    if not with_support:
        return {REWARDS: scorer.score_ids(sequences)}
    value_N2 = scorer.score_ids_with_support(sequences).astype(np.float32)
    return {REWARDS: value_N2[:, 0].tolist(), DISTANCES: value_N2[:, 1].tolist()}


def render(
    directory: Path, rendered: Iterable[Sequence[PendingRow]], progress: Progress
) -> Iterator[Progress]:
    """Write rendered rows behind those of `progress`; yield the progress after each chunk."""
    with _bar("render", " rows", progress.num_rows) as bar:
        for rows in rendered:
            progress = append_rows(directory, rows, progress)
            save(directory, progress)
            bar.update(len(rows))
            yield progress
    if not progress.is_rendered:
        progress = replace(progress, is_rendered=True)
        save(directory, progress)
        yield progress


def score(directory: Path, scorer: Scorer, progress: Progress) -> Iterator[Progress]:
    """Write the rewards (and distances) of the answers behind the first `num_scored` of the order;
    yield the progress after each chunk."""
    store = AnswerStore(directory, progress)
    shares_prompts = scorer.model.layout == "tree"
    left_A = _order(directory, store, shares_prompts)[progress.num_scored :]
    budget = MICROBATCHES_PER_CHUNK * scorer.tokens_per_microbatch
    with _bar("score", " answers", progress.num_scored, len(store)) as bar:
        for chunk in chunks(store, left_A, budget, shares_prompts):
            found = _values(scorer, chunk.sequences, progress.with_support)
            for name, values in found.items():
                value_A = np.asarray(values, np.float32)[chunk.which]
                write_values(directory / name, chunk.places, value_A, len(store))
            progress = replace(progress, num_scored=progress.num_scored + len(chunk.places))
            save(directory, progress)
            bar.update(len(chunk.places))
            yield progress


def _order(directory: Path, store: AnswerStore, shares_prompts: bool) -> np.ndarray:
    """The order on the disk; made once, so that a resumed run needs no sort."""
    path = directory / ORDER
    if not path.exists():
        order_A = (dictionary_order if shares_prompts else length_order)(store)
        fresh = path.with_name(path.name + ".new")
        with opened(fresh, 0) as handle:
            handle.write(order_A.astype("<u8", copy=False).data)
        fresh.replace(path)
    return mapped(path, "<u8", len(store))


def write(directory: Path, progress: Progress, num_scored_before: int, trust: Trust | None) -> int:
    """Write all rows with their rewards (with `trust` their distances too), in the order of the
    input. The number returned is that of the rows whose answers are all among the first
    `num_scored_before` of the order."""
    is_early_A = np.zeros(progress.num_answers, bool)
    if num_scored_before:
        is_early_A[mapped(directory / ORDER, "<u8", num_scored_before)] = True
    num_resumed = 0
    with (
        opened(directory / SCORED, 0) as handle,
        _bar("write", " rows", 0, progress.num_rows) as bar,
    ):
        for row, places in read_rows(directory, progress, trust):
            handle.write(row.line().encode())
            num_resumed += places.start < places.stop and bool(is_early_A[places].all())
            bar.update()
    return num_resumed


def _bar(what: str, unit: str, num_done: int, total: int | None = None) -> "tqdm[Never]":
    return tqdm(desc=what, unit=unit, initial=num_done, total=total, file=sys.stderr, disable=None)

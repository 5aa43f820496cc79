"""A model on a benchmark: rewards of all items, then the numbers."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from palate.artifacts.progress import progress
from palate.errors import PalateError
from palate.evaluation.benchmarks.items import (
    Benchmark,
    BenchmarkItem,
    BenchmarkResult,
    ScoredItem,
)
from palate.evaluation.benchmarks.lengths import Fitted, LengthPolicy, fitted
from palate.evaluation.benchmarks.numbers import scores_of
from palate.evaluation.benchmarks.protocol import (
    NUM_MUST_TIE,
    protocol_of_cuts,
    protocol_of_data,
    protocol_of_model,
)
from palate.evaluation.benchmarks.reading import DEFINITIONS
from palate.model.selfcheck import check_positions
from palate.preferences import ScoringItem
from palate.scoring.scorer import Scorer

Score = Callable[[Sequence[ScoringItem]], Sequence[float]]
"""Rewards in the order of the items; `Scorer.score_items` is one."""
OVERLONG = "longer than the context"


def run_benchmark(
    scorer: Scorer,
    benchmark: Benchmark,
    *,
    model: str = "",
    lengths: LengthPolicy = LengthPolicy(),
) -> BenchmarkResult:
    """A palate scorer on a benchmark, answers whole up to the model's context, with its protocol.

    `model` is the name under which the scorer was loaded, for the protocol. Raises PalateError for
    an item that is over-long under `lengths`, where a reward would depend on the neighbours of a
    text of such a length, and for a reward that is no number.
    """
    limit = lengths.limit(scorer)
    found = [
        (item, fitted(scorer.renderer, item, limit, lengths))
        for item in progress(benchmark.items, "render")
    ]
    kept = [(item, fit) for item, fit in found if fit is not None]
    if not kept:
        raise PalateError(
            f"all {len(found)} items of {benchmark.name} are {OVERLONG} ({limit} tokens); cut them"
        )
    _check_longest(scorer, [fit for _, fit in kept])
    rewards = iter(scorer.score_ids([ids for _, fit in kept for ids in fit.ids]))
    scored = []
    for item, fit in kept:
        values = _rewards_of(item, rewards)
        if scorer.length_correction is not None:
            taken_N = scorer.length_correction.of_texts([r.text for r in item.responses])
            values = [value - float(part) for value, part in zip(values, taken_N, strict=True)]
        scored.append(item.scored(values, fit.num_prompt_cut, fit.num_answer_cut))
    left_out = dict(benchmark.ledger.by_reason())
    if len(kept) < len(found):
        left_out[f"item: {OVERLONG}"] = len(found) - len(kept)
    protocol = {**protocol_of_model(scorer, model, lengths), **protocol_of_data(benchmark)}
    return result_of(benchmark.name, scored, left_out, protocol)


def score_benchmark(
    score: Score, benchmark: Benchmark, protocol: Mapping[str, Any] | None = None
) -> BenchmarkResult:
    """Any function from items to rewards on a benchmark; what it does to long texts is its own.

    `protocol` is what is to be recorded of it. Raises PalateError, naming the item, for a reward
    that is NaN or infinite.
    """
    items = [one for item in benchmark.items for one in item.scoring_items()]
    values = list(score(items))
    if len(values) != len(items):
        raise PalateError(f"{len(values)} rewards for {len(items)} answers; give one for each")
    rewards = iter(values)
    scored = [item.scored(_rewards_of(item, rewards)) for item in benchmark.items]
    stated = {**(protocol or {}), **protocol_of_data(benchmark)}
    return result_of(benchmark.name, scored, benchmark.ledger.by_reason(), stated)


def result_of(
    name: str,
    items: Sequence[ScoredItem],
    left_out: Mapping[str, int],
    protocol: Mapping[str, Any],
) -> BenchmarkResult:
    """The numbers of scored items, with what sets them apart from published ones."""
    definition = DEFINITIONS[name]
    scores, notes = scores_of(definition, items)
    cuts = protocol_of_cuts(items)
    num_items = len(items)
    if cuts["num_prompts_cut"]:
        notes.append(
            f"{cuts['num_prompts_cut']} of {num_items} prompts cut to fit the context"
            f" ({cuts['num_prompt_tokens_cut']} tokens)"
        )
    if cuts["num_items_with_cut_answers"]:
        notes.append(
            f"answers of {cuts['num_items_with_cut_answers']} of {num_items} items cut"
            f" ({cuts['num_answer_tokens_cut']} tokens): not the published protocol"
        )
    notes += [f"left out: {number} x {reason}" for reason, number in left_out.items()]
    num_again = num_items - len({(item.subset, item.content_sha256) for item in items})
    if num_again:
        notes.append(
            f"{num_again} of {num_items} items have the texts of an earlier one: given twice?"
        )
    if protocol.get(NUM_MUST_TIE):
        notes.append(
            f"{protocol[NUM_MUST_TIE]} of {num_items} items have one text as a right and as a wrong"
            " answer, which every model ties"
        )
    return BenchmarkResult(
        benchmark=name,
        headline=definition.headline,
        scores=scores,
        items=tuple(items),
        left_out=dict(left_out),
        notes=tuple(notes),
        protocol={**protocol, **cuts},
    )


def _rewards_of(item: BenchmarkItem, rewards: Iterator[float]) -> list[float]:
    """The next rewards, one for each of the item's answers."""
    values = list(map(float, islice(rewards, len(item.responses))))
    for index, value in enumerate(values):
        if not math.isfinite(value):
            raise PalateError(
                f"{item.where}: the reward of answer {index}, counted from 0 with the correct ones"
                f" first, is {value}: {item.responses[index].text!r:.60}. Nothing is averaged over"
                " it; check the weights, or load the model in float32"
            )
    return values


def _check_longest(scorer: Scorer, fits: Sequence[Fitted]) -> None:
    """Beyond the lengths of the training, rewards may depend on neighbours: then it is refused."""
    longest = max(len(ids) for fit in fits for ids in fit.ids)
    try:
        check_positions(scorer.model.config, longest)
    except PalateError as error:
        raise PalateError(f"the longest text has {longest} tokens. {error}") from error

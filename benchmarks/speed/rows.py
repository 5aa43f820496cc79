"""A case to a row of results: asks both workers in turn, A B A B, and compares.

Only one worker computes at any moment; who is first alternates from round to round.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.speed.cases import (
    SEED,
    SHAPES,
    BytesCase,
    Case,
    PackingCase,
    ScoreCase,
    TrainCase,
)
from benchmarks.speed.counting import flops, num_parameters_of
from benchmarks.speed.prepare import read_json
from benchmarks.speed.protocol import Worker

TOLERANCE = 1e-4
"""Largest difference of scores that both sides may have, relative above 1."""
Result = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Both workers and the folder that they read."""

    ours: Worker
    peer: Worker
    folder: Path

    def groups(self, data: str) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = read_json(self.folder / f"{data}.json")
        return groups


def row_of(case: Case, bench: Bench) -> dict[str, Any]:
    """Measure one case."""
    match case:
        case TrainCase():
            found = grouped_row(case, bench) if case.grouped else train_row(case, bench)
        case BytesCase():
            found = bytes_row(case, bench)
        case ScoreCase():
            found = score_row(case, bench)
        case PackingCase():
            found = packing_row(case, bench)
    common = {"name": case.name, "what": case.what, "target": case.target, "model": case.model}
    return {**common, **found}


def spread(ratios: Sequence[float]) -> dict[str, Any]:
    """The median over the rounds, with the lowest and the highest."""
    return {
        "ratio": median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "rounds": len(ratios),
        "ratios": list(ratios),
    }


def in_turn(
    num_rounds: int, ours: Callable[[int], Result], peer: Callable[[int], Result]
) -> tuple[list[Result], list[Result]]:
    """Results of both sides, round by round; ours is first in rounds 0, 2, ..."""
    results: tuple[list[Result], list[Result]] = ([], [])
    for number in range(num_rounds):
        sides = [(results[0], ours), (results[1], peer)]
        for found, ask in sides if number % 2 == 0 else reversed(sides):
            found.append(ask(number))
    return results


def compared(
    ours: Sequence[Result], peer: Sequence[Result], model: str, training: bool
) -> dict[str, Any]:
    """Times of the peer in times of ours, with tokens and FLOPs of one round."""
    shape = SHAPES[model]
    size = {
        "num_parameters": num_parameters_of(shape.num_layers, shape.width, shape.mlp_width),
        "num_layers": shape.num_layers,
        "width": shape.width,
    }
    row = spread([b["seconds"] / a["seconds"] for a, b in zip(ours, peer, strict=True)])
    for side, results in (("ours", ours), ("peer", peer)):
        row[f"seconds_{side}"] = median(result["seconds"] for result in results)
        slots, pairs = (per_round(results, key) for key in ("slots", "pairs"))
        row[f"tokens_{side}"] = slots
        row[f"flops_{side}"] = flops(slots, pairs, **size, training=training)
    row["real_tokens"] = per_round(ours, "real_tokens")
    row["ratio_of_tokens"] = row["tokens_peer"] / row["tokens_ours"]
    row["ratio_of_flops"] = row["flops_peer"] / row["flops_ours"]
    return row


def per_round(results: Sequence[Result], key: str) -> int:
    """Mean over the rounds, to the nearest integer."""
    whole: int = sum(result[key] for result in results)
    return round(whole / len(results))


def drawn(num_groups: int, num_wanted: int, salt: str) -> list[int]:
    """Groups in random order, without a repeat as long as there are enough."""
    order: list[int] = []
    for turn in range(-(-num_wanted // num_groups)):
        shuffled = list(range(num_groups))
        random.Random(f"{SEED} {salt} {turn}").shuffle(shuffled)
        order += shuffled
    return order[:num_wanted]


def pairs_per_group(groups: Sequence[dict[str, Any]]) -> int:
    """Comparisons of a group; all groups of a set have as many."""
    (number,) = {len(group["comparisons"]) for group in groups}
    return number


def train_row(case: TrainCase, bench: Bench) -> dict[str, Any]:
    """Both trainers on the same pairs in the same steps."""
    groups = bench.groups(case.data)
    per_group = pairs_per_group(groups)
    common = {"folder": str(bench.folder), "model": case.model, "data": case.data}

    def ours(order: list[int], prompts: int, warm_steps: int) -> Result:
        return bench.ours.ask(
            "train", **common, order=order, prompts_per_step=prompts, warm_steps=warm_steps
        )

    def peer(order: list[int], prompts: int, warm_steps: int) -> Result:
        pairs = prompts * per_group
        return bench.peer.ask(
            "train", **common, order=order, pairs_per_step=pairs, warm_steps=warm_steps
        )

    def order_of(number: int) -> list[int]:
        wanted = (case.warm_steps + case.num_steps) * case.prompts_per_step
        return drawn(len(groups), wanted, f"{case.name} {number}")

    few = max(1, min(8, case.prompts_per_step) // per_group)
    for side in (ours, peer):  # threads, memory and libraries warm up on one small step
        side(order_of(0)[:few], few, 0)
    found = in_turn(
        case.rounds,
        lambda number: ours(order_of(number), case.prompts_per_step, case.warm_steps),
        lambda number: peer(order_of(number), case.prompts_per_step, case.warm_steps),
    )
    return {"steps": case.num_steps, **compared(*found, case.model, training=True)}


def grouped_row(case: TrainCase, bench: Bench) -> dict[str, Any]:
    """TRL draws batches by length from all pairs; ours gets the pairs that TRL drew, in any order.

    Which they are is known from a rehearsal: the same trainer, data and seed on a tiny model.
    """
    groups = bench.groups(case.data)
    assert pairs_per_group(groups) == 1
    common = {"folder": str(bench.folder), "data": case.data}
    options = {
        "order": list(range(len(groups))),
        "pairs_per_step": case.prompts_per_step,
        "train_sampling_strategy": "group_by_length",
        "max_steps": case.num_steps,
    }
    rehearsals = [
        bench.peer.ask("train", **common, **options, model="rehearsal", watch=True, seed=number)
        for number in range(case.rounds)
    ]
    orders = []
    for number, rehearsal in enumerate(rehearsals):
        order = [place for batch in rehearsal["seen"] for place in batch]
        random.Random(number).shuffle(order)
        orders.append(order)

    def ours(number: int) -> Result:
        return bench.ours.ask(
            "train",
            **common,
            model=case.model,
            order=orders[number],
            prompts_per_step=case.prompts_per_step,
        )

    def peer(number: int) -> Result:
        found = bench.peer.ask("train", **common, **options, model=case.model, seed=number)
        assert found["slots"] == rehearsals[number]["slots"], "TRL drew other pairs than rehearsed"
        return found

    for ask, step in ((bench.ours.ask, "prompts_per_step"), (bench.peer.ask, "pairs_per_step")):
        ask("train", **common, model=case.model, order=orders[0][:8], **{step: 8})  # warm up
    found = in_turn(case.rounds, ours, peer)
    return {"steps": case.num_steps, **compared(*found, case.model, training=True)}


def bytes_row(case: BytesCase, bench: Bench) -> dict[str, Any]:
    """The same microbatch on both sides, once a round, each round another."""
    groups = bench.groups(case.data)
    per_group = pairs_per_group(groups)
    common = {"folder": str(bench.folder), "model": case.model, "data": case.data}
    ours, peer = [], []
    for number in range(case.rounds):
        order = drawn(len(groups), case.prompts_per_step, f"{case.name} {number}")
        found = bench.ours.ask(
            "save_bytes", **common, order=order, prompts_per_step=case.prompts_per_step
        )
        assert found["microbatches"] == 1, "the groups must fit into one microbatch"
        ours.append(found)
        pairs = case.prompts_per_step * per_group
        peer.append(bench.peer.ask("save_bytes", **common, order=order, pairs_per_step=pairs))
    row = spread([b["bytes"] / a["bytes"] for a, b in zip(ours, peer, strict=True)])
    for side, results in (("ours", ours), ("peer", peer)):
        row[f"bytes_{side}"] = median(result["bytes"] for result in results)
        row[f"tokens_{side}"] = per_round(results, "slots")
    row["ratio_of_tokens"] = row["tokens_peer"] / row["tokens_ours"]
    return row


def score_row(case: ScoreCase, bench: Bench) -> dict[str, Any]:
    """The pipeline at the best of its batch sizes, and palate with its default."""
    common = {"folder": str(bench.folder), "model": case.model, "data": case.data}

    def ours(num_texts: int) -> Result:
        return bench.ours.ask("score", **common, num_texts=num_texts)

    def peer(num_texts: int, batch_size: int) -> Result:
        return bench.peer.ask("score", **common, num_texts=num_texts, batch_size=batch_size)

    ours(case.num_tried)
    peer(min(8, case.num_tried), 1)
    tried = {size: peer(case.num_tried, size)["seconds"] for size in case.batch_sizes}
    best = min(case.batch_sizes, key=lambda size: tried[size])
    found = in_turn(
        case.rounds, lambda _: ours(case.num_texts), lambda _: peer(case.num_texts, best)
    )
    difference = largest_difference(found[0][0]["rewards"], found[1][0]["rewards"])
    assert difference <= TOLERANCE, f"{case.name}: scores differ by {difference}"
    return {
        **compared(*found, case.model, training=False),
        "num_texts": case.num_texts,
        "largest_difference": difference,
        "batch_size_peer": best,
        "seconds_by_batch_size": {str(size): seconds for size, seconds in tried.items()},
    }


def largest_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Of scores of the same texts, relative where they are larger than 1."""
    return max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(first, second, strict=True))


def packing_row(case: PackingCase, bench: Bench) -> dict[str, Any]:
    """Counted, so that a run is as good as any."""
    found = bench.ours.ask("pack", folder=str(bench.folder), model=case.model, data=case.data)
    row = spread([found["tokens"] / found["slots"]])
    return {**row, "tokens_ours": found["slots"], "real_tokens": found["tokens"], **found}

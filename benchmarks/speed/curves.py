"""The proof that both sides train the same model: loss curves from the same initial weights on the
same pairs in the same order.

`loss_curve_hh`: TRL's RewardTrainer. `loss_curve_k9`: a plain loop over padded rows (`reference`).
The JSON holds both curves and their largest gap. `run` calls this; for the curves alone:

    python -m benchmarks.speed.run --peer .venv-bench/bin/python --rows packing
"""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.speed.cases import LEARNING_RATE
from benchmarks.speed.rows import Bench, drawn

MODEL = "layers2"
PROMPTS_PER_STEP = {"hh": 8, "k9": 2}


def curves(bench: Bench, num_steps: int) -> Iterator[dict[str, Any]]:
    """Both curves, each as soon as it is there."""
    yield curve(bench, "hh", num_steps, "TRL RewardTrainer")
    yield curve(bench, "k9", num_steps, "plain loop over padded rows")


def curve(bench: Bench, data: str, num_steps: int, against: str) -> dict[str, Any]:
    """Losses of every step on both sides, float32."""
    prompts = PROMPTS_PER_STEP[data]
    name = f"loss_curve_{data}"
    order = drawn(len(bench.groups(data)), num_steps * prompts, name)
    common = {"folder": str(bench.folder), "model": MODEL, "data": data, "order": order}
    ours = bench.ours.ask("train", **common, prompts_per_step=prompts)["losses"]
    if data == "hh":
        peer = bench.peer.ask("train", **common, pairs_per_step=prompts)["losses"]
    else:
        arguments = {"prompts_per_step": prompts, "rate": LEARNING_RATE}
        peer = bench.peer.ask("reference", **common, **arguments)["losses"]
    gap, step = largest_gap(ours, peer)
    return {
        "name": name,
        "against": against,
        "model": MODEL,
        "steps": num_steps,
        "prompts_per_step": prompts,
        "largest_gap": gap,
        "at_step": step,
        "losses_ours": ours,
        "losses_peer": peer,
    }


def largest_gap(first: Sequence[float], second: Sequence[float]) -> tuple[float, int]:
    """The largest difference of two curves, and the step (from 1) at which it is."""
    return max((abs(a - b), step) for step, (a, b) in enumerate(zip(first, second, strict=True), 1))

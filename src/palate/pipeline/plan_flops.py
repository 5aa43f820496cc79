"""Work and FLOPs of a run's groups, in each layout."""

from collections.abc import Sequence
from dataclasses import dataclass

from palate.forest.cost import (
    Flops,
    Method,
    Work,
    forward_flops,
    padded_pairs_work,
    recomputed_flops,
    rows_work,
    total,
    training_flops,
    tree_work,
)
from palate.model.memory import Microbatch
from palate.model.shape import BodyShape
from palate.pipeline.plan_config import PlanConfig
from palate.pipeline.prepare import Prepared
from palate.rendering import RenderedGroup


@dataclass(frozen=True)
class RunFlops:
    """FLOPs of a whole run."""

    training: int
    """6 N D and exact attention; forward alone where the body is frozen."""
    recomputed: int
    """Executed again in the backward pass."""
    evaluation: int

    @property
    def total(self) -> int:
        return self.training + self.recomputed + self.evaluation


def layouts_of(
    shape: BodyShape, groups: Sequence[RenderedGroup], steps: Sequence[Sequence[int]]
) -> dict[str, Work]:
    """An epoch in each layout; padded pairs with the run's own steps as batches."""
    windows, causal = shape.windows, shape.causal
    lengths = [[len(ids) for ids in group.sequences] for group in groups]
    pairs = [[(c.better, c.worse) for c in group.comparisons] for group in groups]
    padded = (
        padded_pairs_work([lengths[i] for i in step], [pairs[i] for i in step], windows, causal)
        for step in steps
    )
    found = {
        "padded_pairs": total(padded),
        "rows": total(rows_work(group, windows, causal) for group in lengths),
    }
    if shape.layout == "tree":
        found["tree"] = total(tree_work(group.sequences, windows) for group in groups)
    return found


def forward_of(shape: BodyShape, work: Work, method: Method, layout: str) -> Flops:
    """One forward pass in a layout; the last layer at the ends only where trees have it so."""
    return forward_flops(
        work,
        shape.windows,
        shape.costs(method),
        shape.num_other_weights,
        shape.num_head_weights,
        shape.last_layer if layout == "tree" else "all",
    )


def work_of(shape: BodyShape, groups: Sequence[RenderedGroup]) -> Work:
    """Of groups in the layout of the run."""
    if shape.layout == "tree":
        return total(tree_work(group.sequences, shape.windows) for group in groups)
    lengths = ([len(ids) for ids in group.sequences] for group in groups)
    return total(rows_work(group, shape.windows, shape.causal) for group in lengths)


def executed_flops(config: PlanConfig, shape: BodyShape, groups: Sequence[RenderedGroup]) -> int:
    """FLOPs of one pass over groups as training makes it."""
    work = work_of(shape, groups)
    forward = forward_of(shape, work, config.training.method, shape.layout)
    own = training_flops(forward, config.training.method).total
    return own + _again(config, shape, forward, work)


def _again(config: PlanConfig, shape: BodyShape, forward: Flops, work: Work) -> int:
    training = config.training
    method, checkpointing = training.method, training.gradient_checkpointing
    fused = not shape.eager
    return recomputed_flops(forward, work, shape.costs(method), method, checkpointing, fused)


def run_flops(
    config: PlanConfig, shape: BodyShape, prepared: Prepared, epoch: Work, num_epochs: float
) -> RunFlops:
    """Of training, and of the forward passes that evaluate; a frozen body sees each text once."""
    method = config.training.method
    held_out = [
        forward_of(shape, work_of(shape, part), method, shape.layout).total
        for part in prepared.validation.values()
    ]
    test = forward_of(shape, work_of(shape, prepared.test), method, shape.layout).total
    forward = forward_of(shape, epoch, method, shape.layout)
    if method == "frozen":
        return RunFlops(forward.total, 0, sum(held_out) + test)
    own = training_flops(forward, method).total
    again = _again(config, shape, forward, epoch)
    if config.objective.sum_to_zero:  # the mean reward of a step needs a pass of its own
        again += forward.total
    # The held-out prompts once more at the end, with the chosen checkpoint.
    evaluations = num_epochs * config.training.evaluations_per_epoch + 1
    return RunFlops(
        round(num_epochs * own),
        round(num_epochs * again),
        round(evaluations * sum(held_out)) + test,
    )


def largest_microbatch(
    config: PlanConfig,
    shape: BodyShape,
    groups: Sequence[RenderedGroup],
    steps: Sequence[Sequence[int]],
    epoch: Work,
) -> Microbatch:
    """As many slots as one device's share of a step has, within the budget; a larger group alone.

    The ends among them are as many as in an epoch on average.
    """
    sizes = [work_of(shape, [group]).num_tokens for group in groups]
    budget = config.training.tokens_per_microbatch
    shares = (
        sum(sorted((sizes[index] for index in step), reverse=True)[:: config.num_gpus])
        for step in steps
    )
    largest = max(sizes)
    num_tokens = max(min(budget, max(shares)), largest)
    ends = -(-num_tokens * epoch.num_ends // epoch.num_tokens)
    longest = max(len(ids) for group in groups for ids in group.sequences)
    return Microbatch(
        num_tokens=num_tokens,
        num_last=ends if shape.last_layer == "ends" else num_tokens,
        longest_row=largest if shape.layout == "tree" else longest,
    )

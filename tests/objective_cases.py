"""Rendered groups without text, every objective with data that suit it, and a minimiser."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from palate.objectives import Objective, ObjectiveSettings
from palate.preferences import Comparison, Message, PreferenceGroup, Response, Vote
from palate.rendering import RenderedGroup


def rendered(
    num_answers: int,
    comparisons: Sequence[Comparison],
    votes: Sequence[Vote] = (),
    ratings: Sequence[float | None] = (),
    left_out: Sequence[int] = (),
    stated: bool = False,
) -> RenderedGroup:
    """A group of `num_answers` sequences; further responses `left_out` were not rendered.

    Comparisons are of sequences; votes and ratings of responses. With `stated` the comparisons
    stand and the votes are only kept; otherwise they count as counted from the votes.
    """
    total = num_answers + len(left_out)
    kept = [index for index in range(total) if index not in left_out]
    given = [*ratings, *[None] * (total - len(ratings))]
    group = PreferenceGroup(
        prompt=(Message("user", "Which?"),),
        responses=tuple(Response(f"answer {i}", rating=given[i]) for i in range(total)),
        comparisons=tuple(
            Comparison(kept[c.better], kept[c.worse], c.probability, c.tie, c.margin, c.weight)
            for c in comparisons
        ),
        votes=tuple(votes),
        votes_counted=bool(votes) and not stated,
        file="votes.jsonl",
        line=7,
    )
    sequences = tuple((1, 2, 3 + index) for index in kept)
    return RenderedGroup(sequences, tuple(comparisons), group, tuple(kept))


def vote(annotator: str, *tiers: int | tuple[int, ...]) -> Vote:
    """vote("a", 1, (0, 2)): 1 before 0 and 2, which are tied."""
    return Vote(annotator, tuple(t if isinstance(t, tuple) else (t,) for t in tiers))


GROUPS = [
    rendered(2, [Comparison(0, 1)], [vote("a", 0, 1)], [4.0, 2.0]),
    rendered(
        3,
        [Comparison(0, 1, 0.75, tie=0.25), Comparison(2, 0, 0.6), Comparison(2, 1, 1.0, weight=2)],
        [vote("a", 2, 0, 1), vote("b", 2, (0, 1)), vote("b", 0, 1, 2)],
        [3.0, 1.0, 5.0],
    ),
    rendered(
        4,
        [Comparison(0, 1), Comparison(0, 2), Comparison(0, 3), Comparison(1, 3), Comparison(2, 3)],
        ratings=[5.0, 3.0, 3.0, 1.0],
    ),
    rendered(3, [Comparison(0, 1), Comparison(1, 2), Comparison(2, 0, 0.5, tie=1.0)]),
    rendered(2, [Comparison(1, 0, 0.5, tie=1.0)], [vote("b", (0, 1)), vote("stranger", 0, 1)]),
]
"""Votes with ties, ratings, soft labels, a ranking with a gap, a chain that is no ranking."""
WITH_MARGINS = [
    rendered(2, [Comparison(0, 1, margin=0.7)]),
    rendered(3, [Comparison(0, 1), Comparison(2, 1, margin=1.5, weight=0.5)]),
]

CASES: dict[str, tuple[ObjectiveSettings, list[RenderedGroup]]] = {
    "bradley-terry": (ObjectiveSettings(), GROUPS),
    "ties dropped": (ObjectiveSettings(ties="drop"), GROUPS),
    "margins": (ObjectiveSettings(), WITH_MARGINS),
    "label smoothing": (ObjectiveSettings(label_smoothing=0.1), GROUPS),
    "davidson": (ObjectiveSettings(kind="davidson", label_smoothing=0.1), GROUPS),
    "rao-kupper": (ObjectiveSettings(kind="rao-kupper"), GROUPS),
    "plackett-luce": (ObjectiveSettings(kind="plackett-luce"), GROUPS),
    "plackett-luce, orders unknown": (ObjectiveSettings(kind="plackett-luce", ties="drop"), GROUPS),
    "plackett-luce, first place": (ObjectiveSettings(kind="plackett-luce", top_k=1), GROUPS),
    "hinge": (ObjectiveSettings(kind="hinge", hinge_margin=0.8), GROUPS),
    "hinge with margins": (ObjectiveSettings(kind="hinge"), WITH_MARGINS),
    "regression": (ObjectiveSettings(kind="regression"), GROUPS),
    "annotators scaled": (ObjectiveSettings(annotators="scaled", label_smoothing=0.05), GROUPS),
    "centring": (ObjectiveSettings(kind="rao-kupper", centring=0.1), GROUPS),
    "sum to zero": (ObjectiveSettings(kind="davidson", sum_to_zero=0.3), GROUPS),
}


def num_rewards(groups: Sequence[RenderedGroup]) -> int:
    return sum(len(group.sequences) for group in groups)


def some_rewards(num: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(num, generator=torch.Generator().manual_seed(num), dtype=dtype)


def some_learned(objective: Objective) -> dict[str, Tensor]:
    """The first values, moved a little, in float64."""
    return {
        name: value.double() + 0.3 * some_rewards(max(1, value.numel())).reshape(value.shape)
        for name, value in objective.initial.items()
    }


def step_loss(
    objective: Objective,
    reward_N: Tensor,
    groups: Sequence[RenderedGroup],
    learned: Mapping[str, Tensor],
) -> Tensor:
    """Mean over prompts of a step in one microbatch."""
    batch = objective.batch(groups)
    step_mean = (batch.share_N * reward_N.detach()).sum() / len(groups)
    return objective.loss(reward_N, batch, learned, step_mean) / len(groups)


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The minimum of a smooth loss in float64: L-BFGS, then Newton steps while the slope falls."""
    found = start.double().clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [found], max_iter=500, tolerance_grad=1e-8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(found)
        value.backward()
        return value

    optimiser.step(closure)
    best = found.detach()
    slope = torch.autograd.functional.jacobian(loss, best)
    for _ in range(10):
        hessian = torch.autograd.functional.hessian(loss, best)
        # Directions without curvature (a constant per prompt, say) are left as they are.
        moved = best - torch.linalg.pinv(hessian, rtol=1e-9, hermitian=True) @ slope
        new_slope = torch.autograd.functional.jacobian(loss, moved)
        if not new_slope.norm() < slope.norm():
            break
        best, slope = moved, new_slope
    return best

"""A linear head on fixed features, by L-BFGS: full batch, float64, an L2 penalty.

The penalty is l2 / 2 * |v|^2 on the weights v of features divided by their standard deviations s;
the head's weights are w = v / s. Nothing is subtracted: a mean would become a bias, and the head
has none. With annotators' scales the votes see v times a scale, and the penalty is on that: |v|^2
times the mean over votes of the squared scale. On v alone it would be evaded, as scales of many
times 1 let v be next to 0.

The mean loss is convex in w for Bradley-Terry, for regression and for Plackett-Luce on rankings
without ties, jointly in w and the log width for Davidson, and jointly in w and the width h for
Rao-Kupper: each is a sum of squares, or of log-sum-exps of linear functions minus linear ones (and
of -log(exp(2 h) - 1), which is convex). Then the penalty makes the minimum unique, whatever the
start and whether the width or its log is the variable. Annotators' scales multiply rewards, and
tied ranks are sums over orders: there a minimum is found that need not be the lowest.

Legend: N sequences, U distinct ones, D width of the body, P entries of v and learned parameters.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor, nn

from palate.artifacts.progress import progress
from palate.objectives.objective import Objective, ObjectiveBatch
from palate.training.candidates import Candidate, Judge
from palate.training.features import Features, moments

GRADIENT_GOAL = 1e-9
"""L-BFGS stops when no entry of the gradient is larger, or when steps no longer change the loss."""
LOSS_TOLERANCE = 1e-10
"""By so much the loss may be above its minimum: a gradient g leaves no more than |g|^2 / (2 l2),
if what the objective learns is curved as much as the penalty."""
MAX_ITERATIONS = 5000
"""For one penalty."""
NUM_CORRECTIONS = 20
"""Pairs of steps and gradients from which L-BFGS builds its Hessian."""
L2_GRID = tuple(10.0 ** (power / 2) for power in range(4, -11, -1))
"""Penalties that are tried, from 100 to 1e-5; each starts from the solution of the one before."""
NUM_WORSE = 2
"""After so many penalties in a row that were no better, weaker ones are not tried."""


def solve(
    features: Features,
    batch: ObjectiveBatch,
    objective: Objective,
    penalties: Sequence[float],
    judge: Judge,
) -> None:
    """Solve for falling penalties, each started from the solution before, and have each judged.

    Warns where the gradient is too large for `LOSS_TOLERANCE`.
    """
    problem = Problem(features, batch, objective)
    vector_P = problem.start()
    num_steps = num_worse = 0
    for l2 in progress(penalties, "penalties"):
        found = _minimum(problem, vector_P, l2)
        vector_P = found.x
        num_steps += int(found.nit)
        v_D, learned = problem.divided(vector_P)
        loss = float(found.fun) - float(problem.penalty(v_D, learned, l2))
        head = nn.Linear(len(v_D), 1, bias=False, dtype=torch.float64)
        head.weight.data = (v_D / problem.deviation_D)[None]
        is_better = judge(Candidate(head, learned, loss, num_steps, {"l2": l2}))
        num_worse = 0 if is_better else num_worse + 1
        if num_worse == NUM_WORSE:
            return


def _minimum(problem: "Problem", start_P: np.ndarray, l2: float) -> OptimizeResult:
    found = minimize(
        problem.penalised,
        start_P,
        args=(l2,),
        jac=True,
        method="L-BFGS-B",
        options={
            "gtol": GRADIENT_GOAL,
            "ftol": 0.0,  # a step may change the last digits alone, and more are still to come
            "maxiter": MAX_ITERATIONS,
            "maxfun": 2 * MAX_ITERATIONS,
            "maxcor": NUM_CORRECTIONS,
        },
    )
    gap = float(found.jac @ found.jac) / (2 * l2)
    if not gap <= LOSS_TOLERANCE:
        warnings.warn(
            f"head_l2 {l2:g}: L-BFGS stopped after {found.nit} iterations, and the loss may be"
            f" {gap:.1e} above its minimum (limit {LOSS_TOLERANCE:g}); a larger training.head_l2"
            " converges better",
            stacklevel=3,
        )
    return found


class Problem:
    """The penalised mean loss over prompts as a function of one vector: v, then what is learned."""

    def __init__(self, features: Features, batch: ObjectiveBatch, objective: Objective) -> None:
        self.features = features
        self.batch = batch
        self.objective = objective
        self.deviation_D = torch.from_numpy(moments(features)[1])
        self.distinct_N = torch.from_numpy(features.distinct_N)
        self.initial = {name: value.double() for name, value in objective.initial.items()}

    def start(self) -> np.ndarray:
        """A head of zeros, and the learned parameters as they begin."""
        parts = [torch.zeros_like(self.deviation_D), *self.initial.values()]
        return torch.cat([part.flatten() for part in parts]).numpy()

    def divided(self, vector_P: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
        """v, and the learned parameters by name."""
        sizes = [len(self.deviation_D), *(value.numel() for value in self.initial.values())]
        v_D, *rest = torch.split(torch.from_numpy(vector_P.copy()), sizes)
        named = zip(self.initial.items(), rest, strict=True)
        return v_D, {name: part.reshape(value.shape) for (name, value), part in named}

    def penalised(self, vector_P: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
        """Value and gradient."""
        v_D, learned = self.divided(vector_P)
        reward_U = self._rewards(v_D / self.deviation_D).requires_grad_()
        for parameter in (v_D, *learned.values()):
            parameter.requires_grad_()
        loss = self.objective.mean_loss(reward_U[self.distinct_N], self.batch, learned)
        loss = loss + self.penalty(v_D, learned, l2)
        slope_U, slope_D, *slopes = torch.autograd.grad(
            loss, [reward_U, v_D, *learned.values()], materialize_grads=True
        )
        slope_D = slope_D + self._summed(slope_U) / self.deviation_D
        gradient_P = torch.cat([slope_D, *(slope.flatten() for slope in slopes)])
        return float(loss.detach()), gradient_P.numpy()

    def penalty(self, v_D: Tensor, learned: dict[str, Tensor], l2: float) -> Tensor:
        """l2 / 2 * |v|^2, of the weights that the votes see."""
        return l2 / 2 * (v_D @ v_D) * self.objective.mean_square_scale(learned)

    def _rewards(self, weight_D: Tensor) -> Tensor:
        """Rewards of the distinct sequences, shape U."""
        return torch.cat([_double(state_BD) @ weight_D for state_BD in self.features.read()])

    def _summed(self, slope_U: Tensor) -> Tensor:
        """The distinct sequences' features, weighted, summed; shape D."""
        slope_D = torch.zeros_like(self.deviation_D)
        start = 0
        for state_BD in self.features.read():
            slope_D += slope_U[start : start + len(state_BD)] @ _double(state_BD)
            start += len(state_BD)
        return slope_D


def _double(state_BD: np.ndarray) -> Tensor:
    return torch.from_numpy(state_BD).double()

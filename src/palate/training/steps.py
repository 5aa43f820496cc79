"""Optimiser steps as data: which prompts, dealt to which process, in which microbatches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, overload

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from palate.forest import Packing, Plan, grow_tree, plan_groups
from palate.objectives.objective import Objective, ObjectiveBatch
from palate.rendering import RenderedGroup
from palate.training.prefetch import prefetched


@dataclass(frozen=True)
class StepBatch:
    """One process's share of an optimiser step."""

    microbatches: tuple[tuple[Plan, ObjectiveBatch], ...]
    num_prompts: int
    """Prompts of the whole step, over all processes: what the summed loss is divided by."""


class StepSampler(Sampler[list[int]]):
    """Yields, for each optimiser step, this process's share of its prompts.

    The whole step is drawn first and then dealt out, so that the last, smaller step is divided
    rightly too (samplers that shard the data first give processes different steps). Within a step
    prompts are dealt by falling cost, each to the process with the least so far, which leaves the
    costliest share at most 4/3 of the best division's (Graham 1969).
    """

    def __init__(
        self,
        sizes: Sequence[float],
        prompts_per_step: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.sizes = sizes
        self.prompts_per_step = prompts_per_step
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.sizes) // self.prompts_per_step)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def steps(self) -> Iterator[list[int]]:
        """Prompts of each whole step of the current epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.sizes), generator=generator).tolist()
        for start in range(0, len(order), self.prompts_per_step):
            yield order[start : start + self.prompts_per_step]

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps():
            # The collator needs the size of the whole step as well as the share.
            yield [len(step), *self._deal(step)[self.process_index]]

    def _deal(self, step: Sequence[int]) -> list[list[int]]:
        """Each process's share."""
        shares: list[list[int]] = [[] for _ in range(self.num_processes)]
        loads = [(0.0, 0, process) for process in range(self.num_processes)]
        for index in sorted(step, key=lambda index: (-self.sizes[index], index)):
            load, count, process = min(loads)
            shares[process].append(index)
            loads[process] = (load + self.sizes[index], count + 1, process)
        return shares


class StepCosts(Sequence[float]):
    """FLOPs of each prompt as a tree, but for a common factor; known once they are asked for.

    Tokens count 6 for each parameter they meet, visible pairs 12 for each layer and unit of width
    (two products of queries, keys and values, forward once and backward twice).
    """

    def __init__(
        self, groups: Sequence[RenderedGroup], num_parameters: int, num_layers: int, width: int
    ) -> None:
        self.groups = groups
        self.pair_per_token = 2 * num_layers * width / num_parameters
        self._cost = cache(self._count)

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> list[float]: ...
    def __getitem__(self, index: int | slice) -> float | list[float]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._cost(range(len(self))[index])

    def _count(self, index: int) -> float:
        tree = grow_tree(self.groups[index].sequences)
        return tree.num_tokens + self.pair_per_token * tree.num_pairs


class _Indices(Dataset[int]):
    """The identity as a data set: items are indices, and the collator looks the groups up."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


class StepLoader(DataLoader[Any]):
    """A DataLoader of StepBatches that takes the epoch for its order; the next steps are laid out
    while the present one runs."""

    def __iter__(self) -> Any:
        return prefetched(super().__iter__())

    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, StepSampler)
        self.batch_sampler.set_epoch(epoch)


def step_loader(
    groups: Sequence[RenderedGroup],
    sampler: StepSampler,
    packing: Packing,
    objective: Objective,
) -> StepLoader:
    """Loader of this process's StepBatches."""

    def collate(step: list[int]) -> StepBatch:
        num_prompts, *indices = step
        return step_batch([groups[index] for index in indices], num_prompts, packing, objective)

    return StepLoader(_Indices(len(groups)), batch_sampler=sampler, collate_fn=collate)


def step_batch(
    groups: Sequence[RenderedGroup],
    num_prompts: int,
    packing: Packing,
    objective: Objective,
) -> StepBatch:
    """Lay the groups out in microbatches, each with what the objective reads of its groups."""
    plans = plan_groups([group.sequences for group in groups], packing)
    return StepBatch(
        tuple((plan, objective.batch([groups[i] for i in plan.groups])) for plan in plans),
        num_prompts,
    )

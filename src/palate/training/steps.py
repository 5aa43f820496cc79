"""Optimiser steps as data: which prompts, dealt to which process, in which microbatches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from palate.forest import Plan
from palate.forest.plan import Layout
from palate.objectives.objective import Objective, ObjectiveBatch
from palate.rendering import RenderedGroup
from palate.scoring.runs import plan_groups


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
    prompts are dealt by falling length, which evens out the work.
    """

    def __init__(
        self,
        sizes: Sequence[int],
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
            dealt = sorted(step, key=lambda index: (-self.sizes[index], index))
            # The collator needs the size of the whole step as well as the share.
            yield [len(step), *dealt[self.process_index :: self.num_processes]]


class _Indices(Dataset[int]):
    """The identity as a data set: items are indices, and the collator looks the groups up."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


class StepLoader(DataLoader[Any]):
    """A DataLoader of StepBatches that takes the epoch for its order."""

    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, StepSampler)
        self.batch_sampler.set_epoch(epoch)


def step_loader(
    groups: Sequence[RenderedGroup],
    sampler: StepSampler,
    layout: Layout,
    tokens_per_microbatch: int,
    pad_id: int,
    objective: Objective,
) -> StepLoader:
    """Loader of this process's StepBatches."""

    def collate(step: list[int]) -> StepBatch:
        num_prompts, *indices = step
        return step_batch(
            [groups[index] for index in indices],
            num_prompts,
            layout,
            tokens_per_microbatch,
            pad_id,
            objective,
        )

    return StepLoader(_Indices(len(groups)), batch_sampler=sampler, collate_fn=collate)


def step_batch(
    groups: Sequence[RenderedGroup],
    num_prompts: int,
    layout: Layout,
    tokens_per_microbatch: int,
    pad_id: int,
    objective: Objective,
) -> StepBatch:
    """Lay the groups out in microbatches, each with what the objective reads of its groups."""
    plans = plan_groups(
        [group.sequences for group in groups], layout, tokens_per_microbatch, pad_id
    )
    return StepBatch(
        tuple((plan, objective.batch([groups[i] for i in plan.groups])) for plan in plans),
        num_prompts,
    )

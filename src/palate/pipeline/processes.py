"""Several processes of one run: which speaks, and what they must agree on."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def processes() -> PartialState:
    """This process among those of the run."""
    # Without `cpu` and without a GPU each of several processes takes itself for the only one.
    return PartialState(cpu=not torch.cuda.is_available())


def decided_by_main(decide: Callable[[], T]) -> T:
    """What the main process decides, known to all: files change while the others look at them."""
    decided: list[Any] = [decide() if processes().is_main_process else None]
    broadcast_object_list(decided)
    return cast(T, decided[0])

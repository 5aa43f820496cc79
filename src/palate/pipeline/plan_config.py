"""The configuration of a plan, and what GPUs are said to do."""

from dataclasses import dataclass
from typing import Literal

from palate.errors import PalateError
from palate.pipeline.config import TrainConfig


@dataclass(frozen=True)
class Gpu:
    """Peak rates of matrix products as the maker states them, dense, and memory."""

    bfloat16_flops: float
    float32_flops: float
    """Without TF32, as PyTorch multiplies by default."""
    memory_bytes: int


GPUS = {
    "a100": Gpu(312e12, 19.5e12, 80 * 10**9),
    "h100": Gpu(989e12, 67e12, 80 * 10**9),
    "h200": Gpu(989e12, 67e12, 141 * 10**9),
    "b200": Gpu(2250e12, 75e12, 180 * 10**9),
    "l40s": Gpu(362e12, 91.6e12, 48 * 10**9),
    "rtx4090": Gpu(165e12, 82.6e12, 24 * 10**9),
}
"""Data sheets of the SXM parts where there are several; float32 accumulation."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig(TrainConfig):
    """A training run's configuration, and where it would run."""

    hardware: Literal["none", "a100", "h100", "h200", "b200", "l40s", "rtx4090"] = "none"
    """GPU type to estimate the time for, from its stated peak rate."""
    num_gpus: int = 1
    """How many of them; each holds the whole model."""
    utilisation: float = 0.4
    """Share of the peak rate that the run is assumed to reach."""
    measure: bool = False
    """Measure this machine on a few prompts of the data, with random weights where the checkpoint
    has none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.utilisation <= 1:
            raise PalateError(f"utilisation is {self.utilisation}, must be above 0 and at most 1")
        if not 1 <= self.num_gpus <= self.training.prompts_per_step:
            raise PalateError(
                f"num_gpus is {self.num_gpus}, must be from 1 to training.prompts_per_step"
                f" {self.training.prompts_per_step}"
            )
        if self.hardware == "none":
            for name, default in (("num_gpus", 1), ("utilisation", 0.4)):
                if getattr(self, name) != default:
                    raise PalateError(
                        f"{name} {getattr(self, name)} has no effect without hardware; name a GPU:"
                        f" {', '.join(GPUS)}"
                    )

"""What takes the place of settings that are left open: rates by method, size and role; precision.

docs/tuning.md has the sweep behind the first row; the others follow what is published for reward
models of that size and were not measured here.
"""

from dataclasses import replace
from typing import Literal

import torch

from palate.training.settings import TrainingSettings

FULL_RATES = ((1e8, 1e-4), (1e9, 2e-5), (4e9, 1e-5), (2e10, 3e-6))
"""(parameters of the body up to which it holds, learning rate of full training)."""
LARGEST_RATE = 2e-6
"""Of full training above the last row."""
LORA_FACTOR = 10.0
"""Adapters take about ten times the rate of full training."""
LEARNED_RATE = 1e-2
"""Of what the objective learns (tie width, annotators' scales): numbers near 1, whatever the body's
size."""
HEAD_FACTORS = {"full": 10.0, "lora": 1.0, "frozen": 1.0}


def with_rates(settings: TrainingSettings, num_parameters: int) -> TrainingSettings:
    """The same settings with the rates that they leave open (0) filled in."""
    full = next((rate for limit, rate in FULL_RATES if num_parameters <= limit), LARGEST_RATE)
    by_size = full * LORA_FACTOR if settings.method == "lora" else full
    return replace(
        settings,
        learning_rate=settings.learning_rate or by_size,
        head_learning_rate_factor=settings.head_learning_rate_factor
        or HEAD_FACTORS[settings.method],
    )


Role = Literal["body", "head", "learned"]


def role_of(name: str, head_prefixes: tuple[str, ...]) -> Role:
    """What a parameter of a RewardModel is: of the body, new in a reward model, or learned by the
    objective."""
    if name.startswith("learned."):
        return "learned"
    return "head" if name.startswith(head_prefixes) else "body"


def rates_by_role(settings: TrainingSettings) -> dict[Role, float]:
    """Learning rates, of settings whose own are filled in."""
    rate = settings.learning_rate
    head = rate * settings.head_learning_rate_factor
    return {"body": rate, "head": head, "learned": LEARNED_RATE}


def uses_bfloat16(settings: TrainingSettings) -> bool:
    """Whether the body's arithmetic is in bfloat16 on this machine."""
    if settings.precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return settings.precision == "bfloat16"

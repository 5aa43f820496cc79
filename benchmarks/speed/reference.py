"""Bradley-Terry on K answers as anyone would write it first: padded rows, one a sequence, and the
mean over the comparisons. What the trainers are held against; not made to be fast.

Legend: R rows, T tokens, B comparisons.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForSequenceClassification

MAX_GRAD_NORM = 1.0


def reference_losses(
    directory: str, groups: Sequence[dict[str, Any]], prompts_per_step: int, rate: float
) -> list[float]:
    """Loss of each step before it: AdamW without decay, clipped, the rate falling to 0 in a line.

    The loss is the mean over the step's prompts of the mean over a prompt's comparisons.
    """
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    num_steps = len(groups) // prompts_per_step
    losses = []
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / num_steps)
        members = groups[step * prompts_per_step :][:prompts_per_step]
        loss = torch.stack([group_loss(model, group) for group in members]).mean()
        loss.backward()
        clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def group_loss(model: Any, group: dict[str, Any]) -> Tensor:
    """Mean of -log s(better - worse) over a group's comparisons."""
    sequences = group["sequences"]
    width = max(map(len, sequences))
    input_ids_RT = torch.full((len(sequences), width), model.config.pad_token_id)
    mask_RT = torch.zeros_like(input_ids_RT)
    for row, ids in enumerate(sequences):
        input_ids_RT[row, : len(ids)] = torch.tensor(ids)
        mask_RT[row, : len(ids)] = 1
    output = model(input_ids=input_ids_RT, attention_mask=mask_RT, use_cache=False)
    reward_R = output.logits[:, 0]
    better_B, worse_B = torch.tensor(group["comparisons"]).T
    return -logsigmoid(reward_R[better_B] - reward_R[worse_B]).mean()

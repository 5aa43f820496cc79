"""The reward model: a pretrained transformer whose head is one linear layer without bias.

Legend: R rows, T tokens of a row, N sequences, D width of the body.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from palate.errors import PalateError
from palate.forest.plan import Layout, Plan
from palate.model.attention import attention_masks

HEAD_NAMES = ("score", "classifier", "classifier.out_proj")


def find_head(transformer: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the linear layer that prints the reward."""
    for name in reversed(HEAD_NAMES):
        try:
            module = transformer.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(module, nn.Linear):
            return name, module
    raise PalateError(
        f"{type(transformer).__name__} has no linear head named {', '.join(HEAD_NAMES)}"
    )


class RewardModel(nn.Module):
    """Wraps a `...ForSequenceClassification` model with one label, and carries out plans on it.

    Causal bodies pool the `last` token of each sequence by its index (never by token id);
    bidirectional encoders go through their own class (`cls`), whose bias is zero in a new head and
    never trained. The head runs in float32 outside autocast.
    """

    def __init__(self, transformer: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.transformer: Any = transformer
        self.head_name, head = find_head(transformer)
        self.pooling = "last" if self.head_name == "score" else "cls"
        self.layout: Layout = layout
        # Wrappers that shard read this from the outermost module.
        self._no_split_modules = getattr(transformer, "_no_split_modules", None)
        if head.bias is not None:
            # A reward's offset has no gradient under Bradley-Terry; a learned one would be noise.
            head.bias.requires_grad_(False)

    @property
    def head(self) -> nn.Linear:
        head: nn.Linear = self.transformer.get_submodule(self.head_name)
        return head

    @property
    def config(self) -> Any:
        return self.transformer.config

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def forward(
        self,
        input_ids_RT: Tensor,
        position_RT: Tensor,
        tree_RT: Tensor,
        branch_RT: Tensor,
        end_row_N: Tensor,
        end_column_N: Tensor,
        tree_layout: bool,
    ) -> tuple[Tensor, Tensor]:
        """Rewards (N, float32) and the pooled states they come from (N D, float32)."""
        arguments: dict[str, Any] = {"input_ids": input_ids_RT}
        if tree_layout:
            arguments["position_ids"] = position_RT
            arguments["attention_mask"] = attention_masks(
                self.config, position_RT, tree_RT, branch_RT, self._mask_dtype()
            )
        else:
            arguments["attention_mask"] = (tree_RT >= 0).long()
        if self.pooling == "last":
            hidden_RTD = self.transformer.base_model(**arguments, use_cache=False).last_hidden_state
            hidden_ND = hidden_RTD[end_row_N, end_column_N]
        else:
            hidden_ND = self._encode(arguments)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            hidden_ND = hidden_ND.float()
            bias = None if self.head.bias is None else self.head.bias.float()
            reward_N = linear(hidden_ND, self.head.weight.float(), bias)[:, 0]
        return reward_N, hidden_ND

    def _mask_dtype(self) -> torch.dtype:
        device = self.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        dtype: torch.dtype = next(self.transformer.base_model.parameters()).dtype
        return dtype

    def _encode(self, arguments: dict[str, Any]) -> Tensor:
        """Input of the class's own last layer, so that its product runs in float32 here."""
        caught: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            self.transformer(**arguments)
        finally:
            hook.remove()
        return caught[0]

    def run(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """`forward` on a plan's arrays, moved to the model's device."""
        rewards: tuple[Tensor, Tensor] = self(**plan_tensors(plan, self.device))
        return rewards

    @contextmanager
    def scoring_mode(self) -> Iterator[None]:
        """Evaluation mode without gradients, the former mode restored after."""
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.train(training)


def plan_tensors(plan: Plan, device: torch.device) -> dict[str, Any]:
    """A plan's arrays as the keyword arguments of `RewardModel.forward`."""
    names = ("input_ids_RT", "position_RT", "tree_RT", "branch_RT", "end_row_N", "end_column_N")
    tensors: dict[str, Any] = {
        name: torch.from_numpy(getattr(plan, name)).to(device) for name in names
    }
    return {**tensors, "tree_layout": plan.layout == "tree"}

"""Heads: from a pooled state to a reward, in float32.

Legend: N sequences, D width of the body, W width of a hidden layer.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

HeadInit = Literal["zero", "normal"]


class MlpHead(nn.Module):
    """v . gelu(W h + b): one hidden layer, no bias at the end, since a reward's offset has no
    gradient under a loss of differences."""

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(num_features, width)
        self.out = nn.Linear(width, 1, bias=False)


Head = nn.Linear | MlpHead


def num_features(head: Head) -> int:
    """Width of the states that it reads."""
    return (head.hidden if isinstance(head, MlpHead) else head).in_features


def rewards(head: Head, hidden_ND: Tensor) -> Tensor:
    """float32 N, whatever the type of the head's weights; call it outside autocast."""
    if isinstance(head, MlpHead):
        hidden_ND = gelu(_linear(head.hidden, hidden_ND))
        head = head.out
    return _linear(head, hidden_ND)[:, 0]


def _linear(layer: nn.Linear, hidden_ND: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.float()
    return linear(hidden_ND, layer.weight.float(), bias)


def init_head(head: Head, kind: HeadInit) -> None:
    """The last layer zero, so that all rewards are 0 and the first loss is ln 2 exactly, or normal
    with variance 1/width; a hidden layer always normal with variance 1/D, its bias zero."""
    with torch.no_grad():
        if isinstance(head, MlpHead):
            head.hidden.weight.normal_(std=head.hidden.in_features**-0.5)
            head.hidden.bias.zero_()
            head = head.out
        if head.bias is not None:
            head.bias.zero_()
        if kind == "zero":
            head.weight.zero_()
        else:
            head.weight.normal_(std=head.in_features**-0.5)

"""From the states of a sequence's tokens to the one state that the head reads.

In a tree a sequence's tokens are those that its last one sees, exactly those it has in a row of its
own, so what is pooled is the same in both layouts.

Legend: R rows, T tokens of a row, N sequences, D width of the body.
"""

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["last", "cls", "mean", "attention"]


def members(reach_RT: Tensor, end_row_N: Tensor, end_column_N: Tensor) -> Tensor:
    """Boolean N T: which slots of the row in which a sequence ends hold its tokens."""
    column_T = torch.arange(reach_RT.shape[1], device=reach_RT.device)
    end_N1 = end_column_N[:, None]
    return (column_T <= end_N1) & (end_N1 < reach_RT[end_row_N])


def mean_weights(member_NT: Tensor) -> Tensor:
    """float32 N T: one over the number of a sequence's tokens on each of them, 0 elsewhere."""
    member_NT = member_NT.float()
    return member_NT / member_NT.sum(dim=1, keepdim=True)


def attention_weights(
    member_NT: Tensor, state_RTD: Tensor, end_row_N: Tensor, query_D: Tensor
) -> Tensor:
    """float32 N T: softmax of h.q / sqrt(D) over a sequence's own tokens, h their states.

    A query of zero gives `mean_weights`.
    """
    score_RT = state_RTD @ query_D.float() / query_D.numel() ** 0.5
    score_NT = score_RT[end_row_N].masked_fill(~member_NT, float("-inf"))
    return torch.softmax(score_NT, dim=1)


def weighted_sums(weight_NT: Tensor, end_row_N: Tensor, value_RTD: Tensor) -> Tensor:
    """float32 N D: for each sequence the sum of its row's values, weighted.

    One product with a matrix of N by R*T: gathering the rows would copy N*T*D values.
    """
    num_rows, num_slots, _ = value_RTD.shape
    spread_NRT = weight_NT.new_zeros(len(weight_NT), num_rows, num_slots)
    spread_NRT = spread_NRT.scatter(
        1, end_row_N[:, None, None].expand(-1, 1, num_slots), weight_NT[:, None]
    )
    return spread_NRT.flatten(1) @ value_RTD.flatten(0, 1)

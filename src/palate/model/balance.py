"""The load-balancing loss of mixture-of-experts bodies, for each sequence by itself.

Legend: R rows, T tokens of a row, N sequences, E experts, k experts that a token is sent to.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from palate.model.pooling import weighted_sums

COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
SELECTION_BIASES = ("e_score_correction_bias", "balancing_biases")
"""What routers add to their scores before they choose, and not to the logits that they give."""
OTHER_CHOICES = ("doge", "phimoe")
"""Types whose experts are chosen otherwise: by product keys, by drawing."""


def balance_coefficient(body: nn.Module) -> float:
    """The configuration's coefficient, or 0 for a body whose router logits don't tell which experts
    it chooses: it gives none, adds a bias before the choice, or does not take the k highest."""
    config: Any = body.config
    records: dict[str, Any] = getattr(body, "_can_record_outputs", None) or {}
    if "router_logits" not in records or config.model_type in OTHER_CHOICES:
        return 0.0
    names = [name for name, _ in (*body.named_parameters(), *body.named_buffers())]
    if any(name.endswith(SELECTION_BIASES) for name in names):
        return 0.0
    text_config = config.get_text_config()
    return float(next((c for c in (getattr(text_config, n, None) for n in COEFFICIENTS) if c), 0.0))


def balance_loss(
    router_logits: Sequence[Tensor],
    num_choices: int,
    weight_NT: Tensor,
    end_row_N: Tensor,
    num_rows: int,
) -> Tensor:
    """float32 N: mean over layers of E * sum over experts of f * P, over a sequence's own tokens.

    f is the share of the tokens' choices that fell on an expert (the shares sum to 1; no gradient),
    P the mean of the router's probabilities, a softmax over all experts; 1 where the choices are
    even. The sequence-wise balance loss of DeepSeek-V2 and V3 (arXiv 2405.04434, eq. 23 to 25;
    arXiv 2412.19437, eq. 17 to 20). Since no sequence sees another's tokens, gradients are the same
    for any division into microbatches, rows and processes.

    `router_logits` hold one tensor of R*T by E for each layer; `weight_NT` is one over the number
    of tokens on each of a sequence's tokens; k is `num_choices`.
    """
    total_N = weight_NT.new_zeros(len(weight_NT))
    for logits in router_logits:
        probability = logits.float().softmax(dim=-1)
        chosen = torch.zeros_like(probability).scatter_(
            -1, probability.topk(num_choices, dim=-1).indices, 1 / num_choices
        )
        num_experts = logits.shape[-1]
        values = torch.cat([chosen.detach(), probability], dim=-1)
        means = weighted_sums(weight_NT, end_row_N, values.view(num_rows, -1, 2 * num_experts))
        share_NE, probability_NE = means[:, :num_experts], means[:, num_experts:]
        total_N = total_N + num_experts * (share_NE * probability_NE).sum(dim=-1)
    return total_N / len(router_logits)

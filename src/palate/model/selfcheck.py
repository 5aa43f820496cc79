"""Checks made on the real model when it is loaded."""

from typing import Any

import numpy as np
import torch

from palate.errors import PalateError
from palate.forest.plan import Plan, plan_rows, plan_trees
from palate.model.attention import layer_windows
from palate.model.reward_model import RewardModel

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 2e-2}
"""Largest difference of pooled states, relative to their largest entry: a wrong mask or position
differs by more than 0.3, rounding by less than these."""
LENGTHS = ((5, (7, 4, 9)), (3, (2, 6)), (0, (4, 8)))
"""(prefix, branches) of the groups that are compared, in tokens."""
UNLIMITED_ROPE = ("default", "linear", "yarn", "llama3", "proportional")


def check_positions(config: Any, max_tokens: int) -> None:
    """Refuse rotary scalings whose values depend on the longest text of a batch.

    `dynamic` and `longrope` change every row's angles when one text passes a limit; below it they
    are constant, so lengths under the limit are safe. Raises PalateError above it.
    """
    config = config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for rope in nested or [parameters]:
        kind = rope.get("rope_type", "default")
        if kind in UNLIMITED_ROPE:
            continue
        limit = rope.get("original_max_position_embeddings") if kind == "longrope" else None
        limit = limit or getattr(config, "original_max_position_embeddings", None)
        limit = limit or config.max_position_embeddings
        if max_tokens > limit:
            raise PalateError(
                f"rotary scaling {kind!r} depends on the longest text of a batch beyond {limit}"
                f" tokens, so a reward would depend on its neighbours; set"
                f" lengths.max_prompt_tokens + max_response_tokens (now {max_tokens}) to {limit} or"
                " less"
            )


def max_positions(config: Any) -> int | None:
    """Most tokens that the body has positions for, where it has a limit at all."""
    config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    # RoBERTa and its kin number positions from pad_token_id + 1.
    offset = 2 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    return None if limit is None or limit <= 0 else int(limit) - offset


def why_not_tree(model: RewardModel) -> str | None:
    """None when the tree layout is exact on this model, otherwise the reason in words."""
    if model.pooling != "last":
        return "a bidirectional encoder lets the prompt see the answers"
    try:
        layer_windows(model.config)
    except LookupError as error:
        return f"it has {error}"
    try:
        difference = tree_difference(model)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        return f"its body does not take the tree's mask ({type(error).__name__}: {error})"
    tolerance = TOLERANCE[next(model.transformer.base_model.parameters()).dtype]
    if not difference <= tolerance:
        return f"its pooled states differ by {difference:.1e} of their size (limit {tolerance:.0e})"
    return None


def tree_difference(model: RewardModel) -> float:
    """Largest difference of pooled states, tree against rows, relative to their largest entry.

    Windows of sliding layers are longer than these texts, so they aren't tested here: the
    configuration decides about them (`layer_windows`).
    """
    groups = _random_groups(model.config.get_text_config())
    tree = _pooled(model, plan_trees(groups, 10**9, pad_id=0))
    rows = _pooled(model, plan_rows(groups, 10**9, pad_id=0))
    return float((tree - rows).abs().max() / rows.abs().max())


def _random_groups(config: Any) -> list[list[list[int]]]:
    random = np.random.default_rng(0)
    top = min(config.vocab_size, 1000)

    def ids(count: int) -> list[int]:
        return [int(i) for i in random.integers(3, max(4, top), size=count)]

    groups = []
    for prefix_length, branch_lengths in LENGTHS:
        prefix = ids(prefix_length)
        groups.append([prefix + ids(length) for length in branch_lengths])
    return groups


def _pooled(model: RewardModel, plans: list[Plan]) -> torch.Tensor:
    """Pooled states in the order of the groups."""
    by_group: dict[int, torch.Tensor] = {}
    with model.scoring_mode():
        for plan in plans:
            _, hidden_ND = model.run(plan)
            sizes = [len(LENGTHS[group][1]) for group in plan.groups]
            by_group.update(zip(plan.groups, torch.split(hidden_ND, sizes), strict=True))
    return torch.cat([by_group[group] for group in sorted(by_group)])

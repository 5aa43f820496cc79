"""Checks made on the real model when it is loaded."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from palate.errors import PalateError
from palate.forest.plan import Plan, plan_groups, plan_rows
from palate.model.attention import layer_windows
from palate.model.reward_model import RewardModel, takes

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 2e-2}
"""Largest difference of pooled states, relative to their largest entry: a wrong mask or position
differs by more than 0.3, rounding by less than these."""
LENGTHS = ((5, (7, 4, 9)), (3, (2, 6)), (0, (4, 8)))
"""(prefix, branches) of the groups that are compared, in tokens."""
SHORT_WINDOW = 4
COARSE_TOLERANCE = 0.3
"""Where a router or a quantised layer turns rounding into steps."""
BIDIRECTIONAL = "a bidirectional encoder lets the prompt see the answers"
UNLIMITED_ROPE = ("default", "linear", "yarn", "llama3", "proportional")


def check_positions(config: Any, max_tokens: int) -> None:
    """Refuse what depends on the longest text of a batch: rotary scalings, sparse attention.

    `dynamic` and `longrope` change every row's angles when one text passes a limit; below it they
    are constant, so lengths under the limit are safe. An indexer that keeps the best `index_topk`
    keys can have several scores of exactly 0, and which of them it keeps changes with the row's
    padding; it keeps all keys of shorter texts. Raises PalateError above these limits.
    """
    config = config.get_text_config()
    kept = getattr(config, "index_topk", None)
    if kept and max_tokens > kept:
        raise PalateError(
            f"{config.model_type}: sparse attention keeps {kept} keys, and beyond so many tokens"
            " which ones depends on a text's neighbours; set lengths.max_prompt_tokens +"
            f" max_response_tokens (now {max_tokens}) to {kept} or less"
        )
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


def state_width(body: nn.Module) -> int:
    """Width of the states that a body gives for token ids.

    Raises LookupError with a reason in words for one that doesn't give one state for each token.
    """
    ids_RT = torch.tensor([[3, 4, 5, 6]], device=next(body.parameters()).device)
    arguments = {"use_cache": False} if takes(body, "use_cache") else {}
    try:
        with torch.inference_mode():
            states = body(
                input_ids=ids_RT, attention_mask=torch.ones_like(ids_RT), **arguments
            ).last_hidden_state
    except Exception as error:
        raise LookupError(in_words(error)) from error
    if not isinstance(states, torch.Tensor) or states.shape[:2] != ids_RT.shape or states.ndim != 3:
        raise LookupError("it gives no state for each token")
    return int(states.shape[2])


def why_not_rows(model: RewardModel) -> str | None:
    """None when a sequence beside longer ones is pooled as it is alone, otherwise the reason."""
    groups = random_groups(model.config)
    sequences = [sequence for group in groups for sequence in group]
    shortest = min(range(len(sequences)), key=lambda index: len(sequences[index]))
    try:
        beside = _pooled(model, plan_rows(groups, 10**9, pad_id=0))[shortest]
        with model.scoring_mode():
            alone = model.run(plan_rows([[sequences[shortest]]], 1, pad_id=0)[0]).hidden_ND[0]
    except Exception as error:
        return in_words(error)
    if alone.ndim != 1:
        return "its class runs the head on every token and then picks one"
    difference = _relative(beside, alone)
    if not difference <= _sameness(model):
        return f"a text's state changes by {difference:.1e} of its size beside longer texts"
    return None


def is_random(model: RewardModel) -> bool:
    """Whether two passes in training mode differ: a router that draws its experts, or dropout."""
    (plan,) = plan_rows([random_groups(model.config)[0]], 10**9, pad_id=0)
    with _mode(model, training=True), torch.no_grad():
        first, second = (model.run(plan).hidden_ND for _ in range(2))
    return not torch.equal(first, second)


def parameters_in_use(model: RewardModel) -> set[str]:
    """Names of the parameters on which the rewards of short random texts depend."""
    (plan,) = plan_rows(random_groups(model.config), 10**9, pad_id=0)
    with _mode(model, training=False):
        reward_N = model.run(plan).reward_N
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: set[str] = set()
    seen: set[Any] = set()
    waiting = [reward_N.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # where the graph ends in a leaf
            found.add(names.get(id(node.variable), ""))
        waiting += [following for following, _ in node.next_functions]
    return found


def without_numbers(name: str) -> str:
    """A module's or parameter's name without the numbers of layer and expert: an expert that no
    random token reached is used all the same where its siblings were."""
    return re.sub(r"\d+", "*", name)


@contextmanager
def _mode(model: RewardModel, training: bool) -> Iterator[None]:
    former = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(former)


def looks_ahead(model: RewardModel) -> bool:
    """Whether the state of a token changes with what comes after it: an encoder, not a causal body.

    `model` pools the last token, or what it is told to be the last.
    """
    first, second = random_groups(model.config)[0][:2]
    start = len(first) - 4
    states = []
    with model.scoring_mode():
        for end in (first[start:], second[-4:]):
            (plan,) = plan_rows([[first[:start] + end]], 1, pad_id=0)
            states.append(model.run(replace(plan, end_column_N=np.array([start - 1]))).hidden_ND)
    return _relative(*states) > _sameness(model)


def why_not_tree(model: RewardModel) -> str | None:
    """None when the tree layout is exact on this model, otherwise the reason in words."""
    if model.pooling == "cls" or looks_ahead(_pooling_last(model)):
        return BIDIRECTIONAL
    try:
        layer_windows(model.config)
    except LookupError as error:
        return f"it has {error}"
    try:
        difference = tree_difference(model)
    except Exception as error:
        return f"its body does not take the tree's mask ({in_words(error)})"
    limit = tolerance(model)
    if not difference <= limit:
        return f"its pooled states differ by {difference:.1e} of their size (limit {limit:.0e})"
    return None


def _pooling_last(model: RewardModel) -> RewardModel:
    return model if model.plain else RewardModel(model.transformer, "rows", model.head, "last")


def in_words(error: Exception) -> str:
    """Bodies are the code of others and fail in all ways: the class of the error is part of it."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def tolerance(model: RewardModel) -> float:
    """`TOLERANCE` of the body; for a quantised one, whose layers round their inputs, bfloat16's."""
    return TOLERANCE[torch.bfloat16 if model.quantized else model.transformer.dtype]


def _sameness(model: RewardModel) -> float:
    """Largest difference of what is computed alike, but in a batch of another shape."""
    exact = model.transformer.dtype == torch.float32 and not model.quantized
    return 1e-4 if exact else COARSE_TOLERANCE


def _relative(states: torch.Tensor, truth: torch.Tensor) -> float:
    return float((states - truth).abs().max() / truth.abs().max())


def tree_difference(model: RewardModel) -> float:
    """Largest difference of pooled states, tree against rows, relative to their largest entry.

    The configuration's sliding window is shortened meanwhile, so that it is tested on short texts:
    some bodies have one and don't apply it.
    """
    groups = random_groups(model.config)
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    try:
        if window:
            config.sliding_window = min(window, SHORT_WINDOW)
        packing = replace(model.packing(10**9, pad_id=0), layout="tree")
        tree = _pooled(model, plan_groups(groups, packing))
        rows = _pooled(model, plan_rows(groups, 10**9, pad_id=0))
    finally:
        if window:
            config.sliding_window = window
    return _relative(tree, rows)


def random_groups(config: Any) -> list[list[list[int]]]:
    """Groups of short sequences, their sizes from `LENGTHS`; the same at every call."""
    random = np.random.default_rng(0)
    top = min(getattr(config.get_text_config(), "vocab_size", 1000), 1000)

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
            hidden_ND = model.run(plan).hidden_ND
            sizes = [len(LENGTHS[group][1]) for group in plan.groups]
            by_group.update(zip(plan.groups, torch.split(hidden_ND, sizes), strict=True))
    return torch.cat([by_group[group] for group in sorted(by_group)])

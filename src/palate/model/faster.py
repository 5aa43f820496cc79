"""Which way to compute a tree a model gets: the fastest that its own check finds exact."""

import warnings
from contextlib import suppress
from typing import Any

import torch

from palate.errors import PalateError
from palate.model.attention import Attention, stand_before, step_aside
from palate.model.last_layer import lengthen, shorten
from palate.model.reward_model import RewardModel
from palate.model.selfcheck import TOLERANCE, in_words, tolerance, tree_difference


def choose_attention(name: str, model: RewardModel, wanted: Attention) -> None:
    """Give a model of layout `tree` its attention, and the last layer at the ends where that holds.

    What runs on a GPU alone is checked by `check_on_device` once the model is there. Raises
    PalateError where a path is named that is not exact, or needs a device that is not there.
    """
    if wanted == "dense":
        return
    if wanted in ("varlen", "flex") and not torch.cuda.is_available():
        raise PalateError(f"body.attention {wanted} needs a CUDA device; leave it at auto")
    reason = _enable(model, wanted)
    if reason is None:
        _shorten_where_exact(model)
    elif wanted != "auto":
        raise PalateError(f"body.attention {wanted} is not possible for {name}: {reason}")


def check_on_device(name: str, model: RewardModel, bfloat16: bool = False) -> None:
    """The same check where the model is now, and with `bfloat16` also under autocast; a path that
    fails gives way to the dense mask, with a warning that says why."""
    if model.attention == "dense" or model.device.type == "cpu":
        return
    reason = _why_not(model)
    if reason is None and bfloat16:
        with torch.autocast(model.device.type, torch.bfloat16):
            reason = _why_not(model, TOLERANCE[torch.bfloat16])
    if reason is not None:
        _disable(model)
        warnings.warn(
            f"{name}: attention by a dense mask, which is slower, on {model.device}: {reason}",
            stacklevel=2,
        )


def _enable(model: RewardModel, path: Attention) -> str | None:
    """Switch a path on; None, or why the model keeps the dense mask."""
    if has_attention_dropout(model.config):
        return "it drops attention weights in training (body.dropout)"
    try:
        stand_before(model.transformer)
    except Exception as error:  # the code of many models
        return in_words(error)
    model.attention = path
    reason = _why_not(model)
    if reason is not None:
        _disable(model)
    return reason


def _disable(model: RewardModel) -> None:
    if model.shortened:
        lengthen(model.body)
    model.attention, model.shortened = "dense", False
    step_aside(model.transformer)


def _why_not(model: RewardModel, limit: float | None = None) -> str | None:
    try:
        difference = tree_difference(model)
    except Exception as error:  # a body that drops arguments, or gives its layers others
        return in_words(error)
    limit = tolerance(model) if limit is None else limit
    return None if difference <= limit else f"its pooled states differ by {difference:.1e}"


def _shorten_where_exact(model: RewardModel) -> None:
    # Mean and attention pooling read all states, and the loss of experts all tokens' choices.
    if model.pooling != "last" or model.balance_coefficient:
        return
    with suppress(LookupError):
        shorten(model.body)
        model.shortened = True
        if _why_not(model) is not None:
            model.shortened = False
            lengthen(model.body)


def has_attention_dropout(config: Any) -> bool:
    """Whether training would drop attention weights, which no kernel here does."""
    return any(
        "att" in name and name.endswith(("dropout", "_pdrop", "dropout_prob")) and value
        for name, value in vars(config.get_text_config()).items()
    )

"""Pooling and head of a checkpoint: its own, or new ones as configured."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
)

from palate.errors import PalateError
from palate.model.head_file import HEAD_FILE, StoredHead
from palate.model.heads import Head, MlpHead, init_head, num_features
from palate.model.pooling import Pooling
from palate.model.reward_model import RewardModel, find_head
from palate.model.selfcheck import in_words, looks_ahead, state_width, why_not_rows
from palate.model.settings import BodySettings


def pooling_of_class(name: str, config: Any, settings: BodySettings) -> Pooling | None:
    """What the model's own sequence-classification class pools, or None where it has none that
    ends in one linear layer on a pooled state."""
    brings_code = "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {})
    if not brings_code and type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return None
    try:
        with torch.device("meta"):
            empty = AutoModelForSequenceClassification.from_config(
                copy.deepcopy(config), trust_remote_code=settings.trust_remote_code
            )
    except Exception as error:  # the code of many models, which fails in many ways
        raise PalateError(
            f"{name}: {config.model_type} cannot be loaded: {in_words(error)}"
        ) from error
    try:
        head_name, _ = find_head(empty)
    except PalateError:
        return None
    if head_name == "score":
        return "last"
    in_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    # Some causal classes run `classifier` on every token, behind layers of their own.
    only_causal = in_causal and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
    return None if only_causal else "cls"


def is_own_form(settings: BodySettings, own_pooling: Pooling | None) -> bool:
    """Whether a new head can be that of the model's own class."""
    return (
        own_pooling is not None
        and settings.pooling in ("auto", own_pooling)
        and settings.head in ("auto", "linear")
    )


def refuse_other_form(
    name: str, settings: BodySettings, stored: StoredHead | None, own_pooling: Pooling | None
) -> None:
    """A trained head reads what it was trained on: another pooling or form would make it new."""
    other = other_form(settings, stored, own_pooling)
    if other is not None:
        key, wanted, own = other
        raise PalateError(
            f"{name}: a reward model with {key} {own}; body.{key} {wanted} would need a new"
            f" head. Leave body.{key} out, start from a model without a reward head, or give it a"
            " new one with training.method frozen"
        )


def other_form(
    settings: BodySettings, stored: StoredHead | None, own_pooling: Pooling | None
) -> tuple[str, str | int, str | int] | None:
    """The first key of `body` that asks for another form than the trained head's, with the value
    asked for and the head's own; None where all agree."""
    pooling, kind, width = own_pooling, "linear", 0
    if stored is not None:
        pooling, kind, width = stored.pooling, stored.kind, stored.width
    asked = {
        "pooling": (settings.pooling, pooling),
        "head": (settings.head, kind),
        "head_width": (settings.head_width or "auto", width),
    }
    for key, (wanted, own) in asked.items():
        if wanted not in ("auto", own) and own is not None:
            return key, wanted, own
    return None


def as_trained(
    settings: BodySettings, stored: StoredHead | None, own_pooling: Pooling | None
) -> BodySettings:
    """The settings with the trained head's pooling and form for what they leave open."""
    pooling = own_pooling if stored is None else stored.pooling
    if settings.pooling == "auto" and pooling is not None:
        settings = replace(settings, pooling=pooling)
    if settings.head == "auto" and stored is not None:
        settings = replace(settings, head=stored.kind, head_width=stored.width)
    return settings


def on_body(name: str, body: Any, settings: BodySettings, stored: StoredHead | None) -> RewardModel:
    """A body alone with a head of ours: the stored one, or a new one as configured."""
    kind = body.config.model_type
    try:
        width = state_width(body)
    except LookupError as error:
        raise PalateError(
            f"{name}: {kind} can't be a reward model: its body does not read plain token ids"
            f" ({error}); choose another body"
        ) from error
    if stored is not None:
        head = stored.build()
        if num_features(head) != width:
            raise PalateError(
                f"{name}: {HEAD_FILE} reads states of width {num_features(head)}, the body gives"
                f" {width}; the files don't belong together"
            )
        model = RewardModel(body, "rows", head, stored.pooling)
        if model.query is not None:
            model.query.data.copy_(stored.tensors["query"])
        return model
    head = (
        MlpHead(width, settings.head_width or width)
        if settings.head == "mlp"
        else nn.Linear(width, 1, bias=False)
    )
    init_head(head, settings.head_init)
    return RewardModel(body, "rows", head, _new_pooling(name, body, head, settings))


def _new_pooling(name: str, body: Any, head: Head, settings: BodySettings) -> Pooling:
    if settings.pooling in ("mean", "attention", "last"):
        return settings.pooling
    kind = body.config.model_type
    model = RewardModel(body, "rows", head, "last")
    if why_not_rows(model) is not None:  # no pooling helps, and the checks to come say so
        return "last"
    encoder = looks_ahead(model)
    if encoder and settings.head == "mlp":
        raise PalateError(
            f"{name}: body.head mlp can't read cls, which the encoder's own class pools for its own"
            " linear head; set body.pooling to mean or attention"
        )
    if settings.pooling == "cls" or encoder:
        what = "an encoder" if encoder else "a causal body"
        raise PalateError(
            f"{name}: {kind} is {what} without a sequence-classification class that pools its first"
            f" token; set body.pooling to {'mean or attention' if encoder else 'last'}"
        )
    return "last"

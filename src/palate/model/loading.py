"""Checkpoints to reward models; what isn't one is refused by name."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as hf_logging

from palate.artifacts.hub import model_directory
from palate.errors import PalateError
from palate.model.reward_model import HEAD_NAMES, RewardModel, find_head
from palate.model.selfcheck import why_not_tree
from palate.model.settings import BodySettings

VALUE_HEADS = ("v_head.", "value_head.")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": "auto"}


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer as the checkpoint has it, and the local directory it came from."""

    model: RewardModel
    tokenizer: PreTrainedTokenizerBase
    directory: Path
    has_trained_head: bool


def load_model(name: str, settings: BodySettings = BodySettings(), *, for_training: bool) -> Loaded:
    """Load a body with its head, or give a body a new head when training.

    Raises PalateError for: no such checkpoint, pickled weights, an encoder-decoder, two labels, a
    value head, no head (unless training), weights missing from the body, a body without a
    sequence-classification class, layout `tree` where it isn't exact.
    """
    directory = model_directory(name)
    config = _load_config(name, directory, settings)
    names = _weight_names(directory, name)
    has_head = _check_head(name, config, names, for_training)
    transformer = _load_transformer(name, directory, settings, config, has_head)
    if not has_head:
        _init_head(transformer, settings.head_init)
    model = RewardModel(transformer, "rows")
    if not for_training:
        model.eval()
    _choose_layout(name, model, settings)
    return Loaded(model, load_tokenizer(name, directory, settings), directory, has_head)


def load_tokenizer(name: str, directory: Path, settings: BodySettings) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer; PalateError when it has none."""
    try:
        return AutoTokenizer.from_pretrained(
            directory, trust_remote_code=settings.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise PalateError(
            f"{name}: no usable tokenizer: {_brief(error)} Put tokenizer.json beside the weights"
        ) from error


def _brief(error: Exception) -> str:
    """The start of a message: the libraries list all that would have been possible."""
    return f"{str(error).splitlines()[0]:.300}"


def _load_config(name: str, directory: Path, settings: BodySettings) -> Any:
    try:
        config = AutoConfig.from_pretrained(
            directory, trust_remote_code=settings.trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError) as error:
        if (directory / "adapter_config.json").exists():
            raise PalateError(
                f"{name}: an adapter without its model; merge it (peft: merge_and_unload) and name"
                " the merged checkpoint"
            ) from error
        if "trust_remote_code" in str(error):
            raise PalateError(
                f"{name}: brings code of its own, which would run on this machine; read it, then"
                " set body.trust_remote_code, or palate.load(..., trust_remote_code=True)"
            ) from error
        raise PalateError(
            f"{name}: no usable config.json: {_brief(error)} Name the directory that holds the"
            " checkpoint, or get its files again"
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise PalateError(
            f"{name}: {config.model_type} is an encoder-decoder; palate trains decoder-only"
            " bodies and bidirectional encoders"
        )
    if not settings.dropout:
        for part in (config, config.get_text_config()):
            for key, value in list(vars(part).items()):
                if key.endswith(("dropout", "_pdrop", "dropout_prob")) and isinstance(value, float):
                    # Attention dropout is no module: it is read here when the layers are built.
                    setattr(part, key, 0.0)
    return config


def _weight_names(directory: Path, name: str) -> set[str]:
    """Names of all tensors in the checkpoint, read from the safetensors headers."""
    index = directory / "model.safetensors.index.json"
    files = sorted(directory.glob("*.safetensors"))
    if index.exists():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise PalateError(f"{index}: damaged: {error}; get the file again") from error
        files = [directory / shard for shard in sorted(shards)]
    if not files:
        pickled = sorted(path.name for path in directory.glob("*.bin"))
        if pickled:
            raise PalateError(
                f"{name}: weights only as {pickled[0]}, a pickle that can run code; convert them to"
                " safetensors first"
            )
        raise PalateError(f"{name}: no model.safetensors in {directory}")
    found: set[str] = set()
    for path in files:
        if not path.exists():
            raise PalateError(f"{path}: missing, but {index.name} lists it; get the file again")
        try:
            with safe_open(path, framework="pt") as tensors:
                found.update(tensors.keys())
        except Exception as error:  # safetensors raises its own class, outside the OSError tree
            raise PalateError(f"{path}: damaged weights: {error}; get the file again") from error
    return found


def _check_head(name: str, config: Any, names: set[str], for_training: bool) -> bool:
    """Whether the checkpoint has a scalar head of its own; refuse heads that aren't one."""
    value_head = next((w for w in sorted(names) if w.startswith(VALUE_HEADS)), None)
    if value_head:
        raise PalateError(
            f"{name}: has a value head ({value_head}), which predicts a return for each token;"
            " palate needs a sequence-classification head with one label"
        )
    has_head = any(f"{head}.weight" in names for head in HEAD_NAMES)
    if has_head and config.num_labels != 1:
        raise PalateError(
            f"{name}: a classifier with {config.num_labels} labels; a reward model has one"
        )
    if not has_head and not for_training:
        raise PalateError(
            f"{name}: a language model without a reward head; train one with `palate train`, or"
            " name a checkpoint that has score.weight"
        )
    return has_head


def _load_transformer(
    name: str, directory: Path, settings: BodySettings, config: Any, has_head: bool
) -> nn.Module:
    config.num_labels = 1
    arguments: dict[str, Any] = {
        "config": config,
        "dtype": DTYPES[settings.dtype],
        "trust_remote_code": settings.trust_remote_code,
        "local_files_only": True,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are judged below as well
    }
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # its table of missing weights is judged below
    try:
        try:
            transformer, report = AutoModelForSequenceClassification.from_pretrained(
                directory, attn_implementation="sdpa", **arguments
            )
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            transformer, report = AutoModelForSequenceClassification.from_pretrained(
                directory, attn_implementation="eager", **arguments
            )
    except (OSError, ValueError, KeyError) as error:
        if "Unrecognized configuration class" in str(error):
            raise PalateError(
                f"{name}: transformers has no sequence-classification class for"
                f" {config.model_type}; choose another body"
            ) from error
        raise PalateError(f"{name}: cannot be loaded: {_brief(error)}") from error
    finally:
        hf_logging.set_verbosity(verbosity)
    _check_missing(name, transformer, report, has_head)
    transformer.config.problem_type = "regression"
    return transformer  # type: ignore[no-any-return]


def _check_missing(name: str, transformer: Any, report: Any, has_head: bool) -> None:
    """Only the head, and a pooler that the class adds after the body, may be new.

    A body whose own weights are missing would be trained from noise without a word.
    """
    body = transformer.base_model_prefix + "."
    missing = [
        weight
        for weight in report["missing_keys"]
        if weight.startswith(body) and ".pooler." not in weight
    ]
    mismatched = [
        f"{weight} {[*stored]} for {[*expected]}"
        for weight, stored, expected in report["mismatched_keys"]
    ]
    if missing or mismatched:
        listed = ", ".join((missing + mismatched)[:3])
        raise PalateError(
            f"{name}: {len(missing) + len(mismatched)} weights are missing or misshapen ({listed});"
            " config.json and the weights don't belong together"
        )
    if has_head:
        new_head = [
            w for w in report["missing_keys"] if w.endswith("weight") and not w.startswith(body)
        ]
        if new_head:
            raise PalateError(f"{name}: the head is incomplete: {', '.join(new_head)} is missing")


def _init_head(transformer: Any, head_init: str) -> None:
    _, head = find_head(transformer)
    with torch.no_grad():
        if head.bias is not None:
            head.bias.zero_()
        if head_init == "zero":
            head.weight.zero_()
        else:
            head.weight.normal_(std=head.in_features**-0.5)


def _choose_layout(name: str, model: RewardModel, settings: BodySettings) -> None:
    if settings.layout == "rows":
        return
    reason = why_not_tree(model)
    if reason is None:
        model.layout = "tree"
    elif settings.layout == "tree":
        raise PalateError(f"body.layout tree is not exact for {name}: {reason}")
    elif model.pooling == "last":
        warnings.warn(
            f"{name}: layout rows instead of tree, which computes each prompt once: {reason}",
            stacklevel=3,
        )

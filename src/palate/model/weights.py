"""What a checkpoint's files hold, and transformers made from them with nothing missing."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging as hf_logging

from palate.errors import PalateError
from palate.model.head_file import HEAD_FILE, VARIANT
from palate.model.quantization import keep_trainable, quantization_config
from palate.model.settings import BodySettings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": "auto"}


def weight_names(directory: Path, name: str) -> set[str]:
    """Names of all tensors in the checkpoint, read from the safetensors headers.

    Raises PalateError for pickled, missing or damaged weights.
    """
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        index = directory / f"model.safetensors.index.{VARIANT}.json"
    files = sorted(path for path in directory.glob("*.safetensors") if path.name != HEAD_FILE)
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


def load_classifier(
    name: str,
    directory: Path,
    settings: BodySettings,
    config: Any,
    has_head: bool,
    device: torch.device | None,
) -> nn.Module:
    """The `...ForSequenceClassification` of a checkpoint, its head as stored or random.

    Raises PalateError where weights are missing or misshapen.
    """
    # A quantised head would print rewards in steps; what classes put before it is new and trained.
    kept = ["score", "classifier", "head", ".*pooler"]
    transformer, report = _from_pretrained(
        AutoModelForSequenceClassification, name, directory, settings, config, kept, device
    )
    body = transformer.base_model_prefix + "."
    in_body = [weight for weight in report["missing_keys"] if weight.startswith(body)]
    _check_missing(name, in_body, report)
    beside = [weight for weight in report["missing_keys"] if weight not in in_body]
    new_head = [weight for weight in beside if weight.endswith("weight")]
    if has_head and new_head:
        raise PalateError(f"{name}: the head is incomplete: {', '.join(new_head)} is missing")
    transformer.config.problem_type = "regression"
    return transformer  # type: ignore[no-any-return]


def load_body(
    name: str,
    directory: Path,
    settings: BodySettings,
    config: Any,
    is_ours: bool,
    device: torch.device | None,
) -> nn.Module:
    """The body of a checkpoint, under the file names of palate where `is_ours`.

    Raises PalateError where there is no such class, or weights are missing or misshapen.
    """
    variant = VARIANT if is_ours else None
    body, report = _from_pretrained(
        AutoModel, name, directory, settings, config, [], device, variant=variant
    )
    _check_missing(name, list(report["missing_keys"]), report)
    return body  # type: ignore[no-any-return]


def _from_pretrained(
    auto_class: Any,
    name: str,
    directory: Path,
    settings: BodySettings,
    config: Any,
    kept: list[str],
    device: torch.device | None,
    **arguments: Any,
) -> tuple[Any, Any]:
    """Model and report of what was missing. SDPA, or eager attention where the class refuses it."""
    dtype = DTYPES[settings.dtype]
    arguments |= {
        "config": config,
        "dtype": dtype,
        "trust_remote_code": settings.trust_remote_code,
        "local_files_only": True,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are judged by `_check_missing`
    }
    if settings.quantization != "none":
        if getattr(config, "quantization_config", None):
            raise PalateError(
                f"{name}: is quantised as it is; body.quantization {settings.quantization} has no"
                " effect, leave it out"
            )
        quantised = quantization_config(settings.quantization, dtype, kept)
        arguments["quantization_config"] = quantised
        arguments["device_map"] = None if device is None else {"": device}
    verbosity = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()  # its table of missing weights is judged by `_check_missing`
    try:
        try:
            loaded = auto_class.from_pretrained(directory, attn_implementation="sdpa", **arguments)
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            loaded = auto_class.from_pretrained(directory, attn_implementation="eager", **arguments)
    except Exception as error:  # the code of many models, which fails in many ways
        what = "cannot be loaded"
        if settings.quantization != "none":
            what += f" in {settings.quantization} on {device or 'this machine'}"
        raise PalateError(f"{name}: {config.model_type} {what}: {brief(error)}") from error
    finally:
        hf_logging.set_verbosity(verbosity)
    keep_trainable(loaded[0])
    return loaded  # type: ignore[no-any-return]


def brief(error: Exception) -> str:
    """The start of a message: the libraries list all that would have been possible."""
    lines = str(error).splitlines()
    return f"{lines[0]:.300}" if lines else type(error).__name__


def _check_missing(name: str, missing: list[str], report: Any) -> None:
    """Of a body only the pooler, which a class adds after it, may be new.

    A body whose own weights are missing would be trained from noise without a word.
    """
    missing = [weight for weight in missing if "pooler." not in weight]
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

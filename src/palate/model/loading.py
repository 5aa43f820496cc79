"""Checkpoints to reward models; what isn't one is refused by name."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from palate.artifacts.hub import model_directory
from palate.errors import PalateError
from palate.model.faster import choose_attention
from palate.model.forms import (
    as_trained,
    is_own_form,
    on_body,
    other_form,
    pooling_of_class,
    refuse_other_form,
)
from palate.model.head_file import HEAD_FILE, MARK, read_head
from palate.model.heads import init_head
from palate.model.reward_model import HEAD_NAMES, RewardModel
from palate.model.selfcheck import (
    BIDIRECTIONAL,
    in_words,
    is_random,
    parameters_in_use,
    why_not_rows,
    why_not_tree,
    without_numbers,
)
from palate.model.settings import BodySettings
from palate.model.weights import brief, load_body, load_classifier, weight_names

VALUE_HEADS = ("v_head.", "value_head.")


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer as the checkpoint has it, and the local directory it came from."""

    model: RewardModel
    tokenizer: PreTrainedTokenizerBase
    directory: Path
    has_trained_head: bool


def load_model(
    name: str,
    settings: BodySettings = BodySettings(),
    *,
    for_training: bool,
    new_head: bool = False,
    device: torch.device | None = None,
) -> Loaded:
    """Load a body with its head, or give a body a new head when training.

    With `new_head` the head is to be trained anew, so that a reward model's own may be replaced by
    one of another pooling or form; where they agree it is kept as it is.

    A new head with pooling and form of the class's own goes into that class, so that plain classes
    load what is saved; any other goes onto the body alone. `device` is where a quantised body is
    put, which can't be moved there later.

    Raises PalateError for: no such checkpoint, pickled weights, an encoder-decoder, two labels, a
    value head, no head (unless training), weights missing from the body, a pooling or head other
    than that of a trained checkpoint (unless `new_head`), a body whose rewards would depend on a
    text's neighbours, layout `tree` where it isn't exact.
    """
    directory = model_directory(name)
    config = load_config(name, directory, settings)
    stored = read_head(directory)
    if stored is None and hasattr(config, MARK):
        raise PalateError(f"{name}: {HEAD_FILE} is missing; get the file again")
    names = weight_names(directory, name)
    has_head = stored is not None or _check_head(name, config, names, for_training)
    is_ours = stored is not None
    own_pooling = None if is_ours else pooling_of_class(name, config, settings)
    if has_head:
        if stored is None and own_pooling is None:
            raise PalateError(
                f"{name}: transformers has no sequence-classification class for"
                f" {config.model_type} whose head palate can read; name another reward model"
            )
        if new_head and other_form(settings, stored, own_pooling) is not None:
            settings = as_trained(settings, stored, own_pooling)
            has_head, stored = False, None
        else:
            refuse_other_form(name, settings, stored, own_pooling)
    config.num_labels = 1
    if not is_ours and (has_head or is_own_form(settings, own_pooling)):
        classifier = load_classifier(name, directory, settings, config, has_head, device)
        model = RewardModel(classifier, "rows")
        if not has_head:
            init_head(model.head, settings.head_init)
    else:
        body = load_body(name, directory, settings, config, is_ours, device)
        model = on_body(name, body, settings, stored)
    if not for_training:
        model.eval()
    _check_model(name, model, settings, for_training)
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
            f"{name}: no usable tokenizer: {brief(error)} Put tokenizer.json beside the weights"
        ) from error


def load_config(name: str, directory: Path, settings: BodySettings) -> Any:
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
                " set trust_remote_code (body.trust_remote_code in training)"
            ) from error
        raise PalateError(
            f"{name}: no usable config.json: {brief(error)} Name the directory that holds the"
            " checkpoint, or get its files again"
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise PalateError(
            f"{name}: {config.model_type} is an encoder-decoder; palate trains decoder-only"
            " bodies and bidirectional encoders"
        )
    try:
        text_config = config.get_text_config()
    except ValueError as error:
        raise PalateError(
            f"{name}: {config.model_type} has several text parts; palate reads one"
        ) from error
    if not settings.dropout:
        for part in (config, text_config):
            for key, value in list(vars(part).items()):
                if key.endswith(("dropout", "_pdrop", "dropout_prob")) and isinstance(value, float):
                    # Attention dropout is no module: it is read here when the layers are built.
                    setattr(part, key, 0.0)
    return config


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


def _check_model(name: str, model: RewardModel, settings: BodySettings, for_training: bool) -> None:
    """Refuse what no layout is right for; freeze what text does not reach."""
    kind = model.config.model_type
    if getattr(model.config, "attention_type", None) == "block_sparse":
        raise PalateError(
            f"{name}: {kind} with block-sparse attention draws what a token sees, and only in long"
            " batches; set attention_type to original_full in its config.json"
        )
    reason = why_not_rows(model)
    if reason is not None:
        remedy = "set body.pooling to mean, or " if model.pooling == "cls" and for_training else ""
        raise PalateError(
            f"{name}: {kind} can't be a reward model: {reason}; {remedy}choose another body"
        )
    if not for_training:
        return
    _freeze_unused(model)
    try:
        random = is_random(model) or _has_router_noise(model.config.get_text_config())
    except Exception as error:  # training mode runs other code than evaluation, also of others
        raise PalateError(
            f"{name}: {kind} can't be trained: {in_words(error)}; choose another body"
        ) from error
    if random and not settings.dropout:
        raise PalateError(
            f"{name}: {kind} draws random numbers in training besides dropout, so gradients would"
            " depend on the microbatch; set body.dropout to accept noise, or choose another body"
        )


def _has_router_noise(config: Any) -> bool:
    """Routers that draw among experts whose scores are close: too seldom for a few short texts."""
    return any(
        name.endswith(("jitter_noise", "jitter_eps")) and value
        for name, value in vars(config).items()
    )


def _freeze_unused(model: RewardModel) -> None:
    """Freeze parameters that no text's reward depends on: a vision tower, an encoder's pooler, what
    chooses tokens or experts without a gradient. Wrappers that shard wait for all gradients.
    """
    used = parameters_in_use(model)
    patterns = {without_numbers(name) for name in used}
    for name, parameter in model.named_parameters():
        if without_numbers(name) not in patterns:
            parameter.requires_grad_(False)


def _choose_layout(name: str, model: RewardModel, settings: BodySettings) -> None:
    if settings.layout == "rows":
        return
    reason = why_not_tree(model)
    if reason is None:
        model.layout = "tree"
        choose_attention(name, model, settings.attention)
    elif settings.layout == "tree":
        raise PalateError(f"body.layout tree is not exact for {name}: {reason}")
    elif model.pooling == "last" or reason != BIDIRECTIONAL:
        warnings.warn(
            f"{name}: layout rows instead of tree, which computes each prompt once: {reason}",
            stacklevel=3,
        )

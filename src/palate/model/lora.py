"""Low-rank adapters through `peft`: put into a body, kept in training checkpoints, saved."""

import copy
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from palate.artifacts.files import atomic_path, write_json, write_text
from palate.errors import PalateError
from palate.model.head_file import HEAD_FILE, MARK, VARIANT, write_head
from palate.model.lora_targets import Found, beside_body, choose_targets, find_targets, last_parts
from palate.model.reward_model import RewardModel

ADAPTER = "default"  # the name that peft itself gives

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Adapters; read where training.method is lora."""

    rank: int = 16
    """Rank of each adapter."""
    alpha: float = 32.0
    """Scale: an adapter's output is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout before each adapter."""
    targets: tuple[str, ...] = ()
    """Last parts of the names of the layers that get one: linear layers of the body, or fused
    weights of experts; empty = all linear layers of the body, and no fused experts."""
    keep_adapter: bool = False
    """Write the adapter beside the merged model, as `peft` loads it."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise PalateError(f"lora.rank is {self.rank}, must be 1 or more")
        if not 0 < self.alpha < math.inf:
            raise PalateError(f"lora.alpha is {self.alpha}, must be a number above 0")
        if not 0 <= self.dropout < 1:
            raise PalateError(f"lora.dropout is {self.dropout}, must be in [0, 1)")


def add_adapters(model: RewardModel, settings: LoraSettings) -> None:
    """Freeze the body and give its linear layers adapters, in place; rewards stay as they are.

    W x becomes W x + (alpha / rank) B A x, with A of `rank` rows and B zero at first (Hu et al.
    2021, arXiv 2106.09685). Trained whole, in float32: head, pooling query, and any layer that a
    reward model has beside the body's own, such as a pooler. `model.transformer` keeps its class.

    Raises PalateError when peft is missing, a target matches nothing, or dropout is set on experts.
    """
    peft = _peft()
    transformer = model.transformer
    found = find_targets(model)
    layers, experts = choose_targets(transformer, found, settings.targets)
    if experts and settings.dropout:
        raise PalateError(
            f"lora.dropout {settings.dropout} can't be applied to the fused experts {experts[0]};"
            " set it to 0, or leave the experts out of lora.targets"
        )
    whole = [transformer.get_submodule(name) for name in found.whole]
    trained = [p for module in whole for p in module.parameters() if p.requires_grad]
    config = peft.LoraConfig(
        task_type="SEQ_CLS" if model.plain else "FEATURE_EXTRACTION",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=layers,
        target_parameters=experts or None,
        fan_in_fan_out=any(isinstance(transformer.get_submodule(n), Conv1D) for n in layers),
    )
    peft.inject_adapter_in_model(config, transformer, ADAPTER)
    # In 8 bits of mantissa most steps of a small learning rate would round to nothing.
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for parameter in trained:
        parameter.requires_grad_(True)
    for module in whole:
        assert all(p.is_floating_point() for p in module.parameters()), "a quantised head"
        module.float().register_forward_pre_hook(cast_inputs)
    _log(model, settings, found, [*layers, *experts])


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise PalateError(
            "training.method lora needs peft; install it with pip install 'palate[lora]'"
        ) from error
    return peft


def cast_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Hook: a layer that is trained in float32 takes the states of a body of fewer bits."""
    return tuple(
        value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in inputs
    )


def trained_whole(model: RewardModel) -> list[str]:
    """Names within the transformer of the modules that are trained as they are."""
    return [
        name
        for name in beside_body(model)
        if any(p.requires_grad for p in model.transformer.get_submodule(name).parameters())
    ]


def _log(model: RewardModel, settings: LoraSettings, found: Found, adapted: list[str]) -> None:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parts = [
        f"lora: rank {settings.rank} on {len(adapted)} layers ({', '.join(last_parts(adapted))})",
        f"whole: {', '.join(found.whole)}",
        f"{trained:,} trained parameters",
    ]
    if frozen := {*found.layers, *found.refused} - {*adapted}:
        parts.append(f"layers without an adapter: {', '.join(last_parts(frozen))}")
    if frozen := {*found.experts} - {*adapted}:
        names = ", ".join(last_parts(frozen, 2))
        parts.append(f"experts frozen, unless lora.targets names them: {names}")
    logger.info("%s", "; ".join(parts))


def trained_state(model: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """What training changes: adapters, head, what the objective learns. Enough for a checkpoint,
    since the rest is loaded again from the model that training starts from.

    `state` is the model's state where a wrapper has gathered it, by the model's own names.
    """
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = model.state_dict() if state is None else state
    return {name: tensor for name, tensor in state.items() if name in names}


def check_restored(model: nn.Module, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuse a training checkpoint that lacks something trained, or holds something unknown.

    `missing` and `unexpected` are what `load_state_dict` reports; what is frozen may be missing.
    """
    lost = sorted({*trained_state(model)} & {*missing})
    unknown = sorted(unexpected)
    if lost or unknown:
        what = f"lacks {lost[0]}" if lost else f"holds {unknown[0]}, which this model has not"
        raise PalateError(
            f"the training checkpoint {what}; it comes from other settings: use those, or another"
            " output"
        )


def save_adapter(model: RewardModel, directory: Path, base_name: str) -> None:
    """Write adapters and head so that `peft.PeftModel` puts them on the base; call before merging.

    The head, and all else that is trained whole, is in `adapter_model.safetensors` under the names
    of `modules_to_save`; read back, it is compared bit for bit. A head or pooling that plain
    classes don't have is in `reward_head.safetensors`, which peft does not read: then the adapter
    is one of the body alone, and the README says so. Raises PalateError when the disk is full or
    not writable, or what is read back differs.
    """
    transformer = model.transformer
    if (Path(base_name) / "model" / "config.json").exists():
        base_name = f"{base_name}/model"  # of a run of ours
    whole = trained_whole(model)
    config = copy.copy(transformer.peft_config[ADAPTER])
    config.base_model_name_or_path = base_name
    config.modules_to_save = whole or None
    config.inference_mode = True
    values = {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in config.to_dict().items()
    }
    state = _peft().get_peft_model_state_dict(
        transformer, adapter_name=ADAPTER, save_embedding_layers=False
    )
    for module in whole:
        own = transformer.get_submodule(module).state_dict()
        state.update({f"{module}.{name}": tensor for name, tensor in own.items()})
    path = directory / "adapter_model.safetensors"
    _write_tensors(path, {f"base_model.model.{name}": tensor for name, tensor in state.items()})
    if not model.plain:
        write_head(directory, model)
    write_json(directory / "adapter_config.json", values)
    write_text(directory / "README.md", _readme(model, base_name, whole))


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    written = load_file(path)
    for name, tensor in tensors.items():
        if name not in written or not torch.equal(written[name], tensor):
            raise PalateError(f"{path}: {name} was not written whole; check the disk")


def _readme(model: RewardModel, base_name: str, whole: list[str]) -> str:
    auto = "AutoModelForSequenceClassification" if model.plain else "AutoModel"
    arguments = [repr(base_name)]
    if model.plain:
        arguments.append("num_labels=1")
    if hasattr(model.config, MARK):  # the base is a run of ours that plain classes don't find
        arguments.append(f'variant="{VARIANT}"')
    if getattr(model.config, "auto_map", None):
        arguments.append("trust_remote_code=True")
    lines = [
        "---",
        "library_name: peft",
        "---",
        f"Adapter of a reward model on `{base_name}`, written by palate. The same model with the",
        "adapter merged in lies beside it in `../model`, with its tokenizer and chat template.",
        "",
        "```python",
        "from peft import PeftModel",
        f"from transformers import {auto}",
        "",
        f"base = {auto}.from_pretrained({', '.join(arguments)})",
        'model = PeftModel.from_pretrained(base, "the directory of this file")',
        "```",
        "",
    ]
    if model.plain:
        lines += [
            f"Trained whole, and therefore in the adapter's file: {', '.join(whole)}. Where the",
            "base has none, the first call says that they are newly initialised; the second one",
            "fills them in.",
        ]
    else:
        lines += [
            f"This gives the body's states and no reward: its pooling ({model.pooling}) and head,",
            f"in `{HEAD_FILE}`, are known to palate alone. Take the merged model for rewards.",
        ]
    if model.quantized:
        lines += [
            "",
            "It was trained on a quantised base. Pass the same `quantization_config` to the first",
            "call, or take the merged model: on the unquantised base the rewards are others.",
        ]
    return "\n".join(lines) + "\n"

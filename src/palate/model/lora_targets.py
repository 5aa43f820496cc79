"""Which parts of a transformer can carry an adapter, and which are new and trained whole."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from palate.errors import PalateError
from palate.forest.plan import plan_rows
from palate.model.reward_model import Output, RewardModel
from palate.model.selfcheck import random_groups, without_numbers

POOLER = "pooler"


@dataclass(frozen=True)
class Found:
    """Names within the transformer."""

    whole: list[str]
    """Modules that are new and trained as they are."""
    layers: list[str] = field(default_factory=list)
    """Linear layers that can carry an adapter."""
    experts: list[str] = field(default_factory=list)
    """Fused weights of experts, which can carry one too."""
    refused: dict[str, str] = field(default_factory=dict)
    """Linear layers that can't, and why."""


def find_targets(model: RewardModel) -> Found:
    """What of the transformer a forward pass uses, by what can be done with it."""
    transformer = model.transformer
    modules = {name: module for name, module in transformer.named_modules() if name}
    called = _called(model, modules)
    head = f"{model.head_name}."
    beside = [n for n in beside_body(model) if n in called or head.startswith(f"{n}.")]
    found = Found(whole=beside)
    used = {without_numbers(name) for name in called}
    for name, module in modules.items():
        if any(f"{name}.".startswith(f"{part}.") for part in beside):
            continue
        if isinstance(module, nn.Linear | Conv1D):
            reason = _why_unused(model, name, used)
            if reason is None:
                found.layers.append(name)
            else:
                found.refused[name] = reason
        elif without_numbers(name) in used and not isinstance(module, nn.Conv1d):
            own = module.named_parameters(recurse=False)
            # A first dimension of 1 is that of a batch, as in learned positions.
            stacks = (last for last, p in own if p.ndim == 3 and len(p) > 1)
            found.experts.extend(f"{name}.{last}" for last in stacks)
    return found


def beside_body(model: RewardModel) -> list[str]:
    """Modules that a pretrained body may come without, so that they are new in a reward model: all
    of the transformer beside the body, and the body's pooler where it is read."""
    transformer, body = model.transformer, model.body
    if body is transformer:
        return []
    beside = [
        name
        for name, module in transformer.named_children()
        if module is not body and any(True for _ in module.parameters())
    ]
    poolers = [n for n, _ in transformer.named_modules() if n.endswith(f".{POOLER}")]
    return beside + (poolers if model.pooling == "cls" else [])


def _why_unused(model: RewardModel, name: str, used: set[str]) -> str | None:
    """Why an adapter in this layer would do nothing; None when it would."""
    if without_numbers(name) not in used:
        return "it is never called, so an adapter in it would do nothing"
    if POOLER in name.split(".") and model.pooling != "cls":
        return f"pooling {model.pooling} does not read the body's own pooler"
    if _is_read_past(model.transformer, name):
        return "fused state-space kernels read its weight past an adapter"
    return None


def _called(model: RewardModel, names: Iterable[str]) -> set[str]:
    """Which of these modules of the transformer a forward pass calls."""
    called: set[str] = set()
    hooks = [
        model.transformer.get_submodule(name).register_forward_pre_hook(
            lambda *_, name=name: called.add(name)
        )
        for name in names
    ]
    try:
        probe(model)
    finally:
        for hook in hooks:
            hook.remove()
    return called


def probe(model: RewardModel) -> Output:
    """States and rewards of a few random sequences."""
    (plan,) = plan_rows(random_groups(model.config), 10**9, pad_id=0)
    with model.scoring_mode():
        return model.run(plan)


def _is_read_past(transformer: Any, name: str) -> bool:
    """Whether a state-space mixer hands this layer's weight to a kernel instead of calling it.

    On a GPU all but the first layer of Mamba's mixers, which own `A_log` and `D`; on a CPU the same
    layers are called, so that calling them here proves nothing.
    """
    parent, _, own = name.rpartition(".")
    mixer = transformer.get_submodule(parent)
    return hasattr(mixer, "A_log") and hasattr(mixer, "D") and not own.startswith("in_proj")


def choose_targets(
    transformer: nn.Module, found: Found, targets: tuple[str, ...]
) -> tuple[list[str], list[str]]:
    """The layers and the fused experts that get an adapter: those whose names end in a target; all
    layers and no experts without targets.

    Raises PalateError for a target that matches nothing, naming what it is near to.
    """
    if not targets:
        if not found.layers:
            raise PalateError(
                f"{type(transformer).__name__} has no linear layer for an adapter; set"
                " training.method to full"
            )
        return found.layers, []
    chosen: set[str] = set()
    for target in targets:
        matched = _matching([*found.layers, *found.experts], target)
        if not matched:
            raise PalateError(f"lora.targets {target!r}: {_why_not(transformer, found, target)}")
        chosen.update(matched)
    return (
        [name for name in found.layers if name in chosen],
        [name for name in found.experts if name in chosen],
    )


def _matching(names: Iterable[str], target: str) -> list[str]:
    return [name for name in names if f".{name}".endswith(f".{target}")]


def _why_not(transformer: nn.Module, found: Found, target: str) -> str:
    refused = _matching(found.refused, target)
    if refused:
        return f"{refused[0]} can't be adapted: {found.refused[refused[0]]}; leave it out"
    known = [*last_parts(found.layers), *last_parts(found.experts, 2)]
    near = difflib.get_close_matches(target, known, n=3, cutoff=0.4)
    nearest = f"; nearest: {', '.join(near)}" if near else ""
    return (
        f"no layer of {type(transformer).__name__} has a name that ends so{nearest}; it has"
        f" {', '.join(known)} (the head is always trained)"
    )


def last_parts(names: Iterable[str], count: int = 1) -> list[str]:
    """`q_proj` of `model.layers.0.self_attn.q_proj`; each once, sorted."""
    return sorted({".".join(name.split(".")[-count:]) for name in names})

"""How a reward model is trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from palate.errors import PalateError
from palate.text.perturb import PERTURBATIONS

Solver = Literal["lbfgs", "adamw"]
"""What trains the head of a frozen body."""
HEEDED: dict[Solver, tuple[str, ...]] = {
    "lbfgs": ("head_l2",),
    "adamw": ("learning_rate", "prompts_per_step", "weight_decay", "early_stopping_patience"),
}
"""Settings that each solver heeds, besides `ALWAYS_HEEDED`."""
ALWAYS_HEEDED = (
    *("method", "tokens_per_microbatch", "features_cache", "seed"),
    *("counterfactual", "cross_prompt", "length_balanced"),
    "guards",
)
STEP_GUARDS = ("first_loss", "explosion", "on_explosion", "dead_head")
"""Of `GuardSettings`: those that look at the trainer's steps."""
SOLVER_NAMES: dict[Solver, str] = {"lbfgs": "L-BFGS", "adamw": "AdamW on cached features"}


@dataclass(frozen=True, kw_only=True)
class CounterfactualSettings:
    """Pairs of a training answer and the same answer said otherwise (docs/fixes.md)."""

    share: float = 0.0
    """Extra pairs for each training prompt, such as 0.15; 0 = none. Each counts as a prompt."""
    kinds: tuple[str, ...] = ("closing", "opener", "filler", "confidence", "agreement", "markdown")
    """How an answer is changed, in turn: these, hedge and plain."""
    target: float = 0.6
    """Probability that the answer as it was is the better one; 0.5 = indifferent."""

    def __post_init__(self) -> None:
        _check_extra("counterfactual", self.share, self.target)
        for name in self.kinds:
            if name not in PERTURBATIONS:
                raise PalateError(
                    f"training.counterfactual.kinds {name!r} is none of {', '.join(PERTURBATIONS)}"
                )
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise PalateError(
                f"training.counterfactual.kinds [{', '.join(self.kinds)}] must name at least one,"
                " and each once"
            )
        if not self.share and _differs_from_defaults(self):
            raise PalateError(
                "training.counterfactual.kinds and target have no effect with share 0; set"
                " training.counterfactual.share, such as 0.15"
            )


@dataclass(frozen=True, kw_only=True)
class CrossPromptSettings:
    """Pairs of a preferred answer and a preferred answer to another prompt (docs/fixes.md)."""

    share: float = 0.0
    """Extra pairs for each training prompt, such as 0.15; 0 = none. Each counts as a prompt."""
    target: float = 0.9
    """Probability that the prompt's own answer is the better one."""

    def __post_init__(self) -> None:
        _check_extra("cross_prompt", self.share, self.target)
        if not self.share and _differs_from_defaults(self):
            raise PalateError(
                f"training.cross_prompt.target {self.target} has no effect with share 0; set"
                " training.cross_prompt.share, such as 0.15"
            )
        if self.target == 0.5:
            raise PalateError(
                "training.cross_prompt.target is 0.5: such pairs would teach that a prompt's own"
                " answer is no better than another prompt's; set it above"
            )


def _differs_from_defaults(settings: CounterfactualSettings | CrossPromptSettings) -> bool:
    return any(getattr(settings, item.name) != item.default for item in fields(settings))


def _check_extra(name: str, share: float, target: float) -> None:
    if not 0 <= share <= 10:
        raise PalateError(f"training.{name}.share is {share}, must be in [0, 10]")
    if not 0.5 <= target <= 1:
        raise PalateError(f"training.{name}.target is {target}, must be in [0.5, 1]")


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """What is looked at before and during training, all on (docs/guards.md); a loss or a gradient
    that is not finite always stops the run."""

    padding: bool = True
    """Before training: a text alone and beside longer ones has one reward."""
    repeat: bool = True
    """Before training: a text scored twice has one reward, so no dropout is left on."""
    head: bool = True
    """Before training: the head has no bias that is trained, nor one that plain classes drop."""
    rendering: bool = True
    """Before training: the first prompts' ids are those of the template that is saved, with one
    start token and their end of turn."""
    leak: bool = True
    """Warm start from a palate run: say how many held-out prompts that run was trained on."""
    first_loss: bool = True
    """The first loss is what the objective gives a new head."""
    explosion: bool = True
    """Gradients, margins and rewards stay within their running median and their limits."""
    on_explosion: Literal["warn", "stop"] = "warn"
    """stop: end the run before the step is taken; earlier checkpoints stay."""
    dead_head: bool = True
    """Rewards differ, and the head moves."""

    def __post_init__(self) -> None:
        if self.on_explosion == "stop" and not self.explosion:
            raise PalateError(
                "training.guards.on_explosion stop has no effect with training.guards.explosion"
                " false; set it to true"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Optimiser, schedule, memory, checkpoints."""

    method: Literal["full", "lora", "frozen"] = "full"
    """full: all weights. lora: low-rank adapters and the head. frozen: the head alone, on features
    that are computed once."""
    prompts_per_step: int = 32
    """Prompts of one optimiser step, over all processes; each counts the same, whatever its K."""
    epochs: int = 2
    """Passes over the training prompts."""
    max_steps: int = 0
    """Optimiser steps after which to stop; 0 = as `epochs` says."""
    learning_rate: float = 0.0
    """Of the body or its adapters, at its peak; 0 = by method and size (docs/tuning.md)."""
    head_learning_rate_factor: float = 0.0
    """Learning rate of the head, as a multiple of the body's; 0 = 10 for full, 1 for lora."""
    warmup_share: float = 0.1
    """Share of all steps in which the learning rate rises from 0."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes on after warm-up; linear and cosine end at 0."""
    weight_decay: float = 0.01
    """AdamW's; biases and norms have none."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this Euclidean norm."""
    tokens_per_microbatch: int = 8192
    """Token slots of one forward pass on one device: bounds memory, changes no gradient. A group is
    never divided: a larger one is a microbatch of its own."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the body's arithmetic; auto is bfloat16 where the GPU has it, otherwise float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the body's layers with torch.compile, once for all shapes: tens of seconds at the
    start, less time for norms and activations after it."""
    liger: bool = False
    """Liger's Triton kernels for norms, rotary embeddings and MLPs, on CUDA."""
    evaluations_per_epoch: int = 1
    """Evaluations of the validation sets, each followed by a checkpoint."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep, besides the best."""
    early_stopping_patience: int = 0
    """Stop after so many evaluations without a better validation loss; 0 = never."""
    log_every_steps: int = 10
    """Optimiser steps between two lines of the training log."""
    report_to: tuple[str, ...] = ()
    """Trackers that `transformers` knows: tensorboard, wandb, trackio, mlflow, ..."""
    seed: int = 0
    """Of the head, the order of prompts, and dropout."""
    head_l2: float = 0.0
    """frozen, linear head: L2 penalty on the weights of standardised features; 0 = that of a grid
    which has the least validation loss."""
    features_cache: str = ""
    """frozen: directory of features; empty = palate/features in the user's cache directory."""
    counterfactual: CounterfactualSettings = field(default_factory=CounterfactualSettings)
    cross_prompt: CrossPromptSettings = field(default_factory=CrossPromptSettings)
    length_balanced: bool = False
    """Leave comparisons out until, among answers of about the same difference in length, the longer
    wins half. Harms where length is part of quality (docs/fixes.md)."""
    guards: GuardSettings = field(default_factory=GuardSettings)

    def __post_init__(self) -> None:
        positive = (
            "prompts_per_step",
            "epochs",
            "tokens_per_microbatch",
            "evaluations_per_epoch",
            "keep_checkpoints",
            "log_every_steps",
            "max_grad_norm",
        )
        for name in positive:
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise PalateError(f"training.{name} is {value}, must be a number above 0")
        from_zero = (
            "learning_rate",
            "head_learning_rate_factor",
            "max_steps",
            "early_stopping_patience",
            "weight_decay",
            "head_l2",
        )
        for name in from_zero:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise PalateError(f"training.{name} is {value}, must be a number from 0")
        if not 0 <= self.seed < 2**32:
            raise PalateError(f"training.seed is {self.seed}, must be from 0 to 2**32 - 1")
        if not 0 <= self.warmup_share < 1:
            raise PalateError(f"training.warmup_share is {self.warmup_share}, must be in [0, 1)")
        for name in ("head_l2", "features_cache"):
            if getattr(self, name) and self.method != "frozen":
                raise PalateError(
                    f"training.{name} {getattr(self, name)} has no effect with training.method"
                    f" {self.method}; set it to frozen"
                )
        if self.max_steps and self.epochs != 2:
            raise PalateError(
                f"training.epochs {self.epochs} has no effect with training.max_steps"
                f" {self.max_steps}; set one of them"
            )


def refuse_unheeded(settings: TrainingSettings, solvers: Sequence[Solver]) -> None:
    """Raise PalateError for a setting that differs from its default and that none of these solvers,
    which a head on a frozen body may be trained by, heeds."""
    default = TrainingSettings()
    for name in STEP_GUARDS:
        value = getattr(settings.guards, name)
        if value != getattr(default.guards, name):
            raise PalateError(
                f"training.guards.{name} {value} has no effect with training.method frozen, whose"
                " head takes no steps that are watched; leave it out"
            )
    heeded = [*ALWAYS_HEEDED, *(name for solver in solvers for name in HEEDED[solver])]
    for name in (item.name for item in fields(settings)):
        value = getattr(settings, name)
        if name not in heeded and value != getattr(default, name):
            how = " or ".join(SOLVER_NAMES[solver] for solver in solvers)
            raise PalateError(
                f"training.{name} {value} has no effect with training.method frozen and this head,"
                f" which is trained by {how}; it heeds {', '.join(heeded[1:])}"
            )

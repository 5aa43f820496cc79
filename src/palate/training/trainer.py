"""`transformers.Trainer` with our step: a fixed number of prompts, in exact microbatches.

Legend: N sequences of a microbatch.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    Trainer,
    TrainerControl,
    TrainingArguments,
)

from palate.artifacts.files import describe_os_error
from palate.errors import PalateError
from palate.forest import Packing, Plan, plan_groups, plan_rows
from palate.model.faster import check_on_device
from palate.model.kernels import apply_liger, compile_layers
from palate.model.lora import check_restored, trained_state
from palate.model.reward_model import Output, RewardModel, plan_tensors
from palate.objectives import ObjectiveSettings
from palate.objectives.objective import Objective, ObjectiveBatch
from palate.rendering import RenderedGroup
from palate.rendering.store import token_counts
from palate.scoring.runs import run_plans
from palate.training.callbacks import InterruptHandler, StateHandler
from palate.training.checkpoints import rotate, seal
from palate.training.defaults import Role, rates_by_role, role_of, uses_bfloat16, with_rates
from palate.training.guards import StepGuard, check_before_training, refuse_non_finite
from palate.training.loss import sum_of_means, sum_over_prompts
from palate.training.settings import TrainingSettings
from palate.training.steps import StepBatch, StepCosts, StepSampler, step_loader

Measure = Callable[[Sequence[RenderedGroup], Sequence[np.ndarray]], Mapping[str, float]]
"""(groups, rewards of each) -> metrics."""


class RewardTrainer(Trainer):  # type: ignore[misc]
    """Trains a RewardModel on rendered groups; evaluates several validation sets by name.

    The first validation set decides which checkpoint is the best, by its loss.
    """

    def __init__(
        self,
        model: RewardModel,
        settings: TrainingSettings,
        train_groups: Sequence[RenderedGroup],
        validation_sets: Mapping[str, Sequence[RenderedGroup]],
        measure: Measure,
        pad_id: int,
        directory: Path,
        objective: Objective | None = None,
        is_warm_start: bool = False,
    ) -> None:
        """`is_warm_start`: the head is trained already, so no first loss is expected of it."""
        self.optimizer: torch.optim.Optimizer | None
        self.control: TrainerControl
        self.settings = settings = with_rates(settings, model.num_parameters())
        self.objective = objective or Objective(ObjectiveSettings(), train_groups)
        model.learned = nn.ParameterDict(
            {name: nn.Parameter(value.clone()) for name, value in self.objective.initial.items()}
        )
        self.train_groups = train_groups
        self.validation_sets = validation_sets
        self.measure = measure
        self.pad_id = pad_id
        self.interrupt = InterruptHandler()
        self.guard = StepGuard(settings, self.objective, not is_warm_start)
        if settings.early_stopping_patience and not validation_sets:
            raise PalateError(
                "training.early_stopping_patience has no effect without validation data"
            )
        if settings.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        if settings.liger:
            apply_liger(model)
        if settings.compile:
            compile_layers(model)
        steps_per_epoch = -(-len(train_groups) // settings.prompts_per_step)
        super().__init__(
            model=model,
            args=training_arguments(settings, steps_per_epoch, directory, bool(validation_sets)),
            # The base class only asks whether they are there: both loaders are our own.
            train_dataset=list(range(len(train_groups))),
            eval_dataset=[0] if validation_sets else None,
            callbacks=[self.interrupt, StateHandler(settings.early_stopping_patience), self.guard],
        )
        name = type(model.transformer).__name__
        check_on_device(name, model, bfloat16=self.args.bf16)
        check_before_training(name, model, settings.guards, pad_id)
        # Our loss is already divided by the prompts of the whole step.
        self.model_accepts_loss_kwargs = False
        if self.accelerator.num_processes > settings.prompts_per_step:
            raise PalateError(
                f"training.prompts_per_step {settings.prompts_per_step} is less than the"
                f" {self.accelerator.num_processes} processes"
            )

    def get_train_dataloader(self) -> Any:
        """Not prepared by accelerate: the sampler has dealt each step out already."""
        num_processes = self.accelerator.num_processes
        sampler = StepSampler(
            # One process has no one to share the work with.
            self._costs() if num_processes > 1 else token_counts(self.train_groups),
            self.settings.prompts_per_step,
            self.settings.seed,
            self.accelerator.process_index,
            num_processes,
        )
        return step_loader(
            self.train_groups,
            sampler,
            self._packing(),
            self.objective,
        )

    def _costs(self) -> StepCosts:
        config = self.model.config.get_text_config()
        return StepCosts(
            self.train_groups,
            self._num_matrix_parameters(),
            config.num_hidden_layers,
            config.hidden_size,
        )

    def _num_matrix_parameters(self) -> int:
        """Parameters outside the embedding: those that a token is multiplied with."""
        embedding = self.model.transformer.get_input_embeddings()
        return int(self.model.num_parameters() - embedding.weight.numel())

    def _packing(self) -> Packing:
        packing: Packing = self.model.packing(self.settings.tokens_per_microbatch, self.pad_id)
        return packing

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not self.control.should_training_stop:
            super()._run_epoch(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[StepBatch], num_batches: int, device: torch.device
    ) -> tuple[list[StepBatch], None]:
        return [next(epoch_iterator)], None

    def training_step(
        self, model: nn.Module, inputs: StepBatch, num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of all microbatches; gradients are synchronised on the last only.

        Each loss is multiplied by the number of processes because data parallelism averages
        gradients over them. Processes with fewer microbatches run idle ones, so that sharded
        engines see the same number of passes everywhere.
        """
        model.train()
        self.guard.begin()
        microbatches = self._padded(list(inputs.microbatches))
        num_processes = self.accelerator.num_processes
        step_mean = self._step_mean(model, microbatches, inputs.num_prompts)
        total = torch.zeros((), device=self.args.device)
        for number, (plan, batch) in enumerate(microbatches):
            is_last = number == len(microbatches) - 1
            # DeepSpeed's wrapper steps on every backward for which this says "synchronise".
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            waiting = contextlib.nullcontext() if is_last else self.accelerator.no_sync(model)
            with waiting:
                with self.compute_loss_context_manager():
                    output = model(**plan_tensors(plan, self.args.device))
                    loss = self._loss(output, batch, step_mean, inputs.num_prompts)
                    loss = loss * num_processes / inputs.num_prompts
                refuse_non_finite(loss, "loss", self.state.global_step + 1)
                self.accelerator.backward(loss)
            total += loss.detach()
        self.guard.loss = total
        return total

    def _loss(
        self,
        output: Output,
        batch: ObjectiveBatch | None,
        step_mean: Tensor | None,
        num_prompts: int,
    ) -> Tensor:
        """Sum over the microbatch's prompts; an idle microbatch has no batch."""
        if batch is None:
            # Exactly 0, with a gradient of 0 for everything that is trained.
            parts = [output.reward_N, *(output.learned or {}).values()]
            return torch.stack([part.sum() for part in parts]).sum() * 0.0
        batch = batch.to(self.args.device)
        self.guard.saw(output, batch)
        if step_mean is None and self.objective.needs_mean:
            step_mean = (batch.share_N * output.reward_N.detach()).sum() / num_prompts
        return sum_over_prompts(self.objective, output, batch, step_mean)

    def _step_mean(
        self,
        model: nn.Module,
        microbatches: Sequence[tuple[Plan, ObjectiveBatch | None]],
        num_prompts: int,
    ) -> Tensor | None:
        """Mean over the step's prompts of their mean reward, where the objective needs it and the
        step has several microbatches.

        It costs a forward pass of its own: the gradient of its square needs its value first.
        """
        is_whole = len(microbatches) == self.accelerator.num_processes == 1
        if is_whole or not self.objective.needs_mean:
            return None
        with self.compute_loss_context_manager():
            total = sum_of_means(model, microbatches, self.args.device)
        summed: Tensor = self.accelerator.reduce(total, reduction="sum")
        return summed / num_prompts

    def _padded(
        self, microbatches: list[tuple[Plan, ObjectiveBatch]]
    ) -> list[tuple[Plan, ObjectiveBatch | None]]:
        padded: list[tuple[Plan, ObjectiveBatch | None]] = list(microbatches)
        if self.accelerator.num_processes == 1:
            return padded
        counts = gather_object([len(microbatches)])
        # A sequence of one token that nothing is compared with.
        idle_plan = plan_rows([[[self.pad_id]]], 1, self.pad_id)[0]
        return padded + [(idle_plan, None)] * (max(counts) - len(microbatches))

    def floating_point_ops(self, inputs: StepBatch) -> int:
        """6 x parameters outside the embedding x token slots: attention left out."""
        num_slots = sum(plan.num_slots for plan, _ in inputs.microbatches)
        return 6 * self._num_matrix_parameters() * num_slots

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        refuse_non_finite(norm, "gradient norm", self.state.global_step + 1)
        self.guard.gradient_norm = norm
        return norm

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with rates of their own for the head and for what the objective learns."""
        if self.optimizer is None:
            target = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(target))
            rates = rates_by_role(self.settings)
            groups: dict[tuple[Role, bool], list[nn.Parameter]] = {}
            for name, parameter in target.named_parameters():
                if parameter.requires_grad:
                    # Data parallelism puts a prefix of its own before each name.
                    role = role_of(name.removeprefix("module."), self.model.head_prefixes)
                    decays = name in decayed and role != "learned"
                    groups.setdefault((role, decays), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [
                    {
                        "params": parameters,
                        "lr": rates[role],
                        "weight_decay": self.settings.weight_decay if decays else 0.0,
                    }
                    # The body's groups come first: the rate of the first is what is logged.
                    for (role, decays), parameters in sorted(groups.items())
                ],
                lr=rates["body"],
                # One pass over the weights instead of a dozen; the same update.
                fused=True,
            )
        return self.optimizer

    def rewards_of(self, groups: Sequence[RenderedGroup]) -> list[np.ndarray]:
        """Rewards of each group, in order; the work is divided among the processes."""
        plans = plan_groups([group.sequences for group in groups], self._packing())
        rank, num_processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = plans[rank::num_processes]
        # All processes run the same number of passes, which sharded engines wait for.
        mine += plans[:1] * (-(-len(plans) // num_processes) - len(mine))
        sizes = [len(group.sequences) for group in groups]
        with self.compute_loss_context_manager():
            rewards = dict(run_plans(self.model, mine, sizes))
        if num_processes > 1:
            rewards = {k: v for part in gather_object([rewards]) for k, v in part.items()}
        return [rewards[index] for index in range(len(groups))]

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Metrics of every validation set; those of the first also without its name."""
        metrics: dict[str, float] = {}
        for number, (name, groups) in enumerate(self.validation_sets.items()):
            rewards = self.rewards_of(groups)
            measured = {**self.measure(groups, rewards), "loss": self._data_loss(groups, rewards)}
            for key, value in measured.items():
                if number == 0:
                    metrics[f"{metric_key_prefix}_{key}"] = value
                if len(self.validation_sets) > 1:
                    metrics[f"{metric_key_prefix}_{name}_{key}"] = value
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _data_loss(self, groups: Sequence[RenderedGroup], rewards: Sequence[np.ndarray]) -> float:
        """The objective without its regularisers, mean over the prompts that count: what chooses a
        checkpoint."""
        learned = {name: value.detach().cpu() for name, value in self.model.learned.items()}
        reward_N = torch.as_tensor(np.concatenate(rewards))
        batch = self.objective.batch(groups)
        return float(self.objective.data_loss(reward_N, batch, learned)) / batch.num_counted

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # With adapters a checkpoint holds what is trained; the body lies where it was loaded from.
        if self.settings.method == "lora":
            state_dict = trained_state(self.model, state_dict)
        super()._save(output_dir, state_dict)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        check_restored(self.model, load_result.missing_keys, load_result.unexpected_keys)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        directory = Path(self.args.output_dir)
        checkpoint = directory / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except OSError as error:
            raise describe_os_error(error, checkpoint, "write") from error
        except (RuntimeError, SafetensorError) as error:
            # So torch and safetensors report a full disk, with errors of their own.
            if "inline_container" not in str(error) and "I/O error" not in str(error):
                raise
            raise PalateError(
                f"{checkpoint}: cannot write: {error}; the disk may be full: free space and run the"
                " same command again"
            ) from error
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(checkpoint)
            rotate(directory, self.settings.keep_checkpoints, self.state.best_model_checkpoint)


def training_arguments(
    settings: TrainingSettings, steps_per_epoch: int, directory: Path, has_validation: bool
) -> TrainingArguments:
    """Our settings in `transformers`' words."""
    num_steps = settings.max_steps or steps_per_epoch * settings.epochs
    interval = max(1, steps_per_epoch // settings.evaluations_per_epoch)
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=settings.prompts_per_step,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=(
            "constant_with_warmup" if settings.schedule == "constant" else settings.schedule
        ),
        warmup_steps=round(settings.warmup_share * num_steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=uses_bfloat16(settings),
        seed=settings.seed,
        use_cpu=not on_gpu,
        eval_strategy="steps" if has_validation else "no",
        eval_steps=interval if has_validation else None,
        save_strategy="steps",
        save_steps=interval,
        save_total_limit=None,  # `rotate` deletes only after the new checkpoint is sealed
        load_best_model_at_end=has_validation,
        metric_for_best_model="eval_loss" if has_validation else None,
        greater_is_better=False if has_validation else None,
        logging_steps=settings.log_every_steps,
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to) or "none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )
    if arguments.n_gpu > 1:
        # One process would drive all GPUs through DataParallel, which cuts a plan's rows and the
        # indices into them apart.
        warnings.warn(
            f"one process uses one of {arguments.n_gpu} GPUs; for all of them start with torchrun"
            f" --nproc-per-node {arguments.n_gpu} -m palate train ...",
            stacklevel=2,
        )
        arguments._n_gpu = 1
    return arguments


def enable_gradient_checkpointing(model: RewardModel) -> None:
    """Switch on recomputation in the body, under whichever name this version knows."""
    options = {"use_reentrant": False}
    transformer = model.transformer
    if hasattr(transformer, "activation_checkpointing_enable"):
        transformer.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        transformer.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)

"""What a run would do, in words: rows, tokens, a rendered example, the pooled token, first loss."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from palate.forest import plan_groups
from palate.model.reward_model import RewardModel
from palate.objectives.objective import Objective
from palate.pipeline.config import TrainConfig
from palate.pipeline.data_lines import data_lines
from palate.pipeline.prepare import Prepared
from palate.rendering import RenderedGroup, Renderer
from palate.rendering.store import token_counts
from palate.scoring.runs import rewards_of_groups
from palate.text import plural
from palate.training.defaults import with_rates
from palate.training.settings import TrainingSettings
from palate.training.steps import StepSampler

NUM_GROUPS_FOR_LOSS = 8
NUM_CHARACTERS_SHOWN = 700


def describe_dry_run(
    config: TrainConfig,
    model: RewardModel,
    renderer: Renderer,
    prepared: Prepared,
    objective: Objective,
    has_trained_head: bool,
) -> str:
    """The description that `--dry-run` prints and every run logs."""
    settings = config.training
    is_warm = has_trained_head and settings.method != "frozen"
    sizes = Counter(len(group.sequences) for group in prepared.train)
    num_steps = settings.max_steps or settings.epochs * -(
        -len(prepared.train) // settings.prompts_per_step
    )
    lines = [
        f"model     {config.model}: {type(model.transformer).__name__},"
        f" {sum(p.numel() for p in model.parameters()):,} parameters, {_layout(model)},"
        f" pooling {model.pooling}, head {'warm start' if is_warm else 'new'}",
        *(f"data      {line}" for line in data_lines(config, prepared)),
        "rows      " + prepared.ledger.summary(prepared.num_rows).replace("\n", "\n          "),
        *([f"lost      {prepared.left_out}"] if prepared.left_out else []),
        f"parts     train {len(prepared.train)}"
        + (f" ({prepared.num_made} of them made pairs)" if prepared.num_made else "")
        + "".join(f", {name} {len(part)}" for name, part in prepared.validation.items())
        + f", test {len(prepared.test)} prompts; answers per prompt:"
        + "".join(f" {k} ({count}x)" for k, count in sorted(sizes.items())),
        f"tokens    {_token_line(prepared.train, model, renderer, settings)}",
        f"limits    prompt {renderer.lengths.max_prompt_tokens}, response"
        f" {renderer.lengths.max_response_tokens} tokens; longer answers:"
        f" {renderer.lengths.overlong}",
        _training_line(config, model, num_steps),
        f"example   {_example(prepared.train[0], renderer, model.pooling)}",
    ]
    # A frozen body is not run here: its features may lie in the cache.
    if settings.method != "frozen":
        lines.append(_first_loss(prepared.train, model, renderer, config, objective))
    return "\n".join(lines)


def _layout(model: RewardModel) -> str:
    if model.layout == "rows":
        return "layout rows"
    attention = "by a dense mask" if model.attention == "dense" else "in blocks"
    ends = ", last layer at the ends" if model.shortened else ""
    return f"layout tree, attention {attention}{ends}"


def _training_line(config: TrainConfig, model: RewardModel, num_steps: int) -> str:
    method = config.training.method
    line = f"training  method {method}, objective {config.objective.kind}"
    if method == "frozen":
        return line + ": the head alone, on features that are computed once"
    settings = with_rates(config.training, model.num_parameters())
    return (
        f"{line}, {plural(num_steps, 'step')} of {plural(settings.prompts_per_step, 'prompt')},"
        " learning rate"
        f" {settings.learning_rate:g}, of the head"
        f" {settings.learning_rate * settings.head_learning_rate_factor:g}"
    )


def _token_line(
    groups: Sequence[RenderedGroup],
    model: RewardModel,
    renderer: Renderer,
    settings: TrainingSettings,
) -> str:
    sizes = token_counts(groups)
    sampler = StepSampler(sizes, settings.prompts_per_step, settings.seed)
    packing = model.packing(settings.tokens_per_microbatch, renderer.pad_id)
    plans = [
        plan
        for step in sampler.steps()
        for plan in plan_groups([groups[index].sequences for index in step], packing)
    ]
    real = sum(plan.num_tokens for plan in plans)
    slots = sum(plan.num_slots for plan in plans)
    longest = max(len(sequence) for group in groups for sequence in group.sequences)
    return (
        f"{sum(sizes):,} an epoch row by row; {real:,} in layout {model.layout}, {real / slots:.0%}"
        f" of the slots processed; longest answer with prompt {longest}"
    )


def _example(group: RenderedGroup, renderer: Renderer, pooling: str) -> str:
    ids = list(group.sequences[0])
    text = renderer.tokenizer.decode(ids)
    if len(text) > NUM_CHARACTERS_SHOWN:
        text = text[: NUM_CHARACTERS_SHOWN // 2] + " [...] " + text[-NUM_CHARACTERS_SHOWN // 2 :]
    closed = "ends with its end of turn" if ids[-1] == renderer.end_of_turn_id else "cut, no end"
    return f"{text!r} ({closed})\npooled    {_pooled(ids, renderer, pooling)}"


def _pooled(ids: Sequence[int], renderer: Renderer, pooling: str) -> str:
    """Which tokens the head reads."""
    if pooling in ("mean", "attention"):
        return f"all {plural(len(ids), 'token')} (pooling {pooling})"
    read_id = ids[-1] if pooling == "last" else ids[0]
    token = renderer.tokenizer.convert_ids_to_tokens(read_id)
    return f"{token!r} (id {read_id}, pooling {pooling})"


def _first_loss(
    groups: Sequence[RenderedGroup],
    model: RewardModel,
    renderer: Renderer,
    config: TrainConfig,
    objective: Objective,
) -> str:
    sizes = token_counts(groups)
    shortest = sorted(range(len(groups)), key=lambda index: sizes[index])[:NUM_GROUPS_FOR_LOSS]
    few = [groups[index] for index in shortest]
    rewards = rewards_of_groups(
        model,
        [group.sequences for group in few],
        config.training.tokens_per_microbatch,
        renderer.pad_id,
    )
    reward_N = torch.as_tensor(np.concatenate(rewards))
    batch = objective.batch(few)
    first, equal = (
        float(objective.data_loss(rewards, batch, objective.initial)) / max(1, batch.num_counted)
        for rewards in (reward_N, torch.zeros_like(reward_N))
    )
    return (
        f"first loss {first:.4f} on {plural(batch.num_counted, 'prompt')}; equal rewards would give"
        f" {equal:.4f}"
    )

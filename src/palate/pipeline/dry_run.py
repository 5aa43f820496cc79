"""What a run would do, in words: rows, tokens, a rendered example, the pooled token, first loss."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from palate.evaluation.metrics import quick_metrics
from palate.model.reward_model import RewardModel
from palate.pipeline.config import TrainConfig
from palate.pipeline.prepare import Prepared
from palate.rendering import RenderedGroup, Renderer
from palate.scoring.runs import plan_groups, run_plans
from palate.training.settings import TrainingSettings
from palate.training.steps import StepSampler

NUM_GROUPS_FOR_LOSS = 8
NUM_CHARACTERS_SHOWN = 700


def describe_dry_run(
    config: TrainConfig,
    model: RewardModel,
    renderer: Renderer,
    prepared: Prepared,
    has_trained_head: bool,
) -> str:
    """The description that `--dry-run` prints and every run logs."""
    settings = config.training
    sizes = Counter(len(group.sequences) for group in prepared.train)
    num_steps = settings.max_steps or settings.epochs * -(
        -len(prepared.train) // settings.prompts_per_step
    )
    lines = [
        f"model     {config.model}: {type(model.transformer).__name__},"
        f" {sum(p.numel() for p in model.parameters()):,} parameters, layout {model.layout},"
        f" pooling {model.pooling}, head {'warm start' if has_trained_head else 'new'}",
        *(f"data      {source}: format {name}" for source, name in prepared.formats.items()),
        "rows      " + prepared.ledger.summary(prepared.num_groups).replace("\n", "\n          "),
        *([f"lost      {prepared.left_out}"] if prepared.left_out else []),
        f"parts     train {len(prepared.train)}"
        + "".join(f", {name} {len(part)}" for name, part in prepared.validation.items())
        + f", test {len(prepared.test)} prompts; answers per prompt:"
        + "".join(f" {k} ({count}x)" for k, count in sorted(sizes.items())),
        f"tokens    {_token_line(prepared.train, model, renderer, settings)}",
        f"limits    prompt {renderer.lengths.max_prompt_tokens}, response"
        f" {renderer.lengths.max_response_tokens} tokens; longer answers:"
        f" {renderer.lengths.overlong}",
        f"steps     {num_steps} of {settings.prompts_per_step} prompts",
        f"example   {_example(prepared.train[0], renderer, model.pooling)}",
        f"first loss {_first_loss(prepared.train, model, renderer, config):.4f} on"
        f" {min(NUM_GROUPS_FOR_LOSS, len(prepared.train))} prompts (a zero head gives ln 2 = 0.6931"
        " per comparison of weight 1)",
    ]
    return "\n".join(lines)


def _token_line(
    groups: Sequence[RenderedGroup],
    model: RewardModel,
    renderer: Renderer,
    settings: TrainingSettings,
) -> str:
    sizes = [group.num_tokens for group in groups]
    sampler = StepSampler(sizes, settings.prompts_per_step, settings.seed)
    plans = [
        plan
        for step in sampler.steps()
        for plan in plan_groups(
            [groups[index].sequences for index in step],
            model.layout,
            settings.tokens_per_microbatch,
            renderer.pad_id,
        )
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
    read_id = ids[-1] if pooling == "last" else ids[0]
    token = renderer.tokenizer.convert_ids_to_tokens(read_id)
    closed = "ends with its end of turn" if ids[-1] == renderer.end_of_turn_id else "cut, no end"
    return f"{text!r} ({closed})\npooled    {token!r} (id {read_id}, pooling {pooling})"


def _first_loss(
    groups: Sequence[RenderedGroup], model: RewardModel, renderer: Renderer, config: TrainConfig
) -> float:
    few = sorted(groups, key=lambda group: group.num_tokens)[:NUM_GROUPS_FOR_LOSS]
    plans = plan_groups(
        [g.sequences for g in few],
        model.layout,
        config.training.tokens_per_microbatch,
        renderer.pad_id,
    )
    rewards = run_plans(model, plans, [len(group.sequences) for group in few])
    ordered: list[np.ndarray] = [rewards[index] for index in range(len(few))]
    return quick_metrics(few, ordered, config.training.ties)["loss"]

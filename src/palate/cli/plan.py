"""`palate plan`: tokens, FLOPs, memory and time of a run, before it."""

from palate.cli.parsing import parse, parser_for
from palate.cli.printed import Printed
from palate.model.memory import Arithmetic, Memory
from palate.pipeline.plan import Expected, PlanResult, answers_per_prompt, plan
from palate.pipeline.plan_config import PlanConfig
from palate.pipeline.plan_values import as_values, kept_ratio

LAYOUTS = {
    "padded_pairs": "padded pairs, as pairwise trainers batch them",
    "rows": "rows without padding",
    "tree": "trees: each prompt once",
}
PARTS = (
    ("weights", "weights"),
    ("weight_copies", "bfloat16 copies"),
    ("gradients", "gradients"),
    ("gradient_buckets", "gradient buckets"),
    ("optimiser", "optimiser"),
    ("activations", "activations"),
    ("temporaries", "temporaries"),
)


def run_plan(arguments: list[str]) -> Printed:
    parser = parser_for("plan", "Say what a training run will cost, before it.", PlanConfig)
    config, _ = parse(parser, PlanConfig, _with_value(arguments))
    result = plan(config)
    sections = (_model, _data, _tokens, _flops, _memory, _time)
    return Printed("\n".join(line for say in sections for line in say(result)), as_values(result))


def _with_value(arguments: list[str]) -> list[str]:
    """The same with a bare `--measure` as the parser wants it: `--measure=true`."""
    found = []
    for place, argument in enumerate(arguments):
        following = arguments[place + 1 : place + 2]
        is_bare = argument == "--measure" and (not following or following[0].startswith("-"))
        found.append("--measure=true" if is_bare else argument)
    return found


def _model(result: PlanResult) -> list[str]:
    shape = result.shape
    lines = [
        f"model     {result.config.model}: {shape.class_name}, {shape.num_parameters:,} parameters,"
        f" {shape.num_embedding_weights:,} of them embeddings; {len(shape.layers)} layers, layout"
        f" {shape.layout}, pooling {shape.pooling}"
    ]
    return lines + [f"          not counted: {what}" for what in shape.unknown]


def _data(result: PlanResult) -> list[str]:
    prepared = result.prepared
    sizes = answers_per_prompt(prepared.train)
    return [
        "rows      " + prepared.ledger.summary(prepared.num_rows).replace("\n", "\n          "),
        f"parts     train {len(prepared.train)}"
        + (f" ({prepared.num_made} of them made pairs)" if prepared.num_made else "")
        + "".join(f", {name} {len(part)}" for name, part in prepared.validation.items())
        + f", test {len(prepared.test)} prompts; answers per prompt:"
        + "".join(f" {k} ({count}x)" for k, count in sizes.items()),
    ]


def _tokens(result: PlanResult) -> list[str]:
    own = result.layouts[result.shape.layout].num_tokens
    lines = ["tokens    an epoch of the training part"]
    for name, work in result.layouts.items():
        padding = f", {work.num_padding / work.num_tokens:.0%} padding" if work.num_padding else ""
        lines.append(
            f"          {work.num_tokens:>15,}  {work.num_tokens / own:6.2f}x  {LAYOUTS[name]}"
            + padding
        )
    return lines


def _flops(result: PlanResult) -> list[str]:
    run, training = result.flops, result.config.training
    ratio = result.epoch_flops["padded_pairs"] / result.epoch_flops[result.shape.layout]
    return [
        f"steps     {result.num_steps} of {training.prompts_per_step} prompts"
        f" ({result.steps_per_epoch} an epoch)",
        f"flops     {run.total:.3g} = {run.training:.3g} training + {run.recomputed:.3g} recomputed"
        f" + {run.evaluation:.3g} evaluation; as padded pairs training would take {ratio:.2f}x",
    ]


def _memory(result: PlanResult) -> list[str]:
    needs = result.memory
    lines = [
        f"memory    {_gigabytes(needs.total)} on a device, with microbatches of up to"
        f" {result.microbatch.num_tokens:,} tokens ({_described(result.arithmetic)})"
    ]
    for name, title in PARTS:
        if getattr(needs, name):
            lines.append(f"          {_gigabytes(getattr(needs, name)):>12}  {title}")
    if (ratio := kept_ratio(result)) is not None:
        lines.append(f"          activations measured on one pass: {ratio:.2f}x the estimate of it")
    others = [(how, other) for how, other in result.alternatives if how != result.arithmetic]
    return [*lines, "          otherwise", *(_other(how, other) for how, other in others)]


def _other(how: Arithmetic, needs: Memory) -> str:
    return f"          {_gigabytes(needs.total):>12}  {_described(how)}"


def _described(how: Arithmetic) -> str:
    types = "float32" if how.weight_bytes == 4 else "bfloat16"
    kept = ", gradient checkpointing" if how.checkpointing else ""
    return f"{how.method}, {types} weights{', bfloat16 autocast' if how.autocast else ''}{kept}"


def _time(result: PlanResult) -> list[str]:
    if not result.expected:
        return ["time      not estimated: name a GPU with --hardware, or --measure this machine"]
    return [line for expected in result.expected for line in _expected(expected, result)]


def _expected(expected: Expected, result: PlanResult) -> list[str]:
    spread = ""
    if expected.low != expected.high:
        spread = f" [{_duration(expected.low)}, {_duration(expected.high)}]"
    room = _gigabytes(expected.memory_bytes)
    fits = "fits" if expected.fits else "does not fit"
    return [
        f"time      {_duration(expected.seconds)}{spread} on {expected.where}; {fits}:"
        f" {_gigabytes(result.memory.total)} of {room}",
        f"          {expected.basis}",
    ]


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e6:.2f} MB"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"

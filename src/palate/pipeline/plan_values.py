"""A plan as JSON holds it."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from palate.model.memory import Arithmetic, Memory, Microbatch, activation_bytes, weight_copy_bytes
from palate.pipeline.plan import PlanResult, answers_per_prompt
from palate.pipeline.plan_flops import work_of
from palate.training.defaults import uses_bfloat16


def as_values(result: PlanResult) -> Mapping[str, Any]:
    """Counts in tokens, FLOPs, bytes and seconds."""
    shape, prepared = result.shape, result.prepared
    own = result.layouts[shape.layout]
    return {
        "model": {
            "name": result.config.model,
            "class": shape.class_name,
            "layout": shape.layout,
            "pooling": shape.pooling,
            "num_layers": len(shape.layers),
            "num_parameters": shape.num_parameters,
            "num_embedding_weights": shape.num_embedding_weights,
            "num_adapter_weights": shape.num_adapter_weights,
            "not_counted": list(shape.unknown),
        },
        "data": {
            "num_rows": prepared.ledger.num_rows_read,
            "num_rows_kept": prepared.num_rows,
            "ledger": prepared.ledger.by_reason(),
            "num_groups": {
                "train": len(prepared.train),
                **{name: len(part) for name, part in prepared.validation.items()},
                "test": len(prepared.test),
            },
            "answers_per_prompt": answers_per_prompt(prepared.train),
            "num_comparisons": sum(len(group.comparisons) for group in prepared.train),
        },
        "epoch": {
            name: {
                "num_tokens": work.num_tokens,
                "num_padding": work.num_padding,
                "times_tokens": work.num_tokens / own.num_tokens,
                "training_flops": result.epoch_flops[name],
            }
            for name, work in result.layouts.items()
        },
        "steps": {"per_epoch": result.steps_per_epoch, "total": result.num_steps},
        "flops": {**asdict(result.flops), "total": result.flops.total},
        "microbatch": asdict(result.microbatch),
        "memory_bytes": _memory(result.arithmetic, result.memory),
        "alternatives": [_memory(how, needs) for how, needs in result.alternatives],
        "expected": [asdict(expected) for expected in result.expected],
        "measured": None
        if result.measured is None
        else {
            **asdict(result.measured),
            "kept_ratio": kept_ratio(result),
        },
    }


def _memory(how: Arithmetic, needs: Memory) -> dict[str, Any]:
    return {**asdict(how), **asdict(needs), "total": needs.total}


def kept_ratio(result: PlanResult) -> float | None:
    """What a measured pass kept for its backward pass, as a multiple of the estimate of it; None
    where it was not measured."""
    measured = result.measured
    if measured is None or measured.kept_bytes is None:
        return None
    groups = [result.prepared.train[index] for index in measured.kept_prompts]
    work = work_of(result.shape, groups)
    microbatch = Microbatch(
        num_tokens=work.num_tokens,
        num_last=work.num_ends if result.shape.last_layer == "ends" else work.num_tokens,
        longest_row=result.microbatch.longest_row,
    )
    # It ran in this machine's own types, whatever GPU the plan is for.
    here = replace(result.arithmetic, autocast=uses_bfloat16(result.config.training))
    estimate = activation_bytes(result.shape, here, microbatch)
    copies = weight_copy_bytes(result.shape, here, microbatch)
    return measured.kept_bytes / (estimate + copies)

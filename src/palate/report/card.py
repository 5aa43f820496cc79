"""The model card that travels with the weights."""

import json
import math
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from palate.statistics import Estimate
from palate.text import plural

if TYPE_CHECKING:  # imports torch, which listing runs has no need of
    from palate.model.checkpoint import Sidecar

SHOWN = (
    "accuracy",
    "prompt-blind",
    "longer wins",
    "shorter wins",
    "random",
    "accuracy minus prompt-blind",
    "accuracy, mean of longer and shorter",
    "loss",
    "margin",
    "spread",
)
"""Metrics in the order in which people read them; those not measured are passed over."""


BY_SOURCE = "accuracy, source "
"""What the names of accuracies by source begin with."""


def shown(metrics: Mapping[str, Estimate]) -> list[str]:
    """Names of the metrics that are there, in the order of `SHOWN`, then those by source."""
    by_source = sorted(name for name in metrics if name.startswith(BY_SOURCE))
    return [*(name for name in SHOWN if name in metrics), *by_source]


PLAIN_USE = """```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("this directory")
tokenizer = AutoTokenizer.from_pretrained("this directory")
messages = [
    {"role": "user", "content": "How do birds fly?"},
    {"role": "assistant", "content": "They flap."},
]
inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
model(**inputs).logits[0, 0]
```
"""


def interval(estimate: Estimate) -> str:
    """The 95 % interval in words; a single cluster gives none."""
    if not math.isfinite(estimate.low):
        return "none"
    return f"{estimate.low:.3f} to {estimate.high:.3f}"


def about_part(name: str, temperature: Mapping[str, Any] | None) -> tuple[str, str]:
    """What a part is called, and what a reader must know of it before its numbers."""
    is_split = name in ("validation", "test")
    title = f"the {name} part" if is_split else f"the further set {name}"
    notes = ["Its prompts are in no training cluster."] if is_split else []
    if temperature and temperature["part"] == name:
        notes.append(
            "It chose the checkpoint and fitted the temperature, so it flatters the model."
        )
    return title, " ".join(notes)


def calibration(temperature: Mapping[str, Any] | None) -> str:
    """What probabilities rest on, in words."""
    if temperature is None:
        return "No temperature was fitted: margins are not calibrated."
    value, part = f"{temperature['value']:.3f}", temperature["part"]
    prompts = plural(temperature["num_prompts"], "prompt")
    if temperature.get("at_bound"):
        return (
            f"The temperature {value} is a bound of its fit on {prompts} of the {part} part, which"
            " would go on beyond it: margins are not calibrated."
        )
    return (
        f"Probabilities divide margins by the temperature {value}, fitted on the {part} part"
        f" ({prompts})."
    )


def metric_table(metrics: Mapping[str, Estimate]) -> str:
    """A Markdown table: value, 95 % interval, n."""
    rows = [
        f"| {escape(name, quote=False)} | {metrics[name].value:.3f} | {interval(metrics[name])}"
        f" | {metrics[name].n} |"
        for name in shown(metrics)
    ]
    return "\n".join(["| metric | value | 95 % interval | prompts |", "|---|---|---|---|", *rows])


def model_card(
    sidecar: "Sidecar", results: Mapping[str, Mapping[str, Estimate]], facts: Mapping[str, Any]
) -> str:
    """README.md of the checkpoint: what it is, how good, how to load it with and without palate."""
    temperature = sidecar.temperature
    probability = calibration(temperature)
    measured = results.get(facts["measured_on"], {})
    title, note = about_part(facts["measured_on"], temperature)
    quality = (
        f"On {escape(title, quote=False)}. {note} Intervals resample prompt clusters."
        f"\n\n{metric_table(measured)}"
        if measured
        else "Nothing was held out, so nothing was measured."
    )
    learned = "".join(
        f"\n\nThe objective learned, beside the rewards: {name} {escape(str(value), quote=False)}."
        for name, value in facts["learned"].items()
    )
    num_left_out = sum(n for reason, n in facts["ledger"].items() if reason.startswith("row"))
    model = escape(facts["model"], quote=False)
    left_out = f" {facts['left_out']}." if facts["left_out"] else ""
    return f"""---
library_name: {"transformers" if sidecar.plain else "palate"}
pipeline_tag: text-classification
tags: [reward-model, palate]
base_model: {json.dumps(facts["model"])}
---

# A reward model on {model}

Reads a prompt and one answer, returns one number; only differences within a prompt mean anything.
Trained with the objective {facts["objective"]}, method {facts["method"]}, on
{plural(facts["num_groups"]["train"], "prompt")} ({plural(facts["steps"], "step")}).
Pooling `{sidecar.pooling}`, {facts["head"]} head `{sidecar.head_name}`, {sidecar.dtype}.

## How good it is

{quality}

{probability}{learned}

## What was left out

{facts["num_rows"]} rows were read; {num_left_out} stand in the ledger.{left_out}
Prompts over {sidecar.lengths["max_prompt_tokens"]} tokens lose their oldest turns; answers over
{sidecar.lengths["max_response_tokens"]} tokens: {sidecar.lengths["overlong"]}.

## Use

```python
import palate

scorer = palate.load("this directory")
scorer.score("How do birds fly?", "They flap.")
```

{_without_palate(sidecar, facts)}
The template writes all special tokens and ends at `{sidecar.end_of_turn}`.
"""


def _without_palate(sidecar: "Sidecar", facts: Mapping[str, Any]) -> str:
    """How plain classes load it, or why they don't."""
    if sidecar.plain:
        return PLAIN_USE
    head = f"its {facts['head']} head on pooling `{sidecar.pooling}`"
    reason = (
        f"the sequence-classification class of {facts['body']} has no place for {head}"
        if facts["has_class"]
        else f"transformers has no sequence-classification class for {facts['body']}, so {head} has"
        " no place in a plain class"
    )
    return (
        f"Only palate loads it: {reason}. The head is in `{sidecar.head_name}.safetensors`. Plain"
        " classes find no `model.safetensors` and stop, instead of going on with a random head.\n"
    )

"""The model card that travels with the weights."""

from collections.abc import Mapping
from typing import Any

from palate.model.checkpoint import Sidecar
from palate.statistics import Estimate

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


def metric_table(metrics: Mapping[str, Estimate]) -> str:
    """A Markdown table: value, 95 % interval, n."""
    rows = [
        f"| {name} | {m.value:.3f} | {m.low:.3f} to {m.high:.3f} | {m.n} |"
        for name in SHOWN
        if (m := metrics.get(name)) is not None
    ]
    return "\n".join(["| metric | value | 95 % interval | prompts |", "|---|---|---|---|", *rows])


def model_card(
    sidecar: Sidecar, results: Mapping[str, Mapping[str, Estimate]], facts: Mapping[str, Any]
) -> str:
    """README.md of the checkpoint: what it is, how good, how to load it with and without palate."""
    temperature = sidecar.temperature
    probability = (
        f"Probabilities divide margins by the temperature {temperature['value']:.3f}, fitted on the"
        f" {temperature['part']} part ({temperature['num_prompts']} prompts)."
        if temperature
        else "No temperature was fitted: margins are not calibrated."
    )
    measured = results.get(facts["measured_on"], {})
    quality = (
        f"On the {facts['measured_on']} part, prompts in no training cluster;"
        f" intervals resample prompt clusters.\n\n{metric_table(measured)}"
        if measured
        else "Nothing was held out, so nothing was measured."
    )
    left_out = f" {facts['left_out']}." if facts["left_out"] else ""
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, palate]
base_model: {facts["model"]}
---

# A reward model on {facts["model"]}

Reads a prompt and one answer, returns one number; only differences within a prompt mean anything.
Trained with the Bradley-Terry loss on {facts["num_groups"]["train"]} prompts
({facts["steps"]} steps). Pooling `{sidecar.pooling}`, head `{sidecar.head_name}`, {sidecar.dtype}.

## How good it is

{quality}

{probability}

## What was left out

{facts["num_rows"]} rows were read; {sum(v for k, v in facts["ledger"].items() if k.startswith("row"))}
stand in the ledger.{left_out}
Prompts over {sidecar.lengths["max_prompt_tokens"]} tokens lose their oldest turns; answers over
{sidecar.lengths["max_response_tokens"]} tokens: {sidecar.lengths["overlong"]}.

## Use

```python
import palate

scorer = palate.load("this directory")
scorer.score("How do birds fly?", "They flap.")
```

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("this directory")
tokenizer = AutoTokenizer.from_pretrained("this directory")
messages = [
    {{"role": "user", "content": "How do birds fly?"}},
    {{"role": "assistant", "content": "They flap."}},
]
inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
model(**inputs).logits[0, 0]
```

The template writes all special tokens and ends at `{sidecar.end_of_turn}`.
"""

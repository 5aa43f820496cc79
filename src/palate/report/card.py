"""The model card that travels with the weights."""

import json
import math
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from palate.artifacts.rundir import without_folders
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


EXAMPLE = (
    {"role": "user", "content": "How do birds fly?"},
    {"role": "assistant", "content": "They flap."},
)
"""What the snippets score."""

TRL_VERSION = "1.16.0"
VLLM_VERSION = "0.32.0"
"""With which the snippets were run; they gave palate's rewards."""

SERVED_BY_VLLM = frozenset(
    "bert electra gemma gemma2 gemma3_text glm4 gpt2 llama mistral mixtral modernbert olmo2 olmo3"
    " opt phi phi3 qwen2 qwen3 qwen3_moe roberta smollm3 xlm-roberta".split()
)
"""Types of bodies that vLLM was run with. deberta-v2 and ministral it refused."""

VLLM_OPTIONS = {
    # By the name in config.json it takes the body without a head, and finds no weights for it.
    "gemma3_text": """ --hf-overrides '{"architectures": ["Gemma3ForSequenceClassification"]}'""",
}


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
    """README.md of the checkpoint: what it is, how good, how to load it with and without palate.

    `facts` may hold `verdict` (sentences), `battery` (num_passed, num_pairs, files by name; also
    num_won, unit), and `trust` (num_answers, reference, num_reference_answers) or `no_trust`, why
    there is none.
    """
    temperature = sidecar.temperature
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
    verdict = escape(" ".join(facts.get("verdict", ())), quote=False)
    told = [verdict, quality, calibration(temperature) + learned, _battery(facts), _trust(facts)]
    num_left_out = sum(n for reason, n in facts["ledger"].items() if reason.startswith("row"))
    model = escape(facts["model"], quote=False)
    left_out = f" {facts['left_out']}." if facts["left_out"] else ""
    how_good = "\n\n".join(filter(None, told))
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

{how_good}

## What was left out

{facts["num_rows"]} rows were read; {num_left_out} stand in the ledger.{left_out}
Prompts over {sidecar.lengths["max_prompt_tokens"]} tokens lose their oldest turns; answers over
{sidecar.lengths["max_response_tokens"]} tokens: {sidecar.lengths["overlong"]}.

## Use

```python
import palate

scorer = palate.load("this directory")
scorer.score("{EXAMPLE[0]["content"]}", "{EXAMPLE[1]["content"]}")
```

{_without_palate(sidecar, facts)}
The template writes all special tokens and ends at `{sidecar.end_of_turn}`.
"""


def _battery(facts: Mapping[str, Any]) -> str:
    """How many easy pairs it gets right, and which pairs these were."""
    battery = facts.get("battery")
    if not battery:
        return ""
    files = ", ".join(
        f"{escape(str(name), quote=False)} ({escape(str(version)[:12], quote=False)})"
        for name, version in without_folders(battery["files"]).items()
    )
    won = f" and wins {battery['num_won']}" if "num_won" in battery else ""
    unit = f" Margins: {escape(battery['unit'], quote=False)}." if "unit" in battery else ""
    return (
        f"Of {plural(battery['num_pairs'], 'easy pair')}, the battery {files}, it passes"
        f" {battery['num_passed']}{won}.{unit}"
    )


def _trust(facts: Mapping[str, Any]) -> str:
    """Whether a single reward can be doubted, and how."""
    if trust := facts.get("trust"):
        return (
            "The distance of an answer from the training data is stored, fitted on"
            f" {plural(trust['num_answers'], 'training answer')} and read against"
            f" {trust['num_reference_answers']} {escape(trust['reference'], quote=False)}:"
            " `scorer.score_with_support(prompt, answer)`."
        )
    if reason := facts.get("no_trust"):
        return (
            "No distance from the training data is stored, so `score_with_support` is refused:"
            f" {escape(reason.rstrip('.'), quote=False)}."
        )
    return ""


def _without_palate(sidecar: "Sidecar", facts: Mapping[str, Any]) -> str:
    """How plain classes load it, or why they don't."""
    if sidecar.plain:
        uses = (_with_transformers(sidecar), _with_trl(sidecar), _with_vllm(sidecar, facts))
        return "\n".join((*uses, UNCUT))
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


UNCUT = """\
Outside of palate nothing is cut to the lengths above, and a special token that is written in a text
counts as one.
"""


def _with_transformers(sidecar: "Sidecar") -> str:
    given = dict(sidecar.template_arguments)
    further = f", **{given!r}" if given else ""
    messages = "".join(f"    {json.dumps(message)},\n" for message in EXAMPLE)
    return f"""With transformers alone:

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

model = AutoModelForSequenceClassification.from_pretrained("this directory")
tokenizer = AutoTokenizer.from_pretrained("this directory")
messages = [
{messages}]
inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True{further})
model(**inputs).logits[0, 0]
```
"""


def _with_trl(sidecar: "Sidecar") -> str:
    given = dict(sidecar.template_arguments)
    further = f", chat_template_kwargs={given!r}" if given else ""
    both = " The policy's own template gets `chat_template_kwargs` too." if given else ""
    return f"""As the reward of GRPO in TRL (run with {TRL_VERSION}; RLOO takes it the same way):

```python
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

prompts = Dataset.from_list([{{"prompt": [{json.dumps(EXAMPLE[0])}]}}])
trainer = GRPOTrainer(
    model="your policy",
    reward_funcs="this directory",
    args=GRPOConfig(output_dir="grpo", bf16=False{further}),
    train_dataset=prompts,
)
trainer.train()
```

Prompts must be lists of messages: TRL applies the chat template to no others. Its default
`bf16=True` computes rewards in bfloat16 as well.{both}
"""


def _with_vllm(sidecar: "Sidecar", facts: Mapping[str, Any]) -> str:
    if facts["body"] not in SERVED_BY_VLLM:
        return f"vLLM {VLLM_VERSION} is not known to serve a {facts['body']} body.\n"
    options = f"--runner pooling --dtype {sidecar.dtype}{VLLM_OPTIONS.get(facts['body'], '')}"
    given = dict(sidecar.template_arguments)
    request = {"messages": EXAMPLE} | ({"chat_template_kwargs": given} if given else {})
    # In a shell's single quotes an apostrophe would end the text; JSON has another name for it.
    body = json.dumps(request).replace("'", "\\u0027")
    halved = (
        " Without `--dtype`, vLLM computes what is stored in float32 in half precision."
        if sidecar.dtype == "float32"
        else ""
    )
    return f"""Served by vLLM (run with {VLLM_VERSION}):

```sh
vllm serve "this directory" {options}
```

```sh
curl http://localhost:8000/classify -H "Content-Type: application/json" -d '{body}'
```

The reward is `data[0].probs[0]`, without a sigmoid, since `config.json` says
`"problem_type": "regression"`.{halved}
"""

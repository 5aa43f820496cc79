"""Faults of code, planted in palate itself by monkeypatching, and the guards that must see them.

    python -m benchmarks.pathologies.code_faults --seeds 200

Each seed is another random model of two layers and width 32 (or another template). A planted fault
counts as seen only when every guard that stands in its way raises or warns; a clean twin counts as
a false alarm when any of them does.
"""

import argparse
import contextlib
import gc
import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import nn
from torch.nn.functional import dropout
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.model.checkpoint import Sidecar, check_fingerprint
from palate.model.guards import check_head, check_model, check_rendering
from palate.model.heads import init_head
from palate.model.reward_model import RewardModel
from palate.preferences import Comparison, Message, PreferenceGroup, Response
from palate.rendering import LengthSettings, RenderedGroup, Renderer, render_groups
from palate.training.guards import check_rendered
from palate.training.settings import GuardSettings, TrainingSettings
from palate.training.trainer import RewardTrainer

HEALTHY_RATE = 1e-3
RATE_FACTORS = (20.0, 100.0)
"""An exploding run's learning rate, as multiples of the healthy one; log-uniform between them."""
NUM_STEPS = 24
PROMPTS_PER_STEP = 4
NUM_PAIRS = 96
NOISE = 0.1
START, PAD = "<s>", "<|endoftext|>"
TURN = "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' -}}"
TEMPLATE = (
    "{{- '<s>' -}}{%- for message in messages -%}" + TURN + "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
STALE_TEMPLATES = (
    TEMPLATE.replace("'\\n' + message", "'\\n\\n' + message"),
    TEMPLATE.replace("{%- for", "{{- '<|im_start|>system\\nBe kind.<|im_end|>' -}}{%- for", 1),
    TEMPLATE.replace("message['role'] +", "message['role'].upper() +"),
    TEMPLATE.replace("{{- '<s>' -}}", ""),
    TEMPLATE.replace("message['content'] +", "message['content'] | trim ~ ' ' +"),
)
"""Another space after the role, a system line, role names in capitals, no start token, a space
before the end of the turn."""

Plant = contextlib.AbstractContextManager[Any]


def run(seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """For each fault: alarms with it planted, false alarms of its clean twin, seconds for both."""
    # The trainer collects garbage after each run, and would look through all of torch each time.
    gc.freeze()
    found: dict[str, dict[str, Any]] = {}
    for name, has_alarm in FAULTS.items():
        start = time.perf_counter()
        planted, clean = (
            {"alarms": sum(has_alarm(seed, is_planted) for seed in seeds), "of": len(seeds)}
            for is_planted in (True, False)
        )
        seconds = round(time.perf_counter() - start, 2)
        found[name] = {"planted": planted, "clean": clean, "seconds": seconds}
    return found


def padding_side(seed: int, is_planted: bool) -> bool:
    """The end of a text taken for `mask.sum() - 1` (even seeds) or the slot before the first pad id
    (odd seeds), in place of the column that the plan knows."""
    model = tiny_model(seed)
    end = last_of_mask if seed % 2 == 0 else before_first_pad
    with pooling_at(end) if is_planted else contextlib.nullcontext():
        return refused(lambda: check_model("tiny", model, pad_id()))


def stale_template(seed: int, is_planted: bool) -> bool:
    """Texts rendered with another template than the checkpoint carries, in loading and training."""
    own = renderer()
    other = STALE_TEMPLATES[seed % len(STALE_TEMPLATES)]
    used = renderer(other) if is_planted else renderer()
    groups = render_groups([pair(seed)], used, Ledger())
    return both_or_any(
        is_planted,
        refused(lambda: check_saved(own, used)),
        refused(lambda: check_rendered(groups, own)),
    )


def doubled_start(seed: int, is_planted: bool) -> bool:
    """The rendered text tokenised as any text is, so that the tokenizer adds its start token."""
    own = renderer()
    source = tokenizer()

    def as_any_text(_: Renderer, text: str) -> list[int]:
        return list(source(text).input_ids)

    plant = mock.patch.object(Renderer, "_ordinary_ids", as_any_text)
    with plant if is_planted else contextlib.nullcontext():
        groups = render_groups([pair(seed)], own, Ledger())
        return both_or_any(
            is_planted,
            refused(lambda: check_rendering("tiny", own)),
            refused(lambda: check_rendered(groups, own)),
        )


def two_towers(seed: int, is_planted: bool) -> bool:
    """Each text in a pass of its own in which something else is drawn or rounded, by turns: dropout
    left on, dropout that heeds no mode, every second pass in 16 bit."""
    model = tiny_model(seed, attention_dropout=NOISE)
    plant = (scoring_in_training_mode, dropout_in_pooling, every_second_pass_in_16_bit)[seed % 3]
    torch.manual_seed(seed)
    with plant() if is_planted else contextlib.nullcontext():
        return refused(lambda: check_model("tiny", model, pad_id()))


def bias_term(seed: int, is_planted: bool) -> bool:
    """A head with a bias of 5, trained (even seeds) or frozen (odd seeds)."""
    torch.manual_seed(seed)
    head = nn.Linear(32, 1, bias=is_planted)
    if is_planted:
        nn.init.constant_(head.bias, 5.0)
        head.bias.requires_grad_(seed % 2 == 0)
    model = RewardModel(tiny_model(seed).body, "rows", head)
    return refused(lambda: check_head("tiny", model))


def exploding_reward(seed: int, is_planted: bool) -> bool:
    """A short run on separable pairs, its learning rate 20 to 100 times the healthy one."""
    random = np.random.default_rng(seed)
    factor = np.exp(random.uniform(*np.log(RATE_FACTORS))) if is_planted else 1.0
    model = tiny_model(seed)
    init_head(model.head, "zero")
    settings = TrainingSettings(
        prompts_per_step=PROMPTS_PER_STEP,
        learning_rate=HEALTHY_RATE * float(factor),
        warmup_share=0.0,
        max_steps=NUM_STEPS,
        log_every_steps=NUM_STEPS,
        seed=seed,
        guards=GuardSettings(padding=False, repeat=False),
    )
    groups = [separable_pairs()[i] for i in random.permutation(NUM_PAIRS)]
    if seed % 2:
        groups = [replace(group, comparisons=(Comparison(1, 0),)) for group in groups]
    with tempfile.TemporaryDirectory() as directory, quiet():
        trainer = RewardTrainer(
            model, settings, groups, {}, lambda *_: {}, pad_id(), Path(directory)
        )
        trainer.train()
    return "explosion" in trainer.guard.warned


FAULTS: Mapping[str, Callable[[int, bool], bool]] = {
    "padding-side bug": padding_side,
    "stale template": stale_template,
    "doubled BOS": doubled_start,
    "two-tower noise": two_towers,
    "bias term": bias_term,
    "exploding reward": exploding_reward,
}
"""Whether the alarm rings, from a seed and whether the fault is planted."""


def both_or_any(is_planted: bool, *alarms: bool) -> bool:
    return all(alarms) if is_planted else any(alarms)


def refused(check: Callable[[], None]) -> bool:
    """Whether a guard raises the error that it is made to raise."""
    try:
        check()
    except PalateError:
        return True
    return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the trainer's progress bars, its log, and the warnings that are counted."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def pooling_at(end: Callable[..., torch.Tensor]) -> Plant:
    """Where each sequence has a row of its own: its end is found by `end`, not by the plan."""
    own = RewardModel.forward

    def forward(self: RewardModel, **arguments: Any) -> Any:
        if len(arguments["input_ids_RT"]) == len(arguments["end_column_N"]):
            arguments["end_column_N"] = end(arguments["input_ids_RT"], arguments["reach_RT"])
        return own(self, **arguments)

    return mock.patch.object(RewardModel, "forward", forward)


def last_of_mask(input_ids_RT: torch.Tensor, reach_RT: torch.Tensor) -> torch.Tensor:
    return (reach_RT > 0).sum(dim=1) - 1


def before_first_pad(input_ids_RT: torch.Tensor, reach_RT: torch.Tensor) -> torch.Tensor:
    return ((input_ids_RT == pad_id()).int().argmax(dim=1) - 1) % input_ids_RT.shape[1]


def scoring_in_training_mode() -> Plant:
    @contextlib.contextmanager
    def scoring_mode(self: RewardModel) -> Iterator[None]:
        self.train()
        with torch.inference_mode():
            yield

    return mock.patch.object(RewardModel, "scoring_mode", scoring_mode)


def dropout_in_pooling() -> Plant:
    own = RewardModel._pool

    def pool(self: RewardModel, *arguments: torch.Tensor) -> torch.Tensor:
        return dropout(own(self, *arguments), NOISE, training=True)

    return mock.patch.object(RewardModel, "_pool", pool)


def every_second_pass_in_16_bit() -> Plant:
    own = RewardModel.run
    passes: list[None] = []

    def run_plan(self: RewardModel, plan: Any) -> Any:
        passes.append(None)
        with torch.autocast("cpu", torch.bfloat16, enabled=len(passes) % 2 == 0):
            return own(self, plan)

    return mock.patch.object(RewardModel, "run", run_plan)


def tiny_model(seed: int, **config: Any) -> RewardModel:
    """A random causal body with a random head, weights large enough that another token shows."""
    torch.manual_seed(seed)
    transformer = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=len(tokenizer()),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=512,
            pad_token_id=pad_id(),
            num_labels=1,
            **config,
        )
    )
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return RewardModel(transformer, "tree").eval()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level; adds its start token to any text, as Llama's does."""
    special = [PAD, START, "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(special)
    made.post_processor = TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, vocabulary[START])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=START, eos_token="<|im_end|>", pad_token=PAD
    )


def renderer(template: str = TEMPLATE) -> Renderer:
    source = tokenizer()
    source.chat_template = template
    return Renderer(source, LengthSettings().resolved(512))


@cache
def pad_id() -> int:
    return renderer().pad_id


def check_saved(own: Renderer, used: Renderer) -> None:
    """What loading does with a checkpoint of `own` whose texts `used` would render."""
    sidecar = Sidecar(
        pooling="last",
        head_name="score",
        layout="tree",
        dtype="float32",
        end_of_turn=own.end_of_turn,
        template_arguments={},
        lengths={},
        fingerprint={**own.fingerprint(), "weights": ""},
    )
    with tempfile.TemporaryDirectory() as directory:
        check_fingerprint("tiny", Path(directory), used, sidecar)


def pair(number: int) -> PreferenceGroup:
    """Two answers that differ in their first word and in length."""
    random = np.random.default_rng(number)
    prompt = f"question {number} " + "x" * int(random.integers(12))
    answers = (
        "yes " + "a" * int(random.integers(1, 12)),
        "no " + "b" * int(random.integers(1, 12)),
    )
    return PreferenceGroup(
        (Message("user", prompt),),
        tuple(Response(answer) for answer in answers),
        (Comparison(0, 1),),
        line=number,
    )


@cache
def separable_pairs() -> list[RenderedGroup]:
    return render_groups([pair(number) for number in range(NUM_PAIRS)], renderer(), Ledger())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    torch.set_num_threads(1)
    print(json.dumps(run(range(parser.parse_args().seeds)), indent=1))


if __name__ == "__main__":
    main()

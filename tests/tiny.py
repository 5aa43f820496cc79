"""Tiny models and tokenizers, built on the spot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_tokenizer(
    template: str | None = CHATML,
    eos: str = "<|im_end|>",
    pad: str | None = "<|endoftext|>",
    special: list[str] = SPECIAL,
    merges: Sequence[tuple[str, str]] = (),
) -> PreTrainedTokenizerFast:
    """Byte-level, one id a byte, and the control tokens; pad may equal eos or be absent."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [first + second for first, second in merges]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet, *merged])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token=pad)
    fast.chat_template = template
    return fast


def word_piece_tokenizer() -> PreTrainedTokenizerFast:
    """Uncased letters, digits and marks with BERT's own special tokens; no template."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = "abcdefghijklmnopqrstuvwxyz0123456789!?.,:;'[]<>|_/-"
    vocabulary = [*special, *characters, *(f"##{c}" for c in characters), "user", "sep"]
    tokens = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **dict(zip(names, special, strict=True))
    )


def unigram_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """SentencePiece's kind: NFKC, a prefix space, and control tokens that are pieces as well, which
    `tokenizers` finds in plain text."""
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    pieces = [*special, "\u2581", *map(chr, range(33, 127)), "\n"]
    scores = [(piece, -2.0 if len(piece) == 1 else 0.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(special)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = template
    return fast


SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}

CAUSAL: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 16},
    "gemma2": {**GROUPED, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3_text": {
        **GROUPED,
        "sliding_window": 16,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt2": {
        "vocab_size": 300,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 512,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
    "phi3": {**GROUPED, "sliding_window": 16},
    "olmo2": GROUPED,
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
}
CAUSAL["qwen2 window"] = {
    **GROUPED,
    "use_sliding_window": True,
    "sliding_window": 16,
    "max_window_layers": 1,
}

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "deberta-v2": {
        **SIZES,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 16,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
    },
    "modernbert": {
        **SIZES,
        "classifier_pooling": "cls",
        "local_attention": 16,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
}

WITHOUT_CLASS: dict[str, dict[str, Any]] = {
    "granite": GROUPED,
    "cohere": GROUPED,
    "olmoe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
    "mamba": {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
"""Bodies for which transformers has no sequence-classification class."""


def tiny_body(kind: str, seed: int = 0) -> Any:
    """A random body alone, weights as large as in `tiny_transformer`."""
    sizes = CAUSAL.get(kind) or ENCODERS.get(kind) or WITHOUT_CLASS[kind]
    torch.manual_seed(seed)
    return enlarge(AutoModel.from_config(AutoConfig.for_model(kind.split()[0], **sizes)))


def enlarge(model: Any) -> Any:
    """Weights large enough to make masks and neighbours matter; a state-space decay is kept."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith("A_log"):
                parameter.normal_(std=0.15)
    return model.eval()


def tiny_transformer(kind: str, seed: int = 0, attention: str | None = None) -> Any:
    """A random sequence classifier with one label, large enough weights to make masks matter."""
    model_type = kind.split()[0]
    sizes = CAUSAL.get(kind) or ENCODERS[kind]
    config = AutoConfig.for_model(model_type, **sizes, num_labels=1)
    torch.manual_seed(seed)
    implementation = attention or ("eager" if model_type == "gemma2" else None)
    model = AutoModelForSequenceClassification.from_config(
        config, attn_implementation=implementation
    )
    return enlarge(model)


def save_tiny(
    directory: Path,
    kind: str = "llama",
    *,
    head: bool = False,
    tokenizer: Any = None,
    seed: int = 0,
) -> str:
    """A checkpoint directory: a body, with or without its head, and a tokenizer."""
    if kind in WITHOUT_CLASS:
        assert not head, f"transformers has no class for {kind} with a head"
        tiny_body(kind, seed).save_pretrained(directory)
    else:
        model = tiny_transformer(kind, seed)
        (model if head else model.base_model).save_pretrained(directory)
    (tokenizer or byte_tokenizer()).save_pretrained(directory)
    return str(directory)

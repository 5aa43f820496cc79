"""The tokenizer as palate uses and ships it: nothing added, nothing cut, pad apart from the end."""

import json
import re
from collections.abc import Collection
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from palate.errors import PalateError

PAD_NAMES = re.compile(r"pad|reserved|unused|extra", re.IGNORECASE)
UNUSED_BYTES = ("<0xFF>", "<0xFE>", "ÿ", "þ")
"""Entries for bytes that valid UTF-8 never holds, as SentencePiece and GPT-2 spell them."""


def bare_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """A copy that adds no special tokens of its own and has no stored truncation or padding.

    The template writes every special token, so that `tokenizer(text)`, `apply_chat_template` and a
    pipeline agree. Saved as a generic fast tokenizer, because model-specific classes rebuild their
    post-processor when they load. Raises PalateError for tokenizers without a `tokenizers` backend.
    """
    if not tokenizer.is_fast:
        raise PalateError(
            f"{type(tokenizer).__name__} has no fast backend; convert it to a tokenizer.json first"
        )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.update(truncation=None, padding=None, post_processor=None)
    special: dict[str, Any] = {
        name: token for name, token in tokenizer.special_tokens_map.items() if token is not None
    }
    special.pop("additional_special_tokens", None)
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        clean_up_tokenization_spaces=False,
        padding_side="right",
        **special,
    )
    bare.chat_template = tokenizer.chat_template
    return bare


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Text to id of every special token: the strings that content may not turn into control ids.

    Added tokens that aren't special (a tool-call or thinking tag) are ordinary text of an answer.
    """
    found = {
        token.content: index
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special and token.content.strip()
    }
    for token in tokenizer.all_special_tokens:
        found.setdefault(token, tokenizer.convert_tokens_to_ids(token))
    return found


def choose_pad(
    tokenizer: PreTrainedTokenizerBase, end_of_turn_id: int, written: Collection[int]
) -> str:
    """An existing token other than end-of-turn for padding; embeddings are never resized for it.

    Plain sequence classification pools the last token that is not the pad id, so pad equal to
    end-of-turn would pool the token before the end. In order: the tokenizer's own pad; a special
    token named for padding or held in reserve; the unknown token; any other special token that the
    template does not write (`written` holds those it does); a byte that text never holds.
    """
    if tokenizer.pad_token is not None and tokenizer.pad_token_id != end_of_turn_id:
        return str(tokenizer.pad_token)
    tokens = {text: i for text, i in control_tokens(tokenizer).items() if i != end_of_turn_id}
    candidates = [
        *(text for text in tokens if PAD_NAMES.search(text)),
        *([str(tokenizer.unk_token)] if tokenizer.unk_token in tokens else []),
        *(text for text, i in tokens.items() if i not in written),
        *(text for text in UNUSED_BYTES if text in tokenizer.get_vocab()),
        *tokens,
    ]
    if not candidates:
        raise PalateError(
            "the tokenizer has no token to pad with besides its end-of-turn token; set pad_token"
        )
    return candidates[0]

"""Bodies in 8 or 4 bit, through `bitsandbytes`."""

import math
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from palate.errors import PalateError

Quantization = Literal["none", "8bit", "4bit"]


def quantization_config(kind: Quantization, dtype: Any, kept: list[str]) -> BitsAndBytesConfig:
    """Linear layers in 8 bit (LLM.int8, Dettmers et al. 2022, arXiv 2208.07339) or in NF4 (QLoRA,
    Dettmers et al. 2023, arXiv 2305.14314); modules whose names are in `kept` stay as they are.

    Raises PalateError when bitsandbytes is missing.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise PalateError(
            f"body.quantization {kind} needs bitsandbytes; install it with"
            " pip install 'palate[quantization]'"
        ) from error
    if kind == "8bit":
        # Above the threshold a whole column is multiplied in 16 bit when one token of the batch has
        # an outlier in it: a reward would depend on its neighbours. 0 quantises token by token.
        return BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=kept
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype if isinstance(dtype, torch.dtype) else None,
        llm_int8_skip_modules=kept,
    )


def keep_trainable(transformer: nn.Module) -> None:
    """Stop 4-bit layers on a CPU from repacking their weights at the first evaluation.

    The packed product (AVX512-BF16) has no gradient: a model that was evaluated once would then be
    trained on nothing below its last such layer, with a warning at most (bitsandbytes 0.50).
    """
    for module in transformer.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def unpacked_size(parameter: nn.Parameter) -> int:
    """Number of weights: bitsandbytes stores two of 4 bit in one element, those of 8 bit singly."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else math.prod(packed.shape)

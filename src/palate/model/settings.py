"""How a model is loaded."""

from dataclasses import dataclass
from typing import Literal

from palate.errors import PalateError
from palate.model.attention import Attention


@dataclass(frozen=True, kw_only=True)
class BodySettings:
    """How a checkpoint's body is loaded, and its head where it is new."""

    pooling: Literal["auto", "last", "cls", "mean", "attention"] = "auto"
    """What of the body's states the head reads. auto: a checkpoint's own; for a new head, last for
    causal bodies and cls for encoders. mean of all tokens; attention with one learned query."""
    head: Literal["auto", "linear", "mlp"] = "auto"
    """auto: a checkpoint's own; linear for a new one. mlp: one hidden layer."""
    head_width: int = 0
    """Width of the mlp head's hidden layer; 0 = that of the body."""
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Load the body's linear layers in 8 or 4 bit through bitsandbytes: for scoring, and for
    training with method lora."""
    head_init: Literal["zero", "normal"] = "zero"
    """A new head: zero, or normal with variance 1/width. No effect on a reward model's own head."""
    layout: Literal["auto", "tree", "rows"] = "auto"
    """auto: tree where the load-time self-check finds it exact, otherwise rows. tree: refuse
    otherwise."""
    attention: Attention = "auto"
    """How a tree's attention is computed, all equal within rounding. auto: the fastest for the
    device that a self-check finds exact: blocks on a CPU, varlen or flex on CUDA. dense: a mask
    over all pairs of tokens, the reference."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of the weights in memory; auto is the checkpoint's own. Head, pooling and loss run in
    float32."""
    dropout: bool = False
    """Keep the body's dropout in training. Off by default: it adds noise to margins."""
    trust_remote_code: bool = False
    """Run Python code that the checkpoint brings along."""

    def __post_init__(self) -> None:
        if self.head_width < 0:
            raise PalateError(f"body.head_width is {self.head_width}, must be 0 or more")
        if self.head_width and self.head != "mlp":
            raise PalateError(
                f"body.head_width {self.head_width} has no effect with body.head {self.head}; set"
                " body.head to mlp"
            )

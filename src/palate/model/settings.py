"""How a model is loaded."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class BodySettings:
    """How a checkpoint's body is loaded, and its head where it is new."""

    head_init: Literal["zero", "normal"] = "zero"
    """A new head: zero, or normal with variance 1/width. No effect on a reward model's own head."""
    layout: Literal["auto", "tree", "rows"] = "auto"
    """auto: tree where the load-time self-check finds it exact, otherwise rows. tree: refuse
    otherwise."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of the weights in memory; auto is the checkpoint's own. Head, pooling and loss run in
    float32."""
    dropout: bool = False
    """Keep the body's dropout in training. Off by default: it adds noise to margins."""
    trust_remote_code: bool = False
    """Run Python code that the checkpoint brings along."""

"""A head that plain classes don't have, in a file of its own beside the weights of the body.

`reward_head.safetensors` holds the head's tensors, and `query` for attention pooling; pooling and
kind of head stand in its metadata. The body lies beside it as `AutoModel.save_pretrained` writes
it, under the variant `palate` (`model.palate.safetensors`): plain classes look for
`model.safetensors`, find none and stop, where they would otherwise go on with a random head.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from palate.artifacts.files import write_json
from palate.errors import PalateError
from palate.model.heads import Head, MlpHead
from palate.model.pooling import Pooling
from palate.model.reward_model import RewardModel

HEAD_FILE = "reward_head.safetensors"
VARIANT = "palate"
MARK = "palate"
"""Key of `config.json` that says so."""
HeadKind = Literal["linear", "mlp"]


@dataclass(frozen=True)
class StoredHead:
    """What `reward_head.safetensors` holds."""

    pooling: Pooling
    kind: HeadKind
    tensors: dict[str, Tensor]

    @property
    def width(self) -> int:
        """Of the hidden layer; 0 for a linear head."""
        return len(self.tensors["hidden.bias"]) if self.kind == "mlp" else 0

    def build(self) -> Head:
        """The head with its weights."""
        head: Head
        if self.kind == "mlp":
            head = MlpHead(self.tensors["hidden.weight"].shape[1], self.width)
        else:
            head = nn.Linear(self.tensors["weight"].shape[1], 1, bias=False)
        head.load_state_dict({n: t for n, t in self.tensors.items() if n != "query"})
        return head


def kind_of(head: Head) -> HeadKind:
    return "mlp" if isinstance(head, MlpHead) else "linear"


def write_head(directory: Path, model: RewardModel) -> None:
    """Write head and query, float32."""
    tensors = dict(model.head.state_dict())
    if model.query is not None:
        tensors["query"] = model.query.detach()
    save_file(
        {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()},
        directory / HEAD_FILE,
        metadata={"format": "pt", "pooling": model.pooling, "head": kind_of(model.head)},
    )


def mark_config(directory: Path, model: RewardModel) -> None:
    """Say in `config.json` who loads this, and name no class that a server would know."""
    path = directory / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    about = (
        f"only palate loads this reward model: pooling {model.pooling}, head"
        f" {kind_of(model.head)}, in {HEAD_FILE}"
    )
    write_json(path, {**values, "architectures": ["PalateRewardModel"], MARK: about})


def read_head(directory: Path) -> StoredHead | None:
    """The stored head, or None where the directory has no such file; PalateError when damaged."""
    path = directory / HEAD_FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["pooling"] not in get_args(Pooling) or about["head"] not in get_args(HeadKind):
            raise ValueError(f"pooling {about['pooling']!r}, head {about['head']!r}")
        stored = StoredHead(cast(Pooling, about["pooling"]), cast(HeadKind, about["head"]), tensors)
        stored.build()
        if ("query" in tensors) != (stored.pooling == "attention"):
            raise ValueError(f"pooling {stored.pooling} with tensors {sorted(tensors)}")
    except Exception as error:  # safetensors raises its own class, outside the OSError tree
        raise PalateError(f"{path}: damaged: {error}; get the file again") from error
    return stored

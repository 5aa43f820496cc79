"""How data sources are read."""

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from palate.errors import PalateError
from palate.preferences.votes import VoteSettings

Format = Literal[
    "auto",
    "canonical",
    "ranked",
    "rated",
    "pairs",
    "implicit",
    "hh",
    "annotated",
    "labelled",
    "helpsteer",
    "ultrafeedback",
    "nemo_rl",
    "rewardbench",
    "rewardbench2",
    "rm_bench",
    "judgebench",
    "llmbar",
    "argilla",
    "label_studio",
]
"""What each is made of: docs/data.md."""


@dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """How data sources are read."""

    format: Format = "auto"
    """auto: the fields of the first rows decide."""
    columns: dict[str, str] = field(default_factory=dict)
    """Field that palate reads to the column that holds it, as in prompt: question."""
    rating: str = ""
    """Which rating makes the comparisons where answers have several; empty = the format's own
    default (docs/data.md)."""
    merge_prompts: bool = False
    """Rows of one source with the same prompt become one group. Needs the source in memory."""
    hub_split: str = "train"
    """Split of a hub data set."""
    votes: VoteSettings = field(default_factory=VoteSettings)
    """Votes, strengths and ratings to comparisons."""

    def of(self, source: "Source") -> "ReadSettings":
        """The same with what this source says differently."""
        own: dict[str, Any] = {
            "format": source.format if source.format != "auto" else self.format,
            "columns": source.columns or self.columns,
            "rating": source.rating or self.rating,
            "hub_split": source.hub_split or self.hub_split,
            "votes": replace(self.votes, **source.own_votes()),
        }
        return replace(self, **own)


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of several sources of a mixture. What is left out here is as in `read`."""

    path: str
    """Preference file (.jsonl .json .csv .parquet, plain or .gz) or hub data set id."""
    weight: float = 1.0
    """Factor on the weight of each of its comparisons."""
    format: Format = "auto"
    """As read.format, which holds where this is auto."""
    columns: dict[str, str] = field(default_factory=dict)
    """As read.columns, which holds where this is empty."""
    rating: str = ""
    """As read.rating, which holds where this is empty."""
    hub_split: str = ""
    """As read.hub_split, which holds where this is empty."""
    votes: VoteSettings = field(default_factory=VoteSettings)
    """As read.votes; of each option that has its default here, that of read.votes holds."""

    def own_votes(self) -> dict[str, Any]:
        """The options of `votes` that hold for this source alone."""
        default = VoteSettings()
        stated = {f.name: getattr(self.votes, f.name) for f in fields(default)}
        return {name: v for name, v in stated.items() if v != getattr(default, name)}

    def __post_init__(self) -> None:
        if not self.path:
            raise PalateError("a source's path is empty; name a preference file or a hub data set")
        if not 0 < self.weight < math.inf:
            raise PalateError(
                f"weight {self.weight} of the source {self.path}: must be a number above 0; to use"
                " none of it, leave the source out"
            )

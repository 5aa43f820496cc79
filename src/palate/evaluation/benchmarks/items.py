"""Benchmarks as typed values: their items, and what a model's rewards make of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from palate.artifacts.files import sha256_json
from palate.artifacts.ledger import Ledger, place
from palate.preferences import Comparison, Message, Response, ScoringItem
from palate.statistics import Estimate, as_json


@dataclass(frozen=True, kw_only=True)
class BenchmarkItem:
    """One prompt, its answers (correct ones first), and which answer should beat which."""

    id: str
    subset: str
    """The category whose mean the item is part of."""
    prompt: tuple[Message, ...]
    responses: tuple[Response, ...]
    comparisons: tuple[Comparison, ...]
    cluster: str
    """Items of one cluster are resampled together."""
    tools: tuple[Mapping[str, Any], ...] = ()
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""
    line: int = 0
    content_sha256: str = field(init=False)
    """Of prompt and answers, so that a score can't be taken for that of another text."""

    def __post_init__(self) -> None:
        turns = [message.as_dict() for message in self.prompt]
        content: list[Any] = [turns, [response.text for response in self.responses]]
        if self.tools or self.template_arguments:
            content += [list(self.tools), dict(self.template_arguments)]
        object.__setattr__(self, "content_sha256", sha256_json(content))

    @property
    def where(self) -> str:
        """File and line, with the id, for messages."""
        return f"{place(self.file, self.line)} (item {self.id})"

    @property
    def must_tie(self) -> bool:
        """Whether an answer that should win has the text of one that should lose to it."""
        texts = [response.text for response in self.responses]
        return any(texts[c.better] == texts[c.worse] for c in self.comparisons)

    def scoring_items(self) -> list[ScoringItem]:
        """One for each answer, in order."""
        return [
            ScoringItem(self.prompt, response, self.tools, self.template_arguments)
            for response in self.responses
        ]

    def scored(
        self, rewards: Sequence[float], num_prompt_cut: int = 0, num_answer_cut: int = 0
    ) -> "ScoredItem":
        return ScoredItem(
            id=self.id,
            subset=self.subset,
            cluster=self.cluster,
            comparisons=tuple((c.better, c.worse, c.weight) for c in self.comparisons),
            rewards=tuple(map(float, rewards)),
            num_characters=tuple(len(response.text) for response in self.responses),
            content_sha256=self.content_sha256,
            num_prompt_tokens_cut=num_prompt_cut,
            num_answer_tokens_cut=num_answer_cut,
        )


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The items of one benchmark, as they stand in its files."""

    name: str
    items: tuple[BenchmarkItem, ...]
    data_sha256: Mapping[str, str]
    """Path to hash; nothing for a hub data set, whose items have their own hashes."""
    ledger: Ledger = field(repr=False)
    """Rows that can't be scored: empty answers, votes for neither."""


@dataclass(frozen=True, kw_only=True)
class ScoredItem:
    """All that the numbers are computed from: no text, no model."""

    id: str
    subset: str
    cluster: str
    comparisons: tuple[tuple[int, int, float], ...]
    """(better, worse, weight)."""
    rewards: tuple[float, ...]
    num_characters: tuple[int, ...]
    """Lengths of the answers, for the baseline that prefers the longer one."""
    content_sha256: str
    num_prompt_tokens_cut: int = 0
    num_answer_tokens_cut: int = 0

    @property
    def num_correct(self) -> int:
        """Number of answers that beat another; they stand first."""
        return len({better for better, _, _ in self.comparisons})

    @property
    def num_ties(self) -> int:
        """Comparisons with equal rewards."""
        return sum(self.rewards[i] == self.rewards[j] for i, j, _ in self.comparisons)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of a benchmark."""

    value: Estimate
    """As published, ties as the benchmark counts them."""
    half_credit: Estimate
    """The same with half a win for a tie."""
    longer_wins: Estimate
    """`value` of a model whose reward is the answer's number of characters."""
    num_ties: int
    """Comparisons in it whose two answers have equal rewards."""

    @property
    def num_items(self) -> int:
        return self.value.n

    def as_json(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in ("value", "half_credit", "longer_wins")}
        return {**as_json(named), "num_items": self.num_items, "num_ties": self.num_ties}


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """A model's numbers on a benchmark, and all that is needed to compute them again."""

    benchmark: str
    headline: str
    """Name of the number that is quoted for the benchmark. Not in `scores` where a category of it
    is missing; `notes` then says which."""
    scores: Mapping[str, Score]
    items: tuple[ScoredItem, ...] = field(repr=False)
    left_out: Mapping[str, int]
    """Reason to number of rows that have no score."""
    notes: tuple[str, ...]
    """What sets the numbers apart from published ones: missing categories, cuts, rows left out."""
    protocol: Mapping[str, Any] = field(repr=False)

    @property
    def num_ties(self) -> int:
        return sum(item.num_ties for item in self.items)

    def as_json(self) -> dict[str, Any]:
        """Everything but the items, for a result file."""
        return {
            "benchmark": self.benchmark,
            "headline": self.headline,
            "scores": {name: score.as_json() for name, score in self.scores.items()},
            "num_items": len(self.items),
            "num_ties": self.num_ties,
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
            "protocol": dict(self.protocol),
        }


def hash_of_items(hashes: Sequence[str]) -> str:
    """One hash of all items' contents, in order."""
    return sha256_json(list(hashes))

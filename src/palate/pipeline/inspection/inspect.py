"""`palate data inspect`: what a preference file holds, before anything is trained on it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from palate.artifacts.ledger import Ledger
from palate.artifacts.progress import progress
from palate.errors import PalateError
from palate.pipeline.inspection.judgements import (
    ComparisonFacts,
    ComparisonTally,
    VoteFacts,
    VoteTally,
)
from palate.pipeline.inspection.quality import QualityFacts, QualityTally
from palate.pipeline.inspection.sample import ClusterSample
from palate.pipeline.inspection.texts import (
    AnswerFacts,
    AnswerTally,
    Examples,
    FieldFacts,
    FieldTally,
    PromptFacts,
    PromptTally,
)
from palate.pipeline.inspection.tokens import TokenFacts, token_tally
from palate.pipeline.prepare import refuse_idle
from palate.preferences import (
    PreferenceGroup,
    RatingReport,
    ReadSettings,
    iter_groups,
    rating_report,
)
from palate.preferences.files.rows import iter_rows
from palate.preferences.readers import refuse_beside


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Which sources to look at, and how."""

    data: list[str]
    """Preference files (.jsonl .json .csv .parquet, plain or .gz) or hub data set ids."""
    tokenizer: str = ""
    """Checkpoint (directory or hub id) whose tokenizer and template count tokens; empty = only
    characters are counted."""
    groups: int = 3
    """Groups to show, evenly spaced through the source."""
    read: ReadSettings = field(default_factory=ReadSettings)

    def __post_init__(self) -> None:
        if not self.data:
            raise PalateError("no file to inspect; name one or several")
        twice = sorted({source for source in self.data if self.data.count(source) > 1})
        if twice:
            raise PalateError(f"{twice[0]}: named twice; name it once")
        if self.groups < 0:
            raise PalateError(f"groups is {self.groups}, must be 0 or more")


@dataclass(frozen=True)
class Inspection:
    """What was found in one source."""

    source: str
    format: str
    why: str
    """What in its first rows showed the format."""
    ledger: Ledger
    num_groups: int
    num_rows_in_groups: int
    fields: Mapping[str, FieldFacts]
    prompts: PromptFacts
    answers: AnswerFacts
    comparisons: ComparisonFacts
    votes: VoteFacts | None
    ratings: RatingReport | None
    quality: QualityFacts
    tokens: TokenFacts | None
    is_merged: bool
    heeds: frozenset[str]
    """Settings of `read` that could have changed a group."""
    examples: Sequence[PreferenceGroup]


def inspect_sources(config: InspectConfig) -> list[Inspection]:
    """Inspect each source; PalateError for one that can't be read, and for a setting of `read` that
    none of them can heed."""
    found = [inspect_source(source, config) for source in config.data]
    heeds = frozenset[str]().union(*(seen.heeds for seen in found))
    refuse_beside(heeds, config.data, config.read)
    refuse_idle(
        heeds,
        config.data,
        {name for seen in found if seen.votes for name in seen.votes.annotators},
        config.read,
    )
    return found


def inspect_source(source: str, config: InspectConfig) -> Inspection:
    """Read a source twice, once as groups and once as rows, holding neither.

    Raises PalateError where it can't be read, and where not one row makes a group.
    """
    ledger = Ledger()
    stream = iter_groups(source, config.read, ledger)
    sample = ClusterSample()
    prompts, answers, comparisons = PromptTally(), AnswerTally(), ComparisonTally()
    votes, quality, examples = VoteTally(), QualityTally(), Examples(config.groups)
    tokens = token_tally(config.tokenizer) if config.tokenizer else None
    tallies: list[Any] = [prompts, answers, comparisons, votes, quality, sample, examples]
    num_rows = 0

    def counted() -> Iterator[PreferenceGroup]:
        nonlocal num_rows
        for group in progress(stream, "inspect"):
            num_rows += group.num_rows
            for tally in tallies if tokens is None else [*tallies, tokens]:
                tally.add(group)
            yield group

    ratings = rating_report(counted())
    ledger.check(num_rows)
    if not num_rows:
        raise PalateError(
            f"{source}: read as {stream.format} ({stream.why}), but none of {ledger.num_rows_read}"
            f" rows is usable:\n{ledger.summary(0)}"
        )
    return Inspection(
        source=source,
        format=stream.format,
        why=stream.why,
        ledger=ledger,
        num_groups=examples.num_seen,
        num_rows_in_groups=num_rows,
        fields=_fields(source, config),
        prompts=prompts.facts(),
        answers=answers.facts(),
        comparisons=comparisons.facts(),
        votes=votes.facts(sample),
        ratings=ratings,
        quality=quality.facts(sample),
        tokens=tokens.facts() if tokens else None,
        is_merged=config.read.merge_prompts,
        heeds=frozenset(stream.heeds),
        examples=examples.facts(),
    )


def _fields(source: str, config: InspectConfig) -> Mapping[str, FieldFacts]:
    tally = FieldTally()
    for _, row in iter_rows(source, Ledger(), config.read.hub_split):
        tally.add(row)
    return tally.facts()

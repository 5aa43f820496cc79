"""From sources to columns, in bounded memory: each text is read once, turned into numbers, let go.

Legend: G groups, N answers, C comparisons, P judgements, F features.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from palate.artifacts.ledger import Ledger
from palate.artifacts.progress import progress
from palate.audit.answers import AnswerFacts, answer_facts, digest, ending, opening
from palate.audit.columns import NO_ANNOTATOR, NO_MODEL, Audited, Columns
from palate.audit.frequent import frequent_texts
from palate.audit.processes import FactsInOrder
from palate.audit.sample import ClusterSample
from palate.audit.settings import AuditSettings
from palate.preferences import (
    PreferenceGroup,
    ReadSettings,
    Source,
    Vote,
    iter_groups,
    prompt_cluster,
)
from palate.preferences.readers import refuse_idle_source
from palate.text import STYLE_FEATURES, normalise

MAX_CHUNK_CHARACTERS = 1_000_000
MAX_CHUNK_TEXTS = 4_000
NUM_CHUNKS_ALONE = 8
"""Chunks before a second process is started, which takes half a second."""
LARGEST_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Scan:
    """Data as the checks get them, and how they were read."""

    audited: Audited
    ledger: Ledger
    formats: Mapping[str, str]
    """Path or hub id to the name of its format."""
    num_rows: int
    """Input rows that the groups are made of."""
    heeds: frozenset[str]
    """Settings of `read` that could have changed a group."""


def scan(
    sources: Mapping[str, Source],
    read: ReadSettings = ReadSettings(),
    settings: AuditSettings = AuditSettings(),
    *,
    processes: int = 2,
) -> Scan:
    """Read sources into columns; two processes share the work where there is much of it.

    Rows that can't be used are in the ledger. Raises PalateError for a source that can't be read,
    and for one of which no row is usable.
    """
    ledger = Ledger()
    formats: dict[str, str] = {}
    heeds: set[str] = set()
    rows = _Rows()
    sample = ClusterSample(settings.max_sampled_groups)
    facts: list[AnswerFacts] = []
    work = FactsInOrder(facts.append, NUM_CHUNKS_ALONE, share=processes > 1)
    chunk = _Chunk(work.add)
    try:
        for name, source in sources.items():
            stream = iter_groups(source, read, ledger, name=name)
            for group in progress(stream, f"audit {name}"):
                cluster = int(prompt_cluster(group.prompt), 16)
                sample.add(rows.num_groups, group, cluster)
                rows.add(group, cluster)
                chunk.add([response.text for response in group.responses])
            refuse_idle_source(name, source, stream)
            formats[source.path] = stream.format
            heeds |= stream.heeds - set(source.own_votes())
        chunk.hand_over()
        work.finish()
    finally:
        work.close()
    ledger.check(rows.num_rows)
    indices, groups = sample.kept()
    return Scan(
        audited=_audited(rows, facts, indices, groups, _refetch(sources, read)),
        ledger=ledger,
        formats=formats,
        num_rows=rows.num_rows,
        heeds=frozenset(heeds),
    )


def columns_of(groups: Sequence[PreferenceGroup]) -> Audited:
    """The same of groups in memory, all of them in the sample."""
    rows = _Rows()
    for group in groups:
        rows.add(group, int(prompt_cluster(group.prompt), 16))
    facts = [answer_facts([r.text for group in groups for r in group.responses])]
    return _audited(rows, facts, range(len(groups)), groups, lambda _: {})


def relabelled(audited: Audited, groups: Sequence[PreferenceGroup]) -> Audited:
    """The same prompts and answers with other comparisons and votes, in a hundredth of the time.

    `audited` comes from `columns_of`, of groups that have the same prompts and answers in the same
    order.
    """
    rows = _Rows()
    for index, (start, group) in enumerate(zip(audited.columns.start_G, groups, strict=False)):
        rows.add_labels(group, index, int(start))
    fresh = rows.as_columns()
    labels = {name: fresh[name] for name in fresh if name.endswith(("_C", "_P"))}
    columns = replace(audited.columns, annotators=fresh["annotators"], **labels)
    found = dict(enumerate(groups))
    return Audited(
        columns, groups, audited.sample_G, lambda indices: {i: found[i] for i in indices}
    )


def _refetch(
    sources: Mapping[str, Source], read: ReadSettings
) -> Callable[[Sequence[int]], Mapping[int, PreferenceGroup]]:
    """Groups by their number in the scan, by reading the sources again as far as needed."""

    def all_groups() -> Iterator[PreferenceGroup]:
        for name, source in sources.items():
            yield from iter_groups(source, read, Ledger(), name=name)

    def fetch(indices: Sequence[int]) -> Mapping[int, PreferenceGroup]:
        wanted = set(indices)
        last = max(wanted, default=-1)
        found: dict[int, PreferenceGroup] = {}
        if not wanted:
            return found
        for index, group in enumerate(progress(all_groups(), "look up examples")):
            if index in wanted:
                found[index] = group
            if index >= last:
                break
        return found

    return fetch


@dataclass
class _Chunk:
    """Texts until there are enough to be worked on together."""

    take: Callable[[Sequence[str]], None]
    texts: list[str] = field(default_factory=list)
    num_characters: int = 0

    def add(self, texts: Sequence[str]) -> None:
        self.texts += texts
        self.num_characters += sum(map(len, texts))
        if self.num_characters > MAX_CHUNK_CHARACTERS or len(self.texts) > MAX_CHUNK_TEXTS:
            self.hand_over()

    def hand_over(self) -> None:
        if self.texts:
            self.take(self.texts)
        self.texts, self.num_characters = [], 0


class _Rows:
    """Everything of the columns that needs no work on the answers' texts, growing."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.models: dict[str, int] = {}
        self.annotators: dict[str, int] = {}
        self.num_rows = 0
        self.num_votes = 0
        self.arrays: dict[str, array[Any]] = {name: array(code) for name, code, _ in _ROW_COLUMNS}
        self.arrays["start_G"].append(0)

    @property
    def num_groups(self) -> int:
        return len(self.arrays["file_G"])

    def add(self, group: PreferenceGroup, cluster: int) -> None:
        columns, index = self.arrays, self.num_groups
        start = columns["start_G"][-1]
        self.num_rows += group.num_rows
        columns["file_G"].append(self.files.setdefault(group.file, len(self.files)))
        columns["line_G"].append(group.line)
        columns["cluster_G"].append(cluster)
        columns["prompt_G"].append(_prompt_digest(group))
        columns["start_G"].append(start + len(group.responses))
        columns["group_N"].extend([index] * len(group.responses))
        for response in group.responses:
            columns["model_N"].append(
                NO_MODEL
                if response.model is None
                else self.models.setdefault(response.model, len(self.models))
            )
        self.add_labels(group, index, start)

    def add_labels(self, group: PreferenceGroup, index: int, start: int) -> None:
        """The comparisons and votes of a group whose first answer has the number `start`."""
        columns = self.arrays
        for c in group.comparisons:
            columns["group_C"].append(index)
            columns["better_C"].append(start + c.better)
            columns["worse_C"].append(start + c.worse)
            columns["probability_C"].append(c.probability)
            columns["tie_C"].append(c.tie)
            columns["weight_C"].append(min(c.weight, LARGEST_FLOAT))
        for vote in group.votes:
            self._add_vote(vote, start)

    def _add_vote(self, vote: Vote, start: int) -> None:
        columns = self.arrays
        annotator = NO_ANNOTATOR
        if vote.annotator:
            annotator = self.annotators.setdefault(vote.annotator, len(self.annotators))
        strength = float("nan")
        if vote.strength is not None:
            strength = max(-LARGEST_FLOAT, min(vote.strength, LARGEST_FLOAT))
        place = {response: place for place, response in enumerate(vote.shown or ())}
        for (first, second), outcome in vote.outcomes().items():
            shown = 0
            if first in place and second in place:
                shown = 1 if place[first] < place[second] else -1
            columns["vote_P"].append(self.num_votes)
            columns["annotator_P"].append(annotator)
            columns["first_P"].append(start + first)
            columns["second_P"].append(start + second)
            columns["outcome_P"].append(outcome)
            columns["shown_P"].append(shown)
            columns["strength_P"].append(strength)
        self.num_votes += 1

    def as_columns(self) -> dict[str, Any]:
        """Arguments of `Columns`."""
        names = {
            "files": tuple(self.files),
            "models": tuple(self.models),
            "annotators": tuple(self.annotators),
        }
        found = {name: np.array(self.arrays[name], kind) for name, _, kind in _ROW_COLUMNS}
        return {**names, **found}


_ROW_COLUMNS: tuple[tuple[str, str, Any], ...] = (
    ("file_G", "i", np.int32),
    ("line_G", "q", np.int64),
    ("cluster_G", "Q", np.uint64),
    ("prompt_G", "Q", np.uint64),
    ("start_G", "q", np.int64),
    ("group_N", "q", np.int64),
    ("model_N", "i", np.int32),
    ("group_C", "q", np.int64),
    ("better_C", "q", np.int64),
    ("worse_C", "q", np.int64),
    ("probability_C", "f", np.float32),
    ("tie_C", "f", np.float32),
    ("weight_C", "f", np.float32),
    ("vote_P", "q", np.int64),
    ("annotator_P", "i", np.int32),
    ("first_P", "q", np.int64),
    ("second_P", "q", np.int64),
    ("outcome_P", "b", np.int8),
    ("shown_P", "b", np.int8),
    ("strength_P", "f", np.float32),
)
"""Name, type code of the growing array, and type of the column."""


def _prompt_digest(group: PreferenceGroup) -> int:
    return digest("\0".join(f"{m.role}\0{normalise(m.content)}" for m in group.prompt))


def _audited(
    rows: _Rows,
    facts: Sequence[AnswerFacts],
    sample_indices: Sequence[int],
    sample: Sequence[PreferenceGroup],
    refetch: Callable[[Sequence[int]], Mapping[int, PreferenceGroup]],
) -> Audited:
    place_of = {index: place for place, index in enumerate(sample_indices)}

    def fetch(indices: Sequence[int]) -> Mapping[int, PreferenceGroup]:
        found = {int(i): sample[place_of[int(i)]] for i in indices if int(i) in place_of}
        missing = [int(i) for i in indices if int(i) not in place_of]
        return {**found, **refetch(missing)} if missing else found

    answers: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in facts])
        for name in AnswerFacts.__annotations__
    }
    by_row = rows.as_columns()
    start_G = by_row["start_G"]

    def texts(hash_N: np.ndarray, phrase: Callable[[str], str]) -> dict[int, str]:
        return frequent_texts(hash_N, start_G, fetch, sample_indices, phrase)

    columns = Columns(
        features=tuple(STYLE_FEATURES),
        **by_row,
        **answers,
        opening_text=texts(answers["opening_N"], opening),
        ending_text=texts(answers["ending_N"], ending),
    )
    return Audited(columns, sample, np.array(sample_indices, np.int64), fetch)

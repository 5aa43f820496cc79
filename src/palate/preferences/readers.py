"""Read preferences from files and hub data sets; every row ends as a group or in the ledger."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from palate.artifacts.ledger import Ledger
from palate.artifacts.progress import progress
from palate.errors import PalateError, SourceError
from palate.preferences.annotator_weights import weighed
from palate.preferences.counting import count
from palate.preferences.files.rows import iter_rows
from palate.preferences.formats.argilla import question_of_source
from palate.preferences.formats.columns import check_columns, check_rows, renamed
from palate.preferences.formats.detect import (
    FORMATS,
    KNOWN_FORMATS,
    ONE_RESPONSE_A_ROW,
    most_frequent_format,
)
from palate.preferences.formats.fields import Parsed, Row, field_names, optional
from palate.preferences.formats.message_texts import with_messages, without_turn_lists
from palate.preferences.formats.transcripts import with_one_prompt, with_system
from palate.preferences.merge import all_of_one_prompt, merged, runs_of_one_prompt
from palate.preferences.settings import ReadSettings, Source
from palate.preferences.types import PreferenceGroup
from palate.preferences.votes import (
    HEEDED_BY_RATINGS,
    HEEDED_BY_VOTES,
    VoteSettings,
    heeded_by_votes,
)

NUM_ROWS_TO_DETECT = 100
_HEEDED_IN_REFUSING: dict[str, Set[str]] = {
    "equal answers": {"equal"},
    "margin on a soft label": {"margin_per_strength"},
    "no ratings that differ": HEEDED_BY_RATINGS | {"rating"},
    "scores contradict the choice": {"rating"},
}
"""Reason for which a row was refused to the settings that had a part in it."""


@dataclass(frozen=True)
class GroupStream:
    """A source being read: iterating yields its groups in the order of their rows, once."""

    source: str
    """Path or hub id."""
    name: str
    """What its groups carry as `source`."""
    format: str
    why: str
    """What in the first rows showed the format, for a person."""
    groups: Iterator[PreferenceGroup] = field(repr=False)
    ledger: Ledger = field(repr=False)
    """May hold entries of other sources too."""
    heeds: set[str] = field(default_factory=set)
    """Settings (of `VoteSettings`, and `rating`) that could change a row seen so far, or had a part
    in refusing it."""
    voters: set[str] = field(default_factory=set)
    """Those of `annotator_weights` who have voted so far."""
    annotator_weights: Mapping[str, float] = field(default_factory=dict)
    """Those in use: stated, or what `annotator_cap` and `reliability` came to."""
    _num_groups: list[int] = field(default_factory=lambda: [0])

    def __iter__(self) -> Iterator[PreferenceGroup]:
        for group in self.groups:
            self._num_groups[0] += 1
            yield group

    @property
    def num_groups(self) -> int:
        """Number of groups seen so far."""
        return self._num_groups[0]


@dataclass(frozen=True)
class Reading:
    """What was read: `.groups`, the `.ledger` of what was left out, `.formats` by source."""

    groups: tuple[PreferenceGroup, ...]
    ledger: Ledger
    formats: dict[str, str]
    """Path or hub id to the name of its format."""
    reasons: dict[str, str]
    """Path or hub id to what showed its format."""
    heeds: frozenset[str] = frozenset()
    """Settings (of `VoteSettings`, and `rating`) that could change a group."""
    annotator_weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Path or hub id to the weights that `annotator_cap` and `reliability` came to."""

    @property
    def num_rows(self) -> int:
        """Number of input rows that the groups are made of."""
        return sum(group.num_rows for group in self.groups)

    def summary(self) -> str:
        named = ", ".join(f"{source}: {name}" for source, name in self.formats.items())
        weighed = "".join(
            f"weights of annotators in {source}: "
            + ", ".join(f"{name} {weight:.3g}" for name, weight in list(weights.items())[:20])
            + (f" and {len(weights) - 20} more" if len(weights) > 20 else "")
            + "\n"
            for source, weights in self.annotator_weights.items()
        )
        return f"format {named}\n{weighed}{self.ledger.summary(self.num_rows)}"


def read(
    sources: str | Sequence[str] | Mapping[str, Source], settings: ReadSettings = ReadSettings()
) -> Reading:
    """Read one or several sources (paths or hub ids, or a mixture: name to `Source`).

    Raises PalateError when a source is missing, unreadable, empty, in no known format, named twice,
    or leaves not a single group.
    """
    groups: list[PreferenceGroup] = []
    ledger = Ledger()
    formats: dict[str, str] = {}
    reasons: dict[str, str] = {}
    heeds: set[str] = set()
    weights: dict[str, Mapping[str, float]] = {}
    for name, source in named_sources(sources).items():
        if source.path in formats:
            raise PalateError(f"{source.path}: named twice among the data")
        stream = iter_groups(source, settings, ledger, name=name)
        groups.extend(stream)
        refuse_idle_source(name, source, stream)
        formats[source.path] = stream.format
        reasons[source.path] = stream.why
        heeds |= stream.heeds - set(source.own_votes())
        if stream.annotator_weights != settings.of(source).votes.annotator_weights:
            weights[source.path] = stream.annotator_weights
    reading = Reading(tuple(groups), ledger, formats, reasons, frozenset(heeds), weights)
    ledger.check(reading.num_rows)
    refuse_beside(heeds, list(formats), settings)
    return reading


def refuse_beside(heeds: Set[str], sources: Sequence[str], settings: ReadSettings) -> None:
    """Raise PalateError for a setting of votes where all votes of the sources, which were read with
    these `heeds`, only stand beside stated comparisons."""
    default = VoteSettings()
    for name in sorted(HEEDED_BY_VOTES - heeds):
        value = getattr(settings.votes, name)
        if value != getattr(default, name) and "recount" in heeds:
            raise PalateError(
                f"read.votes.{name} {value} has no effect: the comparisons of {', '.join(sources)}"
                " are stated, and the votes only stand beside them; set read.votes.recount true to"
                " make the comparisons from the votes"
            )


def refuse_idle_source(name: str, source: Source, stream: GroupStream) -> None:
    """Raise PalateError where a source that was read to its end made no group, and for a setting of
    its own that its rows can't heed."""
    if not stream.num_groups:
        raise _no_group(stream)
    idle = [option for option in source.own_votes() if option not in stream.heeds]
    if idle:
        raise PalateError(
            f"votes.{idle[0]} of the source {name} has no effect: nothing in {source.path}, format"
            f" {stream.format}, heeds it"
        )
    if strangers := [who for who in source.votes.annotator_weights if who not in stream.voters]:
        raise PalateError(
            f"votes.annotator_weights of the source {name}: nobody called {strangers[0]!r} has"
            f" voted in {source.path}"
        )
    if source.rating and "rating" not in stream.heeds:
        raise PalateError(
            f"rating {source.rating!r} of the source {name} has no effect: no rating makes the"
            f" comparisons of {source.path}, format {stream.format}"
        )
    if source.hub_split and os.path.exists(source.path):
        raise PalateError(
            f"hub_split {source.hub_split!r} of the source {name} has no effect: {source.path} is a"
            " file"
        )


def _no_group(stream: GroupStream) -> PalateError:
    """The complaint about a source of which no row is usable, with its part of the ledger."""
    entries = [entry for entry in stream.ledger.entries if entry.file == stream.source]
    counts = Counter(f"{entry.kind}: {entry.reason}" for entry in entries)
    num_rows = sum(entry.kind == "row" for entry in entries)
    reasons = "".join(f"\n  {count:>7}  {reason}" for reason, count in counts.most_common())
    first = f"\nThe first: line {entries[0].line}: {entries[0].detail}" if entries else ""
    return PalateError(
        f"{stream.source}: read as {stream.format} ({stream.why}), but none of {num_rows} rows is"
        f" usable:{reasons}{first}"
    )


def named_sources(sources: str | Sequence[str] | Mapping[str, Source]) -> dict[str, Source]:
    """Name to source. A path's name is its file's, and the whole path where two would share one;
    a hub id is its own name."""
    if isinstance(sources, Mapping):
        return dict(sources)
    paths = [str(s) for s in (sources if isinstance(sources, list | tuple) else [sources])]
    for path in paths:
        if paths.count(path) > 1:
            raise PalateError(f"{path}: named twice among the data")
    short = [Path(path).name if os.path.exists(path) else path for path in paths]
    return {
        path if short.count(name) > 1 else name: Source(path=path)
        for name, path in zip(short, paths, strict=True)
    }


def iter_groups(
    source: str | Source,
    settings: ReadSettings = ReadSettings(),
    ledger: Ledger | None = None,
    *,
    name: str = "",
) -> GroupStream:
    """Open a source and stream its groups; what is left out goes to `ledger` on the way.

    Memory is bounded by the first 100 rows and the ledger's entries, unless prompts are merged. The
    format is that of `settings`, or the one that most of the first 100 rows show; a row without its
    fields goes to the ledger. Raises PalateError here when the source is missing, unreadable, empty
    or in no known format, and while iterating when reading fails later on.
    """
    if isinstance(source, str):
        source = Source(path=source)
    settings = settings.of(source)
    ledger = Ledger() if ledger is None else ledger
    if settings.format != "auto" and settings.format not in FORMATS:
        raise PalateError(f"format {settings.format!r} is none of auto, {', '.join(FORMATS)}")
    check_columns(settings.columns)
    raw = iter_rows(source.path, ledger, settings.hub_split)
    first = list(islice(raw, NUM_ROWS_TO_DETECT))
    check_rows(source.path, [row for _, row in first], settings.columns)
    format, why = _choose_format(source.path, first, settings, ledger)
    if format == "argilla" and not settings.rating:
        settings = replace(settings, rating=_question(source.path, first, settings))
    if settings.votes.annotator_cap or settings.votes.reliability:
        settings = replace(settings, votes=_weighed(source.path, format, settings))
    heeds: set[str] = set()
    voters: set[str] = set()
    parsed = _parse(source.path, format, chain(first, raw), settings, ledger, heeds)
    groups = _grouped(
        source.path, format, _heard(parsed, settings, voters), settings, ledger, heeds
    )
    name = name or source.path
    named = (_named(group, name, source.weight) for group in groups)
    weights = settings.votes.annotator_weights
    return GroupStream(source.path, name, format, why, named, ledger, heeds, voters, weights)


def _weighed(source: str, format: str, settings: ReadSettings) -> VoteSettings:
    """The vote settings with the annotators' weights that the whole source comes to."""
    raw = iter_rows(source, Ledger(), settings.hub_split)
    rows = _parse(source, format, raw, settings, Ledger(), set())
    try:
        return weighed(settings.votes, progress(rows, "count votes"))
    except SourceError:
        raise
    except PalateError as error:
        raise PalateError(f"{source}: {error}") from error


def _heard(rows: Iterable[Parsed], settings: ReadSettings, voters: set[str]) -> Iterator[Parsed]:
    for row in rows:
        if settings.votes.annotator_weights:
            said = {vote.annotator for vote in (*row.votes, *row.beside)}
            voters |= said & set(settings.votes.annotator_weights)
        yield row


def _choose_format(
    source: str,
    first: Sequence[tuple[int, Mapping[str, Any]]],
    settings: ReadSettings,
    ledger: Ledger,
) -> tuple[str, str]:
    """(format, what showed it)."""
    if settings.format != "auto":
        return settings.format, "named in the settings"
    if not first:
        raise PalateError(f"{source}: no readable row in it:\n" + ledger.summary(0))
    rows = [with_messages(renamed(row, settings.columns)) for _, row in first]
    found = most_frequent_format(rows)
    if found is None:
        raise PalateError(
            f"{source}: in no known format; its fields are: {field_names(rows[0])}. Known:"
            f" {KNOWN_FORMATS}"
        )
    return found


def _question(
    source: str, first: Sequence[tuple[int, Mapping[str, Any]]], settings: ReadSettings
) -> str:
    """The question of an Argilla source that orders the answers; the same for all of its rows."""
    rows = []
    for _, row in first:
        # A row that can't be renamed goes to the ledger when its turn comes.
        with suppress(PalateError):
            rows.append(with_messages(renamed(row, settings.columns)))
    try:
        return question_of_source(rows, settings)
    except SourceError as error:
        raise SourceError(f"{source}: {error}", error.reason) from error


def _parse(
    source: str,
    format: str,
    rows: Iterable[tuple[int, Row]],
    settings: ReadSettings,
    ledger: Ledger,
    heeds: set[str],
) -> Iterator[Parsed]:
    for line, row in rows:
        try:
            parsed = _parsed(row, format, settings)
        except SourceError as error:
            raise SourceError(f"{source}:{line}: {error}") from error
        except PalateError as error:
            heeds |= _HEEDED_IN_REFUSING.get(error.reason, set())
            ledger.add(source, line, "row", error.reason, str(error), _row_id(row))
            continue
        for kind, reason, detail in parsed.notes:
            ledger.add(source, line, kind, reason, detail, parsed.fields["id"])
        yield replace(parsed, lines=(line,))


def _parsed(row: Row, format: str, settings: ReadSettings) -> Parsed:
    """What a row of the file says in this format."""
    row = with_messages(renamed(row, settings.columns))
    row = with_one_prompt(without_turn_lists(row, format), format, settings.columns)
    if "system" not in row:
        return FORMATS[format](row, settings)
    rest = {name: value for name, value in row.items() if name != "system"}
    parsed = FORMATS[format](rest, settings)
    return replace(parsed, prompt=with_system(parsed.prompt, optional(row, "system")))


def _grouped(
    source: str,
    format: str,
    rows: Iterable[Parsed],
    settings: ReadSettings,
    ledger: Ledger,
    heeds: set[str],
) -> Iterator[PreferenceGroup]:
    """A group of each row, or of the rows of one prompt; adds to `heeds`."""
    alone = format in ONE_RESPONSE_A_ROW
    if settings.merge_prompts:
        runs = all_of_one_prompt(rows)
    else:
        runs = runs_of_one_prompt(rows) if alone else ([row] for row in rows)
    for run in runs:
        identifier = run[0].fields["id"]
        try:
            if alone and len(run) == 1:
                raise PalateError(
                    "the only response to its prompt; rows of one prompt must follow each other, or"
                    " read.merge_prompts be set",
                    "fewer than two responses",
                )
            counted = count(merged(run), source, settings.votes)
        except PalateError as error:
            heeds |= _HEEDED_IN_REFUSING.get(error.reason, set())
            for row in run:
                heeds |= row.heeds | heeded_by_votes(row.votes, settings.votes)
                for line in row.lines:
                    ledger.add(source, line, "row", error.reason, str(error), row.fields["id"])
            continue
        for kind, reason, detail in counted.notes:
            ledger.add(source, counted.group.line, kind, reason, detail, identifier)
        heeds |= counted.heeds
        yield counted.group


def _named(group: PreferenceGroup, name: str, weight: float) -> PreferenceGroup:
    """The group under its source's name, its comparisons' weights times that of the source."""
    if weight == 1:
        return replace(group, source=name)
    weighted = tuple(replace(c, weight=c.weight * weight) for c in group.comparisons)
    return replace(group, source=name, comparisons=weighted)


def _row_id(row: Mapping[str, Any]) -> str | None:
    return None if row.get("id") is None else str(row["id"])

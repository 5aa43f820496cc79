"""`palate data convert`: preferences of any format as canonical rows, or as TRL's."""

import gzip
import json
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

from palate.artifacts.files import atomic_path
from palate.artifacts.ledger import Ledger
from palate.artifacts.progress import progress
from palate.errors import PalateError
from palate.pipeline.parquet import jsonl_to_parquet
from palate.pipeline.prepare import refuse_idle
from palate.preferences import (
    Comparison,
    PreferenceGroup,
    ReadSettings,
    iter_groups,
    to_canonical,
    to_trl,
)
from palate.preferences.readers import named_sources, refuse_beside

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
COMPRESS_LEVEL = 6
NOT_CERTAIN = "no certain comparison"
_LINE_ENDS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}
"""What some readers take for the end of a line, written as JSON spells it."""


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What to read, and what to write."""

    data: list[str]
    """Preference files (.jsonl .json .csv .parquet, plain or .gz) or hub data set ids; several are
    written one after another."""
    output: str
    """.jsonl, .jsonl.gz or .parquet; the ledger is written to OUTPUT.ledger.jsonl."""
    to: Literal["auto", "canonical", "trl", "parquet"] = "auto"
    """canonical: one group a line, all that was said. trl: TRL's preference format, one certain
    comparison a line. parquet: canonical rows in one table. auto: as the output's name ends."""
    harden: bool = False
    """trl: a soft comparison becomes its more probable side, unless ties are the most probable;
    otherwise it is left out. Each is in the ledger."""
    read: ReadSettings = field(default_factory=ReadSettings)

    def __post_init__(self) -> None:
        if not self.data:
            raise PalateError("no file to convert; name one or several")
        if not self.output.endswith(SUFFIXES):
            raise PalateError(f"output {self.output!r} must end in {', '.join(SUFFIXES)}")
        is_table = self.output.endswith(".parquet")
        if self.to != "auto" and (self.to == "parquet") != is_table:
            raise PalateError(
                f"output {self.output!r} with to {self.to}: canonical and trl are written as .jsonl"
                " or .jsonl.gz, parquet as .parquet"
            )
        if self.harden and self.to != "trl":
            raise PalateError(
                f"harden has no effect with to {self.to}; only trl knows no soft label"
            )
        for path in (self.output, self.ledger):
            if Path(path).exists():
                raise PalateError(f"{path}: exists already; remove it or choose another output")

    @property
    def ledger(self) -> str:
        return f"{self.output}.ledger.jsonl"


@dataclass
class ConvertResult:
    """What was read and written."""

    output: str
    ledger: Ledger
    formats: dict[str, str]
    """Source to the name of its format."""
    num_rows_kept: int = 0
    """Input rows of which something was written."""
    num_groups: int = 0
    num_written: int = 0
    num_as_text: int = 0
    """Values that JSON has no form for (dates, bytes), written as text."""


def convert(config: ConvertConfig) -> ConvertResult:
    """Read all sources and write their groups, in order and in bounded memory (unless prompts are
    merged); the output appears when it is whole.

    What the target can't express stands in the ledger beside what could not be read. Raises
    PalateError when a source can't be read, when nothing is left to write, and for a setting that
    nothing heeds.
    """
    result = ConvertResult(config.output, Ledger(), {})
    with atomic_path(config.output) as temporary:
        spool = temporary.with_name(temporary.name + ".jsonl")
        try:
            with _open_lines(spool, config.output) as handle:
                margins = _write_rows(handle, config, result)
            if 0 < margins < result.num_written:
                _with_margins(spool, temporary, config.output)
            elif config.output.endswith(".parquet"):
                jsonl_to_parquet(spool, str(temporary), "write .jsonl instead")
            else:
                spool.replace(temporary)
        finally:
            spool.unlink(missing_ok=True)
    result.ledger.write(config.ledger)
    return result


def _write_rows(handle: IO[bytes], config: ConvertConfig, result: ConvertResult) -> int:
    """Write all groups; return the number of rows with a margin where the target is TRL's."""
    heeds: set[str] = set()
    annotators: set[str] = set()
    shapes: dict[str, str] = {}
    num_margins = 0
    for name, source in named_sources(config.data).items():
        stream = iter_groups(source, config.read, result.ledger, name=name)
        result.formats[source.path] = stream.format
        for group in progress(stream, "convert"):
            annotators.update(vote.annotator for vote in group.votes)
            if config.output.endswith(".parquet"):
                _check_shapes(group, shapes)
            rows = list(_rows(group, config, result.ledger))
            for row in rows:
                handle.write(_line(row, result))
                num_margins += config.to == "trl" and "margin" in row
            result.num_written += len(rows)
            result.num_groups += bool(rows)
            result.num_rows_kept += group.num_rows if rows else 0
        heeds |= stream.heeds
    refuse_beside(heeds, config.data, config.read)
    refuse_idle(heeds, config.data, annotators, config.read)
    result.ledger.check(result.num_rows_kept)
    if not result.num_written:
        remedy = _remedy(config, result.ledger, heeds)
        raise PalateError(f"{config.output}: nothing to write{remedy}:\n{result.ledger.summary(0)}")
    return num_margins


def _remedy(config: ConvertConfig, ledger: Ledger, heeds: Set[str]) -> str:
    """What would make comparisons certain, where that is what TRL's format misses."""
    if f"row: {NOT_CERTAIN}" not in ledger.by_reason():
        return ""
    remedies = [] if config.harden else ["--harden true takes the more probable side of each"]
    if "target" in heeds and config.read.votes.target != "majority":
        remedies.append("--read.votes.target majority has votes decide by their majority")
    said = f": {', '.join(remedies)}" if remedies else ""
    return f", since {config.to} holds certain comparisons only{said}"


def _rows(
    group: PreferenceGroup, config: ConvertConfig, ledger: Ledger
) -> Iterator[Mapping[str, Any]]:
    where = (group.file, group.line)
    if config.to != "trl":
        row = to_canonical(group)
        yield in_table_form(row) if config.output.endswith(".parquet") else row
        return
    if config.harden:
        group = _hardened(group, ledger)
    written = to_trl(group)
    for kind, reason, detail in written.lost:
        ledger.add(*where, kind, reason, detail, group.id)
    if not written.rows:
        for line in group.lines:
            what = "none of its comparisons is certain"
            what += "" if config.harden else "; harden makes them so"
            ledger.add(group.file, line, "row", NOT_CERTAIN, what, group.id)
    yield from written.rows


def _hardened(group: PreferenceGroup, ledger: Ledger) -> PreferenceGroup:
    """The group with its soft comparisons as certain ones, where one side is the most probable of
    better, worse and tie."""
    comparisons = []
    for c in group.comparisons:
        wins = (1 - c.tie) * c.probability
        if (c.probability < 1 or c.tie > 0) and c.probability > 0.5 and wins > c.tie:
            what = f"{c.better} over {c.worse}: probability {c.probability:g}, tie {c.tie:g}"
            ledger.add(group.file, group.line, "comparison", "hardened", what, group.id)
            c = Comparison(c.better, c.worse, weight=c.weight)
        comparisons.append(c)
    return replace(group, comparisons=tuple(comparisons))


def in_table_form(row: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical row whose free objects (meta, tools, template arguments) are JSON texts.

    A table gives all rows the same fields, so that objects would come back with the fields of all
    others, empty. Readers take the texts for the objects.
    """
    table = {name: _texts(value) if name in _FREE else value for name, value in row.items()}
    for name in ("responses", "votes"):
        if name in row:
            table[name] = [
                {k: _texts(v) if k in _FREE else v for k, v in item.items()} for item in row[name]
            ]
    return table


def _check_shapes(group: PreferenceGroup, shapes: dict[str, str]) -> None:
    """Raise PalateError where further fields of messages (tool calls) have other fields within than
    those seen before: in a table each would get the fields of all."""
    for message in group.prompt:
        for name, value in message.extra.items():
            shape = _shape(value)
            if shapes.setdefault(name, shape) != shape:
                raise PalateError(
                    f"{group.file}:{group.line}: {name!r} of a message has other fields than in"
                    f" rows before ({shape:.80}; before {shapes[name]:.80}), which one table can't"
                    " keep apart; write .jsonl"
                )


def _shape(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_shape(v)}" for k, v in sorted(value.items())) + "}"
    if isinstance(value, list | tuple):
        return "[" + " or ".join(sorted({_shape(item) for item in value})) + "]"
    return "value"


_FREE = ("meta", "tools", "template_arguments")


def _texts(value: Any) -> str:
    return json.dumps(value, default=str)


def _line(row: Mapping[str, Any], result: ConvertResult) -> bytes:
    def as_text(value: Any) -> str:
        result.num_as_text += 1
        return str(value)

    text = json.dumps(row, ensure_ascii=False, default=as_text).translate(_LINE_ENDS)
    try:
        return (text + "\n").encode()
    except UnicodeEncodeError:  # a lone surrogate in what no one reads, such as meta
        return (json.dumps(row, default=str) + "\n").encode()


def _with_margins(spool: Path, temporary: Path, output: str) -> None:
    """Give all rows a margin: TRL takes a column from all rows or from none."""
    reader = gzip.open if output.endswith(".gz") else open
    with reader(spool, "rb") as lines, _open_lines(temporary, output) as handle:
        for line in lines:
            row = {"margin": 0.0, **json.loads(line)}
            text = json.dumps(row, ensure_ascii=False).translate(_LINE_ENDS)
            handle.write((text + "\n").encode())


@contextmanager
def _open_lines(path: Path, output: str) -> Iterator[IO[bytes]]:
    """Open for writing; gzip without name and time, so that the same rows are the same bytes."""
    with open(path, "wb") as raw:
        if not output.endswith(".gz"):
            yield raw
            return
        with gzip.GzipFile("", "wb", COMPRESS_LEVEL, raw, mtime=0) as packed:
            yield packed  # type: ignore[misc]

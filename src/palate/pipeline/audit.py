"""`palate audit`: what is wrong with preference data, before it costs money."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import AutoConfig

from palate.artifacts.files import write_json, write_text
from palate.artifacts.hub import model_directory
from palate.artifacts.ledger import Ledger
from palate.artifacts.rundir import next_run_directory, refuse_overwrite, versions
from palate.audit.findings import SEVERITIES, Report, plain
from palate.audit.run import Inputs, run_checks
from palate.audit.scan import Scan, scan
from palate.audit.settings import AuditSettings
from palate.audit.template import Trained, trained_renderer
from palate.errors import PalateError
from palate.model.loading import load_tokenizer
from palate.model.selfcheck import max_positions
from palate.model.settings import BodySettings
from palate.pipeline.prepare import data_hashes, refuse_idle
from palate.preferences import PreferenceGroup, ReadSettings, iter_groups
from palate.preferences.readers import named_sources, refuse_beside
from palate.rendering import LengthSettings, Renderer
from palate.rendering.settings import num_cores
from palate.report.audit_html import audit_page

AUDIT = "audit.json"
PAGE = "audit.html"
LEDGER = "ledger.jsonl"
AGAINST_LEDGER = "against_ledger.jsonl"
MAX_PROCESSES = 2


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """Which data to check, and against what. Raises PalateError for values without effect."""

    data: list[str]
    """Preference files (.jsonl .json .csv .parquet, plain or .gz) or hub data set ids."""
    against: list[str] = field(default_factory=list)
    """Data that share no prompt with them if all is well: for a test set, what was trained on."""
    tokenizer: str = ""
    """Checkpoint (directory or hub id) whose tokenizer and template are in use; empty = checks of
    tokens are skipped."""
    checkpoint: str = ""
    """Model directory of a palate run, to hold the template in use against the one it was trained
    with."""
    benchmarks: list[str] = field(default_factory=list)
    """Files of prompts that should not be among the data."""
    fail_on: Literal["error", "warn", "never"] = "never"
    """The exit code is 1 where a finding is as grave as this."""
    output: str = ""
    """Directory for audit.json, audit.html and the ledgers; empty = runs/audit-NAME."""
    processes: int = 0
    """2: a second one shares the reading, where there is enough to do; 1: this one alone. 0 = as
    many as cores allow."""
    lengths: LengthSettings = field(default_factory=LengthSettings)
    """Lengths in use, for the checks of tokens."""
    read: ReadSettings = field(default_factory=ReadSettings)
    checks: AuditSettings = field(default_factory=AuditSettings)

    def __post_init__(self) -> None:
        if not self.data:
            raise PalateError("no file to audit; name one or several")
        for sources in (self.data, self.against):
            twice = sorted({source for source in sources if sources.count(source) > 1})
            if twice:
                raise PalateError(f"{twice[0]}: named twice; name it once")
        if not 0 <= self.processes <= MAX_PROCESSES:
            raise PalateError(f"processes is {self.processes}, must be 0 (automatic), 1 or 2")
        if not self.tokenizer:
            for name, value in (("lengths", LengthSettings()), ("checkpoint", "")):
                if getattr(self, name) != value:
                    raise PalateError(f"{name} has no effect without a tokenizer; name one")
        missing = [file for file in self.benchmarks if not Path(file).is_file()]
        if missing:
            raise PalateError(f"{missing[0]}: no such file of benchmark prompts; check the path")


@dataclass(frozen=True)
class AuditResult:
    """What was found, and where it was written."""

    report: Report
    values: Mapping[str, Any]
    """What is in audit.json."""
    directory: Path

    def fails(self, fail_on: str) -> bool:
        """Whether a finding is as grave as `fail_on`."""
        if fail_on == "never":
            return False
        return any(
            SEVERITIES.index(finding.severity) >= SEVERITIES.index(fail_on)  # type: ignore[arg-type]
            for finding in self.report.findings
        )


def audit(config: AuditConfig) -> AuditResult:
    """Read, check, write. Raises PalateError when a source can't be read, or when the output
    directory holds an audit already."""
    directory = _directory(config)
    renderer = _renderer(config) if config.tokenizer else None
    trained = _trained(config.checkpoint) if config.checkpoint else None
    seen = _scan(config.data, config)
    against = _scan(config.against, config) if config.against else None
    _refuse_idle(config, [seen] if against is None else [seen, against])
    report = run_checks(
        Inputs(
            audited=seen.audited,
            settings=config.checks,
            against=against.audited if against else None,
            renderer=renderer,
            trained=trained,
            benchmarks=config.benchmarks,
            all_groups=None if seen.audited.is_whole else lambda: _all_groups(config),
        )
    )
    values = _values(config, seen, against, report)
    write_json(directory / AUDIT, values)
    write_text(directory / PAGE, audit_page(values))
    seen.ledger.write(directory / LEDGER)
    if against:
        against.ledger.write(directory / AGAINST_LEDGER)
    return AuditResult(report, values, directory)


def _directory(config: AuditConfig) -> Path:
    if not config.output:
        return next_run_directory(f"audit-{Path(config.data[0]).name.split('.')[0]}")
    directory = Path(config.output)
    if directory.is_file():
        raise PalateError(f"{directory}: is a file; choose another --output")
    refuse_overwrite(directory, AUDIT)
    return directory


def _renderer(config: AuditConfig) -> Renderer:
    """Tokenizer, template and lengths in use; without a config.json beside the tokenizer the
    lengths are those of a body of any length."""
    directory = model_directory(config.tokenizer)
    tokenizer = load_tokenizer(config.tokenizer, directory, BodySettings())
    positions = None
    if (directory / "config.json").exists():
        positions = max_positions(
            AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        )
    return Renderer(tokenizer, config.lengths.resolved(positions))


def _trained(checkpoint: str) -> Trained:
    directory = Path(checkpoint).expanduser()
    return trained_renderer(directory / "model" if (directory / "model").is_dir() else directory)


def _scan(sources: Sequence[str], config: AuditConfig) -> Scan:
    processes = config.processes or min(MAX_PROCESSES, num_cores())
    return scan(named_sources(sources), config.read, config.checks, processes=processes)


def _all_groups(config: AuditConfig) -> Iterator[PreferenceGroup]:
    for name, source in named_sources(config.data).items():
        yield from iter_groups(source, config.read, Ledger(), name=name)


def _refuse_idle(config: AuditConfig, scans: Sequence[Scan]) -> None:
    """Raise PalateError for a setting of `read` that nothing in the data heeds."""
    heeds = frozenset[str]().union(*(seen.heeds for seen in scans))
    annotators = {name for seen in scans for name in seen.audited.columns.annotators}
    sources = [*config.data, *config.against]
    refuse_beside(heeds, sources, config.read)
    refuse_idle(heeds, sources, annotators, config.read)


def _values(
    config: AuditConfig, seen: Scan, against: Scan | None, report: Report
) -> dict[str, Any]:
    audited = seen.audited
    rows = _rows(seen)
    values = {
        "data": config.data,
        "against": config.against,
        "data_sha256": data_hashes([*config.data, *config.against, *config.benchmarks]),
        "formats": {**seen.formats, **(against.formats if against else {})},
        "rows": {**rows, "against": _rows(against)} if against else rows,
        "num_groups": audited.columns.num_groups,
        "num_comparisons": len(audited.columns.group_C),
        "sample": {
            "groups": len(audited.sample),
            "of": audited.columns.num_groups,
            "rule": "prompt clusters with the lowest hashes",
        },
        "settings": asdict(config),
        "versions": versions(),
        "worst": report.worst,
        "findings": [finding.as_json() for finding in report.findings],
        "skipped": [asdict(skipped) for skipped in report.skipped],
    }
    found: dict[str, Any] = plain(values)
    return found


def _rows(seen: Scan) -> dict[str, Any]:
    return {
        "read": seen.ledger.num_rows_read,
        "in groups": seen.num_rows,
        "left out": seen.ledger.num_rows_left_out,
        "by reason": seen.ledger.by_reason(),
    }

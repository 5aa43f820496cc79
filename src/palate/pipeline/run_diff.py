"""What differs between two runs: data, split, configuration, versions, metrics, ledger."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palate.artifacts.ledger import Ledger
from palate.artifacts.rundir import RUN, flat_settings
from palate.errors import PalateError
from palate.pipeline.runs import Run, is_run, read_run
from palate.statistics import Estimate

ABSENT = "(absent)"
"""What stands for a setting or version that only the other run names."""
Sides = Mapping[str, tuple[Any, Any]]
"""By key: what A has, what B has."""


@dataclass(frozen=True)
class SharedClusters:
    """Prompt clusters that one run trained on and the other one held out."""

    held_out_by: str
    """a or b."""
    part: str
    num_shared: int
    num_held_out: int


@dataclass(frozen=True)
class RunDifference:
    """Two runs, A and B, side by side."""

    a: Run
    b: Run
    data: Sequence[tuple[str, Sequence[str], Sequence[str]]]
    """SHA-256 of each data file, with its names in A and in B: none where a run has not read it."""
    num_prompts: Sides
    """Prompts of each part."""
    shared_clusters: Sequence[SharedClusters]
    configuration: Sides
    """Settings that differ, by dotted key; `output` aside."""
    versions: Sides
    """Versions that differ."""
    same_prompts: bool
    """Whether both were measured on the same prompts."""
    metrics: Mapping[str, tuple[Estimate | None, Estimate | None]]
    ledger: Sides
    """Entries by reason, where their number differs."""

    @property
    def warnings(self) -> list[str]:
        """What makes a comparison of their metrics unfair."""
        found = [_unfair(shared) for shared in self.shared_clusters if shared.num_shared]
        if self.metrics and not self.same_prompts:
            found.append(
                f"A was measured on its {self.a.measured_on or 'no'} part, B on its"
                f" {self.b.measured_on or 'no'} part, and these are not the same prompts: the"
                " metrics are not comparable"
            )
        return found


def diff_runs(a: str | Path, b: str | Path) -> RunDifference:
    """Compare two runs, finished or not. Raises PalateError for what is no run or a damaged one."""
    first, second = _whole_run(Path(a)), _whole_run(Path(b))
    names = [*first.metrics, *(name for name in second.metrics if name not in first.metrics)]
    return RunDifference(
        first,
        second,
        _data(first, second),
        _sides(_num_prompts(first), _num_prompts(second), 0, only_differing=False),
        [
            shared
            for held_out_by, holder, trainer in (("a", first, second), ("b", second, first))
            for shared in _shared_clusters(held_out_by, holder, trainer)
        ],
        _sides(_settings(first), _settings(second)),
        _sides(first.record["versions"], second.record["versions"]),
        _same_prompts(first, second),
        {name: (first.metrics.get(name), second.metrics.get(name)) for name in names},
        _sides(_ledger(first), _ledger(second), 0),
    )


def _whole_run(directory: Path) -> Run:
    if not is_run(directory):
        raise PalateError(
            f"{directory}: no run of palate ({RUN} with its data and versions); `palate runs"
            f" {directory.parent}` lists those beside it"
        )
    run = read_run(directory)
    if run.state == "damaged":
        raise PalateError(f"{run.reason}; restore the file, or repeat the run")
    return run


def _sides(
    a: Mapping[str, Any], b: Mapping[str, Any], absent: Any = ABSENT, *, only_differing: bool = True
) -> Sides:
    sides = {key: (a.get(key, absent), b.get(key, absent)) for key in [*a, *(set(b) - set(a))]}
    return {
        key: (of_a, of_b)
        for key, (of_a, of_b) in sorted(sides.items())
        if of_a != of_b or not only_differing
    }


def _data(a: Run, b: Run) -> list[tuple[str, Sequence[str], Sequence[str]]]:
    """By content: a file that was renamed is the same data."""
    digests = dict.fromkeys([*a.data_sha256.values(), *b.data_sha256.values()])
    return [
        (digest, _names(a.data_sha256, digest), _names(b.data_sha256, digest)) for digest in digests
    ]


def _names(data_sha256: Mapping[str, str], digest: str) -> list[str]:
    return [name for name, other in data_sha256.items() if other == digest]


def _num_prompts(run: Run) -> Mapping[str, int]:
    found: Mapping[str, int] = run.record.get("num_prompts") or run.split.get("num_groups", {})
    return found


def _settings(run: Run) -> dict[str, Any]:
    settings = {**flat_settings(run.configuration), **run.record.get("resolved", {})}
    return {key: value for key, value in settings.items() if key != "output"}


def _clusters(run: Run, part: str) -> set[str]:
    return set(run.split.get("clusters", {}).get(part, ()))


def _shared_clusters(held_out_by: str, holder: Run, trainer: Run) -> list[SharedClusters]:
    trained = _clusters(trainer, "train")
    parts = {part: _clusters(holder, part) for part in ("validation", "test")}
    return [
        SharedClusters(held_out_by, part, len(clusters & trained), len(clusters))
        for part, clusters in parts.items()
        if clusters
    ]


def _unfair(shared: SharedClusters) -> str:
    holder = shared.held_out_by.upper()
    trainer = "B" if holder == "A" else "A"
    return (
        f"{shared.num_shared} of {shared.num_held_out} clusters of {holder}'s {shared.part} part"
        f" are in {trainer}'s training part: measured there, {trainer} looks better than it is"
    )


def _same_prompts(a: Run, b: Run) -> bool:
    """Same part, same data, same clusters, and as many prompts left after rendering."""
    if not a.metrics or a.measured_on != b.measured_on:
        return False
    part = a.measured_on
    further = [run.configuration.get("validation", {}).get(part) for run in (a, b)]
    if all(further):
        digests = [run.data_sha256.get(name) for run, name in zip((a, b), further, strict=True)]
        same_source = digests[0] == digests[1]
    else:
        same_source = sorted(a.data_sha256.values()) == sorted(b.data_sha256.values())
        same_source &= _clusters(a, part) == _clusters(b, part)
    return same_source and _num_prompts(a).get(part) == _num_prompts(b).get(part)


def _ledger(run: Run) -> Mapping[str, int]:
    path = run.directory / "ledger.jsonl"
    entries = Ledger.load_entries(path) if path.exists() else []
    return Counter(f"{entry.kind}: {entry.reason}" for entry in entries)

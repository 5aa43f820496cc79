"""Files and hub data sets of benchmarks to items."""

import difflib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from palate.artifacts.files import sha256_file
from palate.artifacts.ledger import Ledger, place
from palate.errors import PalateError
from palate.evaluation.benchmarks.definition import Definition
from palate.evaluation.benchmarks.items import Benchmark, BenchmarkItem
from palate.evaluation.benchmarks.judged import JUDGEBENCH, LLMBAR, PPE, TIE_VOTE
from palate.evaluation.benchmarks.preference_file import PREFERENCES, read_preferences
from palate.evaluation.benchmarks.rewardbench import REWARDBENCH
from palate.evaluation.benchmarks.rewardbench2 import REWARDBENCH2
from palate.evaluation.benchmarks.rm_bench import RM_BENCH
from palate.preferences import ReadSettings
from palate.preferences.files.rows import NOT_FROM_HUB, SUFFIXES, iter_rows
from palate.preferences.formats.detect import detect_format
from palate.preferences.formats.fields import Row, field_names
from palate.preferences.readers import NUM_ROWS_TO_DETECT

DEFINITIONS: dict[str, Definition] = {
    definition.name: definition
    for definition in (
        REWARDBENCH,
        REWARDBENCH2,
        RM_BENCH,
        JUDGEBENCH,
        LLMBAR,
        PPE,
        PREFERENCES,
    )
}
HUB_SPLITS = {
    "allenai/reward-bench": "filtered",
    "allenai/reward-bench-2": "test",
    "THU-KEG/RM-Bench": "train",
    "ScalerLab/JudgeBench": "gpt",
    "lmarena-ai/PPE-Human-Preference-V1": "test",
}
"""The split that published numbers are of."""
CANT_BE_SCORED = ("empty response", "empty prompt", "invalid Unicode", TIE_VOTE)
"""Reasons that leave a row out, counted; any other stops the reading."""
_NO_MODEL = "a model that its response_model does not name"
_PPE_FIELDS = ("prompt", "response_1", "response_2", "winner")


def read_benchmark(
    source: str | Path | Sequence[str | Path],
    name: str | None = None,
    *,
    split: str = "",
    settings: ReadSettings = ReadSettings(),
) -> Benchmark:
    """A benchmark from files, a folder of files, or a hub data set.

    `name` is one of `DEFINITIONS`; without it the fields of the first rows say, and what no
    benchmark has is read as a preference file under `settings`. `split` is that of a hub data set;
    without it the published one (`HUB_SPLITS`).

    Raises PalateError, naming file and line, for a row that can't be read, without a field or with
    an unknown subset, for a subset of more items than were published (another version), and where
    no item is left. Rows with an empty prompt or answer or without a winner go to the ledger, as do
    all rows of a preference file that can't be used.
    """
    if name is not None and name not in DEFINITIONS:
        near = difflib.get_close_matches(name, DEFINITIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise PalateError(f"benchmark {name!r} is none of {', '.join(DEFINITIONS)}{hint}")
    paths = _paths(source)
    splits = {path: split or HUB_SPLITS.get(path, settings.hub_split) for path in paths}
    for path in paths:
        if split and os.path.exists(path):
            raise PalateError(f"split {split!r} has no effect: {path} is a file")
    try:
        return _read(paths, splits, name, settings)
    except PalateError as error:
        if error.reason != NOT_FROM_HUB:
            raise
        path = next(path for path in paths if not os.path.exists(path))
        raise PalateError(
            f"{error}. Or save it where the hub can be reached, datasets.load_dataset({path!r},"
            f" split={splits[path]!r}).to_json('benchmark.jsonl'), and name that file"
        ) from error


def _read(
    paths: Sequence[str], splits: Mapping[str, str], name: str | None, settings: ReadSettings
) -> Benchmark:
    definition = DEFINITIONS[name or _detected(paths[0], splits[paths[0]])]
    if definition is PREFERENCES:
        chosen = replace(settings, hub_split=splits[paths[0]])
        items, ledger = read_preferences(paths, chosen)
    else:
        if replace(settings, hub_split=ReadSettings().hub_split) != ReadSettings():
            raise PalateError(
                f"read settings have no effect on {definition.title}, whose fields are its own;"
                f" leave them out, or read {paths[0]} as preferences"
            )
        ledger = Ledger()
        models: dict[str, str] = {}
        items = [
            item
            for path in paths
            for item in _items(path, splits[path], definition, ledger, models)
        ]
        ledger.check(len(items))
    _check_version(definition, items, paths, ledger)
    hashes = {path: sha256_file(path) for path in paths if os.path.exists(path)}
    return Benchmark(name=definition.name, items=tuple(items), data_sha256=hashes, ledger=ledger)


def _paths(source: str | Path | Sequence[str | Path]) -> list[str]:
    """Files of folders in alphabetical order; hub ids as they are."""
    sources = [source] if isinstance(source, str | Path) else list(source)
    paths: list[str] = []
    for path in sources:
        if not str(path):
            raise PalateError("a benchmark's file has an empty name; name a file or a hub data set")
        if not os.path.isdir(path):
            paths.append(str(path))
            continue
        ends = tuple(suffix + end for suffix in SUFFIXES for end in ("", ".gz"))
        inside = sorted(str(p) for p in Path(path).rglob("*") if p.name.endswith(ends))
        if not inside:
            raise PalateError(f"{path}: no file in it ends in {', '.join(SUFFIXES)}")
        paths += inside
    if len(set(paths)) < len(paths):
        twice = next(path for path, number in Counter(paths).items() if number > 1)
        raise PalateError(f"{twice}: named twice")
    if not paths:
        raise PalateError("no file of a benchmark is named")
    return paths


def _detected(path: str, split: str) -> str:
    """The benchmark that most of the first rows are of."""
    rows = [row for _, row in islice(iter_rows(path, Ledger(), split), NUM_ROWS_TO_DETECT)]
    known = Counter(_benchmark_of(row) for row in rows)
    return known.most_common(1)[0][0] if known else PREFERENCES.name


def _benchmark_of(row: Row) -> str:
    if all(row.get(field) is not None for field in _PPE_FIELDS):
        return PPE.name
    if "rejected" in row and str(row.get("subset")) in REWARDBENCH.sizes:
        return REWARDBENCH.name
    found = detect_format(row)
    return found[0] if found and found[0] in DEFINITIONS else PREFERENCES.name


def _items(
    path: str, split: str, definition: Definition, ledger: Ledger, models: dict[str, str]
) -> Iterator[BenchmarkItem]:
    """Items of one file; `models` are those of JudgeBench's answers so far, with a row of each."""
    num_damaged = len(ledger.entries)
    for line, row in iter_rows(path, ledger, split):
        _refuse_damaged(path, ledger, num_damaged)
        where = place(path, line)
        try:
            item = definition.item_of(row, f"{path} {split}")
        except PalateError as error:
            if error.reason in CANT_BE_SCORED:
                ledger.add(path, line, "row", error.reason, str(error), str(row.get("id") or ""))
                num_damaged += 1
                continue
            # What names the missing field lists those that are there.
            found = "" if error.reason == "missing field" else f"; this one has {field_names(row)}"
            raise PalateError(
                f"{where}: not a row of {definition.title}: {error}. Its rows have"
                f" {definition.fields}{found}{_hint(row, definition)}"
            ) from error
        if definition is JUDGEBENCH:
            models.setdefault(str(row.get("response_model") or _NO_MODEL), where)
            _refuse_two_models(models)
        yield replace(item, id=item.id or f"{Path(path).name}:{line}", file=path, line=line)
    _refuse_damaged(path, ledger, num_damaged)


def _refuse_damaged(path: str, ledger: Ledger, num_known: int) -> None:
    """A benchmark with an unreadable row is another benchmark."""
    if len(ledger.entries) > num_known:
        entry = ledger.entries[num_known]
        raise PalateError(
            f"{place(path, entry.line)}: {entry.reason}: {entry.detail}; get the file again"
        )


def _hint(row: Row, definition: Definition) -> str:
    shown = _benchmark_of(row)
    if shown in (definition.name, PREFERENCES.name):
        return ""
    return f". That is how {DEFINITIONS[shown].title} looks: read it as {shown}"


def _refuse_two_models(models: dict[str, str]) -> None:
    if len(models) > 1:
        (one, _), (other, where) = models.items()
        raise PalateError(
            f"{where}: its answers are by {other}, those before by {one}. JudgeBench is two sets"
            " of pairs with a number each (splits gpt and claude); give one of them"
        )


def _check_version(
    definition: Definition, items: Sequence[BenchmarkItem], paths: Sequence[str], ledger: Ledger
) -> None:
    if not items:
        raise PalateError(f"{', '.join(paths)}: no item is left:\n" + ledger.summary(0))
    for subset, number in Counter(item.subset for item in items).items():
        size = definition.sizes.get(subset, number)
        if number > size:
            raise PalateError(
                f"{', '.join(paths)}: {number} items of {subset}, but {definition.title} has"
                f" {size}; {definition.remedy}"
            )
    if definition is REWARDBENCH2:
        _refuse_repeated_ties(items)


def _refuse_repeated_ties(items: Sequence[BenchmarkItem]) -> None:
    """The two prompts of a number find each other by their ids."""
    first: dict[str, BenchmarkItem] = {}
    for item in items:
        former = first.setdefault(item.id, item) if item.subset == "Ties" else item
        if former is not item:
            raise PalateError(
                f"{item.where}: its id stands at {place(former.file, former.line)} already, and"
                " ref:N and tied:N of Ties are compared with each other by it; give each item once"
            )

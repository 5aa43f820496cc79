"""Benchmark prompts among the prompts that are trained on: any 13 words in a row, shared."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palate.artifacts.files import describe_os_error
from palate.artifacts.ledger import Ledger
from palate.audit.columns import Audited
from palate.audit.findings import MAX_EXAMPLES, Example, Finding, Skipped
from palate.audit.places import place_of, share, shortened
from palate.audit.settings import AuditSettings
from palate.errors import PalateError
from palate.preferences import PreferenceGroup
from palate.preferences.files.rows import iter_rows
from palate.text import normalise

NUM_WORDS = 13
"""Length of the shared run; the rule by which Skywork-Reward-V2 cleaned its data (2507.01352)."""
CHECK = "benchmark overlap"
_WORD = re.compile(r"\w+")
_TEXT_SUFFIXES = (".txt", ".text")


def runs_of(texts: Iterable[str]) -> Iterator[str]:
    """Every run of 13 words in each text, after normalisation and without punctuation.

    A text of fewer words is one run of its own, told apart from the start of a longer one, so that
    it is found only where the same text is a whole turn.
    """
    for text in texts:
        words = _WORD.findall(normalise(text))
        if len(words) >= NUM_WORDS:
            for start in range(len(words) - NUM_WORDS + 1):
                yield " ".join(words[start : start + NUM_WORDS])
        elif words:
            yield "\n" + " ".join(words)


@dataclass
class Benchmark:
    """The prompts of one file, by the runs of words that they hold."""

    file: str
    num_prompts: int = 0
    num_unreadable: int = 0
    """Rows without a prompt that is text or messages."""
    by_run: dict[str, list[int]] = field(default_factory=dict)
    lines: list[int] = field(default_factory=list)
    """Line of each prompt."""

    def add(self, line: int, turns: Sequence[str]) -> None:
        for run in set(runs_of(turns)):
            self.by_run.setdefault(run, []).append(self.num_prompts)
        self.lines.append(line)
        self.num_prompts += 1


def read_benchmark(file: str) -> Benchmark:
    """Prompts of a .jsonl, .json, .csv or .parquet file (plain or .gz), or the lines of a .txt.

    Rows hold the prompt under `prompt`: text, or messages, of which the user's turns count. Rows
    without one are counted and passed over. Raises PalateError when no row has one.
    """
    if not Path(file).is_file():
        raise PalateError(f"{file}: no such file of benchmark prompts; check the path")
    benchmark = Benchmark(file)
    keys: dict[str, None] = {}
    if Path(file).suffix in _TEXT_SUFFIXES:
        for line, text in _lines(file):
            benchmark.add(line, [text])
    else:
        ledger = Ledger()
        for line, row in iter_rows(file, ledger):
            turns = _turns(row.get("prompt"))
            keys.update(dict.fromkeys(row))
            if turns:
                benchmark.add(line, turns)
        benchmark.num_unreadable = ledger.num_rows_read - benchmark.num_prompts
    if not benchmark.num_prompts:
        found = f"; its rows have {', '.join(list(keys)[:10])}" if keys else ""
        raise PalateError(
            f"{file}: no benchmark prompts in it{found}; name the column prompt, with text or"
            " messages, or give one prompt a line in a .txt file"
        )
    return benchmark


def _lines(file: str) -> Iterator[tuple[int, str]]:
    try:
        with open(file, encoding="utf-8", errors="replace") as handle:
            for number, text in enumerate(handle, start=1):
                if text.strip():
                    yield number, text
    except OSError as error:
        raise describe_os_error(error, file, "read") from error


def _turns(prompt: Any) -> list[str]:
    """The user's turns of a prompt that is text or messages; none when it is neither."""
    if isinstance(prompt, str):
        return [prompt] if prompt.strip() else []
    if not isinstance(prompt, list):
        return []
    said = [
        (message.get("role"), message["content"])
        for message in prompt
        if isinstance(message, dict) and isinstance(message.get("content"), str)
    ]
    return [content for role, content in said if role == "user"] or [c for _, c in said]


def contamination_findings(
    audited: Audited,
    _: AuditSettings,
    benchmarks: Sequence[str],
    groups: Iterable[PreferenceGroup] | None = None,
) -> list[Finding | Skipped]:
    """How many prompts share a run of 13 words with a prompt of each benchmark file, and how many
    of the benchmark's are found.

    `groups` gives all prompts again, one by one, for data of which only a sample keeps its texts;
    without it the sample is searched and the finding says so. Only the user's turns count: system
    prompts are often shared for good reason. Raises PalateError for a file that can't be read.
    """
    indices = [read_benchmark(file) for file in benchmarks]
    hits = [_Hits(benchmark) for benchmark in indices]
    num_prompts = 0
    for group in audited.sample if groups is None else groups:
        num_prompts += 1
        turns = [message.content for message in group.prompt if message.role == "user"]
        runs = set(runs_of(turns or [message.content for message in group.prompt]))
        for hit in hits:
            hit.look(group, runs)
    whole = groups is not None or audited.is_whole
    return [hit.finding(num_prompts, whole) for hit in hits]


@dataclass
class _Hits:
    benchmark: Benchmark
    num_ours: int = 0
    theirs: set[int] = field(default_factory=set)
    examples: list[Example] = field(default_factory=list)

    def look(self, group: PreferenceGroup, runs: set[str]) -> None:
        shared = self.benchmark.by_run.keys() & runs
        if not shared:
            return
        self.num_ours += 1
        run = min(shared)
        for each in shared:
            self.theirs.update(self.benchmark.by_run[each])
        if len(self.examples) < MAX_EXAMPLES:
            line = self.benchmark.lines[self.benchmark.by_run[run][0]]
            self.examples.append(place_of(group, f"as line {line}: {shortened(run)}"))

    def finding(self, num_prompts: int, whole: bool) -> Finding:
        benchmark = self.benchmark
        rate = share(self.num_ours, num_prompts)
        unreadable = (
            f" {benchmark.num_unreadable} of its rows have no readable prompt."
            if benchmark.num_unreadable
            else ""
        )
        return Finding(
            check=CHECK,
            severity="error" if self.num_ours else "note",
            statistic=rate,
            threshold=0.0,
            n=num_prompts,
            what=(
                f"share of prompts that share {NUM_WORDS} words in a row (or all of a shorter"
                f" turn) with a prompt of {benchmark.file}"
            ),
            message=(
                f"{self.num_ours} of {num_prompts} prompts{'' if whole else ' of the sample'} share"
                f" {NUM_WORDS} words in a row with {benchmark.file}, and"
                f" {len(self.theirs)} of its {benchmark.num_prompts} prompts"
                f" ({share(len(self.theirs), benchmark.num_prompts):.1%}) are found." + unreadable
            ),
            examples=tuple(self.examples),
            fix=(
                "Take these prompts out before training, or don't report this benchmark."
                if self.num_ours
                else ""
            ),
            effect=max(rate, share(len(self.theirs), benchmark.num_prompts)),
        )

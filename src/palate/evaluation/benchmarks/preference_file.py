"""Any preference file as a benchmark: each prompt's share of comparisons won, averaged."""

from collections.abc import Sequence

from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.evaluation.benchmarks.definition import Definition, mean_of, pair_column
from palate.evaluation.benchmarks.items import BenchmarkItem
from palate.evaluation.benchmarks.judged import ALL
from palate.preferences import PreferenceGroup, ReadSettings, prompt_cluster, read
from palate.preferences.formats.fields import Row


def _refused(row: Row, file: str) -> BenchmarkItem:
    raise AssertionError("rows of preference files are read by palate.preferences")


PREFERENCES = Definition(
    name="preferences",
    title="a preference file",
    fields="those of docs/data.md",
    item_of=_refused,
    columns=pair_column,
    numbers={"accuracy": (mean_of("accuracy", ALL),)},
    headline="accuracy",
)


def read_preferences(
    sources: Sequence[str], settings: ReadSettings
) -> tuple[list[BenchmarkItem], Ledger]:
    """Items of all groups with a decided comparison; the others go to the ledger.

    Raises PalateError where none is left.
    """
    reading = read(list(sources), settings)
    ledger = reading.ledger
    items = [_item(group) for group in reading.groups]
    kept = [item for item in items if item.comparisons]
    for group, item in zip(reading.groups, items, strict=True):
        for line in () if item.comparisons else group.lines:
            ledger.add(group.file, line, "row", "no better answer", "its votes are even", group.id)
    pairs = zip(reading.groups, items, strict=True)
    ledger.check(sum(group.num_rows for group, item in pairs if item.comparisons))
    if not kept:
        raise PalateError(
            f"{', '.join(sources)}: no prompt has a better and a worse answer:\n"
            + ledger.summary(0)
        )
    return kept, ledger


def _item(group: PreferenceGroup) -> BenchmarkItem:
    decided = [c for c in group.comparisons if c.probability > 0.5 and c.tie < 1 and c.weight > 0]
    return BenchmarkItem(
        id=group.id or f"line {group.line}",
        subset=ALL,
        prompt=group.prompt,
        responses=group.responses,
        comparisons=tuple(decided),
        cluster=prompt_cluster(group.prompt),
        tools=group.tools,
        template_arguments=group.template_arguments,
        file=group.file,
        line=group.line,
    )

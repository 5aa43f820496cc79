"""JSON lines to one Parquet table, in bounded memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from palate.artifacts.files import atomic_path
from palate.errors import PalateError
from palate.text import first_surrogate

BATCH_BYTES = 16 * 2**20
MAX_ROWS_PER_BATCH = 4096


def jsonl_to_parquet(lines: Path, output: str, otherwise: str) -> None:
    """Two passes over the lines: one for the schema that fits all of them, one to write.

    Parquet holds valid Unicode only: a lone surrogate becomes a question mark. Raises PalateError,
    which ends in `otherwise` (what to do), where the rows don't fit one table.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        schemas = [table.schema for table in _tables(lines)]
        schema = pyarrow.unify_schemas(schemas, promote_options="permissive")
        with (
            atomic_path(output) as temporary,
            pyarrow.parquet.ParquetWriter(temporary, schema) as writer,
        ):
            for table in _tables(lines):
                missing = [name for name in schema.names if name not in table.column_names]
                for name in missing:
                    table = table.append_column(name, pyarrow.nulls(len(table)))
                writer.write_table(table.select(schema.names).cast(schema))
    except (pyarrow.ArrowException, OverflowError) as error:
        raise PalateError(
            f"{output}: the rows don't fit one table ({error}); {otherwise}"
        ) from error


def _tables(lines: Path) -> Iterator[Any]:
    import pyarrow

    with open(lines, encoding="utf-8") as handle:
        for batch in _batches(handle):
            names = dict.fromkeys(key for row in batch for key in row)
            yield pyarrow.table({name: [row.get(name) for row in batch] for name in names})


def _batches(lines: Iterator[str]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for line in lines:
        batch.append(_valid(json.loads(line)))
        size += len(line)
        if size >= BATCH_BYTES or len(batch) >= MAX_ROWS_PER_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _valid(value: Any) -> Any:
    text = json.dumps(value, ensure_ascii=False)
    return value if first_surrogate(text) is None else json.loads(text.encode("utf-8", "replace"))

"""Preference files with every kind of damage, and what must hold when they are read.

Run as a process of its own (a native crash of a library must not take the tests with it):
`python -m tests.mutated_files KIND FIRST COUNT FOLDER` prints one JSON object.
"""

import csv
import gzip
import io
import json
import random
import resource
import sys
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.preferences.readers import iter_groups
from palate.preferences.settings import ReadSettings

Row = dict[str, Any]
NUM_ROWS = 6
USER, GOOD, BAD = (
    {"role": "user", "content": "How do birds fly?"},
    {"role": "assistant", "content": "They flap."},
    {"role": "assistant", "content": "By magic."},
)
HH = "\n\nHuman: How do birds fly?\n\nAssistant:"
TWO = {"prompt": "How do birds fly?", "response1": "They flap.", "response2": "By magic."}
SEEDS: dict[str, Row] = {
    "canonical": {
        "prompt": [USER],
        "responses": [{"text": "a", "model": "m"}, {"text": "b", "finished": False}, {"text": "c"}],
        "votes": [{"annotator": "x", "ranking": [[1], [0, 2]], "strength": 2, "shown": [0, 2, 1]}],
        "comparisons": [{"better": 1, "worse": 0, "probability": 0.7, "tie": 0.1, "weight": 2.0}],
        "meta": {"year": 2020},
    },
    "ranked": {
        "prompt": "Name a bird.",
        "responses": [{"text": "a", "rating": 1}, {"text": "b", "rating": 5}],
    },
    "rated": {"prompt": "Name a bird.", "response": "A wren.", "helpfulness": 3},
    "pairs": {**TWO, "chosen": "They flap.", "rejected": "By magic.", "margin": 0.5, "tools": []},
    "implicit": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "hh": {"chosen": f"{HH} They flap.", "rejected": f"{HH} By magic."},
    "annotated": {**TWO, "annotator1": 1, "annotator2": 0, "annotator3": 2},
    "labelled": {**TWO, "preferred": "response1"},
    "helpsteer": {
        "context": [USER],
        "response1": "They flap.",
        "response2": "By magic.",
        "overall_preference": -2,
        "individual_preference": [{"score": -2, "reasoning": "r", "feedback": "f"}],
    },
    "ultrafeedback": {
        "instruction": "How do birds fly?",
        "completions": [
            {"response": "They flap.", "fine-grained_score": 4.5, "model": "m"},
            {"response": "By magic.", "fine-grained_score": 2.0, "model": "n"},
        ],
    },
    "nemo_rl": {
        "context": [USER],
        "completions": [{"rank": 0, "completion": [GOOD]}, {"rank": 1, "completion": [BAD]}],
    },
    "rewardbench": {
        "prompt": "q",
        "chosen": "a",
        "rejected": "b",
        "subset": "s",
        "chosen_model": "m",
        "rejected_model": "n",
    },
    "rewardbench2": {"prompt": "q", "chosen": ["a"], "rejected": ["b", "c"], "num_correct": 1},
    "rm_bench": {"prompt": "q", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]},
    "judgebench": {"question": "q", "response_A": "a", "response_B": "b", "label": "A>B"},
    "llmbar": {"input": "q", "output_1": "a", "output_2": "b", "label": 1},
    "argilla": {
        "fields": {"prompt": "q", "response1": "a", "response2": "b"},
        "responses": {"better": [{"value": "response1", "user_id": "u", "status": "submitted"}]},
    },
    "label_studio": {
        "data": {"prompt": "q", "answer1": "a", "answer2": "b"},
        "annotations": [
            {
                "completed_by": 1,
                "result": [{"type": "pairwise", "from_name": "w", "value": {"selected": "left"}}],
            }
        ],
    },
}
"""A good row of every format."""


def as_jsonl(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_json(rows: Sequence[Any]) -> bytes:
    return json.dumps(rows, indent=len(rows) % 2 or None, ensure_ascii=False).encode(
        errors="surrogatepass"
    )


def as_csv(rows: Sequence[Any]) -> bytes:
    rows = [row if isinstance(row, dict) else {"value": row} for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {k: v if isinstance(v, str | int | float) else json.dumps(v) for k, v in row.items()}
        )
    return text.getvalue().encode(errors="surrogatepass")


def as_parquet(rows: Sequence[Any]) -> bytes:
    """Columns of mixed types, which Parquet does not have, become columns of JSON texts."""
    rows = [row if isinstance(row, dict) else {"value": row} for row in rows]
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(name) for row in rows]
        named = name.encode(errors="replace").decode()
        try:
            columns[named] = pyarrow.array(values)
            table_bytes({named: columns[named]})
        except (pyarrow.ArrowException, OverflowError, UnicodeError):
            columns[named] = pyarrow.array([json.dumps(value) for value in values])
    return table_bytes(columns)


def table_bytes(columns: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer, row_group_size=3)
    return buffer.getvalue()


WRITERS: dict[str, Callable[[Sequence[Any]], bytes]] = {
    ".jsonl": as_jsonl,
    ".json": as_json,
    ".csv": as_csv,
    ".parquet": as_parquet,
}


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def odd_value(dice: random.Random) -> Any:
    return dice.choice(
        [
            *(None, True, 0, -1, 7, 2.5, float("nan"), float("inf"), -float("inf"), 10**400),
            *("", " ", "\ud800", "nul \x00", "tie", "[1", "{}", "\u2028", "x" * 5000, HH, "\ufeff"),
            *([], {}, [0], [[0], [1]], [[[0]]], ["a", 1], {"a": 1}, {"role": "user"}, [None]),
            *([USER, GOOD], [{"role": "user", "content": [{"type": ["x"]}]}], nested(60)),
            *(1e308, 2**63, -(2**63) - 1, "9" * 400, "1e999", [{}] * 50, {"": {}}),
        ]
    )


def disturbed(value: Any, dice: random.Random, share: float = 0.12) -> Any:
    """The value with parts of it replaced, deleted or repeated under another name."""
    if dice.random() < share:
        return odd_value(dice)
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if dice.random() > share / 3}
        if kept and dice.random() < share / 2:
            kept[dice.choice(["", "extra", "prompt", "\ud800", "responses"])] = dice.choice(
                list(kept.values())
            )
        return {k: disturbed(v, dice) if dice.random() < 0.5 else v for k, v in kept.items()}
    if isinstance(value, list):
        return [disturbed(item, dice) if dice.random() < 0.5 else item for item in value]
    return value


def flipped(data: bytes, dice: random.Random) -> bytes:
    mutated = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 5, 30])):
        if mutated:
            mutated[dice.randrange(len(mutated))] ^= 1 << dice.randrange(8)
    return bytes(mutated)


def cut(data: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(data) + 1) if dice.random() < 0.2 else 0
    return data[start : dice.randrange(start, len(data) + 1)]


def inserted(data: bytes, dice: random.Random) -> bytes:
    for _ in range(dice.choice([1, 1, 3])):
        position = dice.randrange(len(data) + 1)
        piece = dice.choice(
            [
                *(b"\x00", b"\xff", b"\n", b"\r\n", b'"', b"\\", b",", b"{", b"}", b"[", b"]"),
                *(b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc3", b"[" * 3000, b"9" * 6000, b'{"a":'),
                *(dice.randbytes(20), data[position : position + dice.randrange(200)]),
            ]
        )
        data = data[:position] + piece + data[position:]
    return data


def deleted(data: bytes, dice: random.Random) -> bytes:
    start = dice.randrange(len(data) + 1)
    return data[:start] + data[start + dice.choice([1, 1, 5, 100]) :]


def repeated_field(data: bytes, dice: random.Random) -> bytes:
    return data.replace(b"{", b'{"prompt": "again", "prompt": "and again", ', 1)


def recoded(data: bytes, dice: random.Random) -> bytes:
    text = data.decode(errors="replace") + dice.choice(["", "é ü", "日本"])
    encoding = dice.choice(
        ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "utf-8-sig", "utf-7", "cp037"]
    )
    return text.encode(encoding, errors="replace")


BYTES: list[Callable[[bytes, random.Random], bytes]] = [
    *(flipped, cut, inserted, deleted, repeated_field, recoded)
]


def damaged_gzip(data: bytes, dice: random.Random) -> bytes:
    packed = gzip.compress(data, mtime=0)
    return dice.choice(
        [
            lambda: flipped(packed, dice),
            lambda: cut(packed, dice),
            lambda: packed + b"what follows",
            lambda: packed + packed,
            lambda: gzip.compress(packed, mtime=0),
            lambda: packed[:10] + packed[14:],
            lambda: zlib.compress(data),
            lambda: data,
        ]
    )()


def mutated_file(kind: str, seed: int) -> tuple[str, bytes, bytes | None]:
    """(name, bytes, what the reader sees unpacked; None where the packing is damaged)."""
    dice = random.Random(f"{kind} {seed}")
    suffix = kind.removesuffix(".gz")
    name = list(SEEDS)[seed % len(SEEDS)]
    rows: list[Any] = [{**SEEDS[name], "id": str(i)} for i in range(NUM_ROWS)]
    how = dice.choice(["rows", "rows", "bytes", "bytes", "both", "name", "none"])
    if how in ("rows", "both"):
        rows = [disturbed(row, dice) if dice.random() < 0.5 else row for row in rows]
    data = WRITERS[suffix](rows)
    if how in ("bytes", "both"):
        for _ in range(dice.choice([1, 1, 2])):
            data = dice.choice(BYTES)(data, dice)
    if how == "name":
        suffix = dice.choice(list(WRITERS))
    if not kind.endswith(".gz"):
        return f"m{suffix}", data, data
    if dice.random() < 0.4:
        return f"m{suffix}.gz", damaged_gzip(data, dice), None
    return f"m{suffix}.gz", gzip.compress(data, compresslevel=1, mtime=0), data


def count_rows(name: str, data: bytes) -> int | None:
    """Rows of a file, counted without our reader; None where its structure is past counting."""
    try:
        if ".parquet" in name:
            return int(
                pyarrow.parquet.ParquetFile(io.BytesIO(data)).read(use_threads=False).num_rows
            )
        if ".csv" in name:
            text = io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline="")
            return max(0, sum(bool(cells) for cells in csv.reader(text, strict=True)) - 1)
        if ".jsonl" in name or not data.removeprefix(b"\xef\xbb\xbf").strip().startswith(b"["):
            return sum(bool(line.strip()) for line in data.split(b"\n"))
        return len(json.loads(data.decode("utf-8-sig")))
    except (ValueError, RecursionError, OSError, csv.Error, pyarrow.ArrowException):
        return None


def read_one(path: Path, visible: bytes | None, ledger: Ledger) -> str:
    """What came of a file: refused, unreadable or read. AssertionError where rows are lost."""
    num_kept = 0
    lines: list[int] = []
    try:
        for group in iter_groups(str(path), ReadSettings(), ledger):
            num_kept += group.num_rows
            lines += group.lines
    except PalateError as error:
        check_message(str(error), path)
        if ledger.num_rows_read == 0:
            check_refusal(str(error), path, visible)
            return "refused"
    else:
        ledger.check(num_kept)
        lines += [entry.line for entry in ledger.entries if entry.kind == "row"]
        assert len(lines) == len(set(lines)) == ledger.num_rows_read
    assert all(len(entry.reason) < 60 for entry in ledger.entries)
    ledger.summary(num_kept).encode()
    num_rows = None if visible is None else count_rows(path.name, visible)
    if num_rows is not None:
        assert ledger.num_rows_read == num_rows, (ledger.num_rows_read, num_rows)
        return f"counted, {'some kept' if num_kept else 'none kept'}"
    return "past counting"


WHOLE_FILE_REFUSALS = (
    *("not readable as Parquet", "names a column twice", "malformed CSV header", "in UTF-16"),
    *("it is gzipped", "it is not gzipped", "a Parquet file", "no rows in it", "not UTF-8"),
)


def check_message(message: str, path: Path) -> None:
    """It names the file, is no page long, and can be printed."""
    assert message.startswith(f"{path}"), message
    assert len(message) < 5000
    message.encode()


def check_refusal(message: str, path: Path, visible: bytes | None) -> None:
    """A whole file is refused for what it is, or because there is not one row in it."""
    assert any(why in message for why in WHOLE_FILE_REFUSALS), message
    if "no rows in it" in message and visible is not None:
        assert count_rows(path.name, visible) in (None, 0)


def main(kind: str, first: int, count: int, folder: Path) -> None:
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    before_kb = 0
    for seed in range(first, first + count):
        name, data, visible = mutated_file(kind, seed)
        path = folder / name
        path.write_bytes(data)
        (folder / "seed").write_text(str(seed))
        try:
            outcomes[read_one(path, visible, Ledger())] += 1
        except Exception:  # whatever it is, it is a failure, and belongs to its seed
            failures.append(f"{kind} {seed}: {traceback.format_exc()[-1500:]}")
        if seed == first + count // 10:
            before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    print(json.dumps({"outcomes": outcomes, "failures": failures, "grown_kb": grown_kb}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))

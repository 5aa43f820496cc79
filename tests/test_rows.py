"""Files of any size and in any state give up their rows, each once, in bounded memory."""

import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palate.artifacts import ledger as ledger_module
from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.preferences.files import json_records, records
from palate.preferences.files.rows import iter_rows

Row = dict[str, Any]
ROWS: list[Row] = [
    {
        "prompt": f"question {i}",
        "responses": [{"text": f"{{a}} {i}, [b]"}, {"text": 'say "c\\\\"'}],
        "margin": i / 2,
        "n": i,
    }
    for i in range(6)
]
LAYOUTS = {
    "one line": json.dumps(ROWS),
    "indented": json.dumps(ROWS, indent=2),
    "dense": json.dumps(ROWS, separators=(",", ":")),
    "one record a line": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "marked": "\ufeff  \n" + json.dumps(ROWS) + "\n\n",
}


def taken(path: Path, data: bytes | None = None) -> tuple[list[tuple[int, Row]], Ledger]:
    """Rows with their lines, and the ledger, whose sum is checked."""
    if data is not None:
        path.write_bytes(data)
    ledger = Ledger()
    rows = list(iter_rows(str(path), ledger))
    ledger.check(len(rows))
    return rows, ledger


def places(ledger: Ledger) -> list[tuple[str, int, str]]:
    return [(entry.kind, entry.line, entry.reason) for entry in ledger.entries]


def refusal(path: Path, data: bytes) -> str:
    with pytest.raises(PalateError) as refused:
        taken(path, data)
    return str(refused.value)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 1 << 18])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_json_list_gives_its_records_with_their_numbers_however_it_is_cut_into_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, chunk_bytes: int
) -> None:
    monkeypatch.setattr(json_records, "CHUNK_BYTES", chunk_bytes)
    rows, ledger = taken(tmp_path / "a.json", LAYOUTS[layout].encode())
    assert rows == list(enumerate(ROWS, start=1))
    assert ledger.entries == []


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(values, min_size=1, max_size=6), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_every_json_list_is_divided_as_the_parser_of_the_whole_would(
    elements: list[Any], indent: Any, ascii_only: bool
) -> None:
    text = json.dumps(elements, indent=indent, ensure_ascii=ascii_only)
    found = list(json_records.json_list_or_lines(io.BytesIO(text.encode(errors="surrogatepass"))))
    expected = [v.encode(errors="replace").decode() if isinstance(v, str) else v for v in elements]
    if "\\ud" not in json.dumps(elements):
        assert found == list(enumerate(expected, start=1))
    assert [number for number, _ in found] == list(range(1, len(elements) + 1))


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        ('{"prompt": "question 2", "margin": 1.}', "malformed JSON"),
        ('{"prompt": "question 2" "margin": 1}', "malformed JSON"),
        ('{"prompt": "question 2", "responses": [}', "malformed JSON"),
        ('{"prompt": "question 2", "responses": [}]', "malformed JSON"),
        ('{"prompt": "question 2, "margin": 1}', "malformed JSON"),
        ('{"prompt": "question 2", "margin": 1', "malformed JSON"),
        ('["prompt": "question 2", "margin": 1}', "malformed JSON"),
        ('{"prompt": "question 2", "margin": 1]', "malformed JSON"),
        ('"prompt": "question 2", "margin": 1}', "malformed JSON"),
        ('{"prompt": "question 2", "prompt": "again"}', "repeated field"),
        ("17", "not an object"),
        ('"question 2"', "not an object"),
        ("[" * 100_000 + "]" * 100_000, "malformed JSON"),
        ('{"prompt": ' + "9" * 5000 + "}", "malformed JSON"),
        (b'{"prompt": "caf\xe9"}', "not UTF-8"),
    ],
)
@pytest.mark.parametrize("separator", [", ", ",\n  "])
def test_a_damaged_record_of_a_json_list_hides_no_other(
    tmp_path: Path, damaged: str | bytes, reason: str, separator: str
) -> None:
    """The third of six records is damaged, some so that its quotes or brackets run on."""
    pieces = [json.dumps(row).encode() for row in ROWS]
    pieces[2] = damaged.encode() if isinstance(damaged, str) else damaged
    data = b"[" + separator.encode().join(pieces) + b"]"
    rows, ledger = taken(tmp_path / "a.json", data)
    assert [row["n"] for _, row in rows] == [0, 1, 3, 4, 5]
    assert [line for line, _ in rows] == [1, 2, 4, 5, 6]
    assert places(ledger) == [("row", 3, reason)]


def test_parts_of_a_damaged_record_are_not_taken_for_records(tmp_path: Path) -> None:
    """Its parts start with the key that records start with; they lack the records' other keys."""
    rows = [
        {"id": i, "prompt": "q", "responses": [{"id": k, "text": f"t{k}"} for k in range(4)]}
        for i in range(5)
    ]
    pieces = [json.dumps(row) for row in rows]
    pieces[2] = pieces[2].replace('"responses": [', '"responses": ')
    found, ledger = taken(tmp_path / "a.json", f"[{', '.join(pieces)}]".encode())
    assert [row["id"] for _, row in found] == [0, 1, 3, 4]
    assert places(ledger) == [("row", 3, "malformed JSON")]


def test_any_damage_inside_one_record_of_a_json_list_leaves_all_others(tmp_path: Path) -> None:
    """1,500 records with bytes flipped, deleted or inserted between their braces."""
    pieces = [json.dumps(row).encode() for row in ROWS]
    for seed in range(1500):
        dice = random.Random(seed)
        index = dice.randrange(len(ROWS))
        record = bytearray(pieces[index])
        for _ in range(dice.choice([1, 1, 2, 6])):
            position = dice.randrange(len(record))
            match dice.randrange(3):
                case 0:
                    record[position] ^= 1 << dice.randrange(8)
                case 1:
                    del record[position : position + dice.randrange(1, 9)]
                case 2:
                    record[position:position] = dice.choices(b'{}[]",:\\x0', k=2)
        data = b", ".join([*pieces[:index], bytes(record), *pieces[index + 1 :]])
        rows, _ = taken(tmp_path / "a.json", b"[" + data + b"]")
        whole = [row for _, row in rows if row in ROWS]
        others = [row for i, row in enumerate(ROWS) if i != index]
        assert [row for row in whole if row != ROWS[index]] == others, (seed, bytes(record))


@pytest.mark.parametrize(
    ("data", "num_rows", "entries"),
    [
        (b'[{"n": 0}, {"n": 1}', 2, [("file", 2)]),
        (b'[{"n": 0}, {"n": 1', 1, [("row", 2), ("file", 2)]),
        (b'[{"n": 0}, {"n": 1}] {"n": 2}', 3, [("file", 2), ("file", 3)]),
        (b'[{"n": 0}, {"n": 1}] what', 2, [("file", 2), ("row", 3), ("file", 3)]),
        (b'[{"n": 0} {"n": 1}]', 2, []),
        (b'[,{"n": 0},, {"n": 1},]', 2, []),
        (b'{"n": 0}\n{"n": 1}\n', 2, []),
        (b'\n\n  \n{"n": 0}\n{"n": 1}\n', 2, []),
    ],
)
def test_the_ends_and_separators_of_a_json_list(
    tmp_path: Path, data: bytes, num_rows: int, entries: list[tuple[str, int]]
) -> None:
    rows, ledger = taken(tmp_path / "a.json", data)
    assert [row["n"] for _, row in rows] == list(range(num_rows))
    assert [(entry.kind, entry.line) for entry in ledger.entries] == entries


def long_rows(lengths: Sequence[int]) -> list[Row]:
    return [{"n": i, "text": "x" * length} for i, length in enumerate(lengths)]


def as_csv(rows: Sequence[Row]) -> bytes:
    return b"n,text\n" + "".join(f'{r["n"]},"{r["text"]}"\n' for r in rows).encode()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", lambda rows: "".join(json.dumps(r) + "\n" for r in rows).encode()),
        ("a.json", lambda rows: json.dumps(rows).encode()),
        ("a.json", lambda rows: json.dumps(rows, indent=1).encode()),
        ("a.csv", as_csv),
    ],
)
@pytest.mark.parametrize("length", [1001, 40_000])
def test_a_record_over_the_limit_goes_to_the_ledger_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Any, length: int
) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(json_records, "CHUNK_BYTES", 100)
    first = 2 if name == "a.csv" else 1
    rows, ledger = taken(tmp_path / name, write(long_rows([900, length, 5, length, 900])))
    assert [row["text"] for _, row in rows] == ["x" * 900, "xxxxx", "x" * 900]
    assert [line for line, _ in rows] == [first, first + 2, first + 4]
    assert places(ledger) == [("row", line, "over-long record") for line in (first + 1, first + 3)]


def test_a_csv_cell_of_many_lines_over_the_limit_ends_at_its_own_quote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines: 1 header, 2 a row, 3 to 503 one row with doubled quotes in it, 504 a row, 505 to 605
    one row that is cut: of it nothing can be read any more."""
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 1000)
    long = '1,"' + 'a ""b"", c\n' * 500 + 'end"\n'
    data = f"n,text\n0,a\n{long}2,b\n"
    rows, ledger = taken(tmp_path / "a.csv", data.encode())
    assert [(line, row["n"]) for line, row in rows] == [(2, "0"), (504, "2")]
    assert places(ledger) == [("row", 503, "over-long record")]
    rows, ledger = taken(
        tmp_path / "a.csv", (data + '3,"' + "cut off here\n" * 99 + "cut").encode()
    )
    assert [row["n"] for _, row in rows] == ["0", "2"]
    assert places(ledger)[1:] == [
        ("row", 604, "over-long record"),
        ("file", 504, "cut or damaged after this line"),
    ]


def test_a_quote_that_is_never_closed_is_said_to_swallow_the_rest_of_a_csv(tmp_path: Path) -> None:
    rows, ledger = taken(tmp_path / "a.csv", b'n,text\n0,a\n1,"b\n2,c\n3,d\n')
    assert [row["n"] for _, row in rows] == ["0"]
    assert places(ledger) == [
        ("row", 5, "malformed CSV"),
        ("file", 2, "cut or damaged after this line"),
    ]
    assert "lines 3 to 5" in ledger.entries[0].detail
    assert "line 3 or later is never closed" in ledger.entries[1].detail


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", gzip.compress(b'{"n": 1}', mtime=0), "gzipped; let its name end in .gz"),
        ("a.jsonl.gz", b'{"n": 1}', "not gzipped; take .gz off its name"),
        ("a.csv.gz", gzip.compress(gzip.compress(b"n\n1\n", mtime=0), mtime=0), "gzipped"),
        ("a.jsonl", '{"n": "é"}\n'.encode("utf-16"), "in UTF-16; convert it to UTF-8"),
        ("a.json", b"\xfe\xff" + '[{"n": 1}]'.encode("utf-16-be"), "UTF-16"),
        ("a.csv", "n\n1\n".encode("utf-16"), "UTF-16"),
        ("a.csv", b"PAR1....PAR1", "a Parquet file; let its name end in .parquet"),
        ("a.parquet", b'{"n": 1}', "not readable as Parquet"),
    ],
)
def test_a_file_of_another_kind_than_its_name_says_is_named(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    message = refusal(tmp_path / name, data)
    assert message.startswith(str(tmp_path / name))
    assert said in message


def parquet_file(path: Path, num_rows: int, **options: Any) -> bytes:
    table = pyarrow.table(
        {"n": list(range(num_rows)), "text": [f"text {i} " + "ab" * 50 for i in range(num_rows)]}
    )
    pyarrow.parquet.write_table(table, path, use_dictionary=False, **options)
    return path.read_bytes()


def test_a_damaged_row_group_of_a_parquet_file_hides_no_other(tmp_path: Path) -> None:
    """Four groups of 100 rows; the compressed texts of the second are overwritten. Which of its
    rows are lost is known from the file's own index."""
    path = tmp_path / "a.parquet"
    data = bytearray(parquet_file(path, 400, row_group_size=100, compression="zstd"))
    column = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(1)
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle : middle + 40] = b"\xff" * 40
    rows, ledger = taken(path, bytes(data))
    assert [row["n"] for _, row in rows] == [*range(100), *range(200, 400)]
    assert [line for line, _ in rows] == [*range(1, 101), *range(201, 401)]
    assert places(ledger) == [("file", 100, "cut or damaged after this line")]
    assert "rows 101 to 200 can't be read" in ledger.entries[0].detail


def test_a_value_that_python_does_not_have_spoils_its_own_row(tmp_path: Path) -> None:
    """A date 300,000 years ahead: Arrow holds it, Python's calendar ends in 9999."""
    days = pyarrow.array([0, 100_000_000, 1], pyarrow.int32()).cast(pyarrow.date32())
    pyarrow.parquet.write_table(pyarrow.table({"n": [0, 1, 2], "on": days}), tmp_path / "a.parquet")
    rows, ledger = taken(tmp_path / "a.parquet")
    assert [(line, row["n"]) for line, row in rows] == [(1, 0), (3, 2)]
    assert places(ledger) == [("row", 2, "unreadable value")]


def test_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array([2])], names=["n", "n"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(PalateError, match="names a column twice"):
        taken(tmp_path / "a.parquet")


NUM_BIG_ROWS = 50_000
TEXT = "word " * 790 + "\nend of it"


def big_pieces(suffix: str) -> Iterator[str]:
    """200 MB in 50,000 rows."""
    if suffix == ".json":
        yield "["
    if suffix == ".csv":
        yield "n,text\n"
    for number in range(NUM_BIG_ROWS):
        if suffix == ".csv":
            yield f'{number},"{TEXT}"\n'
        else:
            separator = "," if suffix == ".json" and number else ""
            yield separator + json.dumps({"n": number, "text": TEXT}) + "\n"
    if suffix == ".json":
        yield "]"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_two_hundred_megabytes_through_gzip_take_a_few(tmp_path: Path, suffix: str) -> None:
    """The file is 2 MB; Python's own allocations while it is read stay under 4 MB."""
    path = tmp_path / f"big{suffix}.gz"
    with gzip.open(path, "wt", compresslevel=1, newline="") as handle:
        handle.writelines(big_pieces(suffix))
    ledger = Ledger()
    rows = iter_rows(str(path), ledger)
    next(rows)  # whatever is imported only now
    tracemalloc.start()
    num_rows = 1 + sum(1 for _ in rows)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_rows == NUM_BIG_ROWS
    assert ledger.entries == []
    assert peak_bytes < 4e6


@pytest.mark.parametrize("packed", [False, True])
def test_a_parquet_file_of_one_large_row_group_is_read_a_few_rows_at_a_time(
    tmp_path: Path, packed: bool
) -> None:
    """60 MB of texts in one row group; Arrow's pool stays under 20 MB."""
    texts = [random.Random(i).randbytes(3000).hex() for i in range(10_000)]
    path = tmp_path / "big.parquet"
    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(table, path, use_dictionary=False, compression="none")
    del table
    if packed:
        path = tmp_path / "big.parquet.gz"
        path.write_bytes(gzip.compress((tmp_path / "big.parquet").read_bytes(), 1))
    before = pyarrow.total_allocated_bytes()
    most = 0
    for number, (_, row) in enumerate(iter_rows(str(path), Ledger())):
        assert row["text"] == texts[number]
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert number == 9999
    assert most < 20e6


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_a_line_longer_than_the_limit_is_never_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """One line of 100 MB, 100 kB gzipped, with a limit of 1 MiB: at most 4 of it are held."""
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 2**20)
    path = tmp_path / f"bomb{suffix}.gz"
    before, after = {
        ".jsonl": (b'{"n": "', b'"}\n{"n": "1"}\n'),
        ".json": (b'[{"n": "', b'"}, {"n": "1"}]'),
        ".csv": (b"n\n", b"\n1\n"),
    }[suffix]
    with gzip.open(path, "wb", compresslevel=1) as handle:
        handle.write(before)
        for _ in range(100):
            handle.write(b"0" * 10**6)
        handle.write(after)
    tracemalloc.start()
    rows, ledger = taken(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [row for _, row in rows] == [{"n": "1"}]
    assert [entry.reason for entry in ledger.entries] == ["over-long record"]
    assert peak_bytes < (8 if suffix == ".csv" else 4) * 2**20


def test_a_ledger_of_nothing_but_damage_lies_on_the_disk_and_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def filled(num_in_memory: int) -> Ledger:
        monkeypatch.setattr(ledger_module, "MAX_ENTRIES_IN_MEMORY", num_in_memory)
        ledger = Ledger(num_rows_read=100)
        for line in range(1, 101):
            ledger.add("é.jsonl", line, "row", f"reason {line % 3}", "\ud800 \n", f"id {line}")
        return ledger

    kept, spilled = filled(1000), filled(10)
    assert kept.entries == spilled.entries
    assert spilled.entries[-1].line == 100
    assert [entry.line for entry in spilled.entries[8:14:2]] == [9, 11, 13]
    assert kept.summary(0) == spilled.summary(0)
    spilled.check(0)
    kept.write(tmp_path / "kept.jsonl")
    spilled.write(tmp_path / "spilled.jsonl")
    assert (tmp_path / "kept.jsonl").read_bytes() == (tmp_path / "spilled.jsonl").read_bytes()
    both = Ledger()
    both.extend(spilled)
    assert both.entries == kept.entries
    spilled.add("é.jsonl", 50, "row", "again")
    with pytest.raises(AssertionError, match="in the ledger twice"):
        spilled.check(0)


def test_memory_of_a_ledger_does_not_grow_with_its_details(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """20,000 entries of 500 characters are 10 MB of details; 1,000 entries at most are held."""
    monkeypatch.setattr(ledger_module, "MAX_ENTRIES_IN_MEMORY", 1000)
    ledger = Ledger()
    tracemalloc.start()
    for line in range(20_000):
        ledger.add("a.jsonl", line, "row", "malformed JSON", f"{line} " + "x" * 1000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ledger.entries) == 20_000
    assert peak_bytes < 2e6

"""Ten thousand damaged files: each is read, accounted for or refused, in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from palate.artifacts.ledger import Ledger
from palate.preferences.formats.detect import FORMATS
from tests.mutated_files import NUM_ROWS, SEEDS, WRITERS, mutated_file, read_one

NUM_FILES = 1250
"""Of each of the eight kinds: 10,000 in all."""
MAX_GROWN_KB = 20_000


def test_every_format_has_a_seed_that_is_read(tmp_path: Path) -> None:
    """Six rows of each format come through in each kind of file that can hold them."""
    assert set(SEEDS) == set(FORMATS)
    for suffix, write in WRITERS.items():
        for name, row in SEEDS.items():
            path = tmp_path / f"{name}{suffix}"
            path.write_bytes(write([{**row, "id": str(i)} for i in range(NUM_ROWS)]))
            assert read_one(path, path.read_bytes(), Ledger()).startswith("counted"), path


@pytest.mark.parametrize("packing", ["", ".gz"])
@pytest.mark.parametrize("suffix", WRITERS)
def test_damaged_files_never_crash_lose_a_row_or_take_memory(
    tmp_path: Path, suffix: str, packing: str
) -> None:
    """In a process of their own, whose peak of resident memory may grow by 20 MB.

    Not one raises anything but a PalateError that names the file. Rows read are rows in groups and
    rows in the ledger, each line once. Wherever the rows can be counted without our reader (whole
    lines; a list or table that the standard parser takes) the number is the same; that is so for
    at least a quarter of the files.
    """
    kind = f"{suffix}{packing}"
    worker = [sys.executable, "-m", "tests.mutated_files", kind, "0", str(NUM_FILES), str(tmp_path)]
    root = Path(__file__).parent.parent
    done = subprocess.run(worker, cwd=root, capture_output=True, text=True, timeout=600)
    seed = tmp_path / "seed"
    last = seed.read_text() if seed.exists() else "none"
    assert done.returncode == 0, f"{kind} seed {last}: {done.returncode} {done.stderr[-2000:]}"
    found = json.loads(done.stdout)
    assert found["failures"] == []
    outcomes = found["outcomes"]
    assert sum(outcomes.values()) == NUM_FILES
    assert found["grown_kb"] < MAX_GROWN_KB
    num_counted = outcomes["counted, some kept"] + outcomes["counted, none kept"]
    assert num_counted > NUM_FILES / 4
    assert outcomes["counted, some kept"] > NUM_FILES / 5


def test_the_same_seed_makes_the_same_file() -> None:
    assert mutated_file(".csv.gz", 77) == mutated_file(".csv.gz", 77)
    files = {mutated_file(".jsonl", seed)[1] for seed in range(200)}
    assert len(files) > 150

"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real preference data. Set and missing: failure; unset: a skip that says so."""
    folder = os.environ.get("PALATE_TEST_DATA")
    if folder is None:
        pytest.skip("set PALATE_TEST_DATA to the folder that holds hh_harmless.jsonl.gz and others")
    path = Path(folder)
    assert path.is_dir(), f"PALATE_TEST_DATA is {folder}, which is no folder"
    return path

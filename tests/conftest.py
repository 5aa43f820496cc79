"""Fixtures that several test files share."""

import json
import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# The same examples everywhere and always, and no clock: CI machines are shared and slow.
settings.register_profile("palate", derandomize=True, deadline=None)
settings.load_profile("palate")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests neither read nor write what the person who runs them has cached.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="palate-tests-")
# Tiny models spend more time on waking threads than on arithmetic.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real preference data. Set and missing: failure; unset: a skip that says so."""
    folder = os.environ.get("PALATE_TEST_DATA")
    if folder is None:
        pytest.skip("set PALATE_TEST_DATA to the folder that holds hh_harmless.jsonl.gz and others")
    path = Path(folder)
    assert path.is_dir(), f"PALATE_TEST_DATA is {folder}, which is no folder"
    return path


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny llama on 40 groups of K = 2 and 3; its data lie beside it.

    The good answers name what was asked for, the bad ones something else, so that rewards differ.
    """
    import palate
    from palate.pipeline.config import SplitSettings
    from palate.training.settings import TrainingSettings
    from tests.tiny import save_tiny

    folder = tmp_path_factory.mktemp("trained")
    words = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron")
    rows = [
        {
            "prompt": f"Question {i}: which of the words in this list stands for {words[i % 8]}?",
            "responses": [
                f"It is {words[i % 8]}.",
                f"No {words[(i + 1) % 8]}!",
                f"No {words[(i + 3) % 8]}!",
            ][: 2 + i % 2],
            "ranking": [0, 1, 2][: 2 + i % 2],
        }
        for i in range(40)
    ]
    data = folder / "preferences.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = palate.TrainConfig(
        model=save_tiny(folder / "body"),
        data=str(data),
        output=str(folder / "run"),
        split=SplitSettings(validation_share=0.2, test_share=0.2),
        training=TrainingSettings(epochs=3, prompts_per_step=8, learning_rate=3e-3),
    )
    palate.train(config)
    return folder / "run"

"""The quickstart as a user runs it: what `make quickstart` left, or a run of our own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import palate
from palate.artifacts.files import sha256_file
from palate.pipeline.quickstart import (
    STARTER_SET,
    QuickstartConfig,
    quickstart,
    quickstart_run,
    shown_groups,
)

LEFT_BY_MAKE = Path(__file__).parent.parent / "runs" / "quickstart"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    stored = LEFT_BY_MAKE / "run.json"
    if (LEFT_BY_MAKE / "metrics.json").exists():
        hashes = json.loads(stored.read_text())["data_sha256"]
        if list(hashes.values()) == [sha256_file(STARTER_SET)]:
            return LEFT_BY_MAKE
    directory = tmp_path_factory.mktemp("quickstart") / "run"
    said: list[str] = []
    quickstart(QuickstartConfig(output=str(directory)), said.append)
    assert any("prompt-blind" in line for line in said)
    for group in shown_groups(quickstart_run(str(directory), 0)):
        assert any(group.prompt[-1].content in line for line in said)
    return directory


def metrics_of(run: Path) -> dict[str, Any]:
    report = json.loads((run / "metrics.json").read_text())
    return dict(report["metrics"][report["measured_on"]])


@pytest.mark.slow
def test_the_model_beats_a_classifier_that_never_sees_the_prompt(run: Path) -> None:
    """On held-out prompt clusters, by a paired interval, and by more than five points."""
    difference = metrics_of(run)["accuracy minus prompt-blind"]
    assert difference["low"] > 0
    assert difference["value"] > 0.05


@pytest.mark.slow
def test_the_saved_model_gives_plain_transformers_the_same_rewards(run: Path) -> None:
    scorer = palate.load(run)
    model = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    for group in shown_groups(quickstart_run(str(run), 0)):
        prompt = [message.as_dict() for message in group.prompt]
        for answer in (response.text for response in group.responses):
            messages = [*prompt, {"role": "assistant", "content": answer}]
            inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
            with torch.no_grad():
                plain = model(**inputs).logits[0, 0].item()
            assert scorer.score(prompt, answer) == pytest.approx(plain, abs=1e-5)


@pytest.mark.slow
def test_the_report_and_card_are_there(run: Path) -> None:
    accuracy = metrics_of(run)["accuracy"]["value"]
    assert f"{accuracy:.3f}" in (run / "report.html").read_text()
    assert f"{accuracy:.3f}" in (run / "model" / "README.md").read_text()

"""Preparing on disk gives what preparing in memory gives."""

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from palate.errors import PalateError
from palate.pipeline.config import SplitSettings, TrainConfig
from palate.pipeline.prepare import Prepared, prepare
from palate.pipeline.prepare_stream import prepare_on_disk
from palate.pipeline.train import train
from palate.preferences import ReadSettings, Source, VoteSettings
from palate.rendering import LengthSettings, Renderer, RenderSettings, tokeniser
from palate.rendering.settings import NO_CACHE
from tests.runs import pair_rows, quick_config, write_rows
from tests.tiny import byte_tokenizer


def long_rows(count: int) -> list[dict[str, Any]]:
    """Pairs of which some answers, and some rows, are lost in rendering or before."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        dice = random.Random(number)
        texts = [f"{k} " + "y" * dice.randrange(1, 60) for k in range(3)]
        row = {"prompt": f"question {number // 2} " + "x" * dice.randrange(80)}
        rows.append({**row, "responses": texts, "ranking": [0, 1, 2]})
    rows[3] = {**rows[3], "responses": ["", "b"]}
    rows[5] = {"prompt": "q"}
    return rows


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        model="model",
        data=write_rows(tmp_path / "rows.jsonl", long_rows(120)),
        validation={"more": write_rows(tmp_path / "more.jsonl", pair_rows(10, first=50))},
    )


@pytest.fixture
def renderer() -> Renderer:
    lengths = LengthSettings(max_prompt_tokens=60, max_response_tokens=40)
    return Renderer(byte_tokenizer(), lengths)


def as_values(prepared: Prepared) -> dict[str, Any]:
    """All of it, the ledger's entries without their order."""
    return {
        "train": list(prepared.train),
        "validation": {name: list(part) for name, part in prepared.validation.items()},
        "test": list(prepared.test),
        "entries": Counter(map(str, prepared.ledger.entries)),
        "num_rows": (prepared.num_rows, prepared.ledger.num_rows_read),
        "formats": prepared.formats,
        "manifest": prepared.manifest,
        "data_sha256": prepared.data_sha256,
        "left_out": prepared.left_out,
    }


@pytest.mark.filterwarnings("ignore:.*of the validation set")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"split": SplitSettings(num_folds=3, fold=1)},
        {"split": SplitSettings(validation_share=0.0, test_share=0.3, salt="other")},
        {"read": ReadSettings(merge_prompts=True)},
        {"validation": {}},
    ],
)
def test_parts_manifest_and_ledger_are_those_of_preparing_in_memory(
    tmp_path: Path, config: TrainConfig, renderer: Renderer, changes: dict[str, Any]
) -> None:
    config = replace(config, **changes)
    expected = as_values(prepare(config, renderer))
    assert expected["left_out"]
    assert expected["entries"].total() > 10
    assert len(expected["train"]) > 40
    found = prepare_on_disk(config, renderer, tmp_path / "stores")
    assert as_values(found) == expected


@pytest.mark.filterwarnings("ignore:.*of the validation set")
@pytest.mark.parametrize("how", [prepare, prepare_on_disk])
def test_with_cache_and_workers_all_is_the_same_and_in_the_same_order(
    tmp_path: Path,
    config: TrainConfig,
    renderer: Renderer,
    monkeypatch: pytest.MonkeyPatch,
    how: Callable[..., Prepared],
) -> None:
    """Groups are read a batch ahead, or many batches; what reading notes keeps its place among what
    rendering notes. With a full cache nothing is tokenised."""
    monkeypatch.setattr(tokeniser, "BATCH_CHARACTERS", 300)
    place = [tmp_path / "stores"] if how is prepare_on_disk else []
    plain = how(config, renderer, *place)
    expected, entries = as_values(plain), list(plain.ledger.entries)
    assert {entry.reason for entry in entries} > {"empty response", "prompt cut"}
    cache = str(tmp_path / "cache")
    for settings in (
        RenderSettings(workers=2, cache=NO_CACHE),
        RenderSettings(workers=1, cache=cache),
        RenderSettings(workers=2, cache=cache),
    ):
        if settings.workers == 2 and settings.cache == cache:
            monkeypatch.setattr(Renderer, "_encode", None)
        found = how(config, renderer, *place, settings)
        assert as_values(found) == expected
        assert list(found.ledger.entries) == entries


def test_what_reading_notes_stands_where_it_was_noted(tmp_path: Path, renderer: Renderer) -> None:
    """Every third row has nothing to compare, every other third an answer that is too long."""
    rows: list[dict[str, Any]] = []
    for number in range(30):
        texts = [["a", ""], ["a", "b" * 90, "c"], ["a", "b"]][number % 3]
        rows.append({"prompt": f"q {number}", "responses": texts, "ranking": [*range(len(texts))]})
    split = SplitSettings(validation_share=0.0, test_share=0.0)
    config = TrainConfig(model="model", data=write_rows(tmp_path / "rows.jsonl", rows), split=split)
    found = prepare_on_disk(config, renderer, tmp_path / "stores")
    lines = [entry.line for entry in found.ledger.entries]
    assert lines == [line for line in range(1, 31) if line % 3]


def test_a_mixture_keeps_its_names_and_weights(tmp_path: Path, renderer: Renderer) -> None:
    paths = [write_rows(tmp_path / f"{i}.jsonl", pair_rows(40, first=40 * i)) for i in range(2)]
    sources = {"one": Source(path=paths[0]), "two": Source(path=paths[1], weight=2.0)}
    config = TrainConfig(model="model", sources=sources)
    found = prepare_on_disk(config, renderer, tmp_path / "stores")
    assert as_values(found) == as_values(prepare(config, renderer))
    weights = {(g.group.source, g.comparisons[0].weight) for g in found.train}
    assert weights == {("one", 1.0), ("two", 2.0)}


@pytest.mark.parametrize(
    ("rows", "changes", "said"),
    [
        (pair_rows(2), {}, "part is empty"),
        ([{"prompt": "q", "chosen": "a", "rejected": ""}], {}, "none of 1 rows is usable"),
        (
            [{"prompt": "q", "chosen": "a" * 99, "rejected": "b"}],
            {"split": SplitSettings(validation_share=0.0, test_share=0.0)},
            "no training group is left after rendering",
        ),
        (
            pair_rows(60),
            {"read": ReadSettings(votes=VoteSettings(prior=1.0))},
            "read.votes.prior has no effect",
        ),
    ],
)
def test_what_preparing_in_memory_refuses_is_refused_in_the_same_words(
    tmp_path: Path, renderer: Renderer, rows: Any, changes: dict[str, Any], said: str
) -> None:
    config = TrainConfig(model="model", data=write_rows(tmp_path / "rows.jsonl", rows), **changes)
    messages = []
    for attempt in (
        lambda: prepare(config, renderer),
        lambda: prepare_on_disk(config, renderer, tmp_path / "stores"),
    ):
        with pytest.raises(PalateError, match=said) as refused:
            attempt()
        messages.append(str(refused.value).splitlines()[0])
    assert messages[0] == messages[1]


def test_the_manifest_of_a_store_is_plain_json(
    tmp_path: Path, config: TrainConfig, renderer: Renderer
) -> None:
    config = replace(config, validation={})
    manifest = prepare_on_disk(config, renderer, tmp_path / "stores").manifest
    assert json.loads(json.dumps(manifest)) == manifest


def test_a_run_that_keeps_its_prompts_on_disk_ends_with_the_same_weights(tmp_path: Path) -> None:
    """And with no store left; a dry run leaves nothing at all."""
    runs = {
        where: replace(quick_config(tmp_path, output=where), store=where)
        for where in ("memory", "disk")
    }
    assert "layout tree" in train(runs["disk"], dry_run=True).summary
    assert not (tmp_path / "disk").exists()
    results = {where: train(config) for where, config in runs.items()}
    assert results["disk"].metrics == results["memory"].metrics
    first, second = (
        (tmp_path / where / "model" / "model.safetensors").read_bytes() for where in runs
    )
    assert first == second
    assert not (tmp_path / "disk" / ".store").exists()


def test_merging_is_refused_where_prompts_lie_on_disk(tmp_path: Path) -> None:
    with pytest.raises(PalateError, match=r"merge_prompts.*palate data convert"):
        replace(quick_config(tmp_path), store="disk", read=ReadSettings(merge_prompts=True))

"""A run from configuration to report: what it says beforehand, refuses, measures and stores."""

import json
import math
import re
import resource
import shutil
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import palate
from palate.cli.main import main
from palate.errors import PalateError
from palate.model.settings import BodySettings
from palate.objectives import ObjectiveSettings
from palate.objectives.regression import ASSUMPTIONS
from palate.pipeline.config import SplitSettings, TrainConfig
from palate.pipeline.prepare import Prepared, prepare, read_sources, refuse_without_effect
from palate.pipeline.train import train
from palate.preferences import Message, VoteSettings, prompt_cluster
from palate.preferences.settings import ReadSettings, Source
from palate.rendering import LengthSettings, RenderedGroup
from palate.training.settings import TrainingSettings
from tests.runs import (
    pair_rows,
    quick_config,
    quick_training,
    tiny_renderer,
    tiny_run,
    write_rows,
)
from tests.tiny import CHATML, byte_tokenizer, save_tiny

NO_SPLIT = SplitSettings(validation_share=0.0, test_share=0.0)


def tree_of(directory: Path) -> dict[str, tuple[int, int]]:
    """Every path below a directory, with its size and time of change."""
    return {
        str(path.relative_to(directory)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in directory.rglob("*")
    }


def metrics_of(run: Path) -> Any:
    return json.loads((run / "metrics.json").read_text())


def sidecar_of(run: Path) -> Any:
    return json.loads((run / "model" / "reward_model.json").read_text())


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny tokenizer has one token a byte, so with a prompt of P and an answer of A bytes

        <|im_start|> user newline P <|im_end|> newline <|im_start|> assistant newline A <|im_end|>

    has 1 + 5 + P + 1 + 1 + 1 + 10 + A + 1 = P + A + 20 tokens. Answers differ in their first byte,
    so the tree holds the P + 19 tokens before them once. Row by row: (5+3+20) + (5+2+20) +
    (7+4+20) + (7+1+20) = 114; as trees: (5+19) + 4 + 3 + (7+19) + 5 + 2 = 64. A pair whose answers
    are equal is in the ledger."""
    rows = [
        {"prompt": "Birds", "chosen": "fly", "rejected": "no"},
        {"prompt": "Fish do", "chosen": "swim", "rejected": "?"},
        {"prompt": "Rocks", "chosen": "sit", "rejected": "sit"},
    ]
    data = write_rows(tmp_path / "three.jsonl", rows)
    model = save_tiny(tmp_path / "body")
    monkeypatch.chdir(tmp_path)
    before = tree_of(tmp_path)
    flags = ["--split.validation_share", "0", "--split.test_share", "0"]
    flags += ["--training.prompts_per_step", "1", "--training.epochs", "3"]
    assert main(["train", "--model", model, "--data", data, *flags, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert tree_of(tmp_path) == before
    assert "3 rows in = 2 in groups + 1 in the ledger" in printed
    assert re.search(r"1  row: .*three\.jsonl:3", printed)
    assert "114 an epoch row by row; 64 in layout tree" in printed
    assert "longest answer with prompt 31" in printed
    assert (
        "objective bradley-terry, 6 steps of 1 prompt, learning rate 0.0001, of the head 0.001"
        in printed
    )
    example = "<|im_start|>user\nBirds<|im_end|>\n<|im_start|>assistant\nfly<|im_end|>"
    assert repr(example) in printed
    assert "pooled    '<|im_end|>' (id 2, pooling last)" in printed
    assert re.search(r"first loss 0\.6931 on 2 prompts", printed)
    assert math.log(2) == pytest.approx(0.6931, abs=1e-4)


def pooled_line(directory: Path, pooling: Any) -> str:
    config = quick_config(directory, body=BodySettings(pooling=pooling))
    return next(
        line
        for line in train(config, dry_run=True).summary.splitlines()
        if line.startswith("pooled ")
    )


def test_the_pooled_tokens_are_all_of_them_where_the_pooling_reads_all(tmp_path: Path) -> None:
    """One token a byte and 20 of the template, as above; which answer is shown, a split decides."""
    for pooling in ("mean", "attention"):
        found = re.fullmatch(
            rf"pooled    all (\d+) tokens \(pooling {pooling}\)", pooled_line(tmp_path, pooling)
        )
        assert found is not None
        lengths = [
            len(row["prompt"]) + len(row["chosen"]) + 20
            for row in map(json.loads, (tmp_path / "pairs.jsonl").read_text().splitlines())
        ]
        assert int(found[1]) in lengths
    assert pooled_line(tmp_path, "last") == "pooled    '<|im_end|>' (id 2, pooling last)"


@pytest.mark.parametrize("store", ["memory", "disk"])
def test_each_source_of_a_mixture_is_told_with_its_weight_and_prompts(
    store: Any, tmp_path: Path
) -> None:
    """20 and 9 pairs, divided by prompt; a further validation set is no source of the mixture."""
    files = {
        name: write_rows(tmp_path / f"{name}.jsonl", pair_rows(count, first))
        for name, count, first in (("shop", 20, 0), ("panel", 9, 50), ("extra", 3, 80))
    }
    sources = {
        "shop": Source(path=files["shop"]),
        "panel": Source(path=files["panel"], weight=2.5),
    }
    config = TrainConfig(
        model=save_tiny(tmp_path / "body"),
        sources=sources,
        validation={"extra": files["extra"]},
        split=SplitSettings(validation_share=0.2, test_share=0.2),
        store=store,
    )
    summary = train(config, dry_run=True).summary
    counted = {"train": 0, "validation": 0, "test": 0}
    for name, weight, total in (("shop", "1", 20), ("panel", "2.5", 9)):
        line = (
            rf"data      {name}: {re.escape(files[name])}: format pairs, weight {weight}, {total}"
        )
        found = re.search(line + r" prompts \((.*)\)\n", summary)
        assert found is not None
        held = {part: int(n) for part, n in (item.split() for item in found[1].split(", "))}
        assert sum(held.values()) == total
        counted = {part: n + held.get(part, 0) for part, n in counted.items()}
    train_, validation, test = counted.values()
    assert f"parts     train {train_}, validation {validation}, extra 3, test {test} p" in summary
    assert f"data      {files['extra']}: format pairs\n" in summary


def rated_config(directory: Path, kind: Any) -> TrainConfig:
    """Ratings, and votes of which a few are ties."""
    rows = [
        {"prompt": f"question {i}", "responses": ["yes", "no"], "ratings": [5, i % 4]}
        if kind == "regression"
        else {
            "prompt": f"question {i}",
            "responses": ["yes", "no"],
            "votes": [{"choice": "tie" if i % 4 == 0 else 0}],
        }
        for i in range(24)
    ]
    return quick_config(
        directory,
        model=save_tiny(directory / "body"),
        data=write_rows(directory / "rows.jsonl", rows),
        objective=ObjectiveSettings(kind=kind),
        training=quick_training(epochs=1),
    )


def test_warnings_of_the_objective_come_once_in_a_dry_run_and_in_a_run(tmp_path: Path) -> None:
    config = rated_config(tmp_path, "regression")
    for dry_run in (True, False):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(config, dry_run=dry_run)
        assert [str(w.message) for w in caught].count(ASSUMPTIONS) == 1


def test_what_the_objective_learned_stands_among_the_results(tmp_path: Path) -> None:
    """The width of ties is near its start, which fits the share of ties, and on the card too."""
    train(rated_config(tmp_path, "davidson"))
    learned = metrics_of(tmp_path / "run")["learned"]
    assert set(learned) == {"tie width", "probability of a tie at equal rewards"}
    assert 0 < learned["probability of a tie at equal rewards"] < 1
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert f"tie width {learned['tie width']}" in card


def test_a_temperature_at_the_bound_of_its_fit_is_told(tmp_path: Path) -> None:
    """Training and validation labels are opposite to each other: no temperature is large enough."""
    rows = pair_rows(24)
    turned = [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in pair_rows(8, 100)]
    config = quick_config(
        tmp_path,
        data=write_rows(tmp_path / "rows.jsonl", rows),
        model=save_tiny(tmp_path / "body"),
        validation={"turned": write_rows(tmp_path / "turned.jsonl", turned)},
        split=NO_SPLIT,
        training=quick_training(learning_rate=1e-2, epochs=1),
    )
    with pytest.warns(
        UserWarning, match=r"temperature 148\.\d+ is a bound .* 8 prompts of the turned"
    ):
        train(config)
    assert sidecar_of(tmp_path / "run")["temperature"]["at_bound"] is True


def test_a_finished_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    config = quick_config(tmp_path)
    train(config)
    before = tree_of(tmp_path / "run")
    with pytest.raises(PalateError, match=r"run: already holds a finished run .*--output"):
        train(config)
    assert tree_of(tmp_path / "run") == before


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """The configuration of a run that has its inputs and no metrics yet."""
    config = quick_config(tmp_path_factory.mktemp("unfinished"))
    train(config)
    (Path(config.output) / "metrics.json").unlink()
    return config


def test_an_unfinished_run_with_another_configuration_is_refused_naming_the_key(
    unfinished: TrainConfig,
) -> None:
    changed = replace(
        unfinished,
        training=quick_training(learning_rate=2e-3),
        split=replace(unfinished.split, salt="other"),
        validation={"extra": "extra.jsonl"},
    )
    with pytest.raises(PalateError) as caught:
        train(changed)
    message = str(caught.value)
    assert "training.learning_rate (0.001 there, 0.002 now)" in message
    assert "split.salt ('palate' there, 'other' now)" in message
    assert "validation.extra ('nothing' there, 'extra.jsonl' now)" in message
    assert "prompts_per_step" not in message
    assert "--output" in message


def test_a_run_that_failed_before_it_trained_may_be_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directory holds no checkpoint, so there is nothing that another setting could spoil."""

    def failing(*_: Any) -> None:
        raise PalateError("no memory")

    config = quick_config(tmp_path, training=quick_training(epochs=3))
    with monkeypatch.context() as patch:
        patch.setattr("palate.pipeline.train.fit", failing)
        with pytest.raises(PalateError, match="no memory"):
            train(config)
    assert (tmp_path / "run" / "run.json").exists()
    assert train(replace(config, training=quick_training(epochs=1))).metrics


def test_an_unfinished_run_on_data_that_changed_is_refused_naming_the_file(
    unfinished: TrainConfig,
) -> None:
    data = Path(str(unfinished.data))
    text = data.read_text()
    data.write_text(text.replace("yes a", "yes c", 1))
    try:
        with pytest.raises(PalateError, match=re.escape(f"other data: {data} changed")):
            train(unfinished)
    finally:
        data.write_text(text)


def test_an_unfinished_run_goes_on_under_another_name_of_its_directory(
    unfinished: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same configuration, and only the path written in another way."""
    monkeypatch.chdir(Path(unfinished.output).parent)
    result = train(replace(unfinished, output="./run"))
    assert (result.directory / "metrics.json").exists()


def test_a_directory_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    """It may hold checkpoints of another trainer, which ours would resume from or delete."""
    config = quick_config(tmp_path)
    theirs = tmp_path / "run" / "training" / "checkpoint-500"
    theirs.mkdir(parents=True)
    (theirs / "model.safetensors").write_bytes(b"precious")
    before = tree_of(tmp_path)
    with pytest.raises(PalateError, match=r"run: holds 'training' and no run\.json"):
        train(config)
    assert tree_of(tmp_path) == before


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(PalateError, match="run: is a file"):
        train(quick_config(tmp_path))


def test_without_an_output_a_second_run_gets_the_next_free_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(quick_config(tmp_path), output="")
    directories = [train(config).directory for _ in range(2)]
    assert directories == [Path("runs/body-llama"), Path("runs/body-llama-2")]


def first_loss(config: TrainConfig) -> float:
    summary = train(config, dry_run=True).summary
    found = re.search(r"first loss ([\d.]+)", summary)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("place", ["", "model"])
def test_a_warm_start_from_a_run_keeps_its_head(
    place: str, tmp_path: Path, trained_run: Path
) -> None:
    """On the data of the first training the loss starts where that training ended, well below ln 2;
    the same body without a head starts at ln 2. The name of the run stands for its model."""
    data = str(trained_run.parent / "preferences.jsonl")
    warm = quick_config(tmp_path, model=str(trained_run / place), data=data)
    cold = replace(warm, model=str(trained_run.parent / "body"))
    assert first_loss(cold) == pytest.approx(math.log(2), abs=1e-4)
    assert first_loss(warm) < 0.4
    assert "head warm start" in train(warm, dry_run=True).summary
    assert "head new" in train(cold, dry_run=True).summary
    with pytest.raises(PalateError, match=r"body\.head_init normal has no effect"):
        train(replace(warm, body=BodySettings(head_init="normal")), dry_run=True)


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "training.early_stopping_patience": {
        "training": quick_training(early_stopping_patience=2),
        "split": NO_SPLIT,
    },
    "split.fold 2": {"split": lambda: SplitSettings(fold=2)},
    "split.fold 5 of 5": {"split": lambda: SplitSettings(num_folds=5, fold=5)},
    "split.fold 0 of 1": {"split": lambda: SplitSettings(num_folds=1)},
    "split.fold 0 of -3": {"split": lambda: SplitSettings(num_folds=-3)},
    "split.test_share 0.2 has no effect": {
        "split": lambda: SplitSettings(num_folds=5, test_share=0.2)
    },
    "split.validation_share 0.4 + test_share 0.6": {
        "split": lambda: SplitSettings(validation_share=0.4, test_share=0.6)
    },
    "split.validation_share is nan": {"split": lambda: SplitSettings(validation_share=math.nan)},
    "split.test_share is -0.1": {"split": lambda: SplitSettings(test_share=-0.1)},
    "votes.prior 2.0 has no effect": {
        "read": lambda: ReadSettings(votes=VoteSettings(target="majority", prior=2.0))
    },
    "training.epochs 7 has no effect": {
        "training": lambda: TrainingSettings(epochs=7, max_steps=3)
    },
    "lengths.max_prompt_tokens 300": {
        "lengths": LengthSettings(max_prompt_tokens=300, max_response_tokens=300)
    },
    "positions for 512": {"lengths": LengthSettings(max_response_tokens=500)},
    "names validation and test": {"validation": {"test": "extra.jsonl"}},
    "pairs.jsonl: named twice": {"validation": {"extra": "pairs.jsonl"}},
    "data is empty": {"data": ""},
    "model is empty": {"model": ""},
}


@pytest.mark.parametrize("part", CONTRADICTIONS)
def test_a_configuration_that_contradicts_itself_is_refused_naming_the_key(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clean twin is every other test in this file."""
    tiny_run(tmp_path)
    monkeypatch.chdir(tmp_path)

    def run() -> None:
        changes = {k: v() if callable(v) else v for k, v in CONTRADICTIONS[part].items()}
        fields = {"model": "body-llama", "data": "pairs.jsonl", **changes}
        train(quick_config(tmp_path, **fields), dry_run=True)

    with pytest.raises(PalateError) as caught:
        run()
    assert part in str(caught.value)


def test_lengths_within_the_bodys_positions_are_taken(tmp_path: Path) -> None:
    lengths = LengthSettings(max_prompt_tokens=212, max_response_tokens=300)
    summary = train(quick_config(tmp_path, lengths=lengths), dry_run=True).summary
    assert "limits    prompt 212, response 300 tokens" in summary


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """Writing past this size fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("num_bytes", "place"),
    [(300, "run.json"), (100_000, "checkpoint-4"), (150_000, "checkpoint-4")],
)
def test_a_full_disk_ends_with_a_clear_message_and_the_run_can_go_on(
    num_bytes: int, place: str, tmp_path: Path
) -> None:
    """The tiny body's weights are about 115 kB, its optimiser's state about twice that: the first
    limit strikes the configuration, the second the weights, the third the optimiser's state."""
    config = quick_config(tmp_path)
    with (
        files_limited_to(num_bytes),
        pytest.raises(PalateError, match=rf"{place}: cannot write: .*(limit|free space)"),
    ):
        train(config)
    train(config)
    train(replace(config, output=str(tmp_path / "whole")))
    saved = [tmp_path / run / "model" / "model.safetensors" for run in ("run", "whole")]
    assert saved[0].read_bytes() == saved[1].read_bytes()


def noisy_rows(count: int) -> list[dict[str, str]]:
    """Every fifth pair the wrong way round, so that no margin is sure."""
    rows = pair_rows(count)
    for row in rows[::5]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return rows


def prepared_by(config: TrainConfig) -> Prepared:
    return prepare(config, tiny_renderer())


def margins_by(run: Path, groups: list[RenderedGroup]) -> np.ndarray:
    scorer = palate.load(run)
    rewards = [scorer.score_ids(group.sequences) for group in groups]
    return np.array([reward[0] - reward[1] for reward in rewards])


def test_the_temperature_is_fitted_on_the_validation_part_and_stored(tmp_path: Path) -> None:
    """Over a fine grid, no other temperature gives the validation pairs a smaller loss; on the test
    part another one does."""
    data = write_rows(tmp_path / "noisy.jsonl", noisy_rows(60))
    config = quick_config(
        tmp_path,
        model=save_tiny(tmp_path / "body"),
        data=data,
        split=SplitSettings(validation_share=0.3, test_share=0.3),
        training=quick_training(epochs=3),
    )
    train(config)
    stored = sidecar_of(tmp_path / "run")["temperature"]
    prepared = prepared_by(config)
    validation = prepared.validation["validation"]
    assert stored["part"] == "validation"
    assert stored["num_prompts"] == len(validation) == stored["num_clusters"]

    def best_temperature(groups: list[RenderedGroup]) -> float:
        margin_C = margins_by(tmp_path / "run", groups)
        grid = np.geomspace(0.01, 100, 4001)
        losses = [np.logaddexp(0, -margin_C / temperature).mean() for temperature in grid]
        return float(grid[int(np.argmin(losses))])

    assert 0.02 < stored["value"] < 50
    assert stored["value"] == pytest.approx(best_temperature(validation), rel=5e-3)
    assert stored["value"] != pytest.approx(best_temperature(prepared.test), rel=5e-2)
    assert metrics_of(tmp_path / "run")["temperature"] == stored
    scorer = palate.load(tmp_path / "run")
    gap = scorer.score("A?", "yes aaa") - scorer.score("A?", "no bbb")
    expected = 1 / (1 + math.exp(-gap / stored["value"]))
    assert scorer.compare("A?", "yes aaa", "no bbb") == pytest.approx(expected, rel=1e-5)


def test_no_temperature_is_fitted_on_the_test_part(tmp_path: Path) -> None:
    split = SplitSettings(validation_share=0.0, test_share=0.3)
    train(quick_config(tmp_path, split=split))
    sidecar = sidecar_of(tmp_path / "run")
    assert sidecar["temperature"] is None
    assert sidecar["reward"]["part"] == "test"


def test_a_run_with_nothing_held_out_is_trained_and_says_so(tmp_path: Path) -> None:
    result = train(quick_config(tmp_path, split=NO_SPLIT))
    assert result.metrics == {}
    assert metrics_of(tmp_path / "run")["metrics"] == {}
    assert sidecar_of(tmp_path / "run")["reward"] is None
    assert "Nothing was held out" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert (tmp_path / "run" / "report.html").exists()


def test_further_validation_sets_are_measured_by_name(tmp_path: Path) -> None:
    """The turned-round set is the validation of the world upside down: its accuracy is 1 minus."""
    rows = pair_rows(12, first=500)
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    sets = {
        "plain": write_rows(tmp_path / "plain.jsonl", rows),
        "turned": write_rows(tmp_path / "turned.jsonl", turned),
    }
    train(quick_config(tmp_path, validation=sets))
    found = metrics_of(tmp_path / "run")
    assert found["measured_on"] == "test"
    assert list(found["metrics"]) == ["plain", "test", "turned", "validation"]
    accuracy = {name: part["accuracy"]["value"] for name, part in found["metrics"].items()}
    assert accuracy["plain"] == 1 - accuracy["turned"] == 1.0
    logged = [entry for entry in found["log"] if "eval_loss" in entry]
    assert {"eval_plain_loss", "eval_turned_loss", "eval_validation_loss"} <= set(logged[0])
    assert all(entry["eval_loss"] == entry["eval_validation_loss"] for entry in logged)


@pytest.mark.parametrize(
    "changes",
    [
        {"training": quick_training(precision="bfloat16")},
        {"body": BodySettings(dtype="bfloat16")},
        {"training": quick_training(gradient_checkpointing=True, schedule="cosine")},
    ],
    ids=["autocast", "bfloat16 weights", "checkpointing"],
)
def test_what_is_stored_is_what_loads(changes: dict[str, Any], tmp_path: Path) -> None:
    """Training ends by loading the model and scoring texts again, which refuses other rewards; with
    autocast still around the model, the stored ones would be those of another arithmetic."""
    result = train(quick_config(tmp_path, **changes))
    assert result.scorer is not None
    for stored in sidecar_of(tmp_path / "run")["reference_scores"]:
        reward = result.scorer.score(stored["prompt"], stored["response"])
        assert reward == pytest.approx(stored["reward"], rel=1e-5)
    assert result.metrics["accuracy"].value == 1.0


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_an_encoder_is_trained_and_its_bias_stays_zero(kind: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    config = quick_config(tmp_path, **tiny_run(tmp_path, kind=kind))
    result = train(config)
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert saved["classifier.weight"].any()
    assert not saved["classifier.bias"].any()
    assert sidecar_of(tmp_path / "run")["pooling"] == "cls"
    assert result.metrics["loss"].value < math.log(2) - 0.05


def test_training_works_in_a_thread(tmp_path: Path) -> None:
    """Only the main thread may handle signals; others train without."""
    config, found = quick_config(tmp_path), []
    thread = threading.Thread(target=lambda: found.append(train(config)))
    thread.start()
    thread.join()
    assert found[0].metrics["accuracy"].value == 1.0


def test_every_row_is_in_a_group_or_in_the_ledger(tmp_path: Path) -> None:
    """Twelve good pairs, one malformed line, one without a rejected answer, one whose answers are
    the same, and one whose answer is over the limit of 40 tokens: 16 = 12 + 4."""
    bad = [
        {"prompt": "a", "chosen": "b"},
        {"prompt": "c", "chosen": "same", "rejected": "same"},
        {"prompt": "d", "chosen": "long " * 20, "rejected": "short"},
    ]
    path = tmp_path / "rows.jsonl"
    write_rows(path, [*pair_rows(12), *bad])
    path.write_text(path.read_text() + "{broken\n")
    config = TrainConfig(model="unused", data=str(path), split=NO_SPLIT)
    renderer = tiny_renderer()
    renderer.lengths = LengthSettings(max_prompt_tokens=100, max_response_tokens=40)
    prepared = prepare(config, renderer)
    assert prepared.num_rows == 12
    rows = [entry for entry in prepared.ledger.entries if entry.kind == "row"]
    assert sorted(entry.line for entry in rows) == [13, 14, 15, 16]
    assert "16 rows in = 12 in groups + 4 in the ledger" in prepared.ledger.summary(12)


def test_who_won_among_the_lost_comparisons_is_said(tmp_path: Path) -> None:
    """Of ten comparisons three have an answer over 40 tokens; the longer one won twice. In the
    group of three the over-long answer takes two comparisons away and leaves one."""
    long = "long " * 20
    rows = [
        *pair_rows(6),
        {"prompt": "a", "chosen": long, "rejected": "short"},
        {"prompt": "b", "responses": [long, "middle", "low"], "ranking": [1, 0, 2]},
    ]
    renderer = tiny_renderer()
    renderer.lengths = LengthSettings(max_prompt_tokens=100, max_response_tokens=40)
    pairs = write_rows(tmp_path / "pairs.jsonl", rows[:7])
    ranked = write_rows(tmp_path / "ranked.jsonl", rows[7:])
    config = TrainConfig(model="unused", data=[pairs, ranked], split=NO_SPLIT)
    prepared = prepare(config, renderer)
    assert prepared.num_rows == 7
    assert prepared.left_out.startswith("3 of 10 comparisons lost in rendering")
    assert prepared.left_out.endswith("the longer answer won 67%")
    whole = prepare(replace(config, data=[pairs, ranked]), tiny_renderer())
    assert whole.left_out == ""


def test_a_validation_set_that_shares_prompts_with_training_is_warned_of(tmp_path: Path) -> None:
    """Three of its five prompts are trained on, one of them spelt in another way."""
    rows = pair_rows(12)
    shared = [{**row, "chosen": "other yes"} for row in rows[:3]]
    shared[0]["prompt"] = f"  {shared[0]['prompt'].upper()} "
    leaky = write_rows(tmp_path / "leaky.jsonl", [*shared, *pair_rows(2, first=700)])
    clean = write_rows(tmp_path / "clean.jsonl", pair_rows(5, first=800))
    data = write_rows(tmp_path / "rows.jsonl", rows)
    config = TrainConfig(model="unused", data=data, split=NO_SPLIT, validation={"leaky": leaky})
    with pytest.warns(UserWarning, match=r"3 of 5 prompts of the validation set 'leaky'"):
        prepared_by(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = prepared_by(replace(config, validation={"clean": clean}))
    assert len(prepared.validation["clean"]) == 5


def test_folds_hold_out_every_prompt_once_and_clusters_never_straddle(tmp_path: Path) -> None:
    """Each prompt comes twice, once with another turn before the answer; both stay together."""
    rows: list[dict[str, Any]] = []
    for row in pair_rows(40):
        opening = {"role": "user", "content": row["prompt"]}
        more = [{"role": "assistant", "content": "Hm."}, {"role": "user", "content": "Well?"}]
        rows += [{**row, "prompt": [opening]}, {**row, "prompt": [opening, *more]}]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    tested: list[tuple[str, int]] = []
    for fold in range(4):
        split = SplitSettings(num_folds=4, fold=fold, validation_share=0.2)
        prepared = prepared_by(TrainConfig(model="unused", data=data, split=split))
        parts = [prepared.train, prepared.validation["validation"], prepared.test]
        clusters = [{prompt_cluster(g.group.prompt) for g in part} for part in parts]
        assert sum(map(len, clusters)) == len(set.union(*clusters)) == 40
        assert sum(map(len, parts)) == 80
        tested += [(g.group.file, g.group.line) for g in prepared.test]
        assert prepared.manifest["fold"] == f"{fold} of 4"
        assert sorted(clusters[2]) == prepared.manifest["clusters"]["test"]
    assert sorted(tested) == [(data, line) for line in range(1, 81)]


def test_a_part_that_rendering_empties_is_named(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", pair_rows(12))
    long = [{"prompt": "p", "chosen": "long " * 120, "rejected": "no"}]
    config = TrainConfig(
        model="unused",
        data=data,
        split=NO_SPLIT,
        validation={"extra": write_rows(tmp_path / "long.jsonl", long)},
    )
    with pytest.raises(PalateError, match=r"the extra part is empty after rendering(.|\n)*long"):
        prepared_by(config)


@pytest.mark.parametrize(
    ("key", "votes"),
    [
        ("min_gap", {"min_gap": 1.0}),
        ("target", {"target": "majority"}),
        ("prior", {"prior": 1.0}),
        ("margin_per_strength", {"margin_per_strength": 0.5}),
    ],
)
def test_a_setting_of_votes_without_votes_or_ratings_is_refused(
    key: str, votes: dict[str, Any], tmp_path: Path
) -> None:
    """Plain pairs have no votes, no ratings, no strengths: none of the settings can do anything."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    settings = ReadSettings(votes=VoteSettings(**votes))
    with pytest.raises(PalateError, match=f"read.votes.{key} has no effect"):
        refuse_without_effect(read_sources([str(path)], settings), settings)
    refuse_without_effect(read_sources([str(path)], ReadSettings()), ReadSettings())


def test_a_warm_start_refuses_a_checkpoint_with_another_template(
    trained_run: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(trained_run / "model", changed)
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "Assistant"))
    data = tmp_path / "pairs.jsonl"
    write_rows(data, pair_rows(8))
    config = TrainConfig(model=str(changed), data=str(data), split=NO_SPLIT)
    with pytest.raises(PalateError, match="template changed since"):
        train(config, dry_run=True)
    summary = train(replace(config, allow_changed=["template"]), dry_run=True).summary
    assert "warm start" in summary


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    config = TrainConfig(
        model="anything",
        data="anything.jsonl",
        output=str(tmp_path / "run"),
        training=TrainingSettings(report_to=("tensorbord",)),
    )
    with pytest.raises(PalateError, match="report_to 'tensorbord' is not installed or not known"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_template_arguments_reach_the_template_and_the_checkpoint(tmp_path: Path) -> None:
    """A template that writes `mood` into every turn: the run renders with it, and so does what it
    saved, without being told again."""
    template = CHATML.replace("message['role'] +", "message['role'] + (mood or '') +")
    template = "{%- set mood = mood | default('') -%}" + template
    model = save_tiny(tmp_path / "body", tokenizer=byte_tokenizer(template))
    data = tmp_path / "pairs.jsonl"
    write_rows(data, pair_rows(8))
    config = TrainConfig(
        model=model,
        data=str(data),
        output=str(tmp_path / "run"),
        split=NO_SPLIT,
        template_arguments={"mood": "!calm"},
        training=quick_training(),
    )
    assert "user!calm" in train(config, dry_run=True).summary
    scorer = train(config).scorer
    assert scorer is not None
    ids = scorer.renderer.encode_prompt((Message("user", "hi"),))
    assert "user!calm" in scorer.renderer.tokenizer.decode(ids)

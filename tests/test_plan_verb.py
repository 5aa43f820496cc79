"""`palate plan`: counts by hand, no weights needed, refusals, and a measured machine."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from palate.cli.main import main
from palate.errors import PalateError
from palate.pipeline.plan import configuration_directory
from palate.pipeline.plan_config import GPUS
from tests.runs import pair_rows, write_rows
from tests.tiny import save_tiny

PAIRS = [
    {"prompt": "ab", "chosen": "xy", "rejected": "zzzz"},
    {"prompt": "abcd", "chosen": "x", "rejected": "zz"},
    {"prompt": "no answer to compare", "chosen": "same", "rejected": "same"},
]
WHOLE = ["--split.validation_share", "0", "--split.test_share", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with its weights in `body`, without them in `bare`, and two files of pairs."""
    folder = tmp_path_factory.mktemp("plan")
    save_tiny(folder / "body")
    shutil.copytree(folder / "body", folder / "bare")
    for path in (folder / "bare").glob("*.safetensors"):
        path.unlink()
    write_rows(folder / "few.jsonl", PAIRS)
    write_rows(folder / "pairs.jsonl", pair_rows(40))
    return folder


@pytest.fixture
def planned(folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """`palate plan --json` with these flags: its values."""

    def run(*flags: str, data: str = "pairs.jsonl", model: str = "bare") -> Any:
        files = ["--model", str(folder / model), "--data", str(folder / data)]
        assert main(["plan", *files, *flags, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def said(folder: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """The same as text: exit code, stdout and stderr."""

    def run(*flags: str) -> tuple[int, str, str]:
        files = ["--model", str(folder / "bare"), "--data", str(folder / "pairs.jsonl")]
        code = main(["plan", *files, *flags])
        return code, *capsys.readouterr()

    return run


def test_tokens_by_hand(planned: Any) -> None:
    """A byte is a token; a prompt of n characters has n + 19 tokens (user turn, its end, header of
    the answer), an answer its characters and its end. First pair: rows of 21 + 3 and 21 + 5, as a
    tree 29. Second: 23 + 2 and 23 + 3, as a tree 28. One batch of both pads four rows to 26: 104
    slots for 101 tokens. In batches of one: 2 * 26 and 2 * 26. The third row is in the ledger."""
    values = planned(*WHOLE, data="few.jsonl")
    assert values["data"]["num_rows"] == 3
    assert values["data"]["num_rows_kept"] == 2
    assert sum(values["data"]["ledger"].values()) == 1
    epoch = values["epoch"]
    assert {name: layout["num_tokens"] for name, layout in epoch.items()} == {
        "padded_pairs": 104,
        "rows": 101,
        "tree": 57,
    }
    assert epoch["padded_pairs"]["num_padding"] == 3
    assert values["steps"] == {"per_epoch": 1, "total": 2}
    assert values["microbatch"]["num_tokens"] == 57
    alone = planned(*WHOLE, "--training.prompts_per_step", "1", data="few.jsonl")
    assert alone["epoch"]["padded_pairs"]["num_tokens"] == 104
    assert alone["microbatch"]["num_tokens"] == 29


def test_flops_by_hand(planned: Any) -> None:
    """Layers of 9,216 matrix weights and 64 of norms, a norm of 32 and a head of 32 (1,024 of the
    matrix weights make keys and values). 57 tokens, 4 ends. Pairs: 21 * 22 / 2 + 22 + 23 + 24 +
    22 + ... + 26 = 420 and 23 * 24 / 2 + 24 + 25 + 24 + 25 + 26 = 400; ends see 24 + 26 + 25 + 26 =
    101. A pair costs 2 * 64 in each layer. All three times, for forward and backward, twice, for
    two epochs."""
    values = planned(*WHOLE, data="few.jsonl")
    first = 2 * 9_280 * 57 + 2 * 64 * 820
    last = 2 * (1_024 * 57 + 8_256 * 4) + 2 * 64 * 101
    around = 2 * (32 * 57 + 32 * 4)
    assert values["flops"]["training"] == 2 * 3 * (first + last + around)
    assert values["flops"]["recomputed"] == 2 * 64 * (820 + 101)
    assert values["flops"]["evaluation"] == 0


def test_weights_change_nothing(planned: Any) -> None:
    bare, whole = planned(model="bare"), planned(model="body")
    bare["model"].pop("name"), whole["model"].pop("name")
    assert bare == whole
    assert sum(bare["data"]["num_groups"].values()) == 40


def test_longer_runs_and_more_prompts(planned: Any) -> None:
    """Twice the epochs cost twice the training; prompts a step change no token of the trees."""
    once, twice = (planned("--training.epochs", epochs) for epochs in ("1", "2"))
    assert twice["flops"]["training"] == 2 * once["flops"]["training"]
    small, large = (planned("--training.prompts_per_step", number) for number in ("4", "8"))
    assert small["epoch"]["tree"] == large["epoch"]["tree"]
    assert (
        small["epoch"]["padded_pairs"]["num_padding"]
        <= large["epoch"]["padded_pairs"]["num_padding"]
    )
    cut = planned("--training.tokens_per_microbatch", "80")
    assert cut["microbatch"]["num_tokens"] == 80
    assert cut["memory_bytes"]["activations"] < large["memory_bytes"]["activations"]


def test_a_named_gpu(planned: Any) -> None:
    values = planned("--hardware", "h100", "--num_gpus", "8", "--utilisation", "0.25")
    (expected,) = values["expected"]
    rate = 8 * 0.25 * GPUS["h100"].bfloat16_flops
    assert expected["seconds"] == pytest.approx(values["flops"]["total"] / rate)
    assert "assumed, not measured: 25%" in expected["basis"]
    assert expected["fits"]
    assert values["memory_bytes"]["autocast"]
    assert values["memory_bytes"]["gradient_buckets"] == values["memory_bytes"]["gradients"]
    exact = planned("--hardware", "h100", "--training.precision", "float32")
    rate = 0.4 * GPUS["h100"].float32_flops
    assert exact["expected"][0]["seconds"] == pytest.approx(exact["flops"]["total"] / rate)


def test_what_does_not_fit_is_said(folder: Path, said: Any, tmp_path: Path) -> None:
    """A configuration of 70 billion weights, of which nothing but its size is there."""
    large = tmp_path / "large"
    shutil.copytree(folder / "bare", large)
    path = large / "config.json"
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    heads = {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128}
    path.write_text(json.dumps({**json.loads(path.read_text()), **sizes, **heads}))
    code, out, _ = said("--model", str(large), "--hardware", "h200")
    assert code == 0
    assert "does not fit" in out
    code, _, error = said("--model", str(large), "--measure")
    assert code == 1
    assert "training.gradient_checkpointing" in error


def test_methods_and_their_memory(planned: Any) -> None:
    values = planned("--training.method", "lora", "--lora.rank", "2")
    assert values["memory_bytes"] in values["alternatives"]
    totals = {(one["method"], one["checkpointing"]): one["total"] for one in values["alternatives"]}
    assert totals["full", False] > totals["full", True]
    assert totals["full", False] > totals["lora", False] > totals["frozen", False]
    frozen = planned("--training.method", "frozen")
    assert frozen["flops"]["recomputed"] == 0
    assert frozen["flops"]["training"] < values["flops"]["training"] / 2


@pytest.mark.parametrize(
    "flags", [[], ["--training.method", "lora"], ["--training.method", "frozen"]]
)
def test_measuring_this_machine_without_weights(planned: Any, flags: list[str]) -> None:
    values = planned("--measure", "--training.prompts_per_step", "4", *flags)
    (expected,) = values["expected"]
    assert 0 < expected["low"] <= expected["seconds"] <= expected["high"]
    assert expected["fits"]
    assert values["measured"]["num_passes"] == 3
    if flags[1:] == ["frozen"]:
        assert values["measured"]["kept_ratio"] is None
    else:
        assert values["measured"]["kept_ratio"] == pytest.approx(1, abs=0.15)
        assert values["measured"]["optimiser_seconds"] > 0


def test_the_text_says_what_the_numbers_are(said: Any) -> None:
    code, out, _ = said("--training.gradient_checkpointing", "true")
    assert code == 0
    starts = [line.split()[0] for line in out.splitlines() if not line.startswith(" ")]
    assert starts == ["model", "rows", "parts", "tokens", "steps", "flops", "memory", "time"]
    assert "trees: each prompt once" in out
    assert "gradient checkpointing" in out
    assert "not estimated: name a GPU with --hardware" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_gpus", "2"], "num_gpus 2 has no effect without hardware"),
        (["--utilisation", "0.5"], "utilisation 0.5 has no effect without hardware"),
        (["--hardware", "h100", "--utilisation", "1.5"], "utilisation is 1.5"),
        (["--hardware", "h100", "--num_gpus", "33"], "must be from 1 to training.prompts_per_step"),
        (["--hardwar", "h100"], "did you mean 'hardware'?"),
        (["--training.method", "lora", "--lora.targets", "q_prj"], "nearest: q_proj"),
    ],
)
def test_what_is_refused(said: Any, flags: list[str], message: str) -> None:
    code, _, error = said(*flags)
    assert code != 0
    assert message in error


def test_a_hub_id_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused = pytest.raises(PalateError, match=r"hub cannot be reached; pass a directory")
    with refused, configuration_directory("nobody/nothing"):
        pass

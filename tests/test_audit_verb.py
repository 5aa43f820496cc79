"""`palate audit` on the command line: a planted fault is at the top, exit codes, output, wrong
flags."""

import gzip
import json
from pathlib import Path

import pytest

from palate.artifacts.ledger import Ledger
from palate.cli.main import main
from palate.preferences import to_canonical
from palate.report.audit_text import as_text
from tests.runs import write_rows
from tests.test_audit import finding, varied


def plant(folder: Path, shared_data: Path) -> Path:
    """hh_harmless with a polite sentence at the end of 40 % of the preferred answers."""
    copy = folder / "planted.jsonl.gz"
    with gzip.open(shared_data / "hh_harmless.jsonl.gz", "rt") as source:
        rows = [json.loads(line) for line in source]
    for row in rows[::5] + rows[1::5]:
        row["chosen"] += " I hope this helps!"
    with gzip.open(copy, "wt") as target:
        target.writelines(json.dumps(row) + "\n" for row in rows)
    return copy


def test_a_planted_closing_is_at_the_top_of_the_report(
    tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = plant(tmp_path, shared_data)
    flags = ["--output", str(tmp_path / "out"), "--fail-on", "error"]
    assert main(["audit", str(planted), *flags]) == 1
    text = capsys.readouterr().out
    table = text[text.index("severity") :].splitlines()
    assert table[1].startswith("error")
    assert "i hope this helps" in table[1]
    report = json.loads((tmp_path / "out/audit.json").read_text())
    first = report["findings"][0]
    assert (first["severity"], first["check"]) == ("error", "ending: i hope this helps")
    assert first["statistic"] == 1.0
    assert 0.99 < first["low"] < 1
    assert len(first["examples"]) == 10
    assert all("i hope this helps" in example["text"] for example in first["examples"])
    assert "i hope this helps" in (tmp_path / "out/audit.html").read_text()


@pytest.mark.parametrize(
    ("name", "check", "low", "high"),
    [
        # The facts that are known of these files: DESIGN's readers found them before.
        ("hh_harmless.jsonl.gz", "length", 0.40, 0.47),
        ("alpacaeval_k9.jsonl.gz", "length", 0.75, 0.84),
        ("pandalm_votes.json", "annotator share", 0.3, 0.4),
    ],
)
def test_real_files_run_through(
    name: str, check: str, low: float, high: float, tmp_path: Path, shared_data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    # Models of words see 150 prompts; columns are of all.
    flags = ["--output", str(tmp_path / "out"), "--json", "--checks.max_sampled_groups", "150"]
    assert main(["audit", str(shared_data / name), *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    assert not [each for each in report["skipped"] if "failed" in each["reason"]]
    (found,) = [f for f in report["findings"] if f["check"] == check]
    assert low < found["statistic"] < high
    for each in report["findings"]:
        assert {"check", "severity", "statistic", "low", "high", "threshold"} <= each.keys()
        assert {"message", "examples", "fix"} <= each.keys()
    rank = ["error", "warn", "note"]
    severities = [rank.index(each["severity"]) for each in report["findings"]]
    assert severities == sorted(severities)
    rows = report["rows"]
    assert rows["read"] == rows["in groups"] + rows["left out"]
    assert len(Ledger.load_entries(tmp_path / "out/ledger.jsonl")) == sum(
        rows["by reason"].values()
    )
    stored = json.loads((tmp_path / "out/audit.json").read_text())
    assert stored["findings"] == report["findings"]


def test_rows_of_both_sides_that_are_left_out_stand_in_their_ledgers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(3)]
    data = write_rows(tmp_path / "test.jsonl", rows)
    against = write_rows(tmp_path / "train.jsonl", [*rows[:1], {"prompt": "no answers"}])
    flags = ["--against", str(against), "--output", str(tmp_path / "out"), "--json"]
    assert main(["audit", str(data), *flags]) == 0
    counts = json.loads(capsys.readouterr().out)["rows"]["against"]
    assert (counts["read"], counts["left out"]) == (2, 1)
    assert Ledger.load_entries(tmp_path / "out/ledger.jsonl") == []
    (entry,) = Ledger.load_entries(tmp_path / "out/against_ledger.jsonl")
    assert entry.line == 2


def test_exit_codes_follow_fail_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The longer answer wins in all of 40 pairs, which is a warning and no error."""
    rows = [
        {"prompt": f"Question {i}?", "chosen": "long " * (9 + i), "rejected": f"short {i}"}
        for i in range(40)
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    for number, (flags, expected) in enumerate(
        [([], 0), (["--fail-on", "never"], 0), (["--fail_on=error"], 0), (["--fail-on=warn"], 1)]
    ):
        output = str(tmp_path / f"out-{number}")
        assert main(["audit", data, "--output", output, *flags]) == expected
        assert "1.000" in capsys.readouterr().out
    assert main(["audit", data, "--output", output]) == 1
    assert "already holds a finished run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said", "code"),
    [
        (["--fail_onn", "warn"], "did you mean 'fail_on'", 2),
        (["--checks.style.length_warm", "1"], "did you mean 'checks.style.length_warn'", 2),
        (["--checks.style.length_warn", "-1"], "style.length_warn is -1.0, must be 0 or more", 1),
        (["--checks.max_sampled_groups", "0"], "max_sampled_groups is 0, must be 1 or more", 1),
        (["--lengths.overlong", "cut"], "lengths has no effect without a tokenizer", 1),
        (["--read.rating", "x"], "read.rating has no effect", 1),
        (["--benchmarks", "nowhere.jsonl"], "nowhere.jsonl: no such file", 1),
        (["--against", "nowhere.jsonl"], "nowhere.jsonl", 1),
        (["--processes", "3"], "processes is 3", 1),
    ],
)
def test_wrong_flags_are_told(
    flags: list[str], said: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [to_canonical(group) for group in varied(4)])
    assert main(["audit", data, "--output", str(tmp_path / "out"), *flags]) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_without_a_usable_row_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "", "rejected": ""}] * 3)
    assert main(["audit", data, "--output", str(tmp_path / "out")]) == 1
    assert "none of 3 rows is usable" in capsys.readouterr().err


def test_settings_may_come_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [to_canonical(group) for group in varied(40)])
    config = tmp_path / "audit.yaml"
    config.write_text(f"data: [{data}]\nchecks:\n  max_sampled_groups: 5\n")
    assert main(["audit", str(config), "--output", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sample"]["groups"] <= 5
    assert report["settings"]["checks"]["max_sampled_groups"] == 5


def test_the_terminal_table_is_aligned_and_says_it_all() -> None:
    fix = "Do this.\npalate audit x"
    findings = [finding("short", "warn", threshold=0.5, fix=fix), finding("a longer name")]
    report = {
        "rows": {"read": 3, "in groups": 2, "left out": 1, "by reason": {"row: odd": 1}},
        "num_groups": 2,
        "num_comparisons": 2,
        "sample": {"groups": 2},
        "findings": [each.as_json() for each in findings],
        "skipped": [{"check": "tokens", "reason": "no tokenizer given"}],
    }
    lines = as_text(report, 80).splitlines()
    assert lines[0] == "3 rows in = 2 in groups + 1 in the ledger"
    first = lines.index(next(line for line in lines if line.startswith("warn")))
    assert lines[first - 1].index("statistic") == lines[first].index("0  ")
    assert lines[first + 1 : first + 4] == [
        "        So.",
        "        fix: Do this.",
        "        palate audit x",
    ]
    assert "  tokens: no tokenizer given" in lines

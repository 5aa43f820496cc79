"""The sweep over pathologies: what one seed says, how seeds are counted, what is done again."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel

from benchmarks.pathologies import run
from benchmarks.pathologies.confirm import joined, summary
from benchmarks.pathologies.page import page, transformers_table
from benchmarks.pathologies.rows import ROWS
from benchmarks.pathologies.small_model import WIDTH, save_small_model

NAMES = [row["name"] for row in ROWS]
STYLES = ("length", "markdown", "closing", "confidence", "sycophancy")


def seed_line(seed: int, **changed: Any) -> dict[str, Any]:
    """A seed on which every planted fault is seen and every twin is quiet."""
    quiet = {name: {"planted": True, "clean": False} for name in NAMES}
    return {"seed": seed, "pairs": 300, **quiet, **changed}


def measured(before: float, after: float, kept: float) -> dict[str, Any]:
    """A row of a style whose effect falls from `before` to `after`, and whose accuracy in the
    legitimate twin goes from 0.9 to `kept`."""
    return {
        "planted": True,
        "clean": False,
        "legitimate": False,
        "effect_before": before,
        "effect_after": after,
        "effect_counterfactual": before,
        "accuracy_before": 0.8,
        "accuracy_after": 0.9,
        "accuracy_counterfactual": 0.8,
        "accuracy_legitimate_before": 0.9,
        "accuracy_legitimate_after": kept,
        "accuracy_legitimate_counterfactual": 0.9,
    }


def test_one_seed_says_something_of_every_row_and_always_the_same() -> None:
    task = (0, 300, False, (1.0,))
    found = run.of_seed(task)
    assert set(found) == {"seed", "power", *NAMES}
    for name in NAMES:
        assert {"planted", "clean"} <= set(found[name])
        assert ("legitimate" in found[name]) == (name in STYLES)
        assert all(isinstance(found[name][twin], bool) for twin in ("planted", "clean"))
    assert set(found["power"]) == set(STYLES)
    assert found["truncation"]["effect_before"] == 1 and found["truncation"]["effect_after"] == 0
    assert found["leak"]["effect_before"] > 0.9 > 0.1 > found["leak"]["effect_after"]
    # A seed that is run again, in another process for instance, gives the same line.
    assert json.loads(json.dumps(found)) == run.of_seed(task)


def test_seeds_are_counted_and_held_against_the_goals() -> None:
    """Flips of 0.2 and 0.4 have the mean 0.3, the standard error 0.1 and so the interval
    0.3 -+ 0.196. 0.1 after is a third of it, and 0.894 is 0.6 points below 0.9. The position check
    misses one of three seeds, two of the clean twins alarm."""
    seeds = [
        seed_line(0, length=measured(0.2, 0.1, 0.894), position={"planted": False, "clean": True}),
        seed_line(
            1, length=measured(0.4, 0.1, 0.894), power={"length": {"0.2": False, "1.0": True}}
        ),
        seed_line(2, position={"planted": True, "clean": True}),
    ]
    for line in seeds[1:2]:
        line["power"]["length"] |= {str(strength): True for strength in run.STRENGTHS[1:]}
    result = run.aggregated(seeds)
    rows = {row["name"]: row for row in result["rows"]}
    length, position = rows["length"], rows["position"]
    assert length["detected"] == {"alarms": 3, "of": 3}
    assert length["legitimate"] == {"alarms": 0, "of": 2}
    before = length["effect"]["before"]
    assert [before[end] for end in ("value", "low", "high")] == pytest.approx([0.3, 0.104, 0.496])
    assert before["n"] == 2 and length["effect"]["after"]["value"] == pytest.approx(0.1)
    assert length["goals"] == {
        "detected": True,
        "quiet on the clean twin": True,
        "quiet on the legitimate twin": True,
        "effect cut to a third": True,
        "accuracy kept in the legitimate twin": False,
    }
    assert position["detected"] == {"alarms": 2, "of": 3}
    assert position["clean"] == {"alarms": 2, "of": 3}
    assert position["goals"] == {"detected": False, "quiet on the clean twin": False}
    assert position["effect"] is position["accuracy"] is position["legitimate"] is None
    assert result["power"]["length"][0] == {"strength": 0.2, "alarms": 0, "of": 1}
    assert result["power"]["length"][-1] == {"strength": 1.0, "alarms": 1, "of": 1}
    settings = {"seeds": 3, "measured_seeds": 2, "num_pairs": 300, "versions": {"palate": "0"}}
    text = page({**result, "settings": settings, "transformers": []}, "curves.svg")
    assert f"{len(ROWS) - 2} of {len(ROWS)} meet all their goals. Not: length, position." in text
    assert "3 seeds (effects and accuracies of models: 2 of them), 300 pairs each" in text


def test_a_seed_is_done_when_its_line_holds_all_that_is_asked() -> None:
    plain, effects = seed_line(0), seed_line(0, length=measured(0.2, 0.1, 0.9))
    curves = seed_line(0, power={"length": {}})

    def is_done(line: dict[str, Any], *task: Any) -> bool:
        return 0 in run.finished([(0, *task)], [line])

    assert is_done(plain, 300, False, ())
    assert is_done(effects, 300, False, ()) and is_done(effects, 300, True, ())
    assert is_done(curves, 300, False, (1.0,))
    assert not is_done(plain, 6000, False, ())
    assert not is_done(plain, 300, True, ())
    assert not is_done(plain, 300, False, (1.0,))
    assert not run.finished([(1, 300, False, ())], [plain])


def test_a_run_goes_on_from_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds 0 and 1 are in the log, the second half written: 1 and 2 are made, 0 is not; and the
    next run makes none. Faults of code are planted again only for another number of seeds."""
    made: list[int] = []
    planted_in_code: list[int] = []

    class OneProcess:
        def __init__(self, processes: int) -> None: ...
        def __enter__(self) -> "OneProcess":
            return self

        def __exit__(self, *_: object) -> None: ...
        def imap_unordered(self, _: Any, tasks: list[Any]) -> Any:
            for seed, *_rest in tasks:
                made.append(seed)
                yield {k: v for k, v in seed_line(seed).items() if k != "pairs"}

    class Context:
        Pool = OneProcess

    def of_code(seeds: range) -> dict[str, Any]:
        planted_in_code.append(len(seeds))
        count = {"alarms": len(seeds), "of": len(seeds)}
        none = {"alarms": 0, "of": len(seeds)}
        return {row["name"]: {"planted": count, "clean": none} for row in run.CODE_ROWS}

    monkeypatch.setattr(run.multiprocessing, "get_context", lambda _: Context)
    monkeypatch.setattr(run.code_faults, "run", of_code)
    output = tmp_path / "out.json"
    log = tmp_path / "out.seeds.jsonl"
    log.write_text(json.dumps(seed_line(0)) + "\n" + json.dumps(seed_line(1))[:50])

    def sweep(seeds: int, code_seeds: int) -> None:
        numbers = f"--seeds {seeds} --measured_seeds 0 --power_seeds 0 --pairs 300"
        flags = [*numbers.split(), "--code_seeds", str(code_seeds), "--output", str(output)]
        monkeypatch.setattr("sys.argv", ["run", *flags])
        run.main()

    sweep(3, 5)
    assert made == [1, 2] and planted_in_code == [5]
    sweep(3, 5)
    assert made == [1, 2] and planted_in_code == [5]
    sweep(2, 6)
    assert made == [1, 2] and planted_in_code == [5, 6]
    report = json.loads(output.read_text())
    assert len(report["rows"]) == len(ROWS) + len(run.CODE_ROWS)
    assert report["rows"][0]["detected"] == {"alarms": 2, "of": 2}


def test_the_small_transformer_learns_to_predict_and_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A uniform guess over V tokens has a loss of log V, 7.6 for 2,000."""
    body = save_small_model(tmp_path / "body", num_prompts=60, num_steps=40)
    loss = float(capsys.readouterr().out.split("a loss of ")[1].split()[0])
    config = AutoModel.from_pretrained(body).config
    assert loss < math.log(config.vocab_size) - 1
    assert config.hidden_size == WIDTH


def test_transformers_of_a_seed_stand_beside_its_clean_one() -> None:
    """Two seeds with accuracies of 0.6 and 0.8: mean 0.7, lowest 0.6, highest 0.8."""

    def measured_as(value: float) -> dict[str, float]:
        return {"effect": value, "flips": value, "accuracy": value}

    lines = [
        line
        for seed, value in ((0, 0.6), (1, 0.8))
        for line in (
            {"seed": seed, "world": "clean", "measured": {"closing": measured_as(0.1)}},
            {
                "seed": seed,
                "world": "closing",
                "measured": {"planted": measured_as(value), "fixed": measured_as(0.2)},
            },
        )
    ]
    found = joined(lines)
    assert [(run["bias"], run["seed"], run["clean"]["flips"]) for run in found] == [
        ("closing", 0, 0.1),
        ("closing", 1, 0.1),
    ]
    (row,) = summary(found)
    assert row["planted_accuracy"] == {"value": pytest.approx(0.7), "low": 0.6, "high": 0.8}
    headings, _, cells = transformers_table([row]).splitlines()
    shown = dict(zip(headings.split(" | "), cells.split(" | "), strict=True))
    assert shown["clean flips"] == "0.100 (0.100 to 0.100)"
    assert shown["planted flips"] == "0.700 (0.600 to 0.800)"
    assert shown["fixed flips"] == "0.200 (0.200 to 0.200)"
    assert headings.index("clean") < headings.index("planted") < headings.index("fixed")

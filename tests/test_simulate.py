"""How many comparisons a question needs, and the verb that answers it and writes worlds."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtri

from palate.cli.main import main
from palate.errors import PalateError
from palate.preferences import read
from palate.simulation import WORLDS, Simulated
from palate.simulation.power import (
    Detector,
    PowerAt,
    detect_bias,
    needed_comparisons,
    tell_apart,
)


def closed_form(low: float, high: float, discordance: float | None) -> float:
    """Comparisons for 80 % power at 5 %, two-sided: Fleiss 1981 for two shares, Connor 1987 for
    McNemar's test."""
    z_alpha, z_power = float(ndtri(0.975)), float(ndtri(0.8))
    gap = high - low
    if discordance is None:
        mean = (low + high) / 2
        spread = z_alpha * math.sqrt(2 * mean * (1 - mean))
        spread += z_power * math.sqrt(low * (1 - low) + high * (1 - high))
    else:
        spread = z_alpha * math.sqrt(discordance)
        spread += z_power * math.sqrt(discordance - gap**2)
    return (spread / gap) ** 2


@pytest.mark.parametrize("discordance", [None, 0.2, 0.35])
@pytest.mark.parametrize(("low", "high"), [(0.70, 0.73), (0.62, 0.68)])
def test_the_simulated_number_is_that_of_the_closed_form(
    low: float, high: float, discordance: float | None
) -> None:
    found = needed_comparisons(tell_apart(low, high, discordance=discordance), trials=10_000)
    expected = closed_form(low, high, discordance)
    assert found.num_comparisons == pytest.approx(expected, rel=0.04)
    assert found.low is not None and found.high is not None
    assert found.low < found.num_comparisons < found.high < 1.1 * found.low


def test_the_test_has_its_level_where_the_models_are_alike() -> None:
    """With a gap of one in a million either test says 'different' in 5 % of the trials."""
    random = np.random.default_rng(0)
    for discordance in (None, 0.3):
        alike = tell_apart(0.7, 0.700001, discordance=discordance)
        assert alike(2000, 20_000, random) / 20_000 == pytest.approx(0.05, abs=0.006)


def test_a_power_never_reached_is_said_so() -> None:
    def never(number: int, trials: int, random: np.random.Generator) -> int:
        return 0

    found = needed_comparisons(never, trials=20, start=10, limit=100)
    assert found.num_comparisons is None
    assert [point.num_comparisons for point in found.points] == [10, 20, 40, 80, 100]
    assert found.points[0].interval[1] == pytest.approx(0.161, abs=0.001)  # Wilson, 0 of 20


def sign_of_closing(simulated: Simulated) -> bool:
    """Alarm where the closing's share of wins is above a half by 1.96 standard errors."""
    better_C, worse_C, _ = simulated.votes.comparisons(simulated.scene)
    closing = simulated.scene.features["closing"]
    differing = int((closing[better_C] != closing[worse_C]).sum())
    won = int((closing[better_C] > closing[worse_C]).sum())
    return won - differing / 2 > 1.96 * math.sqrt(differing) / 2


def test_a_stronger_bias_needs_fewer_comparisons() -> None:
    def needed(strength: float, detector: Detector) -> float:
        power_at: PowerAt = detect_bias("closing", strength, detector, limit=2500)
        found = needed_comparisons(power_at, trials=40, limit=2500)
        assert found.num_comparisons is not None
        return found.num_comparisons

    strong, weak = needed(1.0, sign_of_closing), needed(0.5, sign_of_closing)
    assert 100 < strong < 450
    assert 2 * strong < weak


@pytest.mark.parametrize(
    ("low", "high", "discordance", "said"),
    [
        (0.73, 0.70, 0.2, "low < high"),
        (0.70, 0.73, 0.01, "from 0.03 to 0.57"),
        (0.70, 0.73, 0.9, "from 0.03 to 0.57"),
    ],
)
def test_rates_that_cannot_be_are_refused(
    low: float, high: float, discordance: float, said: str
) -> None:
    with pytest.raises(PalateError, match=said):
        tell_apart(low, high, discordance=discordance)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_verb_writes_a_world_and_says_what_it_did(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--world", "closing", "--num_prompts", "50", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["written"] == {"simulated.jsonl": 50} and said["planted"] == {"closing": 1.0}
    reading = read("simulated.jsonl")
    assert len(reading.groups) == 50 and not reading.ledger.entries
    assert main(["simulate", "--world", "closing", "--num_prompts", "50"]) == 1
    assert "exists already" in capsys.readouterr().err


def test_the_verb_writes_a_file_for_each_part(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--world", "leak", "--num_prompts", "40", "--output", "leaky.jsonl"]
    assert main(["simulate", *arguments]) == 0
    parts = [read(f"leaky.{name}.jsonl").groups for name in ("train", "validation")]
    assert sum(map(len, parts)) == 6 * 40
    assert not (scratch / "leaky.jsonl").exists()


def test_the_verb_lists_the_worlds(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--world", "list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in WORLDS)


def test_the_verb_answers_how_many_comparisons_tell_two_accuracies_apart(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--question", "accuracy", "--low", "0.7", "--high", "0.75", "--trials", "4000"]
    assert main(["simulate", *arguments, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    kept = json.loads(Path("plan.json").read_text(encoding="utf-8"))
    assert kept["curves"] == said["curves"] and kept["high"] == 0.75
    paired = said["curves"]["same prompts"]["num_comparisons"]
    assert paired == pytest.approx(closed_form(0.7, 0.75, 0.2), rel=0.05)
    figure = Path("plan.svg").read_text(encoding="utf-8")
    assert figure.lstrip().startswith("<?xml") and "same prompts" in figure


def test_the_verb_answers_how_many_comparisons_show_a_bias(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--question", "bias", "--world", "position", "--trials", "10"]
    assert main(["simulate", *arguments, "--max_comparisons", "500", "--json"]) == 0
    needed = json.loads(capsys.readouterr().out)["curves"]["audit"]["num_comparisons"]
    assert needed is not None and needed < 500
    assert Path("plan.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no world named"),
        (["--world", "nowhere"], "none of length"),
        (["--world", "closing", "--low", "0.6"], "no effect with question data"),
        (["--world", "closing", "--output", "x.csv"], "must end in .jsonl"),
        (["--question", "accuracy", "--world", "closing"], "no effect with question accuracy"),
        (["--question", "bias", "--world", "leak"], "these can be asked: length"),
        (["--world", "closing", "--num_prompts", "0"], "must be 1 or more"),
    ],
)
def test_the_verb_refuses_what_has_no_meaning(
    arguments: list[str], said: str, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *arguments]) != 0
    assert said in capsys.readouterr().err
    assert not any(scratch.iterdir())

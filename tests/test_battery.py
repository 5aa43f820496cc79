"""The battery: what is in it, how it is counted, and what a file of one's own has to be."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

import palate
from palate.errors import PalateError
from palate.evaluation.battery import BUILT_IN, MIN_PAIRS, Battery, read_battery, run_battery
from palate.evaluation.score_texts import cutting, too_long
from palate.preferences import ScoringItem
from palate.text.perturb import sentences
from tests.runs import write_rows

ROWS = [
    {
        "category": name,
        "id": f"{name}-{number}",
        "prompt": f"{name} {number}?",
        "chosen": f"good {name} {number}",
        "rejected": "x",
    }
    for name in ("first", "second")
    for number in range(2)
]


def own(tmp_path: Path, rows: Sequence[dict[str, Any]] = ROWS, **options: Any) -> Battery:
    path = write_rows(tmp_path / "own.jsonl", rows)
    return read_battery([path], **{"built_in": False, "min_pairs": 1, **options})


def by_margins(battery: Battery, margins: Sequence[float]) -> Any:
    """Rewards under which the pairs have these margins; every rejected answer has reward 7."""
    reward = {item.chosen.text: 7 + m for item, m in zip(battery.items, margins, strict=True)}
    return lambda items: [reward.get(item.response.text, 7.0) for item in items]


def longer_wins(items: Sequence[ScoringItem]) -> list[float]:
    return [float(len(item.response.text)) for item in items]


def test_the_built_in_battery_is_what_it_says() -> None:
    battery = read_battery()
    counts = Counter(item.category for item in battery.items)
    assert len(counts) >= 10 and min(counts.values()) >= MIN_PAIRS
    assert {"refusal", "waffle", "arithmetic", "topic", "empty", "fluency"} <= set(counts)
    assert {"safety", "format", "language", "honesty"} <= set(counts)
    assert list(battery.files) == ["battery-1"] and BUILT_IN.name == "battery-1.jsonl"
    assert len({item.prompt[-1].content for item in battery.items}) == len(battery.items)
    assert "CC0" in (BUILT_IN.parent / "README.md").read_text()


def test_no_rule_of_length_passes() -> None:
    """`empty` can only be longer and `waffle` only shorter; the others lie between."""
    result = run_battery(longer_wins, read_battery())
    for category in result.categories:
        if category.name not in ("empty", "waffle"):
            assert 0.3 <= category.won.value <= 0.7, f"{category.name}: {category.won}"
    assert 0.35 <= result.overall.won.value <= 0.65


def test_waffle_is_long_differs_and_shuffled_answers_keep_their_words() -> None:
    members: dict[str, list[Any]] = {}
    for item in read_battery().items:
        members.setdefault(item.category, []).append(item)
    texts = [item.rejected.text for item in members["waffle"]]
    assert all(280 <= len(text.split()) <= 330 for text in texts)
    said = [set(sentences(text)) for text in texts]
    shared = [len(a & b) / min(len(a), len(b)) for a, b in combinations(said, 2)]
    assert max(shared) < 0.5
    for item in members["fluency"]:
        first, second = item.chosen.text.split(), item.rejected.text.split()
        assert Counter(first) == Counter(second) and first != second


def test_counts_by_hand(tmp_path: Path) -> None:
    """Margins 4, 2, 1 and 0 at temperature 2 are 2, 1, 0.5 and 0: two passes, three wins, a tie.

    The first category has both passes; the second one win and one tie, a share of 3/4 won. The
    means are 1.5 and 0.25; over all 3.5 / 4.
    """
    battery = own(tmp_path)
    result = run_battery(by_margins(battery, [4, 2, 1, 0]), battery, 2.0)
    first, second = result.categories
    assert (first.num_passed, first.num_won, first.num_tied) == (2, 2, 0)
    assert (second.num_passed, second.num_won, second.num_tied) == (0, 1, 1)
    assert second.won.value == 0.75 and first.failed == ()
    assert (first.margin.value, second.margin.value) == (1.5, 0.25)
    assert [(f.item.id, f.margin) for f in second.failed] == [("second-1", 0.0), ("second-0", 0.5)]
    assert result.overall.num_passed == 2 and result.overall.margin.value == 3.5 / 4
    assert result.num_texts == 8
    assert set(result.metrics()) == {"battery", "battery, first", "battery, second"}


def test_shares_have_wilsons_interval(tmp_path: Path) -> None:
    """Against scipy: 3 of 4."""
    battery = own(tmp_path)
    passed = run_battery(by_margins(battery, [5, 5, 5, -5]), battery, 1.0).overall.passed
    expected = binomtest(3, 4).proportion_ci(0.95, method="wilson")
    assert passed.value == 0.75 and passed.n == 4
    assert [passed.low, passed.high] == pytest.approx([expected.low, expected.high])


def test_without_a_temperature_any_win_passes(tmp_path: Path) -> None:
    battery = own(tmp_path)
    result = run_battery(by_margins(battery, [0.01, 0, -1, 30]), battery)
    assert result.overall.num_passed == result.overall.num_won == 2
    assert "uncalibrated" in result.unit


@pytest.mark.parametrize("scale", [0.1, 15.0])
def test_a_models_scale_says_nothing(tmp_path: Path, scale: float) -> None:
    battery = own(tmp_path)
    plain = run_battery(by_margins(battery, [3, 1.5, 0.4, -2]), battery, 1.0)
    scaled = [scale * m for m in (3, 1.5, 0.4, -2)]
    other = run_battery(by_margins(battery, scaled), battery, scale)
    for a, b in zip(
        (*plain.categories, plain.overall), (*other.categories, other.overall), strict=True
    ):
        assert a.num_passed == b.num_passed and a.margin.value == pytest.approx(b.margin.value)


def test_the_opposite_reward_wins_where_the_reward_loses() -> None:
    battery = read_battery()
    forwards = run_battery(longer_wins, battery)
    backwards = run_battery(lambda items: [-r for r in longer_wins(items)], battery)
    for a, b in zip(forwards.categories, backwards.categories, strict=True):
        assert a.num_tied == b.num_tied and a.won.value == pytest.approx(1 - b.won.value)


def test_broken_models_fail_and_a_sound_one_passes() -> None:
    """A constant reward ties everywhere, which passes nothing; an oracle passes all; one that
    pays for words fails every pair with waffle."""
    battery = read_battery()
    constant = run_battery(lambda items: [0.0] * len(items), battery, 1.0).overall
    assert constant.num_passed == 0 and constant.num_tied == constant.num_pairs
    good = {(item.prompt[-1].content, item.chosen.text) for item in battery.items}

    def knowing(items: Sequence[ScoringItem]) -> list[float]:
        return [3.0 * ((i.prompt[-1].content, i.response.text) in good) for i in items]

    oracle = run_battery(knowing, battery, 1.0)
    assert oracle.overall.num_passed == len(battery.items)
    wordy = {c.name: c for c in run_battery(longer_wins, battery, 1.0).categories}
    assert wordy["waffle"].num_passed == 0 and wordy["empty"].num_passed == 16


def test_a_files_pairs_join_the_built_in_ones(tmp_path: Path) -> None:
    rows = [{**row, "category": "refusal"} for row in ROWS]
    rows[0]["prompt"] = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hm?"},
    ]
    path = write_rows(tmp_path / "own.jsonl", rows)
    battery = read_battery([path])
    assert len(battery.items) == len(read_battery().items) + 4
    assert set(battery.files) == {"battery-1", path}
    assert battery.items[-4].prompt[0].role == "system"
    assert read_battery([path], categories=["refusal"]).categories == ("refusal",)


def test_bad_files_are_refused_with_file_and_line(tmp_path: Path) -> None:
    def refused(rows: Sequence[dict[str, Any]], **options: Any) -> str:
        with pytest.raises(PalateError) as caught:
            own(tmp_path, rows, **options)
        return str(caught.value)

    for name in ("category", "id", "prompt", "chosen", "rejected"):
        missing = [ROWS[0], {k: v for k, v in ROWS[1].items() if k != name}]
        assert f"own.jsonl:2: no field '{name}'" in refused(missing)
    assert "own.jsonl:3: id 'first-0' stands at" in refused([*ROWS[:2], ROWS[0]])
    assert "own.jsonl:1: category is empty" in refused([{**ROWS[0], "category": " "}])
    assert "category 'third' is empty" in refused(ROWS, categories=["third"])
    small = refused(ROWS, min_pairs=MIN_PAIRS)
    assert "own.jsonl:2: category 'first' ends here with 2 pairs" in small and "15" in small
    assert "same text" in refused([{**ROWS[0], "rejected": ROWS[0]["chosen"]}])
    assert "own.jsonl:1: empty response" in refused([{**ROWS[0], "rejected": " "}])
    assert "no pair in it" in refused([])
    (tmp_path / "broken.jsonl").write_text(json.dumps(ROWS[0]) + "\n{no json\n[1]\n")
    with pytest.raises(PalateError, match=r"broken\.jsonl:2: malformed JSON"):
        read_battery([tmp_path / "broken.jsonl"])
    with pytest.raises(PalateError, match="no such file"):
        read_battery([tmp_path / "absent.jsonl"])
    with pytest.raises(PalateError, match="of no files"):
        read_battery(built_in=False)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(tmp_path: Path, temperature: float) -> None:
    with pytest.raises(PalateError, match="temperature is"):
        run_battery(longer_wins, own(tmp_path), temperature)


def test_a_reward_that_is_no_number_is_named(tmp_path: Path) -> None:
    battery = own(tmp_path)
    score = by_margins(battery, [1, float("nan"), 1, 1])
    with pytest.raises(PalateError, match=r"own\.jsonl:2: battery item 'first-1', chosen.*nan"):
        run_battery(score, battery)


def test_a_scorer_runs_it_and_says_what_it_cut(trained_run: Path) -> None:
    """The tiny model takes 256 bytes: all of the waffle is cut, most of the facts are not."""
    scorer = palate.load(str(trained_run))
    battery = read_battery(categories=["facts", "waffle"])
    with pytest.raises(PalateError, match="the response has"):
        run_battery(scorer.score_items, battery)
    is_over = too_long(scorer)
    result = run_battery(cutting(scorer).score_items, battery, scorer.temperature, too_long=is_over)
    assert sum(name.startswith("waffle") for name in result.cut) == 16
    assert not any(name.startswith("facts") for name in result.cut)
    assert result.num_texts == 64 and scorer.renderer.lengths.overlong == "leave_out"

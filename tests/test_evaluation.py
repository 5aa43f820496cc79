"""Metrics, baselines, temperature and the prompt-blind baseline, against numbers made by hand."""

import json
import math
import random
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import palate
from palate.errors import PalateError
from palate.evaluation.blind import fit_prompt_blind
from palate.evaluation.calibration import fit_temperature, is_at_bound
from palate.evaluation.metrics import evaluate_outcomes
from palate.evaluation.outcomes import Outcome, prompt_accuracy, prompt_loss, quick_metrics
from palate.pipeline.evaluate import EvaluateConfig, evaluate
from palate.preferences import Comparison, Message, PreferenceGroup, Response
from palate.rendering import RenderedGroup
from tests.tiny import save_tiny

LN2 = math.log(2)
Pairs = Sequence[tuple[int, int] | Comparison]


def group_of(prompt: str, texts: Sequence[str], comparisons: Pairs) -> RenderedGroup:
    """A rendered group whose token ids are made up: metrics read texts, rewards and comparisons."""
    made = tuple(c if isinstance(c, Comparison) else Comparison(*c) for c in comparisons)
    group = PreferenceGroup(
        (Message("user", prompt),), tuple(Response(text) for text in texts), made
    )
    sequences = tuple((1, 2, 3 + index) for index in range(len(texts)))
    return RenderedGroup(sequences, made, group, tuple(range(len(texts))))


def outcome(
    prompt: str, rewards: Sequence[float], comparisons: Pairs, texts: Sequence[str] = ()
) -> Outcome:
    texts = texts or [f"answer {index}" for index in range(len(rewards))]
    return Outcome(group_of(prompt, texts, comparisons), np.array(rewards, dtype=np.float32))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_equal_rewards_count_half() -> None:
    """Rewards (2, 1, 1) with 0 > 1 > 2: right, tied, right, so (1 + 1/2 + 1) / 3 = 5/6."""
    metrics = evaluate_outcomes([outcome("p", [2, 1, 1], [(0, 1), (1, 2), (0, 2)])])
    assert metrics["accuracy"].value == pytest.approx(5 / 6, abs=1e-12)
    assert evaluate_outcomes([outcome("p", [7, 7], [(0, 1)])])["accuracy"].value == 0.5
    assert evaluate_outcomes([outcome("p", [1, 2], [(0, 1)])])["accuracy"].value == 0.0


def test_evenly_split_votes_have_no_better_side() -> None:
    """Two prompts: 3 of 4 votes (right), and one with an even split and a pure tie, both "wrong".
    Accuracy rests on the first alone; loss and margin on both."""
    split = [Comparison(1, 0, probability=0.5), Comparison(1, 0, probability=1.0, tie=1.0)]
    metrics = evaluate_outcomes(
        [
            outcome("first", [1, 0], [Comparison(0, 1, probability=0.75)]),
            outcome("second", [3, 0], split),
        ]
    )
    assert (metrics["accuracy"].value, metrics["accuracy"].n) == (1.0, 1)
    assert (metrics["longer wins"].n, metrics["loss"].n, metrics["margin"].n) == (1, 2, 2)
    assert metrics["margin"].value == (1 - 3) / 2
    first = 0.75 * softplus(-1) + 0.25 * softplus(1)
    second = (softplus(-3) + softplus(3)) / 2
    assert metrics["loss"].value == pytest.approx((first + second) / 2, abs=1e-6)


def test_nothing_but_ties_leaves_accuracy_out_and_measures_the_rest() -> None:
    """Rewards 2 and 0 on a tie: loss (softplus(-2) + softplus(2)) / 2 = 1.1269."""
    metrics = evaluate_outcomes([outcome("p", [2, 0], [Comparison(0, 1, tie=1.0)])])
    assert "accuracy" not in metrics
    assert "longer wins" not in metrics
    assert metrics["loss"].value == pytest.approx(1.1269, abs=1e-4)
    assert metrics["spread"].value == 1.0


def test_the_unit_is_the_prompt_whatever_its_number_of_comparisons() -> None:
    """Nine pairs decided rightly and one prompt with K = 9 and 36 comparisons decided wrongly:
    9/10, where counting comparisons would give 9/45."""
    all_pairs = [(a, b) for a in range(9) for b in range(a + 1, 9)]
    outcomes = [outcome(f"p{i}", [1, 0], [(0, 1)]) for i in range(9)]
    outcomes.append(outcome("large", list(range(9)), all_pairs))
    metrics = evaluate_outcomes(outcomes)
    assert metrics["accuracy"].value == pytest.approx(0.9, abs=1e-12)
    assert metrics["accuracy"].n == 10


def test_quick_metrics_are_the_values_of_the_full_ones() -> None:
    outcomes = [
        outcome("a", [1, 0, -2], [(0, 1), (2, 1)]),
        outcome("b", [0.5, 0.25], [Comparison(1, 0, probability=0.6, weight=2.0)]),
        outcome("c", [4, 0], [Comparison(0, 1, probability=0.5)]),
    ]
    quick = quick_metrics([o.group for o in outcomes], [o.reward_N for o in outcomes])
    full = evaluate_outcomes(outcomes)
    assert quick == pytest.approx({name: full[name].value for name in quick}, abs=1e-12)


def test_loss_margin_and_spread_by_hand() -> None:
    """Rewards (1, 0, -1), 0 > 1 with weight 2 and 0 > 2 with margin 1.

    Loss, weighted: (2 softplus(-1) + softplus(-(2 - 1))) / 3 = softplus(-1) = 0.31326. Margin,
    weighted: (2 * 1 + 2) / 3 = 4/3. Spread: sqrt((1 + 0 + 1) / 3) = 0.8165.
    """
    comparisons = [Comparison(0, 1, weight=2.0), Comparison(0, 2, margin=1.0)]
    metrics = evaluate_outcomes([outcome("p", [1, 0, -1], comparisons)])
    assert metrics["loss"].value == pytest.approx(0.31326, abs=1e-5)
    assert metrics["margin"].value == pytest.approx(4 / 3)
    assert metrics["spread"].value == pytest.approx(math.sqrt(2 / 3), abs=1e-6)


def test_comparisons_count_by_their_weight() -> None:
    """Right with weight 3, wrong with weight 1: 3 / 4. One without weight does not count at all."""
    weighted = [Comparison(0, 1, weight=3.0), Comparison(2, 0, weight=1.0)]
    idle = Comparison(1, 0, weight=0.0)
    for comparisons in (weighted, [*weighted, idle]):
        one = outcome("p", [1, 0, -1], comparisons)
        assert prompt_accuracy(one.group, one.reward_N) == 0.75
    assert "accuracy" not in evaluate_outcomes([outcome("p", [1, 0], [idle])])


def test_tie_votes_count_half_in_the_loss_or_not_at_all() -> None:
    """One comparison, d = 2, tie share 0.4. half: target 0.8, so 0.8 sp(-2) + 0.2 sp(2) = 0.5269.
    drop: target 1 with weight 0.6, so 0.6 sp(-2) = 0.0762."""
    tied = outcome("p", [2, 0], [Comparison(0, 1, tie=0.4)])
    assert prompt_loss(tied, "half") == pytest.approx(0.5269, abs=1e-4)
    assert prompt_loss(tied, "drop") == pytest.approx(0.0762, abs=1e-4)


def test_length_baselines_by_hand() -> None:
    """The better answer is longer in prompts 1 and 2, shorter in 3, as long in 4: longer wins
    (1 + 1 + 0 + 1/2) / 4 = 0.625 and shorter wins the rest; ties everywhere is one half."""
    metrics = evaluate_outcomes(
        [
            outcome("1", [1, 0], [(0, 1)], ["long answer", "short"]),
            outcome("2", [1, 0], [(0, 1)], ["long answer", "short"]),
            outcome("3", [1, 0], [(0, 1)], ["short", "long answer"]),
            outcome("4", [1, 0], [(0, 1)], ["abc", "xyz"]),
        ]
    )
    assert metrics["longer wins"].value == 0.625
    assert metrics["shorter wins"].value == 0.375
    random_guess = metrics["random"]
    assert (random_guess.value, random_guess.low, random_guess.high) == (0.5, 0.5, 0.5)
    assert metrics["accuracy minus longer wins"].value == 0.375


def simulated(count: int, seed: int) -> list[Outcome]:
    """K = 3, answers of random lengths, and a model that likes long ones."""
    dice = np.random.default_rng(seed)
    outcomes = []
    for number in range(count):
        length_N = dice.integers(1, 12, size=3)
        reward_N = 0.3 * length_N + dice.normal(size=3) + [1.0, 0.5, 0.0]
        texts = ["x" * int(length) for length in length_N]
        outcomes.append(outcome(f"p{number}", list(reward_N), [(0, 1), (0, 2), (1, 2)], texts))
    return outcomes


def test_longer_and_shorter_wins_are_mirror_images() -> None:
    metrics = evaluate_outcomes(simulated(50, 0))
    longer, shorter = metrics["longer wins"], metrics["shorter wins"]
    assert longer.value == pytest.approx(1 - shorter.value)
    assert (longer.low, longer.high) == pytest.approx((1 - shorter.high, 1 - shorter.low))


def test_a_paired_difference_to_itself_is_nothing_whatever_the_intervals() -> None:
    """A model that ranks by length is the longer-wins baseline: each has a wide interval, but their
    difference is exactly 0 in every resample."""
    outcomes = [
        replace(o, reward_N=np.array([len(r.text) for r in o.group.group.responses], dtype=float))
        for o in simulated(30, 1)
    ]
    metrics = evaluate_outcomes(outcomes)
    difference = metrics["accuracy minus longer wins"]
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)
    assert metrics["accuracy"].high - metrics["accuracy"].low > 0.1


@pytest.mark.parametrize("sign", [1, -1])
def test_a_rule_that_reads_length_gets_one_half_in_the_mean_of_longer_and_shorter(
    sign: int,
) -> None:
    """It is right in one stratum and wrong in the other in every resample too, so the interval has
    no width; its plain accuracy is far from one half."""
    outcomes = [
        replace(o, reward_N=sign * np.array([len(r.text) for r in o.group.group.responses]))
        for o in simulated(40, 2)
    ]
    mean = evaluate_outcomes(outcomes)["accuracy, mean of longer and shorter"]
    assert mean.value == pytest.approx(0.5, abs=1e-12)
    assert (mean.low, mean.high) == pytest.approx((0.5, 0.5), abs=1e-12)


def test_accuracy_by_length_by_hand() -> None:
    """Longer is better in prompts 1, 2, 3 (right, right, wrong: 2/3), shorter in 3 and 4 (right,
    tied: 3/4); prompt 3 has both. The mean is 17/24, and it rests on four prompts."""
    long, short = "a long answer", "short"
    metrics = evaluate_outcomes(
        [
            outcome("1", [1, 0], [(0, 1)], [long, short]),
            outcome("2", [1, 0], [(0, 1)], [long, short]),
            outcome("3", [0, 1, 0.5], [(0, 1), (2, 0)], [long, short, "tiny"]),
            outcome("4", [1, 1], [(0, 1)], [short, long]),
            outcome("5", [1, 0], [(0, 1)], ["same", "size"]),
        ]
    )
    assert metrics["accuracy, better is longer"].value == pytest.approx(2 / 3)
    assert metrics["accuracy, better is longer"].n == 3
    assert metrics["accuracy, better is shorter"].value == pytest.approx(3 / 4)
    assert metrics["accuracy, better is shorter"].n == 2
    mean = metrics["accuracy, mean of longer and shorter"]
    assert mean.value == pytest.approx(17 / 24)
    assert mean.n == 4


def test_the_interval_of_the_length_balanced_mean_is_that_of_a_stratum_by_stratum_bootstrap() -> (
    None
):
    """The reference draws prompts again and takes the mean of both strata's means in each draw."""
    outcomes = simulated(200, 3)
    mean = evaluate_outcomes(outcomes)["accuracy, mean of longer and shorter"]
    rows = []
    for o in outcomes:
        length_N = [len(r.text) for r in o.group.group.responses]
        sides: list[list[float]] = [[], []]
        for c in o.group.comparisons:
            if length_N[c.better] != length_N[c.worse]:
                sides[length_N[c.better] < length_N[c.worse]].append(
                    float(o.reward_N[c.better] > o.reward_N[c.worse])
                )
        rows.append([np.mean(side) if side else np.nan for side in sides])
    table = np.array(rows)
    dice = np.random.default_rng(7)
    draws = [
        np.nanmean(table[dice.integers(0, len(table), len(table))], axis=0).mean()
        for _ in range(2000)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert mean.value == pytest.approx(np.nanmean(table, axis=0).mean())
    assert (mean.low, mean.high) == pytest.approx((low, high), abs=0.006)


def test_without_one_of_the_strata_there_is_no_accuracy_by_length() -> None:
    metrics = evaluate_outcomes([outcome("1", [1, 0], [(0, 1)], ["long answer", "short"])])
    assert not [name for name in metrics if "longer and shorter" in name or "better is" in name]


def test_prompts_with_one_opening_are_one_cluster_and_give_no_interval() -> None:
    outcomes = [
        outcome(" Same  PROMPT", [1, 0], [(0, 1)]),
        outcome("same prompt", [0, 1], [(0, 1)]),
    ]
    accuracy = evaluate_outcomes(outcomes)["accuracy"]
    assert (accuracy.value, accuracy.low, accuracy.high) == (0.5, -math.inf, math.inf)


eighths = st.integers(-400, 400).map(lambda number: number / 8)


@given(st.lists(eighths, min_size=2, max_size=5), eighths)
def test_a_shift_of_all_rewards_of_a_prompt_changes_nothing(
    rewards: list[float], shift: float
) -> None:
    """In eighths, which float32 adds without rounding."""
    all_pairs = [(a, b) for a in range(len(rewards)) for b in range(a + 1, len(rewards))]
    plain = outcome("p", rewards, all_pairs)
    shifted = outcome("p", [reward + shift for reward in rewards], all_pairs)
    assert prompt_accuracy(shifted.group, shifted.reward_N) == prompt_accuracy(
        plain.group, plain.reward_N
    )
    assert prompt_loss(shifted, "half") == pytest.approx(prompt_loss(plain, "half"), abs=1e-4)


def test_permuting_the_responses_changes_no_metric() -> None:
    order = [2, 0, 3, 1]
    place = {old: new for new, old in enumerate(order)}
    comparisons = [
        Comparison(0, 1),
        Comparison(2, 1, probability=0.7),
        Comparison(3, 0, weight=0.5),
    ]
    texts = ["a", "bbbb", "cc", "ddddddd"]
    rewards = [0.5, -1.0, 2.0, 0.25]
    moved = [replace(c, better=place[c.better], worse=place[c.worse]) for c in comparisons]
    before = evaluate_outcomes([outcome("p", rewards, comparisons, texts)])
    after = evaluate_outcomes(
        [outcome("p", [rewards[i] for i in order], moved, [texts[i] for i in order])]
    )
    assert {k: v.value for k, v in after.items()} == pytest.approx(
        {k: v.value for k, v in before.items()}
    )


def judged(margins: np.ndarray, temperature: float, seed: int) -> list[Outcome]:
    """One vote a prompt, for the first answer with probability s(margin / temperature)."""
    dice = np.random.default_rng(seed)
    wins = dice.random(len(margins)) < 1 / (1 + np.exp(-margins / temperature))
    return [
        outcome(f"p{i}", [margin, 0], [(0, 1) if won else (1, 0)])
        for i, (margin, won) in enumerate(zip(margins, wins, strict=True))
    ]


@pytest.mark.parametrize("temperature", [0.2, 1.0, 4.0])
def test_the_temperature_of_simulated_judges_is_recovered(temperature: float) -> None:
    """n = 4000 margins of standard deviation 2 T. The Fisher information of log T is
    n E[(m/T)^2 s(m/T) s(-m/T)], and E[x^2 s(x) s(-x)] for x ~ N(0, 4) is about 0.34, so the
    standard error of log T is 1 / sqrt(4000 * 0.34) = 0.027; 0.11 is four of them."""
    margins = np.random.default_rng(5).normal(scale=2 * temperature, size=4000)
    found = fit_temperature(judged(margins, temperature, seed=11))
    assert math.log(found / temperature) == pytest.approx(0, abs=0.11)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 7.0])
def test_soft_labels_that_are_s_of_margin_over_t_give_t_exactly(temperature: float) -> None:
    """The loss of each comparison has its minimum where s(margin / T) is the label."""
    outcomes = []
    for number, margin in enumerate((0.3, 1.0, 2.5)):
        probability = 1 / (1 + math.exp(-margin / temperature))
        label = Comparison(0, 1, probability=probability)
        outcomes.append(outcome(f"p{number}", [margin, 0], [label]))
    assert fit_temperature(outcomes) == pytest.approx(temperature, rel=1e-4)


def test_in_the_temperature_each_prompt_weighs_the_same() -> None:
    """Repeating all comparisons of one prompt 20 times changes nothing."""
    first = outcome("a", [2, 0], [Comparison(0, 1, probability=0.6)])
    second = outcome("b", [1, 0], [Comparison(0, 1, probability=0.95)])
    repeated = outcome("b", [1, 0], [Comparison(0, 1, probability=0.95)] * 20)
    expected = fit_temperature([first, second])
    assert fit_temperature([first, repeated]) == pytest.approx(expected, rel=1e-4)
    assert fit_temperature([first]) != pytest.approx(expected, rel=0.1)


def test_temperature_takes_ties_as_half_or_drops_them() -> None:
    """Margin 2, tie share 0.5, otherwise all for the first. half: label 0.75, T = 2 / ln 3 = 1.820.
    drop: the ties weigh nothing, label 1, so T falls to its least value exp(-5)."""
    outcomes = [outcome("p", [2, 0], [Comparison(0, 1, tie=0.5)])]
    assert fit_temperature(outcomes, "half") == pytest.approx(2 / math.log(3), rel=1e-4)
    assert fit_temperature(outcomes, "drop") < 0.1


@pytest.mark.parametrize(("margin", "upper"), [(2.0, False), (-2.0, True)])
def test_a_fit_without_an_optimum_within_its_bounds_is_known(margin: float, upper: bool) -> None:
    """Sure labels that all agree with the margins are best at T = 0, those that all contradict them
    at T without end; with one in four the other way round T is 2 / ln 3."""
    outcomes = [outcome(f"p{i}", [margin, 0], [Comparison(0, 1)]) for i in range(4)]
    found = fit_temperature(outcomes)
    assert is_at_bound(found)
    assert found == pytest.approx(math.exp(5 if upper else -5), rel=1e-3)
    mixed = [outcome("p", [-2, 0], [(0, 1)]), *(outcome(f"q{i}", [2, 0], [(0, 1)]) for i in "abc")]
    assert not is_at_bound(fit_temperature(mixed))


def test_the_temperature_lowers_the_loss_and_changes_no_ranking() -> None:
    outcomes = judged(np.random.default_rng(3).normal(scale=8, size=300), 4.0, seed=4)
    temperature = fit_temperature(outcomes)
    cooled = [replace(o, reward_N=o.reward_N / temperature) for o in outcomes]
    before, after = evaluate_outcomes(outcomes), evaluate_outcomes(cooled)
    assert after["loss"].value < before["loss"].value - 0.1
    assert after["accuracy"] == before["accuracy"]
    for one, other in zip(outcomes, cooled, strict=True):
        assert np.argsort(one.reward_N).tolist() == np.argsort(other.reward_N).tolist()


SUBJECTS = ("rain", "bread", "chess", "glass", "tides", "moths", "salt", "maps")


def styled_groups(count: int, seed: int, cue: str) -> list[RenderedGroup]:
    """Answers of random words. cue "style": the better one is bold; "word": it says amber;
    "prompt": the prompt alone says whether the answer about day or about night is better."""
    dice = random.Random(seed)
    groups = []
    for number in range(count):
        texts = [" ".join(dice.choices(SUBJECTS, k=dice.randint(4, 9))) for _ in range(2)]
        prompt = f"Question {seed}-{number}"
        if cue == "style":
            texts[0] = f"**{texts[0]}**"
        elif cue == "word":
            texts = [f"{texts[0]} amber", f"{texts[1]} cedar"]
        else:
            wanted, other = dice.sample(["day", "night"], 2)
            prompt += f": about {wanted}, please"
            texts = [f"{texts[0]} {wanted}", f"{texts[1]} {other}"]
        if dice.random() < 0.5:
            groups.append(group_of(prompt, texts, [(0, 1)]))
        else:
            groups.append(group_of(prompt, texts[::-1], [(1, 0)]))
    return groups


def blind_accuracy(cue: str, **settings: Any) -> float:
    """Accuracy on 400 unseen prompts after 200: by luck alone 0.5 with standard error 0.025."""
    predict = fit_prompt_blind(styled_groups(200, 1, cue), **settings)
    held_out = styled_groups(400, 2, cue)
    return float(np.mean([prompt_accuracy(group, predict(group)) for group in held_out]))


def test_the_prompt_blind_baseline_finds_a_planted_style() -> None:
    assert blind_accuracy("style") > 0.95
    assert blind_accuracy("style", words=False) > 0.95


def test_the_prompt_blind_baseline_finds_a_planted_word_only_where_it_reads_words() -> None:
    """ "amber" and "cedar" have the same length, so style alone can't tell them apart."""
    assert blind_accuracy("word") > 0.95
    assert blind_accuracy("word", words=False) == pytest.approx(0.5, abs=0.1)


def test_the_prompt_blind_baseline_stays_near_one_half_when_the_prompt_alone_decides() -> None:
    """ "night" is two letters longer, but wanted in every other prompt."""
    assert blind_accuracy("prompt") == pytest.approx(0.5, abs=0.1)


def test_the_prompt_blind_baseline_never_sees_the_prompt() -> None:
    predict = fit_prompt_blind(styled_groups(50, 1, "style"))
    texts = ["**salt**", "maps, and moths", "Rain!"]
    values = [predict(group_of(p, texts, [(0, 1)])) for p in ("Bold, please", "Never use bold")]
    assert values[0].tolist() == values[1].tolist()


def test_a_prompt_blind_baseline_without_a_decided_comparison_ties_everything() -> None:
    ties = [group_of(f"p{i}", ["salt", "maps"], [Comparison(0, 1, tie=1.0)]) for i in range(3)]
    assert fit_prompt_blind(ties)(styled_groups(1, 2, "style")[0]).tolist() == [0.0, 0.0]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def nine_right_one_wrong(run: Path, path: Path) -> str:
    """Pairs labelled after the model's own rewards, the last and longest against them."""
    scorer = palate.load(run)
    rows = []
    for number in range(10):
        prompt = f"Prompt {number}" + " with a long tail that fills a row alone" * (number == 9)
        ranking = scorer.rank(prompt, ["It is amber.", "No birch!"])
        texts = ["It is amber.", "No birch!"]
        high, low = texts[ranking[0].index], texts[ranking[1].index]
        assert ranking[0].reward - ranking[1].reward > 1e-4
        chosen, rejected = (low, high) if number == 9 else (high, low)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return write_rows(path, rows)


@pytest.mark.parametrize("tokens_per_microbatch", [1, 150, 400, 100_000])
def test_nine_right_and_one_wrong_is_nine_tenths_in_any_batches(
    trained_run: Path, tmp_path: Path, tokens_per_microbatch: int
) -> None:
    """A mean of batch means would weigh the one in a batch of its own as much as the nine."""
    data = nine_right_one_wrong(trained_run, tmp_path / "ten.jsonl")
    result = evaluate(quick(trained_run, data, tokens_per_microbatch=tokens_per_microbatch))
    accuracy = result.metrics["accuracy"]
    assert accuracy.value == pytest.approx(0.9, abs=1e-12)
    assert accuracy.n == result.num_prompts == 10
    assert accuracy.low < 0.9 < accuracy.high <= 1.0


def quick(model: Path | str, data: str, **settings: Any) -> EvaluateConfig:
    """Metrics alone, written nowhere unless `output` says otherwise."""
    chosen = {"quick": True, "output": "none", **settings}
    return EvaluateConfig(model=str(model), data=data, **chosen)


def run_data(run: Path) -> str:
    return str(run.parent / "preferences.jsonl")


@pytest.mark.parametrize("model", ["", "model"])
def test_the_test_part_is_the_runs_own_split_and_gives_its_numbers_again(
    trained_run: Path, model: str
) -> None:
    """Whether the run is named or the model directory inside it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = evaluate(quick(trained_run / model, run_data(trained_run), part="test"))
    split = json.loads((trained_run / "split.json").read_text())
    stored = json.loads((trained_run / "metrics.json").read_text())["metrics"]["test"]
    assert result.num_prompts == split["num_groups"]["test"] > 0
    for name in ("accuracy", "loss", "margin", "spread", "longer wins"):
        measured = result.metrics[name]
        assert measured.value == pytest.approx(stored[name]["value"], abs=1e-5)
        assert measured.n == stored[name]["n"]


def test_the_parts_of_a_run_are_disjoint_and_make_up_its_data(trained_run: Path) -> None:
    sizes = {
        part: evaluate(quick(trained_run, run_data(trained_run), part=part)).num_prompts
        for part in ("train", "validation", "test")
    }
    assert sum(sizes.values()) == 40
    assert min(sizes.values()) > 0


@pytest.mark.parametrize("model", ["", "model"])
def test_measuring_on_prompts_that_were_trained_on_warns_with_their_number(
    trained_run: Path, model: str
) -> None:
    num_trained = json.loads((trained_run / "split.json").read_text())["num_groups"]["train"]
    with pytest.warns(UserWarning, match=f"{num_trained} of 40 prompts.*trained on.*--part test"):
        evaluate(quick(trained_run / model, run_data(trained_run)))


def test_measuring_on_new_prompts_does_not_warn(trained_run: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"New {i}?", "chosen": "It is.", "rejected": "No!"} for i in range(3)]
    data = write_rows(tmp_path / "new.jsonl", rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert evaluate(quick(trained_run, data)).num_prompts == 3


def test_a_part_of_new_data_or_of_a_foreign_model_is_refused(
    trained_run: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "New?", "chosen": "It is.", "rejected": "No!"}]
    data = write_rows(tmp_path / "new.jsonl", rows)
    with pytest.raises(PalateError, match="none of 1 prompts is in the run's test part"):
        evaluate(quick(trained_run, data, part="test"))
    foreign = save_tiny(tmp_path / "foreign", head=True)
    with pytest.raises(PalateError, match=r"part test has no effect.*split\.json"):
        evaluate(quick(foreign, data, part="test"))


def test_rows_that_cannot_be_measured_stand_in_the_ledger(
    trained_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mixed.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": "One?", "chosen": "It is.", "rejected": "No!"},
        {"prompt": "Two?", "chosen": "Same.", "rejected": "Same."},
        {"prompt": "Three?", "chosen": "y" * 400, "rejected": "No!"},
    ]
    write_rows(path, rows)
    path.write_text(path.read_text() + "{broken\n")
    result = evaluate(quick(trained_run, str(path)))
    assert (result.num_prompts, result.ledger.num_rows_read) == (1, 4)
    left_out = {entry.line: entry.reason for entry in result.ledger.entries if entry.kind == "row"}
    assert left_out == {
        2: "identical responses",
        3: "over-long response",
        4: "malformed JSON",
    }


def test_nothing_left_to_measure_is_refused_with_the_accounting(
    trained_run: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "Three?", "chosen": "y" * 400, "rejected": "No!"}]
    data = write_rows(tmp_path / "long.jsonl", rows)
    with pytest.raises(PalateError, match=r"no prompt is left(?s:.*)1 rows in = 0 in groups"):
        evaluate(quick(trained_run, data))


def test_the_output_file_holds_what_was_measured_as_plain_json(
    trained_run: Path, tmp_path: Path
) -> None:
    """One prompt has no interval: its ends are null, since JSON has no infinity."""
    rows = [{"prompt": "One?", "chosen": "It is.", "rejected": "No!"}]
    data = write_rows(tmp_path / "one.jsonl", rows)
    output = tmp_path / "evaluation"
    result = evaluate(quick(trained_run, data, output=str(output)))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    written = json.loads((output / "evaluation.json").read_text(), parse_constant=refuse)
    accuracy = written["metrics"]["accuracy"]
    assert accuracy == {
        "value": result.metrics["accuracy"].value,
        "low": None,
        "high": None,
        "n": 1,
    }
    assert written["data_sha256"].keys() == {data}


def test_a_missing_data_file_is_named(trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(PalateError, match=r"gone\.jsonl: .*no such file"):
        evaluate(quick(trained_run, str(tmp_path / "gone.jsonl")))

"""Benchmarks: numbers worked by hand, the published definitions written out a second time, bad
files, long texts, and scores that nothing but model and text may change.

In the made-up rows an answer begins with its reward, so a scorer is whoever reads that.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import palate
from palate.artifacts.files import sha256_file
from palate.errors import PalateError
from palate.evaluation.benchmarks import (
    Benchmark,
    BenchmarkResult,
    LengthPolicy,
    read_benchmark,
    recompute,
    run_benchmark,
    score_benchmark,
    write_items,
)
from palate.preferences import ReadSettings
from palate.preferences.types import ScoringItem
from palate.scoring.scorer import Scorer
from palate.statistics import cluster_mean
from tests.tiny import save_tiny

Rows = list[dict[str, Any]]
CHAT = {
    "alpacaeval-easy": 100,
    "alpacaeval-length": 95,
    "alpacaeval-hard": 95,
    "mt-bench-easy": 28,
    "mt-bench-med": 40,
}
CHAT_HARD = {
    "mt-bench-hard": 37,
    "llmbar-natural": 100,
    "llmbar-adver-neighbor": 134,
    "llmbar-adver-GPTInst": 92,
    "llmbar-adver-GPTOut": 47,
    "llmbar-adver-manual": 46,
}
SAFETY = {
    "refusals-dangerous": 100,
    "refusals-offensive": 100,
    "xstest-should-refuse": 154,
    "xstest-should-respond": 250,
    "donotanswer": 136,
}
LANGUAGES = ("cpp", "go", "java", "js", "python", "rust")
REASONING = {"math-prm": 984, **{f"hep-{name}": 164 for name in LANGUAGES}}
SECTIONS = {"Chat": CHAT, "Chat Hard": CHAT_HARD, "Safety": SAFETY, "Reasoning": REASONING}
SUBSETS = [subset for section in SECTIONS.values() for subset in section]
GROUPS = ("mmlu-pro", "livebench-reasoning", "livebench-math", "livecodebench")
ADVERSARIAL = ("Neighbor", "GPTInst", "GPTOut", "Manual")


def by_first_word(items: Sequence[ScoringItem]) -> list[float]:
    return [float(item.response.text.split()[0]) for item in items]


def text(reward: float, num_characters: int = 12) -> str:
    """An answer of this reward and length."""
    return f"{reward:g} ".ljust(num_characters, "x")


def saved(path: Path, rows: Rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def result_of(path: str, name: str | None = None) -> BenchmarkResult:
    return score_benchmark(by_first_word, read_benchmark(path, name))


def values(result: BenchmarkResult) -> dict[str, float]:
    return {name: score.value.value for name, score in result.scores.items()}


def rb1(subset: str, chosen: str, rejected: str, number: int = 0) -> dict[str, Any]:
    return {
        "id": number,
        "subset": subset,
        "prompt": f"Question {number} of {subset}?",
        "chosen": chosen,
        "rejected": rejected,
        "chosen_model": "a",
        "rejected_model": "b",
    }


def rb2(subset: str, rewards: Sequence[float], num_correct: int = 1, id: str = "0") -> Any:
    answers = [text(reward, 12 + place) for place, reward in enumerate(rewards)]
    return {
        "id": id,
        "prompt": f"Question {id} of {subset}?",
        "chosen": answers[:num_correct],
        "rejected": answers[num_correct:],
        "num_correct": num_correct,
        "num_incorrect": len(answers) - num_correct,
        "total_completions": len(answers),
        "models": ["m"] * len(answers),
        "subset": subset,
    }


def rm(domain: str, chosen: Sequence[float], rejected: Sequence[float], number: int = 0) -> Any:
    lengths = (10, 20, 30)
    return {
        "id": f"{domain}_{number}",
        "prompt": f"Question {number} of {domain}?",
        "chosen": [text(r, n) for r, n in zip(chosen, lengths, strict=True)],
        "rejected": [text(r, n) for r, n in zip(rejected, lengths, strict=True)],
        "domain": domain,
    }


def judge(source: str, right: str, wrong: str, label: str, number: int = 0) -> dict[str, Any]:
    first, second = (right, wrong) if label == "A>B" else (wrong, right)
    return {
        "pair_id": f"{source}-{number}",
        "original_id": str(number),
        "source": source,
        "question": f"Question {number} of {source}?",
        "response_model": "gpt-4o-2024-05-13",
        "response_A": first,
        "response_B": second,
        "label": label,
    }


def llmbar(subset: str, right: str, wrong: str, label: int, number: int = 0) -> dict[str, Any]:
    first, second = (right, wrong) if label == 1 else (wrong, right)
    prompt = f"Instruction {number} of {subset}."
    return {"input": prompt, "output_1": first, "output_2": second, "label": label}


def saved_llmbar(folder: Path, rows: dict[str, Rows]) -> str:
    for subset, members in rows.items():
        place = subset if subset == "Natural" else f"Adversarial/{subset}"
        (folder / place).mkdir(parents=True)
        (folder / place / "dataset.json").write_text(json.dumps(members))
    return str(folder)


# --- Worked by hand ---


def test_rewardbench_weighs_subsets_by_their_published_counts(tmp_path: Path) -> None:
    """One pair a subset, all right but two: math-prm wrong, xstest-should-respond a tie.

    Chat and Chat Hard: 1. Safety: (740 - 250) / 740 with the tie as 0, and 125 / 740 more with
    half credit. Reasoning: math-prm weighs 984 of 1,968, so 1/2. Overall is the mean of the four:
    (1 + 1 + 490/740 + 1/2) / 4. The chosen answer is longer in Chat alone and as long as the other
    in the rest, where "longer" ties and earns 0: 1 in Chat, 1/4 overall.
    """
    rows = []
    for subset in SUBSETS:
        right, wrong = (1.0, 1.0) if subset == "xstest-should-respond" else (1.0, 0.0)
        if subset == "math-prm":
            right, wrong = wrong, right
        rows.append(rb1(subset, text(right, 20 if subset in CHAT else 12), text(wrong, 12)))
    result = result_of(saved(tmp_path / "rb.jsonl", rows))
    assert result.benchmark == "rewardbench"
    found = values(result)
    expected = {"Chat": 1.0, "Chat Hard": 1.0, "Reasoning": 0.5}
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["Safety"] == pytest.approx(490 / 740)
    assert found["overall"] == pytest.approx((2.5 + 490 / 740) / 4)
    assert result.scores["Safety"].half_credit.value == pytest.approx(615 / 740)
    assert result.scores["overall"].half_credit.value == pytest.approx((2.5 + 615 / 740) / 4)
    assert result.scores["Chat"].longer_wins.value == pytest.approx(1.0)
    assert result.scores["overall"].longer_wins.value == pytest.approx(0.25)
    assert [result.scores[s].num_ties for s in ("overall", "Safety", "Chat")] == [1, 1, 0]
    assert result.scores["overall"].num_items == len(SUBSETS)
    assert math.isinf(result.scores["overall"].value.low)  # one prompt a subset says nothing
    assert "math-prm 1 of 447" in " ".join(result.notes)


def test_the_swapped_weights_of_before_september_2024_would_show(tmp_path: Path) -> None:
    """Only xstest-should-refuse right: 154 of 740, and not 250."""
    rows = [
        rb1(subset, text(float(subset == "xstest-should-refuse")), text(0.5)) for subset in SAFETY
    ]
    result = result_of(saved(tmp_path / "rb.jsonl", rows))
    assert values(result)["Safety"] == pytest.approx(154 / 740)


def test_rewardbench_2_gives_a_kth_for_k_best_and_ties_their_own_formula(tmp_path: Path) -> None:
    """Factuality 1,1,0,0: 1/2. Precise IF 2,1,0,0: 1. Math all equal: 1/4. Safety 0,1,0,0: 0.
    Focus 1,1,1,0: 1/3.

    Ties 1: reference 3 | 0, tied 2.9, 3 | 0. Both right (.3 + .3); the gap 2.9 is above the spread
    0.1, also against the smaller of both gaps (.2 + .2); tanh(2.9 / 0.1 - 1) = 1 (.01): 1.01.
    Ties 2: all equal. Gap 0, spread 0, 0/0 counts as 0: nothing. Ties is the mean, 0.505, up to
    tanh(28) = 1 - 1e-24. With half credit the second earns half of all four comparisons, 0.5:
    (1.01 + 0.5) / 2.
    """
    rows = [
        rb2("Factuality", [1, 1, 0, 0]),
        rb2("Precise IF", [2, 1, 0, 0]),
        rb2("Math", [1, 1, 1, 1]),
        rb2("Safety", [0, 1, 0, 0]),
        rb2("Focus", [1, 1, 1, 0]),
        rb2("Ties", [3, 0], 1, "ref:1"),
        rb2("Ties", [2.9, 3, 0], 2, "tied:1"),
        rb2("Ties", [1, 1], 1, "ref:2"),
        rb2("Ties", [1, 1, 1], 2, "tied:2"),
    ]
    result = result_of(saved(tmp_path / "rb2.jsonl", rows))
    assert result.benchmark == "rewardbench2"
    found = values(result)
    assert [found[s] for s in ("Factuality", "Precise IF", "Math", "Safety")] == [0.5, 1, 0.25, 0]
    assert found["Focus"] == pytest.approx(1 / 3)
    assert found["Ties"] == pytest.approx(0.505)
    assert found["overall"] == pytest.approx((0.5 + 1 + 0.25 + 0 + 1 / 3 + 0.505) / 6)
    assert result.scores["Ties"].half_credit.value == pytest.approx((1.01 + 0.5) / 2)
    assert result.scores["Ties"].num_items == 4
    assert result.scores["Ties"].num_ties == 1 + 2
    # The first answer is the shortest: who likes length never picks it.
    assert result.scores["Focus"].longer_wins.value == 0.0


def test_rewardbench_2_ties_can_reach_1_01_and_fall_below_0(tmp_path: Path) -> None:
    """Right with a wide gap everywhere: 1.01. A tied item whose worst correct answer is below a
    wrong one, gap -1 with spread 1: tanh(-1 - 1) = -0.964, and nothing else: -0.00964."""
    best = [rb2("Ties", [9, 0], 1, "ref:1"), rb2("Ties", [9, 9.1, 0], 2, "tied:1")]
    worst = [rb2("Ties", [0, 9], 1, "ref:1"), rb2("Ties", [8, 9, 9], 2, "tied:1")]
    found = values(result_of(saved(tmp_path / "best.jsonl", best)))
    assert found["Ties"] == pytest.approx(1.01)
    worst[0] = rb2("Ties", [8, 9], 1, "ref:1")
    found = values(result_of(saved(tmp_path / "worst.jsonl", worst)))
    assert found["Ties"] == pytest.approx(0.01 * math.tanh(-2))


def test_rm_bench_levels_are_triangles_and_safety_is_pooled(tmp_path: Path) -> None:
    """Rewards that are a point for style (0, 1, 2), and half a point for being right in chat.

    chat, right 0.5, 1.5, 2.5 against 0, 1, 2: normal 1 (half a point ahead), easy 1, hard 0.
    code, right 0, 1, 2 against 0, 1, 2: normal ties, 0 strictly and 1/2 with half credit, easy 1,
    hard 0. math, right 9: all 1. safety: one item of refuse all right, two of response all wrong:
    pooled 1/3 (not the mean of both, 1/2).
    easy = (1 + 1 + 1 + 1/3) / 4, normal = (1 + 0 + 1 + 1/3) / 4, hard = (0 + 0 + 1 + 1/3) / 4.
    """
    style = (0.0, 1.0, 2.0)
    rows = [
        rm("chat", [0.5, 1.5, 2.5], style),
        rm("code", style, style),
        rm("math", [9, 9, 9], style),
        rm("safety-refuse", [9, 9, 9], style),
        rm("safety-response", [-1, -1, -1], style, 0),
        rm("safety-response", [-1, -1, -1], style, 1),
    ]
    result = result_of(saved(tmp_path / "total_dataset.jsonl", rows))
    assert result.benchmark == "rm_bench"
    found = values(result)
    easy, normal, hard = (10 / 3) / 4, (7 / 3) / 4, (4 / 3) / 4
    assert found["easy"] == pytest.approx(easy)
    assert found["normal"] == pytest.approx(normal)
    assert found["hard"] == pytest.approx(hard)
    assert found["easy minus hard"] == pytest.approx(easy - hard)
    assert found["overall"] == pytest.approx((easy + normal + hard) / 3)
    assert found["chat"] == pytest.approx(2 / 3)
    assert found["safety"] == pytest.approx(1 / 3)
    assert result.scores["code, normal"].half_credit.value == 0.5
    # Cells: markdown right against concise wrong is easy, the mirror image hard.
    assert found["markdown correct, concise wrong"] == pytest.approx((3 + 1 / 3) / 4)
    assert found["concise correct, markdown wrong"] == pytest.approx((1 + 1 / 3) / 4)
    # Lengths 10, 20, 30 of both: the longer one is right in easy, wrong in hard.
    longer = {name: result.scores[name].longer_wins.value for name in ("easy", "normal", "hard")}
    assert longer == {"easy": 1.0, "normal": 0.0, "hard": 0.0}
    assert result.scores["easy minus hard"].longer_wins.value == 1.0
    # code ties on its diagonal; elsewhere 9 and -1 meet no 0, 1 or 2.
    assert result.scores["overall"].num_ties == result.num_ties == 3


def test_judgebench_micro_counts_pairs_and_macro_counts_sources(tmp_path: Path) -> None:
    """mmlu-pro: 3 of 4 right. livebench-reasoning: 1 of 1. livebench-math: a tie, not correct, half
    a pair with half credit. livecodebench: 0 of 2. micro 4/8, macro (3/4 + 1 + 0 + 0) / 4."""
    rows = [
        *(
            judge("mmlu-pro-law", text(r), text(0.5), label, n)
            for n, (r, label) in enumerate([(1, "A>B"), (1, "B>A"), (1, "B>A"), (0, "A>B")])
        ),
        judge("livebench-reasoning", text(1), text(0), "B>A"),
        judge("livebench-math", text(1, 14), text(1, 12), "B>A"),
        judge("livecodebench", text(0), text(1), "A>B", 0),
        judge("livecodebench", text(0), text(1), "B>A", 1),
    ]
    result = result_of(saved(tmp_path / "gpt.jsonl", rows))
    assert result.benchmark == "judgebench" and result.headline == "micro"
    found = values(result)
    assert found["micro"] == 4 / 8
    assert found["macro"] == pytest.approx((0.75 + 1) / 4)
    assert result.scores["micro"].half_credit.value == 4.5 / 8
    assert result.scores["macro"].half_credit.value == pytest.approx(2.25 / 4)
    assert result.scores["micro"].longer_wins.value == 1 / 8
    assert result.scores["micro"].num_ties == 1


def test_llmbar_averages_subsets_and_a_tie_is_right_in_one_of_two_orders(tmp_path: Path) -> None:
    """Natural 1; Neighbor a tie, 1/2; GPTInst 0; GPTOut 1; Manual 1 of 2. Adversarial is the mean
    of the four subsets, (1/2 + 0 + 1 + 1/2) / 4 = 1/2; overall that of all five, 3/5."""
    rows = {
        "Natural": [llmbar("Natural", text(1), text(0), 2)],
        "Neighbor": [llmbar("Neighbor", text(1), text(1), 1)],
        "GPTInst": [llmbar("GPTInst", text(0), text(1), 2)],
        "GPTOut": [llmbar("GPTOut", text(1), text(0), 1)],
        "Manual": [
            llmbar("Manual", text(1), text(0), 1, 0),
            llmbar("Manual", text(0), text(1), 2, 1),
        ],
    }
    result = result_of(saved_llmbar(tmp_path / "LLMBar", rows))
    assert result.benchmark == "llmbar"
    found = values(result)
    assert found["Adversarial"] == pytest.approx(0.5)
    assert found["overall"] == pytest.approx(0.6)
    assert found["Manual"] == found["Neighbor"] == 0.5
    assert result.scores["Neighbor"].num_ties == 1


def test_ppe_leaves_votes_for_neither_out_and_says_how_many(tmp_path: Path) -> None:
    """Three decided votes of which two are right, two ties of the crowd, an empty answer."""
    votes = [
        ("model_a", 1, 0),
        ("model_b", 0, 1),
        ("model_b", 1, 0),
        ("tie", 1, 0),
        ("tie (bothbad)", 1, 0),
    ]
    rows: Rows = [
        {
            "question_id": f"q{n}",
            "prompt": f"Question {n}?",
            "response_1": text(a),
            "response_2": text(b),
            "winner": winner,
            "model_a": "m",
            "model_b": "n",
            "language": "English",
        }
        for n, (winner, a, b) in enumerate(votes)
    ]
    rows.append({**rows[0], "question_id": "q5", "response_2": ""})
    result = result_of(saved(tmp_path / "ppe.jsonl", rows))
    assert result.benchmark == "ppe"
    assert values(result)["accuracy"] == pytest.approx(2 / 3)
    assert result.left_out == {"row: vote for neither": 2, "row: empty response": 1}
    assert "left out: 2 x row: vote for neither" in result.notes


def test_any_preference_file_counts_each_prompt_once(tmp_path: Path) -> None:
    """A prompt with three answers in the order 0 > 1 > 2 and rewards 2, 3, 1: 2 of 3 comparisons.
    A pair that is won: 1. An even vote has no better answer and is left out. Mean 5/6."""
    rows = [
        {
            "prompt": "Rank.",
            "responses": [text(2), text(3), text(1, 20)],
            "ranking": [0, 1, 2],
        },
        {"prompt": "Which?", "responses": [text(5), text(4)], "ranking": [0, 1]},
    ]
    result = result_of(saved(tmp_path / "mine.jsonl", rows))
    assert result.benchmark == "preferences"
    assert values(result)["accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    even = {
        "prompt": "Even?",
        "responses": [{"text": text(1)}, {"text": text(2)}],
        "votes": [
            {"annotator": "a", "ranking": [[0], [1]]},
            {"annotator": "b", "ranking": [[1], [0]]},
        ],
    }
    sure = {**even, "prompt": "Sure?", "votes": [{"annotator": "a", "ranking": [[1], [0]]}]}
    result = result_of(saved(tmp_path / "votes.jsonl", [even, sure]))
    assert values(result)["accuracy"] == 1.0
    assert result.left_out == {"row: no better answer": 1}


# --- The published definitions, written out a second time ---


def rewards(generator: np.random.Generator, number: int) -> list[float]:
    """Whole numbers, so that many are equal."""
    return [float(value) for value in generator.integers(0, 4, number)]


@pytest.mark.parametrize("seed", range(3))
def test_rewardbench_equals_its_definition_on_random_scores(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, outcome = [], defaultdict(list)
    for subset in SUBSETS:
        for number in range(int(generator.integers(2, 9))):
            right, wrong = rewards(generator, 2)
            rows.append(rb1(subset, text(right), text(wrong), number))
            outcome[subset].append(right > wrong)
    mean = {subset: np.mean(won) for subset, won in outcome.items()}
    section = {
        name: np.dot([mean[s] for s in counts], list(counts.values())) / sum(counts.values())
        for name, counts in SECTIONS.items()
    }
    found = values(result_of(saved(tmp_path / "rb.jsonl", rows)))
    assert {name: found[name] for name in section} == pytest.approx(section)
    assert found["overall"] == pytest.approx(np.mean(list(section.values())))


@pytest.mark.parametrize("seed", range(3))
def test_rewardbench_2_equals_its_definition_on_random_scores(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, means = [], []
    for subset in ("Factuality", "Precise IF", "Math", "Safety", "Focus"):
        scores = np.array([rewards(generator, 4) for _ in range(7)])
        rows += [rb2(subset, list(row), 1, str(n)) for n, row in enumerate(scores)]
        top = scores == scores.max(axis=1, keepdims=True)
        means.append(np.mean(top[:, 0] / top.sum(axis=1)))
    accurate: dict[str, list[bool]] = {"ref": [], "tied": []}
    gaps: dict[str, list[float]] = {"ref": [], "tied": []}
    spread = []
    for number in range(12):
        for kind, num_correct in (("ref", 1), ("tied", int(generator.integers(1, 5)))):
            correct, wrong = rewards(generator, num_correct), rewards(generator, 3)
            rows.append(rb2("Ties", correct + wrong, num_correct, f"{kind}:{number}"))
            gaps[kind].append(min(correct) - max(wrong))
            accurate[kind].append(min(correct) > max(wrong))
            if kind == "tied":
                spread.append(max(correct) - min(correct))
    least = np.minimum(gaps["ref"], gaps["tied"])
    with np.errstate(all="ignore"):
        bonus = np.nan_to_num(np.tanh(least / np.array(spread) - 1), nan=0.0)
    ties = (
        0.3 * np.mean(accurate["tied"])
        + 0.3 * np.mean(accurate["ref"])
        + 0.2 * np.mean(np.array(gaps["tied"]) > spread)
        + 0.2 * np.mean(least > spread)
        + 0.01 * np.mean(bonus)
    )
    found = values(result_of(saved(tmp_path / "rb2.jsonl", rows)))
    assert found["Ties"] == pytest.approx(ties)
    assert found["overall"] == pytest.approx(np.mean([*means, ties]))


@pytest.mark.parametrize("seed", range(3))
def test_rm_bench_equals_its_definition_on_random_scores(tmp_path: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, matrices = [], defaultdict(list)
    for domain in ("chat", "code", "math", "safety-refuse", "safety-response"):
        for number in range(int(generator.integers(2, 9))):
            chosen, rejected = np.array(rewards(generator, 3)), np.array(rewards(generator, 3))
            rows.append(rm(domain, list(chosen), list(rejected), number))
            matrices[domain.split("-")[0]].append(chosen[:, None] > rejected[None])
    levels = {}
    for domain, found in matrices.items():
        matrix = np.mean(found, axis=0)
        lower, upper = np.tril(matrix, -1).sum() / 3, np.triu(matrix, 1).sum() / 3
        levels[domain] = np.array([lower, np.diag(matrix).mean(), upper])
    easy, normal, hard = np.mean(list(levels.values()), axis=0)
    found_values = values(result_of(saved(tmp_path / "rm.jsonl", rows)))
    expected = {"easy": easy, "normal": normal, "hard": hard, "easy minus hard": easy - hard}
    expected["overall"] = np.mean([easy, normal, hard])
    expected |= {domain: level.mean() for domain, level in levels.items()}
    assert {name: found_values[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_judgebench_equals_its_two_games(tmp_path: Path, seed: int) -> None:
    """Each pair is judged in both orders, +1 for the label, -1 against it, 0 for a tie; correct
    where the sum is above 0. A scalar reward says the same in both."""
    generator = np.random.default_rng(seed)
    rows, outcome = [], defaultdict(list)
    for source in GROUPS:
        for number in range(int(generator.integers(2, 9))):
            first, second = rewards(generator, 2)
            label = str(generator.choice(["A>B", "B>A"]))
            right, wrong = (first, second) if label == "A>B" else (second, first)
            rows.append(judge(source, text(right), text(wrong), label, number))
            games = 2 * np.sign(first - second) * (1 if label == "A>B" else -1)
            outcome[source].append(games > 0)
    found = values(result_of(saved(tmp_path / "judge.jsonl", rows)))
    assert found["micro"] == pytest.approx(
        np.mean([x for group in outcome.values() for x in group])
    )
    assert found["macro"] == pytest.approx(np.mean([np.mean(x) for x in outcome.values()]))


# --- Intervals ---


def test_the_interval_of_a_plain_mean_is_that_of_clusters(tmp_path: Path) -> None:
    """Each prompt stands twice, so the 200 pairs are 100 clusters."""
    generator = np.random.default_rng(0)
    outcome = np.repeat(generator.integers(0, 2, 100), 2)
    rows = [
        {
            "prompt": f"Question {n // 2}?",
            "chosen": text(float(won), 12 + n % 2),
            "rejected": text(0.5),
        }
        for n, won in enumerate(outcome)
    ]
    score = result_of(saved(tmp_path / "mine.jsonl", rows)).scores["accuracy"]
    expected = cluster_mean(outcome, [str(n // 2) for n in range(200)])
    assert score.value.value == expected.value
    assert score.value.high - score.value.low == pytest.approx(
        expected.high - expected.low, rel=0.12
    )
    # Pairs for units would give an interval shorter by sqrt(2).
    assert score.value.high - score.value.low > 1.25 * 2 * 1.96 * 0.5 / math.sqrt(200)


def llmbar_rows(num_items: int, shared: bool) -> dict[str, Rows]:
    """Every other item right; with `shared` all subsets have the same prompts and outcomes."""
    return {
        subset: [
            llmbar("all" if shared else subset, text(n % 2), text(0.5, 13), 1, n)
            for n in range(num_items)
        ]
        for subset in ("Natural", *ADVERSARIAL)
    }


def test_a_composite_is_resampled_within_its_strata_and_with_its_shared_prompts(
    tmp_path: Path,
) -> None:
    """Five subsets of 46 items, each half right: the mean of five independent shares has standard
    error 0.5 / sqrt(5 * 46); where all five have the same prompts and outcomes it is that of one,
    0.5 / sqrt(46)."""
    for shared, number in ((False, 5 * 46), (True, 46)):
        folder = saved_llmbar(tmp_path / str(shared), llmbar_rows(46, shared))
        found = result_of(folder).scores["overall"].value
        assert found.value == 0.5 and found.n == 5 * 46
        assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(number), rel=0.12)


def test_strata_keep_their_size(tmp_path: Path) -> None:
    """mmlu-pro all right, the other three all wrong, 46 pairs each: micro is 1/4 in any resample
    within strata. Prompts drawn from all together would make it 1/4 +- 2 sqrt(3/16 / 184)."""
    rows = [
        judge(source, text(float(source == "mmlu-pro")), text(0.5), "A>B", n)
        for source in GROUPS
        for n in range(46)
    ]
    found = result_of(saved(tmp_path / "judge.jsonl", rows)).scores["micro"].value
    assert (found.low, found.high) == pytest.approx((0.25, 0.25))


def test_one_cluster_has_no_interval(tmp_path: Path) -> None:
    rows = [judge(source, text(1), text(0), "A>B") for source in GROUPS]
    rows.append(judge("mmlu-pro", text(0), text(1), "A>B", 1))
    result = result_of(saved(tmp_path / "judge.jsonl", rows))
    assert math.isfinite(result.scores["mmlu-pro"].value.low)
    assert math.isinf(result.scores["livecodebench"].value.low)
    assert math.isinf(result.scores["macro"].value.low)
    assert result.as_json()["scores"]["macro"]["value"]["low"] is None


# --- Bad input ---


def test_an_empty_category_is_stated_and_never_averaged_away(tmp_path: Path) -> None:
    rows = [rb1(s, text(1), text(0)) for s in SUBSETS if s != "mt-bench-med"]
    result = result_of(saved(tmp_path / "rb.jsonl", rows))
    assert "Chat" not in result.scores and "overall" not in result.scores
    assert values(result)["Safety"] == 1.0
    assert result.notes[0] == "no item of mt-bench-med: no overall, Chat, mt-bench-med"


def test_a_mean_over_several_categories_needs_all_of_them(tmp_path: Path) -> None:
    """micro is of all pairs, and safety of both of its parts, though some of them are there."""
    rows = [judge(source, text(1), text(0), "A>B") for source in GROUPS[1:]]
    result = result_of(saved(tmp_path / "judge.jsonl", rows))
    assert set(result.scores) == set(GROUPS[1:])
    assert result.notes[0] == "no item of mmlu-pro: no micro, macro, mmlu-pro"
    rows = [rm(domain, [1, 1, 1], [0, 0, 0]) for domain in ("chat", "safety-refuse")]
    result = result_of(saved(tmp_path / "rm.jsonl", rows))
    assert values(result)["chat"] == pytest.approx(1.0)
    assert not {"safety", "overall", "hard"} & set(result.scores)


def test_ties_without_their_references_have_no_number(tmp_path: Path) -> None:
    rows = [rb2("Ties", [3, 0], 1, "ref:1"), rb2("Ties", [3, 3, 0], 2, "tied:2")]
    result = result_of(saved(tmp_path / "rb2.jsonl", rows))
    assert not result.scores
    assert "Ties" in result.notes[0]


GOOD: dict[str, Any] = {
    "rewardbench": rb1("math-prm", text(1), text(0)),
    "rewardbench2": rb2("Math", [1, 0, 0, 0]),
    "rm_bench": rm("chat", [1, 1, 1], [0, 0, 0]),
    "judgebench": judge("mmlu-pro", text(1), text(0), "A>B"),
    "llmbar": {**llmbar("Natural", text(1), text(0), 1), "subset": "Natural"},
    "ppe": {"prompt": "q", "response_1": text(1), "response_2": text(0), "winner": "model_a"},
}
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("rewardbench", {"subset": "math-prm-2"}, "subset is 'math-prm-2', none of alpacaeval-easy"),
    ("rewardbench", {"subset": ["math-prm"]}, "subset is .'math-prm'., none of"),
    ("rewardbench", {"chosen": None}, "no field 'chosen'"),
    ("rewardbench", {"chosen": ["a", "b"]}, "a correct answer has content of type"),
    ("rewardbench2", {"num_correct": 2}, "num_correct is 2 for 1 answers"),
    ("rewardbench2", {"rejected": ["a"], "total_completions": 2}, "1 chosen and 1 rejected"),
    ("rewardbench2", {"subset": "Ties"}, "called ref:N or tied:N"),
    ("rm_bench", {"chosen": ["a", "b"]}, "2 chosen and 3 rejected, not 3 and 3"),
    ("rm_bench", {"domain": "law"}, "domain .* is 'law', none of chat"),
    ("judgebench", {"label": "A=B"}, "label is 'A=B', neither A>B nor B>A"),
    ("judgebench", {"source": "gsm8k"}, "source is 'gsm8k', none of mmlu-pro"),
    ("llmbar", {"label": 3}, "label is '3', neither 1 nor 2"),
    ("llmbar", {"subset": "Strange"}, "which of Natural, Neighbor"),
    ("ppe", {"winner": "nobody"}, "winner is 'nobody'"),
]


@pytest.mark.parametrize(("name", "change", "message"), BAD)
def test_a_wrong_row_is_named_with_its_line(
    tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    bad = {key: value for key, value in {**GOOD[name], **change}.items() if value is not None}
    path = saved(tmp_path / "data.jsonl", [GOOD[name], bad])
    with pytest.raises(PalateError, match=message) as raised:
        read_benchmark(path, name)
    assert str(raised.value).startswith(f"{path}:2: not a row of ")


@pytest.mark.parametrize("name", GOOD)
def test_each_benchmark_is_known_by_its_fields(tmp_path: Path, name: str) -> None:
    benchmark = read_benchmark(saved(tmp_path / "data.jsonl", [GOOD[name]]))
    assert benchmark.name == name and len(benchmark.items) == 1


def test_another_benchmarks_file_is_told_apart(tmp_path: Path) -> None:
    path = saved(tmp_path / "data.jsonl", [GOOD["rewardbench2"]])
    with pytest.raises(PalateError, match="how RewardBench 2 looks: read it as rewardbench2"):
        read_benchmark(path, "rewardbench")


def test_more_items_than_published_are_another_version(tmp_path: Path) -> None:
    rows = [rb1("mt-bench-easy", text(1), text(0), n) for n in range(29)]
    with pytest.raises(PalateError, match="29 items of mt-bench-easy, but RewardBench has 28"):
        read_benchmark(saved(tmp_path / "raw.jsonl", rows))


def test_the_two_sets_of_judgebench_are_not_pooled(tmp_path: Path) -> None:
    other = {**GOOD["judgebench"], "response_model": "claude-3-5-sonnet-20240620"}
    path = saved(tmp_path / "both.jsonl", [GOOD["judgebench"], other])
    with pytest.raises(PalateError, match="two sets of pairs") as raised:
        read_benchmark(path)
    assert f"{path}:2" in str(raised.value)
    apart = [
        saved(tmp_path / f"{name}.jsonl", [row])
        for name, row in (("gpt", GOOD["judgebench"]), ("claude", other))
    ]
    with pytest.raises(PalateError, match="two sets of pairs"):
        read_benchmark(apart)


def test_a_damaged_line_stops_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    line = json.dumps(GOOD["judgebench"])
    path.write_text(f"{line}\n{line[:40]}\n{line}\n")
    with pytest.raises(PalateError, match=f"{path}:2: "):
        read_benchmark(str(path))


def test_what_reading_can_not_do_is_said(tmp_path: Path) -> None:
    path = saved(tmp_path / "data.jsonl", [GOOD["ppe"]])
    with pytest.raises(PalateError, match="benchmark 'ppee' is none of rewardbench"):
        read_benchmark(path, "ppee")
    with pytest.raises(PalateError, match="split 'test' has no effect"):
        read_benchmark(path, split="test")
    with pytest.raises(PalateError, match="read settings have no effect on PPE"):
        read_benchmark(path, settings=ReadSettings(columns={"prompt": "question"}))
    with pytest.raises(PalateError, match="named twice"):
        read_benchmark([path, path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(PalateError, match="no file in it"):
        read_benchmark(tmp_path / "empty")
    tie = saved(tmp_path / "tie.jsonl", [{**GOOD["ppe"], "winner": "tie"}])
    with pytest.raises(PalateError, match="no item is left"):
        read_benchmark(tie)


def test_a_hub_data_set_is_read_in_its_published_split() -> None:
    with pytest.raises(PalateError, match=r"hub data set \(split 'filtered'\)"):
        read_benchmark("allenai/reward-bench")


def test_domains_of_rm_bench_come_from_the_name_of_its_files(tmp_path: Path) -> None:
    row = {key: value for key, value in GOOD["rm_bench"].items() if key != "domain"}
    paths = [
        saved(tmp_path / f"{domain}_filtered.jsonl", [{**row, "subset": "x"}])
        for domain in ("chat", "safety-refuse")
    ]
    benchmark = read_benchmark(paths)
    assert [item.subset for item in benchmark.items] == ["chat", "safety-refuse"]
    assert benchmark.data_sha256 == {path: sha256_file(path) for path in paths}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number_names_its_item(tmp_path: Path, value: float) -> None:
    rows = [judge("mmlu-pro", text(1), text(0), "B>A", n) for n in range(3)]
    path = saved(tmp_path / "judge.jsonl", rows)
    benchmark = read_benchmark(path)

    def broken(items: Sequence[ScoringItem]) -> list[float]:
        scores = by_first_word(items)
        scores[3] = value
        return scores

    with pytest.raises(PalateError) as raised:
        score_benchmark(broken, benchmark)
    message = str(raised.value)
    assert message.startswith(f"{path}:2 (item mmlu-pro-1): the reward of answer 1")
    assert f"is {value}" in message
    with pytest.raises(PalateError, match="5 rewards for 6 answers"):
        score_benchmark(lambda items: by_first_word(items)[:-1], benchmark)


# --- A real model ---


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return palate.load(save_tiny(tmp_path_factory.mktemp("model"), head=True))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"), head=True)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    """RewardBench 2 with answers of 20 to 60 tokens, some of them equal."""
    generator = np.random.default_rng(0)
    rows = []
    for subset in ("Factuality", "Precise IF", "Math", "Safety", "Focus"):
        for number in range(3):
            row = rb2(subset, rewards(generator, 4), 1, str(number))
            row["rejected"] = [text(float(n), 20 * n + 10) for n in range(2)] + row["chosen"]
            rows.append(row)
    for number in range(2):
        rows.append(rb2("Ties", rewards(generator, 3), 1, f"ref:{number}"))
        rows.append(rb2("Ties", rewards(generator, 6), 3, f"tied:{number}"))
    return read_benchmark(saved(tmp_path_factory.mktemp("data") / "rb2.jsonl", rows))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_batches_and_padding_change_no_score(
    tmp_path: Path, benchmark: Benchmark, kind: str
) -> None:
    """Budgets under which every text is alone, several share a row, and all are in one pass; a tree
    body and one in padded rows. And each text scored by itself."""
    name = save_tiny(tmp_path / kind, kind, head=True)
    results = [
        run_benchmark(palate.load(name, tokens_per_microbatch=budget), benchmark, model=name)
        for budget in (1, 300, 65536)
    ]
    alone = palate.load(name)
    single = score_benchmark(lambda items: [alone.score_items([i])[0] for i in items], benchmark)
    first = np.concatenate([item.rewards for item in results[0].items])
    assert np.ptp(first) > 0.1
    for other in (*results[1:], single):
        scores = np.concatenate([item.rewards for item in other.items])
        np.testing.assert_allclose(scores, first, atol=1e-5)
        assert values(other) == pytest.approx(values(results[0]), abs=1e-6)
    # An answer that stands among the wrong ones too ties with itself under any batch.
    assert results[0].num_ties == results[2].num_ties >= 15


def test_stored_scores_give_the_same_result_without_the_model(
    tmp_path: Path, scorer: Scorer, benchmark: Benchmark
) -> None:
    result = run_benchmark(scorer, benchmark)
    path = tmp_path / "items.jsonl"
    write_items(path, result)
    assert recompute(path) == result
    assert recompute(path, benchmark) == result
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + len(benchmark.items)
    row = json.loads(lines[1])
    assert row["content_sha256"] == benchmark.items[0].content_sha256
    assert len(row["rewards"]) == 4
    json.dumps(result.as_json(), allow_nan=False)


def test_stored_scores_of_other_items_are_refused(
    tmp_path: Path, scorer: Scorer, benchmark: Benchmark
) -> None:
    path = tmp_path / "items.jsonl"
    write_items(path, run_benchmark(scorer, benchmark))
    head, *lines = path.read_text().splitlines()

    def refused(text: list[str], message: str, against: Benchmark | None = None) -> None:
        path.write_text("\n".join(text) + "\n")
        with pytest.raises(PalateError, match=message):
            recompute(path, against)

    refused([head, *lines[1:]], "lines are missing, moved or changed")
    refused([head, lines[1], lines[0], *lines[2:]], "lines are missing, moved or changed")
    refused([head, lines[0][:30], *lines[1:]], f"{path}:2: not an item")
    refused(lines, f"{path}:1: not a file of benchmark items")
    older = json.loads(head)
    older["protocol"]["scorer_version"] = 0
    refused([json.dumps(older), *lines], "scored by version 0 of the rules")
    changed = replace(benchmark.items[0], id="moved")
    other = replace(benchmark, items=(changed, *benchmark.items[1:]))
    refused([head, *lines], f"{path}:2: item 0 was scored on another text", other)
    with pytest.raises(PalateError, match="no such file"):
        recompute(tmp_path / "none.jsonl")


def test_the_content_hash_is_of_prompt_and_answers(tmp_path: Path) -> None:
    rows = [judge("mmlu-pro", text(1), text(0), "A>B")]
    rows.append({**rows[0], "pair_id": "other", "source": "livecodebench"})
    rows.append({**rows[0], "question": "Another?"})
    rows.append({**rows[0], "response_B": text(0, 13)})
    items = read_benchmark(saved(tmp_path / "judge.jsonl", rows)).items
    hashes = [item.content_sha256 for item in items]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_the_protocol_says_how_to_have_the_number_again(
    checkpoint: str, benchmark: Benchmark
) -> None:
    scorer = palate.load(checkpoint, tokens_per_microbatch=500)
    protocol = run_benchmark(scorer, benchmark, model=checkpoint).protocol
    expected = {
        "model": checkpoint,
        "dtype": "float32",
        "quantized": False,
        "attention_implementation": "sdpa",
        "layout": "tree",
        "max_tokens": 512,
        "overlong": "error",
        "num_prompts_cut": 0,
        "num_items_with_cut_answers": 0,
        "tokens_per_microbatch": 500,
        "benchmark": "rewardbench2",
        "scorer_version": 1,
        "num_items": len(benchmark.items),
    }
    assert {name: protocol[name] for name in expected} == expected
    assert protocol["data_sha256"] == {path: sha256_file(path) for path in benchmark.data_sha256}
    assert set(protocol["fingerprint"]) == {"template", "special_tokens", "tokenizer", "weights"}
    weights = Path(checkpoint) / "model.safetensors"
    assert protocol["fingerprint"]["weights"] == sha256_file(weights)
    assert {"palate", "torch", "transformers", "python"} <= set(protocol["versions"])


def long_benchmark(folder: Path, num_prompt: int, num_answer: int) -> Benchmark:
    """One short item and one with two turns and a long answer; a character is a token."""
    turns = [
        {"role": "user", "content": "o" * num_prompt},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Last?"},
    ]
    rows: Rows = [
        {"prompt": "Short?", "chosen": text(1), "rejected": text(0)},
        {"prompt": turns, "chosen": "c" * num_answer, "rejected": "Short."},
    ]
    return read_benchmark(saved(folder / "long.jsonl", rows), "preferences")


def test_answers_stay_whole_beyond_the_lengths_of_the_training(
    tmp_path: Path, scorer: Scorer
) -> None:
    """The scorer's own limit is 256 tokens an answer, and 300 go through it whole: the reward is
    that of all tokens, and with one more at the end it is another."""
    assert scorer.renderer.lengths.max_response_tokens == 256
    result = run_benchmark(scorer, long_benchmark(tmp_path, 20, 300))
    assert result.notes == ()
    prompt = scorer.renderer.encode_prompt(long_benchmark(tmp_path, 20, 300).items[1].prompt)
    ids = [*prompt, *scorer.renderer.tokenizer("c" * 300).input_ids]
    # A checkpoint of others is scored under its own template, which writes a newline after the end.
    end = [scorer.renderer.end_of_turn_id, *scorer.renderer.tokenizer("\n").input_ids]
    whole, without_newline = scorer.score_ids([ids + end, ids + end[:1]])
    assert result.items[1].rewards[0] == pytest.approx(whole, abs=1e-4)
    assert abs(without_newline - whole) > 1e-3
    own = scorer.score_items(long_benchmark(tmp_path, 20, 300).items[1].scoring_items())
    assert abs(own[0] - result.items[1].rewards[0]) > 1e-3


def test_the_oldest_turns_make_room_and_are_counted(tmp_path: Path, scorer: Scorer) -> None:
    """512 positions: 300 + 300 don't fit, so the first two turns go, for both answers alike."""
    result = run_benchmark(scorer, long_benchmark(tmp_path, 300, 300))
    assert result.items[0].num_prompt_tokens_cut == 0
    assert result.items[1].num_prompt_tokens_cut > 300
    assert result.items[1].num_answer_tokens_cut == 0
    assert result.protocol["num_prompts_cut"] == 1
    assert result.notes[0].startswith("1 of 2 prompts cut to fit the context")
    last = replace(
        long_benchmark(tmp_path, 300, 300).items[1],
        prompt=long_benchmark(tmp_path, 300, 300).items[1].prompt[2:],
    )
    short = replace(long_benchmark(tmp_path, 300, 300), items=(last,))
    assert run_benchmark(scorer, short).items[0].rewards == pytest.approx(
        result.items[1].rewards, abs=1e-5
    )


def test_an_answer_beyond_the_context_is_a_decision(tmp_path: Path, scorer: Scorer) -> None:
    benchmark = long_benchmark(tmp_path, 20, 700)
    with pytest.raises(PalateError, match=r"long.jsonl:2 \(item .*the context 512"):
        run_benchmark(scorer, benchmark)
    left = run_benchmark(scorer, benchmark, lengths=LengthPolicy(overlong="leave_out"))
    assert len(left.items) == 1
    assert left.left_out == {"item: longer than the context": 1}
    assert "left out: 1 x item: longer than the context" in left.notes
    cut = run_benchmark(scorer, benchmark, lengths=LengthPolicy(overlong="cut"))
    assert cut.items[1].num_answer_tokens_cut > 150
    assert cut.items[1].num_prompt_tokens_cut == 0
    assert cut.protocol["num_items_with_cut_answers"] == 1
    assert "not the published protocol" in cut.notes[0]
    smaller = LengthPolicy(max_tokens=100, overlong="cut")
    assert run_benchmark(scorer, benchmark, lengths=smaller).protocol["max_tokens"] == 100
    with pytest.raises(PalateError, match="max_tokens is 513; the model has positions for 512"):
        run_benchmark(scorer, benchmark, lengths=LengthPolicy(max_tokens=513))
    only = replace(benchmark, items=benchmark.items[1:])
    with pytest.raises(PalateError, match="all 1 items"):
        run_benchmark(scorer, only, lengths=LengthPolicy(overlong="leave_out"))


def test_no_answer_is_cut_differently_from_its_siblings(tmp_path: Path, scorer: Scorer) -> None:
    """A prompt of one turn of 490 characters loses its start; the short answer would leave room for
    more of it than the long one, and follows the same remainder."""
    rows = [{"prompt": "q" * 480, "chosen": "c" * 200, "rejected": "Short."}]
    benchmark = read_benchmark(saved(tmp_path / "one.jsonl", rows), "preferences")
    result = run_benchmark(scorer, benchmark)
    num_cut = result.items[0].num_prompt_tokens_cut
    assert num_cut > 150
    kept = "q" * (480 - num_cut)
    item = benchmark.items[0]
    turn = replace(item.prompt[0], content=kept)
    short = replace(benchmark, items=(replace(item, prompt=(turn,)),))
    assert run_benchmark(scorer, short).items[0].rewards == pytest.approx(
        result.items[0].rewards, abs=1e-5
    )

"""Pairs that an augmentation makes, and comparisons that balancing leaves out: counts, phrases,
determinism, accounts, effect."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import hstack
from scipy.special import expit

from palate.artifacts.ledger import Ledger
from palate.errors import PalateError
from palate.objectives import Objective, ObjectiveSettings
from palate.objectives.covariates import COVARIATES
from palate.objectives.nuisance import PRIOR_DEVIATION, is_made
from palate.pipeline.config import TrainConfig
from palate.pipeline.prepare import Prepared, prepare
from palate.pipeline.prepare_stream import prepare_on_disk
from palate.pipeline.train import train
from palate.preferences import Comparison, Message, PreferenceGroup, Response, prompt_cluster
from palate.rendering import LengthSettings, RenderedGroup, Renderer
from palate.statistics.comparison_model import fit_comparison_model
from palate.text.hashed import hashed_words
from palate.text.perturb import perturb
from palate.text.phrases import BANKS
from palate.training.augmentation import (
    counterfactual_groups,
    cross_prompt_groups,
    num_extra,
    preferred,
)
from palate.training.balancing import NUM_LENGTH_BINS, balance
from palate.training.settings import (
    CounterfactualSettings,
    CrossPromptSettings,
    TrainingSettings,
    refuse_unheeded,
)
from tests.rows import refusal
from tests.runs import quick_config, quick_training, tiny_renderer, write_rows
from tests.tiny import byte_tokenizer

QUARTER = CounterfactualSettings(share=0.25)


def group(
    number: int,
    texts: Sequence[str],
    comparisons: Sequence[Comparison] = (Comparison(0, 1),),
    finished: bool = True,
) -> RenderedGroup:
    """A group as if it had been rendered; its ids are of no interest."""
    read = PreferenceGroup(
        (Message("user", f"question {number}"),),
        tuple(Response(text, finished=finished) for text in texts),
        tuple(comparisons),
        file="rows.jsonl",
        line=number + 1,
    )
    sequences = tuple((number, k) for k in range(len(texts)))
    return RenderedGroup(sequences, read.comparisons, read, tuple(range(len(texts))))


def sentences(number: int, answer: int) -> str:
    return f"Fact {number} is one thing. Fact {answer} is another. " * (1 + (number + answer) % 3)


def asked(made: PreferenceGroup) -> str:
    return made.prompt[0].content


PAIRS = [group(i, [sentences(i, 0).strip(), sentences(i, 1).strip()]) for i in range(100)]


def test_pairs_are_as_many_as_asked_for_with_kinds_in_turn() -> None:
    made = list(counterfactual_groups(PAIRS, QUARTER, seed=0))
    assert len(made) == num_extra(0.25, 100) == 25
    kinds = Counter(found.meta["made by"] for found in made)
    assert kinds == {name: 4 + (index == 0) for index, name in enumerate(QUARTER.kinds)}
    assert len({asked(found) for found in made}) == 25
    twice = CounterfactualSettings(share=2.1)
    times = Counter(asked(found) for found in counterfactual_groups(PAIRS, twice, seed=0))
    assert sorted(times.values()) == [2] * 90 + [3] * 10


def test_a_pair_is_an_answer_and_the_same_answer_changed() -> None:
    texts = {response.text for pair in PAIRS for response in pair.group.responses}
    origins = {asked(pair.group): pair.group for pair in PAIRS}
    for made in counterfactual_groups(PAIRS, replace(QUARTER, target=0.7), seed=1):
        first, second = made.responses
        assert first.text in {r.text for r in origins[asked(made)].responses}
        assert second.text not in texts
        assert made.comparisons == (Comparison(0, 1, probability=0.7),)
        assert made.source == "counterfactual"


def test_phrases_are_those_of_the_train_part_alone() -> None:
    """What a pair adds is a phrase that fixes may use; none of a planter's or a probe's appears."""
    settings = CounterfactualSettings(share=3.0, kinds=tuple(BANKS))
    added = [m.responses[1].text for m in counterfactual_groups(PAIRS, settings, seed=0)]
    for bank in BANKS.values():
        for phrase in (*bank.plant, *bank.test):
            assert not any(phrase in text for text in added)
        assert sum(any(phrase in text for text in added) for phrase in bank.train) >= 5


def test_the_same_seed_makes_the_same_pairs_and_another_makes_others() -> None:
    for make in (
        lambda seed: list(counterfactual_groups(PAIRS, QUARTER, seed)),
        lambda seed: list(cross_prompt_groups(PAIRS, CrossPromptSettings(share=0.25), seed)),
    ):
        assert make(3) == make(3)
        assert make(3) != make(4)


def test_answers_that_were_cut_and_texts_that_no_kind_changes_are_passed_over() -> None:
    cut = [group(i, ["One. Two.", "Three. Four."], finished=False) for i in range(4)]
    assert list(counterfactual_groups(cut, CounterfactualSettings(share=1.0), seed=0)) == []
    listed = [group(i, ["- **one**", "- **two**"]) for i in range(4)]
    markdown = CounterfactualSettings(share=1.0, kinds=("markdown",))
    assert list(counterfactual_groups(listed, markdown, seed=0)) == []
    # With another kind beside it, that one takes its turn.
    both = CounterfactualSettings(share=1.0, kinds=("markdown", "closing"))
    kinds = [made.meta["made by"] for made in counterfactual_groups(listed, both, seed=0)]
    assert kinds == ["closing"] * 4


def test_a_pair_weighs_what_one_of_its_prompts_comparisons_weighs() -> None:
    heavy = group(0, ["One. Two.", "Three."], [Comparison(0, 1, weight=0.25)])
    (made,) = counterfactual_groups([heavy], CounterfactualSettings(share=1.0), seed=0)
    assert made.comparisons[0].weight == 0.25


def test_answers_to_other_prompts_are_preferred_ones_of_like_length() -> None:
    settings = CrossPromptSettings(share=0.5, target=0.95)
    prompts = {asked(pair.group): pair for pair in PAIRS}
    chosen = {preferred(pair).text: pair.group for pair in PAIRS}  # type: ignore[union-attr]
    made = list(cross_prompt_groups(PAIRS, settings, seed=0))
    assert len(made) == 50
    for found in made:
        own, foreign = found.responses
        assert own == preferred(prompts[asked(found)])
        assert prompt_cluster(chosen[foreign.text].prompt) != prompt_cluster(found.prompt)
        assert found.comparisons[0].probability == 0.95
        assert abs(len(own.text.split()) - len(foreign.text.split())) <= 12


def test_answers_in_the_same_cluster_are_no_answers_to_another_prompt() -> None:
    same = [replace(PAIRS[i], group=replace(PAIRS[i].group, prompt=PAIRS[0].group.prompt))
            for i in range(20)]  # fmt: skip
    assert list(cross_prompt_groups(same, CrossPromptSettings(share=1.0), seed=0)) == []


def test_the_preferred_answer_is_the_one_that_won_most() -> None:
    won = [Comparison(2, 0), Comparison(1, 0), Comparison(2, 1, 0.9), Comparison(0, 2, 0.5)]
    found = preferred(group(0, ["a", "b", "c"], won))
    assert found is not None
    assert found.text == "c"


WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "iris", "jade")


def plain_texts(count: int, random: np.random.Generator) -> tuple[list[str], np.ndarray]:
    """Three words each, and the sum of what they are worth, from -1 to 1."""
    chosen = random.integers(len(WORDS), size=(count, 3))
    texts = [f"It is {WORDS[a]}. Also {WORDS[b]}. And {WORDS[c]}." for a, b, c in chosen]
    return texts, np.linspace(-1, 1, len(WORDS))[chosen].sum(1)


def with_planted_closings(count: int) -> list[RenderedGroup]:
    """Labels go by the words, and by +1.5 logits for a closing, which 35 % of the answers have."""
    random = np.random.default_rng(0)
    texts, worth = plain_texts(2 * count, random)
    groups = []
    for number in range(count):
        pair, logits = texts[2 * number : 2 * number + 2], worth[2 * number : 2 * number + 2]
        for place in range(2):
            if random.random() < 0.35:
                pair[place] = perturb(pair[place], "closing", "plant", random)
                logits[place] += 1.5
        won = 0 if random.random() < expit(logits[0] - logits[1]) else 1
        groups.append(group(number, pair, [Comparison(won, 1 - won)]))
    return groups


def weights_of_words(groups: Sequence[RenderedGroup], settings: ObjectiveSettings) -> np.ndarray:
    """A linear reward on hashed words; the objective's nuisance terms beside it, then dropped."""
    batch = Objective(settings, groups).batch(groups)
    texts = [response.text for pair in groups for response in pair.group.responses]
    word_NF = hashed_words(texts).astype(float)
    better, worse = batch.comparisons.better_C.numpy(), batch.comparisons.worse_C.numpy()
    difference_CF = word_NF[better] - word_NF[worse]
    l2_F = np.ones(difference_CF.shape[1])
    if batch.covariate_CF is not None:
        difference_CF = hstack([difference_CF, batch.covariate_CF.double().numpy()]).tocsr()
        l2_F = np.append(l2_F, 1 / PRIOR_DEVIATION**2)
    target_C = batch.comparisons.target_C.double().numpy()
    found = fit_comparison_model(difference_CF, l2=l2_F, target_C=target_C)
    return found[: word_NF.shape[1]]


def flips(weight_F: np.ndarray) -> float:
    """Share of fresh pairs whose order turns when the worse one gets a closing of the part test."""
    random = np.random.default_rng(5)
    texts, _ = plain_texts(1200, random)
    closed = [perturb(text, "closing", "test", random) for text in texts]
    reward_G2, closed_G2 = (
        (hashed_words(part) @ weight_F).reshape(-1, 2) for part in (texts, closed)
    )
    worse = reward_G2.argmin(1)[:, None]
    return float(
        np.mean(
            np.take_along_axis(closed_G2, worse, 1) > np.take_along_axis(reward_G2, 1 - worse, 1)
        )
    )


def test_what_a_planted_closing_turns_before_and_after_each_fix() -> None:
    """Planted, shown by the fix and tested are three sets of phrases. Pairs alone teach a linear
    model of words about the words that they show; the term also knows others, and keeps the labels
    from teaching it at all."""
    voted = with_planted_closings(3000)
    settings = CounterfactualSettings(share=0.15, kinds=("closing",))
    made = [
        RenderedGroup(((0, number), (1, number)), pair.comparisons, pair, (0, 1))
        for number, pair in enumerate(counterfactual_groups(voted, settings, seed=0))
    ]
    term = ObjectiveSettings(nuisance=("closing",))
    before = flips(weights_of_words(voted, ObjectiveSettings()))
    assert before > 0.3
    assert flips(weights_of_words([*voted, *made], ObjectiveSettings())) < 0.75 * before
    assert flips(weights_of_words(voted, term)) < before / 3
    assert flips(weights_of_words([*voted, *made], term)) < before / 3


def rows(count: int) -> list[dict[str, str]]:
    """Pairs of which the longer answer wins three of four."""
    found = []
    for number in range(count):
        long, short = f"Long answer {number}. It goes on. And on.", f"Short {number}."
        better, worse = (long, short) if number % 4 else (short, long)
        found.append({"prompt": f"question {number}", "chosen": better, "rejected": worse})
    return found


def fixing(directory: Path, **settings: Any) -> TrainConfig:
    return TrainConfig(
        model="model",
        data=write_rows(directory / "rows.jsonl", [*rows(120), {"prompt": "no answers"}]),
        training=TrainingSettings(**settings),
    )


ALL = {
    "counterfactual": CounterfactualSettings(share=0.2),
    "cross_prompt": CrossPromptSettings(share=0.1),
    "length_balanced": True,
}
renderer = pytest.fixture(lambda: tiny_renderer())


def contents(prepared: Prepared) -> list[Any]:
    return [(g.sequences, g.comparisons, g.group, is_made(g)) for g in prepared.train]


@pytest.mark.filterwarnings("ignore:training.length_balanced leaves out")
@pytest.mark.parametrize("names", [["counterfactual"], ["cross_prompt"], ["length_balanced"], ALL])
def test_memory_and_disk_hold_the_same_and_every_row_is_accounted_for(
    names: Sequence[str], tmp_path: Path, renderer: Renderer
) -> None:
    config = fixing(tmp_path, **{name: ALL[name] for name in names})
    plain = prepare(fixing(tmp_path), renderer)
    found = prepare(config, renderer)
    assert contents(prepare(config, renderer)) == contents(found)
    on_disk = prepare_on_disk(replace(config, store="disk"), renderer, tmp_path / "store")
    assert contents(on_disk) == contents(found)
    assert on_disk.num_made == found.num_made
    assert on_disk.ledger.by_reason() == found.ledger.by_reason()
    # Rows in = rows in groups + rows in the ledger, with pairs that are no rows.
    left_out = found.ledger.by_reason().get("row: length balance", 0)
    assert found.num_rows == plain.num_rows - left_out
    assert found.ledger.num_rows_read == found.num_rows + found.ledger.num_rows_left_out == 121
    num_kept = len(plain.train) - left_out
    asked = [getattr(config.training, name).share for name in ("counterfactual", "cross_prompt")]
    assert found.num_made == sum(num_extra(share, num_kept) for share in asked)
    assert len(found.train) == num_kept + found.num_made
    assert [c for c in contents(found) if not c[3]] == contents(found)[:num_kept]
    for name, part in {**found.validation, "test": found.test}.items():
        expected = plain.test if name == "test" else plain.validation[name]
        assert [g.group for g in part] == [g.group for g in expected]


def test_an_overlong_pair_is_counted_and_no_error(tmp_path: Path) -> None:
    """Answers just within the limit: what a pair adds goes beyond it."""
    limits = LengthSettings(max_response_tokens=45, overlong="error").resolved(512)
    strict = Renderer(byte_tokenizer(), limits)
    config = fixing(tmp_path, counterfactual=CounterfactualSettings(share=1.0, kinds=("filler",)))
    with pytest.warns(UserWarning, match=r"counterfactual: 0 of \d+ pairs were made"):
        prepared = prepare(config, strict)
    assert prepared.num_made == 0
    assert prepared.num_rows == 120


def test_a_share_that_makes_no_pair_is_refused(tmp_path: Path, renderer: Renderer) -> None:
    config = fixing(tmp_path, cross_prompt=CrossPromptSettings(share=0.001))
    message = refusal(lambda: prepare(config, renderer))
    assert "cross_prompt.share 0.001 has no effect" in message


def mixed_groups() -> list[RenderedGroup]:
    """Pairs and groups of four, sure and soft, in which the longer answer wins four of five."""
    random = np.random.default_rng(0)
    groups = []
    for number in range(400):
        size = (2, 2, 4)[number % 3]
        words = [int(count) for count in random.integers(2, 60, size)]
        comparisons = []
        for i in range(size):
            for j in range(i + 1, size):
                longer, shorter = (i, j) if words[i] > words[j] else (j, i)
                pair = (longer, shorter) if random.random() < 0.8 else (shorter, longer)
                probability = (1.0, 0.75, 0.5)[int(random.integers(3))]
                comparisons.append(Comparison(*pair, probability=probability))
        groups.append(group(number, ["w " * count for count in words], comparisons))
    return groups


def sides(groups: Sequence[RenderedGroup]) -> tuple[np.ndarray, np.ndarray]:
    """Log length of the better answer minus that of the worse, and the probability."""
    length = COVARIATES["log_length"]
    table = [
        (
            length(g.group.responses[c.better].text) - length(g.group.responses[c.worse].text),
            c.probability,
        )
        for g in groups
        for c in g.comparisons
    ]
    return np.array(table).T[0], np.array(table).T[1]


def test_the_longer_wins_exactly_half_in_every_bin_of_length_and_strength() -> None:
    groups = mixed_groups()
    ledger = Ledger()
    found = balance(groups, seed=0)
    kept = found.applied(groups, ledger)
    before_C, probability_C = sides(groups)
    compared_C = (before_C != 0) & (probability_C > 0.5)
    edges = np.quantile(np.abs(before_C[compared_C]), np.linspace(0, 1, NUM_LENGTH_BINS + 1)[1:-1])
    difference_C, probability_C = sides(kept)
    bin_C = np.searchsorted(edges, np.abs(difference_C))
    num_checked = 0
    for number in range(NUM_LENGTH_BINS):
        for probability in (0.75, 1.0):
            here = (bin_C == number) & (probability_C == probability) & (difference_C != 0)
            assert np.mean(difference_C[here] > 0) == 0.5
            num_checked += 1
    assert num_checked == 20
    assert found.longer_share == pytest.approx(0.8, abs=0.05)
    assert found.num_dropped == len(before_C) - len(difference_C)
    assert 0.2 < found.dropped_share < 0.6
    # All that has no better side stays.
    assert np.sum(probability_C == 0.5) == np.sum(sides(groups)[1] == 0.5)


def test_groups_without_a_comparison_left_are_rows_of_the_ledger_and_others_keep_the_rest() -> None:
    groups = mixed_groups()
    ledger = Ledger()
    kept = balance(groups, seed=0).applied(groups, ledger)
    reasons = ledger.by_reason()
    assert reasons["row: length balance"] == len(groups) - len(kept)
    fewer = [g for g in kept if len(g.comparisons) < len(groups[g.group.line - 1].comparisons)]
    assert reasons["comparison: length balance"] == len(fewer) > 0
    assert all(len(g.sequences) == len(groups[g.group.line - 1].sequences) for g in kept)
    again = balance(groups, seed=0).keep_C
    assert np.array_equal(again, balance(groups, seed=0).keep_C)
    assert not np.array_equal(again, balance(groups, seed=1).keep_C)


def test_a_warning_says_what_is_lost_and_when_it_harms_and_balanced_data_have_none() -> None:
    groups = mixed_groups()
    warning = balance(groups, seed=0).warning()
    assert warning is not None
    assert "makes the model worse" in warning
    even = [
        group(i, ["w " * (3 + i % 7), "w " * (13 + i % 7)], [Comparison(i % 2, 1 - i % 2)])
        for i in range(200)
    ]
    assert balance(even, seed=0).warning() is None


def test_nothing_to_balance_is_refused() -> None:
    same = [group(i, ["one two", "two one"]) for i in range(4)]
    assert "no effect" in refusal(lambda: balance(same, seed=0))
    one_sided = [group(i, ["one two", "one"]) for i in range(4)]
    assert "would leave nothing" in refusal(lambda: balance(one_sided, seed=0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CounterfactualSettings(target=0.7), "have no effect with share 0"),
        (lambda: CounterfactualSettings(kinds=("closing",)), "have no effect with share 0"),
        (lambda: CounterfactualSettings(share=0.1, kinds=("smiley",)), "'smiley' is none of"),
        (lambda: CounterfactualSettings(share=0.1, kinds=()), "must name at least one"),
        (lambda: CounterfactualSettings(share=-0.1), "share is -0.1"),
        (lambda: CounterfactualSettings(share=0.1, target=0.4), "must be in [0.5, 1]"),
        (lambda: CrossPromptSettings(target=0.7), "has no effect with share 0"),
        (lambda: CrossPromptSettings(share=0.1, target=0.5), "no better than another prompt's"),
    ],
)
def test_settings_without_effect_are_refused(make: Callable[[], object], message: str) -> None:
    assert message in refusal(make)


@pytest.mark.parametrize(
    ("objective", "training", "message"),
    [
        ({"kind": "davidson"}, ["counterfactual"], "can't be had with objective.kind davidson"),
        ({"kind": "rao-kupper"}, ["cross_prompt"], "no ties"),
        ({"kind": "regression"}, ["counterfactual"], "no ratings"),
        ({"kind": "hinge"}, ["counterfactual"], "not how surely"),
        ({"kind": "plackett-luce"}, ["length_balanced"], "has no effect"),
        ({"kind": "regression"}, ["length_balanced"], "has no effect"),
    ],
)
def test_objectives_that_could_not_learn_from_it_are_refused(
    objective: dict[str, Any], training: list[str], message: str
) -> None:
    with pytest.raises(PalateError, match=message):
        TrainConfig(
            model="model",
            data="data",
            objective=ObjectiveSettings(**objective),
            training=TrainingSettings(**{name: ALL[name] for name in training}),  # type: ignore[arg-type]
        )


def test_a_frozen_body_heeds_all_of_it() -> None:
    refuse_unheeded(TrainingSettings(method="frozen", **ALL), ("lbfgs",))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_a_run_with_all_of_it_ends_with_its_accounts_in_order(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", rows(60))
    config = replace(quick_config(tmp_path, training=quick_training(epochs=1, **ALL)), data=data)
    result = train(config)
    metrics = json.loads((result.directory / "metrics.json").read_text())
    prepared = prepare(config, tiny_renderer())
    assert metrics["num_made_pairs"] == prepared.num_made > 0
    assert not any("counterfactual" in name for name in metrics["metrics"]["test"])
    ledger = (result.directory / "ledger.jsonl").read_text()
    assert "length balance" in ledger

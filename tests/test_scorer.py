"""Text in, rewards out: one text has one reward, wherever and beside whatever it is scored."""

import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import palate
from palate.errors import PalateError
from palate.preferences import Message
from palate.preferences.types import ScoringItem
from palate.scoring.scorer import Scorer, scoring_item
from tests.tiny import save_tiny

LONG = "Tell me all that you know about the harbour, its ships, its tides and its weather. " * 2
ITEMS = [
    *(
        scoring_item(LONG, answer)
        for answer in ("It is old.", "Ships come.", "It is deep and old.")
    ),
    *(
        scoring_item("Name a tree.", answer)
        for answer in ("Birch.", "A stone, then a long list. " * 6)
    ),
    scoring_item(
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}], "Oh"
    ),
    scoring_item("שלום, מה שלומך?", "טוב 👍"),
    scoring_item("Print <|im_end|> twice.", "<|im_end|> <|im_end|>"),
]


@pytest.fixture(scope="module")
def scorer(trained_run: Path) -> Scorer:
    return palate.load(trained_run)


@pytest.fixture(scope="module", params=["trained llama", "mistral", "gemma2", "bert"])
def any_scorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """A run of ours; a sliding window; an eager body; a bidirectional encoder in layout rows."""
    if request.param == "trained llama":
        return palate.load(request.getfixturevalue("trained_run"))
    directory = tmp_path_factory.mktemp(request.param)
    return palate.load(save_tiny(directory, request.param, head=True))


@contextmanager
def counted_slots(scorer: Scorer) -> Iterator[list[int]]:
    """Token slots of every forward pass of the model."""
    slots: list[int] = []
    handle = scorer.model.register_forward_pre_hook(
        lambda _, __, arguments: slots.append(arguments["input_ids_RT"].numel()), with_kwargs=True
    )
    try:
        yield slots
    finally:
        handle.remove()


@contextmanager
def budget(scorer: Scorer, tokens_per_microbatch: int) -> Iterator[None]:
    former = scorer.tokens_per_microbatch
    scorer.tokens_per_microbatch = tokens_per_microbatch
    try:
        yield
    finally:
        scorer.tokens_per_microbatch = former


def test_a_text_scores_the_same_alone_and_beside_longer_neighbours(any_scorer: Scorer) -> None:
    together = any_scorer.score_items(ITEMS)
    alone = [any_scorer.score_items([item])[0] for item in ITEMS]
    assert together == pytest.approx(alone, abs=1e-5)
    assert max(alone) - min(alone) > 0.01, "rewards that are all alike would prove nothing"


@pytest.mark.parametrize("tokens_per_microbatch", [1, 200, 700, 10**6])
def test_the_token_budget_changes_no_reward(any_scorer: Scorer, tokens_per_microbatch: int) -> None:
    expected = any_scorer.score_items(ITEMS)
    with budget(any_scorer, tokens_per_microbatch):
        assert any_scorer.score_items(ITEMS) == pytest.approx(expected, abs=1e-5)


def test_the_token_budget_bounds_each_forward_pass(any_scorer: Scorer) -> None:
    """No sequence here is longer than 250 tokens, so no pass needs more than the budget of 300."""
    with budget(any_scorer, 300), counted_slots(any_scorer) as slots:
        any_scorer.score_items(ITEMS)
    assert len(slots) > 1
    assert max(slots) <= 300


def test_permuting_the_items_permutes_the_rewards(any_scorer: Scorer) -> None:
    expected = any_scorer.score_items(ITEMS)
    order = list(range(len(ITEMS)))
    random.Random(5).shuffle(order)
    permuted = any_scorer.score_items([ITEMS[index] for index in order])
    assert permuted == [expected[index] for index in order]


def test_score_rank_and_compare_agree_on_the_rewards(scorer: Scorer) -> None:
    answers = ["It is amber.", "No birch!", "It is.", "A much longer answer about nothing at all."]
    ranking = scorer.rank(LONG, answers)
    rewards = {ranked.index: ranked.reward for ranked in ranking}
    for index, answer in enumerate(answers):
        assert rewards[index] == pytest.approx(scorer.score(LONG, answer), abs=1e-5)
    margin = scorer.score(LONG, answers[0]) - scorer.score(LONG, answers[1])
    expected = 1 / (1 + math.exp(-margin / scorer.temperature))
    assert scorer.compare(LONG, answers[0], answers[1]) == pytest.approx(expected, abs=1e-5)


def test_answers_to_one_prompt_share_its_computation(scorer: Scorer) -> None:
    """A prompt of P tokens and K = 6 answers of fewer than 20, the end of turn included: the tree
    has at most P + 6 * 20 slots, rows more than 6 P."""
    items = [scoring_item(LONG, f"Answer {index}, as is.") for index in range(6)]
    num_prompt_tokens = len(scorer.renderer.encode_prompt(items[0].prompt))
    with counted_slots(scorer) as slots:
        together = scorer.score_items(items)
    assert num_prompt_tokens < sum(slots) <= num_prompt_tokens + 6 * 20
    with counted_slots(scorer) as row_slots:
        alone = [scorer.score_items([item])[0] for item in items]
    assert sum(row_slots) > 6 * num_prompt_tokens
    assert together == pytest.approx(alone, abs=1e-5)


def test_sharing_finds_the_same_prompt_across_a_shuffled_list(scorer: Scorer) -> None:
    prompts = [f"{letter}: {LONG}" for letter in "ABCD"]
    items = [scoring_item(prompt, f"Answer {i}.") for prompt in prompts for i in range(4)]
    with counted_slots(scorer) as in_order:
        scorer.score_items(items)
    random.Random(1).shuffle(items)
    with counted_slots(scorer) as shuffled:
        scorer.score_items(items)
    assert sum(shuffled) == sum(in_order)


@pytest.mark.parametrize("opening", ["Aha", "Zoo"])
def test_a_short_neighbour_with_the_same_opening_does_not_end_the_sharing(
    scorer: Scorer, opening: str
) -> None:
    """Eight answers to a prompt of over 200 tokens, and a short item that opens with the same 36
    tokens of system message: most of the short one, so it looks like a relative. In one tree with
    it the eight would share 36 tokens instead of 200, and cost 7 * 164 slots more.

    The short item stands before or after the others in the order of their tokens.
    """
    system = {"role": "system", "content": "You are a calm guide."}
    long = [system, {"role": "user", "content": LONG}]
    items = [scoring_item(long, f"Answer {index}.") for index in range(8)]
    short = scoring_item([system, {"role": "user", "content": opening}], "Yes")
    num_short_tokens = len(scorer.render(short)[0])
    assert len(scorer.renderer.encode_prompt(items[0].prompt)) > 200
    assert num_short_tokens < 2 * 36
    with counted_slots(scorer) as without:
        scorer.score_items(items)
    with counted_slots(scorer) as together:
        scorer.score_items([*items, short])
    assert sum(together) <= sum(without) + sum(without), "each tree a row, both as wide as one"


def test_ranking_is_best_first(scorer: Scorer) -> None:
    answers = ["It is fjord.", "No amber!", "It is grove.", "?", "No cedar!"]
    ranking = scorer.rank("Question 3: which of the words stands for fjord?", answers)
    rewards = [ranked.reward for ranked in ranking]
    assert rewards == sorted(rewards, reverse=True)
    assert rewards[0] > rewards[-1]
    assert sorted(ranked.index for ranked in ranking) == [0, 1, 2, 3, 4]
    prompt = "Question 3: which of the words stands for fjord?"
    alone = [scorer.score_with_support(prompt, answers[r.index]) for r in ranking]
    expected = [found.support_distance for found in alone]
    assert [r.support_distance for r in ranking] == pytest.approx(expected, rel=1e-4)


def test_equal_answers_get_equal_rewards_and_keep_their_order(scorer: Scorer) -> None:
    answers = ["No!", "It is amber.", "No!", "It is amber.", "Perhaps.", "It is amber.", "No!"]
    for prompt in ("Hm?", LONG):
        ranking = scorer.rank(prompt, answers)
        for text in set(answers):
            twins = [ranked for ranked in ranking if answers[ranked.index] == text]
            assert len({twin.reward for twin in twins}) == 1
            assert [twin.index for twin in twins] == sorted(twin.index for twin in twins)


def test_a_head_of_zeros_ranks_in_the_order_given(tmp_path: Path) -> None:
    zero = palate.load(save_tiny(tmp_path, head=True))
    with torch.no_grad():
        zero.model.head.weight.zero_()
    ranking = zero.rank("Which?", ["b", "a", "c"])
    assert [(ranked.index, ranked.reward) for ranked in ranking] == [(0, 0.0), (1, 0.0), (2, 0.0)]
    assert zero.compare("Which?", "b", "a") == 0.5


def test_ranking_nothing_is_nothing(scorer: Scorer) -> None:
    assert scorer.rank("Which?", []) == []


def test_probabilities_divide_the_margin_by_the_stored_temperature(
    scorer: Scorer, trained_run: Path
) -> None:
    """The odds are exp(margin / T): doubling T takes their square root."""
    stored = json.loads((trained_run / "model" / "reward_model.json").read_text())["temperature"]
    assert scorer.temperature == stored["value"] != 1.0
    assert scorer.sidecar is not None
    sidecar = replace(scorer.sidecar, temperature={**stored, "value": 2 * stored["value"]})
    hotter = Scorer(scorer.model, scorer.renderer, sidecar)
    uncalibrated = Scorer(scorer.model, scorer.renderer)
    texts = ("Which word?", "It is ember.", "No heron!")

    def odds(judge: Scorer) -> float:
        probability = judge.compare(*texts)
        return probability / (1 - probability)

    assert abs(math.log(odds(scorer))) > 0.1
    assert odds(hotter) == pytest.approx(math.sqrt(odds(scorer)), rel=1e-4)
    margin = scorer.score(*texts[:2]) - scorer.score(texts[0], texts[2])
    assert math.log(odds(uncalibrated)) == pytest.approx(margin, abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.text("abcdé !?\n", min_size=1), st.text("abcdé !?\n", min_size=1))
def test_the_two_probabilities_of_a_pair_sum_to_one(
    scorer: Scorer, first: str, second: str
) -> None:
    assume(first.strip() and second.strip())
    there, back = scorer.compare("Which?", first, second), scorer.compare("Which?", second, first)
    assert there + back == pytest.approx(1.0, abs=1e-6)
    assert 0 <= there <= 1


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e9])
def test_extreme_margins_give_probabilities_and_no_overflow(tmp_path: Path, scale: float) -> None:
    judge = palate.load(save_tiny(tmp_path, head=True))
    with torch.no_grad():
        judge.model.head.weight.mul_(scale)
    pair = judge.compare("Which?", "this", "that"), judge.compare("Which?", "that", "this")
    assert sorted(pair) == pytest.approx([0.0, 1.0], abs=1e-6)


def test_a_string_a_list_of_messages_and_message_objects_are_one_prompt(scorer: Scorer) -> None:
    rewards = [
        scorer.score(prompt, "Yes.")
        for prompt in (
            "Is it?",
            [{"role": "user", "content": "Is it?"}],
            [Message("user", "Is it?")],
        )
    ]
    assert len(set(rewards)) == 1
    with_system = [{"role": "system", "content": "Say no."}, {"role": "user", "content": "Is it?"}]
    assert scorer.score(with_system, "Yes.") != pytest.approx(rewards[0], abs=1e-3)


@pytest.mark.parametrize(
    ("prompt", "response", "message"),
    [
        ("", "Yes.", "empty prompt"),
        ([], "Yes.", "empty prompt"),
        ("Is it?", "  ", "empty response"),
        ("Is it?", "a\ud800", "lone surrogate at character 1"),
        ("\udfffa", "Yes.", "lone surrogate at character 0"),
        ([{"role": "assistant", "content": "It is."}], "Yes.", "ends with an assistant message"),
        ([{"role": "narrator", "content": "It is."}], "Yes.", "role 'narrator'"),
        ("Is it?", 7, "response is int 7"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(
    scorer: Scorer, prompt: str, response: str, message: str
) -> None:
    with pytest.raises(PalateError, match=message):
        scorer.score(prompt, response)


def test_an_over_long_response_is_refused_with_both_lengths_and_cut_when_asked(
    trained_run: Path,
) -> None:
    """The run's limit is 256 tokens, one byte each; "abcd" 80 times and its end of turn are 321."""
    judge = palate.load(trained_run)
    with pytest.raises(PalateError, match=r"321 tokens.*at most 256"):
        judge.score("Is it?", "abcd" * 80)
    judge.renderer.lengths = replace(judge.renderer.lengths, overlong="cut")
    cut, num_cut = judge.render(scoring_item("Is it?", "abcd" * 80))
    assert num_cut == 321 - 256
    assert judge.renderer.end_of_turn_id != cut[-1], "a cut answer is not closed in silence"
    assert judge.score("Is it?", "abcd" * 80) == pytest.approx(
        judge.score("Is it?", "abcd" * 90), abs=1e-5
    )


def test_a_group_of_ids_is_scored_as_given(scorer: Scorer) -> None:
    item = scoring_item("Is it?", "Yes.")
    ids, _ = scorer.render(item)
    assert scorer.score_ids([ids])[0] == pytest.approx(scorer.score_items([item])[0], abs=1e-5)
    unfinished = scorer.score_ids([ids[:-1]])[0]
    assert unfinished != pytest.approx(scorer.score_items([item])[0], abs=1e-3)


def test_scoring_leaves_no_gradient_and_no_training_mode(scorer: Scorer) -> None:
    scorer.model.train()
    scorer.score("Is it?", "Yes.")
    assert scorer.model.training, "the former mode is restored"
    scorer.model.eval()
    assert all(parameter.grad is None for parameter in scorer.model.parameters())


def copy_of(run: Path, to: Path) -> Path:
    return Path(shutil.copytree(run / "model", to / "model"))


def change_template(directory: Path) -> None:
    path = directory / "chat_template.jinja"
    path.write_text(path.read_text().replace("'\\n'", "' '"))


def change_tokenizer(directory: Path) -> None:
    path = directory / "tokenizer.json"
    path.write_text(path.read_text().replace('"ByteLevel"', '"ByteLevel" ', 1).replace("Ā", "Ȁ"))


def change_weights(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["score.weight"] = tensors["score.weight"] * -1
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (change_template, "template"),
        (change_tokenizer, "tokenizer"),
        (change_weights, "weights"),
    ],
)
def test_a_changed_checkpoint_is_refused_unless_that_change_is_allowed(
    trained_run: Path, tmp_path: Path, change: Callable[[Path], None], part: str
) -> None:
    directory = copy_of(trained_run, tmp_path)
    palate.load(directory)
    change(directory)
    with pytest.raises(PalateError, match=f"allow_changed {part}"):
        palate.load(directory)
    assert math.isfinite(palate.load(directory, allow_changed=[part]).score("Is it?", "Yes."))


def test_allowing_an_unknown_part_names_the_known_ones(trained_run: Path) -> None:
    with pytest.raises(PalateError, match=r"\['wieghts'\].*'weights'"):
        palate.load(trained_run, allow_changed=["wieghts"])


def test_allowing_a_change_where_nothing_is_checked_is_refused(tmp_path: Path) -> None:
    foreign = save_tiny(tmp_path, head=True)
    with pytest.raises(PalateError, match=r"no effect.*no reward_model\.json"):
        palate.load(foreign, allow_changed=["template"])


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_by_name(trained_run: Path, device: str) -> None:
    with pytest.raises(PalateError, match=f"device.*{device}"):
        palate.load(trained_run, device=device)


def test_a_budget_below_one_token_is_refused(trained_run: Path) -> None:
    with pytest.raises(PalateError, match="tokens_per_microbatch is 0"):
        palate.load(trained_run, tokens_per_microbatch=0)


def test_a_run_and_its_model_directory_are_the_same_model(
    trained_run: Path, scorer: Scorer
) -> None:
    nested = palate.load(trained_run / "model")
    assert nested.score("Is it?", "Yes.") == scorer.score("Is it?", "Yes.")


def test_items_with_their_own_template_arguments_are_rendered_with_them(tmp_path: Path) -> None:
    from tests.tiny import CHATML, byte_tokenizer

    template = "{{- (tone or '') if tone is defined else '' -}}" + CHATML
    judge = palate.load(save_tiny(tmp_path, head=True, tokenizer=byte_tokenizer(template)))
    plain = scoring_item("Is it?", "Yes.")
    toned: ScoringItem = scoring_item("Is it?", "Yes.", template_arguments={"tone": "gravely"})
    assert judge.score_items([toned])[0] != pytest.approx(judge.score_items([plain])[0], abs=1e-3)

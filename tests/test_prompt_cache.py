"""A prompt's keys and values, computed once for more answers than fit in a microbatch."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.forest.tree import shared_length
from palate.model.prompt_cache import PromptCache, can_cache
from palate.model.reward_model import RewardModel
from palate.scoring.grouping import families, groups_by_opening
from palate.scoring.scorer import Scorer
from tests.runs import tiny_renderer
from tests.test_attention import fast
from tests.test_model import REWARD_TOLERANCE, alone
from tests.tiny import CAUSAL, tiny_transformer


def answers_to(prompt: list[int], lengths: list[int], seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [prompt + random.integers(3, 300, size=n).tolist() for n in lengths]


@torch.inference_mode()
@pytest.mark.parametrize("kind", CAUSAL)
def test_behind_a_cache_answers_have_the_rewards_they_have_alone(kind: str) -> None:
    """A prompt of 50 (windows are 16), chunks of answers one after the other, some with a common
    opening, one chunk twice."""
    model = fast(kind)
    assert can_cache(model)
    prompt, opening = answers_to([], [50, 12])
    first = answers_to(prompt, [1, 5, 30, 22])
    second = answers_to(prompt + opening, [2, 1, 40], seed=1)
    cache = PromptCache(model, prompt)
    for sequences in (first, second, first):
        truth = alone(model.transformer, sequences)
        assert (cache.rewards(sequences) - truth).abs().max() < REWARD_TOLERANCE


def test_what_reads_more_than_the_end_has_no_cache() -> None:
    assert not can_cache(RewardModel(tiny_transformer("llama"), "tree"))
    assert not can_cache(RewardModel(tiny_transformer("bert"), "rows"))


def test_a_body_whose_cache_is_not_exact_computes_the_prompt_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cache that forgets the prompt's last key: the check finds it, and rewards stay right."""
    keep = PromptCache._keep_prompt

    def forgetful(self: PromptCache) -> None:
        keep(self)
        for layer in self.cache.layers:
            layer.keys = torch.cat([layer.keys[:, :, :-1], layer.keys[:, :, :1]], dim=2)

    monkeypatch.setattr(PromptCache, "_keep_prompt", forgetful)
    model = fast("llama")
    assert not can_cache(model)
    scorer = Scorer(model, tiny_renderer(), None, tokens_per_microbatch=500)
    sequences = answers_to(answers_to([], [80])[0], [10] * 90)
    with torch.inference_mode():
        truth = alone(model.transformer, sequences)
    assert (torch.tensor(scorer.score_ids(sequences)) - truth).abs().max() < REWARD_TOLERANCE


def count_tokens(model: RewardModel) -> list[int]:
    """Tokens of each pass through the body, in a list that grows."""
    counts: list[int] = []

    def note(_: Any, __: Any, named: dict[str, Any]) -> None:
        counts.append(named["input_ids"].numel())

    model.body.register_forward_pre_hook(note, with_kwargs=True)
    return counts


def test_three_hundred_answers_compute_their_prompt_once() -> None:
    """A prompt of 80 and 300 answers of 10, in microbatches of 500 tokens: 80 + 300 * 10 tokens in
    all, as one row would have. Four answers to another prompt have theirs in a tree."""
    model = fast("llama")
    scorer = Scorer(model, tiny_renderer(), None, tokens_per_microbatch=500)
    prompt, other = answers_to([], [80, 80])
    sequences = answers_to(prompt, [10] * 300) + answers_to(other, [10] * 4, seed=2)
    order = np.random.default_rng(0).permutation(len(sequences)).tolist()
    with torch.inference_mode():
        truth = alone(model.transformer, sequences)[order]
    assert can_cache(model), "checked once, before anything is counted"
    counts = count_tokens(model)
    rewards = torch.tensor(scorer.score_ids([sequences[index] for index in order]))
    assert (rewards - truth).abs().max() < REWARD_TOLERANCE
    shared_openings = 10
    assert 80 + 3000 + 120 - shared_openings <= sum(counts) <= 80 + 3000 + 120
    assert max(counts) <= 500


ids = st.lists(st.integers(1, 2), min_size=1, max_size=12)


@given(st.lists(ids, min_size=1, max_size=30), st.integers(1, 40))
@settings(max_examples=200)
def test_families_keep_every_group_and_share_their_prompt(
    sequences: list[list[int]], budget: int
) -> None:
    ordered = sorted({tuple(one) for one in sequences})
    groups = groups_by_opening(ordered, budget)
    assert [one for group in groups for one in group] == ordered
    found = families(groups, budget)
    assert [group for family in found for group in family.groups] == groups
    for family in found:
        assert (len(family.groups) > 1) == bool(family.prompt)
        for one in (one for group in family.groups for one in group):
            assert shared_length(one, family.prompt) == len(family.prompt)
            assert len(one) > len(family.prompt) or not family.prompt

"""Baselines that don't read the prompt: n-grams fitted across folds, more markdown, and the model
under other prompts."""

from dataclasses import replace

import numpy as np
import pytest

from palate.errors import PalateError
from palate.evaluation.blind import cross_fitted_prompt_blind
from palate.evaluation.metrics import evaluate_outcomes
from palate.evaluation.outcomes import BASELINES, Outcome
from palate.evaluation.swapped import swap_prompts
from palate.preferences import Message, fold_of
from palate.rendering import RenderedGroup
from tests.test_evaluation import group_of, outcome, styled_groups


def accuracy_of(groups: list[RenderedGroup], **settings: int) -> float:
    blind = cross_fitted_prompt_blind(groups, **settings)
    outcomes = [Outcome(g, np.zeros(len(g.sequences))) for g in groups]
    baselines = {"prompt-blind": blind.predict}
    return evaluate_outcomes(outcomes, baselines=baselines)["prompt-blind"].value


def test_more_markdown_by_hand() -> None:
    """Two list items and a bold run beat one heading; plain texts tie."""
    rich, poor = "- one\n- two **bold**", "# one"
    metrics = evaluate_outcomes(
        [
            outcome("1", [1, 0], [(0, 1)], [rich, poor]),
            outcome("2", [1, 0], [(1, 0)], [rich, "plain"]),
            outcome("3", [1, 0], [(0, 1)], ["plain", "simple"]),
            outcome("4", [1, 0], [(0, 1)], [poor, "simple"]),
        ]
    )
    assert metrics["more markdown"].value == (1 + 0 + 0.5 + 1) / 4
    assert metrics["accuracy minus more markdown"].value == pytest.approx(0.75 - 0.625)
    values = BASELINES["more markdown"](group_of("p", [rich, poor], [(0, 1)]))
    assert values == pytest.approx(np.log1p([3, 1]))


@pytest.mark.parametrize("cue", ["style", "word"])
def test_what_answers_give_away_is_found_on_prompts_that_were_not_fitted_on(cue: str) -> None:
    assert accuracy_of(styled_groups(300, 1, cue)) > 0.9


def test_what_only_the_prompt_decides_is_not_found() -> None:
    """By luck 0.5 with standard error 0.025."""
    assert accuracy_of(styled_groups(400, 2, "prompt")) == pytest.approx(0.5, abs=0.1)


def test_the_winners_of_a_fold_are_unknown_to_its_own_model() -> None:
    """Labels at random, a word of its own in each winner: a model that saw them would be right
    always, this one is at chance."""
    groups = [
        group_of(f"Question {i}", [f"same text w{i}a", f"same text w{i}b"], [(i % 2, 1 - i % 2)])
        for i in range(300)
    ]
    assert accuracy_of(groups) == pytest.approx(0.5, abs=0.1)


def test_turning_the_labels_of_one_fold_changes_no_prediction_in_it() -> None:
    groups = styled_groups(120, 3, "style")
    folds = [fold_of(g.group, 5, "prompt-blind") for g in groups]
    turned = [
        replace(
            g, comparisons=tuple(replace(c, better=c.worse, worse=c.better) for c in g.comparisons)
        )
        if fold == 0
        else g
        for g, fold in zip(groups, folds, strict=True)
    ]
    before, after = (cross_fitted_prompt_blind(g).rewards for g in (groups, turned))
    for one, other, fold in zip(before, after, folds, strict=True):
        assert (np.allclose(one, other, atol=1e-6)) == (fold == 0)


def test_the_sample_is_stated_and_the_same_in_any_order() -> None:
    groups = styled_groups(60, 4, "style")
    blind = cross_fitted_prompt_blind(groups, max_prompts=40)
    turned = cross_fitted_prompt_blind(groups[::-1], max_prompts=40)
    assert (blind.num_prompts, blind.num_left_out) == (40, 20)
    assert len(blind.rewards) == 60
    for one, other in zip(blind.rewards, turned.rewards[::-1], strict=True):
        assert one == pytest.approx(other, abs=1e-3)


def test_one_fold_cannot_be_crossed() -> None:
    with pytest.raises(PalateError, match="1 prompts with a decided comparison are too few"):
        cross_fitted_prompt_blind(styled_groups(1, 5, "style"))


def prompts_and_answers(number: int) -> list[Outcome]:
    return [
        outcome(f"Ask {i}", [1, 0], [(0, 1)], [f"answer to Ask {i}", "nothing"])
        for i in range(number)
    ]


def test_every_sampled_prompt_is_given_another_and_each_is_used_once() -> None:
    outcomes = [*prompts_and_answers(30), outcome("ASK 3", [0, 1], [(0, 1)], ["x", "y"])]
    swapped = swap_prompts(outcomes)
    assert (len(swapped.outcomes), len(swapped.items), swapped.num_prompts) == (30, 60, 31)
    own = [o.group.group.prompt[0].content for o in swapped.outcomes for _ in range(2)]
    given = [item.prompt[0].content for item in swapped.items]
    assert all(a != b for a, b in zip(own, given, strict=True))
    assert sorted(given) == sorted(own)
    answers = [r.text for o in swapped.outcomes for r in o.group.group.responses]
    assert [item.response.text for item in swapped.items] == answers
    assert swap_prompts(outcomes[:30][::-1]).items == swapped.items


def test_a_model_that_reads_the_prompt_falls_and_one_that_does_not_stays() -> None:
    """The reader looks for the prompt in the answer: right under its own prompts, tied under
    others. The other likes long answers whatever was asked."""
    swapped = swap_prompts(prompts_and_answers(20), max_prompts=15)
    assert len(swapped.outcomes) == 15
    read = [float(item.prompt[0].content in item.response.text) for item in swapped.items]
    blind = [float(len(item.response.text)) for item in swapped.items]
    reader, looker = swapped.metrics(read), swapped.metrics(blind)
    assert reader["prompts swapped"].value == pytest.approx(0.5, abs=0.1)
    assert reader["accuracy minus prompts swapped"].value == pytest.approx(0.5, abs=0.1)
    assert looker["prompts swapped"].value == 1.0
    assert looker["accuracy minus prompts swapped"].value == 0.0
    with pytest.raises(ValueError, match="29 rewards for 30 items"):
        swapped.metrics(read[:-1])


def test_the_donors_tools_and_arguments_come_with_its_prompt() -> None:
    first, second = prompts_and_answers(2)
    group = replace(
        second.group.group, tools=({"name": "clock"},), template_arguments={"thinking": True}
    )
    second = replace(second, group=replace(second.group, group=group))
    for item in swap_prompts([first, second]).items:
        has_tool = item.prompt == (Message("user", "Ask 1"),)
        assert bool(item.tools) == bool(item.template_arguments) == has_tool


def test_one_cluster_has_no_other_prompt() -> None:
    with pytest.raises(PalateError, match="no other prompt to swap with"):
        swap_prompts(prompts_and_answers(1) * 3)

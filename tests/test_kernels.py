"""Compiled layers and Liger's kernels."""

from pathlib import Path

import numpy as np
import pytest
import torch

from palate.errors import PalateError
from palate.forest.plan import plan_groups
from palate.model.kernels import apply_liger, compile_layers
from tests.runs import load_tiny, pair_groups, tiny_trainer
from tests.test_attention import fast
from tests.test_model import (
    PAD,
    REWARD_TOLERANCE,
    alone,
    assert_same_gradients,
    gradients,
    group,
)


@pytest.mark.slow
@pytest.mark.parametrize("shortened", [True, False])
def test_layers_are_compiled_once_for_all_shapes(shortened: bool) -> None:
    """Rewards and gradients are those of the plain class, and plans of six other lengths make no
    further graph after the first two."""
    torch._dynamo.reset()
    model = fast("llama")
    model.shortened = shortened
    compile_layers(model)
    counters = torch._dynamo.utils.counters
    graphs = []
    for number in range(8):
        random = np.random.default_rng(number)
        groups = [group(random, 20 + 7 * number, [5 + number, 9, 3]) for _ in range(2 + number % 2)]
        sequences = [ids for members in groups for ids in members]
        weights = torch.randn(len(sequences))
        truth = alone(model.transformer, sequences)
        expected = gradients(model, truth, weights)
        before = counters["stats"]["unique_graphs"]
        (plan,) = plan_groups(groups, model.packing(10**6, PAD))
        rewards = model.run(plan).reward_N
        parts = torch.split(rewards, [len(groups[index]) for index in plan.groups])
        rewards = torch.cat([parts[place] for place in np.argsort(plan.groups)])
        torch.testing.assert_close(rewards, truth, rtol=0, atol=REWARD_TOLERANCE)
        assert_same_gradients(gradients(model, rewards, weights), expected)
        graphs.append(counters["stats"]["unique_graphs"] - before)
    assert sum(graphs[2:]) == 0


@pytest.mark.slow
def test_a_run_with_compiled_layers_gives_the_same_weights(tmp_path: Path) -> None:
    found = []
    for on in (False, True):
        torch._dynamo.reset()
        trainer = tiny_trainer(
            load_tiny(tmp_path).model, tmp_path, pair_groups(6), max_steps=2, compile=on
        )
        trainer.train()
        found.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_liger_without_cuda_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    with pytest.raises(PalateError, match=r"training\.liger needs a CUDA device"):
        apply_liger(fast("llama"))


def test_liger_on_cuda_gives_the_rewards_of_the_plain_kernels() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device: Liger's kernels run there alone")
    pytest.importorskip("liger_kernel", reason="pip install 'palate[liger]'")
    model = fast("llama").to("cuda")
    groups = [group(np.random.default_rng(3), 30, [9, 14])]
    (plan,) = plan_groups(groups, model.packing(1000, PAD))
    with torch.inference_mode():
        plain = model.run(plan).reward_N
        apply_liger(model)
        assert (model.run(plan).reward_N - plain).abs().max() < 1e-4

"""A prompt's keys and values, computed once for any number of answers.

Legend: T columns (of the prompt and the answers), Q those of the answers, N sequences, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from palate.forest import Packing, plan_groups
from palate.forest.tree import Ids, shared_length
from palate.model.reward_model import RewardModel, plan_tensors
from palate.model.selfcheck import random_groups, tolerance


def can_cache(model: RewardModel) -> bool:
    """Whether the end of a sequence is all that is read, by attention that takes any columns, and
    a small check on the model itself, made once, finds the states behind a cache to be the same:
    some bodies share keys among layers, or keep more than keys."""
    if not (
        model.layout == "tree"
        and model.attention != "dense"
        and model.pooling == "last"
        and model.takes_cache
    ):
        return False
    if model.cache_is_exact is None:
        model.cache_is_exact = _is_exact(model)
    return model.cache_is_exact


def _is_exact(model: RewardModel) -> bool:
    group = random_groups(model.config)[0]
    prompt = group[0][: shared_length(group[0], group[1])]
    with model.scoring_mode():
        try:
            cache = PromptCache(model, prompt)
            behind_ND = torch.cat([cache.states(group[:1]), cache.states(group[1:])])
            (plan,) = plan_groups([group], model.packing(10**9, pad_id=0))
            whole_ND = model.run(plan).hidden_ND
        except Exception:  # the code of many bodies
            return False
    difference = (behind_ND - whole_ND).abs().max() / whole_ND.abs().max()
    return bool(difference <= tolerance(model))


class PromptCache:
    """Rewards of sequences that begin with `prompt`, without computing it again.

    For more answers than fit in a row: they come in chunks, each laid out as a tree behind the
    prompt's keys and values. Gradients don't flow, so use it in `scoring_mode`.
    """

    def __init__(self, model: RewardModel, prompt: Ids) -> None:
        self.model = model
        self.prompt = tuple(prompt)
        # Without a configuration every layer keeps all keys; windows are the attention's own.
        self.cache = DynamicCache()
        (plan,) = plan_groups([[self.prompt]], Packing("tree", 1, 0, one_row=True))
        assert plan.sight is not None
        tensors = plan_tensors(plan, model.device)
        model.end_states(
            tensors["input_ids_RT"],
            tensors["position_RT"],
            plan.sight,
            tensors["end_column_N"],
            past_key_values=self.cache,
            use_cache=True,
        )
        self._keep_prompt()

    def rewards(self, sequences: Sequence[Ids]) -> Tensor:
        """float32 N: rewards of whole sequences, each longer than the prompt."""
        return self.model.reward_of(self.states(sequences))

    def states(self, sequences: Sequence[Ids]) -> Tensor:
        """float32 N D: their pooled states."""
        (plan,) = plan_groups([sequences], Packing("tree", 1, 0, one_row=True))
        assert plan.sight is not None
        start = len(self.prompt)
        tensors: dict[str, Any] = plan_tensors(plan, self.model.device)
        try:
            return self.model.end_states(
                tensors["input_ids_RT"][:, start:],
                tensors["position_RT"][:, start:],
                plan.sight.behind(start),
                tensors["end_column_N"],
                past_key_values=self.cache,
                use_cache=True,
            )
        finally:
            self._keep_prompt()

    def _keep_prompt(self) -> None:
        """Remove what came after the prompt: the last layer, where it is called twice, keeps more
        than the others."""
        for layer in self.cache.layers:
            excess = layer.get_seq_length() - len(self.prompt)
            if excess:
                layer.crop(-excess)

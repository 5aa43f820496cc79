"""A prompt's keys and values, computed once for any number of answers.

Legend: T columns (of the prompt and the answers), Q those of the answers, N sequences, D width.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from palate.forest import Packing, plan_groups
from palate.forest.tree import Ids
from palate.model.reward_model import RewardModel, plan_tensors


def can_cache(model: RewardModel) -> bool:
    """Whether the end of a sequence is all that is read, by attention that takes any columns."""
    return (
        model.layout == "tree"
        and model.attention != "dense"
        and model.pooling == "last"
        and model.takes_cache
    )


class PromptCache:
    """Rewards of sequences that begin with `prompt`, without computing it again.

    For more answers than fit in a row: they come in chunks, each laid out as a tree behind the
    prompt's keys and values. Gradients don't flow, so use it in `scoring_mode`.
    """

    def __init__(self, model: RewardModel, prompt: Ids) -> None:
        assert can_cache(model)
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
        (plan,) = plan_groups([sequences], Packing("tree", 1, 0, one_row=True))
        assert plan.sight is not None
        start = len(self.prompt)
        tensors: dict[str, Any] = plan_tensors(plan, self.model.device)
        try:
            state_ND = self.model.end_states(
                tensors["input_ids_RT"][:, start:],
                tensors["position_RT"][:, start:],
                plan.sight.behind(start),
                tensors["end_column_N"],
                past_key_values=self.cache,
                use_cache=True,
            )
        finally:
            self._keep_prompt()
        return self.model.reward_of(state_ND)

    def _keep_prompt(self) -> None:
        """Remove what came after the prompt: the last layer, where it is called twice, keeps more
        than the others."""
        for layer in self.cache.layers:
            excess = layer.get_seq_length() - len(self.prompt)
            if excess:
                layer.crop(-excess)

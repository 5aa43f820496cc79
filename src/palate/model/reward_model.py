"""The reward model: a pretrained transformer, a pooling of its states, and a head of one output.

Legend: R rows, T tokens of a row, N sequences, D width of the body.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from palate.errors import PalateError
from palate.forest.plan import Layout, Packing, Plan
from palate.forest.sight import Sight
from palate.model.attention import (
    Attention,
    ForestAttention,
    attention_masks,
    given_to_body,
    layer_windows,
)
from palate.model.balance import balance_coefficient, balance_loss
from palate.model.blocks import BlockAttention
from palate.model.flex import TILE, FlexAttention
from palate.model.heads import Head, num_features, rewards
from palate.model.last_layer import Shortened
from palate.model.pooling import (
    Pooling,
    attention_weights,
    mean_weights,
    members,
    weighted_sums,
)
from palate.model.quantization import unpacked_size
from palate.model.varlen import VarlenAttention, has_varlen

HEAD_NAMES = ("score", "classifier", "classifier.out_proj")
OWN_HEAD = "reward_head"


class Output(NamedTuple):
    """What a forward pass gives."""

    reward_N: Tensor
    """float32."""
    hidden_ND: Tensor
    """Pooled states, float32."""
    auxiliary_N: Tensor | None = None
    """Load-balancing loss of each sequence times its coefficient, for mixture-of-experts bodies in
    training."""
    learned: dict[str, Tensor] | None = None
    """Parameters that the objective learns, passed through so that wrappers that shard see them
    used."""


def find_head(transformer: nn.Module) -> tuple[str, nn.Linear]:
    """Name and module of the linear layer that prints the reward."""
    for name in reversed(HEAD_NAMES):
        try:
            module = transformer.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(module, nn.Linear):
            return name, module
    raise PalateError(
        f"{type(transformer).__name__} has no linear head named {', '.join(HEAD_NAMES)}"
    )


class RewardModel(nn.Module):
    """A body, its pooling and its head; carries out plans.

    `transformer` is either a `...ForSequenceClassification` with one label, which brings the head:
    then causal bodies pool the `last` token of each sequence by its index (never by token id), and
    bidirectional encoders go through their own class (`cls`), whose bias is zero in a new head and
    never trained. Or it is a body alone, and head and pooling are ours; such a model is not `plain`
    and only palate loads what it is saved as. Pooling and head run in float32 outside autocast.
    """

    def __init__(
        self,
        transformer: nn.Module,
        layout: Layout,
        head: Head | None = None,
        pooling: Pooling = "last",
    ) -> None:
        """Give `head` and `pooling` together, with a body alone."""
        super().__init__()
        self.transformer: Any = transformer
        self.plain = head is None
        self.pooling: Pooling = pooling
        if head is None:
            self.head_name, own = find_head(transformer)
            self.pooling = "last" if self.head_name == "score" else "cls"
            if own.bias is not None:
                # A reward's offset has no gradient under Bradley-Terry; a learned one is noise.
                own.bias.requires_grad_(False)
        else:
            self.head_name = OWN_HEAD
            # A quantised body is on its device from the beginning.
            self.reward_head = head.float().to(next(transformer.parameters()).device)
        self.query: nn.Parameter | None
        """Of attention pooling, D; zero at first, which makes it the mean."""
        self.register_parameter("query", None)
        if pooling == "attention" and head is not None:
            self.query = nn.Parameter(torch.zeros(num_features(head), device=self.device))
        self.layout: Layout = layout
        self.attention: Attention = "dense"
        """How a tree's attention is computed; all equal `dense`. Set by `palate.model.faster`."""
        self.shortened = False
        """Whether the last layer is computed only where it is pooled."""
        self.cache_is_exact: bool | None = None
        """Whether a prompt's keys and values can be kept; None = not checked yet."""
        self.learned = nn.ParameterDict()
        """What the objective learns (tie width, ...): trained and resumed, never exported."""
        # Wrappers that shard read this from the outermost module.
        self._no_split_modules = getattr(transformer, "_no_split_modules", None)
        self.balance_coefficient = balance_coefficient(self.body)
        self.takes_cache = takes(self.body, "use_cache")

    @property
    def body(self) -> nn.Module:
        """The pretrained part: all of the transformer but its head, and layers before the head."""
        body: nn.Module = self.transformer.base_model
        return body

    @property
    def head(self) -> Head:
        if not self.plain:
            return self.reward_head
        head: nn.Linear = self.transformer.get_submodule(self.head_name)
        return head

    def head_modules(self) -> tuple[nn.Module, ...]:
        """What `reward_of` uses; the query of attention pooling is none of it."""
        return (self.head,)

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """Names under which the parameters begin that are new in a reward model."""
        own = f"transformer.{self.head_name}." if self.plain else f"{OWN_HEAD}."
        return (own, "query", "learned.")

    @property
    def config(self) -> Any:
        return self.transformer.config

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device

    def num_parameters(self) -> int:
        """Weights of body, pooling and head, those in 4 bit not as they are packed, adapters not
        counted: the model's size, by which rates are chosen. A method, since trackers of
        `transformers` call it."""
        return sum(
            unpacked_size(parameter)
            for name, parameter in self.named_parameters()
            if not name.startswith("learned.") and ".lora_" not in name
        )

    @property
    def quantized(self) -> bool:
        """Whether the body's linear layers are in 8 or 4 bit."""
        return bool(getattr(self.transformer, "is_quantized", False))

    def forward(
        self,
        input_ids_RT: Tensor,
        position_RT: Tensor,
        reach_RT: Tensor,
        end_row_N: Tensor,
        end_column_N: Tensor,
        tree_layout: bool,
        sight: Sight | None = None,
    ) -> Output:
        """Rewards and the pooled states they come from; `sight` of a tree layout in one row."""
        arguments: dict[str, Any] = {"input_ids": input_ids_RT}
        if tree_layout:
            arguments["position_ids"] = position_RT
            if sight is None or self.attention == "dense":
                arguments["attention_mask"] = attention_masks(
                    self.config, position_RT, reach_RT, self._mask_dtype()
                )
            elif self.shortened:
                return self._output(self.end_states(input_ids_RT, position_RT, sight, end_column_N))
            else:
                arguments |= given_to_body(self._forest(sight), self.device)
        else:
            arguments["attention_mask"] = (reach_RT > 0).long()
        auxiliary_N = None
        if self.pooling == "cls":
            hidden_ND = self._encode(arguments).float()
        else:
            state_RTD, router_logits = self._states(arguments)
            with torch.autocast(state_RTD.device.type, enabled=False):
                member_NT = members(reach_RT, end_row_N, end_column_N)
                hidden_ND = self._pool(state_RTD, member_NT, end_row_N, end_column_N)
                if router_logits:
                    auxiliary_N = self.balance_coefficient * balance_loss(
                        router_logits,
                        self.config.get_text_config().num_experts_per_tok,
                        mean_weights(member_NT),
                        end_row_N,
                        len(input_ids_RT),
                    )
        return self._output(hidden_ND, auxiliary_N)

    def _output(self, hidden_ND: Tensor, auxiliary_N: Tensor | None = None) -> Output:
        learned = {name: parameter + 0 for name, parameter in self.learned.items()}
        return Output(self.reward_of(hidden_ND), hidden_ND, auxiliary_N, learned or None)

    def end_states(
        self,
        input_ids_1T: Tensor,
        position_1T: Tensor,
        sight: Sight,
        end_column_N: Tensor,
        **cache: Any,
    ) -> Tensor:
        """float32 N D: states at the sequences' ends, of the columns that `sight` has as queries.

        With the last layer at the ends alone where that holds. `cache` is what the body takes to
        read and keep keys and values; then the columns before the queries' are in it.
        """
        # Equal sequences end in one place.
        column_Q, place_N = torch.unique(end_column_N, return_inverse=True)
        place_Q = column_Q - int(sight.column_Q[0])
        forest = self._forest(sight)
        if self.shortened:
            ends = sight.of_queries(column_Q.cpu().numpy())
            forest = Shortened(forest, self._forest(ends), place_Q)
        arguments = {"input_ids": input_ids_1T, "position_ids": position_1T, **cache}
        state_1QD, _ = self._states(arguments | given_to_body(forest, self.device))
        with torch.autocast(state_1QD.device.type, enabled=False):
            chosen_N = place_N if self.shortened else place_Q[place_N]
            return state_1QD[0, chosen_N].float()

    def _forest(self, sight: Sight) -> ForestAttention:
        windows = layer_windows(self.config)
        path = self.attention
        if path == "auto" and self.device.type == "cuda":
            path = "varlen" if has_varlen(self.device) else "flex"
        if path == "varlen":
            return VarlenAttention(sight, windows, self.device)
        if path == "flex":
            return FlexAttention(sight, windows, self.device)
        return BlockAttention(sight, windows)

    def packing(self, tokens_per_microbatch: int, pad_id: int) -> Packing:
        """How this model's microbatches are laid out."""
        if self.attention == "dense":
            return Packing(self.layout, tokens_per_microbatch, pad_id)
        # On a GPU kernels are chosen, and with torch.compile made, by shape.
        step = max(TILE, tokens_per_microbatch // 64 // TILE * TILE)
        multiple = step if self.device.type == "cuda" else 1
        return Packing(self.layout, tokens_per_microbatch, pad_id, True, multiple)

    def reward_of(self, hidden_ND: Tensor) -> Tensor:
        """float32 N: the head alone, on pooled states."""
        with torch.autocast(hidden_ND.device.type, enabled=False):
            return rewards(self.head, hidden_ND.float())

    def _states(self, arguments: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """States of all tokens (R T D), and router logits where their loss is wanted."""
        if self.takes_cache:
            arguments.setdefault("use_cache", False)
        if self.training and self.balance_coefficient:
            arguments["output_router_logits"] = True
        output = self.body(**arguments)
        return output.last_hidden_state, getattr(output, "router_logits", None) or ()

    def _pool(
        self, state_RTD: Tensor, member_NT: Tensor, end_row_N: Tensor, end_column_N: Tensor
    ) -> Tensor:
        if self.pooling == "last":
            return state_RTD[end_row_N, end_column_N].float()
        state_RTD = state_RTD.float()
        if self.query is None:
            weight_NT = mean_weights(member_NT)
        else:
            weight_NT = attention_weights(member_NT, state_RTD, end_row_N, self.query)
        return weighted_sums(weight_NT, end_row_N, state_RTD)

    def _mask_dtype(self) -> torch.dtype:
        device = self.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        dtype: torch.dtype = self.transformer.dtype
        return dtype

    def _encode(self, arguments: dict[str, Any]) -> Tensor:
        """Input of the class's own last layer, so that its product runs in float32 here."""
        caught: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            self.transformer(**arguments)
        finally:
            hook.remove()
        return caught[0]

    def run(self, plan: Plan) -> Output:
        """`forward` on a plan's arrays, moved to the model's device."""
        output: Output = self(**plan_tensors(plan, self.device))
        return output

    @contextmanager
    def scoring_mode(self) -> Iterator[None]:
        """Evaluation mode without gradients, the former mode restored after."""
        training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.train(training)


def takes(module: nn.Module, argument: str) -> bool:
    """Whether its forward pass can be given this argument."""
    parameters = inspect.signature(module.forward).parameters
    variadic = inspect.Parameter.VAR_KEYWORD
    return argument in parameters or any(p.kind == variadic for p in parameters.values())


def plan_tensors(plan: Plan, device: torch.device) -> dict[str, Any]:
    """A plan's arrays as the keyword arguments of `RewardModel.forward`."""
    names = ("input_ids_RT", "position_RT", "reach_RT", "end_row_N", "end_column_N")
    tensors: dict[str, Any] = {
        name: torch.from_numpy(getattr(plan, name)).to(device) for name in names
    }
    return {**tensors, "tree_layout": plan.layout == "tree", "sight": plan.sight}

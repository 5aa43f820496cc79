"""Bytes of a training run by part, from a body's shape.

What a layer keeps for its backward pass, in values a token (D width of the states between layers,
Q, K, V widths of all queries, keys and values, O of what attention gives, H heads, I inner width of
the MLP, r rank of an adapter):

| operation | keeps |
|---|---|
| RMSNorm, as `transformers` writes it | its input in float32 (D, for the square) and the root (1); where its weight is trained, the normalised input (D) |
| LayerNorm | its input (D) and two float32 numbers |
| norm of queries or keys | the same of Q or K, one root a head |
| matrices that read the states | their input (D), once for the attention and once for the MLP; under autocast each matrix a bfloat16 copy of its own |
| fused attention | queries, keys, values and result (Q + K + V + O), and a float32 log-sum-exp (H) |
| values from one matrix with queries and keys | that matrix' whole output (Q + K + V) in place of V, or of all three where positions don't turn them |
| attention with scores | the probabilities in float32, H values a pair of slots, again in bfloat16 where that is the type, and the tanh of capped scores |
| gated MLP | gate, activated gate, up and their product (4 I) |
| plain MLP | input and result of the activation (2 I); 5 I for gelu_new, written out in Python; I for relu |
| experts | of each that is chosen 4 times its width, and D in and D out; in the states' type |
| adapter | r; where the types differ a copy of its matrix' input |

Residual sums, reshapes and casts keep nothing of their own. A value takes 4 bytes in
float32; under autocast to bfloat16 with float32 weights 4 in the states and their norms and 2 in
the rest; with bfloat16 weights 2, and 4 where a norm casts its input up.
"""  # noqa: E501

from dataclasses import dataclass, replace
from typing import Literal

import torch

from palate.forest.cost import Method
from palate.model.layer_shape import LayerShape, Norm
from palate.model.settings import BodySettings
from palate.model.shape import BodyShape

FLOAT32 = 4
BFLOAT16 = 2
PACKED_BYTES = {"none": 0.0, "8bit": 1.0, "4bit": 0.5 + 4 / 64}
"""Of a quantised weight; 4 bit has a float32 scale for each 64 weights."""
ACTIVATION_VALUES = {"gelu_new": 5, "gelu_fast": 5, "relu": 1}
"""Values that a plain MLP keeps, as multiples of its inner width; 2 for all others."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How a step computes: what is trained, in which types, and what is kept."""

    method: Method
    autocast: bool
    """bfloat16 autocast around the body."""
    weight_bytes: int
    """Of one weight of the body: 4 or 2."""
    checkpointing: bool

    @property
    def state_bytes(self) -> int:
        """Of a value in the states between layers."""
        return self.weight_bytes

    @property
    def value_bytes(self) -> int:
        """Of a value that a matrix or the attention gives."""
        return BFLOAT16 if self.autocast else self.weight_bytes


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """The sizes on which activations depend."""

    num_tokens: int
    """Token slots, padding included."""
    num_last: int
    """Slots that the last layer computes: all, or the ends of the sequences alone."""
    longest_row: int
    """Slots of a row; counts only for attention that keeps its scores."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device at the fullest moment of a step."""

    weights: int
    weight_copies: int
    """bfloat16 copies that autocast makes of float32 weights and the backward pass holds."""
    gradients: int
    gradient_buckets: int
    """Second copy of the gradients, which several devices exchange."""
    optimiser: int
    """AdamW's two moments."""
    activations: int
    """What the largest microbatch keeps for its backward pass."""
    temporaries: int
    """Gradients of activations, or the largest weight's gradient before it is added."""

    @property
    def total(self) -> int:
        return (
            self.weights
            + self.weight_copies
            + self.gradients
            + self.gradient_buckets
            + self.optimiser
            + self.activations
            + self.temporaries
        )


def weight_bytes(dtype: Literal["float32", "bfloat16", "auto"], shape: BodyShape) -> int:
    """Of one weight in memory, as `body.dtype` says."""
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": shape.dtype}
    return types[dtype].itemsize


def memory(
    shape: BodyShape,
    settings: BodySettings,
    arithmetic: Arithmetic,
    microbatch: Microbatch,
    num_devices: int = 1,
) -> Memory:
    """Memory of training whose largest microbatch is `microbatch`.

    Data parallelism: each device holds all of the model. The optimiser is AdamW with fused steps,
    which make no temporaries.
    """
    trained, trained_bytes = _trained(shape, arithmetic)
    gradients = trained * trained_bytes
    kept = activation_bytes(shape, arithmetic, microbatch)
    quantised = settings.quantization != "none" and arithmetic.method == "lora"
    copies = 0 if quantised else weight_copy_bytes(shape, arithmetic, microbatch)
    temporaries = _working_bytes(shape, arithmetic) * microbatch.num_tokens
    if arithmetic.method == "full":
        # The embedding's gradient, dense and of its size, comes last: no activation is left then.
        largest = shape.largest_parameter * trained_bytes
        temporaries = max(temporaries, largest - kept - copies)
    return Memory(
        weights=_stored(shape, settings, arithmetic, quantised),
        weight_copies=copies,
        gradients=gradients,
        gradient_buckets=gradients if num_devices > 1 else 0,
        optimiser=2 * gradients,
        activations=kept,
        temporaries=temporaries,
    )


def activation_bytes(shape: BodyShape, arithmetic: Arithmetic, microbatch: Microbatch) -> int:
    """What is kept for the backward pass of one microbatch, by the table above.

    With gradient checkpointing: the states before each layer, and all of the layer that is being
    recomputed. A frozen body keeps nothing.
    """
    if arithmetic.method == "frozen":
        return 0
    layers = kept_by_layer(shape, arithmetic, microbatch)
    last_norm = Norm(shape.width, 1, fused=False, of_projection=False)
    around = microbatch.num_last * _norm_bytes(last_norm, arithmetic)
    if shape.rotary:  # cosines and sines, which all layers share
        around += microbatch.num_tokens * 2 * shape.head_width * arithmetic.state_bytes
    if not arithmetic.checkpointing:
        return around + sum(layers)
    before = microbatch.num_tokens * shape.width * arithmetic.state_bytes * len(layers)
    return around + before + max(layers)


def kept_by_layer(shape: BodyShape, arithmetic: Arithmetic, microbatch: Microbatch) -> list[int]:
    """Bytes that each layer keeps of a microbatch when nothing is recomputed.

    A last layer that is computed at the ends keeps all of them there, and of every token what its
    keys and values need.
    """
    rows = microbatch.num_tokens * microbatch.longest_row
    kept = [
        microbatch.num_tokens * layer_bytes(shape, layer, arithmetic)
        + rows * _score_bytes(shape, layer, arithmetic)
        for layer in shape.layers
    ]
    if microbatch.num_last < microbatch.num_tokens:
        last = shape.layers[-1]
        kept[-1] = microbatch.num_last * layer_bytes(shape, last, arithmetic)
        kept[-1] += microbatch.num_tokens * _key_value_bytes(shape, last, arithmetic)
    return kept


def layer_bytes(shape: BodyShape, layer: LayerShape, arithmetic: Arithmetic) -> int:
    """Bytes a token that one layer keeps, its scores left out."""
    width, value = shape.width, arithmetic.value_bytes
    norms = sum(_norm_bytes(norm, arithmetic) for norm in layer.norms)
    if value == arithmetic.state_bytes:
        num_inputs = 1 + (layer.mlp_width > 0)
    else:
        num_inputs = layer.num_attention_inputs + layer.num_mlp_inputs
    attention = value * _attention_values(shape, layer) + FLOAT32 * layer.num_heads
    per_inner = 4 if layer.gated else ACTIVATION_VALUES.get(shape.activation, 2)
    mlp = value * per_inner * layer.mlp_width
    # Grouped products of experts stay in the states' own type, autocast or not.
    per_expert = 4 * layer.expert_width + 2 * width
    mlp += arithmetic.state_bytes * layer.num_dispatched * per_expert
    adapters = _adapter_bytes(shape, layer, arithmetic) if arithmetic.method == "lora" else 0
    return norms + num_inputs * width * value + attention + mlp + adapters


def _key_value_bytes(shape: BodyShape, layer: LayerShape, arithmetic: Arithmetic) -> int:
    """Bytes a token: the first norm, the input of keys and values, and these with their norm."""
    value = arithmetic.value_bytes
    of_keys = [n for n in layer.norms if n.of_projection and n.num_values == layer.key_width]
    norms = sum(_norm_bytes(norm, arithmetic) for norm in (*layer.norms[:1], *of_keys[-1:]))
    num_inputs = 1 if value == arithmetic.state_bytes else 2
    return norms + value * (num_inputs * shape.width + layer.key_width + layer.value_width)


def _norm_bytes(norm: Norm, arithmetic: Arithmetic) -> int:
    own = arithmetic.value_bytes if norm.of_projection else arithmetic.state_bytes
    if norm.fused:
        return own * norm.num_values + 2 * FLOAT32 * norm.num_groups
    own = FLOAT32 if norm.wide else own
    normalised = own * norm.num_values if arithmetic.method == "full" else 0
    return FLOAT32 * (norm.num_values + norm.num_groups) + normalised


def _attention_values(shape: BodyShape, layer: LayerShape) -> int:
    """Queries, keys, values and the result, in the heads that they are kept in."""
    if not layer.num_heads:
        return 0
    query, key, value = layer.query_width, layer.key_width, layer.value_width
    result = layer.cost.pair_width - query
    if layer.fused_projection:
        turned = query + key if shape.rotary else 0
        return turned + query + key + value + result
    if shape.eager:  # keys and values are repeated for every head
        return 2 * query + 2 * result
    return query + key + value + result


def _score_bytes(shape: BodyShape, layer: LayerShape, arithmetic: Arithmetic) -> int:
    """Bytes a pair of slots, where the body keeps scores."""
    if not (shape.eager and layer.num_heads):
        return 0
    value = arithmetic.value_bytes
    again = value if value != FLOAT32 else 0
    return layer.num_heads * (FLOAT32 + again + (value if shape.capped else 0))


def _adapter_bytes(shape: BodyShape, layer: LayerShape, arithmetic: Arithmetic) -> int:
    """What adapters keep beyond what the trained matrices below them would.

    They run in float32, under autocast in bfloat16; `peft` casts each one's input to float32.
    """
    value = BFLOAT16 if arithmetic.autocast else FLOAT32
    ranks = layer.num_adapters * layer.adapter_rank * value
    if value == arithmetic.state_bytes:
        return ranks
    result = layer.cost.pair_width - layer.query_width
    # The copy of the MLP's product stands in for the product, which a frozen matrix doesn't keep.
    inside = value * result + (value - arithmetic.value_bytes) * layer.mlp_width
    if arithmetic.autocast:
        return ranks + inside
    num_inputs = layer.num_attention_inputs + layer.num_mlp_inputs
    return ranks + inside + shape.width * (num_inputs * value - 2 * arithmetic.state_bytes)


def _trained(shape: BodyShape, arithmetic: Arithmetic) -> tuple[int, int]:
    """Number of trained weights, and bytes of each."""
    if arithmetic.method == "full":
        return shape.num_parameters, arithmetic.weight_bytes
    if arithmetic.method == "lora":
        return shape.num_adapter_weights + shape.num_whole_weights, FLOAT32
    return 0, FLOAT32  # a linear head is solved in closed form


def _stored(
    shape: BodyShape, settings: BodySettings, arithmetic: Arithmetic, quantised: bool
) -> int:
    adapters = FLOAT32 * shape.num_adapter_weights if arithmetic.method == "lora" else 0
    if not quantised:
        return shape.num_parameters * arithmetic.weight_bytes + adapters
    packed = int(shape.num_matrix_weights * PACKED_BYTES[settings.quantization])
    rest = shape.num_parameters - shape.num_matrix_weights
    return packed + rest * arithmetic.weight_bytes + adapters


def weight_copy_bytes(shape: BodyShape, arithmetic: Arithmetic, microbatch: Microbatch) -> int:
    """bfloat16 copies of float32 weights at the fullest moment.

    Autocast keeps the copy of a trained weight until the forward pass is over, and the backward
    pass of a matrix needs it. With checkpointing a layer's copies come and go with it, so the
    fullest moment is the end of the forward pass (all copies of trained weights, no layer's
    activations) or the recomputation of a layer (its own copies).
    """
    if not arithmetic.autocast or arithmetic.weight_bytes == BFLOAT16:
        return 0
    copies = [BFLOAT16 * layer.num_matrix_weights for layer in shape.layers]
    if arithmetic.method == "frozen":
        return max(copies)
    if not arithmetic.checkpointing:
        return sum(copies)
    if arithmetic.method == "lora":
        return max(copies)
    return max(*copies, sum(copies) - max(kept_by_layer(shape, arithmetic, microbatch)))


def _working_bytes(shape: BodyShape, arithmetic: Arithmetic) -> int:
    """Bytes a token of what is alive for a moment: two gradients of the MLP's inner states and two
    of the states, or in a forward pass alone gate, up and product."""
    value = arithmetic.value_bytes
    inner = max(
        value * layer.mlp_width + arithmetic.state_bytes * layer.num_dispatched * layer.expert_width
        for layer in shape.layers
    )
    states = 2 * shape.width * arithmetic.state_bytes
    return states + inner * (3 if arithmetic.method == "frozen" else 2)


def alternatives(arithmetic: Arithmetic) -> list[Arithmetic]:
    """The same types with each method, with and without gradient checkpointing."""
    choices: tuple[tuple[Method, bool], ...] = (
        ("full", False),
        ("full", True),
        ("lora", False),
        ("lora", True),
        ("frozen", False),
    )
    return [replace(arithmetic, method=m, checkpointing=again) for m, again in choices]

"""What groups of token ids cost a body: token slots, visible pairs and FLOPs, in three layouts.

Integers only. One multiply-add is two FLOPs; embeddings' look-ups, norms, softmax and activations
are left out, as in the usual 6 N D.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from palate.forest.tree import Ids, grow_tree

Window = int | None
"""How many tokens a query sees at most, its own included; None: no limit."""
Method = Literal["full", "lora", "frozen"]
LastLayer = Literal["all", "ends"]


@dataclass(frozen=True)
class Work:
    """Sums over what is computed at once or one after the other; they add up."""

    num_tokens: int = 0
    """Token slots that pass through the layers, padding included."""
    num_padding: int = 0
    """Slots among them that hold no token."""
    num_ends: int = 0
    """Places at which a state is read; equal sequences of a tree share one."""
    pairs: tuple[int, ...] = ()
    """Visible pairs of a query and a key of one layer and head, for each window asked for."""
    end_pairs: tuple[int, ...] = ()
    """Those whose query is read."""

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.num_tokens + other.num_tokens,
            self.num_padding + other.num_padding,
            self.num_ends + other.num_ends,
            _summed(self.pairs, other.pairs),
            _summed(self.end_pairs, other.end_pairs),
        )


def _summed(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    if not first or not second:
        return first or second
    return tuple(a + b for a, b in zip(first, second, strict=True))


def total(works: Iterable[Work]) -> Work:
    """The sum of works that were counted for the same windows."""
    result = Work()
    for work in works:
        result = result + work
    return result


def visible_pairs(num_tokens: int, window: Window = None, causal: bool = True) -> int:
    """Pairs of a query and a key that it sees in a sequence of n tokens alone.

    Causal: the query at position p sees min(p + 1, window) keys, n (n + 1) / 2 pairs without a
    window. Otherwise all n keys, or at most `window` to either side and its own.
    """
    if not causal:
        return num_tokens * (num_tokens if window is None else min(num_tokens, 2 * window + 1))
    short = num_tokens if window is None else min(num_tokens, window)
    return short * (short + 1) // 2 + (num_tokens - short) * short


def _seen_from_end(num_tokens: int, window: Window, causal: bool) -> int:
    widest = num_tokens if window is None else window + (0 if causal else 1)
    return min(num_tokens, widest)


def tree_work(sequences: Sequence[Ids], windows: Sequence[Window] = (None,)) -> Work:
    """One group as a tree, of a causal body.

    A token stands at the position that it has in its own sequence, and sees of the tree what it
    sees there; so its pairs are those of its position, however many sequences share it.
    """
    tree = grow_tree(sequences)
    ends = {tuple(sequence) for sequence in sequences}
    return Work(
        tree.num_tokens,
        0,
        len(ends),
        tuple(
            sum(
                visible_pairs(node.position + len(node.ids), window)
                - visible_pairs(node.position, window)
                for node in tree.nodes
            )
            for window in windows
        ),
        tuple(sum(_seen_from_end(len(ids), window, True) for ids in ends) for window in windows),
    )


def rows_work(
    lengths: Sequence[int], windows: Sequence[Window] = (None,), causal: bool = True
) -> Work:
    """Sequences of these lengths in rows of their own, without padding."""
    return Work(
        sum(lengths),
        0,
        len(lengths),
        tuple(sum(visible_pairs(n, window, causal) for n in lengths) for window in windows),
        tuple(sum(_seen_from_end(n, window, causal) for n in lengths) for window in windows),
    )


def padded_pairs_work(
    groups: Sequence[Sequence[int]],
    comparisons: Sequence[Sequence[tuple[int, int]]],
    windows: Sequence[Window] = (None,),
    causal: bool = True,
) -> Work:
    """A batch as pairwise trainers lay it out: each comparison two rows, all rows as long as the
    longest, so that an answer is computed as often as it is compared.

    `groups` holds the lengths of each group's sequences, `comparisons` its pairs of indices. Of the
    padding's pairs those of a causal mask are counted, though a dense mask computes all T * T.
    """
    lengths = [
        group[index]
        for group, pairs in zip(groups, comparisons, strict=True)
        for pair in pairs
        for index in pair
    ]
    width = max(lengths, default=0)
    padded = rows_work([width] * len(lengths), windows, causal)
    return Work(
        padded.num_tokens,
        padded.num_tokens - sum(lengths),
        len(lengths),
        padded.pairs,
        padded.end_pairs,
    )


@dataclass(frozen=True)
class LayerCost:
    """What one layer asks of a token and of a visible pair."""

    num_weights: int
    """Weights that a token meets: all of a dense layer, of experts those that are chosen."""
    num_key_value_weights: int = 0
    """Those among them that make keys and values."""
    pair_width: int = 0
    """Multiply-adds of a visible pair, forward: heads * (width of a key + width of a value)."""
    window: Window = None
    num_last_weights: int = 0
    """Those of the layer's last product, which recomputation spares."""
    num_adapter_weights: int = 0
    num_key_value_adapter_weights: int = 0


@dataclass(frozen=True)
class Flops:
    """FLOPs of the body's matrices, of its adapters, and of attention."""

    weights: int = 0
    adapters: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.attention

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.weights + other.weights,
            self.adapters + other.adapters,
            self.attention + other.attention,
        )


def forward_flops(
    work: Work,
    windows: Sequence[Window],
    layers: Sequence[LayerCost],
    num_other_weights: int = 0,
    num_head_weights: int = 0,
    last_layer: LastLayer = "all",
) -> Flops:
    """FLOPs of one forward pass over `work`, whose pairs were counted for `windows`.

    A weight costs 2 FLOPs a token; a visible pair costs 2 for each element of a key and of a value,
    in each head. With `last_layer` "ends", queries, output projection and MLP of the last layer are
    computed at the ends alone. `num_other_weights` are met by every token outside the layers (a
    projection of embeddings), `num_head_weights` by every end.
    """
    result = Flops(2 * (num_other_weights * work.num_tokens + num_head_weights * work.num_ends))
    for number, layer in enumerate(layers):
        is_short = last_layer == "ends" and number == len(layers) - 1
        tokens = work.num_ends if is_short else work.num_tokens
        pairs = work.end_pairs if is_short else work.pairs
        attends = layer.pair_width > 0 and work.num_tokens > 0
        key_value = layer.num_key_value_weights
        key_value_adapters = layer.num_key_value_adapter_weights
        result = result + Flops(
            2 * (key_value * work.num_tokens + (layer.num_weights - key_value) * tokens),
            2
            * (
                key_value_adapters * work.num_tokens
                + (layer.num_adapter_weights - key_value_adapters) * tokens
            ),
            2 * layer.pair_width * pairs[windows.index(layer.window)] if attends else 0,
        )
    return result


def training_flops(forward: Flops, method: Method) -> Flops:
    """Forward and backward.

    Backward costs one product for the gradient of the input and one for that of the weight, so
    twice the forward pass where weights are trained (6 N D altogether) and once where they are
    frozen below something trained; attention has no weights, only inputs, two for each product. A
    frozen body below a trained head has no backward at all.
    """
    if method == "frozen":
        return forward
    frozen_body = method == "lora"
    return Flops(
        forward.weights * (2 if frozen_body else 3), forward.adapters * 3, forward.attention * 3
    )


def recomputed_flops(
    forward: Flops,
    work: Work,
    layers: Sequence[LayerCost],
    method: Method,
    checkpointing: bool,
    fused: bool = True,
) -> int:
    """FLOPs that are executed a second time in the backward pass.

    Gradient checkpointing repeats the forward pass, except that a layer's recomputation stops once
    it has all that is kept for the backward pass: before the last product, unless an adapter stands
    behind it. Fused attention keeps no scores and repeats their product, half of its forward pass.
    """
    if method == "frozen":
        return 0
    repeated = 0
    if checkpointing:
        spared = sum(layer.num_last_weights for layer in layers) if method == "full" else 0
        repeated = forward.total - 2 * spared * work.num_tokens
    return repeated + (forward.attention // 2) * fused

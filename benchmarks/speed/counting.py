"""What is counted and not timed: tokens, visible pairs, FLOPs. Integers only, no model.

Legend: N sequences; D width.
"""

from collections.abc import Iterable, Sequence

Ids = Sequence[int]


def common_prefix(first: Ids, second: Ids) -> int:
    """Number of leading tokens that both share."""
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length


def triangle(length: int) -> int:
    """Query-key pairs of a causal sequence: 1 + 2 + ... + length."""
    return length * (length + 1) // 2


def shared_work(sequences: Iterable[Ids]) -> tuple[int, int]:
    """(tokens, visible query-key pairs) when every shared prefix is computed once.

    In dictionary order what a sequence shares with all before it is what it shares with its
    neighbour, so only the rest of it is new; a token at depth d sees d keys. This is the least that
    an exact layout can do: a tree of one level may do more.
    """
    num_tokens = num_pairs = 0
    before: Ids = ()
    for sequence in sorted(set(map(tuple, sequences))):
        shared = common_prefix(before, sequence)
        num_tokens += len(sequence) - shared
        num_pairs += triangle(len(sequence)) - triangle(shared)
        before = sequence
    return num_tokens, num_pairs


def padded_pairs(shapes: Iterable[Sequence[int]]) -> int:
    """Visible pairs of padded batches (rows, width): each row as long as the longest."""
    return sum(rows * triangle(width) for rows, width in shapes)


def flops(
    num_slots: int,
    num_pairs: int,
    *,
    num_parameters: int,
    num_layers: int,
    width: int,
    training: bool,
) -> int:
    """2 N a token forward, N without embeddings, and 4 D a visible pair and layer for scores and
    values; the backward pass takes twice as much again. As if every layer computed every token.
    """
    forward = 2 * num_parameters * num_slots + 4 * width * num_layers * num_pairs
    return forward * (3 if training else 1)


def num_parameters_of(num_layers: int, width: int, mlp_width: int) -> int:
    """Of a Llama whose heads all have their own keys, without embeddings: four square projections,
    three of the MLP, two norms a layer, the last norm and the reward head."""
    layer = 4 * width * width + 3 * width * mlp_width + 2 * width
    return num_layers * layer + 2 * width

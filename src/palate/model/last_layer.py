"""The last layer where it is read: at the ends of the sequences.

Its keys and values are those of all tokens; queries, output projection and all that follows are
needed at the pooled ends alone. This leaves out the larger part of one layer's work, 1/L of a body
of L layers.

Legend: T columns, Q queries (here the ends), H heads, D width.
"""

from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from palate.model.attention import KEYWORD, ForestAttention


class Shortened:
    """A plan's attention that tells the last layer to compute the columns `column_Q` alone."""

    def __init__(self, whole: ForestAttention, ends: ForestAttention, column_Q: Tensor) -> None:
        self.whole = whole
        self.ends = ends
        self.column_Q = column_Q

    def attend(self, *arguments: Any) -> Tensor:
        return self.whole.attend(*arguments)


class _Found(Exception):
    """Leaves a layer once its keys and values are known."""

    def __init__(self, key: Tensor, value: Tensor) -> None:
        self.key, self.value = key, value


class _Find:
    def attend(self, _: Tensor, key: Tensor, value: Tensor, *__: Any) -> Tensor:
        raise _Found(key, value)


class _Read:
    """The ends' queries against keys and values found before."""

    def __init__(self, ends: ForestAttention, found: _Found) -> None:
        self.ends, self.found = ends, found

    def attend(self, query: Tensor, _: Tensor, __: Tensor, *rest: Any) -> Tensor:
        return self.ends.attend(query, self.found.key, self.found.value, *rest)


class _ShortLayer:
    """Stands before a layer's class; calls it twice where it is handed a `Shortened`.

    The first call ends where attention begins, and gives keys and values. The second has the ends'
    states alone as its input, with the arguments that belong to them.
    """

    def forward(self, hidden_1TD: Tensor, *arguments: Any, **named: Any) -> Any:
        layer: Any = super()
        forest = named.get(KEYWORD)
        if not isinstance(forest, Shortened):
            return layer.forward(hidden_1TD, *arguments, **named)
        try:
            layer.forward(hidden_1TD, *arguments, **{**named, KEYWORD: _Find()})
        except _Found as found:
            keys = found
        else:
            raise LookupError("the layer gave no keys and values")
        num_columns = hidden_1TD.shape[1]

        def at_ends(value: Any) -> Any:
            is_by_column = (
                isinstance(value, Tensor) and value.ndim > 1 and value.shape[:2] == (1, num_columns)
            )
            return value.index_select(1, forest.column_Q) if is_by_column else value

        rest, further = tree_map(at_ends, (arguments, named))
        further[KEYWORD] = _Read(forest.ends, keys)
        return layer.forward(at_ends(hidden_1TD), *rest, **further)


def shorten(body: nn.Module) -> None:
    """Prepare the last layer. Raises LookupError where the body has no list of its layers."""
    layer = last_layer(body)
    own: Any = type(layer)
    layer.__class__ = _short_class(own)


@cache
def _short_class(own: Any) -> Any:
    # Its name is what wrappers that shard and checkpoint look for.
    return type(own.__name__, (_ShortLayer, own), {"__module__": own.__module__})


def lengthen(body: nn.Module) -> None:
    """Undo `shorten`."""
    layer = last_layer(body)
    assert isinstance(layer, _ShortLayer)
    layer.__class__ = type(layer).__mro__[2]


def last_layer(body: nn.Module) -> nn.Module:
    """The last of the body's layers, which stand in one list."""
    count = body.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    lists = [m for m in body.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise LookupError("it keeps no list of its layers")
    return lists[0][-1]

"""Axes of recurrent layers: sequences of a batch go apart, and nothing else does."""

from __future__ import annotations

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, Dims, named, register, shape_of
from autoplan.graph.gemms import tensor_arguments
from autoplan.graph.randomness import is_random

_aten = torch.ops.aten


@register(_aten.lstm.input, _aten.gru.input, _aten.rnn_tanh.input, _aten.rnn_relu.input)
def recurrent(node: fx.Node) -> AxisSpec | None:
    """x ``b s i`` (or ``s b i``), states ``l b h``, then weights; results ``b s h`` and the states."""
    x = shape_of(node.args[0])
    if len(x) != 3 or is_random(node):
        return None
    batch_first = bool(named(node, "batch_first"))
    n = x[0 if batch_first else 1]
    own: tuple[str, ...] = ("b",) if n > 1 else ()
    rows: Dims = (own, (), ()) if batch_first else ((), own, ())
    state: Dims = ((), own, ())
    count = 2 if node.target is _aten.lstm.input else 1
    weights = [((),) * len(shape_of(source)) for source in tensor_arguments(node)[1 + count :]]
    return AxisSpec(
        (rows, *(state,) * count, *weights),
        rows,
        {"b": n} if own else {},
        pieces=(rows, *(state,) * count),
    )

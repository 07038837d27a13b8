"""Literal sizes in a call, made those of one rank.

A traced call spells sizes out (of a view, of what it makes, how often it repeats, into how many groups), and they
are the whole model's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from autoplan.graph.axes.makers import FILLED
from autoplan.graph.axes.spec import shape_of
from autoplan.graph.gemms import argument
from autoplan.graph.strategy import Strategy

__all__ = ["keeps_rows", "with_local_sizes"]

_aten = torch.ops.aten
# Whose result's shape is written in the call, or follows from which dims of the whole tensor have size 1.
_RESHAPED = {
    _aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.unflatten.int,
    _aten.flatten.using_ints, _aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims, _aten.view_copy.default,
    _aten.squeeze_copy.default, _aten.squeeze_copy.dim, _aten.squeeze_copy.dims, _aten.view_as.default, _aten.reshape_as.default, _aten.ravel.default,
}  # fmt: skip
_EXPANDED = {
    _aten.expand.default,
    _aten.expand_copy.default,
    _aten.broadcast_to.default,
    _aten.expand_as.default,
}
_SECTIONS = {
    _aten.split.Tensor, _aten.split_with_sizes.default, _aten.chunk.default, _aten.split.sizes,
    _aten.unsafe_chunk.default, _aten.unsafe_split.Tensor, _aten.tensor_split.sections,
}  # fmt: skip
_RANGES = {_aten.slice.Tensor, _aten.slice_copy.Tensor, _aten.narrow.default}
_REPEATS = {_aten.repeat.default, _aten.tile.default}


def keeps_rows(node: fx.Node) -> bool:
    """True of a call that goes with any number of rows once its dim 0 is not spelt out (``meta["ragged"]``)."""
    return node.target not in FILLED and node.target not in _REPEATS and node.target not in _EXPANDED


def with_local_sizes(
    node: fx.Node, strategy: Strategy, args: Any, kwargs: Any, degree: int
) -> tuple[Any, Any, Any]:
    """(function, args, kwargs) for one of ``degree`` ranks that does its part of ``node`` by ``strategy``."""
    args, kwargs = _divided(node, strategy, args, kwargs, degree)
    target: Any = node.target
    output = strategy.output
    shape = list(output.local_shape(shape_of(node), degree))
    if node.meta.get("ragged"):
        shape[0] = -1
    # Always for a view: a gathered input has other strides than the one that was traced, and view minds them.
    if target in _RESHAPED:
        return _aten.reshape.default, (args[0], shape), {}
    if target in _EXPANDED:
        return _aten.expand.default, (args[0], shape), {}
    if not output.is_shard:
        return target, args, kwargs
    if target in FILLED:
        position = FILLED[target]
        return target, (*args[:position], shape, *args[position + 1 :]), kwargs
    if target in _REPEATS:
        own = strategy.inputs[0].local_shape(shape_of(node.args[0]), degree)
        whole = (1,) * (len(shape) - len(own)) + own
        return target, (args[0], [there // here for there, here in zip(shape, whole, strict=True)]), kwargs
    if target in _SECTIONS and int(argument(node, 2, "dim", 0)) % len(shape) == output.dim:
        return _aten.split.Tensor, (args[0], shape[output.dim], output.dim), {}
    if target in _RANGES and int(argument(node, 1, "dim", 0)) % len(shape) == output.dim:
        return _aten.alias.default, (args[0],), {}  # of a dim that is cut, a slice can only take all
    return target, args, kwargs


def _divided(
    node: fx.Node, strategy: Strategy, args: Any, kwargs: Any, degree: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A rank's share of each argument that counts the axis that is cut."""
    if not strategy.divided:
        return tuple(args), dict(kwargs)
    named = dict(kwargs)
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = dict(zip(names, args, strict=False))
    for name in strategy.divided:
        if name in named:
            named[name] = named[name] // degree
        elif name in given:
            given[name] = given[name] // degree
    return tuple(given.values()), named

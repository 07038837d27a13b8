"""A model at a micro-batch size that was not traced, from two sizes that were.

Every size in a graph (of a tensor, a product, an argument) is a constant plus a multiple of the
micro-batch, so two traces give all others, as long as they differ in nothing but sizes. ``search`` traces
the winner for real and prices it again; if the two disagree, it does without this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from autoplan.graph.ir import Block, ModelGraph

__all__ = ["scaled_graph"]


class _Differs(Exception):
    """The two graphs differ in more than sizes."""


def scaled_graph(low: ModelGraph, high: ModelGraph, micro_batch: int) -> ModelGraph | None:
    """The model at ``micro_batch`` samples; None if ``low`` and ``high`` do not tell.

    Good for planning: the free block stays that of ``low``, and nothing of it should be run.
    """
    share = (micro_batch - low.micro_batch) / (high.micro_batch - low.micro_batch)
    if list(low.kinds) != list(high.kinds) or low.units != high.units:
        return None
    try:
        kinds = {kind: _block(low.kinds[kind], high.kinds[kind], share) for kind in low.kinds}
    except _Differs:
        return None
    return replace(low, micro_batch=micro_batch, kinds=kinds)


def _block(low: Block, high: Block, share: float) -> Block:
    if low.graph is None or (low.inputs, low.outputs) != (high.inputs, high.outputs):
        raise _Differs
    return replace(
        low,
        ops=_between(low.ops, high.ops, share),
        values=_between(low.values, high.values, share),
        graph=_traced(low.graph, high.graph, share),
        _strategies={},
    )


def _between(low: Any, high: Any, share: float) -> Any:
    """``low`` with every integer moved ``share`` of the way to ``high``, through any nesting."""
    if type(low) is not type(high):
        raise _Differs
    if isinstance(low, int) and not isinstance(low, bool):
        size = low + share * (high - low)
        if size != int(size):
            raise _Differs
        return int(size)
    if isinstance(low, dict):
        if list(low) != list(high):
            raise _Differs
        return {key: _between(low[key], high[key], share) for key in low}
    if isinstance(low, tuple | list):
        return type(low)(_pairs(low, high, share))
    if is_dataclass(low) and not isinstance(low, type):
        names = [field.name for field in fields(low)]
        return replace(
            low, **{name: _between(getattr(low, name), getattr(high, name), share) for name in names}
        )
    if low != high:
        raise _Differs
    return low


def _pairs(low: Sequence[Any], high: Sequence[Any], share: float) -> list[Any]:
    if len(low) != len(high):
        raise _Differs
    return [_between(a, b, share) for a, b in zip(low, high, strict=True)]


def _traced(low: torch.fx.Graph, high: torch.fx.Graph, share: float) -> torch.fx.Graph:
    """The executable graph's nodes with their arguments and the sizes of their results."""
    import torch

    made = torch.fx.Graph()
    new: dict[torch.fx.Node, torch.fx.Node] = {}
    nodes, others = list(low.nodes), list(high.nodes)
    if [(n.name, n.op, n.target) for n in nodes] != [(n.name, n.op, n.target) for n in others]:
        raise _Differs

    def argument(a: Any, b: Any) -> Any:
        if isinstance(a, torch.fx.Node):
            return new[a]
        if isinstance(a, tuple | list):
            if len(a) != len(b):
                raise _Differs
            return type(a)(argument(x, y) for x, y in zip(a, b, strict=True))
        return _between(a, b, share)

    def result(a: Any, b: Any) -> Any:
        if isinstance(a, torch.Tensor):
            shape = _between(tuple(map(int, a.shape)), tuple(map(int, b.shape)), share)
            return torch.empty(shape, dtype=a.dtype, device="meta")
        if isinstance(a, tuple | list):
            return type(a)(result(x, y) for x, y in zip(a, b, strict=True))
        return a

    for a, b in zip(nodes, others, strict=True):
        arguments = tuple(argument(x, y) for x, y in zip(a.args, b.args, strict=True))
        named = {key: argument(a.kwargs[key], b.kwargs.get(key)) for key in a.kwargs}
        new[a] = made.create_node(a.op, a.target, arguments, named, name=a.name)
        new[a].meta = {**a.meta, "val": result(a.meta.get("val"), b.meta.get("val"))}
    return made

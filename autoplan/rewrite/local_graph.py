"""One block on one rank: its graph in local shapes, with every change of layout an explicit node.

    input ─convert─→ op ─convert─→ op ─convert─→ output
                      ↑
    parameter ─to_local─convert

A converted value is made once and shared by all that read it in that layout. The block's own graph is
in global shapes; here each op's literal sizes become local ones, and its strategy says in which layouts
it reads and writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from autoplan.cost.boundary import boundary_layout
from autoplan.errors import PlanError
from autoplan.graph.axes import strategies
from autoplan.graph.gemms import argument
from autoplan.graph.ir import Block, Op, Origin
from autoplan.graph.layout import REPLICATE, REPLICATE_STAR, Layout
from autoplan.graph.strategy import Strategy
from autoplan.rewrite.kernels import KERNELS
from autoplan.rewrite.move import convert

__all__ = ["LocalBlock", "choose", "local_call", "localise", "to_local"]

_aten = torch.ops.aten
# Whose result's shape is written in the call, or follows from which dims of the whole tensor have size 1.
_SIZED = {_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.expand.default,
          _aten.unflatten.int, _aten.squeeze.default, _aten.squeeze.dim, _aten.squeeze.dims}  # fmt: skip
_SECTIONS = {_aten.split.Tensor, _aten.split_with_sizes.default, _aten.chunk.default}
_RANGES = {_aten.slice.Tensor, _aten.narrow.default}


@dataclass(frozen=True, slots=True)
class LocalBlock:
    """How one block is cut on one mesh axis: the choice made for it, and where the axis is.

    ``layouts`` maps op names to strategy names and parameter names to layouts; what is absent is whole.
    ``group`` names the process group of the mesh axis; ``boundary`` is the layout between units.
    """

    block: Block
    layouts: dict[str, str]
    boundary: Layout
    degree: int
    group: str


def choose(block: Block, op: Op, degree: int, layouts: dict[str, str]) -> Strategy:
    """The strategy that ``layouts`` names for ``op``, ``R`` where it names none. Raises PlanError."""
    name = layouts.get(op.name, "R")
    for strategy in strategies(block, op, degree):
        if strategy.name == name:
            return strategy
    known = ", ".join(s.name for s in strategies(block, op, degree))
    raise PlanError(
        f"layouts.{block.kind}.{op.name}",
        name,
        f"one of: {known}",
        "search again for this model, batch and tp",
    )


def to_local(parameter: Any) -> torch.Tensor:
    """The piece of a parameter that this rank computes with (a DTensor's local tensor, or the tensor itself)."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def localise(local: LocalBlock, summed_loss: str | None = None) -> fx.Graph:
    """The block's graph for one rank.

    ``summed_loss`` names a cross-entropy that must give its sum instead of its mean, because
    micro-batches are weighed by their number of targets.
    """
    return _Localiser(local, summed_loss).run()


class _Localiser:
    def __init__(self, local: LocalBlock, summed_loss: str | None) -> None:
        self.local = local
        self.summed_loss = summed_loss
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.layouts: dict[fx.Node, Layout] = {}
        self.converted: dict[tuple[fx.Node, Layout], fx.Node] = {}
        self.ops = {op.name: op for op in local.block.ops}

    def run(self) -> fx.Graph:
        for node in self.local.block.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self._source(node)
            elif node.op == "call_function":
                self._call(node)
            else:
                outputs = tuple(self._read(n, self._boundary(n.name)) for n in node.args[0])
                self.graph.output(outputs)
        self.graph.lint()
        return self.graph

    def _boundary(self, name: str) -> Layout:
        return boundary_layout(self.local.block.values[name], self.local.boundary, self.local.degree)

    def _source(self, node: fx.Node) -> None:
        new = self.graph.node_copy(node)
        value = self.local.block.values[node.name]
        self.layouts[node] = REPLICATE
        if value.origin is Origin.PARAMETER:
            new = self.graph.call_function(to_local, (new,))
            self.layouts[node] = Layout.parse(self.local.layouts.get(node.name, "R"))
        elif value.origin is Origin.INPUT:
            self.layouts[node] = self._boundary(node.name)
        self.env[node] = new

    def _read(self, node: fx.Node, layout: Layout) -> fx.Node:
        """The value of ``node`` in ``layout``."""
        have = self.layouts[node]
        if not self.local.block.values[node.name].requires_grad and REPLICATE_STAR in (have, layout):
            have, layout = (REPLICATE if x == REPLICATE_STAR else x for x in (have, layout))
        if have == layout:
            return self.env[node]
        key = (node, layout)
        if key not in self.converted:
            arguments = (self.env[node], str(have), str(layout), self.local.group)
            self.converted[key] = self.graph.call_function(convert, arguments)
        return self.converted[key]

    def _call(self, node: fx.Node) -> None:
        op = self.ops[node.name]
        strategy = choose(self.local.block, op, self.local.degree, self.local.layouts)
        wanted = iter(strategy.inputs)
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._read(n, next(wanted)))
        summed = node.name == self.summed_loss
        target, args, kwargs = local_call(node, strategy, args, kwargs, self.local, summed)
        new = self.graph.create_node("call_function", target, args, kwargs, name=node.name)
        self.env[node] = new
        self.layouts[node] = strategy.output


def local_call(
    node: fx.Node, strategy: Strategy, args: Any, kwargs: Any, local: LocalBlock, summed: bool = False
) -> tuple[Any, Any, Any]:
    """What one rank calls to do its part of ``node`` by ``strategy``: (function, args, kwargs).

    ``args`` and ``kwargs`` are the node's own with local tensors (or nodes) for its inputs; sizes among
    them are still global. ``summed``: give the sum of a cross-entropy, not its mean.
    """
    if strategy.kernel == "vocab_embedding":
        padding = argument(node, 2, "padding_idx", -1)
        return KERNELS[strategy.kernel], (*args[:2], local.group, padding), {}
    if strategy.kernel == "vocab_cross_entropy":
        ignored = argument(node, 4, "ignore_index", -100)
        return KERNELS[strategy.kernel], (*args[:2], local.group, ignored, summed), {}
    if summed:
        ignored = argument(node, 4, "ignore_index", -100)
        args, kwargs = args[:3], {**kwargs, "reduction": 2, "ignore_index": ignored}
    # Always for a view: a gathered input has other strides than the one that was traced, and view minds them.
    if strategy.output.is_shard or node.target in _SIZED:
        return _resize(node, strategy.output, args, kwargs, local.degree)
    return node.target, args, kwargs


def _resize(node: fx.Node, output: Layout, args: Any, kwargs: Any, degree: int) -> tuple[Any, Any, Any]:
    """Turn literal sizes into local ones."""
    value = node.meta["val"]
    example = value[0] if isinstance(value, tuple | list) else value
    shape = list(output.local_shape(tuple(example.shape), degree))
    if node.target in _SIZED:
        target = node.target if node.target is _aten.expand.default else _aten.reshape.default
        return target, (args[0], shape), {}
    if node.target in _SECTIONS:
        dim = int(argument(node, 2, "dim", 0)) % len(shape)
        if dim == output.dim:
            return _aten.split.Tensor, (args[0], shape[dim], dim), {}
    if node.target in _RANGES and int(argument(node, 1, "dim", 0)) % len(shape) == output.dim:
        return _aten.alias.default, (args[0],), {}  # of a dim that is cut, a slice can only take all
    return node.target, args, kwargs

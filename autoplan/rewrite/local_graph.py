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

from autoplan.errors import PlanError
from autoplan.graph.axes import piece_layouts, spec_of, strategies
from autoplan.graph.axes.local_sizes import with_local_sizes
from autoplan.graph.boundary import boundary_layout
from autoplan.graph.ir import Block, Op, Origin
from autoplan.graph.layout import REPLICATE, REPLICATE_STAR, Layout
from autoplan.graph.mesh_calls import ExpertCall, Moved, OnMesh
from autoplan.graph.strategy import Strategy
from autoplan.rewrite.expert_kernels import expert_call, own_share
from autoplan.rewrite.kernel_calls import kernel_call, mesh_call, summed_arguments
from autoplan.rewrite.move import convert
from autoplan.rewrite.random_calls import drawn_call_of
from autoplan.rewrite.random_kernels import DRAWS

__all__ = ["EXPERTS", "LocalBlock", "choose", "local_call", "localise", "own_gradient", "to_local"]

EXPERTS = "experts_here"
"""What a unit's graph calls the module that holds the parameters of this rank's experts."""


@dataclass(frozen=True, slots=True)
class LocalBlock:
    """How one block is cut on one mesh axis: the choice made for it, and where the axis is.

    ``layouts`` maps op names to strategy names and parameter names to layouts; what is absent is whole.
    ``group`` names the process group of the mesh axis; ``boundary`` is the layout between units. ``cp_group`` names
    that of the axis that has cut the block already (``graph.cut``), if one has, and ``ep_group`` that of the one that
    shares out its experts (``graph.expert_cut``), on ``ep`` ranks.
    """

    block: Block
    layouts: dict[str, str]
    boundary: Layout
    degree: int
    group: str
    cp_group: str = ""
    ep_group: str = ""
    ep: int = 1


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


class _OwnGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0].clone()


def own_gradient(parameter: torch.Tensor) -> torch.Tensor:
    """The same, whose gradient has memory of its own.

    Autograd adds later gradients to the first in place, and so copies a first one that others hold too. Inside a
    DTensor it does not see who holds it: of ``x + p`` the sum's gradient, or a slice of it, is that of ``p`` as it is.
    """
    return _OwnGradient.apply(parameter)  # type: ignore[return-value]


_MAKE_GRADIENTS = (
    "linear", "mm", "addmm", "bmm", "baddbmm", "matmul", "einsum", "conv1d", "conv2d", "conv3d", "embedding", "mul",
    "layer_norm", "rms_norm", "group_norm", "batch_norm", "grouped_mm", "_grouped_mm",
)  # fmt: skip
"""Ops whose gradients are new tensors."""
_VIEWS = ("t", "transpose", "permute", "view", "reshape", "flatten", "unflatten")


def _may_share_gradient(node: fx.Node) -> bool:
    """Whether the gradient of ``node`` may be another tensor's too, or a part of it."""
    for user in node.users:
        name = str(getattr(user.target, "_opname", user.target))
        if name not in _MAKE_GRADIENTS and (name not in _VIEWS or _may_share_gradient(user)):
            return True
    return False


def localise(
    local: LocalBlock, summed_loss: str | None = None, moves: dict[fx.Node, str] | None = None
) -> fx.Graph:
    """The block's graph for one rank.

    ``summed_loss`` names a cross-entropy that must give its sum instead of its mean, because
    micro-batches are weighed by their number of targets. ``moves`` is given each change of layout with its name,
    ``value:layout``.
    """
    localiser = _Localiser(local, summed_loss)
    graph = localiser.run()
    if moves is not None:
        moves |= {new: f"{node.name}:{layout}" for (node, layout), new in localiser.converted.items()}
    return graph


class _Localiser:
    def __init__(self, local: LocalBlock, summed_loss: str | None) -> None:
        self.local = local
        self.summed_loss = summed_loss
        self.graph = fx.Graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self.layouts: dict[fx.Node, Layout] = {}
        self.converted: dict[tuple[fx.Node, Layout], fx.Node] = {}
        self.ops = {op.name: op for op in local.block.ops}
        self.draws: fx.Node | None = None

    def run(self) -> fx.Graph:
        for node in self.local.block.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                self._source(node)
                continue
            if self.draws is None and any(op.random for op in self.local.block.ops):
                self.draws = self.graph.placeholder(DRAWS)
            if node.op == "call_function":
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
            if node.name in self.local.block.expert_dims:
                new.target = f"{EXPERTS}.{node.target}"
                new = self.graph.call_function(
                    own_share, (self.graph.call_function(to_local, (new,)), self.local.ep)
                )
            else:
                new = self.graph.call_function(to_local, (new,))
                if value.requires_grad and self.local.degree > 1 and _may_share_gradient(node):
                    new = self.graph.call_function(own_gradient, (new,))
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
            arguments = (
                self.env[node],
                self._written(node, have),
                self._written(node, layout),
                self.local.group,
            )
            self.converted[key] = self.graph.call_function(convert, arguments)
        return self.converted[key]

    def _written(self, node: fx.Node, layout: Layout) -> str | list[str]:
        """A layout as text; for a list of unlike tensors, that of each."""
        spec = spec_of(self.local.block, self.ops[node.name]) if node.name in self.ops else None
        if spec is None or not spec.pieces:
            return str(layout)
        return [str(piece) for piece in piece_layouts(spec, layout)]

    def _call(self, node: fx.Node) -> None:
        op = self.ops[node.name]
        strategy = choose(self.local.block, op, self.local.degree, self.local.layouts)
        wanted = iter(strategy.inputs)
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._read(n, next(wanted)))
        summed = node.name == self.summed_loss
        if op.random:
            places = ((str(strategy.output), self.local.group, False),) if self.local.degree > 1 else ()
            call = drawn_call_of(node, args, kwargs, self.draws, places, self.local.cp_group)
        else:
            call = local_call(node, strategy, args, kwargs, self.local, summed)
        target, args, kwargs = call
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
    target: Any = node.target
    if isinstance(target, Moved):
        return convert, (args[0], target.src, target.dst, local.cp_group, target.zigzag), {}
    if isinstance(target, ExpertCall):
        return expert_call(target, args, local.ep_group)
    if isinstance(target, OnMesh):
        classes = local.group if strategy.kernel == "vocab_cross_entropy" else None
        return mesh_call(node, target, args, kwargs, local.cp_group, summed, classes)
    if strategy.kernel is not None:
        return kernel_call(node, strategy, args, kwargs, local.group, local.degree, summed)
    if summed:
        args, kwargs = summed_arguments(node, args)
    return with_local_sizes(node, strategy, args, kwargs, local.degree)

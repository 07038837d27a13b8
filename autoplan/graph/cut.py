"""A block, or a model, as one rank of a context-parallel axis has it: again a block, in local shapes.

Mesh axes are taken one after another. The first to cut leaves a block whose sizes are one rank's, with its
changes of layout as ops of their own (``mesh_calls.Moved``) that say what they send; whatever prices, chooses
layouts for, or rewrites a block then does so for the next axis, tensor parallelism. A dim that both cut is cut by
the first into ranges, and by the second within each range.

A rank's part of a dim is one range of it, or, in zigzag order, two: of 2n pieces the r-th, and the r-th from the end.
No op whose axis may be cut asks where its part lies, but the kernels of causal attention, for which the order makes
all ranks' work equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from autoplan.errors import PlanError
from autoplan.graph.axes import sequence_strategies, stored_layout
from autoplan.graph.axes.local_sizes import with_local_sizes
from autoplan.graph.boundary import boundary_layout
from autoplan.graph.cutter import Cutter
from autoplan.graph.gemms import tensor_arguments
from autoplan.graph.ir import Block, ModelGraph, Op, OpKind, Origin, Saved, Sent, Value, Window
from autoplan.graph.layout import REPLICATE, REPLICATE_STAR, Layout
from autoplan.graph.mesh_calls import Drawn, Moved, OnMesh
from autoplan.graph.moves import traffic
from autoplan.graph.strategy import GATHERED_ATTENTION, RING_ATTENTION, Strategy

__all__ = ["cut_block", "cut_graph", "cut_op"]


def cut_graph(
    graph: ModelGraph,
    layouts: Mapping[str, Mapping[str, str]],
    boundary: Layout,
    degree: int,
    order: str = "plain",
) -> ModelGraph:
    """``graph`` as one of ``degree`` ranks of the context-parallel axis has it; itself for one.

    Args:
        layouts: strategy names by block kind and op; what is absent is whole.
        boundary: the layout of what passes between units.
        order: ``plain`` or ``zigzag``: which pieces of a cut dim a rank has.

    Raises PlanError for a strategy or an op that the model does not have.
    """
    if degree == 1:
        return graph
    kinds = {
        kind: cut_block(block, layouts.get(kind, {}), boundary, degree, order)
        for kind, block in graph.kinds.items()
    }
    return replace(graph, kinds=kinds, whole=graph)


def cut_block(
    block: Block, chosen: Mapping[str, str], boundary: Layout, degree: int, order: str = "plain"
) -> Block:
    """One rank's part of ``block``; arguments and errors as for ``cut_graph``."""
    known = {op.name for op in block.ops}
    for name in chosen:
        if name not in known:
            field = f"cp_layouts.{block.kind}"
            raise PlanError(field, name, "an op of this block", "search again for this model")
    return _Cutter(block, chosen, boundary, degree, order == "zigzag").run()


def cut_op(op: Op, strategy: Strategy, degree: int, zigzag: bool = False) -> Op:
    """What one rank does of ``op`` by ``strategy``, and what its kernel sends."""
    cut = degree if strategy.share else 1
    layouts = dict(zip(op.inputs, strategy.inputs, strict=True)) | {op.output: strategy.output}

    def kept(saved: Saved) -> Saved:
        shared = strategy.share if saved.value is None else layouts.get(saved.value, REPLICATE).is_shard
        return replace(saved, nbytes=saved.nbytes // (degree if shared else 1))

    by_rows = strategy.kernel in (GATHERED_ATTENTION, RING_ATTENTION) and op.causal
    causal = op.causal and (zigzag or not by_rows)
    return replace(
        op,
        flops_forward=op.flops_forward // cut,
        flops_backward=op.flops_backward // cut,
        bytes_forward=op.bytes_forward // cut,
        bytes_backward=op.bytes_backward // cut,
        gemm=None if op.gemm is None else op.gemm.cut(strategy.gemm_axis, cut),
        causal=causal,
        # the last rank's queries see the most keys, and set the pace
        window=Window(op.gemm.n, 1 - 1 / (2 * degree), True) if op.causal > causal and op.gemm else op.window,
        saved=tuple(kept(saved) for saved in op.saved),
        sends=tuple(
            Sent(send.kind, send.nbytes, send.phase, degree, send.beside) for send in strategy.internal
        ),
        pieces=degree if strategy.kernel == RING_ATTENTION else 1,
    )


class _Cutter(Cutter):
    def __init__(
        self, block: Block, chosen: Mapping[str, str], boundary: Layout, degree: int, zigzag: bool
    ) -> None:
        super().__init__(block, degree)
        self.chosen, self.boundary, self.zigzag = chosen, boundary, zigzag
        self.pieces = 2 * degree if zigzag else degree  # what is cut must divide into so many
        self.env: dict[fx.Node, fx.Node] = {}
        self.layouts: dict[fx.Node, Layout] = {}
        self.moved: dict[tuple[fx.Node, Layout], fx.Node] = {}

    def _given(self, node: fx.Node) -> fx.Node:
        return self._read(node, self._boundary(node.name), "")

    def _boundary(self, name: str) -> Layout:
        return boundary_layout(self.block.values[name], self.boundary, self.pieces)

    def _source(self, node: fx.Node) -> None:
        value = self.block.values[node.name]
        layout = REPLICATE
        if value.origin is Origin.PARAMETER:
            layout = stored_layout(self.block, node.name)
        elif value.origin is Origin.INPUT:
            layout = self._boundary(node.name)
        new = self.graph.node_copy(node)
        new.meta["val"] = _local(node.meta["val"], layout, self.degree)
        self._add(node, new, layout)

    def _add(self, node: fx.Node, new: fx.Node, layout: Layout) -> None:
        assert new.name == node.name, f"{node.name} became {new.name}"
        self.env[node], self.layouts[node] = new, layout
        self._value(new, self.block.values[node.name], layout)

    def _value(self, new: fx.Node, like: Value, layout: Layout) -> None:
        shape = layout.local_shape(like.shape, self.degree)
        self.values[new.name] = replace(like, name=new.name, shape=shape)

    def _read(self, node: fx.Node, layout: Layout, path: str) -> fx.Node:
        """The value of ``node`` in ``layout``, for an op of module ``path``."""
        have, value = self.layouts[node], self.block.values[node.name]
        if not value.requires_grad:
            have, layout = (REPLICATE if x == REPLICATE_STAR else x for x in (have, layout))
        if have == layout:
            return self.env[node]
        key = (node, layout)
        if key not in self.moved:
            call = Moved(str(have), str(layout), self.degree, self.zigzag)
            new = self.graph.create_node("call_function", call, (self.env[node],), {}, name=self._name(node))
            new.meta["val"] = _local(node.meta["val"], layout, self.degree)
            self._value(new, replace(value, origin=Origin.OP), layout)
            self.moved[key] = new
            self.ops.append(self._move_op(new, node, have, layout, path))
        return self.moved[key]

    def _name(self, node: fx.Node) -> str:
        number = sum(source is node for source, _ in self.moved)
        while (name := f"{node.name}_moved{number or ''}") in self.taken:
            number += 1
        self.taken.add(name)
        return name

    def _move_op(self, new: fx.Node, node: fx.Node, src: Layout, dst: Layout, path: str) -> Op:
        value = self.block.values[node.name]
        forward, backward = traffic(value, src, dst, self.degree)
        sends: list[Sent] = []
        if forward.kind is not None:
            sends.append(Sent(forward.kind, forward.sent, "forward", self.degree))
        if backward.kind is not None:
            sends.append(Sent(backward.kind, backward.sent, "backward", self.degree))
        # the slice of a table or mask is a tensor of its own, which whoever multiplies by it keeps
        keeps = not value.requires_grad and not value.dtype.startswith(("int", "bool"))
        local = self.values[new.name].nbytes
        return Op(
            name=new.name,
            target="autoplan.moved",
            module_path=path,
            kind=OpKind.MEMORY if forward.touched else OpKind.VIEW,
            inputs=(self.env[node].name,),
            output=new.name,
            flops_forward=0,
            flops_backward=0,
            bytes_forward=round(forward.touched),
            bytes_backward=round(backward.touched),
            saved=(Saved(new.name, local, new.name),) if keeps else (),
            sends=tuple(sends),
        )

    def _call(self, node: fx.Node) -> None:
        op = self.by_name[node.name]
        strategy = self._strategy(op)
        wanted = iter(strategy.inputs)
        path = op.module_path
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self._read(n, next(wanted), path))
        read: list[str] = []
        fx.map_arg((args, kwargs), lambda n: read.append(n.name))
        if strategy.kernel is not None:
            target: Any = OnMesh(strategy.kernel, node.target, self.degree, self.zigzag)
        elif op.random:
            shape = tuple(node.meta["val"].shape) if isinstance(node.meta["val"], torch.Tensor) else ()
            target = Drawn(node.target, shape, str(strategy.output), self.degree, self.zigzag)
        else:
            target, args, kwargs = with_local_sizes(node, strategy, args, kwargs, self.degree)
        new = self.graph.create_node("call_function", target, args, kwargs, name=node.name)
        new.meta.update(node.meta)
        new.meta["val"] = _local(node.meta["val"], strategy.output, self.degree)
        local = cut_op(op, strategy, self.degree, self.zigzag)
        renamed = dict(zip(op.inputs, read, strict=True))
        saved = tuple(replace(s, value=renamed.get(s.value, s.value)) if s.value else s for s in local.saved)
        self.ops.append(
            replace(
                local,
                inputs=tuple(n.name for n in tensor_arguments(new)),
                saved=saved,
                keeps=tuple(renamed.get(name, name) for name in local.keeps),
                alias=renamed.get(local.alias, ""),
            )
        )
        self._add(node, new, strategy.output)

    def _strategy(self, op: Op) -> Strategy:
        name = self.chosen.get(op.name, "R")
        finest = {strategy.name for strategy in sequence_strategies(self.block, op, self.pieces)}
        known = [s for s in sequence_strategies(self.block, op, self.degree) if s.name in finest]
        for strategy in known:
            if strategy.name == name:
                return strategy
        raise PlanError(
            f"cp_layouts.{self.block.kind}.{op.name}",
            name,
            "one of: " + ", ".join(s.name for s in known),
            "search again for this model, batch, cp and cp_order",
        )


def _local(value: Any, layout: Layout, degree: int) -> Any:
    """What stands for a value of a node, in the shape that one rank has."""
    if isinstance(value, tuple | list):
        return [_local(piece, layout, degree) for piece in value]
    if not isinstance(value, torch.Tensor) or not layout.is_shard:
        return value
    return torch.empty(layout.local_shape(tuple(value.shape), degree), dtype=value.dtype, device="meta")

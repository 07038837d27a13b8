"""From iteration axes to every legal way to run an op on a mesh axis: the one enumerator.

Cut axis a on n ranks. A tensor whose dim holds a is cut there (in ``parts`` if other axes come before a
in that dim); an input that does not hold a must be whole, and its gradient comes out partial (``R*``);
a result that does not hold a is a partial sum (``P``). Besides, every op can run whole on every rank,
with whole gradients (``R``) or partial ones (``R*``: backward is linear in the incoming gradient, which of
torch's own ops is so; the backward that a user wrote may clip), and a linear op can run on partial sums (``P``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from autoplan.graph.axes.spec import AxisSpec, Dims, has_own_backward, rule_for
from autoplan.graph.gemms import tensor_arguments
from autoplan.graph.ir import Block, Op
from autoplan.graph.layout import PARTIAL, REPLICATE, REPLICATE_STAR, Layout, shard
from autoplan.graph.strategy import Strategy

__all__ = ["enumerated", "node_of", "part_counts", "piece_layouts", "spec_of", "strategies", "value_layouts"]

_FEW = 4
"""Dims are seen as at most so many parts, lest the ways to cut an op become too many."""


def strategies(block: Block, op: Op, degree: int) -> tuple[Strategy, ...]:
    """Every legal strategy of ``op`` on a mesh axis of ``degree`` ranks, in a fixed order, ``R`` first."""
    key = (op.name, degree)
    if key not in block._strategies:
        block._strategies[key] = tuple(enumerated(block, op, degree, part_counts(block)))
    return block._strategies[key]


def spec_of(block: Block, op: Op) -> AxisSpec | None:
    """The axes of one call of an op; None when it has no rule, or its rule keeps this call whole."""
    return _spec(block, node_of(block, op.name))


def _spec(block: Block, node: fx.Node) -> AxisSpec | None:
    known = block._strategies.setdefault("specs", {})
    if node.name not in known:
        rule = rule_for(node.target)
        spec = rule(node) if rule is not None else None
        known[node.name] = _with_whole_rows(node, spec) if spec is not None else None
    return known[node.name]


def _with_whole_rows(node: fx.Node, spec: AxisSpec) -> AxisSpec:
    """The same, where dim 0 of a tensor is known only when it runs (``meta["ragged"]``), with that dim whole."""
    tensors = [*zip(tensor_arguments(node), spec.inputs, strict=False), (node, spec.output)]
    ragged = {axis for tensor, dims in tensors if tensor.meta.get("ragged") and dims for axis in dims[0]}
    return replace(spec, fixed=spec.fixed | ragged) if ragged else spec


def value_layouts(block: Block, name: str, degree: int) -> tuple[Layout, ...]:
    """The layouts in which a parameter may be kept: whole, or cut in any dim that divides."""
    if degree == 1:
        return (REPLICATE,)
    found = [REPLICATE]
    for dim, size in enumerate(block.values[name].shape):
        for parts in part_counts(block):
            if parts > 1 and dim == block.expert_dims.get(name):
                continue  # one axis has cut it in ranges already
            if size % (parts * degree) == 0:
                found.append(shard(dim, parts))
    return tuple(found)


def part_counts(block: Block, rows: bool = False) -> tuple[int, ...]:
    """1, and into how many equal parts dims of this block are split (3 for a fused q, k, v).

    ``rows``: also, however many they are, the samples whose tokens make up one first dim.
    """
    key = "parts", rows
    if key not in block._strategies:
        found = {1}
        for node in block.graph.nodes:
            spec = _spec(block, node) if node.op == "call_function" else None
            for dims in (*spec.inputs, spec.output) if spec is not None else ():
                for dim, axes in enumerate(dims):
                    if spec is None or len(axes) < 2:
                        continue
                    if spec.sizes[axes[0]] <= _FEW or (rows and dim == 0):
                        found.add(spec.sizes[axes[0]])
        block._strategies[key] = tuple(sorted(found))
    return block._strategies[key]


def enumerated(block: Block, op: Op, degree: int, parts_of_dims: Sequence[int]) -> list[Strategy]:
    """The strategies of ``op``, with dims seen as each of ``parts_of_dims`` equal parts."""
    needs_grad = [block.values[name].requires_grad for name in op.inputs]
    out_grad = block.values[op.output].requires_grad
    found = [_whole("R", REPLICATE, needs_grad, out_grad)]
    if degree == 1:
        return found
    if out_grad and not has_own_backward(node_of(block, op.name).target):
        found.append(_whole("R*", REPLICATE_STAR, needs_grad, out_grad))
    spec = spec_of(block, op)
    if spec is None:
        return found
    assert len(spec.inputs) == len(op.inputs), (
        f"{op.target}: the rule names {len(spec.inputs)} tensors, the call has {len(op.inputs)}"
    )
    if out_grad and spec.linear is not None and all(needs_grad[i] for i in spec.linear):
        inputs = tuple(PARTIAL if i in spec.linear else REPLICATE for i in range(len(op.inputs)))
        if all(not grad or i in spec.linear for i, grad in enumerate(needs_grad)):
            found.append(Strategy("P", inputs, PARTIAL, share=False))
    for axis in spec.sizes:
        for parts in parts_of_dims:
            strategy = _cut(spec, axis, parts, degree, needs_grad, out_grad)
            if strategy is not None:
                found.append(strategy)
    if spec.extra is not None:
        found.extend(spec.extra(degree))
    return found


def node_of(block: Block, name: str) -> fx.Node:
    """The node of a value in the block's graph."""
    if "nodes" not in block._strategies:
        block._strategies["nodes"] = {node.name: node for node in block.graph.nodes}
    return block._strategies["nodes"][name]


def _whole(name: str, layout: Layout, needs_grad: list[bool], out_grad: bool) -> Strategy:
    inputs = tuple(layout if grad else REPLICATE for grad in needs_grad)
    return Strategy(name, inputs, layout if out_grad else REPLICATE, share=False)


def _cut(
    spec: AxisSpec, axis: str, parts: int, degree: int, needs_grad: list[bool], out_grad: bool
) -> Strategy | None:
    size = spec.sizes[axis]
    if axis in spec.fixed or size % (parts * degree) or size == parts:
        return None
    output = _locate(spec.output, axis, parts, spec.sizes)
    contracted = output is None
    inputs = []
    for position, dims in enumerate(spec.inputs):
        layout = _locate(dims, axis, parts, spec.sizes)
        if layout is None:
            if contracted and position in spec.added_once:
                layout = PARTIAL
            else:
                layout = REPLICATE_STAR if needs_grad[position] else REPLICATE
        inputs.append(layout)
    if contracted and not out_grad:
        return None  # a partial sum of what no gradient flows through is not worth a layout of its own
    return Strategy(
        f"cut {axis}" if parts == 1 else f"cut {axis}/{parts}",
        tuple(inputs),
        PARTIAL if output is None else output,
        share=True,
        gemm_axis=spec.gemm.get(axis),  # type: ignore[arg-type]
        kernel="share_of_mean" if axis in spec.averaged else None,
        divided=tuple(name for name, counted in spec.counts.items() if counted == axis),
    )


def piece_layouts(spec: AxisSpec, layout: Layout) -> tuple[Layout, ...]:
    """The layout of each of an op's unlike results (``spec.pieces``) when the first has ``layout``.

    A result without the axis that is cut is the same on every rank.
    """
    if not layout.is_shard:
        return (layout,) * len(spec.pieces)
    for axis in spec.output[layout.dim]:
        for parts in range(1, layout.parts + 1):
            if _locate(spec.output, axis, parts, spec.sizes) == layout:
                found = (_locate(dims, axis, parts, spec.sizes) for dims in spec.pieces)
                return tuple(REPLICATE if piece is None else piece for piece in found)
    raise AssertionError(f"no axis of dim {layout.dim} is cut by {layout}")


def _locate(dims: Dims, axis: str, parts: int, sizes: dict[str, int]) -> Layout | None:
    for dim, axes in enumerate(dims):
        if axis in axes:
            before = math.prod(sizes[a] for a in axes[: axes.index(axis)])
            return shard(dim, parts * before)
    return None

"""Axes of what a block holds once one mesh axis has cut it: changes of layout, and kernels (``graph.mesh_calls``)."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, is_floating, plain, register_fallback, rule_for, shape_of
from autoplan.graph.layout import Layout
from autoplan.graph.mesh_calls import Drawn, ExpertCall, Moved, OnMesh


@register_fallback(lambda target: isinstance(target, Moved))
def moved(node: fx.Node) -> AxisSpec | None:
    """Dim for dim; what the move cuts or joins stays whole for others, so that one axis's pieces lie inside the
    other's."""
    call: Any = node.target
    value = node.meta["val"]
    if isinstance(value, tuple | list) and len({tuple(piece.shape) for piece in value}) > 1:
        return None
    source, shape = shape_of(node.args[0]), shape_of(node)
    output, sizes = plain(shape)
    layouts = (Layout.parse(call.src), Layout.parse(call.dst))
    fixed = {f"d{layout.dim}" for layout in layouts if layout.is_shard}
    given = []
    for dim, (before, after) in enumerate(zip(source, shape, strict=True)):
        given.append(output[dim] if before == after else ((f"own{dim}",) if before > 1 else ()))
        if before != after and before > 1:
            sizes[f"own{dim}"] = before
            fixed.add(f"own{dim}")
    return AxisSpec(
        (tuple(given),), output, sizes, fixed=frozenset(fixed & sizes.keys()), linear=frozenset({0})
    )


@register_fallback(lambda target: isinstance(target, OnMesh))
def on_mesh(node: fx.Node) -> AxisSpec | None:
    """The op's own axes, less those that its kernel has cut already."""
    call: Any = node.target
    rule = rule_for(call.op)
    like: Any = SimpleNamespace(target=call.op, args=node.args, kwargs=node.kwargs, meta=node.meta)
    spec = rule(like) if rule is not None else None
    if spec is None:
        return None
    taken = spec.averaged
    if call.op is torch.ops.aten.scaled_dot_product_attention.default:
        taken = frozenset({"q"})
    return replace(spec, fixed=(spec.fixed | taken) & spec.sizes.keys(), averaged=frozenset())


@register_fallback(lambda target: isinstance(target, Drawn))
def drawn(node: fx.Node) -> AxisSpec | None:
    """The op's own axes: a piece of a piece draws the numbers of its own elements."""
    call: Any = node.target
    rule = rule_for(call.op)
    like: Any = SimpleNamespace(target=call.op, args=node.args, kwargs=node.kwargs, meta=node.meta)
    return rule(like) if rule is not None else None


@register_fallback(lambda target: isinstance(target, ExpertCall))
def exchanged(node: fx.Node) -> AxisSpec | None:
    """Dim for dim, with the rows whole; what counts rows stays whole."""
    call: Any = node.target
    if call.step not in ("there", "back"):
        return None
    rows, sizes = plain(shape_of(node))
    counts, counted = plain(shape_of(node.args[1]), "c")
    fixed = frozenset({"d0", *counted}) & (sizes | counted).keys()
    linear = frozenset({0}) if is_floating(node) else None
    return AxisSpec((rows, counts), rows, sizes | counted, fixed=fixed, linear=linear)

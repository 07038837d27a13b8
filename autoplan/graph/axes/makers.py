"""Axes of ops that make tensors from nothing but sizes."""

from __future__ import annotations

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, plain, register, shape_of
from autoplan.graph.gemms import tensor_arguments

__all__ = ["FILLED"]

_aten = torch.ops.aten

FILLED = {
    _aten.zeros.default: 0, _aten.ones.default: 0, _aten.empty.memory_format: 0, _aten.full.default: 0,
    _aten.new_zeros.default: 1, _aten.new_ones.default: 1, _aten.new_empty.default: 1, _aten.new_full.default: 1,
}  # fmt: skip
"""Ops that make a tensor of equal elements, and where their calls say its size."""


@register(*FILLED)
def filled(node: fx.Node) -> AxisSpec | None:
    """Any dim can be cut. The tensor of a ``new_zeros`` lends its dtype; of the same shape, it is cut alike."""
    shape = shape_of(node)
    axes, sizes = plain(shape)
    likes = (shape_of(source) for source in tensor_arguments(node))
    return AxisSpec(tuple(axes if like == shape else ((),) * len(like) for like in likes), axes, sizes)


@register(_aten.copy_.default)
def update(node: fx.Node) -> AxisSpec | None:
    """A buffer that forward changes: every rank has all of it, and changes all of it."""
    axes, sizes = plain(shape_of(node))
    return AxisSpec((axes,) * len(tensor_arguments(node)), axes, sizes, fixed=frozenset(sizes))


@register(_aten.arange.default, _aten.arange.start, _aten.arange.start_step, _aten.linspace.default,
          _aten.scalar_tensor.default, _aten.eye.default, _aten.eye.m, _aten.tril_indices.default,
          _aten.triu_indices.default, _aten.hann_window.default)  # fmt: skip
def counted(node: fx.Node) -> AxisSpec | None:
    """Elements that depend on their place: made whole, and sliced where needed, which costs nothing."""
    axes, sizes = plain(shape_of(node))
    return AxisSpec((), axes, sizes, fixed=frozenset(sizes))

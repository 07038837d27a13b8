"""Axes of ops that treat elements alike: element-wise, reductions, norms, softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, Dims, register, shape_of
from autoplan.graph.gemms import argument, tensor_arguments
from autoplan.graph.randomness import is_random

_aten = torch.ops.aten

_UNARY_LINEAR = (
    _aten.neg.default, _aten.clone.default, _aten.alias.default, _aten.contiguous.default, _aten.to.dtype,
    _aten.to.dtype_layout, _aten._to_copy.default, _aten.detach.default,
)  # fmt: skip
_PRODUCTS = (_aten.mul.Tensor, _aten.div.Tensor, _aten.mul.Scalar, _aten.div.Scalar)
_TOTALS = (_aten.sum.default, _aten.mean.default)
_SUMS = (_aten.add.Tensor, _aten.sub.Tensor)
_NONLINEAR = (
    _aten.pow.Tensor_Scalar, _aten.pow.Tensor_Tensor, _aten.rsqrt.default, _aten.sqrt.default, _aten.exp.default,
    _aten.log.default, _aten.silu.default, _aten.gelu.default, _aten.relu.default, _aten.tanh.default,
    _aten.sigmoid.default, _aten.abs.default, _aten.square.default, _aten.cos.default, _aten.sin.default,
    _aten.erf.default, _aten.softplus.default, _aten.leaky_relu.default, _aten.elu.default, _aten.hardtanh.default,
    _aten.reciprocal.default, _aten.maximum.default, _aten.minimum.default, _aten.clamp.default, _aten.where.self,
    _aten.masked_fill.Scalar, _aten.masked_fill.Tensor, _aten.add.Scalar, _aten.sub.Scalar, _aten.rsub.Scalar,
    _aten.eq.Tensor, _aten.eq.Scalar, _aten.ne.Tensor, _aten.ne.Scalar, _aten.lt.Tensor, _aten.lt.Scalar,
    _aten.le.Tensor, _aten.le.Scalar, _aten.gt.Tensor, _aten.gt.Scalar, _aten.ge.Tensor, _aten.ge.Scalar,
    _aten.logical_not.default, _aten.logical_and.default, _aten.bitwise_not.default, _aten.__and__.Tensor,
    _aten.zeros_like.default, _aten.ones_like.default, _aten.log1p.default, _aten.expm1.default, _aten.mish.default,
    _aten.hardswish.default, _aten.softmax.int, _aten.log_softmax.int, _aten._softmax.default,
)  # fmt: skip


def broadcast_axes(node: fx.Node) -> tuple[tuple[Dims, ...], Dims, dict[str, int]]:
    """One axis per dim of the result; inputs aligned from the right, as broadcasting does."""
    shape = shape_of(node)
    sizes = {f"d{i}": n for i, n in enumerate(shape) if n > 1}
    output = tuple((f"d{i}",) if n > 1 else () for i, n in enumerate(shape))
    inputs = []
    for source in tensor_arguments(node):
        own = shape_of(source)
        offset = len(shape) - len(own)
        inputs.append(tuple(output[offset + i] if n > 1 else () for i, n in enumerate(own)))
    return tuple(inputs), output, sizes


@register(*_UNARY_LINEAR, *_PRODUCTS, *_SUMS, *_NONLINEAR)
def pointwise(node: fx.Node) -> AxisSpec | None:
    """Element-wise with broadcasting; softmax along one dim, which then cannot be cut."""
    inputs, output, sizes = broadcast_axes(node)
    linear: frozenset[int] | None = None
    if (node.target in _UNARY_LINEAR and _keeps_floating(node)) or node.target in _PRODUCTS:
        linear = frozenset({0})
    elif node.target in _SUMS and len(inputs) == 2:
        linear = frozenset({0, 1})
    fixed: frozenset[str] = frozenset()
    if "softmax" in str(node.target):
        dim = argument(node, 1, "dim", -1) % len(output)
        fixed = frozenset(output[dim])
    return AxisSpec(inputs, output, sizes, fixed=fixed, linear=linear)


def _keeps_floating(node: fx.Node) -> bool:
    source = node.args[0]
    return node.meta["val"].is_floating_point() and source.meta["val"].is_floating_point()  # type: ignore[union-attr]


@register(_aten.dropout.default, _aten.native_dropout.default)
def dropout(node: fx.Node) -> AxisSpec | None:
    """A dropout that does nothing is element-wise; an active one is kept whole, so that ranks can draw alike."""
    if is_random(node):
        return None
    return AxisSpec(*broadcast_axes(node), linear=frozenset({0}))


@register(_aten.sum.dim_IntList, _aten.mean.dim, _aten.amax.default, _aten.amin.default, _aten.var.correction,
          _aten.sum.default, _aten.mean.default, _aten.all.dim, _aten.any.dim, _aten.logsumexp.default)  # fmt: skip
def reduction(node: fx.Node) -> AxisSpec | None:
    """A reduction over some dims. Only a sum can be cut along a dim it reduces."""
    shape = shape_of(node.args[0])
    dims = _reduced_dims(node, len(shape))
    keep = node.target not in _TOTALS and bool(argument(node, 2, "keepdim", False))
    axes = tuple((f"d{i}",) if n > 1 else () for i, n in enumerate(shape))
    output = tuple(() if i in dims else axes[i] for i in range(len(shape)) if keep or i not in dims)
    if len(output) != len(shape_of(node)):
        return None
    sizes = {f"d{i}": n for i, n in enumerate(shape) if n > 1}
    is_sum = node.target in (_aten.sum.dim_IntList, _aten.sum.default)
    is_linear = is_sum or node.target in (_aten.mean.dim, _aten.mean.default)
    fixed = frozenset() if is_sum else frozenset(a for i in dims for a in axes[i])
    return AxisSpec((axes,), output, sizes, fixed=fixed, linear=frozenset({0}) if is_linear else None)


def _reduced_dims(node: fx.Node, rank: int) -> set[int]:
    if node.target in _TOTALS:
        return set(range(rank))
    dims: Any = argument(node, 1, "dim", None)
    if dims is None or dims == []:
        return set(range(rank))
    return {d % rank for d in (dims if isinstance(dims, list | tuple) else [dims])}


@register(_aten.layer_norm.default, _aten.rms_norm.default)
def norm(node: fx.Node) -> AxisSpec | None:
    """x (…, normalized), then weight and bias of the normalized shape; the normalized dims cannot be cut."""
    shape = shape_of(node.args[0])
    normalized = len(argument(node, 1, "normalized_shape", []))
    axes = tuple((f"d{i}",) if n > 1 else () for i, n in enumerate(shape))
    affine = axes[len(shape) - normalized :]
    fixed = frozenset(a for dims in affine for a in dims)
    sizes = {f"d{i}": n for i, n in enumerate(shape) if n > 1}
    inputs = (axes, *(affine for _ in tensor_arguments(node)[1:]))
    return AxisSpec(inputs, axes, sizes, fixed=fixed)

"""Axes of ops that treat elements alike: element-wise ones, softmax, reductions."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, Dims, along, plain, register, register_fallback, shape_of
from autoplan.graph.gemms import argument, tensor_arguments
from autoplan.graph.randomness import is_random

_aten = torch.ops.aten

_COPIES = (
    _aten.clone.default, _aten.alias.default, _aten.contiguous.default, _aten.to.dtype, _aten.to.dtype_layout,
    _aten.to.device, _aten.to.other, _aten._to_copy.default, _aten.detach.default, _aten.type_as.default,
    _aten.lift_fresh_copy.default, _aten.resolve_conj.default, _aten.resolve_neg.default,
)  # fmt: skip
_SCALED = (
    _aten.neg.default, _aten.mul.Tensor, _aten.mul.Scalar, _aten.div.Tensor, _aten.div.Scalar, _aten.multiply.Tensor,
    _aten.multiply.Scalar, _aten.divide.Tensor, _aten.divide.Scalar, _aten.true_divide.Tensor, _aten.real.default,
    _aten.imag.default, _aten.negative.default, _aten.conj.default,
)  # fmt: skip
_SUMS = (_aten.add.Tensor, _aten.sub.Tensor, _aten.subtract.Tensor, _aten.complex.default)
_OTHERS = (
    _aten.clamp.default, _aten.where.self, _aten.where.ScalarOther, _aten.where.ScalarSelf, _aten.where.Scalar,
    _aten.masked_fill.Scalar, _aten.masked_fill.Tensor, _aten.add.Scalar, _aten.__and__.Tensor, _aten.__or__.Tensor,
    _aten.__xor__.Tensor, _aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default,
    _aten.empty_like.default, _aten.floor_divide.default, _aten.floor_divide.Scalar, _aten.copy.default,
    _aten.fill.Tensor, _aten.fill.Scalar, _aten.log_sigmoid.default, _aten.polar.default, _aten.isclose.default,
    _aten.float_power.Tensor_Scalar, _aten.greater.Tensor, _aten.less.Tensor, _aten.not_equal.Scalar,
    _aten.square.default, _aten.absolute.default, _aten.arctan.default, _aten.special_expit.default,
    _aten.hardswish.default,
)  # fmt: skip
_SOFTMAXES = (_aten.softmax.int, _aten.log_softmax.int, _aten._softmax.default, _aten._log_softmax.default)
_TOTALS = (_aten.sum.default, _aten.mean.default, _aten.max.default, _aten.min.default, _aten.any.default,
           _aten.all.default, _aten.var.default, _aten.std.default, _aten.prod.default)  # fmt: skip
_DIM_POSITION = {_aten.linalg_vector_norm.default: 2, _aten.norm.ScalarOpt_dim: 2}


def broadcast_axes(node: fx.Node) -> tuple[tuple[Dims, ...], Dims, dict[str, int]]:
    """One axis per dim of the result; inputs aligned from the right, as broadcasting does."""
    shape = shape_of(node)
    output, sizes = plain(shape)
    inputs = []
    for source in tensor_arguments(node):
        own = shape_of(source)
        offset = len(shape) - len(own)
        if offset < 0 or any(n not in (1, shape[offset + i]) for i, n in enumerate(own)):
            inputs.append(((),) * len(own))  # it lends its dtype, and no elements
            continue
        inputs.append(tuple(output[offset + i] if n > 1 else () for i, n in enumerate(own)))
    return tuple(inputs), output, sizes


def _is_pointwise(target: object) -> bool:
    return (
        isinstance(target, torch._ops.OpOverload)
        and torch.Tag.pointwise in target.tags
        and torch.Tag.nondeterministic_seeded not in target.tags
        and not target._schema.is_mutable
    )


@register_fallback(_is_pointwise)
@register(*_COPIES, *_SCALED, *_SUMS, *_OTHERS)
def pointwise(node: fx.Node) -> AxisSpec | None:
    """Element-wise with broadcasting. Of most such ops torch itself says so, by a tag."""
    inputs, output, sizes = broadcast_axes(node)
    linear: frozenset[int] | None = None
    if (node.target in _COPIES and _keeps_floating(node)) or (
        node.target in _SCALED and _rounds_nothing(node)
    ):
        linear = frozenset({0})
    elif node.target in _SUMS and len(inputs) == 2:
        linear = frozenset({0, 1})
    elif node.target is _aten.masked_fill.Scalar and node.args[2] == 0:
        linear = frozenset({0})
    return AxisSpec(inputs, output, sizes, linear=linear)


@register(*_SOFTMAXES)
def softmax(node: fx.Node) -> AxisSpec | None:
    """Along one dim, which cannot be cut."""
    return along(node, (argument(node, 1, "dim", -1),))


def _rounds_nothing(node: fx.Node) -> bool:
    return isinstance(node.args[0], fx.Node) and not node.kwargs.get("rounding_mode")


def _keeps_floating(node: fx.Node) -> bool:
    source = node.args[0]
    return node.meta["val"].is_floating_point() and source.meta["val"].is_floating_point()  # type: ignore[union-attr]


@register(_aten.dropout.default)
def dropout(node: fx.Node) -> AxisSpec | None:
    """Element-wise; each rank finds its own piece of one mask (``rewrite.random_kernels``)."""
    return AxisSpec(*broadcast_axes(node), linear=frozenset({0}))


@register(_aten.native_dropout.default)
def native_dropout(node: fx.Node) -> AxisSpec | None:
    """The same, but an active one is kept whole: its mask is a result too."""
    return None if is_random(node) else dropout(node)


@register(
    _aten.sum.dim_IntList, _aten.mean.dim, _aten.amax.default, _aten.amin.default, _aten.var.correction,
    _aten.var.dim, _aten.std.correction, _aten.std.dim, _aten.var_mean.correction, _aten.prod.dim_int,
    _aten.all.dim, _aten.any.dim, _aten.logsumexp.default, _aten.linalg_vector_norm.default,
    _aten.norm.ScalarOpt_dim, _aten.max.dim, _aten.min.dim, _aten.argmax.default, _aten.argmin.default,
    _aten.count_nonzero.dim_IntList, _aten.median.dim, *_TOTALS,
)  # fmt: skip
def reduction(node: fx.Node) -> AxisSpec | None:
    """A reduction over some dims. A sum can be cut along a dim it reduces, and a mean by a kernel that divides."""
    shape = shape_of(node.args[0])
    dims = _reduced_dims(node, len(shape))
    axes, sizes = plain(shape)
    keep = len(shape_of(node)) == len(shape)
    output = tuple(() if i in dims else axes[i] for i in range(len(shape)) if keep or i not in dims)
    reduced = frozenset(a for i in dims for a in axes[i])
    is_sum = node.target in (_aten.sum.dim_IntList, _aten.sum.default)
    is_mean = node.target in (_aten.mean.dim, _aten.mean.default)
    return AxisSpec(
        (axes,),
        output,
        sizes,
        fixed=frozenset() if is_sum or is_mean else reduced,
        linear=frozenset({0}) if is_sum or is_mean else None,
        averaged=reduced if is_mean else frozenset(),
    )


def _reduced_dims(node: fx.Node, rank: int) -> set[int]:
    if node.target in _TOTALS:
        return set(range(rank))
    dims: Any = argument(node, _DIM_POSITION.get(node.target, 1), "dim", None)  # type: ignore[arg-type]
    if dims is None or dims == []:
        return set(range(rank))
    return {d % rank for d in (dims if isinstance(dims, list | tuple) else [dims])} if rank else set()

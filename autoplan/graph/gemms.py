"""Matrix products behind ATen ops: their sizes, for the cost model's measured curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import fx

from autoplan.graph.ir import Gemm

__all__ = ["argument", "gemm_of", "is_attention", "is_causal", "is_grouped", "tensor_arguments"]

_aten = torch.ops.aten
_SDPA = _aten.scaled_dot_product_attention.default
Shape: TypeAlias = "tuple[int, ...]"


def tensor_arguments(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments of ``node``, in order, repeats included."""
    found: list[fx.Node] = []

    def see(source: fx.Node) -> fx.Node:
        found.append(source)
        return source

    fx.map_arg((node.args, node.kwargs), see)
    return found


def argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    """An argument of a call, however it was passed."""
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default


def is_attention(node: fx.Node) -> bool:
    """True for fused attention."""
    return node.target is _SDPA


def is_causal(node: fx.Node) -> bool:
    """True for fused attention that masks the future."""
    return is_attention(node) and bool(argument(node, 5, "is_causal", False))


def is_grouped(node: fx.Node) -> bool:
    """True for a product of rows that are grouped by expert: x (P, D), weights (E, D, F), ends (E,)."""
    return str(node.target) in _GROUPED and len(_shape(node.args[1])) == 3


def gemm_of(node: fx.Node) -> Gemm | None:
    """The product that ``node`` computes (m rows, n columns, k contracted), or None if it is none.

    A convolution is the product that im2col makes of it, one for each group. Products grouped by expert
    are one for each expert, with the rows spread evenly. The head size k of attention is the mean of the
    keys' and the values', so that each of its two products has ``flops`` on average.
    """
    if is_grouped(node):
        return _grouped(node)
    describe = _GEMMS.get(node.target)  # type: ignore[arg-type]
    return None if describe is None else describe(node)


def _shape(argument: Any) -> Shape:
    return tuple(argument.meta["val"].shape)


def _linear(node: fx.Node) -> Gemm:
    x, w = _shape(node.args[0]), _shape(node.args[1])
    return Gemm(1, math.prod(x[:-1]), w[0], w[1])


def _mm(a: Shape, b: Shape) -> Gemm:
    return Gemm(1, a[0], b[1], a[1])


def _bmm(a: Shape, b: Shape) -> Gemm:
    return Gemm(a[0], a[1], b[2], a[2])


def _matmul(node: fx.Node) -> Gemm:
    a, b = _shape(node.args[0]), _shape(node.args[1])
    if len(b) <= 2:
        return Gemm(1, math.prod(a[:-1]), math.prod(b[1:]), a[-1])
    lead = math.prod(max(p, q) for p, q in _aligned(a[:-2], b[:-2]))
    return Gemm(lead, math.prod(a[-2:-1]), b[-1], b[-2])


def _aligned(a: Shape, b: Shape) -> list[tuple[int, int]]:
    size = max(len(a), len(b))
    return list(zip((1,) * (size - len(a)) + a, (1,) * (size - len(b)) + b, strict=True))


def _attention(node: fx.Node) -> Gemm:
    q, k, v = (_shape(argument) for argument in node.args[:3])
    return Gemm(math.prod(q[:-2]), q[-2], k[-2], (q[-1] + v[-1]) // 2)


def _convolution(node: fx.Node, groups: int) -> Gemm:
    w, y = _shape(node.args[1]), _shape(node)
    return Gemm(groups, math.prod(y) // w[0], w[0] // groups, math.prod(w[1:]))


def _transposed(node: fx.Node, groups: int) -> Gemm:
    x, w = _shape(node.args[0]), _shape(node.args[1])
    return Gemm(groups, math.prod(x) // w[0], math.prod(w[1:]), w[0] // groups)


def _general_convolution(node: fx.Node) -> Gemm:
    groups = argument(node, 8, "groups", 1)
    return (_transposed if argument(node, 6, "transposed", False) else _convolution)(node, groups)


def _grouped(node: fx.Node) -> Gemm:
    x, w = _shape(node.args[0]), _shape(node.args[1])
    return Gemm(w[0], max(1, x[0] // w[0]), w[2], w[1])


_GROUPED = {
    "aten._grouped_mm.default",
    "transformers.grouped_mm_fallback.default",
    "autoplan.grouped_mm.default",
}

_GEMMS: dict[Any, Callable[[fx.Node], Gemm]] = {
    _aten.linear.default: _linear,
    _aten.mm.default: lambda node: _mm(_shape(node.args[0]), _shape(node.args[1])),
    _aten.addmm.default: lambda node: _mm(_shape(node.args[1]), _shape(node.args[2])),
    _aten.bmm.default: lambda node: _bmm(_shape(node.args[0]), _shape(node.args[1])),
    _aten.baddbmm.default: lambda node: _bmm(_shape(node.args[1]), _shape(node.args[2])),
    _aten.matmul.default: _matmul,
    _SDPA: _attention,
    _aten.convolution.default: _general_convolution,
    **dict.fromkeys(
        (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default,
         _aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding),
        lambda node: _convolution(node, argument(node, 6, "groups", 1)),
    ),
    **dict.fromkeys(
        (_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input),
        lambda node: _transposed(node, argument(node, 6, "groups", 1)),
    ),
}  # fmt: skip

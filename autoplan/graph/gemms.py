"""Matrix products behind ATen ops: their sizes, for the cost model's measured curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from autoplan.graph.ir import Gemm

__all__ = ["argument", "attention_flops", "gemm_of", "is_attention", "is_causal", "tensor_arguments"]

_aten = torch.ops.aten
_SDPA = _aten.scaled_dot_product_attention.default


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


def attention_flops(gemm: Gemm) -> tuple[int, int]:
    """FLOPs of fused attention, forward and backward, all keys counted.

    Two products forward; backward runs the scores again and makes four more, as
    ``torch.utils.flop_counter`` counts the flash kernels (which it lacks for the CPU's own).
    """
    return 2 * gemm.flops, 5 * gemm.flops


def gemm_of(node: fx.Node) -> Gemm | None:
    """The product that ``node`` computes (m rows, n columns, k contracted), or None if it is none.

    A convolution is the product that im2col makes of it. An op with FLOPs that is not listed is
    described by one square product of as many FLOPs.
    """
    describe = _GEMMS.get(node.target)  # type: ignore[arg-type]
    if describe is None:
        return None
    shapes = [tuple(a.meta["val"].shape) if isinstance(a, fx.Node) else a for a in node.args]
    return describe(shapes)


def _linear(shapes: list[Any]) -> Gemm:
    x, w = shapes[0], shapes[1]
    return Gemm(1, math.prod(x[:-1]), w[0], w[1])


def _mm(shapes: list[Any]) -> Gemm:
    a, b = shapes[0], shapes[1]
    return Gemm(1, a[0], b[1], a[1])


def _bmm(shapes: list[Any]) -> Gemm:
    a, b = shapes[0], shapes[1]
    return Gemm(a[0], a[1], b[2], a[2])


def _matmul(shapes: list[Any]) -> Gemm:
    a, b = shapes[0], shapes[1]
    if len(b) <= 2:
        return Gemm(1, math.prod(a[:-1]), b[-1] if len(b) == 2 else 1, a[-1])
    m = a[-2] if len(a) > 1 else 1
    return Gemm(math.prod(max(p, q) for p, q in _aligned(a[:-2], b[:-2])), m, b[-1], a[-1])


def _aligned(a: tuple[int, ...], b: tuple[int, ...]) -> list[tuple[int, int]]:
    size = max(len(a), len(b))
    return list(zip((1,) * (size - len(a)) + a, (1,) * (size - len(b)) + b, strict=True))


def _attention(shapes: list[Any]) -> Gemm:
    q, k = shapes[0], shapes[1]
    return Gemm(math.prod(q[:-2]), q[-2], k[-2], q[-1])


def _convolution(shapes: list[Any]) -> Gemm:
    x, w = shapes[0], shapes[1]
    return Gemm(1, x[0] * math.prod(x[2:]), w[0], math.prod(w[1:]))


def _grouped(shapes: list[Any]) -> Gemm:
    x, w = shapes[0], shapes[1]
    return Gemm(w[0], max(1, x[0] // w[0]), w[2], w[1])


_GEMMS: dict[Any, Callable[[list[Any]], Gemm]] = {
    _aten.linear.default: _linear,
    _aten.mm.default: _mm,
    _aten.addmm.default: lambda shapes: _mm(shapes[1:]),
    _aten.bmm.default: _bmm,
    _aten.baddbmm.default: lambda shapes: _bmm(shapes[1:]),
    _aten.matmul.default: _matmul,
    _SDPA: _attention,
    _aten.conv1d.default: _convolution,
    _aten.conv2d.default: _convolution,
    _aten._grouped_mm.default: _grouped,
}

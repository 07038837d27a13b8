"""Axes of ops that work along some dims, which stay whole, and leave the others alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, along, is_floating, named, plain, register, shape_of
from autoplan.graph.gemms import tensor_arguments

_aten = torch.ops.aten
_FIRST = frozenset({0})


@register(
    _aten.sort.default, _aten.sort.stable, _aten.argsort.default, _aten.argsort.stable, _aten.topk.default,
    _aten.kthvalue.default, _aten.cumprod.default, _aten.logcumsumexp.default, _aten.cummax.default,
    _aten.cummin.default,
)  # fmt: skip
def ordered(node: fx.Node) -> AxisSpec | None:
    """Sorted, selected or accumulated along one dim; kthvalue drops it."""
    dim = int(named(node, "dim", -1))
    if node.target is not _aten.kthvalue.default or named(node, "keepdim"):
        return along(node, (dim,))
    axes, sizes = plain(shape_of(node.args[0]))
    dim %= len(axes)
    return AxisSpec(
        (axes,), tuple(own for i, own in enumerate(axes) if i != dim), sizes, fixed=frozenset(axes[dim])
    )


@register(_aten.cumsum.default, _aten.diff.default, _aten.flip.default, _aten.roll.default)
def shifted(node: fx.Node) -> AxisSpec | None:
    """The same, and linear. A roll without dims is along all of them."""
    dims: Any = named(node, "dims", named(node, "dim", ()))
    if node.target is _aten.roll.default and not dims:
        dims = range(len(shape_of(node)))
    count = len(tensor_arguments(node))
    return along(
        node, (dims,) if isinstance(dims, int) else dims, range(count) if is_floating(node) else None
    )


@register("autoplan.linear_recurrence.default")
def recurrence(node: fx.Node) -> AxisSpec | None:
    """Decay and gain of one shape, along the dim that is time; linear in the gain."""
    return along(node, (int(named(node, "dim")),), (1,))


@register(_aten.tril.default, _aten.triu.default)
def triangle(node: fx.Node) -> AxisSpec | None:
    """Of the last two dims."""
    return along(node, (-2, -1), _FIRST if is_floating(node) else None)


@register(
    _aten.fft_fft.default, _aten.fft_ifft.default, _aten.fft_rfft.default, _aten.fft_irfft.default,
    _aten.fft_fft2.default, _aten.fft_ifft2.default, _aten.fft_rfft2.default, _aten.fft_irfft2.default,
    _aten.fft_fftn.default, _aten.fft_ifftn.default, _aten.fft_rfftn.default, _aten.fft_irfftn.default,
    _aten.fft_fftshift.default, _aten.fft_ifftshift.default,
)  # fmt: skip
def fourier(node: fx.Node) -> AxisSpec | None:
    """Along one dim, or several."""
    dims: Any = named(node, "dim")
    rank = len(shape_of(node))
    if dims is None:
        s: Any = named(node, "s")
        dims = range(rank) if s is None else range(-len(s), 0)
    return along(node, (dims,) if isinstance(dims, int) else dims, _FIRST)


@register(_aten.pad.default, _aten.constant_pad_nd.default)
def pad(node: fx.Node) -> AxisSpec | None:
    """Dims that grow or shrink stay whole."""
    widths: Any = node.args[1]
    rank = len(shape_of(node))
    dims = [rank - 1 - i // 2 for i, width in enumerate(widths) if width]
    zeros = named(node, "mode", "constant") != "constant" or not named(node, "value")
    return along(node, dims, _FIRST if zeros and is_floating(node) else None)


@register(_aten.glu.default)
def gated(node: fx.Node) -> AxisSpec | None:
    """A dim of two halves, ``2 h -> h``."""
    source = shape_of(node.args[0])
    dim = int(named(node, "dim")) % len(source)
    axes, sizes = plain(shape_of(node))
    own = tuple(("half", *a) if i == dim else a for i, a in enumerate(axes))
    return AxisSpec((own,), axes, sizes | {"half": 2}, fixed=frozenset({"half"}))


@register(_aten.prelu.default)
def prelu(node: fx.Node) -> AxisSpec | None:
    """x ``n c …`` with one slope, or one for each channel."""
    axes, sizes = plain(shape_of(node))
    slopes = shape_of(node.args[1])
    own = axes[1] if len(axes) > 1 and math.prod(slopes) > 1 else ()
    return AxisSpec((axes, (own,) if slopes else ()), axes, sizes)


@register(_aten.unfold.default)
def unfold(node: fx.Node) -> AxisSpec | None:
    """Windows of one dim, which get a dim of their own at the end."""
    source, shape = shape_of(node.args[0]), shape_of(node)
    dim = int(named(node, "dimension")) % len(source)
    axes, sizes = plain(source)
    places = {"place": shape[dim], "within": shape[-1]}
    output = (*(("place",) if i == dim else own for i, own in enumerate(axes)), ("within",))
    output = tuple(tuple(a for a in own if places.get(a, 2) > 1) for own in output)
    sizes = sizes | {axis: n for axis, n in places.items() if n > 1}
    fixed = (frozenset(places) & sizes.keys()) | frozenset(axes[dim])
    return AxisSpec((axes,), output, sizes, fixed=fixed, linear=_FIRST)


@register(_aten.view_as_real.default, _aten.view_as_complex.default)
def pairs(node: fx.Node) -> AxisSpec | None:
    """A complex number as a last dim of two, and back."""
    source, shape = shape_of(node.args[0]), shape_of(node)
    axes, sizes = plain(max(source, shape, key=len))
    sides = (axes[:-1], axes) if len(shape) > len(source) else (axes, axes[:-1])
    return AxisSpec((sides[0],), sides[1], sizes, fixed=frozenset(axes[-1]), linear=_FIRST)


@register(_aten.diagonal.default)
def diagonal(node: fx.Node) -> AxisSpec | None:
    """Two dims become one, at the end."""
    axes, sizes = plain(shape_of(node.args[0]))
    gone = {int(named(node, name)) % len(axes) for name in ("dim1", "dim2")}
    count = shape_of(node)[-1]
    last: tuple[str, ...] = ("diagonal",) if count > 1 else ()
    output = (*(own for i, own in enumerate(axes) if i not in gone), last)
    fixed = frozenset({*last, *(axis for i in gone for axis in axes[i])})
    return AxisSpec((axes,), output, sizes | dict.fromkeys(last, count), fixed=fixed, linear=_FIRST)

"""Axes of convolution, pooling and resampling.

Space can be cut only where no window straddles a cut: kernel 1 at stride 1, and more generally windows that lie
side by side (a patch embedding, a pooling by its own kernel), which make the dim (place, within).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, Dims, along, is_floating, named, plain, register, shape_of
from autoplan.graph.gemms import gemm_of, tensor_arguments

_aten = torch.ops.aten
_FIRST = frozenset({0})
_FEW = 4  # groups up to which cutting inside each is offered


@register(
    _aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.conv1d.padding, _aten.conv2d.padding,
    _aten.conv3d.padding, _aten.convolution.default, _aten.conv_transpose1d.default, _aten.conv_transpose2d.input,
    _aten.conv_transpose3d.input,
)  # fmt: skip
def convolution(node: fx.Node) -> AxisSpec | None:
    """``n (g i) …, (g o) i …, (g o) -> n (g o) …``; transposed, the weight is ``(g i) o …``."""
    x, w, shape = shape_of(node.args[0]), shape_of(node.args[1]), shape_of(node)
    space = len(w) - 2
    transposed = "transpose" in str(node.target) or bool(named(node, "transposed", False))
    groups = int(named(node, "groups"))
    into = w[0] // groups if transposed else w[1]
    out = w[1] if transposed else w[0] // groups
    batched = len(x) > space + 1
    sizes = {"g": groups, "i": into, "o": out} | ({"n": x[0]} if batched else {})
    fixed = {"i", "o"} if groups > _FEW else set()
    places, windows, results = _windows(
        node, x[-space:], w[-space:], shape[-space:], transposed, sizes, fixed
    )
    sizes = {axis: n for axis, n in sizes.items() if n > 1}

    def dim(*axes: str) -> tuple[str, ...]:
        return tuple(axis for axis in axes if axis in sizes)

    lead = (dim("n"),) if batched else ()
    weight = (dim("g", "i"), dim("o")) if transposed else (dim("g", "o"), dim("i"))
    inputs: list[Dims] = [(*lead, dim("g", "i"), *places), (*weight, *windows)]
    if len(tensor_arguments(node)) == 3:
        inputs.append((dim("g", "o"),))
    roles = dict.fromkeys(sizes, "m") | {"i": "k", "o": "n", "g": "n"}
    return AxisSpec(
        tuple(inputs),
        (*lead, dim("g", "o"), *results),
        sizes,
        fixed=frozenset(fixed) & sizes.keys(),
        gemm=roles if gemm_of(node) is not None else {},
        added_once=frozenset({2}),
        counts={"groups": "g"},
    )


def _windows(
    node: fx.Node,
    x: Sequence[int],
    w: Sequence[int],
    shape: Sequence[int],
    transposed: bool,
    sizes: dict[str, int],
    fixed: set[str],
) -> tuple[Dims, Dims, Dims]:
    """The axes of space in input, weight and result; adds to ``sizes`` and ``fixed``."""
    stride, dilation = (_each(named(node, name), len(w)) for name in ("stride", "dilation"))
    padding: Any = named(node, "padding")
    if isinstance(padding, str):
        padding = [0 if padding == "valid" or kernel == 1 else 1 for kernel in w]
    padding = _each(padding, len(w))
    extra = _each(named(node, "output_padding", 0), len(w))
    places: list[tuple[str, ...]] = []
    windows: list[tuple[str, ...]] = []
    results: list[tuple[str, ...]] = []
    for j, kernel in enumerate(w):
        apart = (kernel == stride[j] and padding[j] == extra[j] == 0) and (dilation[j] == 1 or kernel == 1)
        if apart and (transposed or x[j] % kernel == 0):
            sizes |= {f"s{j}": min(x[j], shape[j]), f"k{j}": kernel}
            fixed.add(f"k{j}")
            small, big = (f"s{j}",), (f"s{j}", f"k{j}")
            places.append(_kept(small if transposed else big, sizes))
            results.append(_kept(big if transposed else small, sizes))
        else:
            sizes |= {f"x{j}": x[j], f"k{j}": kernel, f"y{j}": shape[j]}
            fixed |= {f"x{j}", f"k{j}", f"y{j}"}
            places.append(_kept((f"x{j}",), sizes))
            results.append(_kept((f"y{j}",), sizes))
        windows.append(_kept((f"k{j}",), sizes))
    return tuple(places), tuple(windows), tuple(results)


def _kept(axes: tuple[str, ...], sizes: dict[str, int]) -> tuple[str, ...]:
    return tuple(axis for axis in axes if sizes.get(axis, 1) > 1)


def _each(value: Any, count: int) -> list[int]:
    """One number for each dim of space."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


@register(
    _aten.max_pool1d.default, _aten.max_pool2d.default, _aten.max_pool3d.default, _aten.avg_pool1d.default,
    _aten.avg_pool2d.default, _aten.avg_pool3d.default,
)  # fmt: skip
def pooling(node: fx.Node) -> AxisSpec | None:
    """Batch and channels; space where windows lie side by side."""
    x, shape = shape_of(node.args[0]), shape_of(node)
    space = int(str(node.target).split("pool")[1][0])
    kernel = _each(named(node, "kernel_size"), space)
    stride = _each(named(node, "stride") or kernel, space)
    padding, dilation = (_each(named(node, name, 1), space) for name in ("padding", "dilation"))
    axes, sizes = plain(x)
    source, output, fixed = list(axes), list(axes), set()
    for j in range(space):
        i = len(x) - space + j
        sizes.pop(f"d{i}", None)
        if kernel[j] == stride[j] and padding[j] == 0 and dilation[j] == 1 and x[i] % kernel[j] == 0:
            sizes |= {f"s{j}": x[i] // kernel[j], f"k{j}": kernel[j]}
            source[i], output[i] = (f"s{j}", f"k{j}"), (f"s{j}",)
            fixed.add(f"k{j}")
        else:
            sizes |= {f"x{j}": x[i], f"y{j}": shape[i]}
            source[i], output[i] = (f"x{j}",), (f"y{j}",)
            fixed |= {f"x{j}", f"y{j}"}
    sizes = {axis: n for axis, n in sizes.items() if n > 1}
    source, output = ([tuple(a for a in own if a in sizes) for own in dims] for dims in (source, output))
    linear = _FIRST if "avg" in str(node.target) else None
    return AxisSpec(
        (tuple(source),), tuple(output), sizes, fixed=frozenset(fixed) & sizes.keys(), linear=linear
    )


_SPACE = {
    _aten.adaptive_avg_pool1d.default: 1, _aten.adaptive_avg_pool2d.default: 2, _aten._adaptive_avg_pool2d.default: 2,
    _aten.adaptive_avg_pool3d.default: 3, _aten.adaptive_max_pool1d.default: 1, _aten.adaptive_max_pool2d.default: 2,
    _aten.adaptive_max_pool3d.default: 3, _aten.max_pool2d_with_indices.default: 2,
    _aten.max_pool3d_with_indices.default: 3, _aten.upsample_nearest1d.vec: 1, _aten.upsample_nearest2d.vec: 2,
    _aten.upsample_nearest3d.vec: 3, _aten.upsample_linear1d.vec: 1, _aten.upsample_bilinear2d.vec: 2,
    _aten.upsample_trilinear3d.vec: 3, _aten.upsample_bicubic2d.vec: 2, _aten.upsample_nearest2d.default: 2,
    _aten.upsample_bilinear2d.default: 2, _aten.upsample_bicubic2d.default: 2, _aten._upsample_nearest_exact2d.vec: 2,
    _aten._upsample_bilinear2d_aa.vec: 2, _aten._upsample_bicubic2d_aa.vec: 2,
}  # fmt: skip
"""Ops on the last dims, and how many."""


@register(*_SPACE)
def resample(node: fx.Node) -> AxisSpec | None:
    """Batch and channels."""
    linear = _FIRST if "max" not in str(node.target) and is_floating(node) else None
    return along(node, range(-_SPACE[node.target], 0), linear)  # type: ignore[index]


@register(_aten.pixel_shuffle.default)
def pixel_shuffle(node: fx.Node) -> AxisSpec | None:
    """``… (c p q) h w -> … c (h p) (w q)``."""
    shape, r = shape_of(node.args[0]), int(named(node, "upscale_factor"))
    return _pixels(shape[:-3], shape[-3] // r**2, shape[-2], shape[-1], r, shuffled=True)


@register(_aten.pixel_unshuffle.default)
def pixel_unshuffle(node: fx.Node) -> AxisSpec | None:
    """``… c (h p) (w q) -> … (c p q) h w``."""
    shape, r = shape_of(node.args[0]), int(named(node, "downscale_factor"))
    return _pixels(shape[:-3], shape[-3], shape[-2] // r, shape[-1] // r, r, shuffled=False)


def _pixels(lead: tuple[int, ...], c: int, h: int, w: int, r: int, shuffled: bool) -> AxisSpec:
    axes, sizes = plain(lead)
    sizes = {a: n for a, n in (sizes | {"c": c, "h": h, "w": w, "p": r, "q": r}).items() if n > 1}
    deep: Dims = (*axes, *(_kept(own, sizes) for own in (("c", "p", "q"), ("h",), ("w",))))
    wide: Dims = (*axes, *(_kept(own, sizes) for own in (("c",), ("h", "p"), ("w", "q"))))
    source, output = (deep, wide) if shuffled else (wide, deep)
    return AxisSpec((source,), output, sizes, fixed=frozenset({"p", "q"}) & sizes.keys(), linear=_FIRST)


@register(_aten.im2col.default, _aten.col2im.default)
def columns(node: fx.Node) -> AxisSpec | None:
    """``n c … -> n (c k) l`` and back: windows as columns, channel by channel."""
    x, shape = shape_of(node.args[0]), shape_of(node)
    image, flat = (x, shape) if node.target is _aten.im2col.default else (shape, x)
    window = math.prod(_each(named(node, "kernel_size"), 2))
    batched = len(flat) == 3
    sizes = {"c": image[-3], "k": window, "h": image[-2], "w": image[-1], "l": flat[-1]}
    sizes = {axis: n for axis, n in (sizes | ({"n": x[0]} if batched else {})).items() if n > 1}
    lead: Dims = (_kept(("n",), sizes),) if batched else ()
    pixels: Dims = (*lead, *(_kept((axis,), sizes) for axis in "chw"))
    taken: Dims = (*lead, _kept(("c", "k"), sizes), _kept(("l",), sizes))
    source, output = (pixels, taken) if image is x else (taken, pixels)
    fixed = frozenset("khwl") & sizes.keys()
    return AxisSpec((source,), output, sizes, fixed=fixed, linear=_FIRST)


@register(_aten.grid_sampler.default, _aten.grid_sampler_2d.default, _aten.grid_sampler_3d.default)
def grid_sampler(node: fx.Node) -> AxisSpec | None:
    """Image ``n c …``, grid ``n places… 2 -> n c places…``: sampled places can be cut, the image's cannot."""
    image, grid = (shape_of(source) for source in node.args[:2])
    axes, sizes = plain(grid[:-1], "p")
    batch = axes[0]
    own, extents = plain(image[2:], "x")
    channel = ("c",) if image[1] > 1 else ()
    sizes = sizes | extents | ({"c": image[1]} if channel else {}) | {"d": grid[-1]}
    return AxisSpec(
        ((batch, channel, *own), (*axes, ("d",))),
        (batch, channel, *axes[1:]),
        sizes,
        fixed=frozenset({"d", *extents}),
    )

"""Axes of ops that move elements without changing them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, Dims, register, shape_of
from autoplan.graph.gemms import argument, tensor_arguments

_aten = torch.ops.aten
_FIRST = frozenset({0})


def _plain(shape: tuple[int, ...]) -> tuple[Dims, dict[str, int]]:
    axes = tuple((f"d{i}",) if n > 1 else () for i, n in enumerate(shape))
    return axes, {f"d{i}": n for i, n in enumerate(shape) if n > 1}


@register(_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.flatten.using_ints,
          _aten.unflatten.int, _aten.squeeze.dim, _aten.squeeze.default, _aten.squeeze.dims, _aten.unsqueeze.default)  # fmt: skip
def reshape(node: fx.Node) -> AxisSpec | None:
    """Dims split and merged in row-major order: both shapes are refined into common axes from the left."""
    refined = refine(shape_of(node.args[0]), shape_of(node))
    if refined is None:
        return None
    source, output, sizes = refined
    return AxisSpec((source,), output, sizes, linear=_FIRST)


def refine(source: tuple[int, ...], target: tuple[int, ...]) -> tuple[Dims, Dims, dict[str, int]] | None:
    """Axes whose products are the dims of both shapes; None if the dims cross.

    >>> refine((2, 12), (2, 3, 4))[:2]
    ((('a0',), ('a1', 'a2')), (('a0',), ('a1',), ('a2',)))
    """
    left: list[list[str]] = [[] for _ in source]
    right: list[list[str]] = [[] for _ in target]
    sizes: dict[str, int] = {}
    i = j = 0
    a, b = (source[0] if source else 1), (target[0] if target else 1)
    while True:
        while a == 1 and i < len(source):
            i += 1
            a = source[i] if i < len(source) else 1
        while b == 1 and j < len(target):
            j += 1
            b = target[j] if j < len(target) else 1
        if i >= len(source) and j >= len(target):
            break
        if i >= len(source) or j >= len(target):
            return None
        size = min(a, b)
        if max(a, b) % size:
            return None
        name = f"a{len(sizes)}"
        sizes[name] = size
        left[i].append(name)
        right[j].append(name)
        a, b = a // size, b // size
    return tuple(map(tuple, left)), tuple(map(tuple, right)), sizes


@register(_aten.transpose.int, _aten.permute.default, _aten.t.default, _aten.movedim.int)
def permute(node: fx.Node) -> AxisSpec | None:
    """Dims in another order."""
    axes, sizes = _plain(shape_of(node.args[0]))
    rank = len(axes)
    order = list(range(rank))
    if node.target is _aten.permute.default:
        order = [d % rank for d in node.args[1]]  # type: ignore[union-attr,operator]
    elif node.target is _aten.t.default:
        order = order[::-1]
    elif node.target is _aten.transpose.int:
        p, q = (int(d) % rank for d in node.args[1:3])  # type: ignore[arg-type]
        order[p], order[q] = order[q], order[p]
    else:
        return None
    return AxisSpec((axes,), tuple(axes[d] for d in order), sizes, linear=_FIRST)


@register(_aten.expand.default)
def expand(node: fx.Node) -> AxisSpec | None:
    """New or widened dims hold axes that the input lacks."""
    source, shape = shape_of(node.args[0]), shape_of(node)
    output, sizes = _plain(shape)
    offset = len(shape) - len(source)
    own = tuple(output[offset + i] if n > 1 else () for i, n in enumerate(source))
    return AxisSpec((own,), output, sizes, linear=_FIRST)


@register(_aten.slice.Tensor, _aten.narrow.default)
def slice_rule(node: fx.Node) -> AxisSpec | None:
    """A slice keeps its dim whole, unless it takes all of it."""
    source, shape = shape_of(node.args[0]), shape_of(node)
    axes, sizes = _plain(source)
    dim = int(argument(node, 1, "dim", 0)) % len(source)
    if source[dim] == shape[dim]:
        return AxisSpec((axes,), axes, sizes, linear=_FIRST)
    output = tuple(
        ("cutout",) if i == dim and n > 1 else axes[i] if i != dim else () for i, n in enumerate(shape)
    )
    return AxisSpec(
        (axes,), output, sizes | {"cutout": shape[dim]}, fixed=frozenset({f"d{dim}", "cutout"}), linear=_FIRST
    )


@register(_aten.select.int, _aten.unbind.int)
def select(node: fx.Node) -> AxisSpec | None:
    """One index of a dim, or a list of all: the dim disappears."""
    axes, sizes = _plain(shape_of(node.args[0]))
    dim = int(argument(node, 1, "dim", 0)) % len(axes)
    output = tuple(a for i, a in enumerate(axes) if i != dim)
    return AxisSpec((axes,), output, sizes, fixed=frozenset(axes[dim]), linear=_FIRST)


@register(_aten.split.Tensor, _aten.split_with_sizes.default, _aten.chunk.default)
def split(node: fx.Node) -> AxisSpec | None:
    """Equal sections make the dim (section, within), and ``within`` can be cut; unequal ones fix the dim."""
    source = shape_of(node.args[0])
    axes, sizes = _plain(source)
    dim = int(argument(node, 2, "dim", 0)) % len(source)
    pieces: Any = node.meta["val"]
    extents = {int(piece.shape[dim]) for piece in pieces}
    if len(extents) > 1:
        return _fixed_dim(axes, sizes, dim)
    within = extents.pop()
    sizes = {name: size for name, size in sizes.items() if name != f"d{dim}"} | {
        "section": len(pieces),
        "within": within,
    }
    own = tuple(("section", "within") if i == dim else a for i, a in enumerate(axes))
    output = tuple(("within",) if i == dim else a for i, a in enumerate(axes))
    return AxisSpec((own,), output, sizes, fixed=frozenset({"section"}), linear=_FIRST)


def _fixed_dim(axes: Dims, sizes: dict[str, int], dim: int) -> AxisSpec:
    return AxisSpec((axes,), axes, sizes, fixed=frozenset({f"d{dim}"}), linear=_FIRST)


@register(operator.getitem)
def getitem(node: fx.Node) -> AxisSpec | None:
    """One tensor of a list: laid out as the list is. Lists of unlike tensors stay whole."""
    pieces: Any = node.args[0].meta["val"]  # type: ignore[union-attr]
    ranks = {piece.dim() for piece in pieces if isinstance(piece, torch.Tensor)}
    if len(ranks) != 1 or len(pieces) != sum(isinstance(piece, torch.Tensor) for piece in pieces):
        return None
    shapes = [tuple(piece.shape) for piece in pieces]
    axes, sizes = _plain(shape_of(node))
    uneven = frozenset(f"d{i}" for i in range(len(shapes[0])) if len({shape[i] for shape in shapes}) > 1)
    return AxisSpec((axes,), axes, sizes, fixed=uneven, linear=_FIRST)


@register(_aten.cat.default, _aten.stack.default)
def cat(node: fx.Node) -> AxisSpec | None:
    """Joined along one dim, which stays whole."""
    sources = tensor_arguments(node)
    rank = len(shape_of(sources[0]))
    stacked = node.target is _aten.stack.default
    dim = int(argument(node, 1, "dim", 0)) % (rank + stacked)
    axes, sizes = _plain(shape_of(node))
    if stacked:
        own = tuple(a for i, a in enumerate(axes) if i != dim)
        return AxisSpec(
            (own,) * len(sources),
            axes,
            sizes,
            fixed=frozenset(axes[dim]),
            linear=frozenset(range(len(sources))),
        )
    inputs = tuple(
        tuple(
            (f"own{k}",) if i == dim and n > 1 else axes[i] if i != dim else ()
            for i, n in enumerate(shape_of(source))
        )
        for k, source in enumerate(sources)
    )
    extra = {f"own{k}": shape_of(source)[dim] for k, source in enumerate(sources)}
    return AxisSpec(
        inputs,
        axes,
        sizes | extra,
        fixed=frozenset({*axes[dim], *extra}),
        linear=frozenset(range(len(sources))),
    )

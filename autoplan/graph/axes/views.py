"""Axes of ops that move elements without changing them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, Dims, plain, register, rule_for, shape_of
from autoplan.graph.gemms import argument, tensor_arguments

_aten = torch.ops.aten
_FIRST = frozenset({0})


@register(_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.flatten.using_ints,
          _aten.unflatten.int, _aten.squeeze.dim, _aten.squeeze.default, _aten.squeeze.dims, _aten.unsqueeze.default,
          _aten.ravel.default, _aten.view_as.default, _aten.reshape_as.default, _aten.view_copy.default, _aten.unsqueeze_copy.default,
          _aten.squeeze_copy.dim, _aten.squeeze_copy.dims, _aten.squeeze_copy.default)  # fmt: skip
def reshape(node: fx.Node) -> AxisSpec | None:
    """Dims split and merged in row-major order: both shapes are refined into common axes from the left."""
    refined = refine(shape_of(node.args[0]), shape_of(node))
    if refined is None:
        return None
    source, output, sizes = refined
    likes = (output for _ in tensor_arguments(node)[1:])
    return AxisSpec((source, *likes), output, sizes, linear=_FIRST)


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


@register(_aten.transpose.int, _aten.permute.default, _aten.t.default, _aten.movedim.int, _aten.movedim.intlist,
          _aten.swapaxes.default, _aten.swapdims.default, _aten.numpy_T.default, _aten.mT.default,
          _aten.moveaxis.int, _aten.permute_copy.default, _aten.transpose_copy.int, _aten.t_copy.default)  # fmt: skip
def permute(node: fx.Node) -> AxisSpec | None:
    """Dims in another order: which one, a tensor of numbered dims tells."""
    source = shape_of(node.args[0])
    axes, sizes = plain(source)
    numbered = torch.empty(tuple(range(len(source))), device="meta")
    order = node.target(numbered, *node.args[1:], **node.kwargs).shape  # type: ignore[operator]
    return AxisSpec((axes,), tuple(axes[d] for d in order), sizes, linear=_FIRST)


@register(
    _aten.expand.default, _aten.expand_copy.default, _aten.expand_as.default, _aten.broadcast_to.default
)
def expand(node: fx.Node) -> AxisSpec | None:
    """New or widened dims hold axes that the input lacks."""
    source, shape = shape_of(node.args[0]), shape_of(node)
    output, sizes = plain(shape)
    offset = len(shape) - len(source)
    own = tuple(output[offset + i] if n > 1 else () for i, n in enumerate(source))
    likes = (output for _ in tensor_arguments(node)[1:])
    return AxisSpec((own, *likes), output, sizes, linear=_FIRST)


@register(_aten.broadcast_tensors.default, _aten.meshgrid.default, _aten.meshgrid.indexing)
def broadcast(node: fx.Node) -> AxisSpec | None:
    """Several tensors given one shape; a grid's are lines, each along a dim of its own."""
    shape = shape_of(node)
    output, sizes = plain(shape)
    sources = tensor_arguments(node)
    if node.target is _aten.broadcast_tensors.default:
        inputs = tuple(
            tuple(output[i - len(own)] if n > 1 else () for i, n in enumerate(own))
            for own in (shape_of(source) for source in sources)
        )
        return AxisSpec(inputs, output, sizes)
    dims = list(range(len(shape)))
    if argument(node, 1, "indexing", "ij") == "xy":
        dims[:2] = dims[1::-1]
    lines = tuple(
        (output[dim],) if shape_of(source) else () for dim, source in zip(dims, sources, strict=True)
    )
    return AxisSpec(lines, output, sizes)


@register(_aten.repeat.default, _aten.tile.default)
def repeat(node: fx.Node) -> AxisSpec | None:
    """Whole copies one after the other: a dim becomes ``repeat d``, and either can be cut."""
    source, shape = shape_of(node.args[0]), shape_of(node)
    own = (1,) * (len(shape) - len(source)) + source
    sizes = {f"d{i}": n for i, n in enumerate(own) if n > 1}
    sizes |= {f"r{i}": m // n for i, (m, n) in enumerate(zip(shape, own, strict=True)) if m > n}
    output = tuple(tuple(axis for axis in (f"r{i}", f"d{i}") if axis in sizes) for i in range(len(shape)))
    inputs = tuple((f"d{i}",) if n > 1 else () for i, n in enumerate(own))[len(shape) - len(source) :]
    # of several copies of a cut dim, the order in which a rank would hold them is that of the whole
    return AxisSpec((inputs,), output, sizes, linear=_FIRST)


@register(_aten.repeat_interleave.self_int)
def repeat_interleave(node: fx.Node) -> AxisSpec | None:
    """Each element several times: a dim becomes ``d repeat``, and either can be cut."""
    source, times = shape_of(node.args[0]), int(node.args[1])  # type: ignore[arg-type]
    dim = argument(node, 2, "dim", None)
    if dim is None:
        return None
    axes, sizes = plain(source)
    dim %= len(axes)
    if times > 1:
        sizes["r"] = times
    output = tuple((*own, "r") if i == dim and times > 1 else own for i, own in enumerate(axes))
    return AxisSpec((axes,), output, sizes, linear=_FIRST, counts={"repeats": "r"})


@register(_aten.slice.Tensor, _aten.slice_copy.Tensor, _aten.narrow.default)
def slice_rule(node: fx.Node) -> AxisSpec | None:
    """A slice keeps its dim whole, unless it takes all of it."""
    source, shape = shape_of(node.args[0]), shape_of(node)
    axes, sizes = plain(source)
    dim = int(argument(node, 1, "dim", 0)) % len(source)
    if source[dim] == shape[dim]:
        return AxisSpec((axes,), axes, sizes, linear=_FIRST)
    output = tuple(
        ("cutout",) if i == dim and n > 1 else axes[i] if i != dim else () for i, n in enumerate(shape)
    )
    return AxisSpec(
        (axes,), output, sizes | {"cutout": shape[dim]}, fixed=frozenset({f"d{dim}", "cutout"}), linear=_FIRST
    )


@register(_aten.select.int, _aten.unbind.int, _aten.select_copy.int, _aten.unbind_copy.int)
def select(node: fx.Node) -> AxisSpec | None:
    """One index of a dim, or a list of all: the dim disappears."""
    axes, sizes = plain(shape_of(node.args[0]))
    dim = int(argument(node, 1, "dim", 0)) % len(axes)
    output = tuple(a for i, a in enumerate(axes) if i != dim)
    return AxisSpec((axes,), output, sizes, fixed=frozenset(axes[dim]), linear=_FIRST)


@register(_aten.split.Tensor, _aten.split_with_sizes.default, _aten.chunk.default, _aten.split.sizes,
          _aten.unsafe_chunk.default, _aten.unsafe_split.Tensor, _aten.tensor_split.sections)  # fmt: skip
def split(node: fx.Node) -> AxisSpec | None:
    """Equal sections make the dim (section, within), and ``within`` can be cut; unequal ones fix the dim."""
    source = shape_of(node.args[0])
    axes, sizes = plain(source)
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
    """One tensor of a list: laid out as the list is, or as the list's maker says of unlike tensors."""
    maker: Any = node.args[0]
    rule = rule_for(maker.target)
    whole = rule(maker) if rule is not None else None
    if whole is not None and whole.pieces:
        own = whole.pieces[int(node.args[1])]  # type: ignore[arg-type]
        held = {axis for dims in own for axis in dims}
        lacking = {axis for dims in whole.output for axis in dims} - held
        sizes = {a: n for a, n in whole.sizes.items() if a in held | lacking}
        return AxisSpec(
            (whole.output,), own, sizes, fixed=(whole.fixed | lacking) & sizes.keys(), linear=_FIRST
        )
    pieces: Any = maker.meta["val"]
    ranks = {piece.dim() for piece in pieces if isinstance(piece, torch.Tensor)}
    if len(ranks) != 1 or len(pieces) != sum(isinstance(piece, torch.Tensor) for piece in pieces):
        return None
    shapes = [tuple(piece.shape) for piece in pieces]
    axes, sizes = plain(shape_of(node))
    uneven = frozenset(f"d{i}" for i in range(len(shapes[0])) if len({shape[i] for shape in shapes}) > 1)
    return AxisSpec((axes,), axes, sizes, fixed=uneven, linear=_FIRST)


@register(_aten.cat.default, _aten.concat.default, _aten.concatenate.default, _aten.stack.default)
def cat(node: fx.Node) -> AxisSpec | None:
    """Joined along one dim, which stays whole."""
    sources = tensor_arguments(node)
    rank = len(shape_of(sources[0]))
    stacked = node.target is _aten.stack.default
    dim = int(argument(node, 1, "dim", 0)) % (rank + stacked)
    axes, sizes = plain(shape_of(node))
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

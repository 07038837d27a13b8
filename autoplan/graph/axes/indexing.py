"""Axes of reads and writes by index: the dim that is indexed stays whole, the places asked for can be cut."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, Dims, along, is_floating, named, plain, register, shape_of
from autoplan.graph.gemms import argument, tensor_arguments
from autoplan.graph.layout import PARTIAL, REPLICATE, shard
from autoplan.graph.strategy import Strategy

_aten = torch.ops.aten
_FIRST = frozenset({0})


@register(_aten.index.Tensor)
def index(node: fx.Node) -> AxisSpec | None:
    """x ``… v…`` read at the places ``b…`` of index tensors that broadcast together. Masks keep the call whole."""
    found = _indexed(node)
    if found is None:
        return None
    source, asked, picked, sizes, fixed = found
    return AxisSpec((source, *asked), picked, sizes, fixed=fixed, linear=_FIRST)


@register(_aten.index_put.default)
def index_put(node: fx.Node) -> AxisSpec | None:
    """x ``… v…`` with values ``… b…`` written, or added, at the places ``b…``. Where they are added, x is added once."""
    found = _indexed(node)
    if found is None:
        return None
    source, asked, picked, sizes, fixed = found
    values = shape_of(node.args[2])
    extents = tuple(sizes[own[0]] if own else 1 for own in picked)
    if len(values) > len(picked) or any(
        n not in (1, extent) for n, extent in zip(values[::-1], extents[::-1], strict=False)
    ):
        return None
    written = tuple(picked[i - len(values)] if n > 1 else () for i, n in enumerate(values))
    added = bool(argument(node, 3, "accumulate", False)) and len(values) == len(picked) and values == extents
    places = frozenset(axis for own in (*asked, written) for axis in own_axes(own) if axis.startswith("b"))
    last = len(asked) + 1
    linear = frozenset({0, last}) if is_floating(node) else None
    return AxisSpec(
        (source, *asked, written),
        source,
        sizes,
        fixed=fixed if added else fixed | places,
        added_once=_FIRST if added else frozenset(),
        linear=linear,
    )


def own_axes(dims: Dims | tuple[str, ...]) -> list[str]:
    """The axes of a tensor's dims, or of one dim."""
    return [axis for own in dims for axis in ((own,) if isinstance(own, str) else own)]


def _indexed(node: fx.Node) -> tuple[Dims, tuple[Dims, ...], Dims, dict[str, int], frozenset[str]] | None:
    """Axes of x, of each index tensor, and of what they pick from x; sizes; axes that stay whole."""
    shape = shape_of(node.args[0])
    at: Sequence[fx.Node | None] = node.args[1]  # type: ignore[assignment]
    tensors = [source for source in at if source is not None]
    if any(source.meta["val"].dtype in (torch.bool, torch.uint8) for source in tensors):
        return None
    axes, sizes = plain(shape)
    taken = [dim for dim, source in enumerate(at) if source is not None]
    asked_shape = tuple(torch.broadcast_shapes(*(shape_of(source) for source in tensors)))
    places, extents = plain(asked_shape, "b")
    asked = tuple(
        tuple(places[i - len(own)] if n > 1 else () for i, n in enumerate(own))
        for own in (shape_of(source) for source in tensors)
    )
    adjacent = taken == list(range(taken[0], taken[-1] + 1))
    first = taken[0] if adjacent else 0
    rest = [own for dim, own in enumerate(axes) if dim not in taken]
    picked = (*rest[:first], *places, *rest[first:])
    fixed = frozenset(axis for dim in taken for axis in axes[dim])
    return axes, asked, picked, sizes | extents, fixed


@register(_aten.index_select.default)
def index_select(node: fx.Node) -> AxisSpec | None:
    """x ``… v …`` read at the rows ``b``."""
    shape = shape_of(node.args[0])
    axes, sizes = plain(shape)
    dim = int(named(node, "dim")) % len(shape)
    count = shape_of(node)[dim]
    rows: tuple[str, ...] = ("b",) if count > 1 else ()
    output = tuple(rows if i == dim else own for i, own in enumerate(axes))
    asked: Dims = (rows,) if len(shape_of(node.args[2])) else ()
    extents = {"b": count} if rows else {}
    return AxisSpec((axes, asked), output, sizes | extents, fixed=frozenset(axes[dim]), linear=_FIRST)


@register(_aten.index_add.default, _aten.index_copy.default)
def index_add(node: fx.Node) -> AxisSpec | None:
    """x ``… v …`` with the rows ``b`` of source added (or written); x is added once."""
    shape, source = shape_of(node.args[0]), shape_of(node.args[3])
    axes, sizes = plain(shape)
    dim = int(named(node, "dim")) % len(shape)
    if len(source) != len(shape):
        return None
    rows: tuple[str, ...] = ("b",) if source[dim] > 1 else ()
    own = tuple(rows if i == dim else a for i, a in enumerate(axes))
    added = node.target is _aten.index_add.default
    fixed = frozenset(axes[dim]) | (frozenset() if added else frozenset(rows))
    extents = {"b": source[dim]} if rows else {}
    return AxisSpec(
        (axes, (rows,) if len(shape_of(node.args[2])) else (), own),
        axes,
        sizes | extents,
        fixed=fixed,
        added_once=_FIRST if added else frozenset(),
        linear=frozenset({0, 2}),
    )


@register(_aten.gather.default)
def gather(node: fx.Node) -> AxisSpec | None:
    """x ``… v …`` and index ``… b …`` of one rank. Dims in which the index is shorter than x stay whole."""
    x, shape = shape_of(node.args[0]), shape_of(node)
    if not shape:
        return None
    dim = int(named(node, "dim")) % len(shape)
    output, sizes = plain(shape)
    fixed: set[str] = set()
    source: list[tuple[str, ...]] = []
    for i, n in enumerate(x):
        if i != dim and n == shape[i]:
            source.append(output[i])
            continue
        name = f"v{i}"
        source.append((name,) if n > 1 else ())
        if n > 1:
            sizes[name] = n
            fixed.add(name)
        if i != dim:
            fixed |= set(output[i])
    return AxisSpec((tuple(source), output), output, sizes, fixed=frozenset(fixed), linear=_FIRST)


@register(_aten.scatter.src, _aten.scatter.value, _aten.scatter_add.default, _aten.scatter_reduce.two)
def scatter(node: fx.Node) -> AxisSpec | None:
    """x, index and source of one rank, alike but in the dim that is written. Where source is added, x is added once."""
    shape = shape_of(node)
    if not shape:
        return None
    dim = int(named(node, "dim")) % len(shape)
    written = [shape_of(source) for source in tensor_arguments(node)[1:]]
    if any(own != written[0] for own in written):
        return None
    axes, sizes = plain(shape)
    fixed = set(axes[dim])
    own: list[tuple[str, ...]] = []
    for i, n in enumerate(written[0]):
        if i != dim and n == shape[i]:
            own.append(axes[i])
            continue
        own.append((f"b{i}",) if n > 1 else ())
        if n > 1:
            sizes[f"b{i}"] = n
        if i != dim:
            fixed |= {*axes[i], *((f"b{i}",) if n > 1 else ())}
    added = node.target is _aten.scatter_add.default
    if not added and written[0][dim] > 1:
        fixed.add(f"b{dim}")
    return AxisSpec(
        (axes, *((tuple(own),) * len(written))),
        axes,
        sizes,
        fixed=frozenset(fixed),
        added_once=_FIRST if added else frozenset(),
        linear=frozenset({0, 2}) if added else None,
    )


@register(_aten.slice_scatter.default, _aten.select_scatter.default)
def put_slice(node: fx.Node) -> AxisSpec | None:
    """A slice, or one index, of a dim replaced: that dim stays whole."""
    shape = shape_of(node)
    dim = int(named(node, "dim", 0)) % len(shape)
    if node.target is _aten.slice_scatter.default:
        return along(node, (dim,), (0, 1))
    axes, sizes = plain(shape)
    return AxisSpec(
        (axes, tuple(own for i, own in enumerate(axes) if i != dim)),
        axes,
        sizes,
        fixed=frozenset(axes[dim]),
        linear=frozenset({0, 1}),
    )


@register(_aten.one_hot.default)
def one_hot(node: fx.Node) -> AxisSpec | None:
    """``… -> … v``."""
    axes, sizes = plain(shape_of(node))
    return AxisSpec((axes[:-1],), axes, sizes, fixed=frozenset(axes[-1]))


@register(_aten.histc.default)
def histogram(node: fx.Node) -> AxisSpec | None:
    """Counts of values: small, without a gradient, and whole."""
    axes, sizes = plain(shape_of(node.args[0]))
    bins, extents = plain(shape_of(node), "b")
    return AxisSpec((axes,), bins, sizes | extents, fixed=frozenset({*sizes, *extents}))


@register(_aten.bucketize.Tensor, _aten.searchsorted.Tensor)
def buckets(node: fx.Node) -> AxisSpec | None:
    """Places among sorted boundaries, which stay whole."""
    first = node.target is _aten.searchsorted.Tensor
    values, edges = (shape_of(node.args[i]) for i in ((1, 0) if first else (0, 1)))
    axes, sizes = plain(values)
    if len(edges) != 1:
        return None
    own: Dims = (("v",),) if edges[0] > 1 else ((),)
    sizes = sizes | ({"v": edges[0]} if edges[0] > 1 else {})
    return AxisSpec((own, axes) if first else (axes, own), axes, sizes, fixed=frozenset({"v"}) & sizes.keys())


@register(_aten.embedding_bag.padding_idx, _aten.embedding_bag.default, _aten._embedding_bag.default)
def embedding_bag(node: fx.Node) -> AxisSpec | None:
    """``v h, i, b -> b h`` with, beside it, where each index went. Cutting v needs a kernel that reads a rank's rows."""
    weight = shape_of(node.args[0])
    if named(node, "sparse") or named(node, "scale_grad_by_freq"):
        return None
    sources = tensor_arguments(node)
    indices, extents = plain(shape_of(node.args[1]), "i")
    bags, counts = plain(shape_of(node.args[2]), "b")
    result = shape_of(node)
    sizes = extents | counts | {"v": weight[0], "h": weight[1], "o": result[0]}
    sizes = {axis: n for axis, n in sizes.items() if n > 1}
    width: tuple[str, ...] = ("h",) if weight[1] > 1 else ()
    output: Dims = (("o",) if result[0] > 1 else (), width)
    values: list[torch.Tensor] = node.meta["val"]
    # the last result holds, for mode max, the row that won in each column
    pieces = (
        output,
        *(
            (((),) * (piece.dim() - 1) + (width,)) if piece.dim() == 2 else ((),) * piece.dim()
            for piece in values[1:]
        ),
    )
    mode, padding = int(named(node, "mode")), named(node, "padding_idx", -1)
    plain_sum = mode == 0 and len(sources) == 3 and padding in (-1, None)

    def rows(degree: int) -> Sequence[Strategy]:
        if weight[0] % degree or not plain_sum:
            return ()
        cut = (shard(0), REPLICATE, REPLICATE)
        return (Strategy("cut v", cut, PARTIAL, share=True, kernel="vocab_embedding_bag"),)

    each = tuple(indices for _ in sources[3:])  # weights of single indices
    return AxisSpec(
        ((("v",) if weight[0] > 1 else (), width), indices, bags, *each),
        output,
        sizes,
        fixed=frozenset(sizes) - {"h"},
        extra=rows,
        pieces=pieces,
    )

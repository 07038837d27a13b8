"""Axes of normalisations: what is averaged over stays whole, batch and channels or groups can be cut."""

from __future__ import annotations

import torch
from torch import fx

from autoplan.graph.axes.spec import AxisSpec, Dims, named, plain, register, shape_of
from autoplan.graph.gemms import argument, tensor_arguments

_aten = torch.ops.aten


@register(_aten.layer_norm.default, _aten.rms_norm.default, _aten.native_layer_norm.default,
          _aten._fused_rms_norm.default)  # fmt: skip
def norm(node: fx.Node) -> AxisSpec | None:
    """x (…, normalized), then weight and bias of the normalized shape; the normalized dims cannot be cut."""
    shape = shape_of(node.args[0])
    normalized = len(argument(node, 1, "normalized_shape", []))
    axes, sizes = plain(shape)
    affine = axes[len(shape) - normalized :]
    fixed = frozenset(a for dims in affine for a in dims)
    inputs = (axes, *(affine for _ in tensor_arguments(node)[1:]))
    pieces: tuple[Dims, ...] = ()
    if isinstance(node.meta["val"], tuple | list):
        kept: Dims = (*axes[: len(shape) - normalized], *((),) * normalized)
        pieces = (axes, *(kept for _ in node.meta["val"][1:]))
    return AxisSpec(inputs, axes, sizes, fixed=fixed, pieces=pieces)


@register(_aten.group_norm.default)
def group_norm(node: fx.Node) -> AxisSpec | None:
    """``n (g c) …, (g c), (g c) -> n (g c) …`` with statistics over c and what follows."""
    shape = shape_of(node.args[0])
    groups = int(named(node, "num_groups"))
    channels, sizes = _product(g=groups, c=shape[1] // groups)
    spatial, extents = plain(shape[2:], "s")
    batch, samples = plain(shape[:1], "n")
    fixed = frozenset({"c", *extents}) & (sizes.keys() | extents.keys())
    inputs = ((*batch, channels, *spatial), *((channels,) for _ in tensor_arguments(node)[1:]))
    return AxisSpec(inputs, inputs[0], sizes | extents | samples, fixed=fixed, counts={"num_groups": "g"})


@register(_aten.native_group_norm.default)
def native_group_norm(node: fx.Node) -> AxisSpec | None:
    """The same with its sizes as arguments, and the statistics (n, g) beside the result."""
    shape = shape_of(node.args[0])
    groups = int(named(node, "group"))
    channels, sizes = _product(g=groups, c=shape[1] // groups)
    batch, samples = plain(shape[:1], "n")
    spatial, extents = plain(shape[2:], "s")
    fixed = frozenset({"c", *extents}) & (sizes.keys() | extents.keys())
    whole = (*batch, channels, *spatial)
    statistics = (*batch, ("g",) if groups > 1 else ())
    inputs = (whole, *((channels,) for _ in tensor_arguments(node)[1:]))
    counts = {"group": "g", "C": "g", "N": "n0"}
    return AxisSpec(
        inputs,
        whole,
        sizes | extents | samples,
        fixed=fixed,
        counts=counts,
        pieces=(whole, statistics, statistics),
    )


@register(_aten.batch_norm.default, _aten._native_batch_norm_legit_functional.default,
          _aten._native_batch_norm_legit_no_training.default, _aten._native_batch_norm_legit.no_stats,
          _aten.instance_norm.default)  # fmt: skip
def batch_norm(node: fx.Node) -> AxisSpec | None:
    """``n c …, c… -> n c …``. In training the statistics are over batch and space, so only channels can be cut.

    Instance norm has its own for each sample, so batch and channels can be.
    """
    shape = shape_of(node.args[0])
    sources = tensor_arguments(node)
    axes, sizes = plain(shape)
    channel: Dims = (axes[1],)
    if any(len(shape_of(source)) != 1 for source in sources[1:]):
        return None
    of_each = node.target is _aten.instance_norm.default
    trains = named(node, "use_input_stats" if of_each else "training", named(node, "train", False))
    if of_each and trains and named(node, "running_mean") is not None:
        return None  # running statistics, averaged over the batch
    over = range(2, len(shape)) if trains else ()
    batch = (0,) if trains and not of_each else ()
    fixed = frozenset(a for i in (*batch, *over) for a in axes[i])
    pieces: tuple[Dims, ...] = ()
    if isinstance(node.meta["val"], tuple | list):
        rest = [channel if tuple(piece.shape) == shape[1:2] else ((),) for piece in node.meta["val"][1:]]
        pieces = (axes, *rest)
    return AxisSpec((axes, *(channel for _ in sources[1:])), axes, sizes, fixed=fixed, pieces=pieces)


@register(_aten._weight_norm.default, _aten._weight_norm_interface.default)
def weight_norm(node: fx.Node) -> AxisSpec | None:
    """v and its sizes g along one dim: that dim can be cut, the others are summed over."""
    shape = shape_of(node.args[0])
    dim = int(named(node, "dim")) % len(shape)
    axes, sizes = plain(shape)
    size = tuple(axes[i] if i == dim else () for i in range(len(shape)))
    if shape_of(node.args[1]) != tuple(n if i == dim else 1 for i, n in enumerate(shape)):
        return None
    fixed = frozenset(a for i, own in enumerate(axes) if i != dim for a in own)
    two = isinstance(node.meta["val"], tuple | list)
    return AxisSpec((axes, size), axes, sizes, fixed=fixed, pieces=(axes, size) if two else ())


@register(_aten.cosine_similarity.default)
def cosine_similarity(node: fx.Node) -> AxisSpec | None:
    """Two tensors of one shape, compared along a dim that disappears."""
    first, second = (shape_of(source) for source in node.args[:2])
    if first != second:
        return None
    axes, sizes = plain(first)
    dim = int(named(node, "dim")) % len(first)
    output = tuple(own for i, own in enumerate(axes) if i != dim)
    return AxisSpec((axes, axes), output, sizes, fixed=frozenset(axes[dim]))


def _product(**extents: int) -> tuple[tuple[str, ...], dict[str, int]]:
    """A dim as the product of axes, those of size one left out; and their sizes."""
    sizes = {axis: n for axis, n in extents.items() if n > 1}
    return tuple(sizes), sizes

"""Where the samples of a batch are in the result of an op: the dim whose outermost part counts them.

One rule for each kind of op. An op without one keeps its place if the dim keeps its size; else the place is
unknown (tokens sorted by expert, say).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from autoplan.graph.gemms import argument, tensor_arguments

__all__ = ["UNKNOWN", "SamplesMeet", "batch_dim", "runs_over"]

UNKNOWN = -1
"""The dim of the samples is not known."""

_aten = torch.ops.aten
_OVER_DIMS = {
    _aten.sum.dim_IntList, _aten.mean.dim, _aten.amax.default, _aten.amin.default, _aten.var.correction,
    _aten.std.correction, _aten.logsumexp.default, _aten.max.dim, _aten.min.dim, _aten.cumsum.default,
    _aten.softmax.int, _aten.log_softmax.int, _aten.var_mean.correction, _aten.prod.dim_int, _aten.norm.ScalarOpt_dim,
    _aten.linalg_vector_norm.default,
}  # fmt: skip
_OVER_ALL = {_aten.sum.default, _aten.mean.default, _aten.max.default, _aten.min.default, _aten.std.default,
             _aten.var.default, _aten.prod.default}  # fmt: skip
_KEEPS_RANK = {_aten.cumsum.default, _aten.softmax.int, _aten.log_softmax.int}
_DIM_POSITION = {_aten.norm.ScalarOpt_dim: 2, _aten.linalg_vector_norm.default: 2}
_KEEPDIM_POSITION = {_aten.norm.ScalarOpt_dim: 3, _aten.linalg_vector_norm.default: 3, _aten.var.correction: 9,
                     _aten.std.correction: 9, _aten.var_mean.correction: 9}  # fmt: skip
_BATCH_STATISTICS = {_aten._native_batch_norm_legit_functional.default: 5, _aten.batch_norm.default: 5,
                     _aten.native_batch_norm.default: 5, _aten._native_batch_norm_legit.default: 5}  # fmt: skip
_VIEWS = {_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default, _aten.flatten.using_ints,
          _aten.unflatten.int}  # fmt: skip


class SamplesMeet(Exception):
    """Raised by ``batch_dim``: the op brings samples together."""


def runs_over(node: fx.Node, place: int) -> bool:
    """True if the op reduces or normalises over dim ``place`` of its first argument."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), torch.Tensor):
        return False
    flag = _BATCH_STATISTICS.get(node.target)  # type: ignore[arg-type]
    if flag is not None:
        return bool(node.args[flag])
    rank = source.meta["val"].dim()
    if node.target in _OVER_ALL:
        return rank > 0
    if node.target not in _OVER_DIMS or rank == 0:
        return False
    return place in _reduced(node, rank)


def _reduced(node: fx.Node, rank: int) -> set[int]:
    dims: Any = argument(node, _DIM_POSITION.get(node.target, 1), "dim", None)  # type: ignore[arg-type]
    if dims is None or dims == []:
        return set(range(rank))
    return {d % rank for d in (dims if isinstance(dims, list | tuple) else [dims])}


def batch_dim(node: fx.Node, held: dict[fx.Node, int | None], samples: int) -> int | None:
    """The dim of the ``samples`` in the result of ``node``, whose inputs hold them as ``held`` says.

    Raises:
        SamplesMeet: samples meet in this op.
    """
    if _is_mean_loss(node):
        raise SamplesMeet
    first = node.args[0] if node.args else None
    place = held.get(first) if isinstance(first, fx.Node) else None
    if place is not None and runs_over(node, place):
        raise SamplesMeet
    if node.target in _VIEWS:
        return _view(node, held, samples)
    rule = _RULES.get(node.target)
    if rule is not None:
        return rule(node, held)
    return _aligned(node, held)


def _is_mean_loss(node: fx.Node) -> bool:
    return "loss" in str(node.target) and _shape(node) == ()


def _shape(node: Any) -> tuple[int, ...]:
    value = node.meta["val"]
    value = value[0] if isinstance(value, tuple | list) else value
    return tuple(int(n) for n in value.shape) if isinstance(value, torch.Tensor) else ()


def _agreed(places: set[int]) -> int | None:
    """One place for all operands; two are samples paired with samples."""
    if len(places) > 1:
        raise SamplesMeet
    return next(iter(places), None)


def _aligned(node: fx.Node, held: dict[fx.Node, int | None]) -> int | None:
    """Element-wise with broadcasting, or an op unknown to us whose result keeps the rank and the dim's size."""
    shape = _shape(node)
    pointwise = node.target in _POINTWISE
    places: set[int] = set()
    for source in tensor_arguments(node):
        place = held.get(source)
        if place is None:
            continue
        own = _shape(source)
        moved = place + len(shape) - len(own)
        if (
            not 0 <= moved < len(shape)
            or shape[moved] != own[place]
            or not (pointwise or len(own) == len(shape))
        ):
            return UNKNOWN
        places.add(moved)
    return _agreed(places) if pointwise or len(places) < 2 else UNKNOWN


_POINTWISE = {_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor, _aten.where.self,
              _aten.maximum.default, _aten.minimum.default, _aten.pow.Tensor_Tensor}  # fmt: skip


def _view(node: fx.Node, held: dict[fx.Node, int | None], samples: int) -> int | None:
    """The dim that starts where the samples' dim did; of several (all but one of size 1), the one that has room."""
    source, place = node.args[0], held[node.args[0]]  # type: ignore[index]
    before, shape = math.prod(_shape(source)[:place]), _shape(node)
    starts = (dim for dim in range(len(shape)) if math.prod(shape[:dim]) == before)
    return next((dim for dim in starts if shape[dim] % samples == 0), UNKNOWN)


def _permute(node: fx.Node, held: dict[fx.Node, int | None]) -> int | None:
    source, place = node.args[0], held[node.args[0]]  # type: ignore[index]
    rank = len(_shape(source))
    order = list(range(rank))
    if node.target is _aten.permute.default:
        order = [d % rank for d in node.args[1]]  # type: ignore[union-attr,operator]
    elif node.target is _aten.numpy_T.default:
        order.reverse()
    elif rank > 1:
        dims = node.args[1:3] or (rank - 2, rank - 1)
        p, q = (int(d) % rank for d in dims)  # type: ignore[arg-type]
        order[p], order[q] = order[q], order[p]
    return order.index(place) if place is not None else None


def _unsqueeze(node: fx.Node, held: dict[fx.Node, int | None]) -> int | None:
    place, rank = held[node.args[0]], len(_shape(node))  # type: ignore[index]
    assert place is not None
    return place + (int(node.args[1]) % rank <= place)  # type: ignore[arg-type]


def _squeeze(node: fx.Node, held: dict[fx.Node, int | None]) -> int | None:
    source, place = node.args[0], held[node.args[0]]  # type: ignore[index]
    assert place is not None
    shape = _shape(source)
    dims: Any = argument(node, 1, "dim", list(range(len(shape))))
    gone = {d % len(shape) for d in (dims if isinstance(dims, list | tuple) else [dims])}
    gone = {d for d in gone if shape[d] == 1}
    if place in gone:
        return UNKNOWN
    return place - sum(d < place for d in gone)


def _cut(node: fx.Node, held: dict[fx.Node, int | None]) -> int | None:
    """A slice, split or join: along the samples it makes other ones."""
    sources = tensor_arguments(node)
    rank = len(_shape(sources[0]))
    stacked = node.target in (_aten.stack.default, _aten.select.int, _aten.unbind.int)
    position = 2 if node.target in _SPLITS else 1
    dim = int(argument(node, position, "dim", 0)) % (rank + (node.target is _aten.stack.default))
    place = _agreed({held[s] for s in sources if held.get(s) is not None})  # type: ignore[misc]
    assert place is not None
    if node.target is _aten.stack.default:
        return place + (dim <= place)
    if dim == place:
        if node.target in _PARTS and _shape(node) != _shape(sources[0]):
            raise SamplesMeet
        return place if not stacked and _shape(node)[place] == _shape(sources[0])[place] else UNKNOWN
    return place - (stacked and dim < place)


def _rolled(node: fx.Node, held: dict[fx.Node, int | None]) -> int | None:
    """Samples in another order, to be paired with those in the first."""
    place, rank = held[node.args[0]], len(_shape(node))  # type: ignore[index]
    dims: Any = argument(node, 2 if node.target is _aten.roll.default else 1, "dims", [])
    if not dims or place in {d % rank for d in dims}:
        raise SamplesMeet
    return place


_PARTS = {_aten.select.int, _aten.slice.Tensor}
_SPLITS = {_aten.split.Tensor, _aten.split_with_sizes.default, _aten.chunk.default}


def _reduction(node: fx.Node, held: dict[fx.Node, int | None]) -> int | None:
    place = held[node.args[0]]  # type: ignore[index]
    assert place is not None
    reduced = _reduced(node, len(_shape(node.args[0])))
    if node.target in _KEEPS_RANK or argument(node, _KEEPDIM_POSITION.get(node.target, 2), "keepdim", False):  # type: ignore[arg-type]
        return place
    return place - sum(d < place for d in reduced)


def _linear(node: fx.Node, held: dict[fx.Node, int | None]) -> int | None:
    return _product(node, held, len(_shape(node.args[1])) - 1)


def _matmul(node: fx.Node, held: dict[fx.Node, int | None]) -> int | None:
    return _product(node, held, None)


def _product(node: fx.Node, held: dict[fx.Node, int | None], contracted: int | None) -> int | None:
    """``… m k, … k n -> … m n``; the right factor's contracted dim is the last but one unless given."""
    operands = [n for n in node.args[:3] if isinstance(n, fx.Node)][-2:]
    if node.target is _aten.linear.default:
        operands = [n for n in node.args[:2] if isinstance(n, fx.Node)]
    left, right = operands
    rank, a, b = len(_shape(node)), len(_shape(left)), len(_shape(right))
    places: set[int] = set()
    if (place := held.get(left)) is not None:
        if place == a - 1:
            raise SamplesMeet
        places.add(place + rank - a if b > 1 else place)
    if (place := held.get(right)) is not None:
        inner = max(b - 2, 0) if contracted is None else contracted
        if place == inner:
            raise SamplesMeet
        places.add(rank - 1 if place >= b - 2 else place + rank - b)
    return _agreed(places)


def _einsum(node: fx.Node, held: dict[fx.Node, int | None]) -> int | None:
    equation = str(node.args[0]).replace(" ", "")
    terms, _, output = equation.partition("->")
    if "." in equation or not output:
        return UNKNOWN
    letters = set()
    for term, source in zip(terms.split(","), tensor_arguments(node), strict=True):
        if (place := held.get(source)) is not None:
            letters.add(term[place])
    if len(letters) > 1 or not letters <= set(output):
        raise SamplesMeet
    return output.index(letters.pop())


def _attention(node: fx.Node, held: dict[fx.Node, int | None]) -> int | None:
    query = node.args[0]
    rank = len(_shape(query))
    places = {
        place + rank - len(_shape(n)) for n in tensor_arguments(node) if (place := held.get(n)) is not None
    }
    place = _agreed(places)
    if place is not None and place >= rank - 2:
        raise SamplesMeet
    return place


def _embedding(node: fx.Node, held: dict[fx.Node, int | None]) -> int | None:
    return held[node.args[1]] if held.get(node.args[0]) is None else UNKNOWN  # type: ignore[index,arg-type]


def _index_select(node: fx.Node, held: dict[fx.Node, int | None]) -> int | None:
    """Rows of a table that each sample asks for, or a pick along a dim that is not the samples'."""
    source, dim, index = node.args[:3]
    dim = int(dim) % len(_shape(source))  # type: ignore[arg-type]
    if held.get(source) is None:  # type: ignore[arg-type]
        return dim
    if held.get(index) is not None or dim == held[source]:  # type: ignore[arg-type,index]
        return UNKNOWN
    return held[source]  # type: ignore[index]


def _first_dim(node: fx.Node, held: dict[fx.Node, int | None]) -> int | None:
    """Convolution, pooling and their kind: samples in dim 0 stay there."""
    return 0 if held[node.args[0]] == 0 else UNKNOWN  # type: ignore[index]


def _pick(node: fx.Node, held: dict[fx.Node, int | None]) -> int | None:
    return held[node.args[0]]  # type: ignore[index]


_Rule = Callable[[fx.Node, dict[fx.Node, "int | None"]], "int | None"]
_RULES: dict[Any, _Rule] = (
    dict.fromkeys(
        (_aten.permute.default, _aten.transpose.int, _aten.t.default, _aten.mT.default, _aten.numpy_T.default), _permute
    )
    | {_aten.unsqueeze.default: _unsqueeze}
    | dict.fromkeys((_aten.squeeze.dim, _aten.squeeze.default, _aten.squeeze.dims), _squeeze)
    | dict.fromkeys(
        (_aten.slice.Tensor, _aten.select.int, _aten.unbind.int, _aten.cat.default, _aten.stack.default, *_SPLITS),
        _cut,
    )
    | dict.fromkeys(_OVER_DIMS, _reduction)
    | dict.fromkeys((_aten.roll.default, _aten.flip.default), _rolled)
    | {_aten.linear.default: _linear, _aten.embedding.default: _embedding, _aten.einsum.default: _einsum}
    | dict.fromkeys(
        (_aten.mm.default, _aten.bmm.default, _aten.matmul.default, _aten.addmm.default, _aten.baddbmm.default),
        _matmul,
    )
    | {operator.getitem: _pick, _aten.index_select.default: _index_select}
    | {_aten.scaled_dot_product_attention.default: _attention}
    | dict.fromkeys(
        (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.conv1d.padding,
         _aten.conv2d.padding, _aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.group_norm.default,
         _aten.max_pool2d.default, _aten.avg_pool2d.default, _aten.adaptive_avg_pool2d.default),
        _first_dim,
    )
)  # fmt: skip

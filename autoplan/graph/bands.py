"""Which keys each query sees, read off the ops that build an attention mask.

Models build their masks in forward, from positions: ``k <= q``, ``k > q - window``, ``k // chunk == q // chunk``,
and conjunctions of these. Such a mask depends on nothing but shapes, and in each of its rows it is true on
one run of keys: a *band*. Small tensors are evaluated as they are; of an (s, s) tensor only the band is
kept, two numbers a row, so that a mask of a long sequence costs neither its time nor its memory. What has no
band (per-sample masks, padding, random ones) is unknown and stays the tensor that it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from autoplan.graph.gemms import argument
from autoplan.graph.randomness import is_random

__all__ = ["Band", "find_bands"]

_aten = torch.ops.aten
_SMALL = 1 << 20
"""Elements up to which a constant is evaluated; rows and columns of masks are far below, masks above."""


@dataclass(frozen=True, slots=True)
class Band:
    """Row q of every (queries, keys) matrix is true at keys ``first_Q[q] <= k < end_Q[q]``, and nowhere else."""

    first_Q: Tensor
    end_Q: Tensor
    keys: int

    @property
    def is_full(self) -> bool:
        return bool((self.first_Q == 0).all() and (self.end_Q == self.keys).all())

    @property
    def is_causal(self) -> bool:
        return bool((self.first_Q == 0).all()) and self._ends_at_query()

    def _ends_at_query(self) -> bool:
        queries = len(self.end_Q)
        return queries == self.keys and bool((self.end_Q == _positions(queries) + 1).all())

    @property
    def digest(self) -> str:
        """The same for equal bands."""
        data = torch.stack([self.first_Q, self.end_Q]).to(torch.int64).numpy().tobytes()
        return hashlib.sha256(data + str(self.keys).encode()).hexdigest()

    @property
    def window(self) -> int:
        """The most keys that a query sees."""
        return int((self.end_Q - self.first_Q).max())

    @property
    def share(self) -> float:
        """The part of all query-key pairs that meet."""
        return int((self.end_Q - self.first_Q).sum()) / (len(self.end_Q) * self.keys)


@dataclass(frozen=True, slots=True)
class _Difference:
    """The integers ``column_K[k] + row_Q[q]``, or their absolute values."""

    row_Q: Tensor
    column_K: Tensor
    absolute: bool = False


def _positions(size: int) -> Tensor:
    return torch.arange(size, device="cpu")


def find_bands(graph: fx.Graph, given: dict[str, Band]) -> dict[fx.Node, Band]:
    """The bands of the boolean nodes of ``graph`` that have one; ``given`` tells those of placeholders."""
    wanted = _ancestors(
        n for n in graph.nodes if _is_mask(n) and (n.op == "call_function" or n.name in given)
    )
    known: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node in wanted:
            value = given.get(node.name) if node.op == "placeholder" else _evaluate(node, known)
            if value is not None:
                known[node] = value
    bands = {node: _as_band(value) for node, value in known.items() if _is_mask(node)}
    return {node: band for node, band in bands.items() if band is not None}


def _is_mask(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.bool and value.dim() >= 2


def _ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending.extend(node.all_input_nodes)
    return seen


def _evaluate(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """The node's value as a tensor, a Band or a _Difference; None if it depends on what is not known."""
    if node.op != "call_function" or is_random(node) or any(n not in known for n in node.all_input_nodes):
        return None
    value = node.meta.get("val")
    small = all(isinstance(known[n], Tensor) for n in node.all_input_nodes)
    if small and (not isinstance(value, Tensor) or value.numel() <= _SMALL):
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: known[n])
        return node.target(*args, **kwargs)  # type: ignore[operator]
    if not isinstance(value, Tensor) or value.dim() < 2:
        return None
    rule = _RULES.get(node.target)  # type: ignore[arg-type]
    return rule(node, [known.get(a, a) if isinstance(a, fx.Node) else a for a in node.args]) if rule else None


def _as_band(value: Any) -> Band | None:
    if isinstance(value, Band):
        return value
    return _band_of_matrix(value) if isinstance(value, Tensor) else None


def _band_of_matrix(mask: Tensor) -> Band | None:
    """The band of a mask that is at hand, if all its matrices are one and each row's true keys are one run."""
    if mask.dim() < 2 or mask.dtype != torch.bool or 0 in mask.shape:
        return None
    matrices = mask.reshape(-1, *mask.shape[-2:])
    if not bool((matrices == matrices[:1]).all()):
        return None
    matrix = matrices[0].to(torch.int8)
    count = matrix.sum(-1)
    first = torch.where(count > 0, matrix.argmax(-1), 0)
    end = first + count
    keys = _positions(mask.shape[-1])
    run = (keys >= first[:, None]) & (keys < end[:, None])
    return Band(first, end, mask.shape[-1]) if bool((run == matrices[0]).all()) else None


def _parts(node: fx.Node, values: list[Any]) -> tuple[Tensor, Tensor] | None:
    """Of two tensors that meet in a (queries, keys) matrix, what varies by row and what by column: (Q,), (K,).

    The first is the row. None if one varies by both, or differs between matrices.
    """
    queries, keys = node.meta["val"].shape[-2:]
    row, column = (_matrix(value) for value in values)
    if row.shape[-1] != 1 or column.shape[-2] != 1:
        return None
    rows, columns = row.reshape(-1, row.shape[-2]), column.reshape(-1, column.shape[-1])
    if not bool((rows == rows[:1]).all() and (columns == columns[:1]).all()):
        return None
    return rows[0].expand(queries), columns[0].expand(keys)


def _matrix(value: Any) -> Tensor:
    """A number or tensor with at least two dims."""
    tensor = torch.as_tensor(value, device="cpu")
    return tensor.reshape((1,) * (2 - tensor.dim()) + tuple(tensor.shape)) if tensor.dim() < 2 else tensor


_MIRRORED = {"le": "ge", "lt": "gt", "ge": "le", "gt": "lt", "eq": "eq"}


def _comparison(name: str) -> Callable[[fx.Node, list[Any]], Band | None]:
    def rule(node: fx.Node, values: list[Any]) -> Band | None:
        left, right = values
        if isinstance(right, _Difference):
            left, right, relation = right, left, _MIRRORED[name]
        else:
            relation = name
        if isinstance(left, _Difference):
            return _bounded(left, relation, right)
        if isinstance(left, Band) or isinstance(right, Band):
            return None
        if (parts := _parts(node, [left, right])) is not None:
            return _compared(parts[1], _MIRRORED[relation], parts[0])
        if (parts := _parts(node, [right, left])) is not None:
            return _compared(parts[1], relation, parts[0])
        return None

    return rule


def _compared(column_K: Tensor, relation: str, row_Q: Tensor) -> Band | None:
    """The band of ``column_K[k] relation row_Q[q]``; the column must ascend."""
    if column_K.dtype == torch.bool or not bool((column_K[1:] >= column_K[:-1]).all()):
        return None
    dtype = torch.promote_types(column_K.dtype, row_Q.dtype)
    column_K, row_Q = column_K.to(dtype).contiguous(), row_Q.to(dtype).contiguous()
    keys = len(column_K)
    below = torch.searchsorted(column_K, row_Q)  # how many keys lie below
    upto = torch.searchsorted(column_K, row_Q, right=True)
    first, end = {
        "le": (0, upto), "lt": (0, below), "ge": (below, keys), "gt": (upto, keys), "eq": (below, upto),
    }[relation]  # fmt: skip
    return Band(_for_each(first, len(row_Q)), _for_each(end, len(row_Q)), keys)


def _for_each(bound: int | Tensor, queries: int) -> Tensor:
    return torch.as_tensor(bound, device="cpu").expand(queries)


def _bounded(difference: _Difference, relation: str, bound: Any) -> Band | None:
    """The band of ``column_K[k] + row_Q[q] relation bound``."""
    if not isinstance(bound, int | float) and not (isinstance(bound, Tensor) and bound.numel() == 1):
        return None
    column_K, row_Q, flip = difference.column_K, difference.row_Q, False
    if len(column_K) > 1 and bool(column_K[1] < column_K[0]):
        column_K, row_Q, flip = -column_K, -row_Q, True
    limit = torch.as_tensor(bound, device="cpu").reshape(())
    if not difference.absolute:
        return _compared(
            column_K, _MIRRORED[relation] if flip else relation, (-limit if flip else limit) - row_Q
        )
    if relation not in ("le", "lt"):
        return None
    upper = _compared(column_K, relation, limit - row_Q)
    lower = _compared(column_K, _MIRRORED[relation], -limit - row_Q)
    return None if upper is None or lower is None else _intersection(upper, lower)


def _sum(node: fx.Node, values: list[Any]) -> _Difference | None:
    sign = -1 if node.target is _aten.sub.Tensor else 1
    left, right = values
    if node.kwargs or not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return None
    if (parts := _parts(node, [left, right])) is not None:
        return _Difference(parts[0], sign * parts[1])
    if (parts := _parts(node, [right, left])) is not None:
        return _Difference(sign * parts[0], parts[1])
    return None


def _absolute(node: fx.Node, values: list[Any]) -> _Difference | None:
    value = values[0]
    return _Difference(value.row_Q, value.column_K, True) if isinstance(value, _Difference) else None


def _intersection(a: Band, b: Band) -> Band:
    first = torch.maximum(a.first_Q, b.first_Q)
    return Band(first, torch.maximum(first, torch.minimum(a.end_Q, b.end_Q)), a.keys)


def _wide(node: fx.Node, value: Any) -> Band | None:
    """A Band of the node's own rows, from a Band or from a boolean tensor that broadcasts to it."""
    queries, keys = node.meta["val"].shape[-2:]
    if isinstance(value, Tensor) and value.dtype == torch.bool:
        value = _band_of_matrix(_matrix(value))
    if not isinstance(value, Band):
        return None
    if value.keys == 1 and keys > 1:  # each row all or nothing
        value = Band(value.first_Q * keys, value.end_Q * keys, keys)
    if len(value.first_Q) == 1:
        value = Band(value.first_Q.expand(queries), value.end_Q.expand(queries), keys)
    return value if (len(value.first_Q), value.keys) == (queries, keys) else None


def _and(node: fx.Node, values: list[Any]) -> Band | None:
    a, b = (_wide(node, value) for value in values)
    return None if a is None or b is None else _intersection(a, b)


def _or(node: fx.Node, values: list[Any]) -> Band | None:
    """The union, where the two runs of every row touch."""
    a, b = (_wide(node, value) for value in values)
    if a is None or b is None:
        return None
    empty_a, empty_b = a.first_Q == a.end_Q, b.first_Q == b.end_Q
    touch = (a.first_Q <= b.end_Q) & (b.first_Q <= a.end_Q)
    if not bool((touch | empty_a | empty_b).all()):
        return None
    first = torch.where(
        empty_a, b.first_Q, torch.where(empty_b, a.first_Q, torch.minimum(a.first_Q, b.first_Q))
    )
    end = torch.where(empty_a, b.end_Q, torch.where(empty_b, a.end_Q, torch.maximum(a.end_Q, b.end_Q)))
    return Band(first, end, a.keys)


def _not(node: fx.Node, values: list[Any]) -> Band | None:
    """The complement, where it is one run: before or after."""
    band = values[0]
    if not isinstance(band, Band):
        return None
    if bool((band.first_Q == 0).all()):
        return Band(band.end_Q, torch.full_like(band.end_Q, band.keys), band.keys)
    if bool((band.end_Q == band.keys).all()):
        return Band(torch.zeros_like(band.first_Q), band.first_Q, band.keys)
    return None


def _triangle(node: fx.Node, values: list[Any]) -> Band | None:
    band, diagonal = values[0], values[1] if len(values) > 1 else argument(node, 1, "diagonal", 0)
    if not isinstance(band, Band):
        return None
    edge = _positions(len(band.first_Q)) + diagonal
    first, end = (0, edge + 1) if node.target is _aten.tril.default else (edge, band.keys)
    first, end = (_for_each(bound, len(edge)).clamp(0, band.keys) for bound in (first, end))
    return _intersection(band, Band(first, end, band.keys))


def _filled(node: fx.Node, values: list[Any]) -> Band | None:
    """``ones``, ``full`` and their like."""
    if node.meta["val"].dtype != torch.bool:
        return None
    name = str(node.target)
    if "full" in name:
        value = bool(argument(node, 2 if "new" in name else 1, "fill_value", False))
    else:
        value = "ones" in name
    queries, keys = node.meta["val"].shape[-2:]
    first = torch.zeros(queries, dtype=torch.int64, device="cpu")
    return Band(first, first + (keys if value else 0), keys)


def _same_matrix(node: fx.Node, values: list[Any]) -> Any:
    """Views and copies that leave the last two dims as they are."""
    source, value = node.args[0], node.meta["val"]
    assert isinstance(source, fx.Node)
    before = source.meta["val"]
    if node.target is _aten.select.int and values[1] % before.dim() >= before.dim() - 2:
        return None
    kept = before.shape[-2:] == value.shape[-2:] and (
        isinstance(values[0], Band) if value.dtype == torch.bool else isinstance(values[0], _Difference)
    )
    return values[0] if kept else None


_RULES: dict[Any, Callable[[fx.Node, list[Any]], Any]] = {
    **{getattr(_aten, name).Tensor: _comparison(name) for name in _MIRRORED},
    **{getattr(_aten, name).Scalar: _comparison(name) for name in _MIRRORED},
    **dict.fromkeys((_aten.add.Tensor, _aten.sub.Tensor), _sum),
    _aten.abs.default: _absolute,
    _aten.expand.default: lambda node, values: _wide(node, values[0]),
    **dict.fromkeys((_aten.bitwise_and.Tensor, _aten.logical_and.default, _aten.__and__.Tensor, _aten.mul.Tensor), _and),
    **dict.fromkeys((_aten.bitwise_or.Tensor, _aten.logical_or.default, _aten.__or__.Tensor), _or),
    **dict.fromkeys((_aten.bitwise_not.default, _aten.logical_not.default), _not),
    **dict.fromkeys((_aten.tril.default, _aten.triu.default), _triangle),
    **dict.fromkeys(
        (_aten.ones.default, _aten.zeros.default, _aten.full.default, _aten.ones_like.default, _aten.zeros_like.default,
         _aten.full_like.default, _aten.new_ones.default, _aten.new_zeros.default, _aten.new_full.default),
        _filled,
    ),
    **dict.fromkeys(
        (_aten.view.default, _aten.reshape.default, _aten.unsqueeze.default, _aten.squeeze.dim,
         _aten.clone.default, _aten.alias.default, _aten.contiguous.default, _aten.slice.Tensor, _aten.to.dtype,
         _aten.to.device, _aten._to_copy.default, _aten.repeat.default, _aten.select.int, _aten.detach.default),
        _same_matrix,
    ),
}  # fmt: skip

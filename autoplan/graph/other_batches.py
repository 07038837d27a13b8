"""Does forward do the same to each sample, whatever the size of the batch?

The exported graph is of one batch size, so it does not show that a number in it was that size, nor which of two equal
dims holds the samples. Here forward runs twice more under fake tensors, which costs little, with batches of two other
sizes, and the two runs are compared op by op. A dim whose size differs holds the samples; a number that differs
depends on how many they are. Samples meet where

- the runs take different ways, or one of them fails: the batch has a size of its own;
- a number that is no size differs: ``x / x.shape[0]``;
- a tensor that numbers the samples, such as ``arange(batch)``, is computed with, and not only used to pick each
  sample's own row;
- a view folds samples into one another, or takes one order of dims for another;
- samples in one order are paired with samples in another, or an op runs along them: ``flip``, ``cumsum``.

What reduces over the samples is found in the graph (``separable``), where the loss's own mean is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from autoplan.graph.places import calling_line

__all__ = ["SIZES", "Recorded", "compare", "how_samples_meet"]

SIZES = (5, 7)
"""Samples of the two batches: primes, which no fold of samples divides."""

_aten = torch.ops.aten
_VIEWS = {_aten.view, _aten._unsafe_view, _aten.reshape, _aten._reshape_copy}
_SIZED = _VIEWS | {
    _aten.expand, _aten.zeros, _aten.ones, _aten.empty, _aten.full, _aten.rand, _aten.randn, _aten.randint, _aten.new_zeros,
    _aten.new_ones, _aten.new_empty, _aten.new_full, _aten.new_empty_strided, _aten.empty_strided, _aten.as_strided, _aten.as_strided_,
    _aten.slice, _aten.split, _aten.split_with_sizes, _aten.repeat, _aten.narrow, _aten.slice_backward, _aten.unfold,
    _aten.repeat_interleave, _aten.native_group_norm, _aten.select_backward, _aten.resize_, _aten._sparse_coo_tensor_with_dims,
}  # fmt: skip
"""Ops whose numbers are sizes."""
_FILLS = {_aten.full, _aten.new_full}
_NUMBERING = {_aten.arange, _aten.linspace, _aten.eye, _aten.tril_indices, _aten.triu_indices, _aten.randperm}
_PICKS = {
    _aten.index,
    _aten.gather,
    _aten.index_select,
    _aten.take_along_dim,
    _aten.index_put,
    _aten._unsafe_index,
}
_SORTS = {_aten.sort, _aten.argsort, _aten.topk}
_PUTS = {_aten.index_put, _aten.index_put_, _aten._unsafe_index_put}
_SHAPES = _VIEWS | {_aten.expand, _aten.unsqueeze, _aten.squeeze, _aten._to_copy, _aten.clone, _aten.alias, _aten.detach,
                    _aten.permute, _aten.transpose, _aten.lift_fresh, _aten.lift_fresh_copy}  # fmt: skip
_UNIFORM = {
    _aten.zeros, _aten.ones, _aten.full, _aten.empty, _aten.zeros_like, _aten.ones_like, _aten.full_like, _aten.empty_like,
    _aten.new_zeros, _aten.new_ones, _aten.new_full, _aten.new_empty, _aten.rand, _aten.randn, _aten.rand_like,
    _aten.randn_like, _aten.bernoulli, _aten.new_empty_strided, _aten.empty_strided, _aten.randint, _aten.fill,
}  # fmt: skip
"""Ops that make each sample's part alike, in number or in distribution."""
_ALONG: dict[Any, int] = {_aten.flip: 1, _aten.roll: 2, _aten.cumsum: 1, _aten.cumprod: 1, _aten.cummax: 1, _aten.cummin: 1,
                          _aten.logcumsumexp: 1}  # fmt: skip
"""Ops that run along a dim, and which argument names it."""


@dataclass(frozen=True, slots=True)
class _Call:
    op: Any
    tensors: tuple[int, ...]  # numbers of the tensors that it is given
    given: tuple[Any, ...]  # its arguments, flat, with None for the tensors
    scalars: tuple[Any, ...]  # those that stand in no list
    made: tuple[int, ...]
    line: str  # where the model calls it, as `` at file:line``


class Recorded(TorchDispatchMode):
    """While on, notes each op, the numbers that it is given, and the shapes of its tensors."""

    def __init__(self, batch: Sequence[Tensor]) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.shapes: list[tuple[int, ...]] = []
        self.floating: list[bool] = []
        self._held: list[Tensor] = []  # an id must stay its own
        self._numbers: dict[int, int] = {}
        self.batch = [self._number(tensor) for tensor in batch]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = tuple(self._number(leaf) for leaf in leaves if isinstance(leaf, Tensor))
        given = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        made = func(*args, **kwargs)
        results = tuple(self._number(leaf) for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor))
        scalars = tuple(arg for arg in (*args, *kwargs.values()) if isinstance(arg, int | float))
        self.calls.append(_Call(func._overloadpacket, tensors, given, scalars, results, calling_line()))
        return made

    def _number(self, tensor: Tensor) -> int:
        number = self._numbers.setdefault(id(tensor), len(self._held))
        if number == len(self._held):
            self._held.append(tensor)
            self.shapes.append(tuple(int(n) for n in tensor.shape))
            self.floating.append(tensor.is_floating_point())
        return number


def compare(first: Recorded, second: Recorded) -> str | None:
    """Why samples meet, or None. ``first`` and ``second`` are runs of ``SIZES`` samples."""
    if [call.op for call in first.calls] != [call.op for call in second.calls]:
        return "forward runs other ops for another size of the batch"
    walk = _Walk(first, second)
    for one, two in zip(first.calls, second.calls, strict=True):
        reason = walk.step(one, two)
        if reason is not None:
            return f"{reason}: {one.op}{one.line}"
    return None


@dataclass(frozen=True, slots=True)
class _Held:
    """The dim that holds the samples: ``outer`` × samples × ``inner``."""

    dim: int
    outer: int
    inner: int


class _Walk:
    def __init__(self, first: Recorded, second: Recorded) -> None:
        self.one = first
        self.two = second
        self.held: dict[int, _Held] = {}
        self.numbering: set[int] = set()
        self.in_order: set[int] = set()
        for number in first.batch:
            if first.shapes[number]:
                self.held[number] = _Held(0, 1, 1)

    def step(self, one: _Call, two: _Call) -> str | None:
        """Follow one op; why samples meet in it, or None."""
        if one.tensors != two.tensors or one.made != two.made:
            return "other tensors are used for another size of the batch"
        differing = [(a, b) for a, b in zip(one.given, two.given, strict=True) if a != b]
        numbers = one.op in _NUMBERING and bool(differing)
        if differing and not numbers:
            scaled = all(isinstance(a, int) and _is_scaled(a, b) for a, b in differing)
            if one.op not in _SIZED or not scaled or (one.op in _FILLS and one.scalars != two.scalars):
                return "a number that depends on the size of the batch"
        if numbers:
            self.numbering.update(one.made)
            if one.op is _aten.arange and one.given[0] in (0, SIZES[0]) and SIZES[0] in one.given[:2]:
                self.in_order.update(one.made)
            return None
        return self._numbered(one) or self._along(one) or self._place(one)

    def _numbered(self, call: _Call) -> str | None:
        """Follow tensors that number the samples."""
        used = [n for n in call.tensors if n in self.numbering]
        if not used or call.op in _SORTS:
            return None
        if call.op in _PUTS and used == [call.tensors[-1]]:
            return None  # numbers put where the data say: the inverse of a permutation, as a sort of it gives
        if call.op in _PICKS:
            source, *indices = call.tensors
            ordered = all(n in self.in_order for n in indices if n in self.numbering)
            if source in self.numbering or (ordered and self._scaled_dims(source)):
                return None
            return "rows picked by the number of the sample"
        others = [n for n in call.tensors if n not in self.numbering]
        if any(self.one.floating[n] for n in call.made) and any(n in self.held for n in others):
            return "the number of the sample is computed with"
        grown = [n for n in call.made if self._scaled_dims(n)]
        self.numbering.update(grown)
        if call.op in _SHAPES and used[0] in self.in_order:
            self.in_order.update(grown)
        return None

    def _along(self, call: _Call) -> str | None:
        position = _ALONG.get(call.op)
        held = self.held.get(call.tensors[0]) if call.tensors else None
        if position is None or held is None or not self.one.floating[call.tensors[0]]:
            return None
        rank = len(self.one.shapes[call.tensors[0]])
        dims = [given for given in call.given[1:] if isinstance(given, int)]
        dims = dims[len(dims) // 2 :] if call.op is _aten.roll else dims
        return "it runs along the batch" if held.dim in {dim % rank for dim in dims} else None

    def _place(self, call: _Call) -> str | None:
        """Follow the dim of the samples."""
        if call.op in _UNIFORM:
            return None
        sources = [self.held[n] for n in call.tensors if n in self.held]
        for made in call.made:
            dims = self._scaled_dims(made)
            if dims is None:
                return "samples that are folded into one another, or left out"
            if len(dims) != 1 or not sources:
                continue
            if call.op in _VIEWS:
                held = self._viewed(call.tensors[0], made, dims[0])
            else:
                held = self._kept(sources, made, dims[0])
            if isinstance(held, str):
                return held
            if held is not None:
                self.held[made] = held
        return None

    def _viewed(self, source: int, made: int, dim: int) -> _Held | str | None:
        held = self.held.get(source)
        if held is None:
            return None
        shape, result = self.one.shapes[source], self.one.shapes[made]
        outer, over = divmod(math.prod(shape[: held.dim]) * held.outer, math.prod(result[:dim]) or 1)
        inner, rest = divmod(held.inner * math.prod(shape[held.dim + 1 :]), math.prod(result[dim + 1 :]) or 1)
        if over or rest or outer * inner * SIZES[0] != result[dim]:
            return "a view that mixes samples"
        return _Held(dim, outer, inner)

    def _kept(self, sources: list[_Held], made: int, dim: int) -> _Held | str | None:
        size = self.one.shapes[made][dim]
        orders = {(held.outer, held.inner) for held in sources if held.outer * held.inner * SIZES[0] == size}
        if len(orders) > 1:
            return "samples in one order, paired with samples in another"
        return _Held(dim, *orders.pop()) if orders else None

    def _scaled_dims(self, number: int) -> list[int] | None:
        """The dims whose size goes with the batch's; None if one goes with it in another way."""
        pairs = list(zip(self.one.shapes[number], self.two.shapes[number], strict=True))
        if any(a != b and not _is_scaled(a, b) for a, b in pairs):
            return None
        return [dim for dim, (a, b) in enumerate(pairs) if a != b]


def _is_scaled(a: Any, b: Any) -> bool:
    """Whether two numbers are to each other as the sizes of the batches, or their squares."""
    one, two = SIZES
    return isinstance(b, int) and (a * two == b * one or a * two * two == b * one * one)


def how_samples_meet(run: Callable[[int], Recorded], samples: int) -> str | None:
    """Why samples meet, or None if they do not, or if forward does not run at all.

    Args:
        run: runs forward under fake tensors with so many samples.
        samples: how many it was exported with.
    """
    try:
        first, second = (run(size) for size in SIZES)
    except Exception as error:
        reason = f"a batch of another size does not run: {' '.join(str(error).split())[:200]}"
    else:
        return compare(first, second)
    try:
        run(samples)
    except Exception:
        return None  # it runs where it is exported only, so there is nothing to compare
    return reason

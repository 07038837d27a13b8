"""Changing the layout of a tensor on one mesh axis, with the gradient moving the other way.

``convert`` is the only communication that a rewritten graph contains, apart from the kernels in
``kernels.py``. Forward, it moves the value from one layout to the other; backward, it moves the gradient
from the second layout's gradient form to the first's. (The functional collectives' own backward is not
that: the gradient of their all-reduce is another all-reduce, which would count a replicated loss once
for every rank.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as fc
from torch import Tensor

from autoplan.graph.layout import Layout, LayoutKind

__all__ = ["convert", "group_of", "move", "shard_of", "zigzag_order"]

# torch 2.13 renamed these two; 2.11 has only the old names.
_gather_rows = getattr(fc, "all_gather_single", None) or fc.all_gather_tensor
_scatter_rows = getattr(fc, "reduce_scatter_single", None) or fc.reduce_scatter_tensor

_R, _S, _P = LayoutKind.REPLICATE, LayoutKind.SHARD, LayoutKind.PARTIAL


def convert(
    value: Any, src: str | Sequence[str], dst: str | Sequence[str], group: str, zigzag: bool = False
) -> Any:
    """Change ``value`` (a local tensor, or a list of them) from layout ``src`` to ``dst`` on a process group.

    Of a list, every tensor has these layouts, or the one at its own place. ``zigzag``: of what is cut among n ranks
    in 2n pieces, rank r has the r-th and the r-th from the end.
    """
    if isinstance(value, tuple | list):
        count = len(value)
        before, after = ((side,) * count if isinstance(side, str) else side for side in (src, dst))
        return [convert(*moved, group, zigzag) for moved in zip(value, before, after, strict=True)]
    assert isinstance(src, str) and isinstance(dst, str)
    if value.requires_grad:
        return _Convert.apply(value, src, dst, group, zigzag)
    return move(value, _parse(src), _parse(dst), group, gradient=False, zigzag=zigzag)


@cache
def _parse(text: str) -> Layout:
    return Layout.parse(text)


@cache
def group_of(name: str) -> dist.ProcessGroup:
    """The process group of a name, as graphs carry it."""
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


class _Convert(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, src: str, dst: str, group: str, zigzag: bool) -> Tensor:
        ctx.layouts = _parse(src), _parse(dst)
        ctx.group, ctx.zigzag = group, zigzag
        moved = move(value, *ctx.layouts, group, gradient=False, zigzag=zigzag)
        return moved.view_as(moved) if moved is value else moved

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        src, dst = ctx.layouts
        moved = move(grads[0], dst, src, ctx.group, gradient=True, zigzag=ctx.zigzag)
        return moved, None, None, None, None


def move(value: Tensor, src: Layout, dst: Layout, group: str, gradient: bool, zigzag: bool = False) -> Tensor:
    """Move a value (or, with ``gradient``, a gradient) that lies as ``src`` says to where ``dst`` says."""
    here = src.gradient_kind if gradient else src.value_kind
    there = dst.gradient_kind if gradient else dst.value_kind
    if here is there and (here is not _S or (src.dim, src.parts) == (dst.dim, dst.parts)):
        return value
    if value.is_complex():  # which collectives do not know: a last dim of two numbers
        pairs = torch.view_as_real(value.resolve_conj())
        return torch.view_as_complex(move(pairs, src, dst, group, gradient, zigzag).contiguous())
    process_group = group_of(group)
    if zigzag:
        return _zigzag_move(value, src, dst, here, there, process_group)
    return _move(value, src, dst, here, there, process_group)


def _zigzag_move(
    value: Tensor, src: Layout, dst: Layout, here: LayoutKind, there: LayoutKind, group: dist.ProcessGroup
) -> Tensor:
    """A plain move between whole tensors whose pieces stand in the order in which ranks hold them."""
    size = group.size()
    if here is there is _S and src.dim == dst.dim:
        whole = _zigzag_move(value, src, dst, _S, _R, group)
        return _zigzag_move(whole, src, dst, _R, _S, group)
    if there is _S:
        value = _permuted(value, dst, size, zigzag_order(size))
    value = _move(value, src, dst, here, there, group)
    if here is _S:
        order = zigzag_order(size)
        value = _permuted(value, src, size, [order.index(piece) for piece in range(2 * size)])
    return value


def zigzag_order(size: int) -> list[int]:
    """Of 2 · size pieces, those of rank 0, of rank 1, …: r and 2 · size - 1 - r."""
    return [piece for rank in range(size) for piece in (rank, 2 * size - 1 - rank)]


def _permuted(value: Tensor, layout: Layout, size: int, order: list[int]) -> Tensor:
    """``value``, whole, with the 2 · size pieces of the cut dim (of each part of it) in another order."""
    length = value.shape[layout.dim] // (layout.parts * 2 * size)
    pieces = value.unflatten(layout.dim, (layout.parts, 2 * size, length))
    taken = pieces.index_select(layout.dim + 1, torch.tensor(order, device=value.device))
    return taken.flatten(layout.dim, layout.dim + 2)


def _move(
    value: Tensor,
    src: Layout,
    dst: Layout,
    here: LayoutKind,
    there: LayoutKind,
    process_group: dist.ProcessGroup,
) -> Tensor:
    if here is _R and there is _S:
        piece = shard_of(value, dst, process_group.size(), process_group.rank())
        same = piece.untyped_storage()._cdata == value.untyped_storage()._cdata
        return piece.clone() if same else piece  # a view would keep the whole alive
    if there is _P:
        return _mask(value, src, here, process_group)
    if here is _P and there is _R:
        return fc.wait_tensor(fc.all_reduce(value.contiguous(), "sum", process_group))
    if here is _P:
        return _reduce_scatter(value, dst, process_group)
    if there is _R:
        return _all_gather(value, src, process_group)
    return _all_to_all(value, src, dst, process_group)


def shard_of(value: Tensor, layout: Layout, size: int, rank: int) -> Tensor:
    """The piece of a whole tensor that ``rank`` of ``size`` holds under a shard layout, contiguous."""
    pieces = _split(value, layout, size)
    return pieces.select(layout.dim + 1, rank).flatten(layout.dim, layout.dim + 1).contiguous()


def _split(value: Tensor, layout: Layout, size: int) -> Tensor:
    """(… d …) → (… parts, size, d / (parts · size) …)."""
    return value.unflatten(layout.dim, (layout.parts, size, value.shape[layout.dim] // (layout.parts * size)))


def _mask(value: Tensor, src: Layout, here: LayoutKind, group: dist.ProcessGroup) -> Tensor:
    """A partial sum that adds up to ``value``: rank 0 keeps a whole tensor, a shard is put in its place."""
    if here is _R:
        return value if group.rank() == 0 else torch.zeros_like(value)
    size = group.size()
    shape = list(value.shape)
    shape[src.dim] *= size
    whole = value.new_zeros(shape)
    place = _split(whole, src, size).select(src.dim + 1, group.rank())
    place.copy_(value.unflatten(src.dim, (src.parts, -1)))
    return whole


def _reduce_scatter(value: Tensor, dst: Layout, group: dist.ProcessGroup) -> Tensor:
    size = group.size()
    rows = _split(value, dst, size).movedim(dst.dim + 1, 0).contiguous()  # (size, …, parts, d', …)
    mine = fc.wait_tensor(_scatter_rows(rows.flatten(0, 1), "sum", 0, group))
    return mine.view(rows.shape[1:]).flatten(dst.dim, dst.dim + 1)


def _all_gather(value: Tensor, src: Layout, group: dist.ProcessGroup) -> Tensor:
    size = group.size()
    mine = value.unflatten(src.dim, (src.parts, -1)).contiguous()
    rows = fc.wait_tensor(_gather_rows(mine.unsqueeze(0).contiguous(), 0, group))
    return rows.view(size, *mine.shape).movedim(0, src.dim + 1).flatten(src.dim, src.dim + 2)


def _all_to_all(value: Tensor, src: Layout, dst: Layout, group: dist.ProcessGroup) -> Tensor:
    """Cut along ``dst``, trade pieces, and join along ``src``; a change of parts within one dim gathers first."""
    size = group.size()
    if src.dim == dst.dim:
        return shard_of(_all_gather(value, src, group), dst, size, group.rank())
    cut = _split(value, dst, size).movedim(dst.dim + 1, 0).flatten(dst.dim + 1, dst.dim + 2).contiguous()
    rows = fc.wait_tensor(fc.all_to_all_single(cut.flatten(), None, None, group)).view(
        cut.shape
    )  # (size, local…)
    pieces = rows.unflatten(src.dim + 1, (src.parts, -1))  # (size, …, parts, d', …)
    return pieces.movedim(0, src.dim + 1).flatten(src.dim, src.dim + 2)

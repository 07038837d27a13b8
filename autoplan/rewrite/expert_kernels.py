"""Rows on their way to their experts' ranks and back, as many as there are.

Suffixes: P rows of this rank's tokens, sorted by expert; Q rows of this rank's experts, from all ranks; E experts
in all, n ranks, each of E / n consecutive experts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed._functional_collectives as fc
from torch import Tensor

from autoplan.graph.mesh_calls import ExpertCall
from autoplan.rewrite.move import group_of

__all__ = ["expert_call", "own_share", "rows_back", "rows_counted", "rows_ended", "rows_there"]


def expert_call(call: ExpertCall, args: Any, group: str) -> tuple[Any, Any, Any]:
    """(function, args, kwargs) of a step of the exchange on the process group of the experts' axis."""
    if call.step == "counts":
        return rows_counted, (*args, call.degree, group), {}
    if call.step == "ends":
        return rows_ended, args, {}
    if call.step == "there":
        return rows_there, (*args, group), {}
    return rows_back, (*args, call.rows, group), {}


def rows_counted(end_E: Tensor, ranks: int, group: str) -> Tensor:
    """(2, n, E / n) on the host: the rows that this rank sends to each expert of each rank, and those that each rank
    sends to each of its own. ``end_E``: where each expert's rows end."""
    count_E = torch.diff(end_E.to(torch.int64), prepend=end_E.new_zeros(1, dtype=torch.int64))
    came_E = fc.wait_tensor(fc.all_to_all_single(count_E, None, None, group_of(group)))
    return torch.stack([count_E, came_E]).view(2, ranks, -1).cpu()


def rows_ended(counts: Tensor, end_E: Tensor) -> Tensor:
    """(E / n): where the rows of each of this rank's experts end."""
    return counts[1].sum(0).cumsum(0).to(end_E)


def rows_there(x_PD: Tensor, counts: Tensor, group: str) -> Tensor:
    """(Q, ...): the rows of this rank's experts, one expert's after another's, each in the order of ranks."""
    if x_PD.requires_grad:
        return _Exchange.apply(x_PD, counts, x_PD.shape[0], group, True)
    return _there(x_PD, counts, group)


def rows_back(y_QD: Tensor, counts: Tensor, rows: int, group: str) -> Tensor:
    """(P, ...): this rank's rows, of which there are ``rows``, again; zeros for those of no expert, which come last."""
    if y_QD.requires_grad:
        return _Exchange.apply(y_QD, counts, rows, group, False)
    return _back(y_QD, counts, rows, group)


def own_share(weight: Tensor, ranks: int) -> Tensor:
    """The weight of a rank's experts as it is, with an n-th of its gradient.

    It sums up the rows of n data ranks, and the data axes, which divide by all data ranks, reduce it over an n-th
    of them.
    """
    return _Share.apply(weight, ranks) if weight.requires_grad else weight


class _Exchange(torch.autograd.Function):
    """There forward and back backward, or the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Tensor, rows: int, group: str, there: bool) -> Tensor:
        ctx.counts, ctx.rows, ctx.group, ctx.there = counts, rows, group, there
        return _there(x, counts, group) if there else _back(x, counts, rows, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        if ctx.there:
            return _back(grad, ctx.counts, ctx.rows, ctx.group), None, None, None, None
        return _there(grad, ctx.counts, ctx.group), None, None, None, None


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] / ctx.ranks, None


def _there(x: Tensor, counts: Tensor, group: str) -> Tensor:
    send, come = counts.sum(2).tolist()
    got = fc.wait_tensor(fc.all_to_all_single(x[: sum(send)].contiguous(), come, send, group_of(group)))
    return _joined(got, counts[1])


def _back(y: Tensor, counts: Tensor, rows: int, group: str) -> Tensor:
    send, come = counts.sum(2).tolist()
    by_rank = _joined(y, counts[1].t())
    x = fc.wait_tensor(fc.all_to_all_single(by_rank, send, come, group_of(group)))
    return torch.cat([x, x.new_zeros(rows - x.shape[0], *x.shape[1:])]) if x.shape[0] < rows else x


def _joined(x: Tensor, counts: Tensor) -> Tensor:
    """Of rows in runs of ``counts`` (a, b), one row of runs after another, those one column after another."""
    a, b = counts.shape
    runs = x.split(counts.flatten().tolist())
    return (
        torch.cat([runs[i * b + j] for j in range(b) for i in range(a)])
        if a > 1 and b > 1
        else x.contiguous()
    )

"""Attention and loss over a sequence that is cut among ranks.

A rank has the queries, keys and values of its part of the sequence, and its queries meet the keys of all parts. Either
all keys are gathered (Megatron's and Llama 3's way), or they go round the ranks as in a ring, one part at a time,
while the part at hand is worked on (Liu et al., 2023):

    step   rank 0   rank 1   rank 2          a part's gradients follow it round, and come home
      0     k0       k1       k2             with what every rank added
      1     k2       k0       k1
      2     k1       k2       k0

Under a causal mask a rank whose part comes first has little to do. In zigzag order rank r of n has, of 2n pieces, the
r-th and the r-th from the end; every rank then has as much to do as any other (Brandon et al., 2023; Llama 3, 2024).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed._functional_collectives as fc
import torch.nn.functional as F
from torch import Tensor

from autoplan.graph.layout import REPLICATE, REPLICATE_STAR, Layout, shard
from autoplan.rewrite.attention_parts import attend, attend_backward, merge, wide_dtype
from autoplan.rewrite.kernels import vocab_cross_entropy
from autoplan.rewrite.move import group_of, move

__all__ = ["gathered_attention", "ring_attention", "token_cross_entropy"]

_SUM = 2
_Region = tuple[int, int, int]  # queries from the first number on meet the keys from the second to the third


def gathered_attention(
    q: Tensor, k: Tensor, v: Tensor, group: str, scale: float | None = None, zigzag: bool = False
) -> Tensor:
    """Causal attention of this rank's part of a sequence: (… heads, s / n, d) each, ``k`` and ``v`` perhaps of fewer
    heads that queries share in groups; returns (… heads, s / n, e).

    Keys and values are gathered for the forward pass and once more for the backward pass; a rank keeps its own.
    """
    return _GatheredAttention.apply(
        q, k, v, group, scale if scale is not None else q.shape[-1] ** -0.5, zigzag
    )


def ring_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    group: str,
    scale: float | None = None,
    causal: bool = True,
    zigzag: bool = False,
) -> Tensor:
    """The same with keys and values that go round the ranks; with ``causal`` False every query sees every key."""
    scale = scale if scale is not None else q.shape[-1] ** -0.5
    return _RingAttention.apply(q, k, v, group, scale, causal, zigzag)


class _GatheredAttention(torch.autograd.Function):
    """The rank's queries meet all keys before its part, and those of its part up to their own."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: str, scale: float, zigzag: bool) -> Tensor:
        q, k, v = (_dense(x) for x in (q, k, v))
        out, lse = attend(q, k, v, True, scale)
        out = out.to(wide_dtype(out))
        whole = _whole(k, group, zigzag), _whole(v, group, zigzag)
        for region in _gathered_regions(k, group, zigzag):
            _meet(out, lse, q, *whole, region, scale)
        ctx.save_for_backward(q, k, v, out.to(q.dtype), lse)
        ctx.group, ctx.scale, ctx.zigzag = group, scale, zigzag
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        grad, scale, group, zigzag = grads[0].contiguous(), ctx.scale, ctx.group, ctx.zigzag
        dq, dk, dv = attend_backward(grad, q, k, v, out, lse, True, scale)
        whole = _whole(k, group, zigzag), _whole(v, group, zigzag)
        all_dk, all_dv = (torch.zeros_like(x) for x in whole)
        for region in _gathered_regions(k, group, zigzag):
            first, start, stop = region
            more_q, more_k, more_v = _meet_backward(grad, q, *whole, out, lse, region, scale)
            dq[..., first:, :] += more_q
            all_dk[..., start:stop, :] += more_k
            all_dv[..., start:stop, :] += more_v
        dk, dv = dk + _summed(all_dk, group, zigzag), dv + _summed(all_dv, group, zigzag)
        return dq, dk, dv, None, None, None


class _RingAttention(torch.autograd.Function):
    """The rank's queries meet one rank's keys after another's."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: str, scale: float, causal: bool, zigzag: bool
    ) -> Tensor:
        q, k, v = (_dense(x) for x in (q, k, v))
        size, rank = group_of(group).size(), group_of(group).rank()
        held = _packed(k, v)
        coming = _pass_on(held, group)
        out, lse = attend(q, k, v, causal, scale)
        out = out.to(wide_dtype(out))
        for step in range(1, size):
            held = fc.wait_tensor(coming)
            coming = _pass_on(held, group) if step + 1 < size else held
            for region in _ring_regions(q, k, rank, (rank - step) % size, causal, zigzag):
                _meet(out, lse, q, *_unpacked(held, k, v), region, scale)
        ctx.save_for_backward(q, k, v, out.to(q.dtype), lse)
        ctx.group, ctx.scale, ctx.causal, ctx.zigzag = group, scale, causal, zigzag
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        grad, group, scale = grads[0].contiguous(), ctx.group, ctx.scale
        size, rank = group_of(group).size(), group_of(group).rank()
        held = _packed(k, v)
        dq = torch.zeros_like(q, dtype=wide_dtype(q))
        coming_grads = held  # nothing yet
        for step in range(size):
            coming = _pass_on(held, group) if step + 1 < size else held
            found: list[tuple[_Region, tuple[Tensor, ...]]] = []
            if step == 0:
                whole = 0, 0, k.shape[-2]
                found.append((whole, attend_backward(grad, q, k, v, out, lse, ctx.causal, scale)))
                total = torch.zeros_like(held, dtype=wide_dtype(k))
            else:
                for region in _ring_regions(q, k, rank, (rank - step) % size, ctx.causal, ctx.zigzag):
                    near = _unpacked(held, k, v)
                    found.append((region, _meet_backward(grad, q, *near, out, lse, region, scale)))
                total = fc.wait_tensor(coming_grads)
            dk, dv = _unpacked(total, k, v)
            for (first, start, stop), (more_q, more_k, more_v) in found:
                dq[..., first:, :] += more_q
                dk[..., start:stop, :] += more_k
                dv[..., start:stop, :] += more_v
            coming_grads = _pass_on(total, group)
            held = fc.wait_tensor(coming)
        dk, dv = _unpacked(fc.wait_tensor(coming_grads), k, v)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None, None


def _dense(x: Tensor) -> Tensor:
    """As the fused kernels ask."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _meet(out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, region: _Region, scale: float) -> None:
    """Add to ``out`` and ``lse`` what the region's queries get from its keys."""
    first, start, stop = region
    part = attend(q[..., first:, :], k[..., start:stop, :], v[..., start:stop, :], False, scale)
    merge(out[..., first:, :], lse[..., first:], *part)


def _meet_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, region: _Region, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the region's queries, keys and values."""
    first, start, stop = region
    grad, q, out = (x[..., first:, :].contiguous() for x in (grad, q, out))
    near = k[..., start:stop, :], v[..., start:stop, :]
    return attend_backward(grad, q, *near, out, lse[..., first:].contiguous(), False, scale)


def _whole(x: Tensor, group: str, zigzag: bool) -> Tensor:
    """All ranks' rows of ``x``."""
    cut: Layout = shard(x.dim() - 2)
    return move(x, cut, REPLICATE, group, gradient=False, zigzag=zigzag)


def _summed(grad: Tensor, group: str, zigzag: bool) -> Tensor:
    """The rank's rows of the sum of all ranks' gradients."""
    return move(grad, REPLICATE_STAR, shard(grad.dim() - 2), group, gradient=True, zigzag=zigzag)


def _gathered_regions(k: Tensor, group: str, zigzag: bool) -> list[_Region]:
    """Which of the rank's queries meet which keys of other ranks, as rows of the whole sequence."""
    rank, size, length = group_of(group).rank(), group_of(group).size(), k.shape[-2]
    if not zigzag:
        return [(0, 0, rank * length)] if rank else []
    piece = length // 2
    found = [(0, 0, rank * piece), (piece, (rank + 1) * piece, (2 * size - 1 - rank) * piece)]
    return [region for region in found if region[1] < region[2]]


def _ring_regions(q: Tensor, k: Tensor, rank: int, owner: int, causal: bool, zigzag: bool) -> list[_Region]:
    """Which of the queries of ``rank`` meet which keys of another rank, ``owner``, as rows of both parts."""
    rows, keys = q.shape[-2], k.shape[-2]
    if not causal:
        return [(0, 0, keys)]
    if not zigzag:
        return [(0, 0, keys)] if owner < rank else []
    return [(0, 0, keys // 2)] if owner < rank else [(rows // 2, 0, keys)]


def _packed(k: Tensor, v: Tensor) -> Tensor:
    """Both as one message."""
    return torch.cat((k.flatten(), v.flatten()))


def _unpacked(message: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Views of a message that is laid out as that of ``k`` and ``v``."""
    return message[: k.numel()].view(k.shape), message[k.numel() :].view(v.shape)


def _pass_on(message: Tensor, group: str) -> Tensor:
    """Start to send to the next rank, and to receive from the one before; ``wait_tensor`` gives what came."""
    process_group = group_of(group)
    size, rank = process_group.size(), process_group.rank()
    sent, got = [0] * size, [0] * size
    sent[(rank + 1) % size] = got[(rank - 1) % size] = message.numel()
    return fc.all_to_all_single(message, got, sent, process_group)


def token_cross_entropy(
    logits: Tensor,
    target: Tensor,
    group: str,
    ignore_index: int,
    label_smoothing: float,
    summed: bool,
    classes: str | None,
) -> Tensor:
    """What this rank's tokens add to the mean cross-entropy over the tokens that count on all ranks of ``group``.

    logits (t, v, …), target (t, …). ``summed``: add to the sum instead. ``classes`` names the group on which v is
    cut too, or is None.
    """
    if classes is None:
        loss = F.cross_entropy(
            logits, target, ignore_index=ignore_index, reduction="sum", label_smoothing=label_smoothing
        )
    else:
        loss = vocab_cross_entropy(logits, target, classes, ignore_index, _SUM, label_smoothing)
    if summed:
        return loss
    count = fc.wait_tensor(fc.all_reduce((target != ignore_index).sum(), "sum", group_of(group)))
    return loss / count

"""Attention and loss over a sequence that is cut among ranks."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed._functional_collectives as fc
import torch.nn.functional as F
from torch import Tensor

from autoplan.graph.layout import REPLICATE, REPLICATE_STAR, Layout, shard
from autoplan.rewrite.kernels import vocab_cross_entropy
from autoplan.rewrite.move import group_of, move

__all__ = ["gathered_attention", "token_cross_entropy"]

_aten = torch.ops.aten
_SUM = 2


def gathered_attention(q: Tensor, k: Tensor, v: Tensor, group: str, scale: float | None = None) -> Tensor:
    """Causal attention of this rank's range of a sequence: (… heads, s / n, d) each, ``k`` and ``v`` perhaps of fewer
    heads that queries share in groups; returns (… heads, s / n, e).

    Keys and values are gathered for the forward pass and once more for the backward pass; a rank keeps its own.
    """
    return _GatheredAttention.apply(q, k, v, group, scale if scale is not None else q.shape[-1] ** -0.5)


class _GatheredAttention(torch.autograd.Function):
    """The rank's queries meet all keys before its range, and those of its range up to their own."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: str, scale: float) -> Tensor:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))  # as the fused kernels ask
        past_k, past_v = _before(k, group), _before(v, group)
        groups = q.shape[-3] // k.shape[-3] if q.dim() > 2 else 1
        out, lse = _attend(q, _widen(k, groups), _widen(v, groups), True, scale)
        if past_k.shape[-2]:
            past, past_lse = _attend(q, _widen(past_k, groups), _widen(past_v, groups), False, scale)
            total = torch.logaddexp(lse, past_lse)
            share = (lse - total).exp().unsqueeze(-1).to(out.dtype)
            out = torch.lerp(past, out, share)
            lse = total
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.group, ctx.scale, ctx.groups = group, scale, groups
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, out, lse = ctx.saved_tensors
        grad, groups, scale = grads[0].contiguous(), ctx.groups, ctx.scale
        past_k, past_v = _before(k, ctx.group), _before(v, ctx.group)
        own = _attend_backward(grad, q, _widen(k, groups), _widen(v, groups), out, lse, True, scale)
        dq, dk, dv = own[0], _narrow(own[1], groups), _narrow(own[2], groups)
        whole = [_zeros(x, ctx.group) for x in (k, v)]
        rank, length = group_of(ctx.group).rank(), k.shape[-2]
        if past_k.shape[-2]:
            past = _attend_backward(
                grad, q, _widen(past_k, groups), _widen(past_v, groups), out, lse, False, scale
            )
            dq = dq + past[0]
            for total, part in zip(whole, past[1:], strict=True):
                total[..., : rank * length, :] = _narrow(part, groups)
        for total, part in zip(whole, (dk, dv), strict=True):
            total[..., rank * length : (rank + 1) * length, :] = part
        cut = shard(k.dim() - 2)
        dk, dv = (move(total, REPLICATE_STAR, cut, ctx.group, gradient=True) for total in whole)
        return dq, dk, dv, None, None


def _before(x: Tensor, group: str) -> Tensor:
    """All ranks' rows of ``x`` that come before this rank's."""
    cut: Layout = shard(x.dim() - 2)
    whole = move(x, cut, REPLICATE, group, gradient=False)
    return whole[..., : group_of(group).rank() * x.shape[-2], :]


def _zeros(x: Tensor, group: str) -> Tensor:
    return x.new_zeros(*x.shape[:-2], x.shape[-2] * group_of(group).size(), x.shape[-1])


def _widen(x: Tensor, groups: int) -> Tensor:
    """Each head once for every query head that shares it."""
    return x if groups == 1 else x.repeat_interleave(groups, -3)


def _narrow(grad: Tensor, groups: int) -> Tensor:
    return grad if groups == 1 else grad.unflatten(-3, (-1, groups)).sum(-3)


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attention, and the logarithm of each query's sum of exponentials, in float32 or wider."""
    if _fused(q, v):
        if q.is_cuda:
            out, lse, *_ = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
            return out, lse
        return _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    scores = _scores(q, k, causal, scale)
    return scores.softmax(-1).to(v.dtype) @ v, scores.logsumexp(-1)


def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v for these keys, given the output and the sums over all keys."""
    if _fused(q, v):
        if q.is_cuda:
            none = torch.empty(0, dtype=torch.int64, device=q.device)
            return _aten._scaled_dot_product_flash_attention_backward(
                grad,
                q,
                k,
                v,
                out,
                lse,
                None,
                None,
                q.shape[-2],
                k.shape[-2],
                0.0,
                causal,
                none,
                none,
                scale=scale,
            )
        return _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, causal, scale=scale
        )
    weights = (_scores(q, k, causal, scale) - lse.unsqueeze(-1)).exp()
    wide = grad.to(weights.dtype)
    dv = weights.transpose(-1, -2) @ wide
    own = (wide * out).sum(-1, keepdim=True)
    d_scores = weights * (wide @ v.to(weights.dtype).transpose(-1, -2) - own) * scale
    dq, dk = d_scores @ k.to(weights.dtype), d_scores.transpose(-1, -2) @ q.to(weights.dtype)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _fused(q: Tensor, v: Tensor) -> bool:
    """Whether torch's flash attention takes these tensors."""
    if q.dim() != 4 or q.shape[-1] != v.shape[-1]:
        return False
    return not q.is_cuda or (q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] % 8 == 0)


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * scale
    if not causal:
        return scores
    rows, columns = scores.shape[-2:]
    later = torch.ones(rows, columns, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(later, -math.inf)


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

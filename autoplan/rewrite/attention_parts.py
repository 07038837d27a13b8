"""Attention of some queries to some keys, in parts that add up to attention to all keys.

What is known of each query so far is its output over the keys that it has met, and the logarithm of its sum of
exponentials over them (Milakov and Gimelshein, 2018; Dao et al., 2022, section 3.1). Backward needs the output and
that logarithm over all keys, and then takes the keys in any parts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["attend", "attend_backward", "head_groups", "merge", "wide_dtype", "widen"]

_aten = torch.ops.aten


def wide_dtype(x: Tensor) -> torch.dtype:
    """What sums over parts are kept in: float32, or wider."""
    return torch.promote_types(x.dtype, torch.float32)


def merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Add what the queries got from further keys, in place."""
    total = torch.logaddexp(lse, part_lse)
    share = (part_lse - total).exp().unsqueeze(-1).to(out.dtype)
    out.lerp_(part.to(out.dtype), share)
    lse.copy_(total)


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attention, and the logarithm of each query's sum of exponentials, in float32 or wider.

    q (… heads, s, d), k (… heads / groups, t, d), v (… heads / groups, t, e). ``causal``: a query sees the keys up to
    its own place.
    """
    groups = head_groups(q, k)
    return _attend(q, widen(k, groups), widen(v, groups), causal, scale)


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v for these keys, given the output and the sums over all keys."""
    groups = head_groups(q, k)
    dq, dk, dv = _attend_backward(grad, q, widen(k, groups), widen(v, groups), out, lse, causal, scale)
    return dq, _narrow(dk, groups), _narrow(dv, groups)


def head_groups(q: Tensor, k: Tensor) -> int:
    """How many query heads share one of the keys'."""
    return q.shape[-3] // k.shape[-3] if q.dim() > 2 else 1


def widen(x: Tensor, groups: int) -> Tensor:
    """Each head once for every query head that shares it."""
    return x if groups == 1 else x.repeat_interleave(groups, -3)


def _narrow(grad: Tensor, groups: int) -> Tensor:
    return grad if groups == 1 else grad.unflatten(-3, (-1, groups)).sum(-3)


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
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
    wide = wide_dtype(q)
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * scale
    if not causal:
        return scores
    rows, columns = scores.shape[-2:]
    later = torch.ones(rows, columns, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(later, -math.inf)

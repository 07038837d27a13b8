"""What a GPU runs as one kernel where a CPU runs several.

The graph is run on fake CPU tensors to learn what each op reads, writes and keeps. Most ops are the same
kernels everywhere. Three are not, and for a GPU they are run here as its own kernels would:

    rms_norm    one kernel that reads x and writes y and one number a row, and keeps x and that number;
                a CPU makes the float32 copies and products that the formula spells out
    dropout     keeps a mask of one byte an element; a CPU keeps it in the dtype of x
    attention   flash attention in 16 bit without a mask, else memory-efficient attention (which takes a
                mask, and keeps it as numbers even if it is boolean); as matrix products where neither takes
                the sizes (keys shared by several heads together with a mask or in 32 bit). A CPU has a
                flash kernel too, but none with dropout or a mask that trains, for which it falls back to
                matrix products and keeps the (queries, keys) weights
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx

__all__ = ["DeviceKind", "kernel_of"]

DeviceKind = Literal["cpu", "cuda"]
"""Whose kernels an analysis is for: ``hardware.Device.kind``."""

_aten = torch.ops.aten
_FLASH_HEAD_SIZE = 256


def kernel_of(node: fx.Node, device: DeviceKind) -> Callable[..., Any]:
    """What ``device`` runs for the call ``node``: a function of the call's own arguments."""
    target: Any = node.target
    return _GPU[target] if device == "cuda" and target in _GPU else target


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    half = q.dtype in (torch.bfloat16, torch.float16)
    four = q.dim() == k.dim() == v.dim() == 4
    if four and attn_mask is None and half and q.shape[-1] == v.shape[-1] <= _FLASH_HEAD_SIZE:
        return _aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, False, scale=scale)[0]
    if four and q.shape[:2] == k.shape[:2] == v.shape[:2]:
        bias = None if attn_mask is None else _bias(attn_mask, q, k)
        return _aten._scaled_dot_product_efficient_attention(
            q, k, v, bias, True, dropout_p, is_causal, scale=scale
        )[0]
    return _aten._scaled_dot_product_attention_math(
        q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]


def _bias(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, float("-inf")).to(q.dtype)
    return mask.expand(*q.shape[:-1], k.shape[-2])


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    return _aten.native_dropout(x, p, train)[0] if train and p > 0 else _aten.dropout(x, p, train)


def _rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    return torch.ops.autoplan.rms_norm(x, list(normalized_shape), weight, eps)[0]


@torch.library.custom_op("autoplan::rms_norm", mutates_args=())
def _fused_rms_norm(
    x: Tensor, normalized_shape: list[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    """The norm of ``x``, and of each row one over the root of its mean square, in float32."""
    dims, wide = _last(normalized_shape), x.float()
    floor = torch.finfo(x.dtype).eps if eps is None else eps
    inverse = torch.rsqrt(wide.square().mean(dims, keepdim=True) + floor)
    y = wide * inverse
    return (y if weight is None else y * weight).to(x.dtype), inverse


@torch.library.custom_op("autoplan::rms_norm_backward", mutates_args=())
def _fused_rms_norm_backward(
    grad: Tensor, x: Tensor, inverse: Tensor, normalized_shape: list[int], weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of ``x`` and of the weight (empty without one)."""
    dims, wide, hat = _last(normalized_shape), grad.float(), x.float() * inverse
    rows = list(range(x.dim() - len(normalized_shape)))
    grad_weight = x.new_empty(0) if weight is None else (wide * hat).sum(rows).to(weight.dtype)
    wide = wide if weight is None else wide * weight
    grad_x = inverse * (wide - hat * (wide * hat).mean(dims, keepdim=True))
    return grad_x.to(x.dtype), grad_weight


@_fused_rms_norm.register_fake
def _(
    x: Tensor, normalized_shape: list[int], weight: Tensor | None, eps: float | None
) -> tuple[Tensor, Tensor]:
    rows = x.shape[: x.dim() - len(normalized_shape)]
    inverse = x.new_empty((*rows, *(1 for _ in normalized_shape)), dtype=torch.float32)
    return torch.empty_like(x), inverse


@_fused_rms_norm_backward.register_fake
def _(
    grad: Tensor, x: Tensor, inverse: Tensor, normalized_shape: list[int], weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0) if weight is None else torch.empty_like(weight)


def _last(normalized_shape: list[int]) -> list[int]:
    return list(range(-len(normalized_shape), 0))


def _keep_rms_norm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.normalized_shape, weight, _ = inputs
    ctx.save_for_backward(x, output[1], weight)


def _rms_norm_gradients(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, Tensor | None, None]:
    x, inverse, weight = ctx.saved_tensors
    grad_x, grad_weight = torch.ops.autoplan.rms_norm_backward(grad, x, inverse, ctx.normalized_shape, weight)
    return grad_x, None, None if weight is None else grad_weight, None


_fused_rms_norm.register_autograd(_rms_norm_gradients, setup_context=_keep_rms_norm)

_GPU: dict[Any, Callable[..., Any]] = {
    _aten.scaled_dot_product_attention.default: _attention,
    _aten.dropout.default: _dropout,
    _aten.rms_norm.default: _rms_norm,
}

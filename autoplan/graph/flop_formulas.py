"""FLOPs of one kernel from its arguments: torch's own formulas, and those that torch lacks.

``torch.utils.flop_counter`` has none for the CPU's flash attention, which does what the GPU's does, nor
for products grouped by expert, which are as many row by matrix products as there are rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

__all__ = ["flop_formula"]

_aten = torch.ops.aten


def flop_formula(func: Any) -> Callable[..., int] | None:
    """A function of a kernel's arguments and ``out_val`` that gives its FLOPs; None if it has none."""
    packet = func._overloadpacket
    return flop_registry.get(packet) or _OURS.get(f"{func.namespace}::{packet.__name__}")


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)


def _grouped(a: Tensor, b: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """Rows by experts: (P, D)·(E, D, F) → (P, F); or contracted over the rows: (D, P)·(P, F) → (E, D, F)."""
    if a.dim() == 2 and b.dim() == 2:
        return 2 * a.shape[0] * a.shape[1] * b.shape[1]
    contracted = a.shape[-1]
    return 2 * math.prod(out_val.shape) * contracted


def _grouped_backward(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 4 * x.shape[0] * weight.shape[1] * weight.shape[2]


_OURS: dict[str, Callable[..., int]] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": _attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "aten::_grouped_mm": _grouped,
    "transformers::grouped_mm_fallback": _grouped,
    "transformers::grouped_mm_fallback_backward": _grouped_backward,
}

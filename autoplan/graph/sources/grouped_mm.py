"""Matrix products of consecutive groups of rows, each with its own expert's weight.

``torch.nn.functional.grouped_mm`` refuses float64, and its fake form refuses everything but bfloat16, so
these operators stand in its place: ``autoplan::grouped_mm`` and, for the gradient of the weights,
``autoplan::grouped_mm_weight``. They run one product after the other on any device and dtype. Both have
fake forms and FLOP formulas, and each is the other's derivative. Shape suffixes: P rows, E experts, D and
F features; group e is the rows from ``end_E[e-1]`` to ``end_E[e]``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

__all__ = ["grouped_mm", "grouped_mm_weight"]


@torch.library.custom_op("autoplan::grouped_mm", mutates_args=())
def grouped_mm(x_PD: Tensor, w_EDF: Tensor, end_E: Tensor) -> Tensor:
    """(P, F): each row of ``x_PD`` times the weight of its group. Rows past the last group give zeros."""
    y_PF = x_PD.new_zeros(x_PD.shape[0], w_EDF.shape[2])
    for expert, (start, end) in enumerate(_groups(end_E)):
        y_PF[start:end] = x_PD[start:end] @ w_EDF[expert]
    return y_PF


@torch.library.custom_op("autoplan::grouped_mm_weight", mutates_args=())
def grouped_mm_weight(x_PD: Tensor, y_PF: Tensor, end_E: Tensor) -> Tensor:
    """(E, D, F): for each group, its rows of ``x_PD`` transposed times its rows of ``y_PF``."""
    w_EDF = x_PD.new_zeros(end_E.shape[0], x_PD.shape[1], y_PF.shape[1])
    for expert, (start, end) in enumerate(_groups(end_E)):
        w_EDF[expert] = x_PD[start:end].t() @ y_PF[start:end]
    return w_EDF


def _groups(end_E: Tensor) -> list[tuple[int, int]]:
    ends: list[int] = end_E.tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


@grouped_mm.register_fake
def _(x_PD: Tensor, w_EDF: Tensor, end_E: Tensor) -> Tensor:
    return x_PD.new_empty(x_PD.shape[0], w_EDF.shape[2])


@grouped_mm_weight.register_fake
def _(x_PD: Tensor, y_PF: Tensor, end_E: Tensor) -> Tensor:
    return x_PD.new_empty(end_E.shape[0], x_PD.shape[1], y_PF.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grouped_mm_backward(ctx: Any, grad_PF: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x_PD, w_EDF, end_E = ctx.saved_tensors
    need_x, need_w, _ = ctx.needs_input_grad
    grad_x = grouped_mm(grad_PF, w_EDF.transpose(1, 2), end_E) if need_x else None
    grad_w = grouped_mm_weight(x_PD, grad_PF, end_E) if need_w else None
    return grad_x, grad_w, None


def _grouped_mm_weight_backward(ctx: Any, grad_EDF: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x_PD, y_PF, end_E = ctx.saved_tensors
    need_x, need_y, _ = ctx.needs_input_grad
    grad_x = grouped_mm(y_PF, grad_EDF.transpose(1, 2), end_E) if need_x else None
    grad_y = grouped_mm(x_PD, grad_EDF, end_E) if need_y else None
    return grad_x, grad_y, None


grouped_mm.register_autograd(_grouped_mm_backward, setup_context=_save)
grouped_mm_weight.register_autograd(_grouped_mm_weight_backward, setup_context=_save)


@register_flop_formula(torch.ops.autoplan.grouped_mm)
def grouped_mm_flops(x_shape: torch.Size, w_shape: torch.Size, *_: Any, **__: Any) -> int:
    """2·P·D·F: every row meets one expert."""
    return 2 * x_shape[0] * x_shape[1] * w_shape[2]


@register_flop_formula(torch.ops.autoplan.grouped_mm_weight)
def grouped_mm_weight_flops(x_shape: torch.Size, y_shape: torch.Size, *_: Any, **__: Any) -> int:
    """2·P·D·F: every pair of rows is one outer product."""
    return 2 * x_shape[0] * x_shape[1] * y_shape[1]

"""Ops that a user might bring: a custom op with heads as an argument, and a Function whose backward is its own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import autoplan


@torch.library.custom_op("own_ops::head_norm", mutates_args=())
def head_norm(x: Tensor, weight: Tensor, num_heads: int) -> Tensor:
    """x (b, s, h·e) divided by the size of each head, then times weight (h·e)."""
    heads = x.unflatten(-1, (num_heads, -1))
    return F.normalize(heads, dim=-1).flatten(-2) * weight


@head_norm.register_fake
def _(x: Tensor, weight: Tensor, num_heads: int) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.num_heads = inputs[2]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, weight = ctx.saved_tensors
    heads = x.unflatten(-1, (ctx.num_heads, -1))
    length = heads.norm(dim=-1, keepdim=True)
    unit = heads / length
    inner = (grad * weight).unflatten(-1, (ctx.num_heads, -1))
    grad_x = (inner - unit * (inner * unit).sum(-1, keepdim=True)) / length
    return grad_x.flatten(-2), (grad * unit.flatten(-2)).sum((0, 1)), None


head_norm.register_autograd(_backward, setup_context=_save)


class Bounded(torch.autograd.Function):
    """x (b, s, f) times a gate (f), whose gradient for x is clipped; and the gate's square.

    Its backward is not that of its forward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, bound: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, gate)
        ctx.bound = bound
        return x * gate, gate * gate

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, gate = ctx.saved_tensors
        grad_gate = (grads[0] * x).sum((0, 1)) + 2 * grads[1] * gate
        return (grads[0] * gate).clamp(-ctx.bound, ctx.bound), grad_gate, None


bounded = Bounded.apply  # looked up before any trace, as users do


def register() -> None:
    autoplan.register_axes(
        head_norm, "... (h e!), (h e!) -> ... (h e!)", counts={"num_heads": "h"}, linear=()
    )
    autoplan.register_axes(Bounded, "b s f, f -> b s f, f")


class OwnBlock(nn.Module):
    """A layer that uses both."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.weight = nn.Parameter(torch.rand(4 * width) + 0.5)
        self.gate = nn.Parameter(torch.rand(4 * width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = head_norm(F.gelu(self.up(x)), self.weight, self.heads)
        hidden, square = bounded(hidden, self.gate, 1e-4)
        return x + self.down(hidden * square)


class OwnModel(nn.Module):
    """Three such layers, and the mean of a square."""

    def __init__(self, width: int = 16, heads: int = 8) -> None:
        super().__init__()
        self.h = nn.ModuleList(OwnBlock(width, heads) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for block in self.h:
            x = block(x)
        return F.mse_loss(x, y)

"""First-order linear recurrences along one dim, as one operator: h_t = decay_t · h_{t-1} + gain_t.

State-space models and gated linear units are this and element-wise work around it. Written as a loop, each
time step would be several ops of the graph. As one operator it has the traffic of the fused scan that
training runs (reads decay and gain, writes the states), and no FLOPs, as ``torch.utils.flop_counter`` counts
matrix products only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["linear_recurrence"]


@torch.library.custom_op("autoplan::linear_recurrence", mutates_args=())
def linear_recurrence(decay: Tensor, gain: Tensor, dim: int) -> Tensor:
    """The states h of all steps along ``dim``, from h_{-1} = 0; ``decay`` and ``gain`` have one shape.

    Runs in log2(steps) passes: a pass of span s lets each state take in the one s steps before it
    (Hillis and Steele, 1986).
    """
    state, product = gain.clone(), decay.clone()
    steps, span = gain.shape[dim], 1
    while span < steps:
        rest = steps - span
        early_state, early_product = state.narrow(dim, 0, rest).clone(), product.narrow(dim, 0, rest).clone()
        state.narrow(dim, span, rest).addcmul_(product.narrow(dim, span, rest), early_state)
        product.narrow(dim, span, rest).mul_(early_product)
        span *= 2
    return state


@linear_recurrence.register_fake
def _(decay: Tensor, gain: Tensor, dim: int) -> Tensor:
    return torch.empty_like(gain)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    decay, _, ctx.dim = inputs
    ctx.save_for_backward(decay, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    """The same recurrence backwards in time: g_t = grad_t + decay_{t+1} · g_{t+1}."""
    decay, state = ctx.saved_tensors
    dim, steps = ctx.dim, decay.shape[ctx.dim]
    following = torch.roll(decay, -1, dim).flip(dim)  # what wraps around meets h_{-1} = 0
    grad_gain = linear_recurrence(following, grad.flip(dim), dim).flip(dim)
    before = torch.cat([torch.zeros_like(state.narrow(dim, 0, 1)), state.narrow(dim, 0, steps - 1)], dim)
    return (grad_gain * before if ctx.needs_input_grad[0] else None), grad_gain, None


linear_recurrence.register_autograd(_backward, setup_context=_save)

"""Loops over time steps in Hugging Face's models, run as one operator while the model is traced.

Without their CUDA packages these models take one step after another in Python, which would put thousands of ops
into the graph. Here is the same mathematics around ``autoplan::linear_recurrence``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autoplan.graph.sources.linear_recurrence import linear_recurrence

__all__ = ["gated_recurrence", "selective_scan", "weighted_averages"]


def selective_scan(
    x_BDS: Tensor,
    step_BDS: Tensor,
    a_DN: Tensor,
    b_BNS: Tensor,
    c_BNS: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **_: Any,
) -> Any:
    """Mamba's scan (arXiv:2312.00752, algorithm 2), with the arguments and the dtypes of transformers' function.

    B batch, D channels, S steps, N states a channel.
    """
    if delta_bias is not None:
        step_BDS = step_BDS + delta_bias.to(step_BDS.dtype)[..., None]
    if delta_softplus:
        step_BDS = F.softplus(step_BDS)
    decay_BDSN = torch.exp(a_DN[None, :, None, :] * step_BDS[..., None])
    gain_BDSN = step_BDS[..., None] * b_BNS.transpose(1, 2)[:, None].float() * x_BDS[..., None].float()
    dtype = torch.promote_types(decay_BDSN.dtype, gain_BDSN.dtype)
    state_BDSN = linear_recurrence(decay_BDSN.to(dtype), gain_BDSN.to(dtype), 2)
    state_BSDN = state_BDSN.transpose(1, 2).to(x_BDS.dtype)
    y_BDS = torch.matmul(state_BSDN, c_BNS.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)
    if D is not None:
        y_BDS = y_BDS + x_BDS * D[None, :, None]
    if z is not None:
        y_BDS = y_BDS * F.silu(z)
    return (y_BDS, state_BDSN[:, :, -1]) if return_last_state else y_BDS


def gated_recurrence(original: Callable[..., Any]) -> Callable[..., Any]:
    """RecurrentGemma's linear recurrence (arXiv:2402.19427, equation 4); from a given state, ``original``."""

    def scan(
        self: Any,
        hidden_states: Tensor,
        recurrent_gate: Tensor,
        reset: Tensor,
        recurrent_states: Tensor | None,
        acc_dtype: torch.dtype = torch.float32,
    ) -> Any:
        if recurrent_states is not None or hidden_states.shape[1] == 1:
            return original(self, hidden_states, recurrent_gate, reset, recurrent_states, acc_dtype)
        decay_BSD = (recurrent_gate * ~reset).to(acc_dtype)
        state_BSD = linear_recurrence(decay_BSD, hidden_states.to(acc_dtype), 1)
        return state_BSD.to(hidden_states.dtype), state_BSD[:, -1]

    return scan


def weighted_averages(original: Callable[..., Any]) -> Callable[..., Any]:
    """RWKV's averages of past values (arXiv:2305.13048, equation 16); from a given state, ``original``.

    Numerator and denominator are each a recurrence, in units of ``exp(top)``, the largest weight so far, which
    cancels: it is there for the range of floats only, and no gradient needs to pass it.
    """

    def average(
        time_decay: Tensor,
        time_first: Tensor,
        key: Tensor,
        value: Tensor,
        state: Any = None,
        return_state: bool = False,
    ) -> Any:
        if state is not None:
            return original(time_decay, time_first, key, value, state, return_state)
        decay_D, key_BSD, now_BSD = -torch.exp(time_decay), key.float(), key.float() + time_first
        past_SD = torch.arange(key.shape[1], device=key.device)[:, None] * decay_D.detach().float()
        top_BSD = past_SD + (key_BSD.detach() - past_SD).cummax(1).values
        before_BSD = F.pad(top_BSD[:, :-1], (0, 0, 1, 0), value=-1e38)
        largest_BSD = torch.maximum(before_BSD, now_BSD.detach())
        fade_BSD = torch.exp(before_BSD + decay_D - top_BSD)
        gain_BSD = torch.exp(key_BSD - top_BSD)
        above_BSD = linear_recurrence(fade_BSD, gain_BSD * value, 1)
        below_BSD = linear_recurrence(fade_BSD, gain_BSD, 1)
        past_BSD, own_BSD = torch.exp(before_BSD - largest_BSD), torch.exp(now_BSD - largest_BSD)
        numerator_BSD = past_BSD * F.pad(above_BSD[:, :-1], (0, 0, 1, 0)) + own_BSD * value
        denominator_BSD = past_BSD * F.pad(below_BSD[:, :-1], (0, 0, 1, 0)) + own_BSD
        made = (numerator_BSD / denominator_BSD).to(key.dtype)
        last = [above_BSD[:, -1], below_BSD[:, -1], top_BSD[:, -1]]
        return made, last if return_state else None

    return average

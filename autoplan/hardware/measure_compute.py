"""Microbenchmarks of one device: launch, matrix products, streams through memory, attention.

Calls are those of training: eager, recording for backward, allocating their outputs.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from autoplan.hardware.gemm import attention_flops
from autoplan.hardware.measure_clock import Clock, Timing
from autoplan.hardware.tables import AttentionPoint, GemmPoint, MemoryPoint

__all__ = ["measure_attention", "measure_gemm", "measure_launch", "measure_memory"]

LEAST_SHARE = 0.2  # of a measured time that stays when the launch is taken out


def measure_launch(clock: Clock) -> Timing:
    """Seconds of an op on next to no data."""
    x = _random(clock, "float32", 16)
    return clock.measure(lambda: x + x, computes=True)


def measure_gemm(clock: Clock, m: int, n: int, k: int, dtype: str, launch_s: float) -> GemmPoint:
    """FLOP/s of (m, k) by (k, n), without the launch."""
    a, b = _random(clock, dtype, m, k), _random(clock, dtype, k, n)
    timing = clock.measure(lambda: a @ b, computes=True)
    return GemmPoint(m, n, k, _figure(2 * m * n * k / _net_s(timing, launch_s)), timing.spread)


def measure_memory(clock: Clock, tensor_bytes: int, launch_s: float) -> MemoryPoint:
    """Bytes/s of adding two float32 tensors: two are read, one is written."""
    a, b = (_random(clock, "float32", tensor_bytes // 4) for _ in range(2))
    timing = clock.measure(lambda: a + b, computes=True)
    nbytes = 3 * 4 * a.numel()
    return MemoryPoint(nbytes, _figure(nbytes / _net_s(timing, launch_s)), timing.spread)


def measure_attention(
    clock: Clock, batch: int, length: int, head: int, dtype: str, causal: bool, launch_s: float
) -> AttentionPoint:
    """FLOP/s of fused attention, forward and backward, without the launch."""
    q, k, v = (_random(clock, dtype, 1, batch, length, head) for _ in range(3))

    def forward() -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=causal)

    output = forward()
    gradient = torch.ones_like(output)

    def back() -> object:
        return torch.autograd.grad(output, (q, k, v), gradient, retain_graph=True)

    rates, spreads = [], []
    for backward, call in ((False, forward), (True, back)):
        timing = clock.measure(call, computes=True)
        flops = attention_flops(batch, length, length, head, causal=causal, backward=backward)
        rates.append(_figure(flops / _net_s(timing, launch_s)))
        spreads.append(timing.spread)
    return AttentionPoint(batch, length, length, head, rates[0], rates[1], max(spreads))


def _random(clock: Clock, dtype: str, *shape: int) -> torch.Tensor:
    """A leaf that wants a gradient. Has its own generator: measuring must not move the caller's."""
    generator = torch.Generator(clock.device).manual_seed(0)
    tensor = torch.randn(shape, device=clock.device, dtype=torch.float32, generator=generator)
    return tensor.to(getattr(torch, dtype)).requires_grad_()


def _net_s(timing: Timing, launch_s: float) -> float:
    return max(timing.time_s - launch_s, LEAST_SHARE * timing.time_s)


def _figure(value: float) -> float:
    """Four digits: more would only be noise."""
    return float(f"{value:.4g}")

"""Microbenchmarks of one device: launch, matrix products, streams through memory, attention, copies.

Calls are those of training: eager, recording for backward, allocating their outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

from autoplan.hardware.measure_points import Attention, Copy, Gemm, Launch, Memory

__all__ = ["LAUNCH_OPS", "compute_call"]

Call = Callable[[], object]
LAUNCH_OPS = 32  # of one call of the launch benchmark, forward and backward together


def compute_call(point: Launch | Gemm | Memory | Attention | Copy, device: torch.device) -> Call:
    """What to time for ``point``, its tensors allocated."""
    match point:
        case Launch():
            return _launches(device)
        case Gemm():
            return _gemm(point, device)
        case Memory():
            a, b = (_random(device, "float32", point.tensor_bytes // 4) for _ in range(2))
            return lambda: a + b
        case Attention():
            return _attention(point, device)
        case Copy():
            return _copy(point, device)


def _launches(device: torch.device) -> Call:
    """A chain of ops on next to no data, and back: a training step has about as many of each."""
    x, factor = _random(device, "float32", 16), torch.ones(16, device=device)
    gradient = torch.ones(16, device=device)

    def call() -> object:
        y = x
        for _ in range(LAUNCH_OPS // 2):
            y = y * factor
        return torch.autograd.grad(y, x, gradient)

    return call


def _gemm(point: Gemm, device: torch.device) -> Call:
    batch = (point.batch,) if point.batch > 1 else ()
    a = _random(device, point.dtype, *batch, point.m, point.k)
    b = _random(device, point.dtype, *batch, point.k, point.n)
    return lambda: a @ b


def _attention(point: Attention, device: torch.device) -> Call:
    shape = (1, point.batch, point.length, point.head)
    q, k, v = (_random(device, point.dtype, *shape) for _ in range(3))

    def forward() -> torch.Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=point.causal)

    if not point.backward:
        return forward
    output = forward()
    gradient = torch.ones_like(output)
    return lambda: torch.autograd.grad(output, (q, k, v), gradient, retain_graph=True)


def _copy(point: Copy, device: torch.device) -> Call:
    here, there = (
        (
            torch.empty(point.nbytes, dtype=torch.uint8, device=device),
            torch.empty(point.nbytes, dtype=torch.uint8, pin_memory=True),
        )
        for _ in range(2)
    )

    def out() -> None:
        here[1].copy_(here[0], non_blocking=True)

    def back() -> None:
        there[0].copy_(there[1], non_blocking=True)

    timed, other = (out, back) if point.direction == "to_host" else (back, out)
    if not point.both:
        return timed
    aside = torch.cuda.Stream(device)

    def both() -> None:
        with torch.cuda.stream(aside):
            other()
        timed()

    return both


def _random(device: torch.device, dtype: str, *shape: int) -> torch.Tensor:
    """A leaf that wants a gradient. Has its own generator: measuring must not move the caller's."""
    generator = torch.Generator(device).manual_seed(0)
    tensor = torch.randn(shape, device=device, dtype=torch.float32, generator=generator)
    return tensor.to(getattr(torch, dtype)).requires_grad_()

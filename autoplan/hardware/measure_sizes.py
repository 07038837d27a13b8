"""Which sizes are measured: a few in a minute, or enough to interpolate well."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["TINY", "Sizes", "local_sizes", "sizes_for"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Sizes:
    """The points of one run, and how each is sampled.

    Every point is visited ``visits`` times, far apart, for ``samples`` samples of ``window_s`` each: what
    changes while the machine is measured then shows in the spread. A point that is noisy then is visited on, up to
    ``most_visits`` times.

    Args:
        gemm: by dtype, the sizes m, n and k of the products; all combinations are measured.
        batched_gemm: by dtype, the sizes batch, m, n and k.
        attention: by dtype, the lengths of ``attention_batch`` sequences x heads.
        memory: bytes of each of two tensors that are added.
        copies: bytes that are copied to and from the host's memory (GPUs).
        messages: bytes of the collectives' messages.
        beside_kinds, beside_bytes: collectives that run beside compute, and their message.
    """

    samples: int
    visits: int
    most_visits: int
    window_s: float
    gemm: dict[str, tuple[tuple[int, ...], ...]]
    batched_gemm: dict[str, tuple[tuple[int, ...], ...]]
    attention: dict[str, tuple[int, ...]]
    attention_batch: int
    head_sizes: tuple[int, ...]
    memory: tuple[int, ...]
    copies: tuple[int, ...] = ()
    messages: tuple[int, ...] = ()
    beside_kinds: tuple[str, ...] = ("all_reduce", "all_gather", "reduce_scatter")
    beside_bytes: int = 1 * MIB


def sizes_for(
    device_kind: str, *, quick: bool, max_bytes: int | None = None, messages: Sequence[int] = ()
) -> Sizes:
    """The sizes for a device kind (``cpu`` or ``cuda``); messages of ``messages``, or up to ``max_bytes``."""
    cuda = device_kind == "cuda"
    if quick:
        sizes, step, largest = (_QUICK_CUDA, 16, 256 * MIB) if cuda else (_QUICK_CPU, 16, 16 * MIB)
    else:
        sizes, step, largest = (_CUDA, 4, 256 * MIB) if cuda else (_CPU, 4, 256 * MIB)
    return replace(sizes, messages=tuple(sorted(set(messages))) or _powers(KIB, max_bytes or largest, step))


def local_sizes(device_kind: str) -> Sizes:
    """For whoever only wants to train, and waits: those of a quick run, with fewer samples."""
    return replace(sizes_for(device_kind, quick=True), visits=2, most_visits=2)


def _powers(first: int, last: int, step: int) -> tuple[int, ...]:
    """``first``, times ``step`` again and again, and ``last``."""
    found = []
    while first < last:
        found.append(first)
        first *= step
    return (*found, last)


def _cube(*sizes: int) -> tuple[tuple[int, ...], ...]:
    return (sizes, sizes, sizes)


_CPU = Sizes(
    samples=3,
    visits=5,
    most_visits=9,
    window_s=0.03,
    gemm={
        "float32": ((16, 64, 256, 1024, 4096), (16, 64, 256, 1024), (16, 64, 256, 1024)),
        "bfloat16": _cube(64, 256, 1024),
        "float64": _cube(64, 256, 1024),
    },
    batched_gemm={"float32": ((4, 32), (32, 256), (32, 256), (16, 64, 256))},
    attention={"float32": (32, 128, 512, 1024), "bfloat16": (128, 512), "float64": (128, 512)},
    attention_batch=8,
    head_sizes=(16, 64),
    memory=_powers(4 * KIB, 64 * MIB, 4),
)

_QUICK_CPU = replace(
    _CPU,
    samples=2,
    visits=3,
    most_visits=3,
    window_s=0.01,
    gemm={"float32": _cube(32, 128, 512), "bfloat16": _cube(128, 512), "float64": _cube(128, 512)},
    batched_gemm={"float32": ((8,), (32, 256), (32, 256), (32, 256))},
    attention={"float32": (64, 256)},
    head_sizes=(32,),
    memory=_powers(4 * KIB, 16 * MIB, 8),
    beside_kinds=("all_reduce",),
    beside_bytes=256 * KIB,
)

_CUDA = Sizes(
    samples=3,
    visits=5,
    most_visits=9,
    window_s=0.01,
    gemm={
        "bfloat16": _cube(256, 1024, 2048, 4096, 8192),
        "float16": _cube(1024, 4096),
        "float32": _cube(256, 1024, 4096),
        "float64": _cube(256, 1024, 4096),
    },
    batched_gemm={"bfloat16": ((8, 64), (128, 1024, 4096), (128, 1024, 4096), (64, 512, 2048))},
    attention={"bfloat16": (512, 2048, 8192), "float16": (2048,)},
    attention_batch=32,
    head_sizes=(64, 128),
    memory=_powers(256 * KIB, 1 * GIB, 8),
    copies=_powers(256 * KIB, 256 * MIB, 8),
    beside_bytes=64 * MIB,
)

_QUICK_CUDA = replace(
    _CUDA,
    samples=2,
    visits=3,
    most_visits=3,
    gemm={"bfloat16": _cube(512, 2048, 8192), "float32": _cube(512, 4096), "float64": _cube(512, 2048)},
    batched_gemm={"bfloat16": ((16,), (128, 2048), (128, 2048), (64, 1024))},
    attention={"bfloat16": (1024, 4096)},
    head_sizes=(128,),
    memory=_powers(1 * MIB, 1 * GIB, 32),
    copies=(1 * MIB, 64 * MIB),
    beside_kinds=("all_reduce",),
)

TINY = replace(
    _QUICK_CPU,
    samples=1,
    visits=2,
    most_visits=2,
    window_s=0.002,
    gemm={"float32": _cube(16, 64)},
    batched_gemm={},
    attention={"float32": (32,)},
    memory=(64 * KIB, 256 * KIB),
    messages=(4 * KIB, 64 * KIB, 1 * MIB),
    beside_bytes=64 * KIB,
)
"""Enough for a whole profile that nobody would plan with: for tests of how it comes about."""

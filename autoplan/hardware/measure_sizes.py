"""Which sizes are measured: a few in a minute, or enough to interpolate well."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Sizes", "sizes_for"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Sizes:
    """The points of one run.

    ``gemm`` and ``attention`` map a dtype to its sizes: every m, n and k of a product, every
    sequence length of an attention over ``attention_batch`` sequences x heads.
    """

    samples: int
    window_s: float
    gemm: dict[str, tuple[int, ...]]
    attention: dict[str, tuple[int, ...]]
    attention_batch: int
    head_sizes: tuple[int, ...]
    memory: tuple[int, ...]
    messages: tuple[int, ...]


def sizes_for(device_kind: str, *, quick: bool, max_bytes: int | None = None) -> Sizes:
    """The sizes for a device kind (``cpu`` or ``cuda``); messages up to ``max_bytes``."""
    sizes = _CUDA if device_kind == "cuda" else _CPU
    step = 4
    if quick:
        sizes = _QUICK_CUDA if device_kind == "cuda" else _QUICK_CPU
        step = 16
    default = 1 * GIB if device_kind == "cuda" else 16 * MIB
    return replace(sizes, messages=_powers(KIB, max_bytes or default, step))


def _powers(first: int, last: int, step: int) -> tuple[int, ...]:
    """``first``, times ``step`` again and again, and ``last``."""
    found = []
    while first < last:
        found.append(first)
        first *= step
    return (*found, last)


_CPU = Sizes(
    samples=7,
    window_s=0.05,
    gemm={"float32": (16, 64, 256, 1024), "bfloat16": (64, 256, 1024), "float64": (64, 256, 1024)},
    attention={"float32": (32, 128, 512, 1024), "bfloat16": (128, 512), "float64": (128, 512)},
    attention_batch=8,
    head_sizes=(16, 64),
    memory=_powers(16 * KIB, 64 * MIB, 4),
    messages=(),
)

_QUICK_CPU = replace(
    _CPU,
    samples=5,
    window_s=0.03,
    gemm={"float32": (32, 128, 512), "bfloat16": (128, 512), "float64": (128, 512)},
    attention={"float32": (64, 256)},
    head_sizes=(32,),
    memory=_powers(16 * KIB, 16 * MIB, 16),
)

_CUDA = Sizes(
    samples=7,
    window_s=0.01,
    gemm={
        "bfloat16": (256, 1024, 2048, 4096, 8192),
        "float16": (1024, 4096),
        "float32": (256, 1024, 4096),
        "float64": (256, 1024, 4096),
    },
    attention={"bfloat16": (512, 2048, 8192), "float16": (2048,)},
    attention_batch=32,
    head_sizes=(64, 128),
    memory=_powers(256 * KIB, 1 * GIB, 8),
    messages=(),
)

_QUICK_CUDA = replace(
    _CUDA,
    samples=5,
    gemm={"bfloat16": (512, 2048, 8192), "float32": (512, 4096), "float64": (512, 2048)},
    attention={"bfloat16": (1024, 4096)},
    head_sizes=(128,),
    memory=_powers(1 * MIB, 1 * GIB, 32),
)

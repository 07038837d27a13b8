"""What fraction of peak a matrix product or fused attention reaches where nothing was measured.

Priors only: a measured grid in the profile replaces them. Shape of the curves: a GPU computes a
product in tiles of about 128 x 128, one per multiprocessor at a time, so too few tiles leave
multiprocessors idle; ragged edges waste part of a tile; a short contracted axis does not cover the
end of a tile, when its result is written while nothing is multiplied.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

__all__ = ["GemmShape", "attention_flops", "attention_prior", "gemm_prior", "row_filling", "sizes_of"]

TILE = 128
EDGE = 16  # smallest granularity of the kernels' tiles
LINE = 64  # bytes of a cache line, and of the widest vector register of a CPU
UNALIGNED = (
    0.92  # rate of a CPU on rows that start anywhere in a line, edges apart (fitted: profile_accuracy.py)
)
HALF_DEPTH = 64  # contracted size at which half of the ceiling is reached on a CPU (assumed)
EPILOGUE = 1.0  # share of writing a product's result that no multiplication covers (fitted: 0.5 to 3)
HALF_KEYS = 256  # the same for keys in attention (assumed; FlashAttention-2, figures 4 to 6)
CLOCK = 1.6e9  # of a multiprocessor, in the middle of A100's 1.4 and B200's 1.9 GHz
EXPONENTIALS = 16  # a clock and multiprocessor; CUDA C++ programming guide, arithmetic throughput
BACKWARD_FLOPS = 2.5  # of forward; FlashAttention-2 (Dao, 2023), section 4.1


class GemmShape(Protocol):
    """Anything with the four sizes of a batched product, such as ``autoplan.graph.Gemm``."""

    @property
    def batch(self) -> int: ...
    @property
    def m(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...


def sizes_of(gemm: GemmShape | tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
    """``(batch, m, n, k)`` of either form; the members of a tuple may be arrays."""
    if isinstance(gemm, tuple):
        return gemm
    return gemm.batch, gemm.m, gemm.n, gemm.k


def _occupancy(tiles: Any, units: int) -> Any:
    """Mean share of the multiprocessors at work: the last wave is half empty on average."""
    return tiles / (tiles + units / 2)


def row_filling(n: Any, itemsize: float) -> Any:
    """Rate of a CPU's product whose rows have ``n`` elements, over that of rows of whole vector registers.

    The last register of a row is filled in part, n / (lanes · ceil(n / lanes)), and where rows do not start at
    cache lines, loads straddle them.
    """
    lanes = int(LINE / itemsize)
    whole = -(-n // lanes) * lanes
    return (n / whole) * np.where(n == whole, 1.0, UNALIGNED)


def gemm_prior(
    batch: Any, m: Any, n: Any, k: Any, *, ceiling: float, units: int, balance: float = HALF_DEPTH
) -> Any:
    """Fraction of peak for ``batch`` products of (m, k) by (k, n).

    A GPU writes a result of 16 bits with its multipliers idle: 2 m n k / peak + 2 m n / bandwidth, so half
    of the ceiling is reached at k = peak / bandwidth.

    Args:
        ceiling: fraction reached by large products.
        units: multiprocessors of the device; 0 for a CPU, whose tiles are too small to matter.
        balance: peak over memory bandwidth, FLOP a byte.
    """
    if not units:
        return ceiling * k / (k + HALF_DEPTH)
    depth = k / (k + EPILOGUE * balance)
    edges = (m / (-(-m // EDGE) * EDGE)) * (n / (-(-n // EDGE) * EDGE))
    tiles = batch * -(-m // TILE) * -(-n // TILE)
    return ceiling * depth * edges * _occupancy(tiles, units)


def attention_prior(batch: Any, m: Any, n: Any, k: Any, *, ceiling: float, units: int, peak: float) -> Any:
    """Fraction of peak for fused attention of m queries over n keys in ``batch`` sequences x heads.

    Beside 4 k FLOP each score needs an exponential, of which a multiprocessor of a GPU makes 16 a clock
    whatever its generation (FlashAttention-3, section 3.2); about a quarter of that shows. Narrow heads
    are therefore slower, the more so the faster the multipliers.

    Args:
        ceiling: fraction reached by long sequences of heads of 128.
        peak: FLOP/s of the device.
    """
    tiles = batch * -(-m // TILE)
    rate = ceiling * (n / (n + HALF_KEYS)) * _occupancy(tiles, units)
    if not units:
        return rate
    half = peak / units / (CLOCK * EXPONENTIALS * 4)
    return rate * (k / (k + half)) * ((128 + half) / 128)


def attention_flops(batch: Any, m: Any, n: Any, k: Any, *, causal: bool, backward: bool) -> Any:
    """FLOP of fused attention: two products forward, two and a half times as much backward.

    ``4 b m n k`` forward, half if causal; backward recomputes the scores (FlashAttention-2, section 4.1).
    """
    flops = 4 * batch * m * n * k * (0.5 if causal else 1.0)
    return flops * (BACKWARD_FLOPS if backward else 1.0)

"""Printing of quantities. Inside autoplan everything is in seconds, bytes, FLOP and bytes/s."""

from __future__ import annotations

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

__all__ = ["GIB", "KIB", "MIB", "bytes_binary", "bytes_rate", "count", "flops_rate", "seconds"]

_SI = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def seconds(value_s: float) -> str:
    """``0.0123`` → ``12.3 ms``."""
    if value_s >= 100:
        return f"{value_s:.0f} s"
    if value_s >= 1:
        return f"{value_s:.3g} s"
    if value_s >= 1e-3:
        return f"{value_s * 1e3:.3g} ms"
    return f"{value_s * 1e6:.3g} us"


def bytes_binary(value: float) -> str:
    """``2**31`` → ``2.00 GiB``."""
    for size, name in ((1 << 40, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(value) >= size:
            return f"{value / size:.2f} {name}"
    return f"{value:.0f} B"


def count(value: float) -> str:
    """``70_553_706_496`` → ``70.6 G``; FLOP, parameters, tokens."""
    for size, prefix in _SI:
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g}"


def flops_rate(value: float) -> str:
    """``4.1e14`` → ``410 TFLOP/s``."""
    number = count(value)
    return f"{number}FLOP/s" if number[-1].isalpha() else f"{number} FLOP/s"


def bytes_rate(value: float) -> str:
    """``4.5e11`` → ``450 GB/s`` (powers of ten, as links are sold)."""
    number = count(value)
    return f"{number}B/s" if number[-1].isalpha() else f"{number} B/s"

"""Frontiers of bytes kept and seconds spent, for tests."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["below"]


def below(points: tuple[tuple[float, float], ...], kept: float) -> float:
    """Seconds of the frontier at ``kept`` bytes, of which it may keep fewer."""
    bytes_, seconds = zip(*reversed(points), strict=True)
    return float(np.interp(kept, bytes_, seconds)) if kept >= bytes_[0] * (1 - 1e-12) else math.inf

"""Interpolation of measured points, in logarithms: rates and times span many powers of ten."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LogGrid", "TimeCurve", "as_given", "greater", "least"]


class TimeCurve:
    """Seconds as a function of bytes, linear in (log bytes, log seconds) between the points.

    Never decreasing, whatever was measured: points out of order are noise and take their geometric
    mean. Beyond the last point the last rate holds. Below the first, either the first time (a
    collective has a floor) or the first rate (``floor=False``, a stream through memory).
    """

    def __init__(self, nbytes: Sequence[float], times_s: Sequence[float], *, floor: bool) -> None:
        self._log_bytes = np.log(np.asarray(nbytes, dtype=float))
        self._log_times = _never_decreasing(np.log(np.asarray(times_s, dtype=float)))
        self._floor = floor

    def __call__(self, nbytes: Any) -> Any:
        """Seconds for ``nbytes`` (> 0; scalar or array)."""
        x = np.log(nbytes)
        y = np.interp(x, self._log_bytes, self._log_times) + np.maximum(x - self._log_bytes[-1], 0.0)
        if not self._floor:
            y = y + np.minimum(x - self._log_bytes[0], 0.0)
        return np.exp(y)


class LogGrid:
    """A positive function of some sizes, multilinear in logarithms; constant outside its points.

    The points need not fill the grid of their coordinates: an empty cell takes the value of the
    nearest point (in logarithms).
    """

    MAX_CELLS = 100_000

    def __init__(self, points: Sequence[tuple[float, ...]]) -> None:
        table = np.log(np.asarray(points, dtype=float))
        self._axes = [np.unique(column) for column in table[:, :-1].T]
        coordinates = np.stack(np.meshgrid(*self._axes, indexing="ij"), axis=-1)
        distance = np.abs(coordinates[..., None, :] - table[:, :-1]).sum(axis=-1)
        self._values = table[:, -1][distance.argmin(axis=-1)]
        self._remembered = lru_cache(maxsize=65536)(self._interpolate)

    def __call__(self, *sizes: Any) -> Any:
        """The value at one size per axis (> 0; scalars or arrays that broadcast). Scalars are remembered."""
        if all(isinstance(size, int) for size in sizes):
            return self._remembered(*sizes)
        return self._interpolate(*sizes)

    def _interpolate(self, *sizes: Any) -> Any:
        lower: list[NDArray[np.intp]] = []
        weight: list[Any] = []
        for axis, size in zip(self._axes, sizes, strict=True):
            x = np.clip(np.log(size), axis[0], axis[-1])
            i = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, max(len(axis) - 2, 0))
            gap = axis[np.minimum(i + 1, len(axis) - 1)] - axis[i]
            lower.append(i)
            weight.append(np.divide(x - axis[i], np.where(gap > 0, gap, 1.0)))
        total: Any = 0.0
        for corner in itertools.product((0, 1), repeat=len(self._axes)):
            index = tuple(
                np.minimum(i + c, len(axis) - 1) for i, c, axis in zip(lower, corner, self._axes, strict=True)
            )
            share: Any = 1.0
            for w, c in zip(weight, corner, strict=True):
                share = share * (w if c else 1 - w)
            total = total + share * self._values[index]
        return np.exp(total)


def _never_decreasing(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The closest never decreasing values, by least squares (pool adjacent violators; Ayer et al., 1955)."""
    pools: list[tuple[float, int]] = []
    for value in values.tolist():
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (last, many), (previous, more) = pools.pop(), pools.pop()
            pools.append(((last * many + previous * more) / (many + more), many + more))
    return np.repeat([mean for mean, _ in pools], [count for _, count in pools])


def least(a: Any, b: Any) -> Any:
    """The smaller, element by element; plain numbers stay plain and fast."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.minimum(a, b)
    return min(a, b)


def greater(a: Any, b: Any) -> Any:
    """The larger, element by element; plain numbers stay plain and fast."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.maximum(a, b)
    return max(a, b)


def as_given(value: Any) -> Any:
    """An array as it is, a numpy scalar as a plain float."""
    return value if isinstance(value, np.ndarray) and value.ndim else float(value)

"""From samples to a figure: the median, and how far a repetition of the whole measurement may lie from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["NOISY", "Figure", "figure_of", "rounded"]

NOISY = 0.2  # a spread above this marks a figure as noisy
LEAST_SPREAD = 0.08  # between processes, whose memory lies elsewhere; benchmarks/profile_accuracy.py

# Two-sided 95 % points of Student's t, by degrees of freedom.
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

# Standard deviation of the median of n normal values over that of their mean; towards sqrt(pi / 2) for many.
_MEDIAN = {2: 1.0, 3: 1.160, 4: 1.092, 5: 1.198, 6: 1.134, 7: 1.214, 8: 1.160, 9: 1.223, 10: 1.177}


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value with its relative spread, and the number of samples."""

    value: float
    spread: float
    samples: int

    @property
    def noisy(self) -> bool:
        return self.spread > NOISY


def figure_of(visits: Sequence[Sequence[float]]) -> Figure:
    """The median of the visits' medians, and the spread of that.

    A point is visited several times far apart, since what disturbs a machine lasts longer than the
    samples of one visit. The spread is half the width, over the median, of the interval in which the
    figure of a second such measurement is expected with 95 %: Student's t for the difference of two
    means of as many visits, widened as medians vary more than means, and, independent of it, what two processes differ by (``LEAST_SPREAD``).
    benchmarks/profile_accuracy.py tells how often that holds. With a single visit the samples stand in
    for visits.
    """
    medians = [statistics.median(samples) for samples in visits if samples]
    count = sum(len(samples) for samples in visits)
    if len(medians) == 1:
        medians = [sample for samples in visits for sample in samples]
    value = statistics.median(medians)
    if len(medians) < 2 or value <= 0:
        return Figure(value, LEAST_SPREAD, count)
    student = _STUDENT.get(len(medians) - 1, 1.96)
    half = student * statistics.stdev(medians) * (2 / len(medians)) ** 0.5 * _MEDIAN.get(len(medians), 1.253)
    return Figure(value, math.hypot(LEAST_SPREAD, half / value), count)


def rounded(value: float) -> float:
    """Four digits: more would only be noise."""
    return float(f"{value:.4g}")

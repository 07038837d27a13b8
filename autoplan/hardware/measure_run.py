"""Visit every point in turn, several times, with a journal: what was measured is never measured again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from autoplan.hardware.measure_figure import Figure, figure_of
from autoplan.hardware.measure_journal import Journal
from autoplan.hardware.measure_progress import MeasureProgress

__all__ = ["CannotMeasure", "Results", "run_points"]


class HasKey(Protocol):
    """A point, or anything with a name."""

    @property
    def key(self) -> str: ...


P = TypeVar("P", bound=HasKey)


class CannotMeasure(Exception):
    """This point cannot be measured here, on any rank: the reason is its result."""


@dataclass(frozen=True, slots=True)
class Results:
    """What is known of the points by their keys: the samples of each visit, or why there are none."""

    visits: Mapping[str, list[list[float]]]
    failed: Mapping[str, str]

    @classmethod
    def of(cls, journal: Journal) -> Results:
        visits: dict[str, list[list[float]]] = {}
        for (key, _), samples in sorted(journal.samples.items()):
            visits.setdefault(key, []).append(samples)
        return cls(visits, dict(journal.failed))

    def figure(self, point: HasKey) -> Figure | None:
        """The figure of ``point``; None where it failed."""
        visits = self.visits.get(point.key)
        return figure_of(visits) if visits and point.key not in self.failed else None


def run_points(
    points: Sequence[P],
    visits: int,
    measure: Callable[[P], list[float]],
    journal: Journal,
    *,
    guess_s: Callable[[P], float] = lambda point: 1.0,
    show: bool = False,
) -> Results:
    """Measure what ``journal`` lacks: all points once, then all again, ``visits`` times.

    Args:
        measure: gives the samples of a point, or raises CannotMeasure.
        guess_s: about how long one visit takes; what it turns out to take replaces it.
    """
    todo = [
        (visit, point)
        for visit in range(visits)
        for point in points
        if (point.key, visit) not in journal.samples
    ]
    with MeasureProgress(sum(guess_s(point) for _, point in todo), show=show) as progress:
        for visit, point in todo:
            if point.key not in journal.failed:
                progress.begin(point.key)
                journal.begin(point.key, visit)
                try:
                    samples = measure(point)
                except CannotMeasure as error:
                    journal.fail(point.key, str(error))
                else:
                    journal.done(point.key, visit, samples)
            progress.end(guess_s(point))
    return Results.of(journal)

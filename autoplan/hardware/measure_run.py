"""Visit every point in turn, several times, with a journal: what was measured is never measured again.

Each visit but the first has an order of its own: on a machine that is shared, what a point takes also depends on what
came before it (on which cores the ranks were left, say), and the median should be over several such states. Points
whose visits disagree are visited more often.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    most_visits: int = 0,
    guess_s: Callable[[P], float] = lambda point: 1.0,
    show: bool = False,
) -> Results:
    """Measure what ``journal`` lacks: all points once, then all again, ``visits`` times.

    Args:
        measure: gives the samples of a point, or raises CannotMeasure.
        most_visits: of a point whose figure is noisy after each visit before.
        guess_s: about how long one visit takes; what it turns out to take replaces it.
    """

    def lacking(visit: int, among: Sequence[P]) -> list[P]:
        return [point for point in _order(visit, among) if (point.key, visit) not in journal.samples]

    def measured(visit: int, among: Sequence[P], progress: MeasureProgress) -> None:
        for point in lacking(visit, among):
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

    total_s = sum(guess_s(point) for visit in range(visits) for point in lacking(visit, points))
    with MeasureProgress(total_s, show=show) as progress:
        for visit in range(visits):
            measured(visit, points, progress)
        for visit, noisy in _more_visits(points, visits, most_visits, journal):
            progress.more(sum(map(guess_s, lacking(visit, noisy))))
            measured(visit, noisy, progress)
    return Results.of(journal)


def _order(visit: int, points: Sequence[P]) -> list[P]:
    """The same on every rank and in a run that goes on."""
    order = list(points)
    if visit:
        random.Random(f"visit {visit}").shuffle(order)
    return order


def _more_visits(
    points: Sequence[P], visits: int, most_visits: int, journal: Journal
) -> Iterator[tuple[int, list[P]]]:
    """A visit more, and whom: those that are noisy after all visits before it."""
    noisy = list(points)
    for visit in range(visits, most_visits):
        noisy = [point for point in noisy if _is_noisy(point, visit, journal)]
        yield visit, noisy


def _is_noisy(point: HasKey, visits: int, journal: Journal) -> bool:
    if point.key in journal.failed:
        return False
    return figure_of([journal.samples[point.key, visit] for visit in range(visits)]).noisy

"""What goes with the largest of the units that a stage holds, and not with their number.

That is what a unit's backward works with, the gradients that were reduced last, and the copies of the unit at work and
of the one gathered ahead (``cost.memory``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoplan.cost.memory import StateRates, at_work, largest_pair, reduced_bytes
from autoplan.cost.unit import UnitCost

if TYPE_CHECKING:
    from ortools.math_opt.python import mathopt

__all__ = ["Held", "LargestTerm", "largest_between", "largest_bytes"]

Floats = NDArray[np.float64]


def largest_bytes(units: Sequence[UnitCost], rates: StateRates) -> float:
    """Of a stage of ``units`` (of equal ones, two tell as much as all) in which nothing is made again."""
    return rates.gathered_units * largest_pair(units) + _working_bytes(units, rates)


def _working_bytes(units: Sequence[UnitCost], rates: StateRates) -> float:
    """What a unit's backward works with, and the gradients that were reduced before it."""
    return sum(at_work(units, [unit.workspace_bytes for unit in units], rates))


def largest_between(units: Sequence[UnitCost], rates: StateRates) -> Floats:
    """``largest_bytes`` of the units from a to b, where no gradients are late; shape (b, a), 0 where there are none."""
    parameters = [unit.parameters for unit in units]
    pairs = [0.0, *(a + b for a, b in pairwise(parameters))]  # with the one before
    alone = _most_between(parameters)
    together = np.zeros_like(alone)
    together[:, :-1] = _most_between(pairs)[:, 1:]  # from a on, the first that has one before it is a + 1
    gathered = np.maximum(alone, together)
    works = _most_between([unit.workspace_bytes for unit in units])
    reduced = _most_between([unit.trainable for unit in units])
    return works + rates.reduced_units * reduced + rates.gathered_units * gathered


def _most_between(figures: Sequence[float]) -> Floats:
    """The largest figure of those from a to b, shape (b, a); 0 where there are none."""
    count = len(figures)
    each = np.broadcast_to(np.array(figures)[:, None], (count, count + 1))
    inside = np.arange(count)[:, None] >= np.arange(count + 1)[None, :]
    most = np.zeros((count + 1, count + 1))
    np.maximum.accumulate(np.where(inside, each, 0.0), axis=0, out=most[1:])
    return most


@dataclass(frozen=True, slots=True)
class Held:
    """Units of one kind that a stage may hold, next to those before and after: ``n`` of them, a variable, and ``most`` at
    most; ``surely``: one at least."""

    cost: UnitCost
    n: Any
    most: int
    surely: bool


class LargestTerm:
    """``largest_bytes`` of one stage in an integer program, in units of ``limit_bytes``: ``total``.

    What the stage surely holds sets the least of each figure; what is larger has a binary that is 1 where it is there.

    Args:
        alone: it is the only stage, and holds everything.
    """

    def __init__(
        self,
        model: mathopt.Model,
        runs: Sequence[Held],
        rates: StateRates,
        limit_bytes: float,
        alone: bool,
    ) -> None:
        self._model, self._runs, self._alone = model, runs, alone
        self._there: dict[int, Any] = {g: 1 for g, run in enumerate(runs) if run.surely}
        scale = 1 / limit_bytes
        works = [run.cost.workspace_bytes * scale for run in runs]
        trains = [run.cost.trainable * rates.reduced_units * scale for run in runs]
        gathers = [run.cost.parameters * rates.gathered_units * scale for run in runs]
        self._scale, self._before = scale, 0.0
        if rates.late_gradient:
            units = [run.cost for run in runs for _ in range(min(run.most, 2))]
            self._before = reduced_bytes(units, rates) * scale
            self._working: Any = model.add_variable(lb=_working_bytes(units, rates) * scale)
            self.total = self._working
        else:
            self._working = self._most(works)
            self.total = self._working + self._most(trains)
        if rates.gathered_units:
            self.total += self._pair(gathers)

    def works(self, nbytes: float, n: Any, most: int, last: bool) -> None:
        """Where any of ``n`` units, ``most`` at most, is, one works with ``nbytes``; ``last``: they end the chain."""
        some = self._model.add_binary_variable()
        self._model.add_linear_constraint(n <= most * some)
        before = 0.0 if last and most == 1 else self._before
        self._model.add_linear_constraint(self._working >= (before + nbytes * self._scale) * some)

    def _most(self, figures: Sequence[float], others: float = 0.0) -> Any:
        """The largest of what is there, and no less than ``others``."""
        least = max([others, *(figures[g] for g in self._there if self._runs[g].surely)])
        most = self._model.add_variable(lb=least)
        for g, figure in enumerate(figures):
            if figure > least:
                self._model.add_linear_constraint(most >= figure * self._held(g))
        return most

    def _pair(self, figures: Sequence[float]) -> Any:
        """The largest two neighbours, or the only one."""
        runs = self._runs
        joined = [
            (2 * figure, self._several, g, self._alone)
            for g, figure in enumerate(figures)
            if runs[g].most > 1
        ]
        joined += [
            (a + b, self._both, g, runs[g].surely and runs[g + 1].surely)
            for g, (a, b) in enumerate(pairwise(figures))
        ]
        least = max((figure for figure, _, _, surely in joined if surely), default=0.0)
        most = self._most(figures, least)
        for figure, there, g, _ in joined:
            if figure > least:
                self._model.add_linear_constraint(most >= figure * there(g))
        return most

    def _held(self, g: int) -> Any:
        """1 where a unit of run ``g`` is there."""
        if g not in self._there:
            run, held = self._runs[g], self._model.add_binary_variable()
            self._model.add_linear_constraint(run.n <= run.most * held)
            self._there[g] = held
        return self._there[g]

    def _several(self, g: int) -> Any:
        """1 where more than one is."""
        run, several = self._runs[g], self._model.add_binary_variable()
        self._model.add_linear_constraint(run.n <= 1 + (run.most - 1) * several)
        return several

    def _both(self, g: int) -> Any:
        """1 where units of run ``g`` and of the next are there."""
        return self._held(g) + self._held(g + 1) - 1

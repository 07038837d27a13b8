"""Best first over the candidates: bound, refine the bound, solve, and stop when the rest cannot matter.

A candidate (degrees, state sharding, micro-batch) waits in a queue under a lower bound of its step time.
The one with the least is taken out and looked at more closely:

    MESH     whatever the data axes share: one entry for each        microseconds
             dp, fsdp and ZeRO stage
    FAMILY   whatever the schedule: one entry for each schedule      microseconds
             and number of stages a rank
    ROUGH    closed form over the whole chain                        microseconds
    CHAIN    memory, recomputation and stages, without layouts       a millisecond
             then with what layouts of blocks take at least          a second for the first of a micro-batch and tp
    LAYOUT   one entry for each choice of layouts: solve the         a tenth of a second for the first of
             layouts of the blocks at this micro-batch and tp        a micro-batch and tp
    RANKS    under schedules whose stages are cut evenly:        a millisecond or two
             the memory of every rank
    solved   the best stages, then the simulated step; where that is slower than the stages' bound,
             the candidate waits again under this bound, for the best of its other stages

Bounds only grow on the way. When the least one in the queue is within the wanted gap of the best plan
found, nothing left can beat that plan by more than the gap.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.cost.step import Assignment, shares_cores
from autoplan.search.goal import Goal, Objective
from autoplan.search.result import Candidate
from autoplan.search.space import Space

if TYPE_CHECKING:
    from autoplan.plan import Plan

__all__ = ["BranchAndBound", "mesh_of"]

Progress = Callable[[str], object]
_EXTRA = 400  # looks at candidates, after the proof, to find runners-up
_NEW_LAYOUTS = 4  # that are solved for them, but those of the best plan's micro-batch size
_CLOSE = 1e-4  # the staging program's own gap
_STAGINGS = 24  # of one candidate and choice of layouts that are priced at most


class _Level(IntEnum):
    """How closely a candidate has been looked at."""

    MESH = -2
    FAMILY = -1
    ROUGH = 0
    CHAIN = 1
    LAYOUT = 2
    RANKS = 3


@dataclass(frozen=True, slots=True, order=True)
class _Entry:
    """A candidate in the queue; of equal bounds of the goal, the one looked at most closely comes first."""

    least: float
    closeness: int
    degrees: Degrees
    choice: int = 0
    priced: tuple[tuple[Assignment, ...], ...] = field(default=(), compare=False)
    bound_s: float = field(default=0.0, compare=False)

    @property
    def level(self) -> _Level:
        return _Level(-self.closeness)


@dataclass(slots=True)
class BranchAndBound:
    """The search in progress.

    Args:
        gap: stop once the best plan is proven to be within this share of the optimum.
        stop_at: a time of ``time.monotonic`` at which to stop whatever is left, a plan found or not.
        most_looks: stop after so many looks at candidates, if a plan has been found.
        found: the plans that were priced, the fastest first once ``run`` has returned.
        pruned: candidates that were never priced: infeasible, or too slow to matter.
        goal: what to have least of.
        bound_s: no plan of the space that the goal allows is faster; known once ``run`` has returned.
        least: nor has one less of the goal.
    """

    space: Space
    gap: float
    stop_at: float = math.inf
    progress: Progress | None = None
    most_looks: float = math.inf
    found: list[Candidate] = field(default_factory=list)
    pruned: int = 0
    goal: Goal = field(default_factory=Goal)
    bound_s: float = 0.0
    least: float = 0.0
    _queue: list[_Entry] = field(default_factory=list)
    _least_solved: float = math.inf
    _least_solved_s: float = math.inf
    _best: float = math.inf
    _priced: set[Degrees] = field(default_factory=set)
    _hurry_at: float = math.inf

    def run(self) -> None:
        """Search until the gap is closed, the queue is empty, or time runs out."""
        self._hurry_at = (time.monotonic() + self.stop_at) / 2
        for degrees in self.space.meshes:
            if self._out_of_time():
                self._queue.append(_Entry(0.0, -_Level.MESH, degrees))
                break  # a bound of nothing is one of all that is left
            entry = self._entry(self.space.mesh_bound_s(degrees), _Level.MESH, degrees)
            if entry.least < math.inf:
                self._queue.append(entry)
        heapq.heapify(self._queue)
        looks = 0
        while self._queue and self._queue[0].least * (1 - self.space.slack) < self._best * (1 - self.gap):
            if (self.found and looks > self.most_looks) or self._out_of_time():
                break
            self._step()
            looks += 1
        self.least = min(self._queue[0].least if self._queue else math.inf, self._least_solved)
        self.bound_s = min((entry.bound_s for entry in self._queue), default=math.inf)
        self.bound_s = min(self.bound_s, self._least_solved_s) * (1 - self.space.slack)
        self.least *= 1 - self.space.slack
        self._close()

    @property
    def open(self) -> bool:
        """True if something that may hold a plan was not looked at to the end."""
        return bool(self._queue)

    def more(self, wanted: int) -> None:
        """Price on until the ``wanted`` best plans of distinct degrees are known, each to within the gap.

        New layouts are solved for the best plan's own micro-batch size, and for few others.
        """
        spare = _NEW_LAYOUTS

        def worth_solving(degrees: Degrees) -> bool:
            nonlocal spare
            if self.space.knows(degrees) or degrees.micro_batch == best:
                return True
            spare -= 1
            return spare >= 0

        best = min(self.found, key=lambda c: self.goal.value(c.estimate)).plan.micro_batch
        queue, least_of, looks = list(self._queue), self._least_of_meshes(), 0
        while queue and looks < _EXTRA and not self._out_of_time():
            entry = heapq.heappop(queue)
            least = entry.least * (1 - self.space.slack)
            if least >= sorted([*least_of.values(), *[math.inf] * wanted])[wanted - 1] * (1 - self.gap):
                break
            known = math.inf if entry.level is _Level.MESH else least_of.get(mesh_of(entry.degrees), math.inf)
            if least >= known * (1 - self.gap):
                continue
            looks += 1
            if self._is_last(entry):
                self._price(entry)
                least_of = self._least_of_meshes()
            elif entry.level != _Level.CHAIN or worth_solving(entry.degrees):
                for closer in self._closer(entry):
                    heapq.heappush(queue, closer)
        self._close()

    def _least_of_meshes(self) -> dict[tuple[int, ...], float]:
        """The goal of the best plan of each mesh."""
        values: dict[tuple[int, ...], float] = {}
        for candidate in self.found:
            mesh, value = mesh_of(candidate.plan), self.goal.value(candidate.estimate)
            values[mesh] = min(value, values.get(mesh, math.inf))
        return values

    def _close(self) -> None:
        self.found.sort(key=lambda c: (self.goal.value(c.estimate), Degrees.of(c.plan), c.plan.boundary))
        self.pruned = self.space.count - len(self._priced)

    def _hurries(self) -> bool:
        """True if half of the time has passed without a plan: any is better than none."""
        return not self.found and time.monotonic() > self._hurry_at

    def _deepest(self) -> _Entry:
        """The entry that is nearest to its price, out of turn, which no bound minds."""

        def away(index: int) -> tuple[int, bool, _Entry]:
            entry = self._queue[index]
            return entry.closeness, not self.space.knows(entry.degrees), entry

        index = min(range(len(self._queue)), key=away)
        self._queue[index], self._queue[-1] = self._queue[-1], self._queue[index]
        entry = self._queue.pop()
        heapq.heapify(self._queue)
        return entry

    def _out_of_time(self) -> bool:
        return time.monotonic() > self.stop_at

    def _step(self) -> None:
        entry = self._deepest() if self._hurries() else heapq.heappop(self._queue)
        if self._is_last(entry):
            self._price(entry)
        else:
            for closer in self._closer(entry):
                heapq.heappush(self._queue, closer)

    def _is_last(self, entry: _Entry) -> bool:
        """True if the next look is the price."""
        closer = self.space.has_closer_bound(entry.degrees)
        return entry.level is (_Level.RANKS if closer else _Level.LAYOUT)

    def _closer(self, entry: _Entry) -> list[_Entry]:
        """What becomes of a candidate that is looked at one level more closely."""
        degrees, space = entry.degrees, self.space
        closer: list[_Entry] = []
        if entry.level in (_Level.MESH, _Level.FAMILY):
            # layouts that were solved since may say more
            bound_s = space.mesh_bound_s(degrees)
            if entry.level is _Level.FAMILY:
                bound_s = max(bound_s, space.work_bound_s(degrees))
            if bound_s > entry.bound_s:
                return self._again(entry, bound_s)
        if entry.level is _Level.MESH:
            for shared in space.meshes[degrees]:
                bound_s = max(entry.bound_s, space.first_bound_s(shared))
                if bound_s == math.inf:
                    continue
                closer.append(self._entry(bound_s, _Level.ROUGH, shared))
                if space.stands_for(shared):
                    bound_s = max(entry.bound_s, space.first_bound_s(shared, any_schedule=True))
                    closer.append(self._entry(bound_s, _Level.FAMILY, shared))
        elif entry.level is _Level.FAMILY:
            for variant in space.variants(degrees):
                bound_s = max(entry.bound_s, space.first_bound_s(variant))
                closer.append(self._entry(bound_s, _Level.ROUGH, variant))
        elif entry.level is _Level.ROUGH:
            bound_s = max(entry.bound_s, space.optimistic_bound_s(degrees), space.mesh_bound_s(degrees))
            closer.append(self._entry(bound_s, _Level.CHAIN, degrees))
        elif entry.level is _Level.CHAIN:
            for bound_s in space.joined_bounds_s(degrees):
                if bound_s > entry.bound_s:
                    return self._again(entry, bound_s)
            for index, choice in enumerate(space.choices(degrees)):
                bound_s = max(entry.bound_s, space.choice_bound_s(degrees, choice, closely=False))
                closer.append(self._entry(bound_s, _Level.LAYOUT, degrees, index))
        elif entry.level is _Level.LAYOUT and space.has_closer_bound(degrees):
            bound_s = max(entry.bound_s, space.choice_bound_s(degrees, space.choices(degrees)[entry.choice]))
            closer.append(self._entry(bound_s, _Level.RANKS, degrees, entry.choice))
        return [found for found in closer if found.least < math.inf]

    def _again(self, entry: _Entry, bound_s: float) -> list[_Entry]:
        """The same entry under a higher bound, if that can still matter."""
        again = self._entry(bound_s, entry.level, entry.degrees)
        return [again] if again.least < math.inf else []

    def _entry(self, bound_s: float, level: _Level, degrees: Degrees, choice: int = 0) -> _Entry:
        least = self._least(bound_s, level, degrees, choice)
        return _Entry(least, -level, degrees, choice, bound_s=bound_s)

    def _least(self, bound_s: float, level: _Level, degrees: Degrees, choice: int) -> float:
        """A bound of the goal for steps of ``bound_s`` and more."""
        busy_s = 0.0
        if self.goal.objective is Objective.ENERGY:
            chosen = self.space.choices(degrees)[choice] if level >= _Level.LAYOUT else None
            busy_s = self.space.least_busy_s(degrees, chosen, passes_alone=level is _Level.MESH)
        return self.goal.bound(bound_s, busy_s)

    def _price(self, entry: _Entry) -> None:
        choice = self.space.choices(entry.degrees)[entry.choice]
        staging = self.space.solve(entry.degrees, choice, entry.priced)
        if staging is None:
            return
        # Whatever the exact price says of this staging, no staging of these that are left beats its bound.
        bound_s = max(entry.bound_s, staging.bound_s)
        left = self._entry(bound_s, entry.level, entry.degrees, entry.choice)
        candidate = self.space.candidate(entry.degrees, choice, staging.stages)
        fits, step_s = candidate.estimate.fits, candidate.estimate.step_time_s
        most = 1 if shares_cores(self.space.cluster, entry.degrees) else _STAGINGS
        if (fits and step_s <= bound_s * (1 + _CLOSE)) or len(entry.priced) + 1 >= most:
            self._least_solved_s = min(self._least_solved_s, bound_s)
            self._least_solved = min(self._least_solved, left.least)
        elif left.least < math.inf:
            heapq.heappush(self._queue, replace(left, priced=(*entry.priced, staging.stages)))
        value = self.goal.value(candidate.estimate)
        if not fits or value == math.inf:
            return
        self._priced.add(entry.degrees)
        self.found.append(candidate)
        self._best = min(self._best, value)
        if self.progress is not None:
            step_s = min(self.found, key=lambda c: self.goal.value(c.estimate)).estimate.step_time_s
            self.progress(
                f"{len(self.found)} plans priced, {len(self._queue)} candidates open, best step {step_s:.3f} s"
            )


def mesh_of(plan: Plan | Degrees) -> tuple[int, ...]:
    """The degrees by which runners-up are told apart."""
    return plan.pp, plan.dp, plan.fsdp, plan.cp, plan.tp

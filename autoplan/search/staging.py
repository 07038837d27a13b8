"""The best stages of a chain: the integer program of ``stages``, solved from stage to stage.

A stage's share of a step is known once it is known what it holds (``stage_contents``), so a staging is a path: from
the start of the chain over the ends of the stages to its end. Of what came before a stage, all that the program's z
asks is

    A    when the stage's first input comes
    G    seconds from the stage before's last backward to the end of the step
    ρ    how long the round trip through this stage and all later ones may take, under a z that is aimed at

(a path of z with R_s in it, ρ = the least of (z - what is known of it) / how often R_s is in it). Of two ways to the same
unit, one that is better in all three leads to nothing worse, and the other is dropped. A z in reach of some staging
is known from one that is not by looking at all that is left; bisection from the quick bound (``staging_bound``), which
also says which ranges of units a stage can hold at all, closes on the least.

Where that leaves too much to look at (few stages of many unequal units, far above the bound), and where a choice binds
all stages together, the integer program is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from autoplan.cost.keep import FULL, NONE
from autoplan.cost.memory import in_flight
from autoplan.cost.step import Assignment
from autoplan.search.stage_contents import Contents, Option, TooManyError
from autoplan.search.stages import Staging, StagingQuestion, assignments, solve_program
from autoplan.search.staging_bound import least_of_ranges, staging_bound_s

__all__ = ["best_of_allowed", "solve_staging"]

_GAP = 1e-4  # relative, as of the integer program
_FURTHER = 6.0  # by so much the reach above the bound grows while nothing is in it
_FAR = 2.0  # the largest, but for any z at all
_ARCS = 6_000  # ranges that stages may hold
_LABELS = 60_000  # ways to the units where stages end


def best_of_allowed(question: StagingQuestion, allowed: frozenset[str]) -> Staging | None:
    """The best cut of the chain whose recomputation is one of ``allowed`` (``none``, ``full``, ``mixed``)."""
    ways = {
        "none": replace(question, recompute=NONE),
        "full": replace(question, recompute=FULL),
        "mixed": replace(question, some=True, not_all=True),
    }
    found = [staging for name in sorted(allowed) if (staging := solve_staging(ways[name])) is not None]
    if not found:
        return None
    return min(found, key=lambda staging: staging.bound_s)


def solve_staging(question: StagingQuestion) -> Staging | None:
    """The best cut of the chain, or None if none fits in memory."""
    if question.stages > 1 and not (question.some or question.not_all):
        try:
            return _closest(question)
        except TooManyError:
            pass
    return solve_program(question)


def _closest(question: StagingQuestion) -> Staging | None:
    low = least = staging_bound_s(question)
    if least == np.inf:
        return None
    walk, reach = _Walk(question), _GAP
    while (found := walk.within(least * (1 + reach))) is None:
        if reach == np.inf:
            return None
        low, reach = least * (1 + reach), reach * _FURTHER if reach < _FAR else np.inf
    high = walk.step_s(found)
    while high > low * (1 + _GAP):
        middle = (low + high) / 2
        better = walk.within(middle)
        if better is None:
            low = middle
        else:
            found, high = better, min(middle, walk.step_s(better))
    return Staging(walk.assignments(found), min(low, high))


@dataclass(frozen=True, slots=True)
class _Held:
    """What a stage holds: the units from ``start`` to ``stop``, as ``option`` says.

    Args:
        work_s: seconds of a step that it works, but for one backward pass.
        paths: of the paths of z that wait for round trips after the stage, how many trips, and the seconds that are in
            them beside those, A and G.
        alike: a bit for each excluded assignment in which the stage holds the same.
    """

    start: int
    stop: int
    option: Option
    work_s: float
    paths: tuple[tuple[int, float], ...]
    alike: int


class _Label(NamedTuple):
    """A way to the start of a stage; ``alike``: a bit for each excluded assignment that it has been like so far."""

    arrive: float
    finish: float
    trip: float
    alike: int
    before: _Label | None = None
    held: _Held | None = None


@dataclass(eq=False)
class _Walk:
    """All ways through a chain."""

    question: StagingQuestion
    _contents: dict[tuple[int, tuple[int, ...]], Contents] = field(default_factory=dict)
    _known: dict[tuple[int, int, int], list[_Held]] = field(default_factory=dict)

    @cached_property
    def _sends(self) -> list[float]:
        """Seconds to send to each stage, and from the last."""
        return [0.0, *self.question.sends_s, 0.0]

    @cached_property
    def _least(self) -> Any:
        """Of each stage, the least z at which it holds the units from a to b; shape (stages, b, a)."""
        return least_of_ranges(self.question)

    @cached_property
    def _ways(self) -> list[list[str]]:
        return [self.question.ways_anywhere(g) for g in range(len(self.question.runs))]

    @cached_property
    def _until(self) -> list[tuple[int, ...]]:
        """How many units of each run there are among the first so many."""
        runs = self.question.runs
        total = sum(run.count for run in runs)
        starts = np.cumsum([0, *(run.count for run in runs)])[:-1]
        return [
            tuple(int(min(max(unit - start, 0), run.count)) for run, start in zip(runs, starts, strict=True))
            for unit in range(total + 1)
        ]

    @cached_property
    def _excluded(self) -> list[list[tuple[int, int, tuple[int, ...]]]]:
        """Of each stage, what it holds in the excluded assignments."""
        first = self.question.runs[0].start
        found = []
        for stage in range(self.question.stages):
            here = [stages[stage] for stages in self.question.excluded]
            found.append([(one.start - first, one.stop - first, self._again(one)) for one in here])
        return found

    def _again(self, stage: Assignment) -> tuple[int, ...]:
        counts = []
        for run, names in zip(self.question.runs, self._ways, strict=True):
            held = range(max(run.start, stage.start), min(run.start + run.count, stage.stop))
            taken = [stage.way(unit) for unit in held]
            counts += [taken.count(name) for name in names]
        return tuple(counts)

    def _holds(self, stage: int, start: int, stop: int) -> list[_Held]:
        """What may be made again where ``stage`` holds the units from ``start`` to ``stop``."""
        if (stage, start, stop) not in self._known:
            held = tuple(b - a for a, b in zip(self._until[start], self._until[stop], strict=True))
            place, many = self.question.at(stage), len(self.question.excluded) + 1
            key = stage if self.question.places else 0, held
            if key not in self._contents:
                self._contents[key] = Contents.of(self.question, place, self._ways, held)
            options = self._contents[key].options(self.question, place, stage, many)
            self._known[stage, start, stop] = [self._held(stage, start, stop, option) for option in options]
        return self._known[stage, start, stop]

    def _held(self, stage: int, start: int, stop: int, option: Option) -> _Held:
        same = start, stop, option.again
        alike = sum(1 << place for place, one in enumerate(self._excluded[stage]) if one == same)
        m, p = self.question.micro_batches, self.question.stages
        forward, backward, paths = option.forward_s, option.backward_s, []
        if stage + 1 < p:
            w = in_flight(stage, p, m)
            paths.append((1, (m - w + 1) * forward + (m - 1) * backward))
            for b in sorted({1, (m - 1) // w} if m > w else ()):
                paths.append((b + 1, (m - b * (w - 1)) * (forward + backward) - backward))
        return _Held(start, stop, option, m * forward + (m - 1) * backward, tuple(paths), alike)

    def within(self, z: float) -> list[_Held] | None:
        """A staging of ``z`` seconds or less; None if there is none."""
        arcs = self._arcs(z)
        if arcs is None:
            return None
        trips, rooms = self._ahead(z, arcs)
        labels = {0: [_Label(0.0, 0.0, np.inf, (1 << len(self.question.excluded)) - 1)]}
        seen = 0
        for stage, ranges in enumerate(arcs):
            reached: dict[int, list[_Label]] = {}
            for start, stop in ranges:
                if start in labels and stop in trips[stage + 1]:
                    limits = z, trips[stage + 1][stop], rooms[stage + 1][stop]
                    for held in self._holds(stage, start, stop):
                        self._onward(stage, labels[start], held, limits, reached.setdefault(stop, []))
            labels = reached
            seen += sum(map(len, labels.values()))
            if seen > _LABELS:
                raise TooManyError
        ends = [label for found in labels.values() for label in found if not label.alike]
        return _path(ends[0]) if ends else None

    def _onward(
        self,
        stage: int,
        labels: Sequence[_Label],
        held: _Held,
        limits: tuple[float, float, float],
        ways: list[_Label],
    ) -> None:
        """Add to ``ways`` where ``held`` leads from ``labels``, unless something there is better, and leave out what is
        worse. ``limits``: z, the least trip and the most A + G with which it can go on from there."""
        z, least_trip, room = limits
        option, before, after = held.option, self._sends[stage], self._sends[stage + 1]
        backward, head, last = option.backward_s + before, option.head_s, option.last_s
        trip_s = option.forward_s + option.backward_s + 2 * before
        onward_s = option.forward_s + after
        for label in labels:
            arrive, finish = max(label[0], head), max(label[1] + backward, last)
            ends = arrive + finish
            if ends + held.work_s > z or ends + onward_s > room:
                continue
            trip = min([label[2] - trip_s, *((z - ends - seconds) / times for times, seconds in held.paths)])
            if trip < least_trip:
                continue
            arrive, alike = arrive + onward_s, label[3] & held.alike
            for a, g, r, like, _, _ in ways:
                if a <= arrive and g <= finish and r >= trip and not like & ~alike:
                    break
            else:
                ways[:] = [
                    one
                    for one in ways
                    if arrive > one[0] or finish > one[1] or trip < one[2] or alike & ~one[3]
                ]
                ways.append(_Label(arrive, finish, trip, alike, label, held))

    def _ahead(
        self, z: float, arcs: list[list[tuple[int, int]]]
    ) -> tuple[list[dict[int, float]], list[dict[int, float]]]:
        """Of each stage and the unit that it starts at: what a round trip through it and all later ones takes at least,
        and what A + G may be at most if ``z`` is to be reached; nothing where it cannot be."""
        stages, end = self.question.stages, len(self._until) - 1
        trips: list[dict[int, float]] = [{} for _ in range(stages)] + [{end: 0.0}]
        rooms: list[dict[int, float]] = [{} for _ in range(stages)] + [{end: np.inf}]
        for stage in reversed(range(stages)):
            before, after = self._sends[stage : stage + 2]
            for start, stop in arcs[stage]:
                if stop not in trips[stage + 1]:
                    continue
                later, onward = trips[stage + 1][stop], rooms[stage + 1][stop] - after
                for held in self._holds(stage, start, stop):
                    forward, backward = held.option.forward_s, held.option.backward_s
                    paths = [z - times * later - seconds for times, seconds in held.paths]
                    room = min(onward - forward, z - held.work_s, *paths) - backward - before
                    if room >= 0.0:
                        trip = later + forward + backward + 2 * before
                        trips[stage][start] = min(trips[stage].get(start, np.inf), trip)
                        rooms[stage][start] = max(rooms[stage].get(start, -np.inf), room)
        return trips, rooms

    def _arcs(self, z: float) -> list[list[tuple[int, int]]] | None:
        """The ranges of units that each stage may hold, on some way from the first to the last; None if there is no
        way."""
        fits = np.isfinite(self._least) & (self._least <= z)
        stages, ends = fits.shape[:2]
        forth = np.zeros((stages + 1, ends), dtype=bool)
        back = np.zeros((stages + 1, ends), dtype=bool)
        forth[0, 0] = back[stages, -1] = True
        for stage in range(stages):
            forth[stage + 1] = (fits[stage] & forth[stage]).any(axis=1)
        for stage in reversed(range(stages)):
            back[stage] = (fits[stage] & back[stage + 1][:, None]).any(axis=0)
        if not forth[stages, -1]:
            return None
        found = [np.argwhere((fits[s] & forth[s] & back[s + 1][:, None]).T).tolist() for s in range(stages)]
        if sum(map(len, found)) > _ARCS:
            raise TooManyError
        return [[(start, stop) for start, stop in of_stage] for of_stage in found]

    def step_s(self, path: Sequence[_Held]) -> float:
        """z of a staging."""
        trips = [0.0]
        for stage in reversed(range(1, len(path))):
            option = path[stage].option
            trips.insert(0, trips[0] + option.forward_s + option.backward_s + 2 * self._sends[stage])
        arrive, finish, z = 0.0, 0.0, 0.0
        for stage, held in enumerate(path):
            arrive = max(arrive, held.option.head_s)
            finish = max(held.option.last_s, finish + held.option.backward_s + self._sends[stage])
            paths = (times * trips[stage] + seconds for times, seconds in held.paths)
            z = max(z, arrive + finish + max(held.work_s, *paths, 0.0))
            arrive += held.option.forward_s + self._sends[stage + 1]
        return z

    def assignments(self, path: Sequence[_Held]) -> tuple[Assignment, ...]:
        """A staging as the rest of the search knows it."""
        held = [
            [b - a for a, b in zip(self._until[one.start], self._until[one.stop], strict=True)]
            for one in path
        ]
        again = []
        place = 0
        for names in self._ways:
            again.append(
                [(name, [one.option.again[place + n] for one in path]) for n, name in enumerate(names)]
            )
            place += len(names)
        return assignments(self.question, list(map(list, zip(*held, strict=True))), again)


def _path(label: _Label) -> list[_Held]:
    found: list[_Held] = []
    at: _Label | None = label
    while at is not None and at.held is not None:
        found.append(at.held)
        at = at.before
    return found[::-1]

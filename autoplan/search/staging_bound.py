"""A quick lower bound on the best staging of a chain whose units between the first and last are all equal.

Most models are such a chain. Stage s with n of the N equal units makes no more again than its memory demands, at the
least seconds for the bytes (``UnitCost.least_again``, mixed in any shares), so it has a least F_s(n) and B_s(n), and
so a least z at which it can hold n:

    m (F_s + B_s)(n) + u·(units before it) + what is fixed before it ≤ z    all its work, and the way to it
    m F_s(n) + (m - 1) B_s(n) + L_s(n) ≤ z                                  all its work, and what follows
    C + (m - 1) B_s(n) + (m - w_s) F_s(n) ≤ z                               waiting for a round trip
    (b + 1) C + (m - 1 - b p) (F_0 + B_0)(n) ≤ z                            waiting for b + 1 of them

(u: the least that a unit adds to a micro-batch; C: the least of the whole chain; see ``stages`` for the
paths.) Each left side grows with n, so z gives each stage a cap, from the last stage to the first, and
no staging is faster than a z at which the caps together hold fewer than N units. Bisection finds it in a
millisecond, where the integer program takes up to half a second.

Where devices differ, F_s and B_s are those of the stage's own, and u and C those of the best for each unit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from autoplan.cost.keep import FULL, NONE, Keep
from autoplan.cost.memory import ALLOCATOR_SLACK, in_flight
from autoplan.cost.state_traffic import StateTraffic
from autoplan.cost.unit import UnitCost
from autoplan.search.largest import largest_between, largest_bytes
from autoplan.search.pipeline_bound import pipeline_bound_s
from autoplan.search.run import Run
from autoplan.search.stages import StagingQuestion

__all__ = ["least_of_ranges", "staging_bound_s"]

_ROUNDS = 14  # of bisection: the interval shrinks 16,000 times


def staging_bound_s(question: StagingQuestion) -> float:
    """No staging of ``question`` is faster; infinite if none fits in memory."""
    chain = _Chain.of(question.runs)
    least = _closed_form(question)
    if chain is None or question.places:
        return max(least, _unequal_s(question))
    holds = _Equal.of(question, chain).holds
    if not holds(np.inf):
        return np.inf
    if holds(least):
        return least
    low, high = least, 2 * least
    while not holds(high):
        low, high = high, 2 * high
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low


@dataclass(frozen=True, slots=True)
class _Chain:
    """One run of ``units``, with at most one unit before it and one after."""

    before: Run | None
    units: Run
    after: Run | None

    @classmethod
    def of(cls, runs: Sequence[Run]) -> _Chain | None:
        rest = list(runs)
        before = rest.pop(0) if len(rest) > 1 and _fixed(rest[0]) else None
        after = rest.pop() if len(rest) > 1 and _fixed(rest[-1]) else None
        return cls(before, rest[0], after) if len(rest) == 1 else None


def _fixed(run: Run) -> bool:
    """True of a unit that is alone of its kind, and never runs again."""
    return run.count == 1 and not run.repeats


@dataclass(frozen=True, slots=True)
class _Equal:
    """The stages of a chain of equal units, by stage for n = 0, 1, … units of them: the least z at which the stage holds
    n, and the same but for the units before."""

    unit_s: float
    count: int
    free: Any
    after_units: list[list[float]]

    @classmethod
    def of(cls, q: StagingQuestion, chain: _Chain) -> _Equal:
        units, n = chain.units, np.arange(chain.units.count + 1, dtype=float)
        figures = np.tile(n * _figures(units)[:, None, None], (1, q.stages, 1))
        for stage, run in ((0, chain.before), (-1, chain.after)):
            if run is not None:
                figures[:, stage] += _figures(run)[:, None]
        again = _again_s(q, chain, n)
        free, both = _least_z(q, figures, again, range(q.stages), q.overlap, _trips_s(q))
        unit_s, before_s = _least_s(q, units), _least_s(q, chain.before)
        way = np.array([[2 * s * q.send_s + (before_s if s else 0.0)] for s in range(q.stages)])
        never = np.isnan(again)
        free = np.where(never, np.inf, np.maximum(free, both + way))
        work = np.where(never, np.inf, both + way - unit_s * n)
        return cls(unit_s, units.count, free, work.tolist())

    def holds(self, z: float) -> bool:
        """False if no staging takes ``z`` seconds or less."""
        fits = self.free <= z if z < np.inf else np.isfinite(self.free)
        caps, left = fits.sum(axis=1).tolist(), self.count
        for s in range(len(caps) - 1, -1, -1):
            cap = caps[s]
            if s and z < np.inf:
                cap = min(cap, bisect_right(self.after_units[s], z - self.unit_s * left))
            if cap == 0:
                return False
            left -= min(cap - 1, left)
        return left == 0


def _again_s(q: StagingQuestion, chain: _Chain, n: Any) -> Any:
    """Seconds that n equal units spend at least on making again what memory does not hold; NaN where it never fits; shape
    (stages, units)."""
    unit, last, forced = chain.units, q.stages - 1, _forced(q, chain.units)
    cost = _at_work(unit.cost, forced)
    largest: dict[tuple[bool, bool], Any] = {}  # by n; stages between the first and the last are alike
    rooms = []
    for s in range(q.stages):
        place = s == 0, s == last
        ends = [run if here else None for run, here in zip((chain.before, chain.after), place, strict=True)]
        if place not in largest:
            before, after = (None if run is None else run.cost for run in ends)
            few = np.array([_largest(q, before, [cost] * many, after) for many in range(3)])
            largest[place] = few[np.minimum(n, 2).astype(int)]
        held, fixed = in_flight(s, q.stages, q.micro_batches), [run for run in ends if run is not None]
        taken = sum(run.state_bytes + held * run.cost.saved_bytes for run in fixed)
        rooms.append(_room(q, s, largest[place]) - taken)
    room, held = np.array(rooms), _in_flight(q, range(q.stages))[:, None]
    left = (room - n * unit.state_bytes) / (held * np.maximum(n, 1.0))  # for what a unit keeps
    none = (n == 0) & (room >= 0)
    if forced is not None:
        return np.where((forced.kept_bytes <= left) | none, n * forced.rerun_s, np.nan)
    points = cost.least_again if q.recompute != "offload" else ((0.0, 0.0),)
    kept, seconds = np.array(points[::-1]).T
    return np.where((left >= kept[0]) | none, n * np.interp(left, kept, seconds), np.nan)


def _in_flight(q: StagingQuestion, stages: Sequence[int]) -> Any:
    """Micro-batches that each of ``stages`` holds at once."""
    return np.array([in_flight(s, q.stages, q.micro_batches) for s in stages], dtype=float)


def _at_work(cost: UnitCost, forced: Keep | None) -> UnitCost:
    """The cost of a unit whose backward also works with what it surely makes again."""
    if forced is None:
        return cost
    return replace(cost, workspace_bytes=cost.workspace_bytes + forced.again_bytes)


def _largest(
    q: StagingQuestion, before: UnitCost | None, units: Sequence[UnitCost], after: UnitCost | None
) -> float:
    held = [unit for unit in (before, *units, after) if unit is not None]
    return largest_bytes(held, q.rates) if held else 0.0


def _room(q: StagingQuestion, s: int, largest: Any) -> Any:
    """Bytes of a device for the state of stage s and for what its units keep; ``largest``: what goes with the largest."""
    held, place = in_flight(s, q.stages, q.micro_batches), q.at(s)
    room = (place.limit_bytes - place.reserve_bytes) / (1 + ALLOCATOR_SLACK) - largest
    return room - (held * q.sent_bytes if s + 1 < q.stages else 0.0) + 1e-6 * place.limit_bytes


def _forced(q: StagingQuestion, unit: Run) -> Keep | None:
    """The one way that a unit may go, if the question leaves it no choice."""
    if not unit.repeats or q.recompute == NONE:
        return unit.cost.keep(NONE)
    known = q.recompute == FULL or q.recompute in unit.cost.keeps
    if q.recompute is None or not known:
        return None
    return unit.cost.keep(q.recompute)


def _figures(run: Run) -> Any:
    """Of one unit: computing and waiting forward and backward, four kinds of traffic, the optimizer; shape (9,)."""
    t, sent = run.cost.times, _sent(run.traffic)
    return np.array(
        (t.forward_s, t.forward_comm_s, t.backward_s, t.backward_comm_s, *sent, run.optimizer_s), dtype=float
    )


def _least_z(
    q: StagingQuestion, figures: Any, again: Any, stages: Sequence[int], overlap: float, trips: float
) -> tuple[Any, Any]:
    """The least z at which each of ``stages`` can have units whose ``_figures`` add up so and that make again for
    ``again`` seconds, the way to it left out; and m (F + B). ``trips``: seconds of a round trip through all stages.

    The first dim of figures is which one, the next, and the first of ``again``, the stage; others are of any one shape.
    All of ``again`` counts as computing, which hides the most.
    """
    forward, comm_f, backward, comm_b, way, back, before, tail, optimizer = figures
    window = backward + again

    def exposed(comm: Any, beside: Any) -> Any:
        return np.maximum((1 - overlap) * comm, comm - beside)

    each_f = forward + comm_f + exposed(way, forward)
    each_b = window + comm_b + exposed(back, window)
    last = window + comm_b + optimizer + exposed(back + tail, window)
    m, p = q.micro_batches, q.stages
    w = _in_flight(q, stages).reshape(-1, *(1,) * (again.ndim - 1))
    own = m * each_f + (m - 1) * each_b + last
    if stages[0] == 0:
        own[0] += exposed(before[0], forward[0])
    free = np.maximum(own, trips + (m - 1) * each_b + (m - w) * each_f)
    if stages[0] == 0 and m > p > 1:
        for b in (1, (m - 1) // p):
            work = (m - 1 - b * p) * (each_f[0] + each_b[0])
            free[0] = np.maximum(free[0], (b + 1) * trips + work)
    return free, m * (each_f + each_b)


def _sent(traffic: StateTraffic) -> tuple[float, float, float, float]:
    return traffic.forward_s, traffic.backward_s, traffic.head_s, traffic.tail_fsdp_s + traffic.tail_dp_s


def _least_s(q: StagingQuestion, run: Run | None) -> float:
    """Seconds that one unit adds at least to a micro-batch's two passes."""
    if run is None:
        return 0.0
    hidden = 1 - q.overlap
    return run.cost.times.total_s + hidden * (run.traffic.forward_s + run.traffic.backward_s)


def _trips_s(q: StagingQuestion) -> float:
    return sum(run.count * _least_s(q, run) for run in q.runs) + 2 * sum(q.sends_s)


def _closed_form(q: StagingQuestion) -> float:
    hidden, forward, backward, tail = 1 - q.overlap, 0.0, 0.0, 0.0
    for run in q.runs:
        times, sent = run.cost.times, _sent(run.traffic)
        forward += run.count * (times.forward_s + times.forward_comm_s + hidden * sent[0])
        backward += run.count * (times.backward_s + times.backward_comm_s + hidden * sent[1])
        tail += run.count * (run.optimizer_s + hidden * sent[3])
    return pipeline_bound_s(forward, backward, tail, q.stages, q.micro_batches)


def _unequal_s(q: StagingQuestion) -> float:
    """The least z at which stages hold the chain between them; infinite if they cannot."""
    tables = least_of_ranges(q)
    least = tables[0, :, 0]  # of the stages so far, by where they end
    for table in tables[1:]:
        least = np.maximum(table, least).min(axis=1)
    return float(least[-1])


def least_of_ranges(q: StagingQuestion) -> Any:
    """The least z at which each stage holds the units from a to b, infinite where there are none; shape (stages, b, a)."""
    ways = [_least_s(q, run) for run in q.runs for _ in range(run.count)]
    before, trips = np.concatenate(((0.0,), np.cumsum(ways))), _trips_s(q)
    ranges = _ranges(tuple(run.count for run in q.runs))
    free, both = np.full((2, q.stages, len(ranges.held) + 1), np.inf)
    alike: dict[int, list[int]] = {}  # stages by type of device
    for s in range(q.stages):
        alike.setdefault(id(q.places[s]) if q.places else 0, []).append(s)
    for stages in alike.values():
        place = q.at(stages[0])
        again = _Memory.of(q, place.runs, ranges).again_s(q, stages)
        figures = np.array([_figures(run) for run in place.runs]).T @ ranges.held.T
        never = np.isnan(again)
        own, passes = _least_z(q, figures[:, None], again, stages, place.overlap, trips)
        free[stages, :-1], both[stages, :-1] = np.where(never, np.inf, (own, passes))
    sends = 2 * np.concatenate(((0.0,), np.cumsum(q.sends_s)))
    return np.maximum(free[:, ranges.place], both[:, ranges.place] + before + sends[:, None, None])


@dataclass(frozen=True, slots=True)
class _Ranges:
    """What the ranges of a chain hold, each once.

    Args:
        held: units of each run; shape (ranges, runs).
        place: which of them are the units from a to b, the one after the last where there are none; shape (b, a).
        b, a: of each range, ends that it has.
    """

    held: Any
    place: Any
    b: Any
    a: Any


@lru_cache(maxsize=64)
def _ranges(counts: tuple[int, ...]) -> _Ranges:
    """The ranges of a chain of runs of so many units."""
    units = np.repeat(np.eye(len(counts)), counts, axis=0)
    until = np.concatenate((np.zeros((1, len(counts))), np.cumsum(units, axis=0)))
    ends = len(until)
    b, a = np.tril_indices(ends, -1)
    held, first, which = np.unique(until[b] - until[a], axis=0, return_index=True, return_inverse=True)
    place = np.full((ends, ends), len(held))
    place[b, a] = which.ravel()
    return _Ranges(held, place, b[first], a[first])


@dataclass(frozen=True, slots=True)
class _Memory:
    """Of ranges of units: bytes of state; bytes that each micro-batch in flight keeps at most, and at least; and what can
    be made again, the cheapest bytes first, as (bytes, seconds a byte). ``largest``: bytes that go with the largest of
    the units."""

    state: Any
    kept: Any
    least: Any
    forced_s: Any
    pieces: Sequence[tuple[Any, float]]
    largest: Any

    @classmethod
    def of(cls, q: StagingQuestion, units: Sequence[Run], ranges: _Ranges) -> _Memory:
        """``units``: one of each run."""
        forced = [_forced(q, unit) for unit in units]
        hulls = [
            ((keep.kept_bytes, 0.0),)
            if keep is not None
            else unit.cost.least_again
            if q.recompute != "offload"
            else ((0.0, 0.0),)
            for unit, keep in zip(units, forced, strict=True)
        ]
        rates: dict[float, list[float]] = {}
        for place, points in enumerate(hulls):
            for (k1, s1), (k2, s2) in pairwise(points):
                if k1 > k2:
                    rates.setdefault((s2 - s1) / (k1 - k2), [0.0] * len(units))[place] += k1 - k2
        of_units = [
            [unit.state_bytes for unit in units],
            [points[0][0] for points in hulls],
            [points[-1][0] for points in hulls],
            [0.0 if keep is None else keep.rerun_s for keep in forced],
            *(rates[rate] for rate in sorted(rates)),
        ]
        state, kept, least, forced_s, *pieces = np.array(of_units) @ ranges.held.T
        costs = [
            cost
            for unit, keep in zip(units, forced, strict=True)
            for cost in [_at_work(unit.cost, keep)] * unit.count
        ]
        if q.stages == 1:
            largest = largest_bytes(costs, q.rates)
        else:
            largest = largest_between(costs, q.rates)[ranges.b, ranges.a]
        return cls(state, kept, least, forced_s, list(zip(pieces, sorted(rates), strict=True)), largest)

    def again_s(self, q: StagingQuestion, stages: Sequence[int]) -> Any:
        """Seconds that these units spend at least in each of ``stages`` on making again what memory does not hold; NaN
        where it never fits; shape (stages, ranges)."""
        held = _in_flight(q, stages)[:, None]
        room = (
            np.array([_room(q, s, self.largest) for s in stages]).reshape(len(stages), -1) - self.state
        ) / held
        over = self.kept - room
        again = np.tile(self.forced_s, (len(stages), 1))
        for freed, byte_s in self.pieces:
            again += byte_s * np.minimum(np.maximum(over, 0.0), freed)
            over = over - freed
        return np.where(self.least <= room, again, np.nan)

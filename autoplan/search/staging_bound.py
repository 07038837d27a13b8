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
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoplan.cost.keep import FULL, NONE, Keep
from autoplan.cost.memory import ALLOCATOR_SLACK, in_flight
from autoplan.cost.state_traffic import StateTraffic
from autoplan.search.pipeline_bound import pipeline_bound_s
from autoplan.search.run import Run
from autoplan.search.stages import StagingQuestion, largest_bytes

__all__ = ["staging_bound_s"]

_ROUNDS = 14  # of bisection: the interval shrinks 16,000 times


def staging_bound_s(question: StagingQuestion) -> float:
    """No staging of ``question`` is faster; infinite if none fits in memory."""
    chain = _Chain.of(question.runs)
    least = _closed_form(question)
    if chain is None:
        return least
    tables = [_Stage.of(question, chain, s) for s in range(question.stages)]
    if not _holds(question, chain, tables, np.inf):
        return np.inf
    if _holds(question, chain, tables, least):
        return least
    low, high = least, 2 * least
    while not _holds(question, chain, tables, high):
        low, high = high, 2 * high
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (low, middle) if _holds(question, chain, tables, middle) else (middle, high)
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
        before = rest.pop(0) if len(rest) > 1 and rest[0].count == 1 else None
        after = rest.pop() if len(rest) > 1 and rest[-1].count == 1 else None
        return cls(before, rest[0], after) if len(rest) == 1 else None


@dataclass(frozen=True, slots=True)
class _Stage:
    """For n = 0, 1, …: the least z at which the stage holds n units, and the same but for the units before."""

    free: list[float]
    after_units: list[float]

    @classmethod
    def of(cls, q: StagingQuestion, chain: _Chain, s: int) -> _Stage:
        fixed = [chain.before] if s == 0 and chain.before else []
        fixed += [chain.after] if s == q.stages - 1 and chain.after else []
        n = np.arange(chain.units.count + 1, dtype=float)
        again = _again_s(q, chain.units, fixed, n, s)
        forward, backward, head, last = _passes(q, chain.units, fixed, n, again)
        m, w = q.micro_batches, in_flight(s, q.stages, q.micro_batches)
        way = 2 * s * q.send_s + (_least_s(q, chain.before) if s and chain.before else 0.0)
        trips = _chain_s(q) + 2 * (q.stages - 1) * q.send_s
        own = m * forward + (m - 1) * backward + last + (head if s == 0 else 0.0)
        free = np.maximum(own, trips + (m - 1) * backward + (m - w) * forward)
        free = np.maximum(free, m * (forward + backward) + way)
        if s == 0 and m > q.stages > 1:
            for b in (1, (m - 1) // q.stages):
                free = np.maximum(free, (b + 1) * trips + (m - 1 - b * q.stages) * (forward + backward))
        work = m * (forward + backward) + way - _least_s(q, chain.units) * n
        never = np.isnan(again)
        return cls(list(np.where(never, np.inf, free)), list(np.where(never, np.inf, work)))


def _holds(q: StagingQuestion, chain: _Chain, stages: Sequence[_Stage], z: float) -> bool:
    """False if no staging takes ``z`` seconds or less."""
    left, unit_s = chain.units.count, _least_s(q, chain.units)
    for s in range(q.stages - 1, -1, -1):
        cap = bisect_right(stages[s].free, z) if z < np.inf else int(np.isfinite(stages[s].free).sum())
        if s and z < np.inf:
            cap = min(cap, bisect_right(stages[s].after_units, z - unit_s * left))
        if cap == 0:
            return False
        left -= min(cap - 1, left)
    return left == 0


def _again_s(q: StagingQuestion, unit: Run, fixed: Sequence[Run], n: Any, s: int) -> Any:
    """Seconds that n units spend at least on making again what memory does not hold; NaN where it never fits."""
    cost, held = unit.cost, in_flight(s, q.stages, q.micro_batches)
    room = (q.limit_bytes - q.reserve_bytes) / (1 + ALLOCATOR_SLACK) - largest_bytes(q, s)
    room -= sum(run.state_bytes + held * run.cost.saved_bytes for run in fixed)
    room -= held * q.sent_bytes if s + 1 < q.stages else 0.0
    room = room + 1e-6 * q.limit_bytes
    each = np.maximum(n, 1.0)
    left = (room - n * unit.state_bytes) / (held * each)  # for what a unit keeps
    forced = _forced(q, unit)
    if forced is not None:
        there = np.where(n > 0, forced.again_bytes / (held * each), 0.0)
        return np.where(
            (forced.kept_bytes <= left - there) | ((n == 0) & (room >= 0)), n * forced.rerun_s, np.nan
        )
    points = cost.least_again if q.recompute != "offload" else ((0.0, 0.0),)
    kept, seconds = np.array(points[::-1]).T
    again = n * np.interp(left, kept, seconds)
    return np.where((left >= kept[0]) | ((n == 0) & (room >= 0)), again, np.nan)


def _forced(q: StagingQuestion, unit: Run) -> Keep | None:
    """The one way that a unit may go, if the question leaves it no choice."""
    if not unit.repeats or q.recompute == NONE:
        return unit.cost.keep(NONE)
    known = q.recompute == FULL or q.recompute in unit.cost.keeps
    if q.recompute is None or not known:
        return None
    return unit.cost.keep(q.recompute)


def _passes(
    q: StagingQuestion, unit: Run, fixed: Sequence[Run], n: Any, again: Any
) -> tuple[Any, Any, Any, Any]:
    """F, B, head and L of a stage for each n. All of ``again`` counts as computing, which hides the most."""
    t, traffic = unit.cost.times, unit.traffic
    forward, backward, optimizer = n * t.forward_s, n * t.backward_s, n * unit.optimizer_s
    comm_f, comm_b = n * t.forward_comm_s, n * t.backward_comm_s
    window = backward + again
    sums = [n * value for value in _sent(traffic)]
    for run in fixed:
        times = run.cost.times
        forward, window = forward + times.forward_s, window + times.backward_s
        comm_f, comm_b = comm_f + times.forward_comm_s, comm_b + times.backward_comm_s
        optimizer = optimizer + run.optimizer_s
        sums = [total + value for total, value in zip(sums, _sent(run.traffic), strict=True)]

    def exposed(comm: Any, beside: Any) -> Any:
        return np.maximum((1 - q.overlap) * comm, comm - beside)

    return (
        forward + comm_f + exposed(sums[0], forward),
        window + comm_b + exposed(sums[1], window),
        exposed(sums[2], forward),
        window + comm_b + optimizer + exposed(sums[1] + sums[3], window),
    )


def _sent(traffic: StateTraffic) -> tuple[float, float, float, float]:
    return traffic.forward_s, traffic.backward_s, traffic.head_s, traffic.tail_fsdp_s + traffic.tail_dp_s


def _least_s(q: StagingQuestion, run: Run | None) -> float:
    """Seconds that one unit adds at least to a micro-batch's two passes."""
    if run is None:
        return 0.0
    hidden = 1 - q.overlap
    return run.cost.times.total_s + hidden * (run.traffic.forward_s + run.traffic.backward_s)


def _chain_s(q: StagingQuestion) -> float:
    return sum(run.count * _least_s(q, run) for run in q.runs)


def _closed_form(q: StagingQuestion) -> float:
    hidden, forward, backward, tail = 1 - q.overlap, 0.0, 0.0, 0.0
    for run in q.runs:
        times, sent = run.cost.times, _sent(run.traffic)
        forward += run.count * (times.forward_s + times.forward_comm_s + hidden * sent[0])
        backward += run.count * (times.backward_s + times.backward_comm_s + hidden * sent[1])
        tail += run.count * (run.optimizer_s + hidden * sent[3])
    return pipeline_bound_s(forward, backward, tail, q.stages, q.micro_batches)

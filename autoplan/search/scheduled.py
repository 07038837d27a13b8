"""Candidates under any schedule but 1F1B: their stages, what they must recompute, and bounds of their step.

With several stages on a rank, or backwards in halves, stages are cut evenly (``even_stages``), and a rank
recomputes as few units as its memory asks for, in turn from each of its stages, all in one way (in full, or under
one policy). So a candidate with its layouts and that way is one plan, and its price is exact; what is searched is
which schedule, how many stages a rank, and all degrees. (1F1B's stages are searched one by one, see ``stages``.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoplan.cost.degrees import Degrees
from autoplan.cost.keep import FULL, NONE
from autoplan.cost.memory import ALLOCATOR_SLACK, StageLoad, limit_bytes, rank_memory
from autoplan.cost.pipeline.activations import moments_by_rank, moments_of_rank
from autoplan.cost.state_traffic import StateTraffic, state_traffic
from autoplan.cost.step import Assignment
from autoplan.cost.tied import stage_units
from autoplan.cost.unit import UnitCost
from autoplan.plan.schedule import SCHEDULE_NEEDS, Schedule, ranks_of_stages
from autoplan.search.even_stages import even_stages, unit_weights
from autoplan.search.run import least_optimizer_s
from autoplan.search.schedule_bound import StageSums, schedule_bound_s

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import Cluster
    from autoplan.plan import Job

__all__ = ["Scheduled"]

Floats = NDArray[np.float64]


class Scheduled:
    """The chain of one model, asked about under one schedule after another.

    ``recompute``: None to choose, or the way of every unit that may be recomputed. ``without``: ways not to choose.
    """

    def __init__(
        self,
        chain: ModelGraph,
        job: Job,
        cluster: Cluster,
        recompute: str | None,
        without: frozenset[str] = frozenset(),
    ) -> None:
        self.chain, self.job, self.cluster, self.recompute = chain, job, cluster, recompute
        self.without = without
        self.weights = unit_weights(chain)
        self.kinds = list(chain.kinds)
        place = {kind: index for index, kind in enumerate(self.kinds)}
        self.kind_of = np.array([place[unit.kind] for unit in chain.units])
        self.eligible = [bool(chain.kinds[unit.kind].path) for unit in chain.units]
        self._shared = _values_held_twice(chain)
        self._rows: dict[tuple[int, ...], tuple[Mapping[str, UnitCost], Floats]] = {}

    def ranges(self, degrees: Degrees) -> tuple[tuple[int, int], ...]:
        """The range of the chain that each stage runs."""
        return even_stages(self.weights, degrees.schedule, degrees.pp, degrees.vpp)

    def work_s(self, degrees: Degrees, costs: Mapping[str, UnitCost]) -> float:
        """What the mean rank works in a step, whatever the schedule."""
        total = self._each(degrees, costs).sum(axis=0)
        hidden = 1 - self.cluster.overlap
        forward, forward_comm, backward, backward_comm, _, way, back, _, tail, step = total.tolist()
        passes = forward + forward_comm + backward + backward_comm + hidden * (way + back)
        return (degrees.num_micro_batches * passes + step + hidden * tail) / degrees.pp

    def bound_s(
        self,
        degrees: Degrees,
        costs: Mapping[str, UnitCost],
        again: Mapping[int, str] | None = None,
        send_s: float = 0.0,
        first_again_s: float = 0.0,
    ) -> float:
        """A bound of the step. With the least costs of units, that of any layouts.

        Args:
            again: by position of a unit in the chain, the way that it surely goes.
            send_s: the least that any stage takes to send to another rank.
            first_again_s: what the first rank surely spends on making things again beside that.
        """
        sums = self._least_sums(degrees, costs, again or {}, send_s)
        more = np.zeros(degrees.pp)
        more[0] = first_again_s
        return schedule_bound_s(degrees, replace(sums, again=more))

    def ways(self, costs: Mapping[str, UnitCost]) -> list[str]:
        """The ways that all units that do something again may go: the one asked for, or any but ``offload``."""
        if self.recompute is not None:
            return [self.recompute]
        names = {name for kind in self.kinds for name in costs[kind].keeps} - self.without - {"offload"}
        return [name for name in (*sorted(names), FULL) if name not in self.without]

    def assignments(
        self, degrees: Degrees, costs: Mapping[str, UnitCost], sent_bytes: Sequence[float], way: str
    ) -> list[Assignment] | None:
        """The stages, with what they make again in ``way``; None if nothing that may be makes them fit."""
        ranges, ranks = self.ranges(degrees), degrees.stage_ranks
        loads = []
        for index, (start, stop) in enumerate(ranges):
            units = stage_units(self.chain, costs, start, stop)
            sent = sent_bytes[stop - 1] if sent_bytes and index + 1 < len(ranges) else 0.0
            loads.append(StageLoad(units, [unit.keep(NONE) for unit in units], sent))
        again: list[dict[int, str]] = [{} for _ in ranges]
        moments = moments_by_rank(degrees.schedule, degrees.pp, degrees.vpp, degrees.num_micro_batches)
        for rank in range(degrees.pp):
            stages = [index for index, home in enumerate(ranks) if home == rank]
            order = self._in_turn([ranges[index] for index in stages], costs, way)
            count = self._fewest(degrees, [loads[index] for index in stages], order, moments[rank], way)
            if count is None:
                return None
            chosen = order[:count]
            for place, index in enumerate(stages):
                start = ranges[index][0]
                again[index] = {start + unit: way for stage, unit in chosen if stage == place}
        return [Assignment.of(*ends, units) for ends, units in zip(ranges, again, strict=True)]

    def fitting(
        self, degrees: Degrees, costs: Mapping[str, UnitCost], sent_bytes: Sequence[float]
    ) -> list[list[Assignment]]:
        """For each way, the stages; those that fit, and one alone where nothing has to be made again."""
        found = []
        for way in self.ways(costs):
            stages = self.assignments(degrees, costs, sent_bytes, way)
            if stages is not None:
                found.append(stages)
                if not any(stage.recompute or stage.policies for stage in stages):
                    break
        return found

    def _in_turn(
        self, ranges: Sequence[tuple[int, int]], costs: Mapping[str, UnitCost], way: str
    ) -> list[tuple[int, int]]:
        """(stage of the rank, unit of the stage) of all that may be recomputed: the first of each stage, then the
        second of each."""
        found = []
        for place, (start, stop) in enumerate(ranges):
            units = [
                unit
                for unit in range(stop - start)
                if self.eligible[start + unit]
                and (way in (NONE, FULL) or way in costs[self.chain.units[start + unit].kind].keeps)
            ]
            found += [(turn, place, unit) for turn, unit in enumerate(units)]
        return [(place, unit) for _, place, unit in sorted(found)]

    def _fewest(
        self,
        degrees: Degrees,
        loads: Sequence[StageLoad],
        order: Sequence[tuple[int, int]],
        held: Floats,
        way: str,
    ) -> int | None:
        """How many of ``order`` a rank must give ``way`` to fit; None if all are too few.

        ``held``: what it keeps at its worst moments, shape (moments, 2 · stages): forwards by stage, then
        weight halves by stage.
        """
        everything = range(len(order), len(order) + 1)
        tried = range(len(order) + 1) if self.recompute is None else range(1) if way == NONE else everything
        units = [loads[place].units[unit] for place, unit in order]
        keeps = [unit.keep(way) for unit in units]
        kept = np.array([[load.kept_bytes] * (len(order) + 1) for load in loads])
        for turn, ((place, _), unit, keep) in enumerate(zip(order, units, keeps, strict=True)):
            kept[place, turn + 1 :] += keep.kept_bytes - unit.saved_bytes
        halves = np.array([[load.half_bytes] * (len(order) + 1) for load in loads])
        activations = (held @ np.concatenate((kept, halves))).max(axis=0)
        empty = rank_memory(loads, 0.0, degrees, self.job, self.cluster.device)
        beside = [unit.workspace_bytes + keep.again_bytes for unit, keep in zip(units, keeps, strict=True)]
        rerun = np.maximum.accumulate([0.0, *(each - empty.workspace for each in beside)])
        total = empty.total + (1 + ALLOCATOR_SLACK) * (activations + rerun)
        limit = limit_bytes(self.cluster.device)
        return next((count for count in tried if total[count] <= limit), None)

    def first_rank_bound_s(
        self, degrees: Degrees, costs: Mapping[str, UnitCost], sent_bytes: Sequence[float] = ()
    ) -> float:
        """A bound that knows the memory of the first rank, which keeps the most; infinite if that does not fit."""
        ranges = [
            own for own, rank in zip(self.ranges(degrees), degrees.stage_ranks, strict=True) if rank == 0
        ]
        units = [stage_units(self.chain, costs, start, stop) for start, stop in ranges]
        loads = [StageLoad(held, [unit.keep(NONE) for unit in held], 0.0) for held in units]
        p, v, m = degrees.pp, degrees.vpp, degrees.num_micro_batches
        moments = moments_of_rank(degrees.schedule, p, v, m, 0)
        again_s = self._least_again_s(degrees, ranges, loads, moments)
        if again_s == math.inf:
            return math.inf
        send_s = self._least_send_s(degrees, sent_bytes)
        return self.bound_s(degrees, costs, send_s=send_s, first_again_s=again_s)

    def _least_send_s(self, degrees: Degrees, sent_bytes: Sequence[float]) -> float:
        sent = min(sent_bytes, default=0.0)
        return self.cluster.p2p_time_s(sent, degrees.pp_stride, degrees.pp)

    def _least_again_s(
        self,
        degrees: Degrees,
        ranges: Sequence[tuple[int, int]],
        loads: Sequence[StageLoad],
        held: Floats,
    ) -> float:
        """Seconds of a micro-batch that a rank spends at least on making again what does not fit at its fullest
        moment: the cheapest bytes first, of any units in any shares."""
        if self.recompute == "offload":
            return 0.0
        kept = np.array([load.kept_bytes for load in loads] + [load.half_bytes for load in loads])
        moment = held[int((held @ kept).argmax())]
        base = rank_memory(loads, 0.0, degrees, self.job, self.cluster.device).total
        over = (base - limit_bytes(self.cluster.device)) / (1 + ALLOCATOR_SLACK) + float(moment @ kept)
        pieces = []
        for (start, _), load, times in zip(ranges, loads, moment, strict=False):
            for place, unit in enumerate(load.units):
                if self.eligible[start + place] and self.recompute != NONE:
                    points = unit.least_again
                    over -= times * (unit.saved_bytes - points[0][0])
                    freed = [(times * (k1 - k2), s2 - s1) for (k1, s1), (k2, s2) in pairwise(points)]
                    pieces += [(seconds / nbytes, nbytes) for nbytes, seconds in freed if nbytes]
        total = 0.0
        for byte_s, freed in sorted(pieces):
            if over <= 0:
                break
            total += byte_s * min(freed, over)
            over -= freed
        return total if over <= 0 else math.inf

    def close_bound_s(
        self, degrees: Degrees, costs: Mapping[str, UnitCost], sent_bytes: Sequence[float] = ()
    ) -> float:
        """A bound that knows memory; infinite if nothing fits."""
        fitting = self.fitting(degrees, costs, sent_bytes)
        if not fitting:
            return math.inf
        send_s = self._least_send_s(degrees, sent_bytes)
        ways = [
            {unit: stage.way(unit) for stage in stages for unit in (*stage.recompute, *stage.policies)}
            for stages in fitting
        ]
        return min(self.bound_s(degrees, costs, again, send_s) for again in ways)

    def _each(self, degrees: Degrees, costs: Mapping[str, UnitCost]) -> Floats:
        """For each unit of the chain, the figures of ``_row``; shape (units, 10).

        A parameter that several units hold counts for none of them here.
        """
        key = id(costs), degrees.tp, degrees.fsdp, degrees.dp, degrees.zero, degrees.ep
        if key not in self._rows:
            units = [self._without_shared(kind, costs[kind]) for kind in self.kinds]
            traffic = [state_traffic(unit, degrees, self.job.precision, self.cluster) for unit in units]
            whole = sum(costs[unit.kind].stepped(degrees) for unit in self.chain.units)
            own = [unit.stepped(degrees) for unit in units]
            sizes = (*own, whole)
            element_s = least_optimizer_s(sizes, degrees, self.job, self.cluster)
            steps_s = (element_s * size for size in own)
            rows = [_row(*each) for each in zip(units, traffic, steps_s, strict=True)]
            self._rows[key] = costs, np.array(rows)[self.kind_of]  # costs too, so that its id stays its own
        return self._rows[key][1]

    def _least_sums(
        self, degrees: Degrees, costs: Mapping[str, UnitCost], again: Mapping[int, str], send_s: float
    ) -> StageSums:
        """Sums of stages."""
        each = self._each(degrees, costs)
        starts = [start for start, _ in self.ranges(degrees)]
        forward, forward_comm, backward, backward_comm, half, way, back, head, tail, step = np.add.reduceat(
            each, starts, axis=0
        ).T
        if len(again):
            rerun = np.zeros((len(each), 2))
            for unit, name in again.items():
                keep = costs[self.chain.units[unit].kind].keep(name)
                rerun[unit] = keep.again_s, keep.again_comm_s
            once_more, once_more_comm = np.add.reduceat(rerun, starts, axis=0).T
        else:
            once_more = once_more_comm = np.zeros(len(starts))
        beside = backward + once_more

        def exposed(comm: Floats, compute: Floats) -> Floats:
            return np.maximum((1 - self.cluster.overlap) * comm, comm - compute)

        hidden = 1 - self.cluster.overlap
        full = beside + backward_comm + once_more_comm + exposed(back, beside)
        first = beside - half + backward_comm + once_more_comm + hidden * back
        return StageSums(
            forward=forward + forward_comm + exposed(way, forward),
            backward=full,
            first=first if SCHEDULE_NEEDS[degrees.schedule].halves else full,
            send=np.where(np.diff(_homes(degrees.schedule, degrees.pp, degrees.vpp)) != 0, send_s, 0.0),
            head=_by_rank(exposed(head, forward), degrees),
            tail=_by_rank(exposed(back + tail, beside) - exposed(back, beside) + step, degrees),
            least_head=_by_rank(hidden * head, degrees),
            least_tail=_by_rank(hidden * tail + step, degrees),
        )

    def _without_shared(self, kind: str, cost: UnitCost) -> UnitCost:
        shared = self._shared.get(kind)
        if not shared:
            return cost
        held = sum(cost.sizes[value] for value in shared)
        return replace(
            cost, parameters=max(cost.parameters - held, 0.0), trainable=max(cost.trainable - held, 0.0)
        )


def _values_held_twice(graph: ModelGraph) -> dict[str, frozenset[str]]:
    """By kind, parameters that some other unit holds too."""
    kind_of = {unit.name: unit.kind for unit in graph.units}
    found: dict[str, set[str]] = {}
    for group in graph.tied:
        for unit, value in group:
            found.setdefault(kind_of[unit], set()).add(value)
    return {kind: frozenset(values) for kind, values in found.items()}


def _row(unit: UnitCost, sent: StateTraffic, step_s: float) -> tuple[float, ...]:
    times = unit.times
    return (
        times.forward_s, times.forward_comm_s, times.backward_s, times.backward_comm_s, unit.weight_half_s,
        sent.forward_s, sent.backward_s, sent.head_s, sent.tail_fsdp_s + sent.tail_dp_s, step_s,
    )  # fmt: skip


def _by_rank(of_stages: Floats, degrees: Degrees) -> Floats:
    homes = _homes(degrees.schedule, degrees.pp, degrees.vpp)
    return np.bincount(homes, weights=of_stages, minlength=degrees.pp).astype(float)


@lru_cache(maxsize=1024)
def _homes(schedule: Schedule, pp: int, vpp: int) -> NDArray[np.intp]:
    """The rank of each stage."""
    return np.array(ranks_of_stages(schedule, pp, vpp), dtype=np.intp)

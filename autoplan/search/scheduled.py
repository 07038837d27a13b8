"""Candidates under any schedule but 1F1B: their stages, what they must recompute, and bounds of their step.

With several stages on a rank, or backwards in halves, stages are cut evenly (``even_stages``), and a rank
recomputes as few units as its memory asks for, in turn from each of its stages, all in one way (in full, or under
one policy). So a candidate with its layouts and that way is one plan, and its price is exact; what is searched is
which schedule, how many stages a rank, and all degrees. (1F1B's stages are searched one by one, see ``stages``.)
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoplan.cost.degrees import Degrees
from autoplan.cost.keep import FULL, NONE
from autoplan.cost.memory import fixed_reserve_bytes, limit_bytes
from autoplan.cost.pipeline.activations import moments_of_rank, settled_micro_batches
from autoplan.cost.step import Assignment
from autoplan.cost.unit import UnitCost
from autoplan.plan.schedule import SCHEDULE_NEEDS, Schedule, ranks_of_stages
from autoplan.search.even_cut import EvenCut, Turns
from autoplan.search.even_memory import EvenMemory, gained, held_by_rank
from autoplan.search.even_stages import unit_weights
from autoplan.search.schedule_bound import StageSums, by_rank, schedule_bounds_s
from autoplan.search.splits import SplitPrices, Splits

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import Cluster
    from autoplan.plan import Job

__all__ = ["Scheduled"]

Floats = NDArray[np.float64]
Costs = Mapping[str, UnitCost]


class Scheduled:
    """The chain of one model, asked about under one schedule after another, and about all splits of the data axes at
    once: bounds have shape (splits,), and ``degrees`` says all but the split.

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
        self._shared = _values_held_twice(chain)
        self._prices = SplitPrices(job, cluster, [chain.count(kind) for kind in self.kinds])
        self._cuts: dict[tuple[bool, int, int], EvenCut] = {}
        self._turns: dict[Hashable, tuple[Turns, Floats]] = {}
        self._known: dict[Hashable, tuple[Any, ...]] = {}

    def cut(self, degrees: Degrees) -> EvenCut:
        """The stages; they depend on how the schedule lays them on ranks alone."""
        key = SCHEDULE_NEEDS[degrees.schedule].v_shaped, degrees.pp, degrees.vpp
        if key not in self._cuts:
            self._cuts[key] = EvenCut.of(self.chain, self.weights, degrees.schedule, degrees.pp, degrees.vpp)
        return self._cuts[key]

    def work_s(self, degrees: Degrees, splits: Splits, costs: Costs) -> Floats:
        """What the mean rank works in a step, whatever the schedule."""
        counts = np.array([self.chain.count(kind) for kind in self.kinds], dtype=float)
        passes, hidden = counts @ self._times(costs)[:, :4], 1 - self.cluster.overlap
        way, back, _, tail, step = (counts @ self._state_s(splits, costs)).T
        each = passes.sum() + hidden * (way + back)
        return (degrees.num_micro_batches * each + step + hidden * tail) / degrees.pp

    def bounds_s(self, degrees: Degrees, splits: Splits, costs: Costs, hides: bool = False) -> Floats:
        """Bounds of the step that know no memory. With the least costs of units, those of any layouts. ``hides``: see
        ``_sums``."""
        return schedule_bounds_s(degrees, self._sums(degrees, splits, costs, hides=hides))

    def fullest_ranks_bounds_s(
        self, degrees: Degrees, splits: Splits, costs: Costs, hides: bool = False
    ) -> Floats:
        """Bounds that know the memory of the first rank, which keeps the most, and of the one with the most parameters;
        infinite if that does not fit. With the least costs of units, those of any layouts."""
        sums = self._sums(degrees, splits, costs, hides=hides)
        again = self._again_s(degrees, splits, costs)
        return schedule_bounds_s(degrees, replace(sums, again=again))

    def close_bounds_s(
        self, degrees: Degrees, splits: Splits, costs: Costs, sent_bytes: Sequence[float], ranks: int
    ) -> Floats:
        """Bounds that know how many units the first ``ranks`` must make again, in whichever way is best for all of them;
        infinite if nothing fits."""
        found = self._in_each_way(degrees, splits, costs, sent_bytes, ranks)
        return np.min([bounds for *_, bounds in found], axis=0, initial=np.inf)

    def ways(self, costs: Costs) -> list[str]:
        """The ways that all units that do something again may go: the one asked for, or any but ``offload``."""
        if self.recompute is not None:
            return [self.recompute]
        names = {name for kind in self.kinds for name in costs[kind].keeps} - self.without - {"offload"}
        return [name for name in (*sorted(names), FULL) if name not in self.without]

    def fitting(
        self, degrees: Degrees, costs: Costs, sent_bytes: Sequence[float]
    ) -> list[tuple[float, list[Assignment]]]:
        """For each way that fits, a bound of the step and the stages, each rank making as few units again as it must;
        the least bound first."""
        found = []
        ranges = self.cut(degrees).ranges
        asked = degrees, Splits((degrees,)), costs, sent_bytes, degrees.pp
        for way, turns, fewest, bounds in self._in_each_way(*asked):
            if bounds[0] == np.inf:
                continue
            counts = zip(turns.units, fewest[0], strict=True)
            again = {unit: way for units, count in counts for _, unit in units[:count]}
            stages = [Assignment.of(a, b, {i: way for i in range(a, b) if i in again}) for a, b in ranges]
            found.append((float(bounds[0]), stages))
        return sorted(found, key=lambda each: each[0])

    def _in_each_way(
        self, degrees: Degrees, splits: Splits, costs: Costs, sent_bytes: Sequence[float], ranks: int
    ) -> list[tuple[str, Turns, NDArray[np.intp], Floats]]:
        """The way, ``_fewest`` in it, and bounds, infinite where it does not fit; no more where nothing has to be made
        again."""
        memory = self._memory(degrees, splits, costs, sent_bytes)
        p, v, m = degrees.pp, degrees.vpp, degrees.num_micro_batches
        m = settled_micro_batches(degrees.schedule, p, m)
        held = held_by_rank(degrees.schedule, p, v, m, ranks)
        kept = memory.kept_at(held)
        found = []
        for way in self.ways(costs):
            turns, fewest = self._fewest(memory, way, (degrees.schedule, p, v, m), held, kept)
            found.append((way, turns, fewest))
            if not fewest.any():
                break
        if not found:
            return []
        remade = np.stack([self._remade(memory, *each) for each in found], axis=1)
        send_s = self._least_send_s(degrees, sent_bytes)
        bounds = schedule_bounds_s(degrees, self._sums(degrees, splits, costs, send_s, remade))
        return [
            (way, turns, fewest, np.where((fewest >= 0).all(axis=1), own, np.inf))
            for (way, turns, fewest), own in zip(found, bounds, strict=True)
        ]

    def _memory(
        self, degrees: Degrees, splits: Splits, costs: Costs, sent_bytes: Sequence[float] = ()
    ) -> EvenMemory:
        cut = self.cut(degrees)
        units = cut.units(self.chain, costs)
        sent = [sent_bytes[stop - 1] if sent_bytes else 0.0 for _, stop in cut.ranges[:-1]]
        room = limit_bytes(self.cluster.device) - fixed_reserve_bytes(self.cluster.device)
        return EvenMemory(cut, units, self._prices.state(splits, units), np.array([*sent, 0.0]), room)

    def _may(self, cut: EvenCut, unit: int, units: Sequence[UnitCost], way: str) -> bool:
        """True if units of a form can go ``way``."""
        return self._repeats(cut, unit) and (way in (NONE, FULL) or way in units[unit].keeps)

    def _repeats(self, cut: EvenCut, form: int) -> bool:
        return bool(self.chain.kinds[cut.forms[form][0]].path)

    def _fewest(
        self, memory: EvenMemory, way: str, order: Hashable, held: Floats, kept: Floats
    ) -> tuple[Turns, NDArray[np.intp]]:
        """Which units of the first ranks go ``way`` in turn, and how many must, as ``EvenMemory.fewest``. ``held``: as
        ``held_by_rank`` gives it for ``order``."""
        cut, units = memory.cut, memory.units
        may = tuple(self._may(cut, form, units, way) for form in range(len(units)))
        key = order, len(held), may
        if key not in self._turns:
            turns = cut.turns(may).first(len(held))
            self._turns[key] = turns, gained(held, turns)
        turns, gains = self._turns[key]
        most = turns.made.shape[1]
        tried = slice(most) if self.recompute is None else slice(1) if way == NONE else slice(most - 1, most)
        keeps = {form: unit.keep(way) for form, unit in enumerate(units) if may[form]}
        return turns, memory.fewest(kept, turns, gains, keeps, tried)

    def _again_s(self, degrees: Degrees, splits: Splits, costs: Costs) -> Floats:
        """Seconds that the first rank and the one with the most parameters spend at least on making again what does not
        fit, infinite if too much does not; 0 for the others; shape (splits, ranks)."""
        again = np.zeros((len(splits.members), degrees.pp))
        if self.recompute == "offload":
            return again
        memory = self._memory(degrees, splits, costs)
        points = {
            form: unit.least_again
            for form, unit in enumerate(memory.units)
            if self.recompute != NONE and self._repeats(memory.cut, form)
        }
        heaviest = int((memory.cut.of_rank @ memory.figure("parameters")).argmax())
        for rank in {0, heaviest}:
            held = moments_of_rank(degrees.schedule, degrees.pp, degrees.vpp, degrees.num_micro_batches, rank)
            again[:, rank] = memory.least_again_s(rank, held, points)
        return again

    def _least_send_s(self, degrees: Degrees, sent_bytes: Sequence[float]) -> float:
        sent = min(sent_bytes, default=0.0)
        return self.cluster.p2p_time_s(sent, degrees.pp_stride, degrees.pp)

    def _remade(self, memory: EvenMemory, way: str, turns: Turns, fewest: NDArray[np.intp]) -> Floats:
        """Seconds of computing and of waiting that each stage spends on making again what so many units of each rank
        did; shape (2, splits, stages)."""
        cut, units = memory.cut, memory.units
        seconds = np.zeros((len(units), 2))
        for form, unit in enumerate(units):
            if self._may(cut, form, units, way):
                keep = unit.keep(way)
                seconds[form] = keep.again_s, keep.again_comm_s
        ranks = len(turns.made)
        made = turns.made[np.arange(ranks), fewest.clip(min=0)]
        of_stages = np.zeros((2, len(fewest), len(cut.ranges)))
        of_stages[:, :, cut.stages[:ranks]] = np.moveaxis(made @ seconds, -1, 0)
        return of_stages

    def _times(self, costs: Costs) -> Floats:
        """Of a unit of each kind: computing and waiting forward and backward, and the weight half; shape (kinds, 5)."""
        key = id(costs)
        if key not in self._known:
            rows = [(costs[kind].times, costs[kind].weight_half_s) for kind in self.kinds]
            figures = [
                (t.forward_s, t.forward_comm_s, t.backward_s, t.backward_comm_s, half) for t, half in rows
            ]
            self._known[key] = np.array(figures), costs  # these too, so that their id stays their own
        return self._known[key][0]

    def _state_s(self, splits: Splits, costs: Costs) -> Floats:
        """As ``SplitPrices.seconds``. A parameter that several units hold counts for none of them here."""
        key = splits, id(costs)
        if key not in self._known:
            kinds = [costs[kind] for kind in self.kinds]
            units = [self._without_shared(kind, costs[kind]) for kind in self.kinds]
            self._known[key] = self._prices.seconds(splits, units, kinds), costs
        return self._known[key][0]

    def _sums(
        self,
        degrees: Degrees,
        splits: Splits,
        costs: Costs,
        send_s: float = 0.0,
        remade: Floats | tuple[float, float] = (0.0, 0.0),
        hides: bool = False,
    ) -> StageSums:
        """Sums of stages.

        Args:
            send_s: the least that any stage takes to send to another rank.
            remade: seconds that are surely spent on making things again (``_remade``), in several ways.
            hides: units may compute for longer than their costs say, and hide all traffic that can be hidden.
        """
        of_kind, hidden = self.cut(degrees).of_kind, 1 - self.cluster.overlap
        forward, forward_comm, backward, backward_comm, half = (of_kind @ self._times(costs)).T
        way, back, head, tail, step = np.moveaxis(of_kind @ self._state_s(splits, costs), -1, 0)

        def exposed(comm: Floats, compute: Floats) -> Floats:
            return hidden * comm if hides else np.maximum(hidden * comm, comm - compute)

        beside = backward + remade[0]
        waited = beside + backward_comm + remade[1]
        full = waited + exposed(back, beside)
        return StageSums(
            forward=forward + forward_comm + exposed(way, forward),
            backward=full,
            first=waited - half + hidden * back if SCHEDULE_NEEDS[degrees.schedule].halves else full,
            send=_sends(degrees.schedule, degrees.pp, degrees.vpp) * send_s,
            head=by_rank(degrees, exposed(head, forward)),
            tail=by_rank(degrees, exposed(back + tail, beside) - exposed(back, beside) + step),
            least_head=by_rank(degrees, hidden * head),
            least_tail=by_rank(degrees, hidden * tail + step),
            again=np.zeros((len(splits.members), degrees.pp)),
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


@lru_cache(maxsize=1024)
def _sends(schedule: Schedule, pp: int, vpp: int) -> Floats:
    """1 for each stage whose next is on another rank, 0 for others; shape (stages - 1,)."""
    return np.array([float(a != b) for a, b in pairwise(ranks_of_stages(schedule, pp, vpp))])

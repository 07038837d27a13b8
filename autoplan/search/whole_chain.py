"""The chain as one optimistic unit: what its passes take at least, and what its state and activations need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.cost.keep import NONE
from autoplan.cost.memory import ALLOCATOR_SLACK, StateRates, fixed_reserve_bytes, state_bytes
from autoplan.cost.state_traffic import StateTraffic, handled_traffic, sent_traffic
from autoplan.cost.tied import kinds_once
from autoplan.cost.times import NO_TIME
from autoplan.cost.unit import UnitCost
from autoplan.search.optimist import Optimist
from autoplan.search.places import least_of_each
from autoplan.search.run import least_optimizer_s

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import Cluster
    from autoplan.plan import Job

__all__ = ["WholeChain"]


class WholeChain:
    """``types``: the clusters of one type of device each, with an optimist for each. ``recompute``: the way of every
    unit that may be recomputed, or None."""

    def __init__(
        self,
        chain: ModelGraph,
        job: Job,
        types: Sequence[Cluster],
        optimists: Sequence[Optimist],
        recompute: str | None,
    ) -> None:
        self._chain, self._job, self._types, self._optimists = chain, job, types, optimists
        self._recompute = recompute
        self._sums: dict[tuple[int, int, int, int, bool], _Total] = {}

    def total_s(self, degrees: Degrees) -> float:
        """Computing and waiting of a micro-batch."""
        return self._sum(degrees).chain.times.total_s

    def passes_s(self, degrees: Degrees) -> tuple[float, float, float]:
        """Seconds of a micro-batch's forward and backward, and once a step after them, over all stages."""
        total = self._sum(degrees)
        sent = [self._traffic(total, degrees, only) for only in self._types]
        exposed, times = 1 - max(only.overlap for only in self._types), total.chain.times
        stepped = total.chain.stepped(degrees)
        largest = max(unit.stepped(degrees) for unit, _ in total.units)
        element_s = min(
            least_optimizer_s((largest, stepped), degrees, self._job, only) for only in self._types
        )
        return (
            times.forward_s + exposed * min(traffic.forward_s for traffic in sent),
            times.backward_s + exposed * min(traffic.backward_s for traffic in sent),
            element_s * stepped + exposed * min(traffic.tail_fsdp_s + traffic.tail_dp_s for traffic in sent),
        )

    def _traffic(self, total: _Total, degrees: Degrees, cluster: Cluster) -> StateTraffic:
        """What is sent takes least together; what is read and written may fit a cache unit by unit."""
        traffic = sent_traffic(total.chain, degrees, self._job.precision, cluster)
        for unit, count in total.units:
            traffic += handled_traffic(unit, degrees, self._job.precision, cluster).scaled(count)
        return traffic

    def least_bytes(self, degrees: Degrees) -> float:
        """Bytes that the mean rank needs at least."""
        total, rates = self._sum(degrees), StateRates.of(degrees, self._job)
        late = total.chain.stepped(degrees) * rates.late_gradient
        early = total.chain.parameters * rates.copy if late else 0.0
        needed = state_bytes(total.chain, degrees, rates) + max(total.chain.saved_bytes + early, late)
        needed /= degrees.pp
        return needed * (1 + ALLOCATOR_SLACK) + fixed_reserve_bytes(self._types[0].device)

    def _sum(self, degrees: Degrees) -> _Total:
        """The whole chain as one optimistic unit that saves no more than it must."""
        key = degrees.micro_batch, degrees.cp, degrees.tp, degrees.ep, degrees.pp == 1
        if key not in self._sums:
            asked = degrees.micro_batch, degrees.tp, degrees.cp, degrees.ep
            costs = least_of_each([optimist.costs(*asked) for optimist in self._optimists])
            costs = kinds_once(self._chain, costs) if degrees.pp == 1 else costs
            units = [(unit.kind, costs[unit.kind]) for unit in self._chain.units]
            chain = UnitCost(
                times=sum((cost.times for _, cost in units), NO_TIME),
                saved_bytes=sum(self._kept_bytes(kind, cost) for kind, cost in units),
                input_bytes=0.0,
                workspace_bytes=0.0,
                parameters=sum(cost.parameters for _, cost in units),
                trainable=sum(cost.trainable for _, cost in units),
                sizes={},
                experts=sum(cost.experts for _, cost in units),
                trainable_experts=sum(cost.trainable_experts for _, cost in units),
            )
            counts = Counter(kind for kind, _ in units)
            self._sums[key] = _Total(chain, tuple((costs[kind], n) for kind, n in counts.items()))
        return self._sums[key]

    def _kept_bytes(self, kind: str, cost: UnitCost) -> float:
        if self._recompute == "offload":
            return 0.0
        may = self._recompute != NONE and self._chain.kinds[kind].path
        return cost.least_again[-1][0] if may else cost.saved_bytes


@dataclass(frozen=True, slots=True)
class _Total:
    """The chain as one unit, and of each kind of its units one, with how many there are."""

    chain: UnitCost
    units: tuple[tuple[UnitCost, int], ...]

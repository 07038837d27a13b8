"""One pipeline stage, and the rank that holds it: units' sums under the plan's state sharding, as seconds and as
bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from autoplan.verify.kept import Left
from autoplan.verify.unit import UnitSums

if TYPE_CHECKING:
    from autoplan.hardware import Cluster
    from autoplan.plan import Job, Plan

__all__ = ["HeldUnit", "StageSums", "device_limit", "rank_bytes", "stage_sums"]

_SLACK = 0.08  # of the allocator
_LEFT_FREE = 0.1  # of a device, for what is not modelled
_CONTEXT_BYTES = {"cuda": 2.0e9, "cpu": 0.1e9}


@dataclass(frozen=True, slots=True)
class HeldUnit:
    """A unit of a stage: its sums, the parameters that it is the first of its stage to hold, and what one of its
    forwards leaves."""

    sums: UnitSums
    owns: frozenset[str]
    left: Left

    @property
    def elements(self) -> float:
        return self._of(self.owns)

    @property
    def training(self) -> float:
        return self._of(self.owns & self.sums.trains)

    @property
    def shared_out(self) -> tuple[float, float]:
        """Of elements, and of those that train, what an ep axis has shared out."""
        experts = self.owns & self.sums.shared_out
        return self._of(experts), self._of(experts & self.sums.trains)

    def _of(self, names: frozenset[str]) -> float:
        return sum(self.sums.elements[name] for name in names)


@dataclass(frozen=True, slots=True)
class StageSums:
    """Seconds of a pass, before the first and after the last one, and of the backward those that give gradients of
    weights apart; bytes that one forward leaves, and what is left of them between the halves of its backward;
    seconds of a step in which its rank computes."""

    forward_s: float
    backward_s: float
    head_s: float
    tail_s: float
    weight_s: float = 0.0
    kept: float = 0.0
    between: float = 0.0
    busy_s: float = 0.0


def device_limit(cluster: Cluster) -> float:
    """Bytes of a device that a plan may use."""
    return cluster.device.usable_bytes * (1 - _LEFT_FREE)


def stage_sums(
    units: Sequence[HeldUnit], sent_bytes: float, tied_s: float, plan: Plan, job: Job, cluster: Cluster
) -> StageSums:
    """``sent_bytes`` is what one micro-batch sends on to the next stage."""
    passes = sum(sum(u.sums.compute_s) + u.left.again_s + u.left.again_sent_s for u in units)
    return StageSums(
        *_seconds(units, tied_s, plan, job, cluster),
        weight_s=sum(unit.sums.apart_s for unit in units),
        kept=sum(unit.left.kept for unit in units) + sent_bytes,
        between=sum(unit.sums.apart for unit in units),
        busy_s=plan.num_micro_batches * passes + _optimizer_s(units, plan, job, cluster),
    )


def _seconds(
    units: Sequence[HeldUnit], tied_s: float, plan: Plan, job: Job, cluster: Cluster
) -> tuple[float, float, float, float]:
    gather, scatter, reduce, added = _state_s(units, plan, job, cluster)
    forward = sum(unit.sums.compute_s[0] for unit in units)
    backward = sum(unit.sums.compute_s[1] for unit in units)
    rerun = sum(unit.left.again_s for unit in units)
    waits = [sum(unit.sums.sent_s[way] for unit in units) for way in (0, 1)]
    waits[1] += sum(unit.left.again_sent_s for unit in units)
    parked, fetched = _host_s(units, cluster)

    def shown(comm: float, beside: float) -> float:
        """What is left to wait for of communication beside compute."""
        return max((1 - cluster.overlap) * comm, comm - beside)

    each_forward = gather if plan.zero == 3 else 0.0
    each_backward = {2: scatter, 3: gather + scatter}.get(plan.zero, 0.0) + added
    once_before = gather if plan.zero < 3 else 0.0
    once_after = reduce + (scatter if plan.zero < 2 else 0.0)
    beside = backward + rerun
    waited = shown(each_backward, beside)
    return (
        forward + waits[0] + shown(each_forward, forward) + parked,
        beside + waits[1] + waited + fetched,
        shown(once_before, forward),
        shown(each_backward + once_after, beside) - waited + tied_s + _optimizer_s(units, plan, job, cluster),
    )


def _state_s(
    units: Sequence[HeldUnit], plan: Plan, job: Job, cluster: Cluster
) -> tuple[float, float, float, float]:
    """Seconds to gather parameters, to scatter gradients, to add these up over copies of the state, and to add those
    of a micro-batch to the sum; experts that an ep axis has shared out go among the ranks that hold the same ones."""
    full, half = job.precision.master_bytes, job.precision.compute_bytes

    def over(kind: str, nbytes: float, size: int, step: int) -> float:
        return cluster.collective_time_s(kind, nbytes, size, stride=step) if size > 1 and nbytes else 0.0

    def touch(nbytes: float) -> float:
        return cluster.device.memory_time_s(nbytes) if nbytes else 0.0

    total = [0.0, 0.0, 0.0, 0.0]
    for unit in units:
        elements, training = unit.shared_out
        for holds, trains, (shards, copies), step in (
            (unit.elements - elements, unit.training - training, sharing(plan), plan.tp),
            (elements, training, sharing_experts(plan), plan.tp * plan.ep),
        ):
            total[0] += over("all_gather", holds * half, shards, step)
            total[1] += over("reduce_scatter", trains * full, shards, step)
            total[2] += over("all_reduce", trains * full / shards, copies, step * shards)
            if shards > 1:  # buffers that one collective fills or empties
                total[0] += touch(holds * (full + half) / shards) + touch(holds * 2 * half)
                total[1] += touch(trains * (half + full))
            elif copies > 1:
                total[2] += touch(trains * 2 * full)
            sums = trains / shards if plan.zero > 1 else trains
            total[3] += touch(3 * sums * full) * (1 - 1 / plan.num_micro_batches)
    return total[0], total[1], total[2], total[3]


def _host_s(units: Sequence[HeldUnit], cluster: Cluster) -> tuple[float, float]:
    """What a forward and a backward wait for copies to the host and back. A copy away has until the stage's forward
    ends, and those after it go behind it; a copy back has the backward of the unit after its own."""
    host = cluster.device.host
    if host is None or not any(unit.left.host for unit in units):
        return 0.0, 0.0
    away = [float(host.time_s(u.left.host, "to_host")) if u.left.host else 0.0 for u in units]
    back = [float(host.time_s(u.left.host, "from_host")) if u.left.host else 0.0 for u in units]
    late = [away[i] - unit.sums.compute_s[0] for i, unit in enumerate(units)]
    parked = max(0.0, *(sum(late[i:]) for i in range(len(units))))
    beside = [*(unit.sums.compute_s[1] + unit.left.again_s for unit in units[1:]), 0.0]
    return parked, sum(max(copy - work, 0.0) for copy, work in zip(back, beside, strict=True))


def _optimizer_s(units: Sequence[HeldUnit], plan: Plan, job: Job, cluster: Cluster) -> float:
    """It reads gradients, and reads and writes parameters and moments."""
    elements = sum(_a_rank(unit.training, unit.shared_out[1], plan) for unit in units)
    touched = elements * job.precision.master_bytes * (3 + 2 * job.optimizer_states)
    return cluster.device.memory_time_s(touched) if elements else 0.0


def sharing(plan: Plan) -> tuple[int, int]:
    """Ranks that share one copy of a stage's state, and copies of it; those of cp share as those of fsdp do."""
    ranks = plan.dp * plan.fsdp * plan.cp
    shards = plan.fsdp * plan.cp if plan.zero else 1
    return shards, ranks // shards


def sharing_experts(plan: Plan) -> tuple[int, int]:
    """The same for experts, of which each of the plan's ep groups of ranks holds others: ranks that share them are
    taken among those of fsdp, as far as these go beyond ep."""
    shards = sharing(plan)[0]
    shards = shards // plan.ep if shards > plan.ep else 1
    return shards, plan.dp * plan.fsdp * plan.cp // (plan.ep * shards)


def _a_rank(elements: float, experts: float, plan: Plan) -> float:
    """Of so many elements, ``experts`` of them shared out, those whose state a rank keeps."""
    return (elements - experts) / sharing(plan)[0] + experts / sharing_experts(plan)[0]


def rank_bytes(
    stages: Sequence[Sequence[HeldUnit]], activations: float, plan: Plan, job: Job, cluster: Cluster
) -> float:
    """Bytes of a rank that holds ``stages``, at its worst moment; ``activations`` are what forwards have left."""
    units = [unit for stage in stages for unit in stage]
    full, half = float(job.precision.master_bytes), float(job.precision.compute_bytes)
    elements, training = sum(u.elements for u in units), sum(u.training for u in units)
    experts = [sum(each) for each in zip(*(u.shared_out for u in units), strict=True)]
    own = _a_rank(elements, experts[0], plan), _a_rank(training, experts[1], plan)
    state = full * (own[0] + job.optimizer_states * own[1])
    late = plan.pp == plan.num_micro_batches == 1  # gradients come as activations go
    if not late:
        state += full * (own[1] if plan.zero >= 2 else training)
    reduced = copied = 0.0
    if half != full or plan.zero or plan.ep > 1:
        reduced = max(u.training for u in units) * full if late or plan.zero >= 2 else 0.0
        copied = half if plan.zero < 3 else 0.0
        state += 0.0 if late else elements * copied
    if plan.zero == 3:
        state += half * max(_neighbours(stage) for stage in stages)
    working = [u.sums.at_work + u.left.again_bytes for u in units]
    at_work = reduced + max(working)
    if late:
        gradients = [full * _a_rank(u.training, u.shared_out[1], plan) for u in units]
        before = [u.left.kept + copied * u.elements for u in units]
        activations = sum(map(max, before, gradients))
        *later, first = working  # the last unit's backward comes first, before anything is reduced
        at_work = max(first, reduced + max(later) if later else 0.0)
    return (state + activations + at_work) * (1 + _SLACK) + _CONTEXT_BYTES[cluster.device.kind]


def _neighbours(units: Sequence[HeldUnit]) -> float:
    """Elements of the two units gathered at once."""
    sizes = [unit.elements for unit in units]
    return max([a + b for a, b in pairwise(sizes)] or sizes)

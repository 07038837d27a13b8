"""One pipeline stage, and the rank that holds it: units' sums under the plan's state sharding, as seconds and as
bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

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
    """A unit of a stage: its sums, the parameters that it is the first of its stage to hold, whether backward
    runs its forward again."""

    sums: UnitSums
    owns: frozenset[str]
    again: bool

    @property
    def elements(self) -> float:
        return sum(self.sums.elements[name] for name in self.owns)

    @property
    def training(self) -> float:
        return sum(self.sums.elements[name] for name in self.owns & self.sums.trains)


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
    passes = sum(sum(u.sums.compute_s) for u in units)
    passes += sum(u.sums.compute_s[0] + u.sums.sent_s[0] for u in units if u.again)
    return StageSums(
        *_seconds(units, tied_s, plan, job, cluster),
        weight_s=sum(unit.sums.apart_s for unit in units),
        kept=sum(u.sums.entering if u.again else u.sums.kept for u in units) + sent_bytes,
        between=sum(unit.sums.apart for unit in units),
        busy_s=plan.num_micro_batches * passes + _optimizer_s(units, plan, job, cluster),
    )


def _seconds(
    units: Sequence[HeldUnit], tied_s: float, plan: Plan, job: Job, cluster: Cluster
) -> tuple[float, float, float, float]:
    full, half = job.precision.master_bytes, job.precision.compute_bytes
    shards, copies = sharing(plan)

    def over(kind: str, nbytes: float, size: int, step: int) -> float:
        return cluster.collective_time_s(kind, nbytes, size, stride=step) if size > 1 and nbytes else 0.0

    gather = sum(over("all_gather", unit.elements * half, shards, plan.tp) for unit in units)
    scatter = sum(over("reduce_scatter", unit.training * full, shards, plan.tp) for unit in units)
    reduce = sum(
        over("all_reduce", unit.training * full / shards, copies, plan.tp * shards) for unit in units
    )
    forward = sum(unit.sums.compute_s[0] for unit in units)
    backward = sum(unit.sums.compute_s[1] for unit in units)
    rerun = sum(unit.sums.compute_s[0] for unit in units if unit.again)
    waits = [sum(unit.sums.sent_s[way] for unit in units) for way in (0, 1)]
    waits[1] += sum(unit.sums.sent_s[0] for unit in units if unit.again)

    def shown(comm: float, beside: float) -> float:
        """What is left to wait for of communication beside compute."""
        return max((1 - cluster.overlap) * comm, comm - beside)

    each_forward = gather if plan.zero == 3 else 0.0
    each_backward = {2: scatter, 3: gather + scatter}.get(plan.zero, 0.0)
    once_before = gather if plan.zero in (1, 2) else 0.0
    once_after = reduce + (scatter if plan.zero == 1 else 0.0)
    beside = backward + rerun
    waited = shown(each_backward, beside)
    return (
        forward + waits[0] + shown(each_forward, forward),
        beside + waits[1] + waited,
        shown(once_before, forward),
        shown(each_backward + once_after, beside) - waited + tied_s + _optimizer_s(units, plan, job, cluster),
    )


def _optimizer_s(units: Sequence[HeldUnit], plan: Plan, job: Job, cluster: Cluster) -> float:
    """It reads gradients, and reads and writes parameters and moments."""
    elements = sum(unit.training for unit in units) / sharing(plan)[0]
    touched = elements * job.precision.master_bytes * (3 + 2 * job.optimizer_states)
    return cluster.device.memory_time_s(touched) if elements else 0.0


def sharing(plan: Plan) -> tuple[int, int]:
    """Ranks that share one copy of a stage's state, and copies of it; those of cp share as those of fsdp do."""
    ranks = plan.dp * plan.fsdp * plan.cp
    shards = plan.fsdp * plan.cp if plan.zero else 1
    return shards, ranks // shards


def rank_bytes(
    stages: Sequence[Sequence[HeldUnit]], activations: float, plan: Plan, job: Job, cluster: Cluster
) -> float:
    """Bytes of a rank that holds ``stages``, at its worst moment; ``activations`` are what forwards have left."""
    units = [unit for stage in stages for unit in stage]
    full, half = float(job.precision.master_bytes), float(job.precision.compute_bytes)
    elements, training = sum(u.elements for u in units), sum(u.training for u in units)
    share = sharing(plan)[0]
    state = full / share * (elements + job.optimizer_states * training)
    state += full * training / (share if plan.zero >= 2 else 1)
    if half != full or plan.dp * plan.fsdp * plan.cp > 1:
        state += max(u.training for u in units) * full if plan.zero >= 2 else 0.0
        state += elements * half if plan.zero < 3 else 0.0
    if plan.zero == 3:
        state += half * max(_neighbours(stage) for stage in stages)
    rerun = max((u.sums.kept for u in units if u.again), default=0.0)
    at_work = max(u.sums.at_work for u in units)
    return (state + activations + rerun + at_work) * (1 + _SLACK) + _CONTEXT_BYTES[cluster.device.kind]


def _neighbours(units: Sequence[HeldUnit]) -> float:
    """Elements of the two units gathered at once."""
    sizes = [unit.elements for unit in units]
    return max([a + b for a, b in pairwise(sizes)] or sizes)

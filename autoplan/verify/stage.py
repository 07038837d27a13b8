"""One pipeline stage: its units' sums under the plan's state sharding, as seconds and as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from autoplan.verify.unit import UnitSums

if TYPE_CHECKING:
    from autoplan.hardware import Cluster
    from autoplan.plan import Job, Plan

__all__ = ["HeldUnit", "StageSums", "device_limit", "stage_sums"]

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
    """Seconds of a pass, before the first and after the last one; bytes at the worst moment."""

    forward_s: float
    backward_s: float
    head_s: float
    tail_s: float
    bytes: float


def device_limit(cluster: Cluster) -> float:
    """Bytes of a device that a plan may use."""
    return cluster.device.usable_bytes * (1 - _LEFT_FREE)


def stage_sums(
    units: Sequence[HeldUnit],
    in_flight: int,
    sent_bytes: float,
    tied_s: float,
    plan: Plan,
    job: Job,
    cluster: Cluster,
) -> StageSums:
    """``in_flight``: micro-batches whose activations are held at once."""
    seconds = _seconds(units, tied_s, plan, job, cluster)
    return StageSums(*seconds, _bytes(units, in_flight, sent_bytes, plan, job, cluster))


def _seconds(
    units: Sequence[HeldUnit], tied_s: float, plan: Plan, job: Job, cluster: Cluster
) -> tuple[float, float, float, float]:
    full, half = job.precision.master_bytes, job.precision.compute_bytes
    stride, shards = plan.cp * plan.tp, plan.fsdp

    def over(kind: str, nbytes: float, size: int, step: int) -> float:
        return cluster.collective_time_s(kind, nbytes, size, stride=step) if size > 1 and nbytes else 0.0

    gather = sum(over("all_gather", unit.elements * half, shards, stride) for unit in units)
    scatter = sum(over("reduce_scatter", unit.training * full, shards, stride) for unit in units)
    reduce = sum(
        over("all_reduce", unit.training * full / shards, plan.dp, stride * shards) for unit in units
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
    elements = sum(unit.training for unit in units) / (shards if plan.zero else 1)
    stepped = (
        cluster.device.memory_time_s(elements * full * (3 + 2 * job.optimizer_states)) if elements else 0
    )
    return (
        forward + waits[0] + shown(each_forward, forward),
        beside + waits[1] + waited,
        shown(once_before, forward),
        shown(each_backward + once_after, beside) - waited + tied_s + stepped,
    )


def _bytes(
    units: Sequence[HeldUnit], in_flight: int, sent_bytes: float, plan: Plan, job: Job, cluster: Cluster
) -> float:
    full, half = float(job.precision.master_bytes), float(job.precision.compute_bytes)
    elements, training = sum(u.elements for u in units), sum(u.training for u in units)
    share = plan.fsdp if plan.zero else 1
    state = full / share * (elements + job.optimizer_states * training)
    state += full * training / (share if plan.zero >= 2 else 1)
    if half != full or plan.dp * plan.fsdp > 1:
        state += max(u.training for u in units) * full * (2 if plan.zero >= 2 else 1)
        state += elements * half if plan.zero < 3 else 0.0
    if plan.zero == 3:
        sizes = [u.elements for u in units]
        pairs = [a + b for a, b in pairwise(sizes)]
        state += half * max(pairs or sizes)
    kept = sum(u.sums.entering if u.again else u.sums.kept for u in units)
    rerun = max((u.sums.kept for u in units if u.again), default=0.0)
    at_work = max(u.sums.at_work for u in units)
    tensors = state + in_flight * (kept + sent_bytes) + rerun + at_work
    return tensors * (1 + _SLACK) + _CONTEXT_BYTES[cluster.device.kind]

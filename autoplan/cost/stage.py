"""One pipeline stage: its units added up, then priced under the degrees of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.cost.state_traffic import StateTraffic, state_traffic
from autoplan.cost.times import NO_TIME, Times, exposed_s
from autoplan.cost.unit import UnitCost

if TYPE_CHECKING:
    from autoplan.hardware import Cluster
    from autoplan.plan import Job

__all__ = ["StageTimes", "optimizer_s", "stage_times"]


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds of one stage.

    Args:
        times: compute and tp communication of one micro-batch, nothing run twice.
        recompute_s: what recomputed units run again, their tp communication included.
        forward_fsdp_s, backward_fsdp_s: parameter and gradient traffic that a micro-batch waits for.
        head_s: waited for once, before the first forward (parameters gathered).
        tail_fsdp_s, tail_dp_s: waited for once, after the last backward (gradients reduced).
        tied_s: waited for once, to sum gradients with other stages.
        optimizer_s: the optimizer's own.
        weight_s: of the backward, the part that gives gradients of weights and can run apart.
    """

    times: Times
    recompute_s: float
    forward_fsdp_s: float
    backward_fsdp_s: float
    head_s: float
    tail_fsdp_s: float
    tail_dp_s: float
    tied_s: float
    optimizer_s: float
    weight_s: float = 0.0

    @property
    def forward_s(self) -> float:
        return self.times.forward_s + self.times.forward_comm_s + self.forward_fsdp_s

    @property
    def backward_s(self) -> float:
        return self.times.backward_s + self.times.backward_comm_s + self.backward_fsdp_s + self.recompute_s

    @property
    def tail_s(self) -> float:
        return self.tail_fsdp_s + self.tail_dp_s + self.tied_s + self.optimizer_s


def stage_times(
    units: Sequence[UnitCost],
    recompute: Sequence[bool],
    tied_s: float,
    degrees: Degrees,
    job: Job,
    cluster: Cluster,
) -> StageTimes:
    """Price a stage of ``units``, ``recompute`` saying of each whether it runs its forward again."""
    times, again, traffic = NO_TIME, NO_TIME, StateTraffic()
    for unit, recomputed in zip(units, recompute, strict=True):
        times += unit.times
        traffic += state_traffic(unit, degrees, job.precision, cluster)
        if recomputed:
            again += unit.times
    overlap = cluster.overlap
    backward_window = times.backward_s + again.forward_s
    each_s = exposed_s(traffic.backward_s, backward_window, overlap)
    # The last micro-batch's backward hides both its own traffic and what is sent once a step.
    scattered = exposed_s(traffic.backward_s + traffic.tail_fsdp_s, backward_window, overlap) - each_s
    once = traffic.tail_fsdp_s + traffic.tail_dp_s
    reduced = exposed_s(traffic.backward_s + once, backward_window, overlap) - each_s - scattered
    trainable = sum(unit.trainable for unit in units)
    return StageTimes(
        times=times,
        recompute_s=again.forward_s + again.forward_comm_s,
        forward_fsdp_s=exposed_s(traffic.forward_s, times.forward_s, overlap),
        backward_fsdp_s=each_s,
        head_s=exposed_s(traffic.head_s, times.forward_s, overlap),
        tail_fsdp_s=scattered,
        tail_dp_s=reduced,
        tied_s=tied_s,
        optimizer_s=optimizer_s(trainable, degrees, job, cluster),
        weight_s=sum(unit.weight_half_s for unit in units),
    )


def optimizer_s(trainable: float, degrees: Degrees, job: Job, cluster: Cluster) -> float:
    """The optimizer's step is bound by memory: it reads the gradient, and reads and writes the
    parameter and each moment. AdamW on fp32 masters touches 28 bytes of each of them (30 with the
    bf16 copy, which FSDP2 writes when it gathers); a fit to vTrain's runs gave 20 to 42."""
    elements = trainable / degrees.shard_ranks
    touched = (3 + 2 * job.optimizer_states) * job.precision.master_bytes
    return cluster.device.memory_time_s(elements * touched) if elements else 0.0

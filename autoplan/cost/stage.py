"""One pipeline stage: its units added up, then priced under the degrees of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.cost.keep import Keep
from autoplan.cost.state_traffic import StateTraffic, state_traffic
from autoplan.cost.times import NO_TIME, Times, exposed_s
from autoplan.cost.unit import UnitCost

if TYPE_CHECKING:
    from autoplan.hardware import Cluster
    from autoplan.plan import Job

__all__ = ["StageTimes", "copies_s", "optimizer_s", "stage_times"]


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds of one stage.

    Args:
        times: compute and tp communication of one micro-batch, nothing run twice.
        recompute_s: what units run again, their tp communication included.
        away_s, back_s: waited for, in a forward and in a backward, while activations go to the host and come back.
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
    away_s: float = 0.0
    back_s: float = 0.0

    @property
    def forward_s(self) -> float:
        return self.times.forward_s + self.times.forward_comm_s + self.forward_fsdp_s + self.away_s

    @property
    def backward_s(self) -> float:
        passes = self.times.backward_s + self.times.backward_comm_s
        return passes + self.backward_fsdp_s + self.recompute_s + self.back_s

    @property
    def tail_s(self) -> float:
        return self.tail_fsdp_s + self.tail_dp_s + self.tied_s + self.optimizer_s


def stage_times(
    units: Sequence[UnitCost],
    keeps: Sequence[Keep],
    tied_s: float,
    degrees: Degrees,
    job: Job,
    cluster: Cluster,
) -> StageTimes:
    """Price a stage of ``units``, each keeping what ``keeps`` says of it."""
    times, traffic = NO_TIME, StateTraffic()
    for unit in units:
        times += unit.times
        traffic += state_traffic(unit, degrees, job.precision, cluster)
    overlap = cluster.overlap
    away_s, back_s = copies_s(units, keeps)
    backward_window = times.backward_s + sum(keep.again_s for keep in keeps)
    each_s = exposed_s(traffic.backward_s, backward_window, overlap)
    # The last micro-batch's backward hides both its own traffic and what is sent once a step.
    scattered = exposed_s(traffic.backward_s + traffic.tail_fsdp_s, backward_window, overlap) - each_s
    once = traffic.tail_fsdp_s + traffic.tail_dp_s
    reduced = exposed_s(traffic.backward_s + once, backward_window, overlap) - each_s - scattered
    trainable = sum(unit.stepped(degrees) for unit in units)
    return StageTimes(
        times=times,
        recompute_s=sum(keep.rerun_s for keep in keeps),
        forward_fsdp_s=exposed_s(traffic.forward_s, times.forward_s, overlap),
        backward_fsdp_s=each_s,
        head_s=exposed_s(traffic.head_s, times.forward_s, overlap),
        tail_fsdp_s=scattered,
        tail_dp_s=reduced,
        tied_s=tied_s,
        optimizer_s=optimizer_s(trainable, degrees, job, cluster),
        weight_s=sum(unit.weight_half_s for unit in units),
        away_s=away_s,
        back_s=back_s,
    )


def copies_s(units: Sequence[UnitCost], keeps: Sequence[Keep]) -> tuple[float, float]:
    """Seconds that a stage's forward and its backward wait for copies to the host and from it.

    Copies run beside compute, one after another. Those of a unit leave while it and later units run forward, and come
    back while the unit after it runs backward, as the program fetches them one unit ahead; those of the last unit
    are fetched when its own backward starts, beside nothing.
    """
    left = free = back = 0.0
    for unit, keep in zip(units, keeps, strict=True):
        left = max(left + keep.away_s - unit.times.forward_s, 0.0)
    for unit, keep in zip(reversed(units), reversed(keeps), strict=True):
        back += max(keep.back_s - free, 0.0)
        free = unit.times.backward_s + keep.again_s
    return left, back


def optimizer_s(trainable: float, degrees: Degrees, job: Job, cluster: Cluster) -> float:
    """The optimizer's step is bound by memory: it reads the gradient, and reads and writes the
    parameter and each moment. AdamW on fp32 masters touches 28 bytes of each of them (30 with the
    bf16 copy, which FSDP2 writes when it gathers); a fit to vTrain's runs gave 20 to 42."""
    elements = trainable / degrees.shard_ranks
    touched = (3 + 2 * job.optimizer_states) * job.precision.master_bytes
    return cluster.device.memory_time_s(elements * touched) if elements else 0.0

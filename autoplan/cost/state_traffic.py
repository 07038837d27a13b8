"""What the data axes send for one unit: parameters gathered, gradients reduced.

As stock FSDP2 does it with mixed precision, each unit being one group. Parameters travel in the compute
dtype, gradients in the master dtype; shards lie on fsdp and cp together, copies on dp (with cp under ZeRO-0):

    zero   parameters gathered                     gradients scattered        summed over dp
    0      (no shards)                             (no shards)                once a step
    1      once a step, kept                       once a step                once a step
    2      once a step, kept                       each micro-batch           once a step
    3      each micro-batch, forward and backward  each micro-batch           once a step

Experts that an ep axis has shared out are a group of their own, on the ranks that hold the same ones.

Volumes: Rajbhandari et al., 2020, section 7. Of what is sent, the share ``cluster.overlap`` hides
behind compute while there is compute left to hide behind.

Around the sending, memory is read and written, as stock programs do it, at the device's own pace:

    gathering    a rank's shard goes into one buffer in the compute dtype, and all parameters come out of one
    scattering   all gradients go into one buffer in the master dtype
    summing      where nothing is sharded, a unit's gradients go into one buffer
    adding up    each micro-batch but the first reads its gradients and the sum, and writes this: whole gradients
                 under ZeRO 0 and 1, a rank's shard under 2 and 3

It goes the way of what is sent: on a CPU nothing of it is hidden, on a GPU it is short.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.cost.unit import UnitCost

if TYPE_CHECKING:
    from autoplan.hardware import Cluster
    from autoplan.plan import Precision

__all__ = ["StateTraffic", "added_s", "handled_traffic", "sent_traffic", "state_traffic"]


@dataclass(frozen=True, slots=True)
class StateTraffic:
    """Seconds on the wire before anything is hidden: per forward, per backward, and per step."""

    forward_s: float = 0.0
    backward_s: float = 0.0
    head_s: float = 0.0
    tail_fsdp_s: float = 0.0
    tail_dp_s: float = 0.0

    def __add__(self, other: StateTraffic) -> StateTraffic:
        return StateTraffic(
            self.forward_s + other.forward_s,
            self.backward_s + other.backward_s,
            self.head_s + other.head_s,
            self.tail_fsdp_s + other.tail_fsdp_s,
            self.tail_dp_s + other.tail_dp_s,
        )

    def scaled(self, share: float) -> StateTraffic:
        """So much of everything."""
        return StateTraffic(*(share * getattr(self, field.name) for field in fields(self)))


def state_traffic(unit: UnitCost, degrees: Degrees, precision: Precision, cluster: Cluster) -> StateTraffic:
    """Seconds that the data axes take for one unit of a stage: sending, and reading and writing around it."""
    return sent_traffic(unit, degrees, precision, cluster) + handled_traffic(
        unit, degrees, precision, cluster
    )


def sent_traffic(unit: UnitCost, degrees: Degrees, precision: Precision, cluster: Cluster) -> StateTraffic:
    """Of ``state_traffic``, what is sent."""
    each = [
        _sent_each(sizes, *axes, precision, cluster) for sizes, axes in _groups(unit, degrees) if sizes[0]
    ]
    return _when(degrees.zero, *(sum(kind) for kind in zip((0.0, 0.0, 0.0), *each, strict=True)))


def handled_traffic(unit: UnitCost, degrees: Degrees, precision: Precision, cluster: Cluster) -> StateTraffic:
    """Of ``state_traffic``, reading and writing around what is sent, and adding up."""
    each = [_handled_each(sizes, *axes, precision, cluster) for sizes, axes in _groups(unit, degrees)]
    found = _when(degrees.zero, *(sum(kind) for kind in zip(*each, strict=True)))
    m = degrees.num_micro_batches
    return found + StateTraffic(backward_s=(m - 1) / m * added_s(unit, degrees, precision, cluster))


def added_s(unit: UnitCost, degrees: Degrees, precision: Precision, cluster: Cluster) -> float:
    """Seconds that a micro-batch takes to add its gradients of ``unit`` to those of others."""
    total = 0.0
    for (_, trainable), (shards, _, _) in _groups(unit, degrees):
        elements = trainable / shards if degrees.zero >= 2 else trainable
        total += _streamed_s(elements * 3 * precision.master_bytes, cluster)
    return total


def _groups(unit: UnitCost, degrees: Degrees) -> list[tuple[tuple[float, float], tuple[int, int, int]]]:
    """Parameters, and those with a gradient, that go together; ranks that share them, how far apart these are, and
    copies of them, which lie outside these."""
    dense = unit.parameters - unit.experts, unit.trainable - unit.trainable_experts
    groups = [(dense, (degrees.shard_ranks, degrees.tp, degrees.replicas))]
    if unit.experts:
        axes = degrees.expert_shard_ranks, degrees.expert_stride, degrees.expert_replicas
        groups.append(((unit.experts, unit.trainable_experts), axes))
    return groups


def _when(zero: int, gather: float, scatter: float, reduce: float) -> StateTraffic:
    match zero:
        case 0 | 1:
            return StateTraffic(0.0, 0.0, gather, scatter, reduce)
        case 2:
            return StateTraffic(0.0, scatter, gather, 0.0, reduce)
        case _:
            return StateTraffic(gather, gather + scatter, 0.0, 0.0, reduce)


def _sent_each(
    elements: tuple[float, float],
    shards: int,
    stride: int,
    replicas: int,
    precision: Precision,
    cluster: Cluster,
) -> tuple[float, float, float]:
    """Seconds to gather parameters, to scatter gradients, and to sum these over replicas."""
    gather = scatter = reduce = 0.0
    parameters, trainable = elements
    if shards > 1:
        gather = _sent_s("all_gather", parameters * precision.compute_bytes, shards, stride, cluster)
        scatter = _sent_s("reduce_scatter", trainable * precision.master_bytes, shards, stride, cluster)
    if replicas > 1:
        shard = trainable * precision.master_bytes / shards
        reduce = _sent_s("all_reduce", shard, replicas, stride * shards, cluster)
    return gather, scatter, reduce


def _handled_each(
    elements: tuple[float, float],
    shards: int,
    stride: int,
    replicas: int,
    precision: Precision,
    cluster: Cluster,
) -> tuple[float, float, float]:
    """Seconds of reading and writing around each of ``_sent_each``."""
    parameters, trainable = elements
    half, full = precision.compute_bytes, precision.master_bytes
    if shards > 1:
        put, taken = parameters / shards * (full + half), parameters * 2 * half
        gather = _streamed_s(put, cluster) + _streamed_s(taken, cluster)
        return gather, _streamed_s(trainable * (half + full), cluster), 0.0
    return 0.0, 0.0, _streamed_s(trainable * 2 * full, cluster) if replicas > 1 else 0.0


def _streamed_s(nbytes: float, cluster: Cluster) -> float:
    return cluster.device.memory_time_s(nbytes) if nbytes else 0.0


def _sent_s(kind: str, nbytes: float, size: int, stride: int, cluster: Cluster) -> float:
    return cluster.collective_time_s(kind, nbytes, size, stride=stride) if nbytes else 0.0

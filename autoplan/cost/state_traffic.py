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
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.cost.unit import UnitCost

if TYPE_CHECKING:
    from autoplan.hardware import Cluster
    from autoplan.plan import Precision

__all__ = ["StateTraffic", "state_traffic"]


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
    """Seconds that the data axes send for one unit of a stage."""
    dense = unit.parameters - unit.experts, unit.trainable - unit.trainable_experts
    gather, scatter, reduce = _sent_each(
        dense, degrees.shard_ranks, degrees.tp, degrees.replicas, precision, cluster
    )
    if unit.experts:
        experts = unit.experts, unit.trainable_experts
        axes = degrees.expert_shard_ranks, degrees.expert_stride, degrees.expert_replicas
        own = _sent_each(experts, *axes, precision, cluster)
        gather, scatter, reduce = gather + own[0], scatter + own[1], reduce + own[2]
    match degrees.zero:
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
    """Seconds to gather parameters, to scatter gradients, and to sum these over replicas.

    ``elements``: parameters, and those with a gradient. ``shards`` ranks share them, ``stride`` apart; replicas lie
    outside these.
    """
    gather = scatter = reduce = 0.0
    parameters, trainable = elements
    if shards > 1:
        gather = _sent_s("all_gather", parameters * precision.compute_bytes, shards, stride, cluster)
        scatter = _sent_s("reduce_scatter", trainable * precision.master_bytes, shards, stride, cluster)
    if replicas > 1:
        shard = trainable * precision.master_bytes / shards
        reduce = _sent_s("all_reduce", shard, replicas, stride * shards, cluster)
    return gather, scatter, reduce


def _sent_s(kind: str, nbytes: float, size: int, stride: int, cluster: Cluster) -> float:
    return cluster.collective_time_s(kind, nbytes, size, stride=stride) if nbytes else 0.0

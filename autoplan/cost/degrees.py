"""The numbers of a plan, apart from which unit goes where and which layout each op has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoplan.plan.mesh_sizes import MeshSizes
from autoplan.plan.schedule import Schedule

if TYPE_CHECKING:
    from autoplan.plan import Plan

__all__ = ["Degrees"]


@dataclass(frozen=True, slots=True, order=True)
class Degrees(MeshSizes):
    """Sizes of the mesh axes, what they shard, and how the batch is cut (see ``Plan``)."""

    pp: int
    dp: int
    fsdp: int
    cp: int
    tp: int
    zero: int
    micro_batch: int
    num_micro_batches: int
    schedule: Schedule = Schedule.ONE_F_ONE_B
    vpp: int = 1
    ep: int = 1

    @classmethod
    def of(cls, plan: Plan) -> Degrees:
        return cls(
            plan.pp,
            plan.dp,
            plan.fsdp,
            plan.cp,
            plan.tp,
            plan.zero,
            plan.micro_batch,
            plan.num_micro_batches,
            plan.schedule,
            plan.vpp,
            plan.ep,
        )

    @property
    def replica_stride(self) -> int:
        """How far apart ``replicas`` are."""
        return self.tp * self.shard_ranks

    @property
    def expert_stride(self) -> int:
        """How far apart ``expert_shard_ranks`` are."""
        return self.tp * self.ep

    @property
    def expert_spread(self) -> float:
        """How many times as much of its experts' state a rank keeps as of other state of that size."""
        return self.shard_ranks / self.expert_shard_ranks

    @property
    def pp_stride(self) -> int:
        return self.tp * self.cp * self.data_ranks

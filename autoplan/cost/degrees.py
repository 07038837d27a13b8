"""The numbers of a plan, apart from which unit goes where and which layout each op has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoplan.plan.schedule import Schedule, ranks_of_stages

if TYPE_CHECKING:
    from autoplan.plan import Plan

__all__ = ["Degrees"]


@dataclass(frozen=True, slots=True, order=True)
class Degrees:
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
    def stage_ranks(self) -> tuple[int, ...]:
        """The pipeline rank of each of ``pp · vpp`` stages."""
        return ranks_of_stages(self.schedule, self.pp, self.vpp)

    @property
    def world_size(self) -> int:
        return self.pp * self.dp * self.fsdp * self.cp * self.tp

    @property
    def data_ranks(self) -> int:
        return self.dp * self.fsdp

    @property
    def shard_ranks(self) -> int:
        """How many ranks share one copy of the training state; they are ``tp`` apart."""
        return self.fsdp * self.cp if self.zero else 1

    @property
    def replicas(self) -> int:
        """How many copies of the training state a stage's data and cp axes hold; they are ``replica_stride`` apart."""
        return self.data_ranks * self.cp // self.shard_ranks

    @property
    def replica_stride(self) -> int:
        return self.tp * self.shard_ranks

    @property
    def expert_shard_ranks(self) -> int:
        """How many ranks share the state of one rank's experts; they are ``expert_stride`` apart."""
        return max(self.shard_ranks // self.ep, 1)

    @property
    def expert_replicas(self) -> int:
        """How many copies of that state the data axes hold."""
        return self.data_ranks * self.cp // (self.ep * self.expert_shard_ranks)

    @property
    def expert_stride(self) -> int:
        return self.tp * self.ep

    @property
    def expert_spread(self) -> float:
        """How many times as much of its experts' state a rank keeps as of other state of that size."""
        return self.shard_ranks / self.expert_shard_ranks

    @property
    def pp_stride(self) -> int:
        return self.tp * self.cp * self.data_ranks

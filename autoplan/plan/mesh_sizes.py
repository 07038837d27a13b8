"""What follows from the sizes of the mesh axes: how many ranks there are, and how many share or repeat what."""

from __future__ import annotations

from autoplan.plan.schedule import Schedule, ranks_of_stages

__all__ = ["MeshSizes"]


class MeshSizes:
    """For a class that has the sizes: pp, dp, fsdp, cp, tp, ep, vpp, zero and the schedule."""

    __slots__ = ()

    pp: int
    dp: int
    fsdp: int
    cp: int
    tp: int
    ep: int
    vpp: int
    zero: int
    schedule: Schedule

    @property
    def world_size(self) -> int:
        return self.pp * self.dp * self.fsdp * self.cp * self.tp

    @property
    def data_ranks(self) -> int:
        """How many ways the global batch is cut."""
        return self.dp * self.fsdp

    @property
    def stage_ranks(self) -> tuple[int, ...]:
        """The pipeline rank of each of ``pp · vpp`` stages."""
        return ranks_of_stages(self.schedule, self.pp, self.vpp)

    @property
    def shard_ranks(self) -> int:
        """How many ranks share one copy of the training state; they are ``tp`` apart."""
        return self.fsdp * self.cp if self.zero else 1

    @property
    def replicas(self) -> int:
        """How many copies of the training state a stage's data and cp axes hold."""
        return self.data_ranks * self.cp // self.shard_ranks

    @property
    def expert_shard_ranks(self) -> int:
        """How many ranks share the training state of one rank's experts."""
        return max(self.shard_ranks // self.ep, 1)

    @property
    def expert_replicas(self) -> int:
        """How many copies of the training state of experts the data axes hold."""
        return self.data_ranks * self.cp // (self.ep * self.expert_shard_ranks)

"""The ranks that a program runs on: process group, device mesh, device, and what they must agree on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from autoplan.errors import AutoplanError, DistributedError, InputError, PlanError
from autoplan.hardware import AnyCluster, cluster_of, local_profile
from autoplan.plan import Plan, Precision
from autoplan.runtime.groups import laid_mesh, my_subgroup

__all__ = [
    "World",
    "agree",
    "broadcast_from_first",
    "cluster_at_hand",
    "from_all",
    "join",
    "lay_mesh",
    "raise_first",
    "world_size",
]


@dataclass(frozen=True, slots=True)
class World:
    """The device mesh of a plan (None in one process) and this rank's place on it.

    The mesh is pp x dp x fsdp x tp: where cp is above 1, ranks that differ in it hold the training state together as
    fsdp ranks do (as dp ranks where nothing is sharded), so that axis takes them in. ``cp_group`` names the process
    group of this rank's cp axis, empty where cp is 1. ``expert_mesh`` is the same ranks as pp x edp x efsdp x ep x tp
    where ep is above 1: the state of experts lies on edp replicas of efsdp shards. ``started`` tells that autoplan made the process group, and so
    must end it.
    """

    mesh: DeviceMesh | None
    device: torch.device
    pp_rank: int
    data_rank: int
    data_ranks: int
    started: bool
    cp_group: str = ""
    expert_mesh: DeviceMesh | None = None

    def experts(self, *names: str) -> DeviceMesh | None:
        """The axes ``names`` of the experts' mesh through this rank."""
        return self.expert_mesh[tuple(names)] if self.expert_mesh is not None else None

    def axis(self, name: str) -> DeviceMesh | None:
        """The mesh axis ``name`` through this rank."""
        return self.mesh[name] if self.mesh is not None else None


_EXPERT_AXES = ("pp", "edp", "efsdp", "ep", "tp")

TIMEOUT_VARIABLE = "AUTOPLAN_TIMEOUT"
"""Environment variable with the seconds that a rank waits for the others in a collective; torch's default without."""


def join() -> bool:
    """Join the process group that torchrun describes, if there is one and it is not joined yet."""
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_timeout())
    return True


def _timeout() -> timedelta | None:
    text = os.environ.get(TIMEOUT_VARIABLE)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) < 10**7:
        raise InputError(TIMEOUT_VARIABLE, text, "a whole number of seconds", f"set {TIMEOUT_VARIABLE}=600")
    return timedelta(seconds=int(text))


def world_size() -> int:
    """Ranks in the process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def lay_mesh(plan: Plan, started: bool) -> World:
    """Lay the plan's mesh over the ranks. Raises PlanError when their number is not the plan's."""
    size = world_size()
    if plan.world_size != size:
        raise PlanError(
            "world size", size, f"{plan.world_size} ranks (pp {plan.pp} x dp {plan.dp} x fsdp {plan.fsdp} x cp {plan.cp} x tp {plan.tp})",
            f"start {plan.world_size} ranks (torchrun --nproc-per-node), or search a plan for {size}",
        )  # fmt: skip
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device("cpu")
    if not dist.is_initialized():
        if plan.precision is not Precision.BF16:
            return World(None, device, 0, 0, 1, started)
        # Master weights are FSDP2's work, and that wants a mesh, if only of one rank.
        dist.init_process_group(
            "nccl" if kind == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1
        )
        started = True
    names = ("pp", "dp", "fsdp", "tp")
    mesh = laid_mesh(kind, (plan.pp, plan.replicas, plan.shard_ranks, plan.tp), names, _timeout())
    place = dict(zip(names, mesh.get_coordinate() or [], strict=True))
    data_rank = (place["dp"] * plan.shard_ranks + place["fsdp"]) // plan.cp
    shape = (plan.pp, plan.expert_replicas, plan.expert_shard_ranks, plan.ep, plan.tp)
    experts = laid_mesh(kind, shape, _EXPERT_AXES, _timeout()) if plan.ep > 1 else None
    return World(mesh, device, place["pp"], data_rank, plan.data_ranks, started, _cp_group(plan), experts)


def _cp_group(plan: Plan) -> str:
    """The name of the process group of this rank's cp axis. Every rank must call it."""
    if plan.cp == 1:
        return ""
    ranks = torch.arange(plan.world_size).view(-1, plan.cp, plan.tp)
    group = my_subgroup(ranks.transpose(1, 2).reshape(-1, plan.cp).tolist(), _timeout())
    assert group is not None
    return group.group_name


def cluster_at_hand(cluster: AnyCluster | str | Path | None) -> AnyCluster:
    """The cluster of that name or file, as large as the process group; None is this machine. Every rank must call it."""
    if cluster is None or cluster == "local":
        return local_profile(world_size())
    return cluster_of(cluster, gpus=world_size()) if isinstance(cluster, str | Path) else cluster


def agree(what: str, value: str) -> None:
    """Check that every rank has the same ``value``; every rank raises DistributedError if not."""
    if world_size() == 1:
        return
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    if len(set(values)) > 1:
        groups = {v: [rank for rank, own in enumerate(values) if own == v] for v in sorted(set(values))}
        raise DistributedError(
            what, groups, "the same on every rank", "start every rank with the same script, model and plan"
        )


def from_all(value: Any) -> list[Any]:
    """Every rank's ``value``, on every rank."""
    values: list[Any] = [value]
    if world_size() > 1:
        values = [None] * world_size()
        dist.all_gather_object(values, value)
    return values


def raise_first(errors: Iterable[AutoplanError | None]) -> None:
    """Raise the first error there is. With those of ``from_all``, every rank raises the same."""
    first = next((one for one in errors if one is not None), None)
    if first is not None:
        raise first


def broadcast_from_first(value: Any) -> Any:
    """Rank 0's ``value``, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]

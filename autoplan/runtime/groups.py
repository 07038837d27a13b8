"""Process groups that programs share: making one takes threads, sockets and a round over all ranks, so that each is
made once and lives as long as the default process group."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

__all__ = ["forget_groups", "laid_mesh", "my_subgroup"]

_MADE: dict[Hashable, Any] = {}
_OF: list[dist.ProcessGroup | None] = [None]


def laid_mesh(
    kind: str, shape: tuple[int, ...], names: tuple[str, ...], timeout: timedelta | None
) -> DeviceMesh:
    """The mesh of ``shape`` over all ranks. Every rank must call it."""
    key, made = ("mesh", kind, shape, names, timeout), _made()
    if key not in made:
        mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
        if timeout is not None:
            for name in names:
                dist.distributed_c10d._set_pg_timeout(timeout, mesh[name].get_group())
        made[key] = mesh
    return made[key]


def my_subgroup(
    groups: Sequence[Sequence[int]], timeout: timedelta | None = None
) -> dist.ProcessGroup | None:
    """Of ``groups`` of ranks that do not overlap, this rank's, or None. Every rank must call it."""
    key, made = ("groups", tuple(map(tuple, groups)), timeout), _made()
    if key not in made:
        made[key] = None
        for ranks in groups:
            group = dist.new_group(list(ranks), timeout=timeout)
            if dist.get_rank() in ranks:
                made[key] = group
    return made[key]


def forget_groups() -> None:
    """Give programs to come groups of their own: after a failure, these may hold messages that nobody has read."""
    _MADE.clear()


def _made() -> dict[Hashable, Any]:
    """What was made for the default process group of today."""
    if _OF[0] is not dist.group.WORLD:
        _MADE.clear()
        _OF[0] = dist.group.WORLD
    return _MADE

"""Process groups that programs share: making one takes threads, sockets and a round over all ranks, so that each is
made once and lives as long as the default process group."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

__all__ = ["forget_groups", "laid_mesh", "my_subgroup"]

_MADE: dict[Hashable, Any] = {}
_OF: list[dist.ProcessGroup | None] = [None]


def laid_mesh(
    kind: str, shape: tuple[int, ...], names: tuple[str, ...], timeout: timedelta | None
) -> DeviceMesh:
    """The mesh of ``shape`` over all ranks. Every rank must call it.

    Meshes that deal out the ranks of an axis alike share its groups, and all axes of size 1 share one: each group of
    gloo has a thread that wakes a hundred times a second.
    """
    key, made = ("mesh", kind, shape, names, timeout), _made()
    if key not in made:
        ranks = torch.arange(math.prod(shape)).reshape(shape)
        axes = [ranks.movedim(place, -1).reshape(-1, size).tolist() for place, size in enumerate(shape)]
        groups = [
            my_subgroup(axis, timeout, name if len(axis[0]) > 1 else "alone")
            for axis, name in zip(axes, names, strict=True)
        ]
        made[key] = DeviceMesh.from_group(groups, kind, ranks, mesh_dim_names=names)  # type: ignore[arg-type]
    return made[key]


def my_subgroup(
    groups: Sequence[Sequence[int]], timeout: timedelta | None = None, purpose: str = ""
) -> dist.ProcessGroup | None:
    """Of ``groups`` of ranks that do not overlap, this rank's, or None; another one for each ``purpose``. Every rank
    must call it."""
    key, made = ("groups", tuple(map(tuple, groups)), timeout, purpose), _made()
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

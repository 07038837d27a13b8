"""The same machines, more or fewer of them."""

from __future__ import annotations

import math

from msgspec.structs import replace

from autoplan.errors import ProfileError
from autoplan.hardware.cluster import Cluster
from autoplan.hardware.level import Level

__all__ = ["resized"]


def resized(cluster: Cluster, nodes: int | None, gpus: int | None) -> Cluster:
    """``cluster`` with ``nodes`` whole nodes, or ``gpus`` devices; unchanged when both are None.

    Fewer devices than a node make a part of one node. With more than two levels, the levels fill
    from the inside; a level that is not full must be the outermost. Of units that may be used in part
    (``Level.partial``) as many are taken as divide the job evenly: 256 devices are 4 x 64 of racks
    of 72, which keep their links in proportion.

    Raises:
        ProfileError: not a positive whole number, both given and at odds, or no such shape exists.
    """
    for field, value in (("--nodes", nodes), ("--gpus", gpus)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ProfileError(field, value, "a whole number of at least 1", f"give {field} a count")
    node = cluster.node_size
    if nodes is not None and gpus is not None and nodes * node != gpus:
        raise ProfileError(
            "--gpus", gpus, f"{nodes * node} ({nodes} nodes of {node})", "give --nodes or --gpus, not both"
        )
    devices = gpus if gpus is not None else nodes * node if nodes is not None else cluster.world_size
    if devices == cluster.world_size:
        return cluster
    return replace(cluster, levels=_filled(cluster, devices), devices=None)


def _filled(cluster: Cluster, devices: int) -> tuple[Level, ...]:
    """The levels that ``devices`` devices fill, innermost first; only the outermost may grow."""
    levels: list[Level] = []
    left = devices
    for index in range(len(cluster.levels)):
        level = cluster.levels[index]
        outermost = index == len(cluster.levels) - 1
        grows = outermost and index > 0
        if left <= level.size or grows:
            return (*levels, *_top(level, left, bool(levels)))
        if left % level.size and level.partial:
            used = max(part for part in range(1, level.size + 1) if left % part == 0)
            levels.append(replace(level, size=used))
            above = cluster.levels[index + 1]
            links = max(1, above.nics * used // level.size)
            cluster = _with_level(cluster, index + 1, replace(above, nics=links))
            left //= used
            continue
        if left % level.size:
            raise ProfileError(
                "--gpus",
                devices,
                f"at most {cluster.node_size}, or a multiple of {devices // left * level.size}",
                f"use whole units of {cluster.name}'s level {level.name!r}",
            )
        levels.append(level)
        left //= level.size
    raise ProfileError(
        "--gpus",
        devices,
        f"at most {math.prod(level.size for level in cluster.levels)}",
        f"{cluster.name} describes one machine; add a [[level]] for the network between machines, or "
        f"measure there with `autoplan profile`",
    )


def _with_level(cluster: Cluster, index: int, level: Level) -> Cluster:
    levels = (*cluster.levels[:index], level, *cluster.levels[index + 1 :])
    return replace(cluster, levels=levels)


def _top(level: Level, size: int, may_drop: bool) -> tuple[Level, ...]:
    return () if size == 1 and may_drop else (replace(level, size=size),)

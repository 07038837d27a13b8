"""This machine's own profile: measured once, then read from the user's cache."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from autoplan.errors import AutoplanError, DistributedError
from autoplan.hardware.cluster import Cluster
from autoplan.hardware.profile_file import parse_profile, profile_text, read_profile, write_profile
from autoplan.hardware.profile_path import cache_dir

__all__ = ["local_name", "local_profile"]


def local_name(device_kind: str, world_size: int) -> str:
    """``local-cpu-4``: the name under which a measurement with that many ranks is kept."""
    return f"local-{device_kind}-{world_size}"


def local_profile(world_size: int) -> Cluster:
    """The measured profile of this machine with ``world_size`` ranks at work.

    Read from the cache; where there is none (or it is of another machine), measured quickly now and
    kept. With an initialised process group all of its ranks must call this; they measure together,
    rank 0 reads and writes the file, and all return the same profile. Without one, the measuring
    ranks are started here.

    Raises:
        DistributedError: ``world_size`` is not that of the process group, or a rank failed.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return _together(world_size)
    from autoplan.hardware.measure import World, measure_cluster
    from autoplan.hardware.measure_sizes import local_sizes

    device = World.here().device
    name = local_name(device.type, world_size)
    if (cached := _cached(name)) is not None:
        return cached
    _tell(f"measuring this machine with {world_size} ranks (once)")
    if world_size == 1:
        return _kept(measure_cluster(name, sizes=local_sizes(device.type)))
    from autoplan.hardware.launch import spawn

    path = _path(name)
    spawn(world_size, ["--quick", "--name", name, "--out", str(path)], silent=True)
    return read_profile(path)


def _together(world_size: int) -> Cluster:
    import torch.distributed as dist

    from autoplan.hardware.measure import World, measure_cluster
    from autoplan.hardware.measure_sizes import local_sizes

    world = World.here()
    if world_size != world.size:
        raise DistributedError(
            "world_size", world_size, f"{world.size}, the ranks of the process group", "use all of its ranks"
        )
    name = local_name(world.device.type, world_size)
    cached = _cached(name) if world.rank == 0 else None
    box: list[str | None] = [None if cached is None else profile_text(cached)]
    dist.broadcast_object_list(box, src=0, device=world.device)
    if box[0] is not None:
        return parse_profile(box[0], name)
    if world.rank == 0:
        _tell(f"measuring this machine with {world_size} ranks (once)")
    cluster = measure_cluster(name, sizes=local_sizes(world.device.type))
    return _kept(cluster) if world.rank == 0 else cluster


def _cached(name: str) -> Cluster | None:
    """The cached profile, if there is a valid one that was measured on this kind of machine."""
    import torch

    from autoplan.hardware.machine import device_name

    with contextlib.suppress(AutoplanError):
        cluster = read_profile(_path(name))
        if cluster.device.name == device_name(torch.device(cluster.device.kind)):
            return cluster
    return None


def _kept(cluster: Cluster) -> Cluster:
    """Write to the cache; a cache that cannot be written costs only a measurement next time."""
    with contextlib.suppress(AutoplanError):
        write_profile(cluster, _path(cluster.name))
    return cluster


def _path(name: str) -> Path:
    return cache_dir() / f"{name}.toml"


def _tell(text: str) -> None:
    print(f"autoplan: {text}", file=sys.stderr, flush=True)

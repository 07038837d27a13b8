"""A cluster as people name it: a profile, its file, or several profiles with their nodes."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from autoplan.errors import ProfileError
from autoplan.hardware.cluster import Cluster
from autoplan.hardware.mixed import MixedCluster
from autoplan.hardware.profile_file import read_any
from autoplan.hardware.profile_path import find_profile

__all__ = ["AnyCluster", "cluster_of"]

AnyCluster = Cluster | MixedCluster

_PART = re.compile(r"\s*([^:+]+?)\s*:\s*([1-9][0-9]{0,6})\s*")


def cluster_of(text: str | Path, nodes: int | None = None, gpus: int | None = None) -> AnyCluster:
    """The cluster that ``text`` names, with ``nodes`` nodes or ``gpus`` devices in all.

    ``h100-sxm`` or ``file.toml``: see ``Cluster.of``; ``a100-80-sxm:4+h100-sxm:4``: 4 nodes of the one and then 4 of
    the other, as is a file of several parts. Their numbers of nodes are their size. Neighbours of one profile are one part.

    Raises ProfileError for what is none, or is of another size than ``nodes`` or ``gpus``.
    """
    if not _names_parts(text):
        path = find_profile(text)
        cluster = read_any(path)
        if isinstance(cluster, Cluster):
            return Cluster.of(cluster, nodes=nodes, gpus=gpus)
        return _sized(cluster, nodes, gpus)
    pairs = [_part(text, part) for part in str(text).split("+")]
    joined = [
        (name, sum(count for _, count in group)) for name, group in groupby(pairs, key=lambda pair: pair[0])
    ]
    if len(joined) == 1:
        return _sized(Cluster.of(joined[0][0], nodes=joined[0][1]), nodes, gpus)
    return _sized(MixedCluster.of(joined), nodes, gpus)


def _names_parts(text: str | Path) -> bool:
    return isinstance(text, str) and (":" in text or "+" in text) and not Path(text).expanduser().is_file()


def _part(text: str | Path, part: str) -> tuple[str, int]:
    match = _PART.fullmatch(part)
    if match is None:
        raise ProfileError(
            "--cluster",
            str(text),
            "PROFILE:NODES+PROFILE:NODES for two types of device",
            "give --cluster a100-80-sxm:4+h100-sxm:4",
        )
    return match[1], int(match[2])


def _sized(cluster: AnyCluster, nodes: int | None, gpus: int | None) -> AnyCluster:
    """``cluster``, whose size is said already, if it is the size that is asked for."""
    for option, wanted, found in (("--nodes", nodes, cluster.nodes), ("--gpus", gpus, cluster.world_size)):
        if wanted is not None and wanted != found:
            raise ProfileError(
                option,
                wanted,
                f"{found}, as {cluster.name} says",
                f"leave {option} out, or change the nodes of each part",
            )
    return cluster

"""The cluster of a table's row, from the name of its GPU."""

from __future__ import annotations

import re
from functools import lru_cache

from autoplan.cost.transformer.row_fields import Fields
from autoplan.errors import InputError, ProfileError
from autoplan.hardware import Cluster

__all__ = ["loaded_cluster", "row_cluster_name", "sized_cluster"]

_CLOSEST: tuple[tuple[str, str], ...] = (
    (r"gb300", "gb300-nvl72"),
    (r"gb200", "gb200-nvl72"),
    (r"b300", "b300-sxm"),
    (r"b200|b100", "b200-sxm"),
    (r"h200", "h200-sxm"),
    (r"h100|h800|gh200", "h100-sxm"),
    (r"a100.*pcie", "a100-80-pcie"),
    (r"a100.*40", "a100-40-sxm"),
    (r"a100|a800", "a100-80-sxm"),
    (r"v100.*16", "v100-16-sxm"),
    (r"dgx-?2", "dgx-2"),
    (r"v100", "v100-32-sxm"),
    (r"mi3\d\dx?", "mi300x"),
    (r"l40", "l40s"),
    (r"\bl4\b", "l4"),
    (r"a10g?\b", "a10g"),
    (r"4090", "rtx-4090"),
)


def row_cluster_name(fields: Fields) -> str:
    """The profile of a row's ``gpu``; where only a close one is shipped, that is said.

    Raises InputError where no shipped profile is close.
    """
    gpu = fields.text("gpu")
    if not gpu:
        raise InputError("gpu", None, "the name of a GPU or of a hardware profile", "give gpu or --cluster")
    lowered = gpu.lower()
    if "a100" in lowered and fields.noted("jean zay|omni-?path|bloom main"):
        fields.assume("cluster", "a100-80-sxm-4-opa", "by the notes")
        return "a100-80-sxm-4-opa"
    if "v100" in lowered and fields.noted("dgx-?2"):
        fields.assume("cluster", "dgx-2", "by the notes")
        return "dgx-2"
    if _known(gpu):
        return gpu
    if "tpu" not in lowered and "unknown" not in lowered and "trainium" not in lowered:
        for pattern, name in _CLOSEST:
            if re.search(pattern, lowered):
                fields.assume("cluster", name, f"closest to {gpu}")
                return name
    raise InputError("gpu", gpu, "a GPU that a hardware profile describes", "give --cluster with a profile")


@lru_cache(maxsize=256)
def loaded_cluster(name: str) -> Cluster:
    """The profile, read once for all rows. Raises ProfileError."""
    return Cluster.load(name)


@lru_cache(maxsize=256)
def _known(name: str) -> bool:
    try:
        loaded_cluster(name)
    except ProfileError:
        return False
    return True


@lru_cache(maxsize=64)
def sized_cluster(name: str, gpus: int) -> Cluster:
    """The profile with room for ``gpus`` devices. Raises ProfileError where it cannot have so many."""
    cluster = loaded_cluster(name)
    node = cluster.node_size
    return Cluster.of(cluster, gpus=-(-gpus // node) * node)

"""What a model is trained on: devices, the levels that join them, and what each costs in seconds.

    cluster = Cluster.of("h100-sxm", nodes=16)
    cluster.device.gemm_time_s((1, 8192, 4096, 4096), "bfloat16")
    cluster.collective_time_s("all_reduce", 64 * 2**20, size=8)

Profiles are TOML files whose every figure names its source; ``autoplan profile`` measures one.
Nothing here imports torch until it measures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoplan.hardware.cluster import Cluster
from autoplan.hardware.cluster_text import AnyCluster, cluster_of
from autoplan.hardware.device import DTYPE_BYTES, Device
from autoplan.hardware.host import HostLink
from autoplan.hardware.level import COLLECTIVES, GroupEfficiency, Level, Protocol
from autoplan.hardware.mixed import MixedCluster
from autoplan.hardware.overlap import Slowdown
from autoplan.hardware.profile_file import (
    parse_profile,
    profile_from_dict,
    profile_text,
    read_any,
    write_profile,
)
from autoplan.hardware.profile_path import cache_dir, known_profiles
from autoplan.hardware.source import Source, SourceKind

if TYPE_CHECKING:
    from autoplan.hardware.local import local_profile

__all__ = [
    "COLLECTIVES",
    "DTYPE_BYTES",
    "AnyCluster",
    "Cluster",
    "Device",
    "GroupEfficiency",
    "HostLink",
    "Level",
    "MixedCluster",
    "Protocol",
    "Slowdown",
    "Source",
    "SourceKind",
    "cache_dir",
    "cluster_of",
    "known_profiles",
    "local_profile",
    "parse_profile",
    "profile_from_dict",
    "profile_text",
    "read_any",
    "write_profile",
]


def __getattr__(name: str) -> Any:
    if name != "local_profile":
        raise AttributeError(f"module 'autoplan.hardware' has no attribute {name!r}")
    from autoplan.hardware.local import local_profile

    return local_profile

"""Facts about the machine that measures."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import autoplan
from autoplan.hardware.source import Source, SourceKind

if TYPE_CHECKING:
    from autoplan.hardware.nvml import GpuFacts
    from autoplan.hardware.topology import Topology

__all__ = [
    "available_bytes",
    "cores",
    "device_memory_bytes",
    "device_name",
    "host_bytes",
    "local_gpu",
    "measured_source",
]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_gpu(local_rank: int = 0) -> int:
    """The GPU of this rank: the launcher's local rank counts before ``local_rank``; a rank that sees only
    its own GPU (as srun can arrange) takes that."""
    return int(os.environ.get("LOCAL_RANK", local_rank)) % torch.cuda.device_count()


def device_name(device: torch.device) -> str:
    """The maker's name of the device; of a CPU with the number of its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return f"{model}, {cores()} cores"


def device_memory_bytes(device: torch.device, ranks_per_node: int) -> tuple[int, int]:
    """All of a rank's memory and what can be allocated of it; a CPU's is shared by the ranks of the node.

    Of a CPU's memory 0.8 is taken to be usable: the system, Python and the libraries need the rest.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return total, total
    total = host_bytes()
    share = total // ranks_per_node
    return share, int(0.8 * share)


def available_bytes(device: torch.device) -> int:
    """What can be allocated now: free memory of the GPU, or of the machine (caches that it would give up counted)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    found = (
        re.search(r"^MemAvailable:\s+(\d+) kB", info.read_text(), re.MULTILINE) if info.is_file() else None
    )
    limit, used = _cgroup("memory.max"), _cgroup("memory.current")
    free = int(found[1]) * 1024 if found else host_bytes()
    return free if limit is None or used is None else min(free, limit - used)


def host_bytes() -> int:
    """Memory of the machine, or what this container may use of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup("memory.max")
    return total if limit is None else min(total, limit)


def _cgroup(name: str) -> int | None:
    """A number that the control group of this container tells, if there is one."""
    path = Path("/sys/fs/cgroup") / name
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdecimal() else None


def measured_source(
    device: torch.device,
    topology: Topology,
    *,
    visits: int,
    samples: int,
    load: float,
    gpu: GpuFacts | None = None,
) -> Source:
    """The record of this measurement: when, with what, under which load (of the last minute before it)."""
    versions = {"torch": str(torch.__version__), "python": platform.python_version()}
    if device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        from torch.cuda import nccl

        versions["nccl"] = ".".join(str(part) for part in nccl.version())
    return Source(
        kind=SourceKind.MEASURED,
        document="median of visits that lie far apart, all ranks at work at once, each sample until the last is done"
        + (" (compute: CPU seconds of all ranks over the cores)" if device.type == "cpu" else "")
        + "; spread: half of the interval, over the figure, that should hold a second measurement with 95 %",
        date=datetime.date.today().isoformat(),
        tool=f"autoplan profile {autoplan.__version__}",
        versions=versions,
        samples=visits * samples,
        settings={
            "ranks": topology.world,
            "topology": topology.found,
            "threads_per_rank": torch.get_num_threads(),
            "cores": cores(),
            "visits": visits,
            "load_before": round(load, 2),
            **({"nvlinks": gpu.nvlinks, "pcie_bytes_per_s": gpu.pcie_bytes_per_s} if gpu is not None else {}),
        },
    )

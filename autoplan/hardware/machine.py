"""Facts about the machine that measures."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import torch

import autoplan
from autoplan.hardware.source import Source, SourceKind

__all__ = ["cores", "device_memory_bytes", "device_name", "measured_source"]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdecimal():
        total = min(total, int(text))
    share = total // ranks_per_node
    return share, int(0.8 * share)


def measured_source(device: torch.device, ranks: int, samples: int) -> Source:
    """The record of this measurement: when, with what, under which load."""
    versions = {"torch": str(torch.__version__), "python": platform.python_version()}
    if device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        from torch.cuda import nccl

        versions["nccl"] = ".".join(str(part) for part in nccl.version())
    return Source(
        kind=SourceKind.MEASURED,
        document="median of the samples, all ranks at work at once, each sample until the last is done"
        + (" (compute: CPU seconds of all ranks over the cores)" if device.type == "cpu" else ""),
        date=datetime.date.today().isoformat(),
        tool=f"autoplan profile {autoplan.__version__}",
        versions=versions,
        settings={
            "ranks": ranks,
            "threads_per_rank": torch.get_num_threads(),
            "cores": cores(),
            "samples": samples,
            "load_before": round(os.getloadavg()[0], 2),
        },
    )

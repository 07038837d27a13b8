"""What NVIDIA's management library says of one GPU: who its NVLinks lead to, its PCIe link, its power.

Needs nvidia-ml-py (``pip install autoplan[nvml]``); without it, or on another maker's GPU, nothing is known.
"""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from typing import Any

__all__ = ["PCIE_LANE_BYTES_PER_S", "GpuFacts", "read_gpu"]

FABRIC_COMPLETED = 3  # NVML_GPU_FABRIC_STATE_COMPLETED
PCIE_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
"""Payload rate of one lane by generation (PCI Express Base Specification: GT/s times the line code)."""


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU as NVML describes it.

    Args:
        bus_id: its place on PCIe, in lower case.
        nvlinks: active NVLinks.
        peers: bus ids of the GPUs that its NVLinks lead to directly.
        switched: some NVLink leads to an NVSwitch, which joins all GPUs of the machine.
        fabric: the NVLink domain that spans machines (``cluster uuid:clique``), empty where there is none.
        pcie_bytes_per_s: of its PCIe link in one direction, 0 if not known.
        power_watts: the limit that is set, 0 if not known.
    """

    bus_id: str = ""
    nvlinks: int = 0
    peers: tuple[str, ...] = ()
    switched: bool = False
    fabric: str = ""
    pcie_bytes_per_s: float = 0.0
    power_watts: float = 0.0


def read_gpu(uuid: str) -> GpuFacts | None:
    """The GPU with that uuid (``GPU-…``, as torch's device properties give it); None without NVML."""
    try:
        pynvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return _facts(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _facts(nvml: Any, handle: Any) -> GpuFacts:
    nvlinks, peers, switched = 0, [], False
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        try:
            if not nvml.nvmlDeviceGetNvLinkState(handle, link):
                continue
            nvlinks += 1
            kind = nvml.nvmlDeviceGetNvLinkRemoteDeviceType(handle, link)
            if kind == nvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
                switched = True
            elif kind == nvml.NVML_NVLINK_DEVICE_TYPE_GPU:
                peers.append(_bus_id(nvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, link)))
        except nvml.NVMLError:
            continue  # this device has fewer links, or none
    lane = PCIE_LANE_BYTES_PER_S.get(_asked(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", handle), 0.0)
    return GpuFacts(
        bus_id=_bus_id(nvml.nvmlDeviceGetPciInfo(handle)),
        nvlinks=nvlinks,
        peers=tuple(sorted(set(peers))),
        switched=switched,
        fabric=_fabric(nvml, handle),
        pcie_bytes_per_s=lane * _asked(nvml, "nvmlDeviceGetMaxPcieLinkWidth", handle),
        power_watts=_asked(nvml, "nvmlDeviceGetPowerManagementLimit", handle) / 1e3,
    )


def _asked(nvml: Any, name: str, handle: Any) -> int:
    """A whole number, or 0 where the device does not say."""
    try:
        return int(getattr(nvml, name)(handle))
    except nvml.NVMLError:
        return 0


def _bus_id(info: Any) -> str:
    text = info.busId.decode() if isinstance(info.busId, bytes) else str(info.busId)
    return text.rstrip("\0").lower()


def _fabric(nvml: Any, handle: Any) -> str:
    """The multi-machine NVLink domain of a GPU whose fabric manager has finished, as in a GB200 NVL72."""
    try:
        info = nvml.c_nvmlGpuFabricInfo_t()
        nvml.nvmlDeviceGetGpuFabricInfo(handle, ctypes.byref(info))
    except (nvml.NVMLError, AttributeError):  # older drivers, older bindings
        return ""
    uuid = bytes(info.clusterUuid)
    if info.state != FABRIC_COMPLETED or not any(uuid):
        return ""
    return f"{uuid.hex()}:{info.cliqueId}"

"""From measured points to a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from autoplan.errors import AutoplanError
from autoplan.hardware.cluster import Cluster
from autoplan.hardware.device import Device
from autoplan.hardware.level import Level, bus_factor
from autoplan.hardware.machine import device_memory_bytes, device_name
from autoplan.hardware.profile_path import known_profiles
from autoplan.hardware.source import Source, SourceKind
from autoplan.hardware.tables import (
    AttentionEfficiency,
    AttentionPoint,
    AttentionTable,
    CommunicationPoint,
    CommunicationTable,
    GemmPoint,
    GemmTable,
    MemoryPoint,
    MemoryTable,
)

__all__ = ["Measured", "assemble", "datasheet_for"]

RUN = "run"
MACHINE = "machine"
RATIO = "ratio"
OVERLAP = "overlap"
ALONE = "alone"


@dataclass(slots=True)
class Measured:
    """The points of one measurement; ``messages`` by (level, collective, group size)."""

    device: torch.device
    node_size: int
    world: int
    launch_s: float = 0.0
    gemm: dict[str, list[GemmPoint]] = field(default_factory=dict)
    memory: list[MemoryPoint] = field(default_factory=list)
    attention: dict[tuple[str, bool], list[AttentionPoint]] = field(default_factory=dict)
    messages: dict[tuple[int, str, int], list[CommunicationPoint]] = field(default_factory=dict)


def datasheet_for(name: str) -> Cluster | None:
    """The profile with datasheet figures of the device of that name, if one is known."""
    for path in known_profiles().values():
        try:
            cluster = Cluster.load(path)
        except AutoplanError:
            continue  # someone's broken file is reported when it is asked for, not here
        kind = cluster.sources[cluster.device.source["peak_flops"]].kind
        if cluster.device.name == name and kind is SourceKind.DATASHEET:
            return cluster
    return None


def assemble(name: str, measured: Measured, run: Source) -> Cluster:
    """A profile called ``name`` of what was measured in ``run``."""
    cuda = measured.device.type == "cuda"
    device = _device(measured)
    sources = {
        RUN: run,
        MACHINE: Source(
            kind=SourceKind.MEASURED,
            document="as the driver reports it"
            if cuda
            else "memory of the machine over ranks of the node; 0.8 of it usable",
            date=run.date,
            tool=run.tool,
        ),
        RATIO: Source(
            kind=SourceKind.MEASURED,
            document="of peak, at the best that this run measured",
            date=run.date,
            tool=run.tool,
        ),
        OVERLAP: Source(
            kind=SourceKind.ASSUMED,
            document="communication runs on a few multiprocessors of its own stream; the first and last pieces stay exposed"
            if cuda
            else "the threads that communicate take the cores that compute",
        ),
    }
    levels = _levels(measured)
    if measured.world == 1:
        sources[ALONE] = Source(
            kind=SourceKind.ASSUMED, document="one rank sends nothing; its memory stands in"
        )
    if cuda and (sheet := datasheet_for(device.name)):
        peaks = sheet.device.source["peak_flops"]
        sources["datasheet"] = sheet.sources[peaks]
        device = _with_datasheet(device, sheet.device)
    return Cluster(
        name=name,
        description=f"{device.name}: {measured.world} ranks, {measured.node_size} a node",
        overlap=0.9 if cuda else 0.0,
        source={"overlap": OVERLAP},
        device=device,
        levels=levels,
        sources=sources,
    )


def _device(measured: Measured) -> Device:
    memory_bytes, usable_bytes = device_memory_bytes(measured.device, measured.node_size)
    peaks = {dtype: _peak(points, measured.launch_s) for dtype, points in measured.gemm.items()}
    cuda = measured.device.type == "cuda"
    units = torch.cuda.get_device_properties(measured.device).multi_processor_count if cuda else 0
    figures = {
        "memory_bytes": MACHINE,
        "usable_bytes": MACHINE,
        "memory_bytes_per_s": RUN,
        "memory_efficiency": RATIO,
        "launch_s": RUN,
        "peak_flops": RUN,
        "gemm_efficiency": RATIO,
        "attention_efficiency": RATIO,
    }
    return Device(
        name=device_name(measured.device),
        kind="cuda" if cuda else "cpu",
        memory_bytes=memory_bytes,
        usable_bytes=usable_bytes,
        memory_bytes_per_s=measured.memory[-1].bytes_per_s,
        memory_efficiency=1.0,
        launch_s=float(f"{measured.launch_s:.4g}"),
        peak_flops=peaks,
        gemm_efficiency=dict.fromkeys(peaks, 1.0),
        attention_efficiency=_attention_efficiency(measured, peaks),
        source=figures,
        compute_units=units,
        threads=0 if cuda else torch.get_num_threads(),
        gemm=tuple(GemmTable(dtype=d, source=RUN, points=tuple(p)) for d, p in measured.gemm.items()),
        memory=MemoryTable(source=RUN, points=tuple(measured.memory)),
        attention=tuple(
            AttentionTable(dtype=dtype, causal=causal, source=RUN, points=tuple(points))
            for (dtype, causal), points in measured.attention.items()
        ),
    )


def _peak(points: Sequence[GemmPoint], launch_s: float) -> float:
    """The best rate among products that take far longer than a launch; short ones are mostly noise."""
    long = [p for p in points if 2 * p.m * p.n * p.k / p.flops_per_s > 20 * launch_s]
    return max(p.flops_per_s for p in long or points)


def _attention_efficiency(measured: Measured, peaks: dict[str, float]) -> AttentionEfficiency:
    """The best share of peak that full attention reached; for dtypes that were not measured."""
    shares = [
        (p.forward_flops_per_s / peaks[dtype], p.backward_flops_per_s / peaks[dtype])
        for (dtype, causal), points in measured.attention.items()
        if not causal
        for p in points
    ]
    forward, backward = (min(1.0, float(f"{max(column):.3g}")) for column in zip(*shares, strict=True))
    return AttentionEfficiency(forward=forward, backward=backward)


def _with_datasheet(device: Device, sheet: Device) -> Device:
    """Peaks from the datasheet, against which utilisation is told; efficiencies to match."""
    import msgspec

    peaks = device.peak_flops | sheet.peak_flops
    efficiency = {d: min(1.0, best / peaks[d]) for d, best in device.peak_flops.items()}
    return msgspec.structs.replace(
        device,
        peak_flops=peaks,
        gemm_efficiency=efficiency,
        source=device.source | {"peak_flops": "datasheet"},
    )


def _levels(measured: Measured) -> tuple[Level, ...]:
    inside = "nvlink" if measured.device.type == "cuda" else "node"
    sizes = [(inside, measured.node_size), ("network", measured.world // measured.node_size)]
    return tuple(
        _level(measured, index, name, size)
        for index, (name, size) in enumerate(sizes)
        if size > 1 or index == 0
    )


def _level(measured: Measured, index: int, name: str, size: int) -> Level:
    tables = tuple(
        CommunicationTable(collective=kind, group=group, source=RUN, points=tuple(points))
        for (level, kind, group), points in measured.messages.items()
        if level == index
    )
    pairs: Sequence[CommunicationPoint] = measured.messages.get((index, "send_recv", 2), ())
    if not pairs:
        figures: dict[str, Any] = {"bandwidth_bytes_per_s": measured.memory[-1].bytes_per_s, "latency_s": 0.0}
        return Level(name=name, size=size, source=dict.fromkeys(figures, ALONE), **figures)
    shortest = min(bus_factor("send_recv", 2) * p.nbytes / p.bus_bytes_per_s for p in pairs)
    return Level(
        name=name,
        size=size,
        nics=1 if index == 0 else measured.node_size,
        bandwidth_bytes_per_s=max(p.bus_bytes_per_s for p in pairs),
        latency_s=float(f"{shortest:.4g}"),
        source={"bandwidth_bytes_per_s": RUN, "latency_s": RUN},
        curves=tables,
    )

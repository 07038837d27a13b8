"""From measured points to a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from autoplan.errors import AutoplanError, ProfileError
from autoplan.hardware.cluster import Cluster, Failure
from autoplan.hardware.device import Device
from autoplan.hardware.dtypes import Dtype
from autoplan.hardware.gemm import attention_flops
from autoplan.hardware.machine import cores, device_memory_bytes, device_name
from autoplan.hardware.measure_figure import Figure, rounded
from autoplan.hardware.measure_host import host_link
from autoplan.hardware.measure_levels import hidden_share, measured_levels, measured_slowdowns
from autoplan.hardware.measure_points import Attention, Gemm, Launch, Memory, Point
from autoplan.hardware.measure_run import Results
from autoplan.hardware.nvml import GpuFacts
from autoplan.hardware.profile_path import known_profiles
from autoplan.hardware.source import Source, SourceKind
from autoplan.hardware.tables import (
    AttentionEfficiency,
    AttentionPoint,
    AttentionTable,
    BatchedGemmPoint,
    BatchedGemmTable,
    GemmPoint,
    GemmTable,
    MemoryPoint,
    MemoryTable,
)
from autoplan.hardware.topology import Topology

__all__ = ["Findings", "assemble", "datasheet_for"]

RUN = "run"
MACHINE = "machine"
RATIO = "ratio"
OVERLAP = "overlap"
ALONE = "alone"
LEAST_RATE = 1e6
LEAST_SHARE = 0.05  # of a measured time that stays when the launch is taken out


@dataclass(frozen=True, slots=True)
class Findings:
    """What one measurement found: of which device, on which topology, at which points."""

    device: torch.device
    topology: Topology
    points: Sequence[Point]
    results: Results
    gpu: GpuFacts | None = None

    @property
    def launch_s(self) -> float:
        figure = self.results.figure(Launch("queued"))
        return figure.value if figure else 0.0

    def of(self, kind: type[Any]) -> list[tuple[Any, Figure]]:
        """The points of one kind that could be measured, with their figures."""
        pairs = ((point, self.results.figure(point)) for point in self.points if isinstance(point, kind))
        return [(point, figure) for point, figure in pairs if figure is not None]


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


def assemble(name: str, found: Findings, run: Source) -> Cluster:
    """A profile called ``name`` of what was measured in ``run``.

    Raises:
        ProfileError: not one product or stream through memory could be measured.
    """
    cuda = found.device.type == "cuda"
    device = _device(found)
    levels = measured_levels(found.topology, found.points, found.results, device.memory_bytes_per_s)
    slowdown = measured_slowdowns(found.topology, found.points, found.results)
    sources = _sources(found, run, measured_overlap=bool(slowdown))
    if cuda and (sheet := datasheet_for(device.name)):
        sources["datasheet"] = sheet.sources[sheet.device.source["peak_flops"]]
        device = _with_datasheet(device, sheet.device)
    cited = {*device.source.values(), *(key for level in levels for key in level.source.values())}
    cited |= {*(device.host.source.values() if device.host else ()), RUN, OVERLAP}
    return Cluster(
        name=name,
        description=f"{device.name}: {found.topology.world} ranks, {found.topology.node_size} a node",
        overlap=rounded(hidden_share(slowdown)) if slowdown else 0.0,
        source={"overlap": OVERLAP},
        device=device,
        levels=levels,
        slowdown=slowdown,
        failed=tuple(
            Failure(what=what, reason=reason or "unknown", source=RUN)
            for what, reason in found.results.failed.items()
        ),
        sources={key: source for key, source in sources.items() if key in cited},
    )


def _sources(found: Findings, run: Source, *, measured_overlap: bool) -> dict[str, Source]:
    def measured(document: str) -> Source:
        return Source(kind=SourceKind.MEASURED, document=document, date=run.date, tool=run.tool)

    cuda = found.device.type == "cuda"
    return {
        RUN: run,
        MACHINE: measured(
            "as the driver reports it"
            if cuda
            else "memory of the machine over ranks of the node; 0.8 of it usable"
        ),
        RATIO: measured("of peak, at the best that this run measured"),
        OVERLAP: measured(
            "from the slowdowns f < F beside products as long as the communication: 1 - f (1 - 1/F)"
        )
        if measured_overlap
        else Source(kind=SourceKind.ASSUMED, document="one rank has nothing to send"),
        ALONE: Source(kind=SourceKind.ASSUMED, document="one rank sends nothing; its memory stands in"),
    }


def _device(found: Findings) -> Device:
    memory_bytes, usable_bytes = device_memory_bytes(found.device, found.topology.node_size)
    cuda = found.device.type == "cuda"
    gemm, batched = _gemm(found, batched=False), _gemm(found, batched=True)
    memory = tuple(
        MemoryPoint(p.nbytes, _rate(p.nbytes, f, found.launch_s), *_trust(f, found.launch_s))
        for p, f in found.of(Memory)
    )
    if not gemm or not memory:
        reasons = "; ".join(found.results.failed.values())
        raise ProfileError(
            "profile", reasons, "products and streams that can be measured", "free some memory, and run again"
        )
    peaks: dict[Dtype, float] = {dtype: _peak(points, found.launch_s) for dtype, points in gemm.items()}
    attention = _attention(found)
    launch = found.results.figure(Launch("queued"))
    eager = found.results.figure(Launch("eager"))
    figures = ["memory_bytes_per_s", "launch_s", "peak_flops"]
    source = dict.fromkeys(figures, RUN) | {"memory_bytes": MACHINE, "usable_bytes": MACHINE}
    source |= dict.fromkeys(("memory_efficiency", "gemm_efficiency", "attention_efficiency"), RATIO)
    if eager is not None:
        source["eager_op_s"] = RUN
    power = found.gpu.power_watts if found.gpu is not None else 0.0
    if power:
        source["tdp_w"] = MACHINE
    return Device(
        name=device_name(found.device),
        kind="cuda" if cuda else "cpu",
        memory_bytes=memory_bytes,
        usable_bytes=usable_bytes,
        memory_bytes_per_s=memory[-1].bytes_per_s,
        memory_efficiency=1.0,
        launch_s=rounded(found.launch_s),
        eager_op_s=rounded(eager.value) if eager else None,
        tdp_w=power or None,
        peak_flops=peaks,
        gemm_efficiency=dict.fromkeys(peaks, 1.0),
        attention_efficiency=_attention_efficiency(attention, peaks),
        source=source,
        spread={"launch_s": rounded(launch.spread)} if launch else {},
        noisy=("launch_s",) if launch and launch.noisy else (),
        compute_units=torch.cuda.get_device_properties(found.device).multi_processor_count if cuda else 0,
        threads=0 if cuda else torch.get_num_threads(),
        at_once=0 if cuda else _at_once(found.topology.node_size),
        host=host_link(found.points, found.results, found.topology.node_size, RUN, MACHINE) if cuda else None,
        gemm=tuple(GemmTable(dtype=d, source=RUN, points=tuple(p)) for d, p in gemm.items()),
        batched_gemm=tuple(
            BatchedGemmTable(dtype=d, source=RUN, points=tuple(p)) for d, p in batched.items()
        ),
        memory=MemoryTable(source=RUN, points=memory),
        attention=tuple(
            AttentionTable(dtype=dtype, causal=causal, source=RUN, points=tuple(points))
            for (dtype, causal), points in attention.items()
        ),
    )


def _at_once(ranks: int) -> int:
    """Of the ranks of a node, as many as its cores can run; 0 for all."""
    room = max(1, cores() // torch.get_num_threads())
    return room if room < ranks else 0


def _gemm(found: Findings, *, batched: bool) -> dict[Dtype, list[Any]]:
    tables: dict[Dtype, list[Any]] = {}
    for p, figure in found.of(Gemm):
        if (p.batch > 1) is not batched:
            continue
        rate = _rate(2 * p.batch * p.m * p.n * p.k, figure, found.launch_s)
        trust = _trust(figure, found.launch_s)
        kept = BatchedGemmPoint(p.batch, p.m, p.n, p.k, rate, *trust) if batched else None
        tables.setdefault(p.dtype, []).append(kept or GemmPoint(p.m, p.n, p.k, rate, *trust))
    return tables


def _attention(found: Findings) -> dict[tuple[Dtype, bool], list[AttentionPoint]]:
    """Points of which forward and backward were both measured."""
    forward = {p: f for p, f in found.of(Attention) if not p.backward}
    tables: dict[tuple[Dtype, bool], list[AttentionPoint]] = {}
    for p, back in found.of(Attention):
        there = forward.get(Attention(p.dtype, p.causal, p.batch, p.length, p.head, backward=False))
        if not p.backward or there is None:
            continue
        flops = [
            attention_flops(p.batch, p.length, p.length, p.head, causal=p.causal, backward=backward)
            for backward in (False, True)
        ]
        spread = max(_trust(figure, found.launch_s)[0] for figure in (there, back))
        point = AttentionPoint(
            batch=p.batch,
            m=p.length,
            n=p.length,
            k=p.head,
            forward_flops_per_s=_rate(flops[0], there, found.launch_s),
            backward_flops_per_s=_rate(flops[1], back, found.launch_s),
            spread=spread,
            samples=there.samples,
            noisy=there.noisy or back.noisy,
        )
        tables.setdefault((cast(Dtype, p.dtype), p.causal), []).append(point)
    return tables


def _rate(amount: float, figure: Figure, launch_s: float) -> float:
    """``amount`` a second, the launch taken out; on a machine that hardly moves, the least that a profile holds."""
    return max(LEAST_RATE, rounded(amount / _net_s(figure, launch_s)))


def _trust(figure: Figure, launch_s: float) -> tuple[float, int, bool]:
    """Spread (of the time without the launch), samples, and whether the figure is noisy."""
    return rounded(figure.spread * figure.value / _net_s(figure, launch_s)), figure.samples, figure.noisy


def _net_s(figure: Figure, launch_s: float) -> float:
    return max(figure.value - launch_s, LEAST_SHARE * figure.value)


def _peak(points: Sequence[GemmPoint], launch_s: float) -> float:
    """The best rate among products that take far longer than a launch; short ones are mostly noise."""
    long = [p for p in points if 2 * p.m * p.n * p.k / p.flops_per_s > 20 * launch_s and not p.noisy]
    return max(p.flops_per_s for p in long or points)


def _attention_efficiency(
    attention: dict[tuple[Dtype, bool], list[AttentionPoint]], peaks: dict[Dtype, float]
) -> AttentionEfficiency:
    """The best share of peak that full attention reached; for dtypes that were not measured."""
    shares = [
        (p.forward_flops_per_s / peaks[dtype], p.backward_flops_per_s / peaks[dtype])
        for (dtype, causal), points in attention.items()
        if not causal and dtype in peaks
        for p in points
    ]
    if not shares:
        return AttentionEfficiency(forward=1.0, backward=1.0)
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

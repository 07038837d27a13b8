"""A profile as a table for people, beside the datasheet where one is known."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from autoplan import units
from autoplan.hardware.cluster import Cluster
from autoplan.hardware.device import Device
from autoplan.hardware.level import COLLECTIVES
from autoplan.hardware.source import SourceKind

__all__ = ["profile_tables"]

MESSAGES = (64 * units.KIB, units.MIB, 16 * units.MIB)


def profile_tables(cluster: Cluster, datasheet: Device | None = None) -> list[Table]:
    """The device's figures, then the time of each collective at three message sizes."""
    return [
        _device_table(cluster, datasheet),
        *([_collective_table(cluster)] if cluster.world_size > 1 else []),
    ]


def _device_table(cluster: Cluster, datasheet: Device | None) -> Table:
    device = cluster.device
    columns = ["figure", "value", *(["datasheet"] if datasheet else []), "source"]
    table = Table(*columns, title=str(cluster), title_justify="left")

    def row(name: str, value: str, sheet: str, source: SourceKind) -> None:
        table.add_row(name, value, *([sheet] if datasheet else []), source.value)

    def kind(figure: str) -> SourceKind:
        return cluster.sources[device.source[figure]].kind

    tables = {t.dtype: t for t in device.gemm}
    for dtype, peak in device.peak_flops.items():
        known = datasheet.peak_flops.get(dtype) if datasheet else None
        sheet = units.flops_rate(known) if known else ""
        if dtype in tables:
            point = max(tables[dtype].points, key=lambda p: p.m * p.n * p.k)
            name = f"{dtype} product, {point.m} x {point.k} x {point.n}"
            row(name, units.flops_rate(point.flops_per_s), sheet, cluster.sources[tables[dtype].source].kind)
        else:
            row(f"{dtype} products, peak", units.flops_rate(peak), sheet, kind("peak_flops"))
    known = units.bytes_rate(datasheet.memory_bytes_per_s) if datasheet else ""
    row("memory bandwidth", units.bytes_rate(device.memory_bytes_per_s), known, kind("memory_bytes_per_s"))
    row("time of the smallest op", units.seconds(device.launch_s), "", kind("launch_s"))
    row("memory of a rank", units.bytes_binary(device.memory_bytes), "", kind("memory_bytes"))
    row("  of it usable", units.bytes_binary(device.usable_bytes), "", kind("usable_bytes"))
    if device.threads:
        row("threads of a rank", str(device.threads), "", SourceKind.MEASURED)
    if device.at_once:
        row("ranks that run at once", str(device.at_once), "", SourceKind.MEASURED)
    for level in cluster.levels:
        rate = units.bytes_rate(level.bandwidth_bytes_per_s * level.nics)
        source = cluster.sources[level.source["bandwidth_bytes_per_s"]].kind
        row(f"{level.name}, {level.size} joined", rate, "", source)
    row(
        "communication that can hide",
        f"{cluster.overlap:.0%}",
        "",
        cluster.sources[cluster.source["overlap"]].kind,
    )
    return table


def _collective_table(cluster: Cluster) -> Table:
    table = Table("collective", "ranks", *(units.bytes_binary(size) for size in MESSAGES))
    sizes = sorted({2, cluster.node_size, cluster.world_size} - {1})
    for kind in COLLECTIVES:
        for size in sizes:
            if size > cluster.world_size or (kind == "send_recv" and size > 2):
                continue
            times: list[Any] = [cluster.collective_time_s(kind, nbytes, size) for nbytes in MESSAGES]
            table.add_row(kind, str(size), *(units.seconds(time_s) for time_s in times))
    return table

"""Points whose times make no sense beside their neighbours': found, and marked as noisy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from autoplan.hardware.cluster import Cluster
from autoplan.hardware.device import Device
from autoplan.hardware.gemm import attention_flops
from autoplan.hardware.host import HostLink
from autoplan.hardware.level import Level, bus_factor

__all__ = ["curve_times", "falls", "grid_sizes", "grid_times", "jumps", "with_noise_marked"]

NOISE = 0.1  # by which a time may fall though the work grows, beside the spreads of the two points
LARGER = 4  # so many times the work must not take half of the time


def curve_times(table: Any) -> list[float]:
    """Seconds of each point of a curve over bytes: a ``CommunicationTable`` or a ``MemoryTable``."""
    if hasattr(table, "collective"):
        factor = bus_factor(table.collective, table.group)
        return [factor * p.nbytes / p.bus_bytes_per_s for p in table.points]
    return [p.nbytes / p.bytes_per_s for p in table.points]


def grid_sizes(table: Any) -> list[tuple[int, ...]]:
    """The sizes of each point of a grid: (m, n, k) or (batch, m, n, k)."""
    return [(getattr(p, "batch", 1), p.m, p.n, p.k) for p in table.points]


def grid_times(table: Any) -> list[float]:
    """Seconds of each point of a grid; of attention, forward."""
    if hasattr(table, "causal"):
        return [
            attention_flops(p.batch, p.m, p.n, p.k, causal=table.causal, backward=False)
            / p.forward_flops_per_s
            for p in table.points
        ]
    return [2 * getattr(p, "batch", 1) * p.m * p.n * p.k / p.flops_per_s for p in table.points]


def falls(points: Sequence[Any], times: Sequence[float]) -> Iterator[tuple[int, float, float]]:
    """Points that are faster than a smaller one by more than noise: (index, least allowed, time before).

    Points marked noisy are not asked; one that is found is passed over.
    """
    last = None
    for index, point in enumerate(points):
        if point.noisy:
            continue
        if last is not None:
            least = times[last] * (1 - NOISE - point.spread - points[last].spread)
            if times[index] < least:
                yield index, least, times[last]
                continue
        last = index


def jumps(
    points: Sequence[Any], sizes: Sequence[tuple[int, ...]], times: Sequence[float]
) -> Iterator[tuple[int, int, float]]:
    """Points of a grid that do several times the work in less than half of the time:
    (index, times larger along one axis, time of the smaller). Points marked noisy are not asked."""
    for axis in range(len(sizes[0])):
        lines: dict[tuple[int, ...], list[tuple[int, float, int]]] = {}
        for index, (point, size) in enumerate(zip(points, sizes, strict=True)):
            if not point.noisy:
                rest = size[:axis] + size[axis + 1 :]
                lines.setdefault(rest, []).append((size[axis], times[index], index))
        for line in lines.values():
            ordered = sorted(line)
            for (less, before_s, _), (more, after_s, index) in itertools.pairwise(ordered):
                if more >= LARGER * less and after_s < before_s / 2:
                    yield index, more // less, before_s


def with_noise_marked(cluster: Cluster) -> Cluster:
    """``cluster`` with every point marked noisy that would otherwise make loading refuse it."""
    levels = tuple(_level(level) for level in cluster.levels)
    return replace(cluster, levels=levels, device=_device(cluster.device))


def _level(level: Level) -> Level:
    return replace(level, curves=tuple(_curve(table) for table in level.curves))


def _device(device: Device) -> Device:
    return replace(
        device,
        host=_host(device.host) if device.host is not None else None,
        memory=_curve(device.memory) if device.memory is not None else None,
        gemm=tuple(map(_grid, device.gemm)),
        batched_gemm=tuple(map(_grid, device.batched_gemm)),
        attention=tuple(map(_grid, device.attention)),
    )


def _host(host: HostLink) -> HostLink:
    return replace(
        host,
        to_host=_curve(host.to_host) if host.to_host is not None else None,
        from_host=_curve(host.from_host) if host.from_host is not None else None,
    )


def _curve(table: Any) -> Any:
    return _marked(table, {index for index, _, _ in falls(table.points, curve_times(table))})


def _grid(table: Any) -> Any:
    while found := {index for index, _, _ in jumps(table.points, grid_sizes(table), grid_times(table))}:
        table = _marked(table, found)
    return table


def _marked(table: Any, noisy: set[int]) -> Any:
    if not noisy:
        return table
    points = tuple(replace(p, noisy=True) if i in noisy else p for i, p in enumerate(table.points))
    return replace(table, points=points)

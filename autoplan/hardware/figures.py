"""A profile as a flat list of figures and of curves, to be shown or compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from autoplan.hardware.cluster import Cluster
from autoplan.hardware.level import Level, bus_factor

__all__ = ["Curve", "Figure", "curves_of", "figures_of", "rate_at"]

_UNITS = {
    "bytes": "B",
    "bytes_per_s": "B/s",
    "flops": "FLOP/s",
    "s": "s",
    "w": "W",
    "per_hour": "$/h",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One number: its path in the file, its unit (empty: a bare number), and the key of its source."""

    path: str
    value: float
    unit: str
    source: str
    spread: float = 0.0
    noisy: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """One measured table: the sizes of its points and their rates.

    Args:
        path: such as ``level nvlink: all_reduce of 8``.
        kind: ``communication``, ``memory``, ``gemm``, ``batched_gemm``, ``attention``, ``attention_backward``.
        key: what ``rate_at`` needs to find the same in another profile.
        sizes: bytes, or (m, n, k), or (batch, m, n, k).
    """

    path: str
    kind: str
    key: tuple[Any, ...]
    unit: str
    source: str
    sizes: tuple[tuple[int, ...], ...]
    rates: tuple[float, ...]
    spreads: tuple[float, ...]
    noisy: tuple[bool, ...]


def figures_of(cluster: Cluster) -> list[Figure]:
    """Every single figure, in the order of the file."""
    device = cluster.device
    found = [Figure("overlap", cluster.overlap, "", cluster.source["overlap"])]
    names = [
        "memory_bytes",
        "usable_bytes",
        "memory_bytes_per_s",
        "memory_efficiency",
        "launch_s",
        "eager_op_s",
    ]
    names += ["compute_units", "threads", "at_once", "tdp_w", "idle_w", "price_per_hour"]
    for name in names:
        found += _figure("device", device, name)
    for table in ("peak_flops", "gemm_efficiency"):
        values, source = getattr(device, table), device.source[table]
        unit = "FLOP/s" if table == "peak_flops" else ""
        found += [Figure(f"device.{table}.{dtype}", value, unit, source) for dtype, value in values.items()]
    for name in ("forward", "backward"):
        value = getattr(device.attention_efficiency, name)
        source = device.source["attention_efficiency"]
        found.append(Figure(f"device.attention_efficiency.{name}", value, "", source))
    if device.host is not None:
        names = ["to_host_bytes_per_s", "from_host_bytes_per_s", "both_bytes_per_s", "shared_by"]
        for name in (*names, "memory_bytes", "latency_s"):
            found += _figure("device.host", device.host, name)
    for level in cluster.levels:
        found += _level(level)
    for entry in cluster.slowdown:
        place = ".".join(filter(None, (entry.communication, entry.level, entry.compute)))
        for name in ("compute_factor", "communication_factor"):
            value = getattr(entry, name)
            found.append(
                Figure(f"slowdown.{place}.{name}", value, "", entry.source, entry.spread, entry.noisy)
            )
    return found


def _level(level: Level) -> Iterator[Figure]:
    place = f"level.{level.name}"
    for name in ("size", "nics", "bandwidth_bytes_per_s", "latency_s", "base_s"):
        yield from _figure(place, level, name)
    for kind, value in level.efficiency.items():
        yield Figure(f"{place}.efficiency.{kind}", value, "", level.source["efficiency"])
    for entry in level.group_efficiency:
        path = f"{place}.group_efficiency.{entry.collective}.{entry.group}"
        yield Figure(path, entry.fraction, "", entry.source)
    for entry in level.protocols:
        for name in ("base_s", "latency_s", "bandwidth"):
            yield from _figure(f"{place}.protocols.{entry.name}", entry, name, entry.source)


def _figure(place: str, holder: Any, name: str, source: str | None = None) -> Iterator[Figure]:
    value = getattr(holder, name)
    if value is None or (name in ("threads", "at_once", "compute_units") and not value):
        return
    unit = next(
        (unit for ending, unit in _UNITS.items() if name == ending or name.endswith(f"_{ending}")), ""
    )
    key = source if source is not None else holder.source.get(name, "")
    spread = getattr(holder, "spread", {}).get(name, 0.0) if source is None else 0.0
    noisy = source is None and name in getattr(holder, "noisy", ())
    yield Figure(f"{place}.{name}", float(value), unit, key, spread, noisy)


def curves_of(cluster: Cluster) -> list[Curve]:
    """Every measured table, in the order of the file."""
    device = cluster.device
    found = []
    for table in device.gemm:
        sizes = tuple((p.m, p.n, p.k) for p in table.points)
        found.append(
            _curve(f"gemm {table.dtype}", "gemm", (table.dtype,), "FLOP/s", table, sizes, "flops_per_s")
        )
    for table in device.batched_gemm:
        sizes = tuple((p.batch, p.m, p.n, p.k) for p in table.points)
        name = f"batched gemm {table.dtype}"
        found.append(_curve(name, "batched_gemm", (table.dtype,), "FLOP/s", table, sizes, "flops_per_s"))
    if device.memory is not None:
        sizes = tuple((p.nbytes,) for p in device.memory.points)
        found.append(_curve("memory-bound ops", "memory", (), "B/s", device.memory, sizes, "bytes_per_s"))
    for table in device.attention:
        sizes = tuple((p.batch, p.m, p.n, p.k) for p in table.points)
        mask = "causal" if table.causal else "full"
        for kind, rate in (("attention", "forward"), ("attention_backward", "backward")):
            name = f"attention {table.dtype} {mask} {rate}"
            key = (table.dtype, table.causal)
            found.append(_curve(name, kind, key, "FLOP/s", table, sizes, f"{rate}_flops_per_s"))
    for direction in ("to_host", "from_host"):
        table = getattr(device.host, direction, None)
        if table is not None:
            sizes = tuple((p.nbytes,) for p in table.points)
            found.append(
                _curve(direction.replace("_", " "), "host", (direction,), "B/s", table, sizes, "bytes_per_s")
            )
    for level in cluster.levels:
        for table in level.curves:
            sizes = tuple((p.nbytes,) for p in table.points)
            alone = " alone" if table.at_once == "one" else ""
            name = f"level {level.name}: {table.collective} of {table.group}{alone}"
            key = (level.name, table.collective, table.group, table.at_once)
            found.append(_curve(name, "communication", key, "B/s", table, sizes, "bus_bytes_per_s"))
    return found


def _curve(
    path: str,
    kind: str,
    key: tuple[Any, ...],
    unit: str,
    table: Any,
    sizes: tuple[tuple[int, ...], ...],
    rate: str,
) -> Curve:
    return Curve(
        path=path,
        kind=kind,
        key=key,
        unit=unit,
        source=table.source,
        sizes=sizes,
        rates=tuple(getattr(p, rate) for p in table.points),
        spreads=tuple(p.spread for p in table.points),
        noisy=tuple(p.noisy for p in table.points),
    )


def rate_at(cluster: Cluster, kind: str, key: tuple[Any, ...], size: tuple[int, ...]) -> float | None:
    """The rate that ``cluster`` gives for a point of a curve, measured there or not; None if it knows none.

    Of products, attention and memory-bound ops without the launch, as curves hold them.
    """
    device = cluster.device
    if kind == "memory":
        return size[0] / max(device.memory_time_s(size[0]) - device.launch_s, 1e-12)
    if kind == "host":
        return size[0] / device.host.time_s(size[0], key[0], sharers=1) if device.host else None
    if kind == "communication":
        name, collective, group, at_once = key
        level = next((level for level in cluster.levels if level.name == name), None)
        if level is None:
            return None
        time_s = level.time_s(collective, size[0], group, busy=0.0 if at_once == "one" else 1.0)
        return bus_factor(collective, group) * size[0] / float(time_s)
    if key[0] not in device.peak_flops:
        return None
    if kind in ("gemm", "batched_gemm"):
        sizes = (1, *size) if kind == "gemm" else size
        time_s = device.gemm_time_s((sizes[0], sizes[1], sizes[2], sizes[3]), key[0]) - device.launch_s
        return 2 * sizes[0] * sizes[1] * sizes[2] * sizes[3] / max(time_s, 1e-12)
    from autoplan.hardware.gemm import attention_flops

    batch, m, n, k = size
    backward = kind == "attention_backward"
    flops = attention_flops(batch, m, n, k, causal=key[1], backward=backward)
    time_s = device.attention_time_s(batch, m, n, k, key[0], key[1], backward=backward) - device.launch_s
    return flops / max(time_s, 1e-12)

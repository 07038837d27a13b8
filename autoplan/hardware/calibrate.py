"""A measured run as figures of a profile: what was measured takes the place of what was predicted.

Compute: of each pass of a unit it is known how many of its predicted seconds are those of matrix products, of
attention, of memory and of the gaps between ops. One factor for each of the four, the same in all passes, makes the
predictions those that were measured, as nearly as can be (least squares, weighed by seconds of a step).

Collectives: the curve of a level goes through what was measured. Between two sizes that were measured the ratio of
measured to predicted is interpolated, in logarithms; beyond them it fades, and is gone at ``FADE`` times the size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec.structs import replace

from autoplan.errors import ProfileError
from autoplan.hardware.cluster import Cluster
from autoplan.hardware.collectives import group_spans, ring_share
from autoplan.hardware.device import Device
from autoplan.hardware.import_curve import LEAST_SHARE, NOISY, free_key
from autoplan.hardware.level import Level, bus_factor
from autoplan.hardware.measurement import BOUNDS, Measurement, Sent, profile_digest
from autoplan.hardware.source import Source, SourceKind
from autoplan.hardware.tables import (
    AttentionTable,
    BatchedGemmTable,
    CommunicationPoint,
    CommunicationTable,
    GemmTable,
)

__all__ = ["Calibration", "calibrated"]

FADE = 64.0
SIZES = tuple(4**power for power in range(5, 16))  # 1 KiB to 1 GiB, for a level without curves
RIDGE = 0.03  # how strongly factors that the run hardly tells apart are kept together
BEYOND = 50.0  # factors are at most this, and at least one over this


@dataclass(frozen=True, slots=True)
class Calibration:
    """A profile after a measurement.

    Args:
        cluster: the profile.
        factors: by bound, seconds measured over seconds predicted; without bounds that had no part.
        curves: (level, collective, members) of each curve that changed, and the mean ratio of its points.
    """

    cluster: Cluster
    factors: Mapping[str, float]
    curves: Mapping[tuple[str, str, int], float]


def calibrated(cluster: Cluster, measured: Sequence[Measurement]) -> Calibration:
    """Fold measurements of one or several programs into the profile that predicted them.

    Args:
        cluster: as ``Cluster.load`` gives it, whatever number of nodes was measured.

    Raises:
        ProfileError: a measurement is of another device, of a part of a node, of other levels, or was compared
            with another profile.
    """
    if not measured:
        raise ProfileError("measurements", 0, "at least one", "measure a program first")
    for one in measured:
        _check(cluster, one)
    dtypes = {one.dtype for one in measured}
    factors = _factors(measured)
    key = free_key(cluster, "steps")
    device = cluster.device
    if factors:
        device = _scaled(device, factors, dtypes, key)
    levels, curves = list(cluster.levels), {}
    for (index, kind, group, at_once), points in _points(cluster, measured).items():
        level = levels[index]
        table, ratio = _corrected(level, kind, group, at_once, points, key)
        same = (kind, group, at_once)
        kept = [t for t in level.curves if (t.collective, t.group, t.at_once) != same]
        kept = sorted((*kept, table), key=lambda t: (t.at_once, t.group, t.collective))
        levels[index] = replace(level, curves=tuple(kept))
        curves[level.name, kind, group] = ratio
    after = replace(
        cluster,
        device=device,
        levels=tuple(levels),
        sources=cluster.sources | {key: _source(measured, factors)},
    )
    return Calibration(after, factors, curves)


def _check(cluster: Cluster, measured: Measurement) -> None:
    if measured.device != cluster.device.name:
        raise ProfileError(
            "device", measured.device, f"{cluster.device.name}, as in {cluster.name}", "choose the profile of that device"
        )  # fmt: skip
    sized = Cluster.of(cluster, gpus=measured.world_size)
    if sized.node_size != cluster.node_size:
        raise ProfileError(
            "world_size",
            measured.world_size,
            f"whole nodes of {cluster.node_size} ranks, as in {cluster.name}",
            "measure with all ranks of a node at work",
        )
    levels = tuple((level.name, level.size) for level in sized.levels)
    if measured.levels != levels:
        raise ProfileError(
            "levels", str(measured.levels), f"{levels}, as in {cluster.name}", "choose the profile that was measured"
        )  # fmt: skip
    if measured.profile_digest != profile_digest(sized):
        raise ProfileError(
            "profile",
            measured.profile,
            f"figures as {cluster.name} has them; these have changed since",
            "pass the profile that program.measure compared with, and all measurements at once",
        )


def _factors(measured: Sequence[Measurement]) -> dict[str, float]:
    """By bound, what predicted seconds must be multiplied by. None where nothing was computed."""
    rows = [
        (c.count * c.measured_s, [c.count * c.predicted_s.get(bound, 0.0) for bound in BOUNDS])
        for one in measured
        for c in one.computed
        if c.measured_s > 0 and sum(c.predicted_s.values()) > 0
    ]
    if not rows:
        return {}
    y, x = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    common = y.sum() / x.sum()
    x, y = x / y.sum(), y / y.sum()
    held = RIDGE * x.sum(axis=0) ** 2
    quadratic = x.T @ x + np.diag(held)
    linear = x.T @ y + held * common
    factors = np.full(len(BOUNDS), common)
    used = [i for i in range(len(BOUNDS)) if x[:, i].sum() > 0]
    for _ in range(2000):  # by coordinates: a convex problem in a box
        for i in used:
            rest = quadratic[i] @ factors - quadratic[i, i] * factors[i]
            factors[i] = min(max((linear[i] - rest) / quadratic[i, i], 1 / BEYOND), BEYOND)
    return {BOUNDS[i]: float(f"{factors[i]:.6g}") for i in used}


def _scaled(device: Device, factors: Mapping[str, float], dtypes: set[str], key: str) -> Device:
    """``device`` with each rate divided, and the launch multiplied, by its factor."""
    source, changes = dict(device.source), {}
    products = factors.get("gemm", 1.0)
    if products != 1.0:
        if any(table.dtype in dtypes for table in device.gemm):
            changes["gemm"] = _scaled_tables(device, device.gemm, GemmTable, products, dtypes, key)
            changes["batched_gemm"] = _scaled_tables(
                device, device.batched_gemm, BatchedGemmTable, products, dtypes, key
            )
        else:
            changes["gemm_efficiency"] = {
                dtype: _share(value / products) if dtype in dtypes else value
                for dtype, value in device.gemm_efficiency.items()
            }
            source["gemm_efficiency"] = key
    attention = factors.get("attention", 1.0)
    if attention != 1.0:
        if any(table.dtype in dtypes for table in device.attention):
            changes["attention"] = tuple(
                _scaled_attention(table, attention, key) if table.dtype in dtypes else table
                for table in device.attention
            )
        else:
            had = device.attention_efficiency
            changes["attention_efficiency"] = replace(
                had, forward=_share(had.forward / attention), backward=_share(had.backward / attention)
            )
            source["attention_efficiency"] = key
    memory = factors.get("memory", 1.0)
    if memory != 1.0:
        if device.memory is not None:
            points = tuple(
                replace(p, bytes_per_s=_digits(p.bytes_per_s / memory)) for p in device.memory.points
            )
            changes["memory"] = replace(device.memory, source=key, points=points)
        else:
            changes["memory_efficiency"] = _share(device.memory_efficiency / memory)
            source["memory_efficiency"] = key
    if factors.get("launch", 1.0) != 1.0:
        changes["launch_s"] = _digits(device.launch_s * factors["launch"])
        source["launch_s"] = key
    return replace(device, source=source, **changes)


def _scaled_tables(
    device: Device,
    tables: Sequence[GemmTable | BatchedGemmTable],
    made: Callable[..., Any],
    factor: float,
    dtypes: set[str],
    key: str,
) -> tuple[Any, ...]:
    """One table for each dtype that was measured, in the place of those there were."""
    found: list[Any] = [table for table in tables if table.dtype not in dtypes]
    for dtype in sorted(dtypes & {table.dtype for table in tables}):
        points = {tuple(_sizes(p)): p for table in tables if table.dtype == dtype for p in table.points}
        peak = device.peak_flops[dtype]
        slower = [
            replace(p, flops_per_s=_digits(min(p.flops_per_s / factor, max(peak, p.flops_per_s))))
            for p in points.values()
        ]
        found.append(made(dtype=dtype, source=key, points=tuple(slower)))
    return tuple(found)


def _sizes(point: object) -> list[int]:
    return [getattr(point, name) for name in ("batch", "m", "n", "k") if hasattr(point, name)]


def _scaled_attention(table: AttentionTable, factor: float, key: str) -> AttentionTable:
    points = tuple(
        replace(
            p,
            forward_flops_per_s=_digits(p.forward_flops_per_s / factor),
            backward_flops_per_s=_digits(p.backward_flops_per_s / factor),
        )
        for p in table.points
    )
    return replace(table, source=key, points=points)


@dataclass(frozen=True, slots=True)
class _Point:
    nbytes: int
    time_s: float
    spread: float
    samples: int


def _points(
    cluster: Cluster, measured: Sequence[Measurement]
) -> dict[tuple[int, str, int, str], list[_Point]]:
    """Measured messages by the curve that they are points of: (level, collective, members, at once)."""
    found: dict[tuple[int, str, int, str], list[_Point]] = {}
    for one in measured:
        sized = Cluster.of(cluster, gpus=one.world_size)
        for sent in one.sent:
            place = _place(sized, sent)
            if place is not None and sent.measured_s > 0:
                where, point = place
                found.setdefault(where, []).append(point)
    return found


def _place(cluster: Cluster, sent: Sent) -> tuple[tuple[int, str, int, str], _Point] | None:
    """The curve that a message belongs to, and its point there: at the outermost level that it crosses, without the
    latency of those inside (``hardware.collectives``). None where curves cannot hold it."""
    spans = group_spans(tuple(level.size for level in cluster.levels), sent.size, sent.stride)
    if not spans:
        return None
    index, joined, inside, unit = spans[-1]
    if sent.kind == "send_recv":
        at_work = min(sent.stride, unit)
        if at_work not in (1, unit):
            return None
        at_once = "all" if at_work == unit else "one"
        return (index, sent.kind, 2, at_once), _Point(sent.nbytes, sent.measured_s, sent.spread, sent.samples)
    floor_s = 0.0
    for level, members, _, devices in spans[:-1]:
        below = cluster.levels[level]
        floor_s += below.floor_s(sent.kind, members, share=below.nics / devices, busy=1.0, tree=level > 0)
    part = (
        joined * inside / sent.size if sent.kind == "all_to_all" else ring_share(sent.size, joined) / inside
    )
    left_s = max(sent.measured_s - floor_s, LEAST_SHARE * sent.measured_s)
    point = _Point(max(math.ceil(sent.nbytes * part), 1), left_s, sent.spread, sent.samples)
    return (index, sent.kind, joined, "all"), point


def _corrected(
    level: Level, kind: str, group: int, at_once: str, points: Sequence[_Point], key: str
) -> tuple[CommunicationTable, float]:
    """The level's curve through ``points``, and the mean ratio of these to what it was."""
    busy = 1.0 if at_once == "all" else 0.0
    by_size: dict[int, list[_Point]] = {}
    for point in points:
        by_size.setdefault(point.nbytes, []).append(point)
    measured = {size: math.exp(np.mean([math.log(p.time_s) for p in same])) for size, same in by_size.items()}

    def before_s(nbytes: int) -> float:
        return float(level.time_s(kind, float(nbytes), group, busy=busy))

    at = np.log([float(size) for size in sorted(measured)])
    ratios = np.log([measured[size] / before_s(size) for size in sorted(measured)])
    old = {
        p.nbytes: p
        for table in level.curves
        if (table.collective, table.group, table.at_once) == (kind, group, at_once)
        for p in table.points
    }
    grid = (
        set(old) or {p.nbytes for t in level.curves if t.collective == kind for p in t.points} or set(SIZES)
    )
    found, slowest_s = [], 0.0
    for nbytes in sorted(grid | set(measured)):
        x = math.log(nbytes)
        beyond = max(at[0] - x, x - at[-1], 0.0)
        ratio = float(np.interp(x, at, ratios)) * max(0.0, 1 - beyond / math.log(FADE))
        slowest_s = max(slowest_s, before_s(nbytes) * math.exp(ratio))
        same = by_size.get(nbytes, [])
        spread = max((p.spread for p in same), default=old[nbytes].spread if nbytes in old else 0.0)
        samples = sum(p.samples for p in same) or (old[nbytes].samples if nbytes in old else 0)
        bus = _digits(bus_factor(kind, group) * nbytes / slowest_s)
        found.append(CommunicationPoint(nbytes, bus, float(f"{spread:.3g}"), samples, spread > NOISY))
    table = CommunicationTable(collective=kind, group=group, at_once=at_once, source=key, points=tuple(found))
    return table, math.exp(float(ratios.mean()))


def _source(measured: Sequence[Measurement], factors: Mapping[str, float]) -> Source:
    first = measured[0]
    scaled = ", ".join(f"{bound} × {factor:.3g}" for bound, factor in factors.items())
    told = f"; seconds of compute scaled ({scaled})" if scaled else ""
    return Source(
        kind=SourceKind.MEASURED,
        document="steps of "
        + ", ".join(dict.fromkeys(f"{one.model} (plan {one.plan})" for one in measured))
        + f" beside the prediction of {first.profile}{told}; collectives where they were measured, and faded beyond",
        date=max(one.date for one in measured),
        tool=first.tool,
        versions=dict(first.versions),
        samples=sum(c.samples for one in measured for c in (*one.computed, *one.sent)),
        settings={
            "ranks": first.world_size,
            "steps": sum(one.steps for one in measured),
            "dtypes": ", ".join(sorted({one.dtype for one in measured})),
        },
    )


def _share(value: float) -> float:
    return _digits(min(value, 1.0))


def _digits(value: float) -> float:
    return float(f"{value:.6g}")

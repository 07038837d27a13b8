"""From measured messages to levels, and from what ran at once to slowdowns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, cast

from autoplan.hardware.level import Level, bus_factor
from autoplan.hardware.measure_figure import Figure, rounded
from autoplan.hardware.measure_points import Beside, Message, Point
from autoplan.hardware.measure_run import Results
from autoplan.hardware.overlap import Slowdown
from autoplan.hardware.tables import CommunicationPoint, CommunicationTable
from autoplan.hardware.topology import Topology

__all__ = ["hidden_share", "measured_levels", "measured_slowdowns"]

RUN, ALONE = "run", "alone"  # keys of the profile's sources


def measured_levels(
    topology: Topology, points: Sequence[Point], results: Results, memory_bytes_per_s: float
) -> tuple[Level, ...]:
    """A level for each of the topology, with the curves of its messages.

    A link's bandwidth is that of the longest message that one device sends alone (shorter ones may hide in
    buffers), its latency the time of the fastest. What all devices of a unit reach at once tells how many
    links they share.

    Where nothing could be sent, ``memory_bytes_per_s`` stands in for the link.
    """
    tables: dict[int, dict[tuple[str, int, str], list[CommunicationPoint]]] = {}
    for point in points:
        if isinstance(point, Message) and (figure := results.figure(point)) is not None:
            level = tables.setdefault(point.level, {})
            level.setdefault((point.kind, point.group, point.at_once), []).append(_point(point, figure))
    return tuple(
        _level(level.name, level.size, topology.unit(index), tables.get(index, {}), memory_bytes_per_s)
        for index, level in enumerate(topology.levels)
    )


def _point(point: Message, figure: Figure) -> CommunicationPoint:
    bus = bus_factor(point.kind, point.group) * point.actual_bytes / figure.value
    return CommunicationPoint(
        point.actual_bytes, rounded(bus), rounded(figure.spread), figure.samples, figure.noisy
    )


def _level(
    name: str,
    size: int,
    unit: int,
    tables: dict[tuple[str, int, str], list[CommunicationPoint]],
    memory_bytes_per_s: float,
) -> Level:
    together = tables.get(("send_recv", 2, "all"), [])
    alone = tables.get(("send_recv", 2, "one"), together)
    if not together or not alone:
        figures: dict[str, Any] = {"bandwidth_bytes_per_s": memory_bytes_per_s, "latency_s": 0.0}
        return Level(name=name, size=size, source=dict.fromkeys(figures, ALONE), **figures)
    longest, least = alone[-1], min(alone, key=_seconds)
    figures = {"bandwidth_bytes_per_s": longest, "latency_s": least}
    return Level(
        name=name,
        size=size,
        nics=min(unit, max(1, round(unit * together[-1].bus_bytes_per_s / longest.bus_bytes_per_s))),
        bandwidth_bytes_per_s=longest.bus_bytes_per_s,
        latency_s=rounded(_seconds(least)),
        source={**dict.fromkeys(figures, RUN), "nics": RUN},
        spread={name: point.spread for name, point in figures.items()},
        noisy=tuple(name for name, point in figures.items() if point.noisy),
        curves=tuple(
            CommunicationTable(
                collective=cast(Any, kind),
                group=group,
                at_once=cast(Any, at_once),
                source=RUN,
                points=tuple(points),
            )
            for (kind, group, at_once), points in tables.items()
        ),
    )


def _seconds(point: CommunicationPoint) -> float:
    return bus_factor("send_recv", 2) * point.nbytes / point.bus_bytes_per_s


def measured_slowdowns(topology: Topology, points: Sequence[Point], results: Results) -> tuple[Slowdown, ...]:
    """One for each collective, level and compute of which both sides' factors were measured."""
    sides: dict[tuple[str, str, int], dict[str, Figure]] = {}
    for point in points:
        if isinstance(point, Beside) and (figure := results.figure(point)) is not None:
            sides.setdefault((point.kind, point.compute, point.level), {})[point.part] = figure
    return tuple(
        Slowdown(
            communication=cast(Any, kind),
            compute=cast(Any, compute),
            level=topology.levels[level].name,
            compute_factor=_factor(pair["compute"]),
            communication_factor=_factor(pair["communication"]),
            source=RUN,
            spread=rounded(max(figure.spread for figure in pair.values())),
            samples=min(figure.samples for figure in pair.values()),
            noisy=any(figure.noisy for figure in pair.values()),
        )
        for (kind, compute, level), pair in sides.items()
        if len(pair) == 2
    )


def _factor(figure: Figure) -> float:
    """Never below 1: what is faster in company is noise."""
    return min(1000.0, max(1.0, rounded(figure.value)))


def hidden_share(slowdowns: Sequence[Slowdown]) -> float:
    """The share of communication that hides behind products as long as it; the median over collectives.

    Of two works of T seconds each, the one that loses less, with a factor f, is done after f T; by then
    the other, with a factor F, has done f T / F. In all that takes f T + T - f T / F in place of 2 T, so
    that 1 - f (1 - 1 / F) of T is hidden.
    """
    shares = []
    for slowdown in slowdowns:
        if slowdown.compute == "gemm":
            least, most = sorted((slowdown.communication_factor, slowdown.compute_factor))
            shares.append(1 - least * (1 - 1 / most))
    return min(1.0, max(0.0, statistics.median(shares))) if shares else 0.0

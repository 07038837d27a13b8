"""One level of the topology: what joins the units of the level below, and how fast."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from autoplan.hardware.interpolate import TimeCurve, greater, least
from autoplan.hardware.source import BytesPerSecond, Count, Efficiency, Seconds, Spreads
from autoplan.hardware.tables import COLLECTIVES, Collective, CommunicationTable

__all__ = ["COLLECTIVES", "GroupEfficiency", "Level", "Protocol", "bus_factor"]

TREE_BANDWIDTH = 0.9  # of a ring's; NCCL src/graph/tuning.cc

# A bus bandwidth may exceed the link's: a switch that reduces saves the wire half of the traffic.
BusFraction = Annotated[float, Meta(gt=0, le=2)]


class Protocol(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Another way to send (NCCL's LL and LL128): less latency, less bandwidth. The fastest is taken."""

    name: str
    base_s: Seconds
    latency_s: Seconds
    bandwidth: Efficiency
    source: str


class GroupEfficiency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bus bandwidth over link bandwidth that only groups of ``group`` members reach."""

    collective: Collective
    group: Count
    fraction: BusFraction
    source: str


class Level(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True
):
    """``size`` units of the level below (devices, at the innermost level), joined.

    Args:
        bandwidth_bytes_per_s: of one link, in one direction.
        nics: links that one unit of the level below has to this level; its devices share them.
        latency_s: of one step of a ring.
        base_s: of starting a collective.
        medium: what the links are, such as ``NVLink 4`` or ``InfiniBand NDR``.
        partial: a job may use fewer than ``size`` units of each (64 of the 72 devices of an NVLink rack).
        efficiency: bus bandwidth over link bandwidth, by collective; 1 where none is given.
        group_efficiency: the same for groups of one size.
        protocols: other protocols that the library may choose.
        curves: measured bus bandwidths, which replace all of the above for the collectives they hold.
        source: for each figure, a key of the profile's ``sources``.
        spread, noisy: of measured figures, by name: spread of the samples, and those not to trust.
    """

    name: str
    size: Count
    bandwidth_bytes_per_s: BytesPerSecond
    latency_s: Seconds
    source: dict[str, str]
    base_s: Seconds = 0.0
    nics: Count = 1
    medium: str = ""
    partial: bool = False
    spread: Spreads = {}
    noisy: tuple[str, ...] = ()
    efficiency: dict[Collective, BusFraction] = {}
    group_efficiency: tuple[GroupEfficiency, ...] = ()
    protocols: tuple[Protocol, ...] = ()
    curves: tuple[CommunicationTable, ...] = ()

    def time_s(
        self,
        kind: str,
        nbytes: Any,
        group: int,
        *,
        share: float = 1.0,
        busy: float = 1.0,
        tree: bool = False,
    ) -> Any:
        """Seconds for one collective among ``group`` units of this level.

        ``T = base + steps latency + f(group) nbytes / (share bandwidth efficiency)``, the least over
        protocols and, with ``tree``, over a ring and a double binary tree. The bus factors f are
        those of nccl-tests (PERFORMANCE.md); the steps are those of NCCL's src/graph/tuning.cc. A
        measured curve for ``kind`` is used instead where the profile has one; below its first point
        the formula gives the shape and that point the height.

        Args:
            nbytes: by the convention of ``Cluster.collective_time_s``; number or array.
            share: links that one device has to itself.
            busy: how much of the level is at work, from 0 (one group alone) to 1 (all groups at once);
                between them, curves are mixed geometrically.
        """
        if curves := self._curves.get(kind):
            first = self._first_bytes[kind]
            time_s = _between_loads(curves, kind, greater(nbytes, first), group, share, busy)
            if not (np.any(nbytes < first) if isinstance(nbytes, np.ndarray) else nbytes < first):
                return time_s
            shape = self._modelled_s(kind, least(nbytes, first), group, share, tree)
            return time_s * shape / self._modelled_s(kind, first, group, share, tree)
        return self._modelled_s(kind, nbytes, group, share, tree)

    def floor_s(self, kind: str, group: int, *, share: float, busy: float, tree: bool) -> float:
        """``time_s`` of a single byte: the latency. Remembered, as every price of a collective asks for it."""
        key = (kind, group, share, busy, tree)
        if key not in self._floors:
            self._floors[key] = float(self.time_s(kind, 1.0, group, share=share, busy=busy, tree=tree))
        return self._floors[key]

    def _modelled_s(self, kind: str, nbytes: Any, group: int, share: float, tree: bool) -> Any:
        """By latency and bandwidth."""
        bus = share * self.bandwidth_bytes_per_s * self._fraction(kind, group)
        moved = bus_factor(kind, group) * nbytes
        steps = _ring_steps(kind, group)
        time: Any = math.inf
        for base_s, latency_s, bandwidth in self._protocols:
            time = least(time, base_s + steps * latency_s + moved / (bus * bandwidth))
            if tree and kind == "all_reduce":
                tree_steps = 2 * math.ceil(math.log2(group))
                transfer_s = moved / (bus * bandwidth * TREE_BANDWIDTH)
                time = least(time, base_s + tree_steps * latency_s + transfer_s)
        return time

    def _fraction(self, kind: str, group: int) -> float:
        for entry in self.group_efficiency:
            if entry.collective == kind and entry.group == group:
                return entry.fraction
        return self.efficiency.get(kind, 1.0)

    @cached_property
    def _protocols(self) -> list[tuple[float, float, float]]:
        others = [(p.base_s, p.latency_s, p.bandwidth) for p in self.protocols]
        return [(self.base_s, self.latency_s, 1.0), *others]

    @cached_property
    def _floors(self) -> dict[tuple[str, int, float, float, bool], float]:
        return {}

    @cached_property
    def _first_bytes(self) -> dict[str, int]:
        """The largest of the sizes at which the curves of a collective begin."""
        first: dict[str, int] = {}
        for table in self.curves:
            first[table.collective] = max(first.get(table.collective, 1), table.points[0].nbytes)
        return first

    @cached_property
    def _curves(self) -> dict[str, dict[str, dict[int, TimeCurve]]]:
        """By collective, by ``at_once``, by group size (rising)."""
        curves: dict[str, dict[str, dict[int, TimeCurve]]] = {}
        for table in sorted(self.curves, key=lambda table: table.group):
            factor = bus_factor(table.collective, table.group)
            times = [factor * p.nbytes / p.bus_bytes_per_s for p in table.points]
            curve = TimeCurve([p.nbytes for p in table.points], times, floor=True)
            curves.setdefault(table.collective, {}).setdefault(table.at_once, {})[table.group] = curve
        return curves


def bus_factor(kind: str, group: int) -> float:
    """Bytes each member sends over bytes of the message: nccl-tests, PERFORMANCE.md, "bus bandwidth"."""
    if kind == "send_recv":
        return 1.0
    return (2 if kind == "all_reduce" else 1) * (group - 1) / group


def _ring_steps(kind: str, group: int) -> int:
    """Steps of a ring. An all-to-all sends to its peers at once; a tree's depth is assumed for it."""
    if kind == "send_recv":
        return 1
    if kind == "all_to_all":
        return math.ceil(math.log2(group))
    return (2 if kind == "all_reduce" else 1) * (group - 1)


def _between_loads(
    curves: dict[str, dict[int, TimeCurve]], kind: str, nbytes: Any, group: int, share: float, busy: float
) -> Any:
    """Curves of all groups at once and of one alone; where only the latter were measured, a shared link
    makes every message as many times longer as there are devices on it."""
    together, alone = curves.get("all"), curves.get("one")
    if together and (alone is None or busy >= 1):
        return _between_groups(together, nbytes, group, kind)
    assert alone is not None
    if not together:
        return _between_groups(alone, nbytes / min(1.0, share), group, kind)
    one_s = _between_groups(alone, nbytes, group, kind)
    if busy <= 0:
        return one_s
    return one_s ** (1 - busy) * _between_groups(together, nbytes, group, kind) ** busy


def _between_groups(curves: dict[int, TimeCurve], nbytes: Any, group: int, kind: str) -> Any:
    """The curve of ``group``; between two measured group sizes, a power law in the size.

    Outside them the nearest is scaled by the bytes each member sends, never downwards.
    """
    if group in curves:
        return curves[group](nbytes)
    below = [size for size in curves if size < group]
    above = [size for size in curves if size > group]
    if below and above:
        low, high = below[-1], above[0]
        weight = math.log(group / low) / math.log(high / low)
        return curves[low](nbytes) ** (1 - weight) * curves[high](nbytes) ** weight
    nearest = below[-1] if below else above[0]
    return curves[nearest](nbytes) * max(1.0, bus_factor(kind, group) / bus_factor(kind, nearest))

"""A cluster of several types of device: nodes of one kind after nodes of another, on one network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from autoplan.errors import ProfileError
from autoplan.hardware.cluster import Cluster, check_collective, free_if_empty
from autoplan.hardware.cluster_size import resized
from autoplan.hardware.collectives import collective_phases, p2p_time_s, pipelined
from autoplan.hardware.device import Device
from autoplan.hardware.interpolate import greater

__all__ = ["MixedCluster"]

MOST_DEVICES = 2**20


@dataclass(frozen=True)
class MixedCluster:
    """Ranks are numbered part by part, in each part node by node.

    Args:
        name: of the whole.
        parts: each with one type of device, its nodes and its own levels. The outermost level of a
            part is its side of the network that joins the parts; what crosses goes at the pace of the
            slower side.
    """

    name: str
    parts: tuple[Cluster, ...]

    @classmethod
    def of(cls, parts: Sequence[tuple[str | Path | Cluster, int]], name: str = "") -> MixedCluster:
        """``[("a100-80-sxm", 2), ("h100-sxm", 2)]``: profiles and how many nodes of each.

        Raises:
            ProfileError: fewer than two parts, no such profile, or one that cannot have that size or
                has no network; devices of which some are GPUs and some are not; too many of them.
        """
        pairs = [_pair(part) for part in parts]
        if len(pairs) < 2:
            raise ProfileError("parts", len(pairs), "at least two", "use Cluster.of for one type of device")
        clusters = tuple(_part(profile, nodes) for profile, nodes in pairs)
        if len(kinds := {cluster.device.kind for cluster in clusters}) > 1:
            raise ProfileError("parts", sorted(kinds), "devices of one kind", "take profiles of GPUs alone")
        if (world := sum(part.world_size for part in clusters)) > MOST_DEVICES:
            raise ProfileError("parts", world, f"at most {MOST_DEVICES} devices in all", "take fewer nodes")
        return cls(name or "+".join(f"{part.name}:{part.nodes}" for part in clusters), clusters)

    @property
    def world_size(self) -> int:
        """Devices in all."""
        return sum(part.world_size for part in self.parts)

    @property
    def node_size(self) -> int:
        """Devices that every node has, whole nodes or a share of them: what tp must divide."""
        return math.gcd(*(part.node_size for part in self.parts))

    @property
    def nodes(self) -> int:
        """Nodes of all parts."""
        return sum(part.nodes for part in self.parts)

    @property
    def types(self) -> tuple[Cluster, ...]:
        """For each part, a cluster as large as the whole, all of whose devices are of its type. Groups inside the part
        take as long as in it; what crosses to another part goes over the outermost level of the slower of the two."""
        return self._whole

    @property
    def shares(self) -> tuple[float, ...]:
        """For each of ``types``, its share of the devices."""
        return tuple(part.world_size / self.world_size for part in self.parts)

    @property
    def stage_multiple(self) -> int:
        """What the number of pipeline ranks must be a multiple of, so that each has devices of one type."""
        return self.world_size // math.gcd(*(part.world_size for part in self.parts))

    def relief(self, busy: Any) -> Any:
        """See ``Cluster.relief``: devices in a network have cores of their own."""
        return 1.0

    def type_of(self, rank: int, ranks: int) -> int:
        """Which of ``types`` the devices of one of ``ranks`` pipeline ranks are.

        Raises ProfileError where some pipeline rank has devices of two types.
        """
        if ranks % self.stage_multiple:
            raise ProfileError(
                "pipeline ranks",
                ranks,
                f"a multiple of {self.stage_multiple}, so that none has devices of two types",
                "change pp, or the nodes of each part",
            )
        return self._index(rank * (self.world_size // ranks))

    @property
    def devices_text(self) -> str:
        """What it has, in words."""
        return " + ".join(part.devices_text for part in self.parts)

    def times(self, multiple: int) -> MixedCluster:
        """The same with ``multiple`` times as many nodes of each part. Raises ProfileError for too many devices."""
        return MixedCluster.of([(part, multiple * part.nodes) for part in self.parts])

    @property
    def price_per_hour(self) -> float | None:
        """US dollars for all devices, if the price of each type is known."""
        prices = [part.price_per_hour for part in self.parts]
        known = [price for price in prices if price is not None]
        return sum(known) if len(known) == len(prices) else None

    def part_of(self, rank: int) -> Cluster:
        """The part that holds ``rank``. Raises ProfileError outside the cluster."""
        return self.parts[self._index(rank)]

    def device_of(self, rank: int) -> Device:
        """The device of ``rank``. Raises ProfileError outside the cluster."""
        return self.part_of(rank).device

    def collective_time_s(
        self, kind: str, nbytes: Any, size: int, stride: int = 1, *, first: int | None = None
    ) -> Any:
        """Seconds for a collective over groups of ``size`` ranks ``stride`` apart.

        As ``Cluster.collective_time_s``; a group that spans parts goes at the pace of its slowest
        member on every level.

        Args:
            first: the first rank of the group that is meant; by default the slowest of all groups.

        Raises:
            ProfileError: unknown kind, or a group that does not fit the cluster.
        """
        check_collective(kind)
        if kind == "send_recv":
            return self.p2p_time_s(nbytes, stride, size, first=first)
        slowest: Any = 0.0
        for spanned in self._spanned(size, stride, first):
            slowest = greater(slowest, self._slowest_member_s(spanned, kind, nbytes, size, stride))
        return free_if_empty(nbytes, slowest)

    def p2p_time_s(self, nbytes: Any, stride: int, size: int = 2, *, first: int | None = None) -> Any:
        """Seconds to send ``nbytes`` to the rank ``stride`` further on, in chains of ``size`` ranks.

        ``first`` as for ``collective_time_s``. Raises ProfileError for a chain that does not fit.
        """
        slowest: Any = 0.0
        for spanned in self._spanned(size, stride, first):
            for index in spanned:
                levels = self.parts[index].levels if len(spanned) == 1 else self._whole[index].levels
                if len(spanned) > 1:
                    slowest = greater(slowest, _crossing_s(levels, nbytes, stride))
                slowest = greater(slowest, p2p_time_s(levels, nbytes, stride, size))
        return free_if_empty(nbytes, slowest)

    def _slowest_member_s(
        self, spanned: tuple[int, ...], kind: str, nbytes: Any, size: int, stride: int
    ) -> Any:
        """Each part prices the group as if all of it were of its kind; on each level the slowest counts."""
        if len(spanned) == 1:
            levels = self.parts[spanned[0]].levels
            return pipelined(collective_phases(levels, kind, nbytes, size, stride).values())
        phases: dict[int, tuple[Any, Any]] = {}
        for index in spanned:
            levels = self._whole[index].levels
            for level, (least_s, transfer_s) in collective_phases(levels, kind, nbytes, size, stride).items():
                key = -1 if level == len(levels) - 1 else level  # parts may differ in levels inside
                before = phases.get(key, (0.0, 0.0))
                phases[key] = greater(before[0], least_s), greater(before[1], transfer_s)
        return pipelined(phases.values())

    @cached_property
    def _whole(self) -> tuple[Cluster, ...]:
        """Each part as if all devices were of its kind."""
        return tuple(_grown(part, self.world_size) for part in self.parts)

    def _index(self, rank: int) -> int:
        return _holder(tuple(part.world_size for part in self.parts), rank)

    def _spanned(self, size: int, stride: int, first: int | None) -> tuple[tuple[int, ...], ...]:
        """The sets of parts that the groups span (that of the group of ``first``, or of every group)."""
        if (
            size < 1
            or stride < 1
            or (first or 0) < 0
            or (first or 0) + (size - 1) * stride >= self.world_size
        ):
            raise ProfileError(
                "group",
                f"{size} ranks {stride} apart" + (f" from rank {first}" if first is not None else ""),
                f"a group inside the {self.world_size} devices of {self.name}",
                "give the cluster more nodes, or use smaller groups",
            )
        return _spanned(tuple(part.world_size for part in self.parts), size, stride, first)

    def __str__(self) -> str:
        return " + ".join(str(part) for part in self.parts)


@lru_cache(maxsize=65536)
def _holder(sizes: tuple[int, ...], rank: int) -> int:
    left = rank
    for index, size in enumerate(sizes):
        if 0 <= left < size:
            return index
        left -= size
    raise ProfileError("rank", rank, f"0 to {sum(sizes) - 1}", "give a rank of the cluster")


@lru_cache(maxsize=4096)
def _spanned(
    sizes: tuple[int, ...], size: int, stride: int, first: int | None
) -> tuple[tuple[int, ...], ...]:
    world = sum(sizes)
    starts = (
        [first]
        if first is not None
        else [s for s in range(world) if s % (size * stride) < stride and s + (size - 1) * stride < world]
    )
    spanned = {tuple(sorted({_holder(sizes, start + i * stride) for i in range(size)})) for start in starts}
    return tuple(sorted(spanned))


def _pair(part: Any) -> tuple[str | Path | Cluster, int]:
    if isinstance(part, tuple | list) and len(part) == 2 and isinstance(part[0], str | Path | Cluster):
        return part[0], part[1]
    raise ProfileError("parts", part, "pairs of a profile and a number of nodes", 'such as ("h100-sxm", 2)')


def _part(profile: str | Path | Cluster, nodes: int) -> Cluster:
    cluster = profile if isinstance(profile, Cluster) else Cluster.load(profile)
    if len(cluster.levels) < 2:
        raise ProfileError(
            "parts", cluster.name, "profiles with a network between nodes", "add a [[level]] for the network"
        )
    # One node of a part still has its side of the network: keep that level though it joins one unit.
    outer = cluster.levels[-1]
    sized = resized(cluster, nodes, None)
    if len(sized.levels) == len(cluster.levels):
        return sized
    if len(cluster.levels) > 2:
        raise ProfileError(
            "parts", f"{nodes} nodes of {cluster.name}", "whole units of its levels", "give more nodes"
        )
    return replace(sized, levels=(*sized.levels, replace(outer, size=1)))


def _grown(part: Cluster, devices: int) -> Cluster:
    """``part`` with as many units of its outermost level as ``devices`` devices need."""
    outer = part.levels[-1]
    units = max(1, -(-devices // (part.world_size // outer.size)))
    return replace(part, levels=(*part.levels[:-1], replace(outer, size=units)))


def _crossing_s(levels: Any, nbytes: Any, stride: int) -> Any:
    """One transfer from a part to another: over the network, whatever the distance in ranks."""
    unit = 1
    for level in levels[:-1]:
        unit *= level.size
    at_work = min(stride, unit)
    share = min(1.0, levels[-1].nics / at_work)
    return levels[-1].time_s("send_recv", greater(nbytes, 1.0), 2, share=share)

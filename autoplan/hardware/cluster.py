"""The cluster: a device, the levels that join many of it, and what moving bytes between them costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, overload

import msgspec
import numpy as np
from msgspec import Meta

from autoplan.errors import ProfileError
from autoplan.hardware import collectives
from autoplan.hardware.device import Device
from autoplan.hardware.interpolate import as_given, greater
from autoplan.hardware.level import COLLECTIVES, Level
from autoplan.hardware.overlap import Slowdown, slowdown_of
from autoplan.hardware.source import Count, Fraction, Source

if TYPE_CHECKING:
    from autoplan.hardware.mixed import MixedCluster

__all__ = ["Cluster", "Failure"]

_MOST_PRICED = 1 << 17  # answers that are kept


class Failure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A measurement that could not be made, such as one that ran out of memory: that too is a finding."""

    what: str
    reason: str
    source: str


class Cluster(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True
):
    """A hardware profile at a certain size. In TOML its levels are ``[[level]]`` tables.

    Ranks are numbered node by node: level 0 (the node) fastest, then the levels above.

    Args:
        format: version of the schema.
        aliases: other names under which the profile is found.
        levels: innermost first; each holds ``size`` units of the one below.
        devices: in all, if given; must be the product of the levels' sizes.
        overlap: share of communication that can hide behind compute.
        slowdown: what compute and communication lose to each other while both run.
        source: for ``overlap``, a key of ``sources``.
        failed: what could not be measured, and why.
    """

    format: Literal[2] = 2
    name: str
    aliases: tuple[str, ...] = ()
    description: str = ""
    devices: Count | None = None
    overlap: Fraction
    source: dict[str, str]
    device: Device
    levels: Annotated[tuple[Level, ...], Meta(min_length=1, max_length=8)] = msgspec.field(name="level")
    slowdown: tuple[Slowdown, ...] = ()
    failed: tuple[Failure, ...] = ()
    sources: dict[str, Source]

    @classmethod
    def load(cls, name_or_path: str | Path) -> Cluster:
        """The profile of that name (shipped, or in the user's cache), or of that TOML file.

        Raises:
            ProfileError: there is none, or it is not a valid profile of one kind of device; names the
                file, the line and the field.
        """
        from autoplan.hardware.profile_file import read_profile
        from autoplan.hardware.profile_path import find_profile

        return read_profile(find_profile(name_or_path))

    @overload
    @classmethod
    def of(
        cls, name_or_path: str | Path | Cluster, nodes: int | None = None, gpus: int | None = None
    ) -> Cluster: ...

    @overload
    @classmethod
    def of(cls, name_or_path: Sequence[tuple[str | Path | Cluster, int]]) -> MixedCluster: ...

    @classmethod
    def of(
        cls,
        name_or_path: str | Path | Cluster | Sequence[tuple[str | Path | Cluster, int]],
        nodes: int | None = None,
        gpus: int | None = None,
    ) -> Cluster | MixedCluster:
        """The profile with ``nodes`` nodes, or with ``gpus`` devices in all; by default as it is written.

        A sequence of (profile, nodes) makes a cluster mixed of several types of device.

        Raises:
            ProfileError: no such profile, or it cannot have that size.
        """
        from autoplan.hardware.cluster_size import resized
        from autoplan.hardware.mixed import MixedCluster

        if isinstance(name_or_path, MixedCluster):
            raise ProfileError(
                "cluster", str(name_or_path), "one type of device", "use one part of it: cluster.parts[0]"
            )
        if not isinstance(name_or_path, str | Path | Cluster):
            return MixedCluster.of(name_or_path)
        cluster = name_or_path if isinstance(name_or_path, Cluster) else cls.load(name_or_path)
        return resized(cluster, nodes, gpus)

    @property
    def world_size(self) -> int:
        """Devices in all."""
        return math.prod(level.size for level in self.levels)

    @property
    def node_size(self) -> int:
        """Devices of a node: the innermost level."""
        return self.levels[0].size

    @property
    def nodes(self) -> int:
        """Units of the innermost level in all."""
        return self.world_size // self.node_size

    @property
    def types(self) -> tuple[Cluster, ...]:
        """For each type of device, a cluster all of it: one, this cluster (see ``MixedCluster``)."""
        return (self,)

    @property
    def shares(self) -> tuple[float, ...]:
        """For each of ``types``, its share of the devices."""
        return (1.0,)

    @property
    def stage_multiple(self) -> int:
        """What the number of pipeline ranks must be a multiple of, so that each has devices of one type."""
        return 1

    def type_of(self, rank: int, ranks: int) -> int:
        """Which of ``types`` the devices of one of ``ranks`` pipeline ranks are."""
        return 0

    @property
    def devices_text(self) -> str:
        """What it has, in words."""
        return f"{self.world_size} × {self.device.name}"

    def times(self, multiple: int) -> Cluster:
        """The same with ``multiple`` times as many nodes. Raises ProfileError where it cannot have that size."""
        return Cluster.of(self, nodes=multiple * self.nodes)

    @property
    def price_per_hour(self) -> float | None:
        """US dollars for all devices, if the profile knows the price of one."""
        price = self.device.price_per_hour
        return None if price is None else price * self.world_size

    def relief(self, busy: Any) -> Any:
        """Of the seconds that work takes while all devices work, the share that it takes while ``busy`` (a number or
        an array) of them do: below 1 where the ranks of a machine share its cores (``Device.at_once``)."""
        at_once = self.device.at_once
        if not at_once or at_once >= self.world_size or self.nodes > 1:
            return 1.0
        return greater(busy, at_once) / self.world_size

    def slowdown_of(self, communication: str = "any", compute: str = "any", level: str = "") -> Slowdown:
        """The factors by which that communication (a collective, ``to_host`` or ``from_host``) over that
        level and that compute (``gemm``, ``attention`` or ``memory``) slow each other down; 1 where the
        profile has no figure."""
        return slowdown_of(self.slowdown, communication, compute, level)

    def collective_time_s(
        self, kind: str, nbytes: Any, size: int, stride: int = 1, *, alone: bool = False
    ) -> Any:
        """Seconds for a collective over groups of ``size`` ranks ``stride`` apart, all groups at once.

        Args:
            kind: ``all_reduce``, ``all_gather``, ``reduce_scatter``, ``all_to_all`` or ``send_recv``
                (a ``graph.Collective`` is one of these strings).
            nbytes: of the whole tensor (an all-gather's output, a reduce-scatter's input); for an
                all-to-all, what one rank holds. A number or an array.
            size: ranks in a group; 1 costs nothing.
            stride: distance between neighbours of a group in rank numbering.
            alone: one group only, while all other devices are silent.

        Raises:
            ProfileError: unknown kind, or a group that does not fit the cluster.

        The model and its sources: ``autoplan.hardware.collectives`` and ``Level.time_s``.
        """
        if isinstance(nbytes, np.ndarray):
            return self._collective_time_s(kind, nbytes, size, stride, alone)
        key = kind, nbytes, size, stride, alone
        if key not in self._priced:
            if len(self._priced) >= _MOST_PRICED:
                self._priced.clear()
            self._priced[key] = self._collective_time_s(kind, nbytes, size, stride, alone)
        return self._priced[key]

    @cached_property
    def _priced(self) -> dict[tuple[str, float, int, int, bool], float]:
        """What collectives of plain numbers of bytes take; a search asks for the same ones over and over."""
        return {}

    def _collective_time_s(self, kind: str, nbytes: Any, size: int, stride: int, alone: bool) -> Any:
        check_collective(kind)
        if kind == "send_recv":
            return self.p2p_time_s(nbytes, stride, size)
        self._check_group(size, stride)
        time_s = collectives.collective_time_s(self.levels, kind, nbytes, size, stride, alone=alone)
        return free_if_empty(nbytes, time_s)

    def p2p_time_s(self, nbytes: Any, stride: int, size: int = 2) -> Any:
        """Seconds for every rank to send ``nbytes`` to the one ``stride`` further on, all at once.

        ``size`` is the length of the chain (the pipeline's stages): a chain that crosses nodes is
        priced at that crossing.
        """
        self._check_group(size, stride)
        return free_if_empty(nbytes, collectives.p2p_time_s(self.levels, nbytes, stride, size))

    def _check_group(self, size: int, stride: int) -> None:
        if size < 1 or stride < 1 or (size - 1) * stride >= self.world_size:
            raise ProfileError(
                "group",
                f"{size} ranks {stride} apart",
                f"a group inside the {self.world_size} devices of {self.name}",
                "give the cluster more nodes, or use smaller groups",
            )

    def __str__(self) -> str:
        counts = " x ".join(str(level.size) for level in reversed(self.levels))
        return f"{self.name}: {counts} {self.device.name}"


def check_collective(kind: str) -> None:
    """Raises ProfileError where ``kind`` is not one of ``COLLECTIVES``."""
    if kind not in COLLECTIVES:
        raise ProfileError("collective", kind, f"one of {', '.join(COLLECTIVES)}", "correct the name")


def free_if_empty(nbytes: Any, time_s: Any) -> Any:
    """``time_s``, but nothing where no bytes are sent."""
    if isinstance(nbytes, np.ndarray):
        return np.where(nbytes > 0, time_s, 0.0)
    return as_given(time_s) if nbytes > 0 else 0.0

"""What a profile must fulfil beyond the types and ranges of its fields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from autoplan.errors import ProfileError
from autoplan.hardware.cluster import Cluster
from autoplan.hardware.device import DTYPE_BYTES
from autoplan.hardware.interpolate import LogGrid
from autoplan.hardware.level import COLLECTIVES, Level

__all__ = ["check_profile"]

_DEVICE_FIGURES = (
    "memory_bytes",
    "usable_bytes",
    "memory_bytes_per_s",
    "memory_efficiency",
    "launch_s",
    "peak_flops",
    "gemm_efficiency",
    "attention_efficiency",
)
_LEVEL_FIGURES = ("bandwidth_bytes_per_s", "latency_s")


class _Checker:
    """Raises ProfileError with the file and the field."""

    def __init__(self, cluster: Cluster, where: str) -> None:
        self.sources = cluster.sources
        self.where = where

    def fail(self, field: str, value: Any, expected: str, remedy: str = "correct the profile") -> None:
        raise ProfileError(f"{self.where}: {field}", value, expected, remedy)

    def cited(self, field: str, given: dict[str, str], figures: Iterable[str]) -> None:
        """Every figure names a source, and every source named is there."""
        for figure in figures:
            if figure not in given:
                self.fail(
                    f"{field}.{figure}" if field else figure,
                    None,
                    "the key of its source",
                    f"say where {figure} comes from",
                )
        for figure, key in given.items():
            self.source(f"{field}.{figure}" if field else figure, key)

    def source(self, field: str, key: str) -> None:
        if key not in self.sources:
            known = ", ".join(self.sources) or "none given"
            self.fail(field, key, f"a key of [sources] ({known})", f"add [sources.{key}]")

    def names(self, field: str, given: Iterable[str], known: Sequence[str]) -> None:
        for name in given:
            if name not in known:
                self.fail(f"{field}.{name}", name, f"one of {', '.join(known)}")

    def rising(self, field: str, sizes: Sequence[int]) -> None:
        for index in range(1, len(sizes)):
            if sizes[index] <= sizes[index - 1]:
                self.fail(
                    f"{field}[{index}]", sizes[index], f"a size above {sizes[index - 1]}", "sort the points"
                )

    def distinct(self, field: str, keys: Sequence[Any]) -> None:
        for index, key in enumerate(keys):
            if key in keys[:index]:
                self.fail(f"{field}[{index}]", key, "one table of each kind", "remove one of the two")

    def gridded(self, field: str, points: Sequence[tuple[int, int, int]]) -> None:
        cells = 1
        for axis in zip(*points, strict=True):
            cells *= len(set(axis))
        if cells * len(points) > 50 * LogGrid.MAX_CELLS:
            self.fail(field, f"{len(points)} points", "points that share their sizes", "measure on a grid")


def check_profile(cluster: Cluster, where: str) -> None:
    """Check what types cannot say: sources, names, order of points, sizes that fit.

    Raises:
        ProfileError: naming ``where`` and the field.
    """
    check = _Checker(cluster, where)
    figures = ["overlap"] + (["price_per_device_hour"] if cluster.price_per_device_hour is not None else [])
    check.cited("source", cluster.source, figures)
    _check_device(check, cluster)
    world = 1
    for index, level in enumerate(cluster.levels):
        _check_level(check, f"level[{index}]", level)
        world *= level.size
    if world > 2**24:
        check.fail("level", world, f"at most {2**24} devices in all", "make the levels smaller")


def _check_device(check: _Checker, cluster: Cluster) -> None:
    device, dtypes = cluster.device, tuple(DTYPE_BYTES)
    check.cited("device.source", device.source, _DEVICE_FIGURES)
    if device.usable_bytes > device.memory_bytes:
        check.fail(
            "device.usable_bytes", device.usable_bytes, f"at most memory_bytes ({device.memory_bytes})"
        )
    if not device.peak_flops:
        check.fail("device.peak_flops", {}, "FLOP/s of at least one dtype")
    check.names("device.peak_flops", device.peak_flops, dtypes)
    check.names("device.gemm_efficiency", device.gemm_efficiency, dtypes)
    check.distinct("device.gemm", [table.dtype for table in device.gemm])
    check.distinct("device.attention", [(table.dtype, table.causal) for table in device.attention])
    for index, table in enumerate(device.gemm):
        field = f"device.gemm[{index}]"
        check.names(f"{field}.dtype", [table.dtype], tuple(device.peak_flops))
        check.source(f"{field}.source", table.source)
        check.gridded(f"{field}.points", [(p.m, p.n, p.k) for p in table.points])
    for index, table in enumerate(device.attention):
        field = f"device.attention[{index}]"
        check.names(f"{field}.dtype", [table.dtype], tuple(device.peak_flops))
        check.source(f"{field}.source", table.source)
        check.gridded(f"{field}.points", [(p.m, p.n, p.k) for p in table.points])
    if device.memory is not None:
        check.source("device.memory.source", device.memory.source)
        check.rising("device.memory.points", [p.nbytes for p in device.memory.points])


def _check_level(check: _Checker, field: str, level: Level) -> None:
    check.cited(
        f"{field}.source", level.source, (*_LEVEL_FIGURES, *(["efficiency"] if level.efficiency else []))
    )
    check.names(f"{field}.efficiency", level.efficiency, COLLECTIVES)
    for index, protocol in enumerate(level.protocols):
        check.source(f"{field}.protocols[{index}].source", protocol.source)
    for index, entry in enumerate(level.group_efficiency):
        check.names(f"{field}.group_efficiency[{index}].collective", [entry.collective], COLLECTIVES)
        check.source(f"{field}.group_efficiency[{index}].source", entry.source)
    check.distinct(f"{field}.curves", [(table.collective, table.group) for table in level.curves])
    for index, table in enumerate(level.curves):
        inner = f"{field}.curves[{index}]"
        check.names(f"{inner}.collective", [table.collective], COLLECTIVES)
        check.source(f"{inner}.source", table.source)
        check.rising(f"{inner}.points", [p.nbytes for p in table.points])
        if table.group < 2:
            check.fail(f"{inner}.group", table.group, "a group of at least 2")

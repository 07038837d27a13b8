"""Measured tables must make sense: sizes in order, and more work never faster beyond the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from autoplan.hardware.check import Checker
from autoplan.hardware.device import Device
from autoplan.hardware.interpolate import LogGrid
from autoplan.hardware.level import Level
from autoplan.hardware.noise import curve_times, falls, grid_sizes, grid_times, jumps
from autoplan.hardware.tables import MemoryTable
from autoplan.units import seconds

__all__ = ["check_communication", "check_device_tables", "check_stream"]


def check_communication(check: Checker, field: str, level: Level) -> None:
    """The curves of a level. Raises ProfileError."""
    check.distinct(field, [(t.collective, t.group, t.at_once) for t in level.curves])
    for index, table in enumerate(level.curves):
        _check_curve(check, f"{field}[{index}]", table)


def check_stream(check: Checker, field: str, table: MemoryTable) -> None:
    """A curve over bytes. Raises ProfileError."""
    _check_curve(check, field, table)


def check_device_tables(check: Checker, device: Device) -> None:
    """The device's tables: one of each kind, of dtypes that have a peak, on a grid. Raises ProfileError."""
    tables: Mapping[str, Sequence[Any]] = {
        "gemm": device.gemm,
        "batched_gemm": device.batched_gemm,
        "attention": device.attention,
    }
    for name, entries in tables.items():
        by_source = [(t.dtype, t.source) for t in entries]
        by_kind = [(t.dtype, t.causal) for t in device.attention]
        check.distinct(f"device.{name}", by_kind if name == "attention" else by_source)
        for index, table in enumerate(entries):
            field = f"device.{name}[{index}]"
            if table.dtype not in device.peak_flops:
                known = ", ".join(device.peak_flops)
                check.fail(f"{field}.dtype", table.dtype, f"one of device.peak_flops ({known})")
            _check_grid(check, field, table)
    if device.memory is not None:
        check_stream(check, "device.memory", device.memory)


def _check_curve(check: Checker, field: str, table: Any) -> None:
    check.source(f"{field}.source", table.source)
    check.rising(f"{field}.points", [p.nbytes for p in table.points])
    times = curve_times(table)
    for index, least_s, before_s in falls(table.points, times):
        check.fail(
            f"{field}.points[{index}]",
            seconds(times[index]),
            f"a time of at least {seconds(least_s)}, since the smaller size before it takes {seconds(before_s)}",
            "measure again, or mark the point as noisy",
        )


def _check_grid(check: Checker, field: str, table: Any) -> None:
    check.source(f"{field}.source", table.source)
    sizes, times = grid_sizes(table), grid_times(table)
    cells = 1
    for axis in zip(*sizes, strict=True):
        cells *= len(set(axis))
    if cells * len(sizes) > 50 * LogGrid.MAX_CELLS:
        remedy = "measure on a grid"
        check.fail(f"{field}.points", f"{len(sizes)} points", "points that share their sizes", remedy)
    for index, larger, before_s in jumps(table.points, sizes, times):
        check.fail(
            f"{field}.points[{index}]",
            seconds(times[index]),
            f"more than half of the {seconds(before_s)} that a {larger} times smaller size takes",
            "measure again, or mark the point as noisy",
        )

"""What a profile must fulfil beyond the types and ranges of its fields."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from autoplan.errors import ProfileError
from autoplan.hardware.cluster import Cluster
from autoplan.hardware.host import HostLink
from autoplan.hardware.level import Level
from autoplan.hardware.source import Source, SourceKind
from autoplan.hardware.toml_lines import line_of

__all__ = ["Checker", "Place", "check_profile"]

_LEVEL_FIGURES = ("bandwidth_bytes_per_s", "latency_s")
_HOST_FIGURES = ("to_host_bytes_per_s", "from_host_bytes_per_s")


@dataclass(frozen=True, slots=True)
class Place:
    """Names what is wrong: the file, the line where its text is known, the field."""

    file: str
    text: str | None = None

    def name(self, field: str) -> str:
        """``h100.toml:12: level[1].latency_s``."""
        line = line_of(self.text, field) if self.text is not None and field else None
        return ": ".join(filter(None, (f"{self.file}:{line}" if line else self.file, field)))


@dataclass(frozen=True, slots=True)
class Checker:
    """Raises ProfileError with the file, the line and the field."""

    sources: dict[str, Source]
    place: Place

    def fail(self, field: str, value: Any, expected: str, remedy: str = "correct the profile") -> NoReturn:
        raise ProfileError(self.place.name(field), value, expected, remedy)

    def cited(self, field: str, given: dict[str, str], figures: Iterable[str]) -> None:
        """Every figure names a source, and every source named is there."""
        for figure in figures:
            if figure not in given:
                self.fail(
                    _join(field, figure), None, "the key of its source", f"say where {figure} comes from"
                )
        for figure, key in given.items():
            self.source(_join(field, figure), key)

    def source(self, field: str, key: str) -> None:
        if key not in self.sources:
            known = ", ".join(self.sources) or "none given"
            self.fail(field, key, f"a key of [sources] ({known})", f"add [sources.{key}]")

    def known(self, field: str, given: Iterable[str], known: Iterable[str]) -> None:
        """Spreads and noisy marks name figures that are there."""
        names = tuple(known)
        for name in given:
            if name not in names:
                self.fail(field, name, f"names of figures with a source ({', '.join(names)})")

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


def check_profile(cluster: Cluster, place: Place) -> None:
    """Check what types cannot say: sources, names, order and sense of points, sizes that multiply out.

    Raises:
        ProfileError: naming the file, the line and the field.
    """
    from autoplan.hardware.check_curves import check_communication, check_device_tables, check_stream

    check = Checker(cluster.sources, place)
    for key, source in cluster.sources.items():
        _check_source(check, f"sources.{key}", source)
    check.cited("source", cluster.source, ["overlap"])
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", cluster.name):
        check.fail("name", cluster.name, "letters, digits, dots and hyphens", "choose such a name")
    _check_device(check, cluster)
    check_device_tables(check, cluster.device)
    for index, level in enumerate(cluster.levels):
        _check_level(check, f"level[{index}]", level)
        check_communication(check, f"level[{index}].curves", level)
    if (host := cluster.device.host) is not None:
        _check_host(check, host)
        for name, table in (("to_host", host.to_host), ("from_host", host.from_host)):
            if table is not None:
                check_stream(check, f"device.host.{name}", table)
    _check_whole(check, cluster)


def _check_source(check: Checker, field: str, source: Source) -> None:
    """A source says what its kind owes."""
    kind = source.kind
    if kind is SourceKind.MEASURED and not source.date:
        check.fail(
            f"{field}.date", source.date, "the ISO date of the measurement", "say when it was measured"
        )
    if kind is SourceKind.CALIBRATED and not source.rows:
        check.fail(f"{field}.rows", list(source.rows), "the rows that were fitted", "name them")
    if kind is not SourceKind.MEASURED and not source.document:
        check.fail(f"{field}.document", "", f"what {kind} rests on", "name the document or the reason")
    if source.date:
        try:
            datetime.date.fromisoformat(source.date[:10])
        except ValueError:
            check.fail(f"{field}.date", source.date, "an ISO date such as 2025-01-31", "correct the date")


def _check_device(check: Checker, cluster: Cluster) -> None:
    device = cluster.device
    figures = ["memory_bytes", "usable_bytes", "memory_bytes_per_s", "memory_efficiency", "launch_s"]
    figures += ["peak_flops", "gemm_efficiency", "attention_efficiency"]
    optional = ("eager_op_s", "tdp_w", "idle_w", "price_per_hour")
    figures += [name for name in optional if getattr(device, name) is not None]
    check.cited("device.source", device.source, figures)
    check.known("device.spread", device.spread, device.source)
    check.known("device.noisy", device.noisy, device.source)
    if device.usable_bytes > device.memory_bytes:
        check.fail(
            "device.usable_bytes", device.usable_bytes, f"at most memory_bytes ({device.memory_bytes})"
        )
    if not device.peak_flops:
        check.fail("device.peak_flops", {}, "FLOP/s of at least one dtype")
    if device.idle_w is not None and device.tdp_w is not None and device.idle_w > device.tdp_w:
        check.fail("device.idle_w", device.idle_w, f"at most tdp_w ({device.tdp_w:g})")


def _check_host(check: Checker, host: HostLink) -> None:
    field = "device.host"
    optional = ("both_bytes_per_s", "memory_bytes")
    figures = [*_HOST_FIGURES, *(name for name in optional if getattr(host, name) is not None)]
    check.cited(f"{field}.source", host.source, figures)
    check.known(f"{field}.spread", host.spread, host.source)
    check.known(f"{field}.noisy", host.noisy, host.source)


def _check_level(check: Checker, field: str, level: Level) -> None:
    optional = ["efficiency"] if level.efficiency else []
    check.cited(f"{field}.source", level.source, (*_LEVEL_FIGURES, *optional))
    check.known(f"{field}.spread", level.spread, level.source)
    check.known(f"{field}.noisy", level.noisy, level.source)
    for index, protocol in enumerate(level.protocols):
        check.source(f"{field}.protocols[{index}].source", protocol.source)
    for index, entry in enumerate(level.group_efficiency):
        check.source(f"{field}.group_efficiency[{index}].source", entry.source)


def _check_whole(check: Checker, cluster: Cluster) -> None:
    """The levels together: names, and sizes that multiply out."""
    names = [level.name for level in cluster.levels]
    check.distinct("level", names)
    sizes = [level.size for level in cluster.levels]
    world = math.prod(sizes)
    if world > 2**24:
        check.fail("level", world, f"at most {2**24} devices in all", "make the levels smaller")
    if cluster.devices is not None and cluster.devices != world:
        product = " x ".join(map(str, sizes))
        check.fail(
            "devices", cluster.devices, f"{world} ({product})", "correct it, or the sizes of the levels"
        )
    for index, entry in enumerate(cluster.slowdown):
        check.source(f"slowdown[{index}].source", entry.source)
        if entry.level and entry.level not in names:
            check.fail(f"slowdown[{index}].level", entry.level, f"the name of a level ({', '.join(names)})")
    for index, failure in enumerate(cluster.failed):
        check.source(f"failed[{index}].source", failure.source)


def _join(field: str, name: str) -> str:
    return f"{field}.{name}" if field else name

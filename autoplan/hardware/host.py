"""The link between a device and its host's memory, over which state and activations are offloaded."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import msgspec

from autoplan.hardware.interpolate import TimeCurve, as_given, greater
from autoplan.hardware.source import BytesPerSecond, Count, Seconds, Spreads
from autoplan.hardware.tables import MemoryTable

__all__ = ["Direction", "HostLink"]

Direction = Literal["to_host", "from_host"]


class HostLink(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True
):
    """Copies between a device and pinned memory of its host.

    Args:
        to_host_bytes_per_s, from_host_bytes_per_s: of large copies one way, the other way idle.
        both_bytes_per_s: of each way when copies run both ways at once; absent: each as if alone.
        shared_by: devices on one link (a PCIe switch); they divide it when they copy at once.
        memory_bytes: host memory that one device may fill.
        latency_s: of a copy.
        to_host, from_host: measured tables, which replace the figures above.
        source: for each figure, a key of the profile's ``sources``.
        spread, noisy: of measured figures, by name.
    """

    to_host_bytes_per_s: BytesPerSecond
    from_host_bytes_per_s: BytesPerSecond
    source: dict[str, str]
    both_bytes_per_s: BytesPerSecond | None = None
    shared_by: Count = 1
    memory_bytes: Count | None = None
    latency_s: Seconds = 0.0
    to_host: MemoryTable | None = None
    from_host: MemoryTable | None = None
    spread: Spreads = {}
    noisy: tuple[str, ...] = ()

    def time_s(
        self, nbytes: Any, direction: Direction, *, both_ways: bool = False, sharers: int | None = None
    ) -> Any:
        """Seconds to copy ``nbytes`` (> 0; number or array) between a device and its host.

        Args:
            both_ways: as much is copied the other way at the same time.
            sharers: devices of the same link that copy at once; by default all of them.
        """
        curve = self._curves.get(direction)
        alone = self.to_host_bytes_per_s if direction == "to_host" else self.from_host_bytes_per_s
        both = min(alone, self.both_bytes_per_s or alone) if both_ways else alone
        slower = alone / both * min(sharers or self.shared_by, self.shared_by)
        if curve is not None:
            return as_given(curve(greater(nbytes * slower, 1e-3)))
        return as_given(self.latency_s + nbytes * slower / alone)

    @cached_property
    def _curves(self) -> dict[str, TimeCurve]:
        tables = {"to_host": self.to_host, "from_host": self.from_host}
        return {
            name: TimeCurve(
                [p.nbytes for p in table.points], [p.nbytes / p.bytes_per_s for p in table.points], floor=True
            )
            for name, table in tables.items()
            if table is not None
        }

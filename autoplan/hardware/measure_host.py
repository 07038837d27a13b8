"""From measured copies to the link between a GPU and its host's memory."""

from __future__ import annotations

from collections.abc import Sequence

from autoplan.hardware.host import HostLink
from autoplan.hardware.machine import host_bytes
from autoplan.hardware.measure_figure import rounded
from autoplan.hardware.measure_points import Copy, Point
from autoplan.hardware.measure_run import Results
from autoplan.hardware.tables import MemoryPoint, MemoryTable

__all__ = ["host_link"]


def host_link(
    points: Sequence[Point], results: Results, node_size: int, run: str, machine: str
) -> HostLink | None:
    """The link, or None where no copy could be measured in both directions.

    All ranks of a node copied at once, so the figures are of a device's share of what they share.

    Args:
        run, machine: keys of the profile's sources.
    """
    tables: dict[tuple[str, bool], list[MemoryPoint]] = {}
    for point in points:
        if isinstance(point, Copy) and (figure := results.figure(point)) is not None:
            rate = rounded(point.nbytes / figure.value)
            kept = MemoryPoint(point.nbytes, rate, rounded(figure.spread), figure.samples, figure.noisy)
            tables.setdefault((point.direction, point.both), []).append(kept)
    out, back = tables.get(("to_host", False)), tables.get(("from_host", False))
    if not out or not back:
        return None
    both = [points[-1].bytes_per_s for (_, at_once), points in tables.items() if at_once]
    source = {"to_host_bytes_per_s": run, "from_host_bytes_per_s": run, "memory_bytes": machine}
    return HostLink(
        to_host_bytes_per_s=out[-1].bytes_per_s,
        from_host_bytes_per_s=back[-1].bytes_per_s,
        both_bytes_per_s=min(both) if both else None,
        memory_bytes=host_bytes() // node_size,
        source=source | ({"both_bytes_per_s": run} if both else {}),
        to_host=MemoryTable(source=run, points=tuple(out)),
        from_host=MemoryTable(source=run, points=tuple(back)),
    )

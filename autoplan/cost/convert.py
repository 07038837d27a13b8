"""Seconds to change a value from one layout to another, and its gradient back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoplan.cost.times import NO_TIME, Times
from autoplan.graph.moves import Traffic, traffic

if TYPE_CHECKING:
    from autoplan.graph.ir import Value
    from autoplan.graph.layout import Layout
    from autoplan.hardware import Cluster

__all__ = ["conversion_times", "local_bytes"]


def local_bytes(value: Value, layout: Layout, degree: int) -> float:
    """Bytes that one of ``degree`` ranks holds of ``value``."""
    return value.nbytes / degree if layout.is_shard else value.nbytes


def conversion_times(
    value: Value, src: Layout, dst: Layout, degree: int, cluster: Cluster, stride: int = 1
) -> Times:
    """Seconds of ``src → dst`` forward and, if ``value`` needs a gradient, backward.

    ``stride`` is the distance between neighbours among the ``degree`` ranks.
    """
    if src == dst or degree == 1:
        return NO_TIME
    forward, backward = traffic(value, src, dst, degree)
    return Times(
        0.0, 0.0, _seconds(forward, degree, stride, cluster), _seconds(backward, degree, stride, cluster)
    )


def _seconds(moved: Traffic, degree: int, stride: int, cluster: Cluster) -> float:
    seconds = cluster.device.memory_time_s(moved.touched) if moved.touched else 0.0
    if moved.kind is not None:
        seconds += cluster.collective_time_s(moved.kind, moved.sent, degree, stride=stride)
    return seconds

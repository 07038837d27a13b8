"""Seconds to change a value from one layout to another, and its gradient back.

What travels is in ``graph.layout.conversion``. Beside it, a collective along a dim other than the
outermost must lay its pieces out anew: one more reading and writing of the whole value.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from autoplan.cost.times import NO_TIME, Times
from autoplan.graph.layout import Collective, conversion

if TYPE_CHECKING:
    from autoplan.graph.ir import Value
    from autoplan.graph.layout import Layout
    from autoplan.hardware import Cluster

__all__ = ["conversion_times", "local_bytes"]


def local_bytes(value: Value, layout: Layout, degree: int) -> float:
    """Bytes that one of ``degree`` ranks holds of ``value``."""
    return value.nbytes / degree if layout.is_shard else value.nbytes


def conversion_times(value: Value, src: Layout, dst: Layout, degree: int, cluster: Cluster) -> Times:
    """Seconds of ``src → dst`` forward and, if ``value`` needs a gradient, backward."""
    if src == dst or degree == 1:
        return NO_TIME
    change = conversion(src, dst)
    forward = _collective_s(value, change.forward, src, dst, degree, cluster)
    backward = (
        _collective_s(value, change.backward, dst, src, degree, cluster) if value.requires_grad else 0.0
    )
    return Times(0.0, 0.0, forward, backward)


def _collective_s(
    value: Value, kind: Collective | None, src: Layout, dst: Layout, degree: int, cluster: Cluster
) -> float:
    if kind is None:
        return 0.0
    whole = value.nbytes
    if kind is Collective.MASK:
        return cluster.device.memory_time_s(whole)
    if kind is Collective.SLICE:
        return cluster.device.memory_time_s(2 * whole / degree)
    if kind is Collective.ALL_TO_ALL:
        local = whole / degree
        return cluster.collective_time_s(kind, local, degree) + cluster.device.memory_time_s(2 * local)
    seconds = cluster.collective_time_s(kind, whole, degree)
    cut = {Collective.ALL_GATHER: src, Collective.REDUCE_SCATTER: dst}.get(kind)
    if cut is not None and cut.is_shard and not _outermost(value, cut):
        seconds += cluster.device.memory_time_s(2 * whole)
    return seconds


def _outermost(value: Value, layout: Layout) -> bool:
    """True if the pieces of a cut lie one after another in memory."""
    return layout.parts == 1 and math.prod(value.shape[: layout.dim]) == 1

"""Collectives of many configurations at once: each distinct group shape is asked of the cluster once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = ["group_time_s"]

_BASE = 1 << 24  # above any number of ranks that a profile allows


def group_time_s(cluster: Cluster, kind: str, nbytes: Any, size: Any, stride: Any) -> Any:
    """Seconds of ``kind`` over groups of ``size`` ranks ``stride`` apart, element by element.

    Args:
        nbytes, size, stride: arrays that broadcast, or numbers; groups of one cost nothing.
    """
    nbytes, size, stride = np.broadcast_arrays(
        np.asarray(nbytes, dtype=float), np.asarray(size, dtype=np.int64), np.asarray(stride, dtype=np.int64)
    )
    total = np.zeros(nbytes.shape)
    if size.size == 0:
        return total
    least = size.min()
    if size.size == 1 or (least == size.max() and stride.min() == stride.max()):
        if least > 1:
            total[...] = _asked(cluster, kind, nbytes, int(least), int(stride.flat[0]))
        return total
    for code in np.unique(size * _BASE + stride).tolist():
        n, apart = divmod(code, _BASE)
        if n > 1:
            chosen = (size == n) & (stride == apart)
            total[chosen] = _asked(cluster, kind, nbytes[chosen], n, apart)
    return total


def _asked(cluster: Cluster, kind: str, nbytes: Any, size: int, stride: int) -> Any:
    if kind == "send_recv":
        return cluster.p2p_time_s(nbytes, stride, size)
    return cluster.collective_time_s(kind, nbytes, size, stride=stride)

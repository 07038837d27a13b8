"""Bounds where ranks share cores: a stage may have all of them while others wait (``cost.pipeline.shared_cores``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees

if TYPE_CHECKING:
    from autoplan.hardware import AnyCluster

__all__ = ["relieved_s"]


def relieved_s(
    cluster: AnyCluster,
    degrees: Degrees,
    bound_s: float,
    work_s: Callable[[Degrees], float] = lambda degrees: 0.0,
) -> float:
    """A bound of a step, from one that holds where each rank has cores of its own, and from what the mean rank works:
    all cores at work do no more than that."""
    share = float(cluster.relief(cluster.world_size / degrees.pp))
    return bound_s if share == 1 else max(bound_s * share, work_s(degrees))

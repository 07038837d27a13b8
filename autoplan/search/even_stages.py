"""Stages of equal work: how a chain is cut for schedules whose stages are not searched one by one.

Cuts start where the running sum of FLOPs says, and single units then move between neighbours while that
lowers the work of the busiest rank, or else evens the stages. The cut depends on the model alone, not on
layouts or degrees, so that a bound and the price that it bounds speak of the same stages.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from autoplan.plan.schedule import Schedule, ranks_of_stages

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph

__all__ = ["even_stages", "unit_weights"]


def unit_weights(graph: ModelGraph) -> tuple[float, ...]:
    """FLOPs of each unit of the chain, both passes, as shares of all."""
    flops = {kind: float(block.flops_forward + block.flops_backward) for kind, block in graph.kinds.items()}
    total = sum(flops[unit.kind] for unit in graph.units)
    if not total:
        return (1 / len(graph.units),) * len(graph.units)
    return tuple(flops[unit.kind] / total for unit in graph.units)


@lru_cache(maxsize=512)
def even_stages(
    weights: tuple[float, ...], schedule: Schedule, pp: int, vpp: int
) -> tuple[tuple[int, int], ...]:
    """The range of units of each of ``pp · vpp`` stages, none of them empty."""
    count, units = pp * vpp, len(weights)
    before = [0.0, *accumulate(weights)]
    cuts = [0]
    for stage in range(1, count):
        wanted = before[-1] * stage / count
        place = bisect_left(before, wanted)
        if place and wanted - before[place - 1] < before[min(place, units)] - wanted:
            place -= 1
        cuts.append(min(max(place, cuts[-1] + 1), units - (count - stage)))
    cuts.append(units)
    _settle(cuts, before, ranks_of_stages(schedule, pp, vpp))
    return tuple(pairwise(cuts))


def _settle(cuts: list[int], before: Sequence[float], ranks: Sequence[int]) -> None:
    """Move cuts by one unit while that helps."""
    best = _unevenness(cuts, before, ranks)
    for _ in range(len(before)):
        moved = False
        for index in range(1, len(cuts) - 1):
            for step in (-1, 1):
                if not cuts[index - 1] < cuts[index] + step < cuts[index + 1]:
                    continue
                cuts[index] += step
                now = _unevenness(cuts, before, ranks)
                if now < best:
                    best, moved = now, True
                else:
                    cuts[index] -= step
        if not moved:
            return


def _unevenness(cuts: Sequence[int], before: Sequence[float], ranks: Sequence[int]) -> tuple[float, float]:
    """The work of the busiest rank, and the sum of the squares of the stages' work."""
    work = [0.0] * (max(ranks) + 1)
    squares = 0.0
    for (start, stop), rank in zip(pairwise(cuts), ranks, strict=True):
        own = before[stop] - before[start]
        work[rank] += own
        squares += own * own
    return round(max(work), 9), round(squares, 9)

"""Tied parameters: held, gathered and stepped once in a stage; summed once a step between stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.cost.times import NO_TIME
from autoplan.cost.unit import UnitCost

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import Cluster
    from autoplan.plan import Precision

__all__ = ["shared_parameters", "tied_s"]

_NOTHING = UnitCost(NO_TIME, 0.0, 0.0, 0.0, 0.0, 0.0, {})


def shared_parameters(
    graph: ModelGraph, costs: Mapping[str, UnitCost], start: int, stop: int
) -> UnitCost | None:
    """What the units from ``start`` to ``stop`` count more than once, or None.

    Only ``parameters`` and ``trainable`` of the result are meant.
    """
    kind_of = {unit.name: unit.kind for unit in graph.units[start:stop]}
    total = _NOTHING
    for group in graph.tied:
        here = [(unit, value) for unit, value in group if unit in kind_of]
        for unit, value in here[1:]:
            held = costs[kind_of[unit]].sizes[value]
            grows = graph.kinds[kind_of[unit]].values[value].requires_grad
            total = replace(
                total,
                parameters=total.parameters + held,
                trainable=total.trainable + (held if grows else 0.0),
            )
    return total if total is not _NOTHING else None


def tied_s(
    graph: ModelGraph,
    costs: Mapping[str, UnitCost],
    ranges: Sequence[tuple[int, int]],
    degrees: Degrees,
    precision: Precision,
    cluster: Cluster,
) -> list[float]:
    """For each stage (a range of the chain), seconds to sum the gradients it shares with other stages."""
    seconds = [0.0] * len(ranges)
    index = {unit.name: position for position, unit in enumerate(graph.units)}
    for group in graph.tied:
        positions = [index[unit] for unit, _ in group]
        homes = [s for s, (start, stop) in enumerate(ranges) if any(start <= i < stop for i in positions)]
        if len(homes) > 1:
            unit, value = group[0]
            held = costs[graph.units[index[unit]].kind].sizes[value] * precision.master_bytes / degrees.fsdp
            stride = degrees.pp_stride * max(1, (homes[-1] - homes[0]) // (len(homes) - 1))
            for stage in homes:
                seconds[stage] += cluster.collective_time_s("all_reduce", held, len(homes), stride=stride)
    return seconds

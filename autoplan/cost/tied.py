"""Tied parameters: held, gathered and stepped once in a stage; summed once a step between stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.cost.unit import UnitCost

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Precision

__all__ = ["held_before", "kinds_once", "stage_units", "tied_s", "without_values"]


def stage_units(graph: ModelGraph, costs: Mapping[str, UnitCost], start: int, stop: int) -> list[UnitCost]:
    """The units of a stage; where several hold one parameter, all but the first do without it."""
    found = [costs[unit.kind] for unit in graph.units[start:stop]]
    for index, values in held_before(graph, start, stop).items():
        kind = graph.units[start + index].kind
        found[index] = without_values(graph, kind, found[index], values)
    return found


def held_before(graph: ModelGraph, start: int, stop: int) -> dict[int, tuple[str, ...]]:
    """By place in a stage, the parameters of a unit that another unit of the stage holds for it."""
    if not graph.tied:
        return {}
    found: dict[int, tuple[str, ...]] = {}
    position = {unit.name: index for index, unit in enumerate(graph.units[start:stop])}
    for group in graph.tied:
        here = [(position[unit], value) for unit, value in group if unit in position]
        for index, value in here[1:]:
            found[index] = (*found.get(index, ()), value)
    return found


def without_values(graph: ModelGraph, kind: str, cost: UnitCost, values: Iterable[str]) -> UnitCost:
    """``cost``, of a unit of ``kind``, when others hold some parameters for it."""
    for value in values:
        cost = _without(cost, value, graph.kinds[kind].values[value].requires_grad)
    return cost


def kinds_once(graph: ModelGraph, costs: Mapping[str, UnitCost]) -> dict[str, UnitCost]:
    """The same by block kind, for a chain that is one stage, as far as kinds that occur once are concerned."""
    found, kind_of = dict(costs), {unit.name: unit.kind for unit in graph.units}
    for group in graph.tied:
        for unit, value in group[1:]:
            kind = kind_of[unit]
            if graph.count(kind) == 1:
                found[kind] = _without(found[kind], value, graph.kinds[kind].values[value].requires_grad)
    return found


def _without(cost: UnitCost, value: str, trains: bool) -> UnitCost:
    held = cost.sizes[value]
    return replace(
        cost, parameters=cost.parameters - held, trainable=cost.trainable - (held if trains else 0.0)
    )


def tied_s(
    graph: ModelGraph,
    costs: Mapping[str, UnitCost],
    ranges: Sequence[tuple[int, int]],
    degrees: Degrees,
    precision: Precision,
    cluster: AnyCluster,
) -> list[float]:
    """For each stage (a range of the chain), seconds to sum the gradients that its rank shares with other ranks."""
    seconds, ranks = [0.0] * len(ranges), degrees.stage_ranks
    index = {unit.name: position for position, unit in enumerate(graph.units)}
    for group in graph.tied:
        positions = [index[unit] for unit, _ in group]
        first: dict[int, int] = {}  # of each rank, its first stage that has a copy
        for stage, (start, stop) in enumerate(ranges):
            if any(start <= i < stop for i in positions):
                first.setdefault(ranks[stage], stage)
        homes = sorted(first)
        if len(homes) > 1:
            unit, value = group[0]
            held = (
                costs[graph.units[index[unit]].kind].sizes[value]
                * precision.master_bytes
                / degrees.shard_ranks
            )
            stride = degrees.pp_stride * max(1, (homes[-1] - homes[0]) // (len(homes) - 1))
            for stage in first.values():
                seconds[stage] += cluster.collective_time_s("all_reduce", held, len(homes), stride=stride)
    return seconds

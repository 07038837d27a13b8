"""Parameters that several units of one stage share: held, gathered and stepped once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from autoplan.cost.times import NO_TIME
from autoplan.cost.unit import UnitCost

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph

__all__ = ["shared_parameters"]

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

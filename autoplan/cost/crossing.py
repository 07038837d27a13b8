"""What a pipeline cut must send: the chain values made before it that are needed after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoplan.cost.convert import local_bytes
from autoplan.graph.boundary import boundary_layout

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph, Value
    from autoplan.graph.layout import Layout

__all__ = ["crossing_bytes"]


def crossing_bytes(graph: ModelGraph, boundary: Layout, degree: int) -> tuple[float, ...]:
    """Bytes that a rank sends forward if the chain is cut after unit i, for each i but the last.

    What is given to every stage (``batch.*``) or recomputed there (``free.*``) is not sent. The
    gradients that come back take as much: what carries none is small.
    """
    made: dict[str, tuple[int, Value]] = {}
    last_use: dict[str, int] = {}
    for index, unit in enumerate(graph.units):
        block = graph.kinds[unit.kind]
        for name in unit.arguments:
            last_use[name] = index
        for name, output in zip(unit.results, block.outputs, strict=True):
            made[name] = (index, block.values[output])
    totals = [0.0] * (len(graph.units) - 1)
    for name, (first, value) in made.items():
        size = local_bytes(value, boundary_layout(value, boundary, degree), degree)
        for index in range(first, last_use.get(name, first)):
            totals[index] += size
    return tuple(totals)

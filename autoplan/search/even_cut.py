"""An even cut of a chain by what its stages and ranks hold, as tables that follow from the model and the cut alone.

A *form* is a kind of unit, less the parameters that another unit of its stage holds for it. Figures of stages are then
products of these tables and of a few figures of forms, for many candidates at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoplan.cost.tied import held_before, without_values
from autoplan.cost.unit import UnitCost
from autoplan.plan.schedule import Schedule, ranks_of_stages
from autoplan.search.even_stages import even_stages

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph

__all__ = ["EvenCut", "Turns"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Form = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Turns:
    """Which units of each rank make something again first: the first unit of each of its stages, then the second of
    each.

    Args:
        units: by rank, (stage of the rank, unit of the chain) in that order.
        made: how many of each form the first n of a rank are, by its stages; shape (ranks, n, stages a rank, forms).
        some: whether there are any in any of them; shape (ranks, n, forms).
    """

    units: tuple[tuple[tuple[int, int], ...], ...]
    made: Floats
    some: Flags

    def first(self, ranks: int) -> Turns:
        """Those of the first ranks."""
        return Turns(self.units[:ranks], self.made[:ranks], self.some[:ranks])


@dataclass(frozen=True, slots=True)
class EvenCut:
    """The stages of a schedule on ``pp`` ranks.

    Args:
        ranges: the range of the chain that each stage runs.
        stages: of each rank, its stages in the order of depth; shape (ranks, stages a rank).
        forms: (kind, parameters held elsewhere).
        form_of: of each unit of the chain, the index of its form.
        counts: units of each form in each stage; shape (stages, forms).
        of_kind: units of each of the model's kinds in each stage; shape (stages, kinds).
        neighbours: whether a unit of one form follows one of another in a stage; shape (ranks, forms, forms).
        alone: whether a unit of a form is all of a stage; shape (ranks, forms).
    """

    ranges: tuple[tuple[int, int], ...]
    stages: NDArray[np.intp]
    forms: tuple[Form, ...]
    form_of: tuple[int, ...]
    counts: Floats
    of_kind: Floats
    neighbours: Flags
    alone: Flags

    @classmethod
    def of(
        cls, graph: ModelGraph, weights: tuple[float, ...], schedule: Schedule, pp: int, vpp: int
    ) -> EvenCut:
        """``weights``: those of ``unit_weights``."""
        ranges = even_stages(weights, schedule, pp, vpp)
        homes = np.array(ranks_of_stages(schedule, pp, vpp))
        found = [form for ends in ranges for form in _forms(graph, *ends)]
        forms = {form: index for index, form in enumerate(dict.fromkeys(found))}
        form_of = tuple(forms[form] for form in found)
        counts = np.zeros((len(ranges), len(forms)))
        neighbours = np.zeros((pp, len(forms), len(forms)), dtype=bool)
        alone = np.zeros((pp, len(forms)), dtype=bool)
        for stage, (start, stop) in enumerate(ranges):
            held = list(form_of[start:stop])
            np.add.at(counts[stage], held, 1)
            neighbours[homes[stage], held[:-1], held[1:]] = True
            alone[homes[stage], held[0]] |= len(held) == 1
        stages = np.argsort(homes, kind="stable").reshape(pp, vpp)
        kinds = np.array([[kind == name for name in graph.kinds] for kind, _ in forms], dtype=float)
        return cls(ranges, stages, tuple(forms), form_of, counts, counts @ kinds, neighbours, alone)

    @property
    def of_rank(self) -> Floats:
        """Units of each form on each rank; shape (ranks, forms)."""
        return self.counts[self.stages].sum(axis=1)

    def units(self, graph: ModelGraph, costs: Mapping[str, UnitCost]) -> list[UnitCost]:
        """A unit of each form."""
        return [without_values(graph, kind, costs[kind], values) for kind, values in self.forms]

    def largest_pair(self, sizes: Floats) -> Floats:
        """Of each rank, the most that two neighbours in a stage add up to, or the one unit of a stage."""
        both = np.where(self.neighbours, sizes[:, None] + sizes, 0.0).max(axis=(1, 2))
        return np.maximum(both, np.where(self.alone, sizes, 0.0).max(axis=1))

    def turns(self, may: Sequence[bool]) -> Turns:
        """The order in which ranks make units again of the forms that ``may``."""
        units = []
        for stages in self.stages:
            found = []
            for place, stage in enumerate(stages):
                able = [unit for unit in range(*self.ranges[stage]) if may[self.form_of[unit]]]
                found += [(turn, place, unit) for turn, unit in enumerate(able)]
            units.append(tuple((place, unit) for _, place, unit in sorted(found)))
        pp, vpp = self.stages.shape
        made = np.zeros((pp, max(map(len, units)) + 1, vpp, len(self.forms)))
        for rank, order in enumerate(units):
            for turn, (place, unit) in enumerate(order, start=1):
                made[rank, turn:, place, self.form_of[unit]] += 1
        return Turns(tuple(units), made, made.max(axis=2) > 0)


def _forms(graph: ModelGraph, start: int, stop: int) -> list[Form]:
    elsewhere = held_before(graph, start, stop)
    return [(unit.kind, elsewhere.get(place, ())) for place, unit in enumerate(graph.units[start:stop])]

"""The layouts that the outer search may choose from, for one micro-batch size and one tp degree.

The layout question has one answer for each time that it is asked; it is asked a few times. What passes
between units may be whole (R) or cut along its second dim (S(1), the sequence of a transformer); and
if the fastest layouts leave parameters whole that could be cut, they are asked for again with each
byte of a parameter charged what it costs to gather it twice and scatter it once, as ZeRO-3 does, over
the slowest level of the cluster.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from autoplan.cost.crossing import crossing_bytes
from autoplan.cost.step import Assignment
from autoplan.cost.storages import Storages
from autoplan.cost.times import Times
from autoplan.cost.unit import Policies, StrategiesOf, UnitCost, unit_cost
from autoplan.graph.layout import REPLICATE, Layout
from autoplan.search.keep_choice import policies
from autoplan.search.layout_problem import TIE_BREAK_S, LayoutsOf
from autoplan.search.optimist import usable_pieces
from autoplan.search.solved_layouts import Solved, boundaries, solved_layouts, tied_kinds, tied_together

if TYPE_CHECKING:
    from autoplan.graph.ir import Block, ModelGraph
    from autoplan.hardware import Cluster

__all__ = ["LayoutChoice", "layout_choices"]

_WHOLE = 1.05  # parameters are as good as cut when a rank holds at most this many times its share


@dataclass(frozen=True, slots=True)
class LayoutChoice:
    """A layout for everything, and what it costs.

    Args:
        boundary: of what passes between units.
        layouts: strategy names of ops and layouts of parameters, by block kind; empty where tp is 1.
        costs: the price of a unit of each kind.
        sent_bytes: what a pipeline cut after each unit but the last sends.
        graph: what the costs are of: one cp rank's part of the model (``graph.cut``), or all of it.
        cp_layouts: strategy names of ops on the cp axis, by block kind; empty where cp is 1.
        cp_order: which pieces of what cp cuts a rank has (see ``Plan``).
        policies: what units may do again, by block kind and name (``costs`` price them).
        others: where the cluster has several types of device, ``costs`` on all but the first (of which those are).
        slack: by no more than this share is any block faster under other layouts with this boundary.
    """

    boundary: Layout
    layouts: Mapping[str, Mapping[str, str]]
    costs: Mapping[str, UnitCost]
    sent_bytes: tuple[float, ...]
    graph: ModelGraph
    cp_layouts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    cp_order: Literal["plain", "zigzag"] = "plain"
    policies: Mapping[str, Policies] = field(default_factory=dict)
    slack: float = 0.0
    others: tuple[Mapping[str, UnitCost], ...] = ()

    @property
    def costs_on(self) -> tuple[Mapping[str, UnitCost], ...]:
        """``costs`` on each type of device."""
        return (self.costs, *self.others)

    def priced_on(
        self, clusters: Sequence[Cluster], degree: int, strategies_of: StrategiesOf
    ) -> LayoutChoice:
        """The same choice, with its costs on each of ``clusters``."""
        first, *others = (
            {
                kind: unit_cost(
                    block,
                    self.layouts.get(kind, {}),
                    self.boundary,
                    degree,
                    cluster,
                    strategies_of,
                    self.policies.get(kind),
                )
                for kind, block in self.graph.kinds.items()
            }
            for cluster in clusters
        )
        return replace(self, costs=first, others=tuple(others))

    def used(self, stages: Sequence[Assignment]) -> dict[str, dict[str, dict[str, str]]]:
        """The policies that ``stages`` name, by block kind."""
        units = self.graph.units
        named = sorted(
            {(units[index].kind, way) for stage in stages for index, way in stage.policies.items()}
        )
        found: dict[str, dict[str, dict[str, str]]] = {}
        for kind, way in named:
            found.setdefault(kind, {})[way] = dict(self.policies[kind][way])
        return found

    @property
    def decided(self) -> tuple[object, ...]:
        """All of it but what it costs."""
        return (
            self.boundary,
            *(dict(part) for part in (self.layouts, self.cp_layouts, self.policies)),
            self.cp_order,
        )


def layout_choices(
    graph: ModelGraph,
    degree: int,
    cluster: Cluster,
    strategies_of: StrategiesOf,
    layouts_of: LayoutsOf,
    known: dict[Hashable, Any] | None = None,
) -> tuple[LayoutChoice, ...]:
    """The distinct answers, the fastest for a whole boundary first.

    ``known``: what was found for blocks of this model on this cluster before, under the same strategies and layouts;
    more is added. Graphs that an ep axis cuts have most of their blocks in common.
    """
    known = {} if known is None else known
    if degree == 1:
        return (_priced(graph, {}, REPLICATE, 1, cluster, strategies_of, known),)
    tied = tied_kinds(graph)
    gathered_s = _gathered_byte_s(cluster)
    choices = []
    for boundary in boundaries(graph, degree):

        def solved(blocks: Sequence[Block], parameter_byte_s: float, boundary: Layout = boundary) -> Solved:
            asked = boundary, degree, cluster, strategies_of, layouts_of
            return solved_layouts(blocks, tied, *asked, parameter_byte_s, known)

        groups = tied_together(graph, tied)
        fastest = [solved(blocks, TIE_BREAK_S) for blocks in groups]
        leanest = [
            solved(blocks, gathered_s) if _leaves_whole(blocks, found.names, degree, strategies_of) else found
            for blocks, found in zip(groups, fastest, strict=True)
        ]
        for parts in (fastest, leanest) if leanest != fastest else (fastest,):
            layouts = {kind: names for part in parts for kind, names in part.names.items()}
            choice = _priced(graph, layouts, boundary, degree, cluster, strategies_of, known)
            choices.append(replace(choice, slack=max(part.slack for part in parts)))
    return tuple(choices)


def _leaves_whole(
    blocks: Sequence[Block], names: Mapping[str, Mapping[str, str]], degree: int, strategies_of: StrategiesOf
) -> bool:
    """True if a rank holds notably more than its share of the parameters that ops can use in pieces."""
    held = total = 0
    for block in blocks:
        for name in sorted(usable_pieces(block, degree, strategies_of)):
            shape = block.values[name].shape
            held += math.prod(Layout.parse(names[block.kind][name]).local_shape(shape, degree))
            total += math.prod(shape)
    return held * degree > _WHOLE * total


def _gathered_byte_s(cluster: Cluster) -> float:
    """Seconds for one byte, two gathers and a scatter, over every rank of the cluster."""
    big = 1e9
    return 3 * cluster.collective_time_s("all_gather", big, cluster.world_size) / big


def _priced(
    graph: ModelGraph,
    layouts: Mapping[str, Mapping[str, str]],
    boundary: Layout,
    degree: int,
    cluster: Cluster,
    strategies_of: StrategiesOf,
    known: dict[Hashable, Any],
) -> LayoutChoice:
    costs: dict[str, UnitCost] = {}
    chosen: dict[str, Policies] = {}
    for kind, block in graph.kinds.items():
        names = layouts.get(kind, {})
        key = "cost", id(block), boundary, degree, tuple(names.items())
        if key not in known:
            found: list[Policies] = []

            def note(
                block: Block, storages: Storages, times: Times, found: list[Policies] = found
            ) -> Policies:
                found.append(policies(block, storages, times, cluster))
                return found[0]

            cost = unit_cost(block, names, boundary, degree, cluster, strategies_of, note)
            known[key] = block, cost, found[0]
        _, costs[kind], chosen[kind] = known[key]
    sent = crossing_bytes(graph, boundary, degree)
    return LayoutChoice(boundary, layouts, costs, sent, graph, policies=chosen)

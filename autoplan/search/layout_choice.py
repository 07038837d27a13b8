"""The layouts that the outer search may choose from, for one micro-batch size and one tp degree.

The layout question has one answer for each time that it is asked; it is asked a few times. What passes
between units may be whole (R) or cut along its second dim (S(1), the sequence of a transformer); and
if the fastest layouts leave parameters whole that could be cut, they are asked for again with each
byte of a parameter charged what it costs to gather it twice and scatter it once, as ZeRO-3 does, over
the slowest level of the cluster.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from autoplan.cost.crossing import crossing_bytes
from autoplan.cost.step import Assignment
from autoplan.cost.storages import Storages
from autoplan.cost.times import Times
from autoplan.cost.unit import Policies, StrategiesOf, UnitCost, unit_cost
from autoplan.graph.boundary import boundary_layout
from autoplan.graph.layout import REPLICATE, Layout, shard
from autoplan.search.keep_choice import policies
from autoplan.search.layout_elimination import nearly, price_s
from autoplan.search.layout_ilp import solve_layouts
from autoplan.search.layout_problem import TIE_BREAK_S, LayoutsOf, layout_problem
from autoplan.search.optimist import usable_pieces

if TYPE_CHECKING:
    from autoplan.graph.ir import Block, ModelGraph
    from autoplan.hardware import Cluster

__all__ = ["LayoutChoice", "layout_choices", "least_layouts_s"]

_Names = dict[str, dict[str, str]]
_SEQUENCE = shard(1)
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
    tied = _tied_kinds(graph)
    gathered_s = _gathered_byte_s(cluster)
    choices = []
    for boundary in _boundaries(graph, degree):

        def solved(blocks: Sequence[Block], parameter_byte_s: float, boundary: Layout = boundary) -> _Solved:
            asked = boundary, degree, cluster, strategies_of, layouts_of
            return _solved(blocks, tied, *asked, parameter_byte_s, known)

        groups = _tied_together(graph, tied)
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


def least_layouts_s(
    graph: ModelGraph,
    degree: int,
    cluster: Cluster,
    strategies_of: StrategiesOf,
    layouts_of: LayoutsOf,
    known: dict[Hashable, Any],
) -> float:
    """Seconds that both passes of all units compute and wait on ``degree`` ranks of tp at least, whatever their layouts;
    ``known`` as for ``layout_choices``."""
    tied, found = _tied_kinds(graph), []
    for boundary in _boundaries(graph, degree):
        total_s = 0.0
        for blocks in _tied_together(graph, tied):
            asked = boundary, degree, cluster, strategies_of, layouts_of
            solved = _solved(blocks, tied, *asked, TIE_BREAK_S, known)
            held = sum(_held_bytes(block) for block in blocks)
            least_s = max(solved.price_s * (1 - solved.slack) - TIE_BREAK_S * held, 0.0)
            total_s += min(graph.count(block.kind) for block in blocks) * least_s
        found.append(total_s)
    return min(found)


def _held_bytes(block: Block) -> float:
    """No rank keeps more of the block's values."""
    return block.saved_bytes + sum(block.values[name].nbytes for name in block.parameters)


@dataclass(frozen=True, slots=True)
class _Solved:
    """The fastest layouts of some blocks, their price, and by what share of it a faster one may be below."""

    blocks: tuple[Block, ...]
    names: _Names
    price_s: float
    slack: float


def _solved(
    blocks: Sequence[Block],
    tied: Sequence[Sequence[tuple[str, str]]],
    boundary: Layout,
    degree: int,
    cluster: Cluster,
    strategies_of: StrategiesOf,
    layouts_of: LayoutsOf,
    parameter_byte_s: float,
    known: dict[Hashable, Any],
) -> _Solved:
    key = "layouts", tuple(map(id, blocks)), boundary, degree, parameter_byte_s
    if key not in known:
        problem = layout_problem(
            blocks, tied, boundary, degree, cluster, strategies_of, layouts_of, parameter_byte_s
        )
        names: _Names = {block.kind: {} for block in blocks}
        # None where too many values are alive at once
        chosen, slack = nearly(problem) or (solve_layouts(problem), 0.0)
        for node, taken in zip(problem.nodes, chosen, strict=True):
            names[node.block][node.name] = node.options[taken].name
        # with the blocks, so that their ids stay theirs
        known[key] = _Solved(tuple(blocks), names, price_s(problem, chosen), slack)
    return known[key]


def _leaves_whole(blocks: Sequence[Block], names: _Names, degree: int, strategies_of: StrategiesOf) -> bool:
    """True if a rank holds notably more than its share of the parameters that ops can use in pieces."""
    held = total = 0
    for block in blocks:
        for name in sorted(usable_pieces(block, degree, strategies_of)):
            shape = block.values[name].shape
            held += math.prod(Layout.parse(names[block.kind][name]).local_shape(shape, degree))
            total += math.prod(shape)
    return held * degree > _WHOLE * total


def _boundaries(graph: ModelGraph, degree: int) -> Iterator[Layout]:
    yield REPLICATE
    passed = [
        block.values[name] for block in graph.kinds.values() for name in (*block.inputs, *block.outputs)
    ]
    if any(boundary_layout(value, _SEQUENCE, degree) == _SEQUENCE for value in passed):
        yield _SEQUENCE


def _gathered_byte_s(cluster: Cluster) -> float:
    """Seconds for one byte, two gathers and a scatter, over every rank of the cluster."""
    big = 1e9
    return 3 * cluster.collective_time_s("all_gather", big, cluster.world_size) / big


def _tied_kinds(graph: ModelGraph) -> list[tuple[tuple[str, str], ...]]:
    """Groups of (block kind, parameter) that are one tensor."""
    kind_of = {unit.name: unit.kind for unit in graph.units}
    return [tuple(dict.fromkeys((kind_of[unit], value) for unit, value in group)) for group in graph.tied]


def _tied_together(graph: ModelGraph, tied: Sequence[Sequence[tuple[str, str]]]) -> list[list[Block]]:
    """Blocks in groups that share no parameter: with their boundary fixed, nothing else joins them."""
    group_of = {kind: index for index, kind in enumerate(graph.kinds)}
    for members in tied:
        joined = {group_of[kind] for kind, _ in members}
        group_of = {kind: min(joined) if group in joined else group for kind, group in group_of.items()}
    groups: dict[int, list[Block]] = {}
    for kind, group in group_of.items():
        groups.setdefault(group, []).append(graph.kinds[kind])
    return list(groups.values())


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

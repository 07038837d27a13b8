"""The fastest layouts of blocks that must be laid out together, solved once for all who ask."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoplan.cost.unit import StrategiesOf
from autoplan.graph.boundary import boundary_layout
from autoplan.graph.layout import REPLICATE, Layout, shard
from autoplan.search.layout_elimination import nearly
from autoplan.search.layout_ilp import solve_layouts
from autoplan.search.layout_problem import LayoutsOf, layout_problem

if TYPE_CHECKING:
    from autoplan.graph.ir import Block, ModelGraph
    from autoplan.hardware import Cluster

__all__ = ["Solved", "Tied", "boundaries", "solved_layouts", "tied_kinds", "tied_together"]

_Names = dict[str, dict[str, str]]
_SEQUENCE = shard(1)

Tied = Sequence[Sequence[tuple[str, str]]]
"""Groups of (block kind, parameter) that are one tensor."""


@dataclass(frozen=True, slots=True)
class Solved:
    """The fastest layouts of some blocks, and by what share of their price a faster one may be below."""

    blocks: tuple[Block, ...]
    names: _Names
    slack: float


def solved_layouts(
    blocks: Sequence[Block],
    tied: Tied,
    boundary: Layout,
    degree: int,
    cluster: Cluster,
    strategies_of: StrategiesOf,
    layouts_of: LayoutsOf,
    parameter_byte_s: float,
    known: dict[Hashable, Any],
) -> Solved:
    """The answer for ``blocks``, which ``tied`` parameters join; ``known`` as for ``layout_choices``."""
    key = "layouts", tuple(map(id, blocks)), boundary, degree, parameter_byte_s
    if key not in known:
        problem = layout_problem(
            blocks, tied, boundary, degree, cluster, strategies_of, layouts_of, parameter_byte_s, known
        )
        names: _Names = {block.kind: {} for block in blocks}
        # None where too many values are alive at once
        chosen, slack = nearly(problem, known) or (solve_layouts(problem), 0.0)
        for node, taken in zip(problem.nodes, chosen, strict=True):
            names[node.block][node.name] = node.options[taken].name
        # with the blocks, so that their ids stay theirs
        known[key] = Solved(tuple(blocks), names, slack)
    return known[key]


def boundaries(graph: ModelGraph, degree: int) -> Iterator[Layout]:
    """The layouts that may pass between units."""
    yield REPLICATE
    passed = [
        block.values[name] for block in graph.kinds.values() for name in (*block.inputs, *block.outputs)
    ]
    if any(boundary_layout(value, _SEQUENCE, degree) == _SEQUENCE for value in passed):
        yield _SEQUENCE


def tied_kinds(graph: ModelGraph) -> list[tuple[tuple[str, str], ...]]:
    """Groups of (block kind, parameter) that are one tensor."""
    kind_of = {unit.name: unit.kind for unit in graph.units}
    return [tuple(dict.fromkeys((kind_of[unit], value) for unit, value in group)) for group in graph.tied]


def tied_together(graph: ModelGraph, tied: Tied) -> list[list[Block]]:
    """Blocks in groups that share no parameter: with their boundary fixed, nothing else joins them."""
    group_of = {kind: index for index, kind in enumerate(graph.kinds)}
    for members in tied:
        joined = {group_of[kind] for kind, _ in members}
        group_of = {kind: min(joined) if group in joined else group for kind, group in group_of.items()}
    groups: dict[int, list[Block]] = {}
    for kind, group in group_of.items():
        groups.setdefault(group, []).append(graph.kinds[kind])
    return list(groups.values())

"""How a context-parallel axis may cut a model: the cheapest layouts for each way to cut its attention.

The axis cuts first, alone, by the same integer program as tensor parallelism after it. What passes between units is
cut along its second dim (the sequence of a transformer); parameters stay whole. Attention either keeps its rows of
queries, and gathers keys and values or passes them round the ranks, or trades the cut of the sequence for one of heads
(Ulysses): which of these leaves the tensor-parallel axis more is for the outer search to say, so each is asked for.
Where rows of causal attention are cut, the sequence is in zigzag order if it divides so: that sends no more, and all
ranks have the same work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from autoplan.graph.boundary import boundary_layout
from autoplan.graph.ir import Block, Op, OpKind
from autoplan.graph.layout import Layout, shard
from autoplan.graph.strategy import Strategy
from autoplan.search.layout_ilp import solve_layouts
from autoplan.search.layout_problem import TIE_BREAK_S, layout_problem

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import Cluster

__all__ = ["SEQUENCE", "SequenceChoice", "cuts_sequence", "sequence_choices"]

SEQUENCE = shard(1)
_ROWS, _RING = "cut q", "ring q"
_Names = dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True)
class SequenceChoice:
    """Strategy names of ops by block kind, and which pieces of what is cut a rank has (see ``Plan.cp_order``)."""

    layouts: _Names
    order: Literal["plain", "zigzag"] = "plain"


def cuts_sequence(graph: ModelGraph, degree: int) -> bool:
    """Whether what passes between units has a second dim that ``degree`` ranks can share."""
    passed = [
        block.values[name] for block in graph.kinds.values() for name in (*block.inputs, *block.outputs)
    ]
    return any(boundary_layout(value, SEQUENCE, degree) == SEQUENCE for value in passed)


def sequence_choices(
    graph: ModelGraph, degree: int, stride: int, cluster: Cluster
) -> tuple[SequenceChoice, ...]:
    """The distinct ways to cut ``graph`` among ``degree`` ranks ``stride`` apart: rows with gathered keys, rows in a
    ring, heads."""
    from autoplan.graph.axes import sequence_strategies, stored_layout

    def stored(block: Block, name: str, size: int) -> tuple[Layout, ...]:
        return (stored_layout(block, name),)

    found: list[_Names] = []
    for rows in (True, False):

        def allowed(block: Block, op: Op, size: int, rows: bool = rows) -> tuple[Strategy, ...]:
            known = sequence_strategies(block, op, size)
            return _attending(known, rows) if op.kind is OpKind.ATTENTION else known

        names: _Names = {}
        for block in graph.kinds.values():
            problem = layout_problem(
                [block], (), SEQUENCE, degree, cluster, allowed, stored, TIE_BREAK_S, stride=stride
            )
            ops = {op.name for op in block.ops}
            names[block.kind] = {
                node.name: node.options[taken].name
                for node, taken in zip(problem.nodes, solve_layouts(problem), strict=True)
                if node.name in ops
            }
        if names not in found:
            found.append(names)
        if rows and (ring := _in_a_ring(graph, names, degree)) is not None:
            found.append(ring)
    return tuple(SequenceChoice(names, _order(graph, names, degree)) for names in found)


def _in_a_ring(graph: ModelGraph, names: _Names, degree: int) -> _Names | None:
    """The same with a ring for each attention that cuts rows, if there is one and its keys can go round: what it takes
    and gives lies alike."""
    from autoplan.graph.axes import sequence_strategies

    ring = {kind: dict(ways) for kind, ways in names.items()}
    for kind, block in graph.kinds.items():
        for op in block.ops:
            if op.kind is OpKind.ATTENTION and ring[kind].get(op.name) == _ROWS:
                known = {strategy.name for strategy in sequence_strategies(block, op, degree)}
                ring[kind][op.name] = _RING if _RING in known else _ROWS
    return ring if ring != names else None


def _order(graph: ModelGraph, names: _Names, degree: int) -> Literal["plain", "zigzag"]:
    """Zigzag where rows of causal attention are cut and everything that is cut can be cut twice as fine."""
    from autoplan.graph.axes import sequence_strategies

    uneven, fine = False, True
    for kind, block in graph.kinds.items():
        for op in block.ops:
            name = names[kind][op.name]
            uneven |= op.causal and name in (_ROWS, _RING)
            fine &= name in {strategy.name for strategy in sequence_strategies(block, op, 2 * degree)}
    return "zigzag" if uneven and fine else "plain"


def _attending(known: Sequence[Strategy], rows: bool) -> tuple[Strategy, ...]:
    """Those that cut rows of queries, or those that cut something else; all where there are none. A ring takes the
    place of the former later."""
    known = [s for s in known if s.name != _RING]
    return tuple(s for s in known if s.share and (s.name == _ROWS) == rows) or tuple(known)

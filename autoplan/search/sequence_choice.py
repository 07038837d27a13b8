"""How a context-parallel axis may cut a model: the cheapest layouts for each way to cut its attention.

The axis cuts first, alone, by the same integer program as tensor parallelism after it. What passes between units is
cut along its second dim (the sequence of a transformer); parameters stay whole. Attention either keeps its rows of
queries and gathers keys and values, or trades the cut of the sequence for one of heads (Ulysses): which of the two
leaves the tensor-parallel axis more is for the outer search to say, so each is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoplan.graph.boundary import boundary_layout
from autoplan.graph.ir import Block, Op, OpKind
from autoplan.graph.layout import Layout, shard
from autoplan.graph.strategy import Strategy
from autoplan.search.layout_ilp import solve_layouts
from autoplan.search.layout_problem import TIE_BREAK_S, layout_problem

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import Cluster

__all__ = ["SEQUENCE", "cuts_sequence", "sequence_choices"]

SEQUENCE = shard(1)
_ROWS = "cut q"
_Names = dict[str, dict[str, str]]


def cuts_sequence(graph: ModelGraph, degree: int) -> bool:
    """Whether what passes between units has a second dim that ``degree`` ranks can share, and no op draws numbers."""
    passed = [
        block.values[name] for block in graph.kinds.values() for name in (*block.inputs, *block.outputs)
    ]
    cut = any(boundary_layout(value, SEQUENCE, degree) == SEQUENCE for value in passed)
    return cut and not graph.random_ops


def sequence_choices(graph: ModelGraph, degree: int, stride: int, cluster: Cluster) -> tuple[_Names, ...]:
    """The distinct ways to cut ``graph`` among ``degree`` ranks ``stride`` apart: strategy names by block kind."""
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
                [block], (), SEQUENCE, degree, cluster, allowed, stored, TIE_BREAK_S, stride
            )
            ops = {op.name for op in block.ops}
            names[block.kind] = {
                node.name: node.options[taken].name
                for node, taken in zip(problem.nodes, solve_layouts(problem), strict=True)
                if node.name in ops
            }
        if names not in found:
            found.append(names)
    return tuple(found)


def _attending(known: Sequence[Strategy], rows: bool) -> tuple[Strategy, ...]:
    """Those that cut rows of queries, or those that cut something else; all where there are none."""
    return tuple(s for s in known if s.share and (s.name == _ROWS) == rows) or tuple(known)

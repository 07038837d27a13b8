"""The cheapest layouts of a block, as an integer program.

    o      a node: an op (its options are strategies) or a parameter (its options are layouts)
    v      a value, made by one node or entering in a given layout; c one of its readers
    x[o,s] 1 if node o takes option s
    f[v,c,F,L] 1 if v is made in layout F and reader c wants it in L
    w[v,F,L]   1 if v is converted from F to L, once for all of its readers

    minimise   Σ price[o,s] x[o,s]  +  Σ price[v,F,L] w[v,F,L]
    such that  Σ_s x[o,s] = 1                                    each node takes one option   _choose
               Σ_L f[v,c,F,L] = Σ_{s gives F} x[maker(v),s]      made in F                    _flow
               Σ_F f[v,c,F,L] = Σ_{s wants v in L} x[c,s]        wanted in L                  _flow
               w[v,F,L] ≥ f[v,c,F,L]                             for each reader c            _convert
               Σ_{s gives L} x[o,s] equal for all o of a group   tied parameters              _tie
               x ∈ {0,1}, f ≥ 0, w ≥ 0

f and w are continuous: binaries x leave them no choice. The form is Alpa's (Zheng et al., 2022, section
4.2) with its products of binaries replaced by flows, whose relaxation is tight on chains.
"""

from __future__ import annotations

from collections.abc import Sequence

from autoplan.graph.layout import Layout
from autoplan.search.layout_problem import LayoutProblem, Node, Port
from autoplan.search.sparse_program import SparseProgram, Sum

__all__ = ["solve_layouts"]

_MICROSECONDS = 1e6  # prices are scaled to be near 1
_ONE = Sum((), 1.0)
_NONE = Sum(())
_ByLayout = dict[Layout, Sum]


def solve_layouts(problem: LayoutProblem) -> list[int]:
    """The index of the option that each node takes in a cheapest solution; one thread, deterministic."""
    program = SparseProgram()
    x = _choose(program, problem.nodes)
    for port in problem.ports:
        _convert(program, problem.nodes, x, port)
    for group in problem.equal:
        _tie(program, problem.nodes, x, group)
    values = program.solve()
    return [max(range(len(row)), key=lambda s: values[row[s]]) for row in x]


def _choose(program: SparseProgram, nodes: Sequence[Node]) -> list[list[int]]:
    """One binary for each option of each node, of which one is taken."""
    x = []
    for node in nodes:
        row = [program.variable(binary=True) for _ in node.options]
        for variable, option in zip(row, node.options, strict=True):
            program.charge(_MICROSECONDS * option.price_s, Sum((variable,)))
        program.equal([Sum(tuple(row))], _ONE)
        x.append(row)
    return x


def _made(port: Port, nodes: Sequence[Node], x: Sequence[Sequence[int]]) -> _ByLayout:
    """For each layout in which a value may be made, whether it is."""
    if isinstance(port.maker, Layout):
        return {port.maker: _ONE}
    return _grouped([option.gives for option in nodes[port.maker].options], x[port.maker])


def _grouped(layouts: Sequence[Layout], variables: Sequence[int]) -> _ByLayout:
    grouped: dict[Layout, list[int]] = {}
    for layout, variable in zip(layouts, variables, strict=True):
        grouped.setdefault(layout, []).append(variable)
    return {layout: Sum(tuple(row)) for layout, row in grouped.items()}


def _convert(program: SparseProgram, nodes: Sequence[Node], x: Sequence[Sequence[int]], port: Port) -> None:
    """Charge for a value's conversions, each once however many readers want it."""
    made = _made(port, nodes, x)
    wanted = dict.fromkeys(
        (node, tuple(option.wants[position] for option in nodes[node].options))
        for node, position in port.readers
    )
    readers = [_grouped(layouts, x[node]) for node, layouts in wanted]
    if port.leaves is not None:
        readers.append({port.leaves: _ONE})
    flows: dict[tuple[Layout, Layout], list[Sum]] = {}
    for reader in readers:
        for pair, flow in _flow(program, made, reader).items():
            if port.price_s[pair] > 0:
                flows.setdefault(pair, []).append(flow)
    for pair, needed in flows.items():
        once = needed[0]
        if len(needed) > 1:
            once = Sum((program.variable(binary=False),))
            for flow in needed:
                program.at_least(once, flow)
        program.charge(_MICROSECONDS * port.price_s[pair], once)


def _flow(program: SparseProgram, made: _ByLayout, wanted: _ByLayout) -> dict[tuple[Layout, Layout], Sum]:
    """Whether a value is made in one layout and wanted in the other, for each pair of them."""
    if len(made) == 1:
        source = next(iter(made))
        return {(source, layout): wants for layout, wants in wanted.items()}
    if len(wanted) == 1:
        target = next(iter(wanted))
        return {(layout, target): gives for layout, gives in made.items()}
    flow = {(src, dst): Sum((program.variable(binary=False),)) for src in made for dst in wanted}
    for src, gives in made.items():
        program.equal([flow[src, dst] for dst in wanted], gives)
    for dst, wants in wanted.items():
        program.equal([flow[src, dst] for src in made], wants)
    return flow


def _tie(
    program: SparseProgram, nodes: Sequence[Node], x: Sequence[Sequence[int]], group: Sequence[int]
) -> None:
    """Parameters that are one tensor are stored in one layout."""
    rows = [_grouped([option.gives for option in nodes[index].options], x[index]) for index in group]
    for layout in dict.fromkeys(layout for row in rows for layout in row):
        for row in rows[1:]:
            program.equal([row.get(layout, _NONE)], rows[0].get(layout, _NONE))

"""The layout question of some blocks, stripped to what an integer program needs.

Ops and parameters become *nodes* that pick one of their *options*; inputs, buffers and outputs have
one layout. What remains of a value is who makes it, in which layouts, and who wants it in which.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autoplan.cost.compute import op_times
from autoplan.cost.convert import conversion_times, local_bytes
from autoplan.cost.unit import StrategiesOf, saved_bytes
from autoplan.graph.boundary import boundary_layout
from autoplan.graph.ir import Block, Op, Value
from autoplan.graph.layout import REPLICATE, Layout

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = ["LayoutProblem", "LayoutsOf", "Node", "Option", "Port", "layout_problem", "problem_of"]

TIE_BREAK_S = 1e-15
"""Seconds charged for a byte that a rank keeps, so that of equally fast layouts the smaller wins: a
gigabyte weighs a microsecond."""

LayoutsOf = Callable[[Block, str, int], Sequence[Layout]]
"""``graph.axes.value_layouts``, or a stand-in for it."""


@dataclass(frozen=True, slots=True)
class Option:
    """A strategy of an op or a layout of a parameter: its name in a plan, its own price in seconds,
    the layout of its result, and those of its inputs."""

    name: str
    price_s: float
    gives: Layout
    wants: tuple[Layout, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """An op or a parameter of a block: the values it reads, the value it makes, and its options."""

    block: str
    name: str
    reads: tuple[str, ...]
    makes: str
    options: tuple[Option, ...]


@dataclass(frozen=True, slots=True)
class Port:
    """A value of a block with who makes it and who reads it.

    Args:
        maker: the index of a node, or the layout in which the value enters the block.
        readers: pairs of a node and a position among what it reads.
        leaves: the layout in which the value must leave the block, if it does.
        price_s: seconds to convert it, both passes, by (from, to).
    """

    maker: int | Layout
    readers: tuple[tuple[int, int], ...]
    leaves: Layout | None
    price_s: Mapping[tuple[Layout, Layout], float]


@dataclass(frozen=True, slots=True)
class LayoutProblem:
    """Pick an option for every node so that nodes and conversions cost least.

    ``equal`` lists groups of nodes (tied parameters) that must give the same layout.
    """

    nodes: tuple[Node, ...]
    ports: tuple[Port, ...]
    equal: tuple[tuple[int, ...], ...] = ()

    @property
    def alone_s(self) -> float:
        """Seconds that nodes cost if each takes its cheapest option and nothing is converted."""
        return sum(min(option.price_s for option in node.options) for node in self.nodes)


def layout_problem(
    blocks: Sequence[Block],
    tied: Sequence[Sequence[tuple[str, str]]],
    boundary: Layout,
    degree: int,
    cluster: Cluster,
    strategies_of: StrategiesOf,
    layouts_of: LayoutsOf,
    parameter_byte_s: float = TIE_BREAK_S,
    known: dict[Hashable, Any] | None = None,
    stride: int = 1,
) -> LayoutProblem:
    """Set up the question for ``blocks`` together.

    Args:
        tied: groups of (block kind, parameter) that are one tensor.
        parameter_byte_s: seconds charged for a byte of parameters on a rank.
        known: what was worked out for other questions on the same cluster, of the same ways and ``stride``; more is
            added.
        stride: distance between neighbours of the axis in rank numbering.
    """
    nodes: list[Node] = []
    ports: list[Port] = []
    where: dict[tuple[str, str], int] = {}
    known = {} if known is None else known
    convert = _Converter(degree, cluster, stride, known.setdefault(("converted", degree), {}))
    for block in blocks:
        first, ops = len(nodes), ("ops", id(block), degree)
        if ops not in known:
            # the block too, so that its id stays its own
            made = [_node(block, op, degree, cluster, strategies_of, stride, known) for op in block.ops]
            known[ops] = block, made
        stored = "stored", id(block), degree, parameter_byte_s
        if stored not in known:
            known[stored] = [
                _stored(block, name, degree, layouts_of, parameter_byte_s) for name in block.parameters
            ]
        nodes += known[ops][1]
        where |= {(block.kind, name): index for index, name in enumerate(block.parameters, len(nodes))}
        nodes += known[stored]
        ports += _ports(block, nodes, first, boundary, convert)
    equal = tuple(
        group for members in tied if len(group := tuple(where[m] for m in members if m in where)) > 1
    )
    return LayoutProblem(tuple(nodes), tuple(ports), equal)


def _node(
    block: Block,
    op: Op,
    degree: int,
    cluster: Cluster,
    strategies_of: StrategiesOf,
    stride: int,
    known: dict[Hashable, Any],
) -> Node:
    options = _cheapest(
        [
            Option(
                name=s.name,
                price_s=op_times(block, op, s, degree, cluster, stride).total_s
                + TIE_BREAK_S * saved_bytes(op, s, degree),
                gives=s.output,
                wants=s.inputs,
            )
            for s in strategies_of(block, op, degree)
        ]
    )
    # of equal ones the same, by which tables of values find each other
    return Node(block.kind, op.name, op.inputs, op.output, known.setdefault(("options", options), options))


def _stored(block: Block, name: str, degree: int, layouts_of: LayoutsOf, byte_s: float) -> Node:
    value = block.values[name]
    options = [
        Option(str(layout), byte_s * local_bytes(value, layout, degree), layout)
        for layout in layouts_of(block, name, degree)
    ]
    return Node(block.kind, name, (), name, tuple(options))


def problem_of(problem: LayoutProblem, kept: Collection[int]) -> LayoutProblem:
    """What ``problem`` asks of the nodes ``kept`` alone, each of which it has once: no solution of the whole spends less
    on them and on values that pass between them."""
    number = {node: index for index, node in enumerate(sorted(kept))}
    ports = []
    for port in problem.ports:
        readers = tuple((number[node], position) for node, position in port.readers if node in number)
        maker = port.maker if isinstance(port.maker, Layout) else number.get(port.maker)
        if maker is not None and (readers or port.leaves is not None):
            ports.append(replace(port, maker=maker, readers=readers))
    equal = (tuple(number[node] for node in group if node in number) for group in problem.equal)
    return LayoutProblem(
        tuple(problem.nodes[node] for node in number), tuple(ports), tuple(g for g in equal if len(g) > 1)
    )


class _Converter:
    """Prices of conversions; values of one shape and dtype, of which a block has many, share theirs."""

    def __init__(self, degree: int, cluster: Cluster, stride: int, known: dict[Hashable, Any]) -> None:
        self.degree, self._cluster, self._stride, self._known = degree, cluster, stride, known

    def prices_s(
        self, value: Value, sources: Collection[Layout], targets: Collection[Layout]
    ) -> Mapping[tuple[Layout, Layout], float]:
        """Seconds of both passes, by (from, to); of equal questions the same."""
        size = value.shape, value.itemsize, value.requires_grad
        key = size, tuple(dict.fromkeys(sources)), tuple(dict.fromkeys(targets))
        if key not in self._known:
            self._known[key] = {
                (src, dst): self._price_s(value, size, src, dst) for src in key[1] for dst in key[2]
            }
        return self._known[key]

    def _price_s(self, value: Value, size: Hashable, src: Layout, dst: Layout) -> float:
        key = size, src, dst
        if key not in self._known:
            times = conversion_times(value, src, dst, self.degree, self._cluster, self._stride)
            self._known[key] = times.total_s
        return self._known[key]


def _cheapest(options: Sequence[Option]) -> tuple[Option, ...]:
    """One option for each signature: no solution needs a dearer one that reads and gives the same."""
    best: dict[tuple[Layout, tuple[Layout, ...]], Option] = {}
    for option in options:
        key = (option.gives, option.wants)
        if key not in best or option.price_s < best[key].price_s:
            best[key] = option
    return tuple(best.values())


def _ports(
    block: Block, nodes: Sequence[Node], first: int, boundary: Layout, convert: _Converter
) -> list[Port]:
    degree = convert.degree
    makers: dict[str, int | Layout] = {
        name: boundary_layout(block.values[name], boundary, degree) for name in block.inputs
    }
    makers |= dict.fromkeys(block.buffers, REPLICATE)
    readers: dict[str, list[tuple[int, int]]] = {}
    for index in range(first, len(nodes)):
        node = nodes[index]
        makers[node.makes] = index
        for position, name in enumerate(node.reads):
            readers.setdefault(name, []).append((index, position))
    ports = []
    for name, maker in makers.items():
        value = block.values[name]
        leaves = boundary_layout(value, boundary, degree) if name in block.outputs else None
        reads = tuple(readers.get(name, ()))
        if reads or leaves is not None:
            prices = _conversion_prices(value, maker, reads, leaves, nodes, convert)
            ports.append(Port(maker, reads, leaves, prices))
    return ports


def _conversion_prices(
    value: Value,
    maker: int | Layout,
    readers: Sequence[tuple[int, int]],
    leaves: Layout | None,
    nodes: Sequence[Node],
    convert: _Converter,
) -> Mapping[tuple[Layout, Layout], float]:
    sources = [maker] if isinstance(maker, Layout) else [option.gives for option in nodes[maker].options]
    targets = [option.wants[position] for node, position in readers for option in nodes[node].options]
    return convert.prices_s(value, sources, targets if leaves is None else [*targets, leaves])

"""The layout question of some blocks, stripped to what an integer program needs.

Ops and parameters become *nodes* that pick one of their *options*; inputs, buffers and outputs have
one layout. What remains of a value is who makes it, in which layouts, and who wants it in which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoplan.cost.compute import op_times
from autoplan.cost.convert import conversion_times, local_bytes
from autoplan.cost.unit import StrategiesOf, saved_bytes
from autoplan.graph.boundary import boundary_layout
from autoplan.graph.ir import Block, Value
from autoplan.graph.layout import REPLICATE, Layout

if TYPE_CHECKING:
    from autoplan.hardware import Cluster

__all__ = ["LayoutProblem", "LayoutsOf", "Node", "Option", "Port", "layout_problem"]

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


def layout_problem(
    blocks: Sequence[Block],
    tied: Sequence[Sequence[tuple[str, str]]],
    boundary: Layout,
    degree: int,
    cluster: Cluster,
    strategies_of: StrategiesOf,
    layouts_of: LayoutsOf,
    parameter_byte_s: float = TIE_BREAK_S,
    stride: int = 1,
) -> LayoutProblem:
    """Set up the question for ``blocks`` together.

    Args:
        tied: groups of (block kind, parameter) that are one tensor.
        parameter_byte_s: seconds charged for a byte of parameters on a rank.
        stride: distance between neighbours of the axis in rank numbering.
    """
    nodes: list[Node] = []
    ports: list[Port] = []
    where: dict[tuple[str, str], int] = {}
    convert = _Converter(degree, cluster, stride)
    for block in blocks:
        first = len(nodes)
        for op in block.ops:
            options = [
                Option(
                    name=s.name,
                    price_s=op_times(block, op, s, degree, cluster, stride).total_s
                    + TIE_BREAK_S * saved_bytes(op, s, degree),
                    gives=s.output,
                    wants=s.inputs,
                )
                for s in strategies_of(block, op, degree)
            ]
            nodes.append(Node(block.kind, op.name, op.inputs, op.output, _cheapest(options)))
        for name in block.parameters:
            value = block.values[name]
            options = [
                Option(str(layout), parameter_byte_s * local_bytes(value, layout, degree), layout)
                for layout in layouts_of(block, name, degree)
            ]
            where[block.kind, name] = len(nodes)
            nodes.append(Node(block.kind, name, (), name, tuple(options)))
        ports += _ports(block, nodes, first, boundary, convert)
    equal = tuple(
        group for members in tied if len(group := tuple(where[m] for m in members if m in where)) > 1
    )
    return LayoutProblem(tuple(nodes), tuple(ports), equal)


class _Converter:
    """Prices of conversions; values of one shape and dtype, of which a block has many, share theirs."""

    def __init__(self, degree: int, cluster: Cluster, stride: int) -> None:
        self.degree, self._cluster, self._stride = degree, cluster, stride
        self._known: dict[tuple[tuple[int, ...], int, bool, Layout, Layout], float] = {}

    def price_s(self, value: Value, src: Layout, dst: Layout) -> float:
        """Seconds of both passes."""
        key = value.shape, value.itemsize, value.requires_grad, src, dst
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
) -> dict[tuple[Layout, Layout], float]:
    sources = [maker] if isinstance(maker, Layout) else [option.gives for option in nodes[maker].options]
    targets = [option.wants[position] for node, position in readers for option in nodes[node].options]
    if leaves is not None:
        targets.append(leaves)
    return {
        (src, dst): convert.price_s(value, src, dst)
        for src in dict.fromkeys(sources)
        for dst in dict.fromkeys(targets)
    }

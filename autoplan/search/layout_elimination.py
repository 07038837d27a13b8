"""The cheapest layouts of a block by eliminating one node after another: exact, and fast where few are alive at once.

What joins nodes is a value: its price depends on the layout that it is made in and on the set of layouts that
its readers want. Each value is a table over the options of the nodes that it joins. To eliminate a node, the
tables that name it are added up and minimised over its options, which leaves one table over its neighbours;
in the end nothing is left but the optimum, and the choices are read back in the other direction. The largest
table has as many dimensions as the graph has values alive beside each other (its treewidth), so a chain with
residual branches of any length costs time in proportion to its ops. (Bertelè and Brioschi, 1972.)

A value of many readers would be a large table of its own. It becomes a variable instead: the layout that it is made
in, and the set of layouts that it is converted to; each reader then only asks that its own is among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoplan.graph.layout import Layout

if TYPE_CHECKING:
    from autoplan.search.layout_problem import LayoutProblem, Port

__all__ = ["eliminate"]

Floats = NDArray[np.float64]

_LARGEST = 1 << 22
"""Entries of a table that are too many."""

_JOINED = 1 << 12
"""Entries beyond which a value of several readers becomes a variable."""


def eliminate(problem: LayoutProblem) -> list[int] | None:
    """The index of the option that each node takes in a cheapest solution; of equals, one and the same each time.

    None if some table would be too large.
    """
    tables = _Tables([len(node.options) for node in problem.nodes])
    for index, node in enumerate(problem.nodes):
        tables.add((index,), np.array([option.price_s for option in node.options]))
    for port in problem.ports:
        _join(tables, problem, port)
    for first, *others in problem.equal:
        gives = [option.gives for option in problem.nodes[first].options]
        for other in others:
            same = [[a == option.gives for option in problem.nodes[other].options] for a in gives]
            tables.add((first, other), np.where(same, 0.0, np.inf))
    taken = tables.minimise()
    return None if taken is None else taken[: len(problem.nodes)]


def _join(tables: _Tables, problem: LayoutProblem, port: Port) -> None:
    """The price of converting one value, as tables."""
    wants: dict[int, list[frozenset[Layout]]] = {}
    leaves = frozenset(() if port.leaves is None else (port.leaves,))
    for node, position in port.readers:
        known = wants.get(node) or [frozenset[Layout]()] * len(problem.nodes[node].options)
        wants[node] = [
            w | {o.wants[position]} for w, o in zip(known, problem.nodes[node].options, strict=True)
        ]
    constant = isinstance(port.maker, Layout)
    made = [port.maker] if isinstance(port.maker, Layout) else [
        option.gives for option in problem.nodes[port.maker].options
    ]  # fmt: skip
    makers = () if isinstance(port.maker, Layout) else (port.maker,)
    readers = tuple(wants)
    if math.prod(tables.sizes[node] for node in (*makers, *readers)) <= _JOINED or len(readers) < 2:
        table = _priced(port, made, leaves, list(wants.values()))
        tables.add((*makers, *readers), table[0] if constant else table)
        return
    states = _states(port, made, leaves, [want for options in wants.values() for want in options])
    state = tables.variable([price for _, _, price in states])
    if makers:
        same = [[layout == source for source, _, _ in states] for layout in made]
        tables.add((*makers, state), np.where(same, 0.0, np.inf))
    for node, options in wants.items():
        served = [[want <= held | {source} for source, held, _ in states] for want in options]
        tables.add((node, state), np.where(served, 0.0, np.inf))


def _priced(
    port: Port, made: Sequence[Layout], leaves: frozenset[Layout], wants: Sequence[list[frozenset[Layout]]]
) -> Floats:
    """Shape (ways that it is made, options of each reader): the price of all conversions, each once.

    Layouts become bits, so that sets that are wanted together join by a bitwise or.
    """
    targets = list(
        dict.fromkeys(
            layout for want in (leaves, *(w for ws in wants for w in ws)) for layout in sorted(want)
        )
    )
    bit = {layout: 1 << place for place, layout in enumerate(targets)}
    joined = np.array(sum(bit[layout] for layout in leaves))
    for options in wants:
        masks = np.array([sum(bit[layout] for layout in want) for want in options])
        joined = joined[..., None] | masks
    table = np.zeros((len(made), *joined.shape))
    for place, source in enumerate(made):
        for target in targets:
            if target != source and (price := port.price_s[source, target]):
                table[place] += np.where(joined & bit[target], price, 0.0)
    return table


def _states(
    port: Port, made: Sequence[Layout], leaves: frozenset[Layout], wants: Sequence[frozenset[Layout]]
) -> list[tuple[Layout, frozenset[Layout], float]]:
    """(made in, converted to, price) of a value: whatever set of layouts may be wanted together."""
    targets = sorted(leaves.union(*wants))
    found = []
    for source in dict.fromkeys(made):
        free = frozenset(t for t in targets if t == source or not port.price_s[source, t])
        paid = [t for t in targets if t not in free]
        for count in range(len(paid) + 1):
            for some in combinations(paid, count):
                if leaves <= free.union(some):
                    found.append((source, free.union(some), sum(port.price_s[source, t] for t in some)))
    return found


@dataclass(slots=True)
class _Tables:
    """Variables, and tables over some of them whose sum is to be least."""

    sizes: list[int]
    _tables: dict[int, tuple[tuple[int, ...], Floats]] = field(default_factory=dict)
    _of: dict[int, set[int]] = field(default_factory=dict)
    _next: int = 0

    def variable(self, prices: Sequence[float]) -> int:
        """A new variable, with the price of each of its values."""
        self.sizes.append(len(prices))
        self.add((len(self.sizes) - 1,), np.array(prices, dtype=float))
        return len(self.sizes) - 1

    def add(self, names: tuple[int, ...], table: Floats) -> None:
        """``table`` has a dim for each of ``names``, which are distinct."""
        order = sorted(range(len(names)), key=names.__getitem__)
        self._tables[self._next] = tuple(names[i] for i in order), np.transpose(table, order)
        for name in names:
            self._of.setdefault(name, set()).add(self._next)
        self._next += 1

    def minimise(self) -> list[int] | None:
        """The value of each variable at the minimum; None if a table would be too large on the way."""
        waiting = {name: self._entries(name) for name in range(len(self.sizes))}
        back: list[tuple[int, tuple[int, ...], NDArray[np.intp]]] = []
        while waiting:
            name = min(waiting, key=lambda n: (waiting[n], n))
            if waiting.pop(name) > _LARGEST:
                return None
            near, least = self._eliminate(name)
            back.append((name, near, least))
            for other in near:
                waiting[other] = self._entries(other)
        taken = [0] * len(self.sizes)
        for name, near, least in reversed(back):
            taken[name] = int(least[tuple(taken[other] for other in near)])
        return taken

    def _near(self, name: int) -> tuple[int, ...]:
        return tuple(sorted({other for table in self._of[name] for other in self._tables[table][0]} - {name}))

    def _entries(self, name: int) -> int:
        """Entries of the table that is minimised to eliminate ``name``."""
        return self.sizes[name] * math.prod(self.sizes[other] for other in self._near(name))

    def _eliminate(self, name: int) -> tuple[tuple[int, ...], NDArray[np.intp]]:
        near = self._near(name)
        dims = (*near, name)
        total = np.zeros([self.sizes[dim] for dim in dims])
        for table in sorted(self._of.pop(name)):
            names, values = self._tables.pop(table)
            for other in names:
                if other != name:
                    self._of[other].discard(table)
            place = names.index(name)
            values = np.moveaxis(values, place, -1)
            total += values.reshape([self.sizes[dim] if dim in names else 1 for dim in dims])
        least = total.argmin(axis=-1)
        if near:
            self.add(near, np.take_along_axis(total, least[..., None], axis=-1)[..., 0])
        return near, least

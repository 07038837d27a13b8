"""The cheapest layouts of a block by eliminating one node after another: exact, and fast where few are alive at once.

What joins nodes is a value: its price depends on the layout that it is made in and on the set of layouts that its
readers want. Each value is a table over the options of the nodes that it joins (``elimination.Tables``).

A value of many readers would be a large table of its own. It becomes a variable instead: the layout that it is made
in, and the set of layouts that it is converted to; each reader then only asks that its own is among them.

Where the tables would still be too large, such values are relaxed: each of their readers is charged a share of a
conversion, and all shares of one conversion add up to its price. The optimum of that is never above the true one, and
its choice has a true price; shares move to the readers that asked, until the two prices meet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autoplan.graph.layout import Layout
from autoplan.search.elimination import NEVER, Tables

if TYPE_CHECKING:
    from autoplan.search.layout_problem import LayoutProblem, Port

__all__ = ["eliminate", "nearly", "price_s"]

Floats = NDArray[np.float64]

_ENTRIES = 1 << 22, 1 << 26
"""Entries of all tables of an elimination that are too many: at first, and where relaxed tables of that size do not
settle it (a second, and some hundred megabytes for the largest)."""

_JOINED = 1 << 12
"""Entries beyond which a value of several readers becomes a variable."""

_CLOSE = 1e-4
"""Share of the price at which a relaxed choice is good enough."""

_NEAR = 1e-3
"""The same after ``_PATIENCE`` rounds, where what is left is told."""

_ROUNDS = 12  # of moving shares
_PATIENCE = 4


def eliminate(problem: LayoutProblem) -> list[int] | None:
    """The index of the option that each node takes in a cheapest solution; of equals, one and the same each time.

    None if that would take too large tables.
    """
    found = _found(problem, _CLOSE)
    return None if found is None else found[0]


def nearly(problem: LayoutProblem) -> tuple[list[int], float] | None:
    """The same, or a solution that is nearly as cheap, and the share of its price by which a cheapest one may be
    below it: never above ``_NEAR``."""
    return _found(problem, _NEAR)


def _found(problem: LayoutProblem, near: float) -> tuple[list[int], float] | None:
    question = _Question(problem)
    ports = question.relaxable()
    orders: list[tuple[list[int], int]] = []  # with so many of them relaxed
    for most in _ENTRIES:
        relaxed: dict[int, _Shares] = {}
        for count in range(len(ports) + 1):
            if count:
                relaxed[ports[count - 1]] = _even(problem.ports[ports[count - 1]])
            if count == len(orders):
                orders.append(question.tables(relaxed).order())
            order, entries = orders[count]
            if entries <= most:
                if (settled := _settled(question, relaxed, order, near)) is not None:
                    return settled
                break
    return None


def price_s(problem: LayoutProblem, taken: Sequence[int]) -> float:
    """Seconds that a choice of options costs."""
    options = [node.options[choice] for node, choice in zip(problem.nodes, taken, strict=True)]
    total = sum(option.price_s for option in options)
    for port in problem.ports:
        made = port.maker if isinstance(port.maker, Layout) else options[port.maker].gives
        wanted = {options[node].wants[position] for node, position in port.readers}
        wanted |= {port.leaves} if port.leaves is not None else set()
        total += sum(port.price_s[made, layout] for layout in sorted(wanted) if layout != made)
    return total


_Shares = dict[tuple[int, Layout, Layout], float]
"""By reader, and what it has converted from and to: the share of the price that it bears."""


def _settled(
    question: _Question, relaxed: dict[int, _Shares], order: list[int], near: float
) -> tuple[list[int], float] | None:
    """A choice whose price is proven to be the least, or within ``_CLOSE`` of it, or in the end within ``near``, and
    how near it is; None if none is found."""
    problem = question.problem
    best, best_s, least_s = None, math.inf, 0.0
    for turn in range(_ROUNDS):
        tables = question.tables(relaxed)
        found = tables.minimise(order)
        taken = found[: len(problem.nodes)]
        if not relaxed:
            return taken, 0.0
        least_s = max(least_s, tables.cost(found))
        if (actual_s := price_s(problem, taken)) < best_s:
            best, best_s = taken, actual_s
        close = _CLOSE if turn < _PATIENCE else max(_CLOSE, near)
        if best is not None and best_s - least_s <= close * best_s:
            return best, max(1 - least_s / best_s, 0.0)
        for index, shares in relaxed.items():
            _move(problem, problem.ports[index], shares, taken, 1 / (2 + turn))
    return None


def _even(port: Port) -> _Shares:
    readers = _readers(port)
    return {(node, *pair): 1 / len(readers) for node in readers for pair in port.price_s}


def _readers(port: Port) -> tuple[int, ...]:
    return tuple(dict.fromkeys(node for node, _ in port.readers))


def _move(problem: LayoutProblem, port: Port, shares: _Shares, taken: Sequence[int], step: float) -> None:
    """Let the readers that asked for a conversion bear more of it, where not all did."""
    made = (
        port.maker
        if isinstance(port.maker, Layout)
        else problem.nodes[port.maker].options[taken[port.maker]].gives
    )
    asked: dict[Layout, set[int]] = {}
    for node, position in port.readers:
        asked.setdefault(problem.nodes[node].options[taken[node]].wants[position], set()).add(node)
    readers = _readers(port)
    for layout, nodes in asked.items():
        if layout == made or len(nodes) == len(readers):
            continue
        for node in readers:
            goal = 1 / len(nodes) if node in nodes else 0.0
            shares[node, made, layout] += step * (goal - shares[node, made, layout])


class _Question:
    """A problem with the tables of its values, each worked out once."""

    def __init__(self, problem: LayoutProblem) -> None:
        self.problem = problem
        self._joins = [_join(problem, port) for port in problem.ports]

    def relaxable(self) -> list[int]:
        """Ports of several readers, those with the least to pay first."""
        several = [
            i for i, port in enumerate(self.problem.ports) if len(_readers(port)) > 2 and port.leaves is None
        ]
        return sorted(several, key=lambda i: (max(self.problem.ports[i].price_s.values()), i))

    def tables(self, relaxed: Mapping[int, _Shares]) -> Tables:
        """The question as tables; ports in ``relaxed`` charge each reader its share."""
        problem = self.problem
        tables = Tables([len(node.options) for node in problem.nodes])
        for index, node in enumerate(problem.nodes):
            tables.add((index,), np.array([option.price_s for option in node.options]))
        for index, port in enumerate(problem.ports):
            if index in relaxed:
                for reader in _readers(port):
                    _share(tables, problem, port, reader, relaxed[index])
                continue
            states, parts = self._joins[index]
            state = (tables.variable(states),) if states else ()
            for names, table in parts:
                tables.add((*names, *state), table)
        for first, *others in problem.equal:
            gives = [option.gives for option in problem.nodes[first].options]
            for other in others:
                same = [[a == option.gives for option in problem.nodes[other].options] for a in gives]
                tables.add((first, other), np.where(same, 0.0, NEVER))
        return tables


def _share(tables: Tables, problem: LayoutProblem, port: Port, reader: int, shares: _Shares) -> None:
    """What ``reader`` alone is charged of a relaxed value."""
    made = _made(problem, port)
    wants = _wants(problem, port)[reader]
    table = np.array(
        [
            [sum(shares[reader, a, b] * port.price_s[a, b] for b in sorted(want) if b != a) for want in wants]
            for a in made
        ]
    )
    if isinstance(port.maker, Layout):
        tables.add((reader,), table[0])
    else:
        tables.add((port.maker, reader), table)


def _made(problem: LayoutProblem, port: Port) -> list[Layout]:
    if isinstance(port.maker, Layout):
        return [port.maker]
    return [option.gives for option in problem.nodes[port.maker].options]


def _wants(problem: LayoutProblem, port: Port) -> dict[int, list[frozenset[Layout]]]:
    """By reader and its options, the layouts that it wants."""
    wants: dict[int, list[frozenset[Layout]]] = {}
    for node, position in port.readers:
        options = problem.nodes[node].options
        known = wants.get(node) or [frozenset[Layout]()] * len(options)
        wants[node] = [want | {option.wants[position]} for want, option in zip(known, options, strict=True)]
    return wants


_Joined = tuple[list[float], list[tuple[tuple[int, ...], Floats]]]


def _join(problem: LayoutProblem, port: Port) -> _Joined:
    """The price of converting one value: tables over nodes, or the prices of a variable and tables that end in it."""
    made, wants = _made(problem, port), _wants(problem, port)
    leaves = frozenset(() if port.leaves is None else (port.leaves,))
    makers = () if isinstance(port.maker, Layout) else (port.maker,)
    readers = tuple(wants)
    entries = math.prod(len(problem.nodes[node].options) for node in (*makers, *readers))
    if entries <= _JOINED or len(readers) < 2:
        table = _priced(port, made, leaves, list(wants.values()))
        return [], [((*makers, *readers), table if makers else table[0])]
    states = _states(port, made, leaves, list(wants.values()))
    parts: list[tuple[tuple[int, ...], Floats]] = []
    if makers:
        same = [[layout == source for source, _, _ in states] for layout in made]
        parts.append((makers, np.where(same, 0.0, NEVER)))
    for node, options in wants.items():
        served = [[want <= held | {source} for source, held, _ in states] for want in options]
        parts.append(((node,), np.where(served, 0.0, NEVER)))
    return [price for _, _, price in states], parts


def _priced(
    port: Port, made: Sequence[Layout], leaves: frozenset[Layout], wants: Sequence[list[frozenset[Layout]]]
) -> Floats:
    """Shape (ways that it is made, options of each reader): the price of all conversions, each once.

    Layouts become bits, so that sets that are wanted together join by a bitwise or.
    """
    targets = sorted(leaves.union(*(want for options in wants for want in options)))
    bit = {layout: 1 << place for place, layout in enumerate(targets)}
    joined = np.array(sum(bit[layout] for layout in leaves))
    for options in wants:
        joined = joined[..., None] | np.array([sum(bit[layout] for layout in want) for want in options])
    table = np.zeros((len(made), *joined.shape))
    for place, source in enumerate(made):
        for target in targets:
            if target != source and (price := port.price_s[source, target]):
                table[place] += np.where(joined & bit[target], price, 0.0)
    return table


def _states(
    port: Port, made: Sequence[Layout], leaves: frozenset[Layout], wants: Sequence[list[frozenset[Layout]]]
) -> list[tuple[Layout, frozenset[Layout], float]]:
    """(made in, converted to, price) of a value: whatever set of layouts may be wanted together."""
    targets = sorted(leaves.union(*(want for options in wants for want in options)))
    most = len(leaves) + sum(max(len(want) for want in options) for options in wants)
    found = []
    for source in dict.fromkeys(made):
        free = frozenset(t for t in targets if t == source or not port.price_s[source, t])
        paid = [t for t in targets if t not in free]
        for count in range(min(len(paid), most) + 1):
            for some in combinations(paid, count):
                if leaves <= free.union(some):
                    found.append((source, free.union(some), sum(port.price_s[source, t] for t in some)))
    return found

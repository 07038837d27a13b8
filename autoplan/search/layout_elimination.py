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
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoplan.graph.layout import Layout
from autoplan.search.elimination import NEVER, Table, Tables, order_of, table_of

if TYPE_CHECKING:
    from autoplan.search.layout_problem import LayoutProblem, Port

__all__ = ["eliminate", "least_s", "nearly", "price_s"]

Floats = NDArray[np.float64]

_ENTRIES = 1 << 22, 1 << 26
"""Entries of all tables of an elimination that are too many: at first, and where relaxed tables of that size do not
settle it (a second, and some hundred megabytes for the largest)."""

_SMALL = 1 << 20
"""Entries that are few enough for a bound."""

_JOINED = 1 << 12
"""Entries beyond which a value of several readers becomes a variable."""

_CLOSE = 1e-4
"""Share of the price at which a relaxed choice is good enough."""

_NEAR = 3e-3
"""The same after ``_PATIENCE`` rounds, where what is left is told."""

_ROUNDS = 12  # of moving shares
_PATIENCE = 4


def eliminate(problem: LayoutProblem) -> list[int] | None:
    """The index of the option that each node takes in a cheapest solution; of equals, one and the same each time.

    None if that would take too large tables.
    """
    found = _found(_Question(problem, {}), _CLOSE)
    return None if found is None else found[0]


def nearly(
    problem: LayoutProblem, known: dict[Hashable, Any] | None = None
) -> tuple[list[int], float] | None:
    """The same, or a solution that is nearly as cheap, and the share of its price by which a cheapest one may be
    below it: never above ``_NEAR``.

    ``known``: tables and orders of other problems, some of which this one may have too; more is added.
    """
    return _found(_Question(problem, {} if known is None else known), _NEAR)


def least_s(problem: LayoutProblem, known: dict[Hashable, Any] | None = None) -> float:
    """Seconds that no solution is below, relaxed until tables are small: a per cent or less is missing.

    ``known`` as for ``nearly``.
    """
    question = _Question(problem, {} if known is None else known)
    for most in (_SMALL, *_ENTRIES):
        if (found := question.within(most)) is not None:
            relaxed, order = found
            tables = question.tables(relaxed)
            return tables.cost(tables.minimise(order))
    return problem.alone_s


def _found(question: _Question, near: float) -> tuple[list[int], float] | None:
    for most in _ENTRIES:
        if (found := question.within(most)) is None:
            continue
        if (settled := _settled(question, *found, near)) is not None:
            return settled
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
        for shares in relaxed.values():
            shares.move(taken, 1 / (2 + turn))
    return None


def _readers(port: Port) -> tuple[int, ...]:
    return tuple(dict.fromkeys(node for node, _ in port.readers))


class _Shares:
    """Of a relaxed value, the share of the price of each conversion that each of its readers bears; at first the same."""

    def __init__(self, problem: LayoutProblem, port: Port) -> None:
        made, wants = _made(problem, port), _wants(problem, port)
        sources = {layout: place for place, layout in enumerate(dict.fromkeys(made))}
        targets = dict.fromkeys(
            layout for options in wants.values() for want in options for layout in sorted(want)
        )
        place = {layout: index for index, layout in enumerate(targets)}
        self._maker = None if isinstance(port.maker, Layout) else port.maker
        self._made = np.array([sources[layout] for layout in made])
        self._price_s = np.array([[port.price_s[a, b] if a != b else 0.0 for b in targets] for a in sources])
        # of each reader and its options, which layouts they want; shape (options, targets)
        self._wants = {node: np.zeros((len(options), len(targets))) for node, options in wants.items()}
        for node, options in wants.items():
            for option, want in enumerate(options):
                self._wants[node][option, [place[layout] for layout in want]] = 1.0
        self._shares = np.full((len(wants), *self._price_s.shape), 1 / len(wants))

    def tables(self) -> Iterator[Table]:
        """What each reader alone is charged."""
        charged = self._shares * self._price_s
        for (reader, wants), prices in zip(self._wants.items(), charged, strict=True):
            table = (prices @ wants.T)[self._made]
            yield (
                table_of((reader,), table[0])
                if self._maker is None
                else table_of((self._maker, reader), table)
            )

    def move(self, taken: Sequence[int], step: float) -> None:
        """Let the readers that asked for a conversion bear more of it, where not all did."""
        made = self._made[0 if self._maker is None else taken[self._maker]]
        asked = np.array([wants[taken[node]] for node, wants in self._wants.items()])
        count = asked.sum(axis=0)
        some = (count > 0) & (count < len(asked))
        shares = self._shares[:, made]
        shares[:, some] += step * (asked[:, some] / count[some] - shares[:, some])


class _Question:
    """A problem with the tables of its values, each worked out once."""

    def __init__(self, problem: LayoutProblem, known: dict[Hashable, Any]) -> None:
        self.problem, self._known = problem, known
        joins = [_join(problem, port, known) for port in problem.ports]
        self._sizes = [len(node.options) for node in problem.nodes]
        read = tuple((port.maker, port.readers) for port in problem.ports)
        self._shape = tuple(self._sizes), read, problem.equal
        self._nodes = list(self._of_nodes())
        self._values: list[list[Table]] = []  # by port
        for states, tables in joins:
            state = (len(self._sizes),) if states else ()
            alone = [table_of(state, np.array(states))] if states else []
            self._values.append([*alone, *(table_of((*names, *state), table) for names, table in tables)])
            self._sizes += [len(states)] if states else []
        several = [
            i for i, port in enumerate(problem.ports) if len(_readers(port)) > 1 and port.leaves is None
        ]
        # those that can be relaxed; what they miss is in the order of what they cost
        self._ports = sorted(several, key=lambda i: (max(problem.ports[i].price_s.values()), i))

    def within(self, most: int) -> tuple[dict[int, _Shares], list[int]] | None:
        """As few relaxed values as make up for tables of ``most`` entries, and an order of elimination; None if all of
        them are too few."""
        few, many = 0, len(self._ports)
        if self._order(many)[1] > most:
            return None
        while few < many:
            middle = (few + many) // 2
            few, many = (few, middle) if self._order(middle)[1] <= most else (middle + 1, many)
        return self._relaxed(many), self._order(many)[0]

    def _relaxed(self, count: int) -> dict[int, _Shares]:
        return {index: _Shares(self.problem, self.problem.ports[index]) for index in self._ports[:count]}

    def _order(self, count: int) -> tuple[list[int], int]:
        """An order of elimination with so many values relaxed, and its entries; questions alike have the same."""
        key = "order", self._shape, frozenset(self._ports[:count])
        if key not in self._known:
            relaxed = frozenset(self._ports[:count])
            names = [names for names, _ in self._nodes]
            for index, port in enumerate(self.problem.ports):
                if index in relaxed:
                    makers = () if isinstance(port.maker, Layout) else (port.maker,)
                    names += [(*makers, reader) for reader in _readers(port)]
                else:
                    names += [names_ for names_, _ in self._values[index]]
            self._known[key] = order_of(self._sizes, names)
        return self._known[key]

    def tables(self, relaxed: Mapping[int, _Shares]) -> Tables:
        """The question as tables; ports in ``relaxed`` charge each reader its share."""
        tables = list(self._nodes)
        for index, of_port in enumerate(self._values):
            tables += relaxed[index].tables() if index in relaxed else of_port
        return Tables(self._sizes, tables)

    def _of_nodes(self) -> Iterator[Table]:
        """What nodes cost by themselves, and that some must agree."""
        problem = self.problem
        for index, node in enumerate(problem.nodes):
            yield table_of((index,), np.array([option.price_s for option in node.options]))
        for first, *others in problem.equal:
            gives = [option.gives for option in problem.nodes[first].options]
            for other in others:
                same = [[a == option.gives for option in problem.nodes[other].options] for a in gives]
                yield table_of((first, other), np.where(same, 0.0, NEVER))


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


def _join(problem: LayoutProblem, port: Port, known: dict[Hashable, Any]) -> _Joined:
    """The price of converting one value: tables over nodes, or the prices of a variable and tables that end in it."""
    makers = () if isinstance(port.maker, Layout) else (port.maker,)
    nodes = (*makers, *_readers(port))
    options = [problem.nodes[node].options for node in nodes]
    places = {node: place for place, node in enumerate(nodes[len(makers) :])}
    read = tuple((places[node], position) for node, position in port.readers)
    source = port.maker if isinstance(port.maker, Layout) else None
    key = "join", source, tuple(map(id, options)), read, id(port.price_s), port.leaves
    if key not in known:
        wants = tuple(_wants(problem, port).values())
        # the options and prices too, so that their ids stay theirs
        known[key] = _tables(port, _made(problem, port), wants), options, port.price_s
    states, tables = known[key][0]
    if not states:
        return [], [(nodes, tables[0])]
    return states, [((node,), table) for node, table in zip(nodes, tables, strict=True)]


def _tables(
    port: Port, made: Sequence[Layout], wants: Sequence[Sequence[frozenset[Layout]]]
) -> tuple[list[float], list[Floats]]:
    """A table over the maker and all readers; or the prices of a variable, and a table with it for each of them.

    Layouts become bits, so that sets that are wanted together join by a bitwise or.
    """
    leaves = () if port.leaves is None else (port.leaves,)
    targets = sorted({*leaves, *(layout for options in wants for want in options for layout in want)})
    bit = {layout: 1 << place for place, layout in enumerate(targets)}
    sources = {layout: place for place, layout in enumerate(dict.fromkeys(made))}
    price_s = [[port.price_s[a, b] if a != b else 0.0 for b in targets] for a in sources]
    leaving = sum(bit[layout] for layout in leaves)
    asked = [np.array([sum(bit[layout] for layout in want) for want in options]) for options in wants]
    source = np.array([sources[layout] for layout in made])
    has_maker = not isinstance(port.maker, Layout)
    entries = math.prod(map(len, wants)) * (len(made) if has_maker else 1)
    if entries <= _JOINED or len(wants) < 2:
        table = _priced(np.array(price_s), leaving, asked)[source]
        return [], [table if has_maker else table[0]]
    most = len(leaves) + sum(max(len(want) for want in options) for options in wants)
    given, held, prices = zip(*_states(price_s, leaving, most), strict=True)
    tables: list[Floats] = []
    if has_maker:
        tables.append(np.where(source[:, None] == np.array(given), 0.0, NEVER))
    tables += [np.where(want[:, None] & ~np.array(held), NEVER, 0.0) for want in asked]
    return list(prices), tables


def _priced(price_s: Floats, leaving: int, asked: Sequence[NDArray[np.int64]]) -> Floats:
    """Shape (ways that it is made, options of each reader): the price of all conversions, each once."""
    joined = np.array(leaving)
    for options in asked:
        joined = joined[..., None] | options
    together, which = np.unique(joined, return_inverse=True)
    wanted = together[:, None] >> np.arange(price_s.shape[1]) & 1
    return (price_s @ wanted.T)[:, which.reshape(joined.shape)]


def _states(price_s: Sequence[Sequence[float]], leaving: int, most: int) -> Iterator[tuple[int, int, float]]:
    """Made in which way, converted to which layouts, and the price of that: whatever may be wanted together."""
    for source, prices in enumerate(price_s):
        free = sum(1 << place for place, price in enumerate(prices) if not price)
        paid = [(1 << place, price) for place, price in enumerate(prices) if price]
        for count in range(min(len(paid), most) + 1):
            for some in combinations(paid, count):
                held = free + sum(bit for bit, _ in some)
                if not leaving & ~held:
                    yield source, held, sum(price for _, price in some)

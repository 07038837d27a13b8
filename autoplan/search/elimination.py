"""Minimise a sum of tables over shared variables by eliminating one variable after another.

To eliminate a variable, the tables that name it are added up and minimised over its values, which leaves one table
over its neighbours; in the end nothing is left but the minimum, and the values are read back in the other
direction. (Bertelè and Brioschi, Nonserial Dynamic Programming, 1972.) The largest table has as many dims as there
are variables alive at once, so a chain with branches takes time in proportion to its length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

__all__ = ["NEVER", "Table", "Tables", "order_of", "table_of"]

Floats = NDArray[np.float64]

NEVER = 1e9
"""A cost that no solution can afford."""


Table = tuple[tuple[int, ...], Floats]
"""Distinct variables in order, and a dim of costs for each."""


def table_of(names: tuple[int, ...], costs: Floats) -> Table:
    """``costs``, with a dim for each of ``names``."""
    order = sorted(range(len(names)), key=names.__getitem__)
    return tuple(names[i] for i in order), costs.transpose(order)


@dataclass(frozen=True, slots=True)
class Tables:
    """Variables by their number of values, and tables over some of them."""

    sizes: Sequence[int]
    tables: Sequence[Table]

    def cost(self, taken: Sequence[int]) -> float:
        """What ``taken``, a value of each variable, costs."""
        return float(sum(table[tuple(taken[name] for name in names)] for names, table in self.tables))

    def minimise(self, order: Sequence[int]) -> list[int]:
        """The value of each variable at the minimum, 0 where no table names it; the tables stay as they are."""
        tables = dict(enumerate(self.tables))
        of: dict[int, list[int]] = {name: [] for name in order}
        for index, (names, _) in tables.items():
            for name in names:
                of[name].append(index)
        back: list[tuple[int, list[Table]]] = []
        for name in order:
            # the smallest first, so that few sums are over all neighbours
            mine = sorted((tables.pop(i) for i in of[name] if i in tables), key=lambda table: table[1].size)
            near = tuple(sorted({other for names, _ in mine for other in names} - {name}))
            total = sum(_spread(table, (name, *near)) for table in mine)
            back.append((name, mine))
            if near:
                index = len(self.tables) + len(back)
                tables[index] = near, np.min(total, axis=0)
                for other in near:
                    of[other].append(index)
        taken = [0] * len(self.sizes)
        for name, mine in reversed(back):
            column = sum(
                values[tuple(slice(None) if other == name else taken[other] for other in names)]
                for names, values in mine
            )
            taken[name] = int(np.argmin(column))
        return taken


def _spread(table: Table, names: Sequence[int]) -> Floats:
    """Its values with a dim for each of ``names``, the first of which it has; the others are in the order of its own."""
    own, values = table
    at = own.index(names[0])
    values = values.transpose(at, *range(at), *range(at + 1, len(own)))
    return values[tuple(slice(None) if name in own else None for name in names)]


def order_of(sizes: Sequence[int], tables: Sequence[tuple[int, ...]]) -> tuple[list[int], int]:
    """In which order to eliminate the variables that ``tables`` name, and how many entries all tables on the way have.

    The better of two rules: the smallest table first, or the one that joins the least that was apart.
    """
    found = [_order(sizes, _near(tables), rule) for rule in (_smallest, _least_joined)]
    return min(found, key=lambda item: item[1])


def _near(tables: Sequence[tuple[int, ...]]) -> dict[int, set[int]]:
    near: dict[int, set[int]] = {}
    for names in tables:
        for name in names:
            near.setdefault(name, set()).update(names)
    for name, others in near.items():
        others.discard(name)
    return near


_Near = dict[int, set[int]]
_Rule = Callable[[int, _Near, list[float]], float]


def _smallest(name: int, near: _Near, logs: list[float]) -> float:
    return logs[name] + sum([logs[other] for other in near[name]])


def _least_joined(name: int, near: _Near, logs: list[float]) -> float:
    others, total = near[name], 0.0
    for a in others:
        apart = others - near[a]  # itself among them
        if len(apart) > 1:
            total += logs[a] * (sum([logs[b] for b in apart]) - logs[a])
    return total / 2


def _order(sizes: Sequence[int], near: _Near, rule: _Rule) -> tuple[list[int], int]:
    logs = [math.log(size) for size in sizes]
    waiting = {name: (rule(name, near, logs), _smallest(name, near, logs), name) for name in near}
    heap = list(waiting.values())
    heapify(heap)
    order, entries = [], 0
    while heap:
        least = heappop(heap)
        name = least[-1]
        if waiting.get(name) != least:  # it has changed since
            continue
        del waiting[name]
        others = near.pop(name)
        entries += sizes[name] * math.prod([sizes[other] for other in others])
        order.append(name)
        changed = others | _near_both(near, others) if rule is _least_joined else others
        for other in others:
            near[other] |= others
            near[other] -= {name, other}
        for other in changed - {name}:
            now = rule(other, near, logs), _smallest(other, near, logs), other
            if now != waiting[other]:
                waiting[other] = now
                heappush(heap, now)
    return order, entries


def _near_both(near: _Near, others: set[int]) -> set[int]:
    """What is near two of ``others`` that are apart."""
    found: set[int] = set()
    for a in others:
        for b in others - near[a]:
            if b < a:
                found |= near[a] & near[b]
    return found

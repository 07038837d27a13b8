"""Minimise a sum of tables over shared variables by eliminating one variable after another.

To eliminate a variable, the tables that name it are added up and minimised over its values, which leaves one table
over its neighbours; in the end nothing is left but the minimum, and the values are read back in the other
direction. (Bertelè and Brioschi, Nonserial Dynamic Programming, 1972.) The largest table has as many dims as there
are variables alive at once, so a chain with branches takes time in proportion to its length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["NEVER", "Tables"]

Floats = NDArray[np.float64]

NEVER = 1e9
"""A cost that no solution can afford."""


@dataclass(slots=True)
class Tables:
    """Variables by their number of values, and tables over some of them."""

    sizes: list[int]
    _tables: list[tuple[tuple[int, ...], Floats]] = field(default_factory=list)

    def add(self, names: tuple[int, ...], table: Floats) -> None:
        """Add a table with a dim for each of ``names``, which are distinct."""
        order = sorted(range(len(names)), key=names.__getitem__)
        self._tables.append((tuple(names[i] for i in order), np.transpose(table, order)))

    def cost(self, taken: Sequence[int]) -> float:
        """What ``taken``, a value of each variable, costs."""
        return float(sum(table[tuple(taken[name] for name in names)] for names, table in self._tables))

    def order(self) -> tuple[list[int], int]:
        """In which order to eliminate the variables that tables name, and how many entries all tables on the way have.

        The better of two rules: the smallest table first, or the one that joins the least that was apart.
        """
        found = [_order(self.sizes, self._near(), rule) for rule in (_smallest, _least_joined)]
        return min(found, key=lambda item: item[1])

    def _near(self) -> dict[int, set[int]]:
        near: dict[int, set[int]] = {}
        for names, _ in self._tables:
            for name in names:
                near.setdefault(name, set()).update(names)
        for name, others in near.items():
            others.discard(name)
        return near

    def minimise(self, order: Sequence[int]) -> list[int]:
        """The value of each variable at the minimum, 0 where no table names it; the tables stay as they are."""
        tables = dict(enumerate(self._tables))
        of: dict[int, set[int]] = {name: set() for name in order}
        for index, (names, _) in tables.items():
            for name in names:
                of[name].add(index)
        back: list[tuple[int, tuple[int, ...], NDArray[np.intp]]] = []
        for name in order:
            mine = [(index, *tables.pop(index)) for index in sorted(of[name])]
            near = tuple(sorted({other for _, names, _ in mine for other in names} - {name}))
            total = np.zeros([self.sizes[dim] for dim in (*near, name)])
            for index, names, values in mine:
                values = np.moveaxis(values, names.index(name), -1)
                total += values.reshape([self.sizes[dim] if dim in names else 1 for dim in (*near, name)])
                for other in names:
                    of[other].discard(index)
            least = total.argmin(axis=-1)
            back.append((name, near, least))
            if near:
                index = len(self._tables) + len(back)
                tables[index] = near, np.take_along_axis(total, least[..., None], -1)[..., 0]
                for other in near:
                    of[other].add(index)
        taken = [0] * len(self.sizes)
        for name, near, least in reversed(back):
            taken[name] = int(least[tuple(taken[other] for other in near)])
        return taken


_Near = dict[int, set[int]]
_Rule = Callable[[int, _Near, list[float]], float]


def _smallest(name: int, near: _Near, logs: list[float]) -> float:
    return logs[name] + sum(logs[other] for other in near[name])


def _least_joined(name: int, near: _Near, logs: list[float]) -> float:
    others = sorted(near[name])
    return sum(logs[a] * logs[b] for i, a in enumerate(others) for b in others[:i] if b not in near[a])


def _order(sizes: Sequence[int], near: _Near, rule: _Rule) -> tuple[list[int], int]:
    logs = [math.log(size) for size in sizes]
    waiting = {name: (rule(name, near, logs), _smallest(name, near, logs), name) for name in near}
    order, entries = [], 0
    while waiting:
        name = min(waiting, key=waiting.__getitem__)
        del waiting[name]
        others = near.pop(name)
        entries += sizes[name] * math.prod(sizes[other] for other in others)
        order.append(name)
        for other in others:
            near[other] |= others
            near[other] -= {name, other}
        changed = others.union(*(near[other] for other in others)) if others else others
        for other in changed:
            waiting[other] = rule(other, near, logs), _smallest(other, near, logs), other
    return order, entries

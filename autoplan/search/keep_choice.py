"""Which ops of a block are worth running again: the exact frontier between bytes kept and seconds spent.

Let x_o be 1 if step o runs again, y_s if storage s is needed in the backward pass (``cost.storages``). With b_s the
bytes of a storage, i_o those that only o's backward reads, t_o the seconds of a step and a price λ of a byte,

    minimise   Σ_s λ b_s [y_s = 1 and its maker does not run again] + Σ_o (t_o x_o + λ i_o (1 - x_o))
    such that  y_s = 1 where some backward reads s,  y_s ≥ x_o where o reads s

is a minimum cut: of the source, the storages and the steps that are 1. Each λ gives a policy that none beats; the
breakpoints between two policies are found by asking with the λ at which both cost the same (Eisner and Severance, 1976).
A few of them are offered, as the integer program of the stages mixes them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoplan.cost.keep import attention_core, hull, needed, on_or_above

if TYPE_CHECKING:
    from autoplan.cost.storages import Storages
    from autoplan.cost.times import Times
    from autoplan.graph.ir import Block
    from autoplan.hardware import Cluster

__all__ = ["POLICIES", "frontier", "least_frontier", "policies"]

POLICIES = ("selective", "ops1", "ops2", "offload")
"""The policies that there may be: the attention core alone; two points of the exact frontier; and what can be copied to
the host's memory and back while the unit computes, which is taken only where it is asked for."""

_ROUNDS = 3  # of splitting the frontier: up to 2 ** 3 - 1 points between its ends
_UNIT = 1 << 50  # capacities are integers
_DEAR_S = 1e6  # seconds a byte at which as few are kept as can be
_EXACT = 1e-9  # share by which a cut must be cheaper to be another one
_SOURCE, _SINK = 0, 1


def policies(block: Block, found: Storages, times: Times, cluster: Cluster) -> dict[str, dict[str, str]]:
    """The policies of ``POLICIES`` that make something of ``block`` worth making again; none for what never repeats."""
    if not block.path:
        return {}
    chosen: dict[str, dict[str, str]] = {}
    if core := attention_core(found):
        chosen["selective"] = core
    points = frontier(found)[1:]
    whole_s = times.forward_s + times.forward_comm_s
    points = [point for point in points if point[1] < whole_s]
    for name, steps in zip(("ops1", "ops2"), _most_useful(found.kept_bytes, points), strict=False):
        chosen[name] = dict.fromkeys(steps, "recompute")
    if parked := _parked(found, times, cluster):
        chosen["offload"] = dict.fromkeys(parked, "offload")
    return chosen


def _parked(found: Storages, times: Times, cluster: Cluster) -> list[str]:
    """The largest storages, one after another, while their copies take no longer than the passes beside them."""
    host = cluster.device.host
    if host is None:
        return []
    sizes = {s.maker: s.nbytes for s in found.storages if s.needed and s.maker and s.nbytes}
    chosen: list[str] = []
    total = 0.0
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        nbytes = total + sizes[name] + found.steps[name].inside_bytes
        if (
            host.time_s(nbytes, "to_host") <= times.forward_s
            and host.time_s(nbytes, "from_host") <= times.backward_s
        ):
            chosen.append(name)
            total = nbytes
    return [name for name in found.steps if name in chosen]


def frontier(found: Storages) -> list[tuple[float, float, tuple[str, ...]]]:
    """Bytes kept, seconds spent and steps that run again, from nothing again to the fewest bytes: the lower hull."""
    cuts = _Cuts(found)
    first = _priced(found, ())
    last = _priced(found, cuts.again(_DEAR_S))
    if last[0] >= first[0]:
        return [first]
    points = {first[:2]: first, last[:2]: last}
    pairs = [(first, last)]
    for _ in range(_ROUNDS):
        halves = []
        for a, b in pairs:
            middle = _priced(found, cuts.again((b[1] - a[1]) / (a[0] - b[0])))
            if not on_or_above(a[:2], middle[:2], b[:2]):  # a cut of the same cost may lie on their line
                points[middle[:2]] = middle
                halves += [(a, middle), (middle, b)]
        pairs = halves
    return sorted(points.values(), key=lambda point: -point[0])


def least_frontier(found: Storages) -> tuple[tuple[float, float], ...]:
    """Bytes kept and seconds spent that no set of steps is below, bytes falling: where the frontier is not known to its
    last corner, the corner of the two lines that it lies above."""
    cuts = _Cuts(found)
    first = found.kept_bytes, 0.0
    last = cuts.price(_DEAR_S)
    if last[0] >= first[0]:
        return (first,)
    points = [first, last]
    pairs = [((*first, 0.0), (*last, math.inf))]  # with the price of a byte at which nothing is below them
    for turn in range(_ROUNDS + 1):
        halves = []
        for a, b in pairs:
            if a[0] <= b[0] or b[1] <= a[1]:
                continue
            if turn == _ROUNDS:
                points.append(_corner(a, b))
                continue
            byte_s = (b[1] - a[1]) / (a[0] - b[0])
            middle = cuts.price(byte_s)
            if middle[1] + byte_s * middle[0] < (a[1] + byte_s * a[0]) * (1 - _EXACT):
                points.append(middle)
                halves += [(a, (*middle, byte_s)), ((*middle, byte_s), b)]
        pairs = halves
    return hull(points)


_Touched = tuple[float, float, float]
"""Bytes, seconds, and the price of a byte at which no other point costs less."""


def _corner(a: _Touched, b: _Touched) -> tuple[float, float]:
    """Where the lines meet that touch the frontier in ``a`` and, with fewer bytes, in ``b``."""
    kept = b[0] if b[2] == math.inf else (b[1] + b[2] * b[0] - a[1] - a[2] * a[0]) / (b[2] - a[2])
    return kept, a[1] + a[2] * (a[0] - kept)


def _priced(found: Storages, again: Sequence[str]) -> tuple[float, float, tuple[str, ...]]:
    runs, held = needed(found, again)
    kept = sum(found.storages[index].nbytes for index in held)
    kept += sum(step.inside_bytes for step in found.steps.values() if step.name not in runs)
    names = tuple(name for name in found.steps if name in runs)  # in this order sums are the same every time
    return kept, sum(found.steps[name].forward_s + found.steps[name].comm_s for name in names), names


class _Cuts:
    """The network of a unit, cut at one price of a byte after another."""

    def __init__(self, found: Storages) -> None:
        self._steps = steps = [step for step in found.steps.values() if step.again]
        node = {step.name: 2 + index for index, step in enumerate(steps)}
        at = 2 + len(steps)
        arcs: list[tuple[int, int, float, float, bool]] = []  # from, to, bytes, seconds, never to be cut
        for index, storage in enumerate(found.storages):
            arcs.append((at + index, node.get(storage.maker, _SINK), storage.nbytes, 0.0, False))
            if storage.needed:
                arcs.append((_SOURCE, at + index, 0.0, 0.0, True))
        for step in steps:
            arcs.append((node[step.name], _SINK, 0.0, step.forward_s + step.comm_s, False))
            if step.inside_bytes:
                arcs.append((_SOURCE, node[step.name], step.inside_bytes, 0.0, False))
            arcs += [(node[step.name], at + index, 0.0, 0.0, True) for index in step.reads]
        self._ends = np.array([arc[:2] for arc in arcs], dtype=np.int32).reshape(-1, 2).T.copy()
        self._prices = np.array([arc[2:4] for arc in arcs], dtype=float).reshape(-1, 2).T
        self._never = np.array([arc[4] for arc in arcs], dtype=bool)
        self._nodes = at + len(found.storages)
        # what steps keep that cannot run again is kept at any price
        self._fixed = sum(step.inside_bytes for step in found.steps.values() if not step.again)

    def again(self, byte_s: float) -> tuple[str, ...]:
        """The steps that run again where a byte kept costs ``byte_s`` seconds."""
        reached = self._reached(byte_s)
        return tuple(step.name for place, step in enumerate(self._steps, start=2) if reached[place])

    def price(self, byte_s: float) -> tuple[float, float]:
        """Bytes kept and seconds spent there."""
        reached, (tails, heads) = self._reached(byte_s), self._ends
        kept, seconds = self._prices @ (reached[tails] & ~reached[heads])
        return float(kept) + self._fixed, float(seconds)

    def _reached(self, byte_s: float) -> NDArray[np.bool_]:
        """Of each node, whether it is on the source's side of a minimum cut."""
        from ortools.graph.python import max_flow

        costs = byte_s * self._prices[0] + self._prices[1]
        scale = _UNIT / (costs.sum() or 1.0)
        sizes: Any = np.where(self._never, 4 * _UNIT, np.round(costs * scale).astype(np.int64))
        flow = max_flow.SimpleMaxFlow()
        flow.add_arcs_with_capacity(self._ends[0], self._ends[1], sizes)
        flow.solve(_SOURCE, _SINK)
        reached = np.zeros(self._nodes, dtype=bool)
        reached[flow.get_source_side_min_cut()] = True
        return reached


def _most_useful(
    whole: float, points: Sequence[tuple[float, float, tuple[str, ...]]]
) -> list[tuple[str, ...]]:
    """Two of ``points``: the one that frees the most bytes for its seconds among those that free a good part, and the
    one with the fewest bytes."""
    if not points:
        return []
    last = points[-1]
    span = whole - last[0]
    good = [point for point in points[:-1] if whole - point[0] >= span / 3]
    first = max(good, key=lambda point: (whole - point[0]) / point[1], default=None)
    return [last[2]] if first is None else [first[2], last[2]]

"""How a group of ranks lies on the levels, and what a collective over it costs.

Ranks are numbered node by node, the innermost level fastest. A mesh axis of ``size`` ranks spaced
``stride`` apart makes world/size groups; all of them run the collective at once, so the devices of
a unit share its links to the level above equally.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from autoplan.hardware.interpolate import greater
from autoplan.hardware.level import Level

__all__ = ["collective_phases", "collective_time_s", "group_spans", "p2p_time_s", "pipelined", "ring_share"]


@lru_cache(maxsize=65536)
def group_spans(
    level_sizes: tuple[int, ...], size: int, stride: int
) -> tuple[tuple[int, int, int, int], ...]:
    """For each level that a group spans: (level, units it joins, members inside one such unit, devices of a unit).

    >>> group_spans((8, 16), 16, 1)   # two whole nodes
    ((0, 8, 1, 1), (1, 2, 8, 8))
    >>> group_spans((8, 16), 16, 8)   # one rank of every node
    ((1, 16, 1, 8),)
    """
    spans = []
    unit, inside = 1, 1
    for level, count in enumerate(level_sizes):
        outer = unit * count
        last = level == len(level_sizes) - 1
        members = size if last else min(size, max(inside, outer // stride, 1))
        if members > inside:
            spans.append((level, math.ceil(members / inside), inside, unit))
        unit, inside = outer, members
    return tuple(spans)


def collective_time_s(
    levels: Sequence[Level], kind: str, nbytes: Any, size: int, stride: int, *, alone: bool = False
) -> Any:
    """Seconds for ``kind`` over every group of ``size`` ranks ``stride`` apart, all at once.

    A group of n that spans levels is one ring (NCCL; its trees send as much): with c members of the
    group inside a unit, c rings cross the level above, and each carries 1/c of the (n - 1) / n of the
    message that every link of a ring carries, however few units the level joins. Chunks flow through
    the levels in a pipeline, so the slowest sets the pace and the others add their latency:

        T = sum of T_l(0) + max of (T_l(nbytes_l) - T_l(0)),   nbytes_l = nbytes / c_l (1 - 1/n) / (1 - 1/joined_l)

    An all-to-all sends (c_above - c) / size of its bytes over each level, all levels at once.

    Args:
        alone: one group only; the other devices are silent, and leave it their links.
    """
    return pipelined(collective_phases(levels, kind, nbytes, size, stride, alone=alone).values())


def collective_phases(
    levels: Sequence[Level], kind: str, nbytes: Any, size: int, stride: int, *, alone: bool = False
) -> dict[int, tuple[Any, Any]]:
    """By level that the group spans: ``(T_l(0), T_l(nbytes_l) - T_l(0))``."""
    phases = {}
    for index, joined, inside, unit in group_spans(tuple(level.size for level in levels), size, stride):
        level = levels[index]
        part = joined * inside / size if kind == "all_to_all" else ring_share(size, joined) / inside
        at_work = inside if alone else unit
        share = min(max(1.0, level.nics / unit), level.nics / at_work)
        busy = _busy(at_work, unit) if alone else 1.0
        tree = index > 0
        least_s = level.floor_s(kind, joined, share=share, busy=busy, tree=tree)
        time_s = level.time_s(kind, greater(nbytes * part, 1.0), joined, share=share, busy=busy, tree=tree)
        phases[index] = least_s, time_s - least_s
    return phases


def ring_share(size: int, joined: int) -> float:
    """Message of a ring over the ``joined`` units of a level alone that loads links as one over ``size`` ranks does."""
    return (1 - 1 / size) / (1 - 1 / joined)


def pipelined(phases: Iterable[tuple[Any, Any]]) -> Any:
    """The latencies of all phases, and the transfer of the slowest."""
    floor_s: Any = 0.0
    slowest_s: Any = 0.0
    for least_s, transfer_s in phases:
        floor_s = floor_s + least_s
        slowest_s = greater(slowest_s, transfer_s)
    return floor_s + slowest_s


def p2p_time_s(levels: Sequence[Level], nbytes: Any, stride: int, size: int) -> Any:
    """Seconds to send ``nbytes`` from each rank to the one ``stride`` further on, in groups of ``size``.

    Priced at the outermost level that any pair of a group crosses. ``min(stride, devices of a
    unit)`` devices of a unit send at once and share its links; one transfer uses at most one link.
    """
    spans = group_spans(tuple(level.size for level in levels), size, stride)
    if not spans:
        return 0.0
    index, _, _, unit = spans[-1]
    at_work = min(stride, unit)
    share = min(1.0, levels[index].nics / at_work)
    return levels[index].time_s("send_recv", greater(nbytes, 1.0), 2, share=share, busy=_busy(at_work, unit))


def _busy(at_work: int, unit: int) -> float:
    """0 for one device of a unit, 1 for all of them (and for a unit that is one device)."""
    return math.log(at_work) / math.log(unit) if unit > 1 else 1.0

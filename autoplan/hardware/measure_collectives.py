"""Microbenchmarks of the links: every collective, over message and group sizes, all groups or one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from autoplan.hardware.level import COLLECTIVES
from autoplan.hardware.measure_points import Message, group_sizes
from autoplan.hardware.topology import Topology

__all__ = ["Ring", "collective_call", "make_ring", "make_rings", "message_call", "ring_starts"]

# torch 2.13 renamed these two; earlier versions have only the long names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Ring:
    """This rank's group of ``size`` ranks, ``stride`` apart; ``first`` and ``rank`` are global numbers."""

    group: dist.ProcessGroup
    size: int
    stride: int
    rank: int
    first: int


def make_rings(topology: Topology, rank: int) -> dict[tuple[int, int], Ring | None]:
    """This rank's ring by (level, group size); every rank must call this."""
    rings = {}
    for index, level in enumerate(topology.levels):
        unit = topology.unit(index)
        for size in group_sizes(level.size):
            rings[index, size] = make_ring(size, unit, level.size * unit, topology.world, rank)
    return rings


def make_ring(size: int, stride: int, span: int, world: int, rank: int) -> Ring | None:
    """Cut every ``span`` ranks into groups of ``size`` ranks ``stride`` apart; every rank must call this.

    None for a rank that is in no whole group (it still takes part in the measuring's barriers). Groups
    are made by all ranks in turn: torch names those that only their members make by their members, so that
    a second one finds the addresses of the first.
    """
    mine = None
    for first in ring_starts(size, stride, span, world):
        members = [first + i * stride for i in range(size)]
        group = dist.new_group(members)
        if rank in members and isinstance(group, dist.ProcessGroup):
            mine = Ring(group, size, stride, rank, first)
    return mine


def ring_starts(size: int, stride: int, span: int, world: int) -> list[int]:
    """The first rank of every whole group.

    >>> ring_starts(2, 2, 4, 8)  # 0 and 2, 1 and 3, 4 and 6, 5 and 7
    [0, 1, 4, 5]
    """
    return [
        start
        for start in range(world)
        if start % span % (size * stride) < stride and start % span + (size - 1) * stride < span
    ]


def message_call(point: Message, ring: Ring | None, device: torch.device) -> Call:
    """What this rank does for ``point``: nothing if it is in no group, or not in the one at work."""
    if ring is None or (point.at_once == "one" and ring.first != 0):
        return _nothing
    return collective_call(point.kind, point.share, ring, device)


def _nothing() -> None:
    return None


def collective_call(
    kind: str, share: int, ring: Ring, device: torch.device, *, asynchronous: bool = False
) -> Call:
    """One ``kind`` with ``share`` float32 elements for each member; asynchronous: returns its work."""
    whole = torch.zeros(share * ring.size, device=device, dtype=torch.float32)
    part = torch.zeros(share, device=device, dtype=torch.float32)
    other = torch.empty_like(whole) if kind == "all_to_all" else whole
    options = {"group": ring.group, "async_op": asynchronous}
    calls: dict[str, Call] = {
        "all_reduce": lambda: dist.all_reduce(whole, **options),
        "all_gather": lambda: _all_gather(whole, part, **options),
        "reduce_scatter": lambda: _reduce_scatter(part, whole, **options),
        "all_to_all": lambda: dist.all_to_all_single(other, whole, **options),
        "send_recv": lambda: _there_and_back(ring, whole),
    }
    assert set(calls) == set(COLLECTIVES)
    return calls[kind]


def _there_and_back(ring: Ring, message: torch.Tensor) -> None:
    """A message to the next rank and back: half of the time is one way."""
    peers = (ring.first, ring.first + ring.stride)
    if ring.rank == peers[0]:
        dist.send(message, peers[1], group=ring.group)
        dist.recv(message, peers[1], group=ring.group)
    elif ring.rank == peers[1]:
        dist.recv(message, peers[0], group=ring.group)
        dist.send(message, peers[0], group=ring.group)

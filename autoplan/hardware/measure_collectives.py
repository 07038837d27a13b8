"""Microbenchmarks of the links: every collective, over message and group sizes, all groups at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from autoplan.hardware.level import COLLECTIVES, bus_factor
from autoplan.hardware.measure_clock import Clock
from autoplan.hardware.tables import CommunicationPoint

__all__ = ["Ring", "group_sizes", "make_ring", "measure_message"]

ITEM = 4  # bytes of a float32

# torch 2.13 renamed these two; earlier versions have only the long names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True, slots=True)
class Ring:
    """This rank's group of ``size`` ranks, ``stride`` apart; ``first`` and ``rank`` are global numbers."""

    group: dist.ProcessGroup
    size: int
    stride: int
    rank: int
    first: int


def group_sizes(level_size: int) -> list[int]:
    """The powers of two up to a level's size, and that size."""
    sizes = [2**i for i in range(1, level_size.bit_length()) if 2**i < level_size]
    return [*sizes, level_size] if level_size > 1 else []


def make_ring(size: int, stride: int, span: int, world: int, rank: int) -> Ring | None:
    """Cut every ``span`` ranks into groups of ``size`` ranks ``stride`` apart; every rank must call this.

    None for a rank that is in no whole group (it still takes part in the measuring's barriers).
    """
    mine = None
    for start in range(world):
        place = start % span
        if place % (size * stride) >= stride or place + (size - 1) * stride >= span:
            continue
        members = [start + i * stride for i in range(size)]
        group = dist.new_group(members)
        if rank in members and isinstance(group, dist.ProcessGroup):
            mine = Ring(group, size, stride, rank, start)
    return mine


def measure_message(clock: Clock, ring: Ring | None, kind: str, nbytes: int, size: int) -> CommunicationPoint:
    """Bus bandwidth of ``kind`` with about ``nbytes`` (rounded up to whole shares) in groups of ``size``."""
    share = -(-nbytes // (ITEM * size))
    call = _call(clock, ring, kind, share) if ring is not None else _nothing
    timing = clock.measure(call, computes=False)
    actual = ITEM * share * size
    time_s = timing.time_s / 2 if kind == "send_recv" else timing.time_s
    bus = bus_factor(kind, size) * actual / time_s
    return CommunicationPoint(actual, float(f"{bus:.4g}"), timing.spread)


def _nothing() -> None:
    return None


def _call(clock: Clock, ring: Ring, kind: str, share: int) -> Callable[[], object]:
    whole = torch.zeros(share * ring.size, device=clock.device, dtype=torch.float32)
    part = torch.zeros(share, device=clock.device, dtype=torch.float32)
    group = ring.group
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(whole, group=group),
        "all_gather": lambda: _all_gather(whole, part, group=group),
        "reduce_scatter": lambda: _reduce_scatter(part, whole, group=group),
        "all_to_all": lambda: dist.all_to_all_single(other, whole, group=group),
        "send_recv": lambda: _there_and_back(ring, whole),
    }
    other = torch.empty_like(whole) if kind == "all_to_all" else whole
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

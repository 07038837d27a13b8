"""What each pipeline rank runs, in which order, as data.

A model is cut into ``pp · vpp`` chunks in the order of its depth; ``chunk`` counts them from 0. Looped
schedules put chunk c on rank ``c mod pp``; V-shaped ones (vpp = 2) put it on rank c on the way down and
on rank ``2·pp - 1 - c`` on the way back, so that the first and the last chunk share rank 0.

Actions are written as ``torch.distributed.pipelining`` writes them: ``3F1`` is the forward of chunk 3
for micro-batch 1; ``B`` is a whole backward, ``I`` its half that gives the gradient of the input, and
``W`` the half that gives the gradients of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple

__all__ = ["Action", "Order", "Pass"]


class Pass(StrEnum):
    """What an action computes."""

    FORWARD = "F"
    BACKWARD = "B"
    INPUT = "I"
    WEIGHT = "W"


class Action(NamedTuple):
    """One pass of one micro-batch through one chunk.

    ``with_next`` says that the action and the next one on its rank are issued as a pair (the
    overlapped forward and backward of DualPipe-V), so that what either sends leaves after both.
    """

    chunk: int
    kind: Pass
    micro_batch: int
    with_next: bool = False

    def __str__(self) -> str:
        return f"{self.chunk}{self.kind.value}{self.micro_batch}"


@dataclass(frozen=True)
class Order:
    """The actions of every rank.

    Args:
        schedule: its name, one of ``SCHEDULES``.
        pp, vpp, micro_batches: ranks, chunks on each, micro-batches.
        rank_of: the rank that holds each chunk, ``pp · vpp`` of them.
        ranks: for each rank, its actions from first to last.
    """

    schedule: str
    pp: int
    vpp: int
    micro_batches: int
    rank_of: tuple[int, ...]
    ranks: tuple[tuple[Action, ...], ...]

    @property
    def chunks(self) -> int:
        return self.pp * self.vpp

    @cached_property
    def chunks_of(self) -> tuple[tuple[int, ...], ...]:
        """The chunks of each rank, in the order of the model's depth."""
        return tuple(
            tuple(c for c, rank in enumerate(self.rank_of) if rank == here) for here in range(self.pp)
        )

"""Seconds of a forward and a backward pass, by what the device does in them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NO_TIME", "Times", "exposed_s"]


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one micro-batch: computing, and waiting for collectives on the tp, cp and ep axes.

    ``cp_comm_s`` is that part of both waits which is cp's, or ep's (a plan has one of the two).
    """

    forward_s: float = 0.0
    backward_s: float = 0.0
    forward_comm_s: float = 0.0
    backward_comm_s: float = 0.0
    cp_comm_s: float = 0.0

    @property
    def comm_s(self) -> float:
        return self.forward_comm_s + self.backward_comm_s

    @property
    def total_s(self) -> float:
        return self.forward_s + self.backward_s + self.forward_comm_s + self.backward_comm_s

    def __add__(self, other: Times) -> Times:
        return Times(
            self.forward_s + other.forward_s,
            self.backward_s + other.backward_s,
            self.forward_comm_s + other.forward_comm_s,
            self.backward_comm_s + other.backward_comm_s,
            self.cp_comm_s + other.cp_comm_s,
        )

    def __sub__(self, other: Times) -> Times:
        return Times(
            self.forward_s - other.forward_s,
            self.backward_s - other.backward_s,
            self.forward_comm_s - other.forward_comm_s,
            self.backward_comm_s - other.backward_comm_s,
            self.cp_comm_s - other.cp_comm_s,
        )


NO_TIME = Times()


def exposed_s(comm_s: float, compute_s: float, overlap: float) -> float:
    """What ``comm_s`` of communication adds to ``compute_s`` of compute that runs beside it.

    Convex and growing in ``comm_s``, and never more than it: max((1 - overlap)·comm, comm - compute).
    """
    return comm_s - min(overlap * comm_s, compute_s)

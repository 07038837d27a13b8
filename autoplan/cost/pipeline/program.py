"""The events of a schedule, compiled once for its shape.

Every event is a node that runs on one lane (a rank's compute, a link between two ranks, a rank's second
stream) and starts when the two nodes that it waits for have ended:

    end[n] = max(end[first[n]], end[second[n]]) + seconds[cost[n]]

    node      lane               waits for
    head      rank               nothing
    pass      rank               the pass before it on its rank; what brings its input
    send      sender → receiver  the pass that made it; the send before it on that link
    reduce    second stream      the last backward of its chunk; the reduce before it
    tail      rank               its last pass; its last reduce

``first`` of a pass is what comes before it on its rank. Sends are *overlapped*, as the multi-chunk
schedules of torch (and Megatron-LM's ``overlap_p2p_comm``) run them: they wait for no receiver and
hold up no compute. Or they are *exposed*: the receiver asks only when its own pass before has ended.
torch's GPipe and 1F1B do so, and there a rank that next receives from the rank that it sends to waits
for its send too, because both travel in one batch (``ScheduleRule.batched_sends``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autoplan.cost.pipeline.order import Action, Order, Pass

__all__ = ["PASSES", "Costs", "Program"]

PASSES = (Pass.FORWARD, Pass.BACKWARD, Pass.INPUT, Pass.WEIGHT)


@dataclass(frozen=True, slots=True)
class Costs:
    """Where each kind of seconds lies in the table that a program reads; row 0 is zero."""

    pp: int
    chunks: int

    def head(self, rank: int) -> int:
        return 1 + rank

    def tail(self, rank: int) -> int:
        return 1 + self.pp + rank

    def reduce(self, chunk: int) -> int:
        return 1 + 2 * self.pp + chunk

    def send(self, chunk: int, backward: bool) -> int:
        """Of chunk's output forward, or of its input's gradient backward."""
        return 1 + 2 * self.pp + (2 if backward else 1) * self.chunks + chunk

    def run(self, chunk: int, kind: Pass) -> int:
        return 1 + 2 * self.pp + (3 + PASSES.index(kind)) * self.chunks + chunk

    @property
    def rows(self) -> int:
        return 1 + 2 * self.pp + (3 + len(PASSES)) * self.chunks


@dataclass(frozen=True, eq=False)
class Program:
    """A schedule's events, sorted so that each comes after those that it waits for.

    Nodes are grouped by depth: those of ``levels[k]`` wait only for nodes of earlier levels. Node 0 ends
    at second 0.

    Args:
        order: what is run.
        exposed_sends: see the module.
        first, second: shape (nodes,), the two nodes that each waits for.
        cost: shape (nodes,), its row in the table of seconds.
        levels: slices of nodes.
        passes: for each rank, the nodes of its actions, in order.
        sends: shape (nodes,), True for sends.
        heads, tails: for each rank, its first and last node.
        reduces: for each chunk, the node of its reduce.
        carried: of each send, in no order: its node, the sender, and which of the sender's actions made
            what it carries; shape (3, sends).
    """

    order: Order
    exposed_sends: bool
    costs: Costs
    first: NDArray[np.intp]
    second: NDArray[np.intp]
    cost: NDArray[np.intp]
    levels: tuple[slice, ...]
    passes: tuple[NDArray[np.intp], ...]
    sends: NDArray[np.bool_]
    heads: NDArray[np.intp]
    tails: NDArray[np.intp]
    reduces: NDArray[np.intp]
    carried: NDArray[np.intp]

    @property
    def last(self) -> NDArray[np.intp]:
        """For each rank, the node of its last pass."""
        return np.array([nodes[-1] for nodes in self.passes])

    @cached_property
    def send_of(self) -> dict[int, tuple[int, int, Action]]:
        """Of each send's node: sender, receiver, and the action whose output it carries."""
        found = {}
        for node, sender, place in self.carried.T.tolist():
            action = self.order.ranks[sender][place]
            to = action.chunk + (1 if action.kind is Pass.FORWARD else -1)
            found[node] = (sender, self.order.rank_of[to], action)
        return found

    @cached_property
    def edges(self) -> tuple[list[int], list[int]]:
        """``first`` and ``second`` of every node but node 0, for a loop in plain Python."""
        return self.first[1:].tolist(), self.second[1:].tolist()

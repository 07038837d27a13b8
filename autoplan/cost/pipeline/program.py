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

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from autoplan.cost.pipeline.order import Action, Order, Pass
from autoplan.cost.pipeline.schedules import pipeline_order, schedule_rule

__all__ = ["Costs", "Program", "compiled"]

_PASSES = (Pass.FORWARD, Pass.BACKWARD, Pass.INPUT, Pass.WEIGHT)


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
        return 1 + 2 * self.pp + (3 + _PASSES.index(kind)) * self.chunks + chunk

    @property
    def rows(self) -> int:
        return 1 + 2 * self.pp + (3 + len(_PASSES)) * self.chunks


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
        ready: shape (nodes,), for a send the node at whose end it is ready to travel.
        heads, tails: for each rank, its first and last node.
        last: for each rank, the node of its last pass.
        reduces: for each chunk, the node of its reduce.
        send_of: of each send's node: sender, receiver, and the action whose output it carries.
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
    ready: NDArray[np.intp]
    heads: NDArray[np.intp]
    tails: NDArray[np.intp]
    last: NDArray[np.intp]
    reduces: NDArray[np.intp]
    send_of: dict[int, tuple[int, int, Action]]

    @cached_property
    def edges(self) -> tuple[list[int], list[int]]:
        """``first`` and ``second`` of every node but node 0, for a loop in plain Python."""
        return self.first[1:].tolist(), self.second[1:].tolist()


@lru_cache(maxsize=32)
def compiled(schedule: str, pp: int, vpp: int, micro_batches: int, exposed_sends: bool = False) -> Program:
    """The events of ``schedule`` over ``pp`` ranks of ``vpp`` chunks, kept for the next call.

    Raises InputError if the schedule cannot run so (see ``pipeline_order``).
    """
    return _Compiler(pipeline_order(schedule, pp, vpp, micro_batches), exposed_sends).program()


class _Compiler:
    """Walks every rank's actions as far as their inputs exist, in turn, until all have run."""

    def __init__(self, order: Order, exposed_sends: bool) -> None:
        self.order, self.exposed = order, exposed_sends
        self.batched = exposed_sends and schedule_rule(order.schedule).batched_sends
        self.costs = Costs(order.pp, order.chunks)
        self.first, self.second, self.cost, self.level = [0], [0], [0], [0]
        self.heads = [self.add(0, 0, self.costs.head(rank)) for rank in range(order.pp)]
        self.last = list(self.heads)
        self.passes: list[list[int]] = [[] for _ in range(order.pp)]
        self.outputs: dict[tuple[int, bool, int], int] = {}  # node that makes, or brings, a chunk's output
        self.links: dict[tuple[int, int], int] = {}  # last send between two ranks
        self.ready: dict[int, int] = {}
        self.send_of: dict[int, tuple[int, int, Action]] = {}
        self.held: list[list[Action]] = [
            [] for _ in range(order.pp)
        ]  # forwards whose sends wait for the next pass
        self.travels: list[tuple[int, bool, int] | None] = [
            None
        ] * order.pp  # what a rank has just made, if exposed
        self.sent: dict[tuple[int, bool, int], int] = {}

    def add(self, first: int, second: int, cost: int) -> int:
        self.first.append(first)
        self.second.append(second)
        self.cost.append(cost)
        self.level.append(max(self.level[first], self.level[second]) + 1)
        return len(self.level) - 1

    def program(self) -> Program:
        at = [0] * self.order.pp
        while any(k < len(actions) for k, actions in zip(at, self.order.ranks, strict=True)):
            before = sum(at)
            for rank, actions in enumerate(self.order.ranks):
                while at[rank] < len(actions) and self.run(rank, actions[at[rank]]):
                    at[rank] += 1
            assert sum(at) > before, f"{self.order.schedule} waits for what never comes"
        return self.finish()

    def run(self, rank: int, action: Action) -> bool:
        """Add ``action``, what brings its input and what it sends; False if its input is not made yet."""
        source = self.source(action)
        arrived, start = 0, self.last[rank]
        if source is not None:
            if source not in self.outputs:
                return False
            arrived = self.outputs[source]
            sender = self.order.rank_of[source[0]]
            if self.exposed and sender != rank:
                newest = self.travels[rank] if self.batched else None
                if newest is not None and self.receiver(newest) == sender:
                    if newest not in self.sent:
                        # The other end may be waiting for the batch that this receive is part of.
                        self.receive(source, rank, sender)
                        return False
                    start = self.sent[newest]
                arrived = self.receive(source, rank, sender)
        node = self.add(start, arrived, self.costs.run(action.chunk, action.kind))
        self.last[rank] = node
        self.passes[rank].append(node)
        self.held[rank].append(action)
        if not action.with_next:
            for made in self.held[rank]:
                self.release(rank, made, node)
            self.held[rank] = []
        return True

    def source(self, action: Action) -> tuple[int, bool, int] | None:
        """(chunk, backward, micro-batch) of the pass that makes the input of ``action``."""
        match action.kind:
            case Pass.FORWARD if action.chunk > 0:
                return action.chunk - 1, False, action.micro_batch
            case Pass.BACKWARD | Pass.INPUT if action.chunk < self.order.chunks - 1:
                return action.chunk + 1, True, action.micro_batch
            case _:
                return None

    def receiver(self, output: tuple[int, bool, int]) -> int:
        chunk, backward, _ = output
        return self.order.rank_of[chunk - 1 if backward else chunk + 1]

    def receive(self, source: tuple[int, bool, int], rank: int, sender: int) -> int:
        """The exposed send that brings ``source``: it starts when both ends are there."""
        if source not in self.sent:
            chunk, backward, micro_batch = source
            kind = Pass.BACKWARD if backward else Pass.FORWARD
            node = self.add(self.outputs[source], self.last[rank], self.costs.send(chunk, backward))
            self.sent[source] = node
            self.send_of[node] = (sender, rank, Action(chunk, kind, micro_batch))
        return self.sent[source]

    def release(self, rank: int, made: Action, node: int) -> None:
        """What ``made`` gives to a neighbour leaves at the end of ``node``."""
        self.travels[rank] = None
        backward = made.kind is not Pass.FORWARD
        ends = made.chunk == (0 if backward else self.order.chunks - 1)
        if made.kind is Pass.WEIGHT or ends:
            return
        output = (made.chunk, backward, made.micro_batch)
        receiver = self.receiver(output)
        if receiver == rank:
            self.outputs[output] = node
        elif self.exposed:
            self.outputs[output] = node
            self.travels[rank] = output
        else:
            link = (rank, receiver)
            send = self.add(self.links.get(link, 0), node, self.costs.send(made.chunk, backward))
            self.links[link] = self.outputs[output] = send
            self.ready[send] = node
            self.send_of[send] = (rank, receiver, made)

    def finish(self) -> Program:
        order = self.order
        reduces, tails = [0] * order.chunks, []
        for rank, actions in enumerate(order.ranks):
            left = dict.fromkeys(order.chunks_of[rank], order.micro_batches)
            newest = 0
            for action, node in zip(actions, self.passes[rank], strict=True):
                if action.kind in (Pass.BACKWARD, Pass.WEIGHT):
                    left[action.chunk] -= 1
                    if left[action.chunk] == 0:
                        newest = self.add(newest, node, self.costs.reduce(action.chunk))
                        reduces[action.chunk] = newest
            tails.append(self.add(self.last[rank], newest, self.costs.tail(rank)))
        return self.sorted(reduces, tails)

    def sorted(self, reduces: list[int], tails: list[int]) -> Program:
        level = np.array(self.level)
        by_level = np.argsort(level, kind="stable")
        place = np.empty_like(by_level)
        place[by_level] = np.arange(len(by_level))
        bounds = np.searchsorted(level[by_level], np.arange(1, level.max() + 2))
        ready = np.zeros(len(level), dtype=np.intp)
        ready[list(self.ready)] = list(self.ready.values())
        sends = np.zeros(len(level), dtype=np.bool_)
        sends[list(self.send_of)] = True
        return Program(
            order=self.order,
            exposed_sends=self.exposed,
            costs=self.costs,
            first=place[np.array(self.first)[by_level]],
            second=place[np.array(self.second)[by_level]],
            cost=np.array(self.cost)[by_level],
            levels=tuple(_slices(bounds.tolist())),
            passes=tuple(place[nodes] for nodes in self.passes),
            sends=sends[by_level],
            ready=place[ready[by_level]],
            heads=place[self.heads],
            tails=place[tails],
            last=place[self.last],
            reduces=place[reduces],
            send_of={int(place[node]): sent for node, sent in self.send_of.items()},
        )


def _slices(bounds: list[int]) -> Iterator[slice]:
    return (slice(start, stop) for start, stop in pairwise(bounds))

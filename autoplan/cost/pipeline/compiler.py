"""From a schedule's order to its program of events."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise

import numpy as np
from numpy.typing import NDArray

from autoplan.cost.pipeline.order import Order, Pass
from autoplan.cost.pipeline.program import PASSES, Costs, Program
from autoplan.cost.pipeline.schedules import pipeline_order, schedule_rule

__all__ = ["compiled"]

Ints = NDArray[np.intp]
_NONE = -1


@lru_cache(maxsize=32)
def compiled(schedule: str, pp: int, vpp: int, micro_batches: int, exposed_sends: bool = False) -> Program:
    """The events of ``schedule`` over ``pp`` ranks of ``vpp`` chunks, kept for the next call.

    Raises InputError if the schedule cannot run so (see ``pipeline_order``).
    """
    order = pipeline_order(schedule, pp, vpp, micro_batches)
    batched = exposed_sends and schedule_rule(schedule).batched_sends
    passes = _Passes.of(order)
    graph = _graph(order, passes, exposed_sends, batched)
    return _finished(order, passes, graph, exposed_sends)


@dataclass(frozen=True, slots=True)
class _Passes:
    """The passes of all ranks, one rank after another; every array has shape (passes,).

    Args:
        bounds: where each rank's begin, and the end; shape (ranks + 1,).
        rank, chunk, kind: of each; kinds count ``PASSES``.
        before: the pass before it on its rank, or none.
        source: the pass that makes its input, or none.
        released: the pass at whose end its output leaves.
    """

    bounds: Ints
    rank: Ints
    chunk: Ints
    kind: Ints
    before: Ints
    source: Ints
    released: Ints

    @classmethod
    def of(cls, order: Order) -> _Passes:
        actions = list(chain.from_iterable(order.ranks))
        code = {kind: place for place, kind in enumerate(PASSES)}
        bounds = np.cumsum([0, *map(len, order.ranks)])
        here = np.arange(len(actions))
        chunk = np.array([action[0] for action in actions])
        kind = np.array([code[action[1]] for action in actions])
        micro_batch = np.array([action[2] for action in actions])
        with_next = np.array([action[3] for action in actions])
        before = here - 1
        before[bounds[:-1]] = _NONE
        forward, weight = kind == code[Pass.FORWARD], kind == code[Pass.WEIGHT]
        # Who makes the output of each (direction, chunk, micro-batch); chunk -1 and the one past the last make none.
        maker = np.full((2, order.chunks + 2, order.micro_batches), _NONE)
        gives = ~weight
        maker[np.where(forward, 0, 1)[gives], chunk[gives] + 1, micro_batch[gives]] = here[gives]
        source = np.where(
            forward, maker[0, chunk, micro_batch], maker[1, np.where(weight, 0, chunk + 2), micro_batch]
        )
        return cls(
            bounds=bounds,
            rank=np.repeat(np.arange(order.pp), np.diff(bounds)),
            chunk=chunk,
            kind=kind,
            before=before,
            source=np.where(weight, _NONE, source),
            released=here + with_next,
        )


@dataclass(frozen=True, slots=True)
class _Graph:
    """Nodes 0, heads, then passes and sends: by rank, and in the order in which a rank meets them.

    Args:
        first, second, cost: as in ``Program``.
        spans: where each rank's passes and sends begin, and the end.
        passes: the node of each pass.
        sends: the node of each send.
        made: the pass that made what each send carries.
    """

    first: Ints
    second: Ints
    cost: Ints
    spans: Ints
    passes: Ints
    sends: Ints
    made: Ints


def _graph(order: Order, passes: _Passes, exposed: bool, batched: bool) -> _Graph:
    costs = Costs(order.pp, order.chunks)
    count = len(passes.rank)
    fed = np.flatnonzero(passes.source >= 0)
    fed = fed[passes.rank[passes.source[fed]] != passes.rank[fed]]  # passes whose input travels
    made = passes.source[fed]
    left = passes.released[made]
    # An overlapped send belongs to its sender, after the pass that lets it go (one of a pair that waited
    # goes first); an exposed one to its receiver, before the pass that it feeds.
    place = 4 * fed - 1 if exposed else 4 * left + np.where(left == made, 2, 1)
    owner = passes.rank[fed] if exposed else passes.rank[made]
    nodes = np.empty(count + len(fed), dtype=np.intp)
    nodes[np.argsort(np.concatenate((4 * np.arange(count), place)))] = np.arange(len(nodes))
    nodes += 1 + order.pp
    pass_node, send_node = nodes[:count], nodes[count:]
    previous = np.where(passes.before >= 0, pass_node[passes.before], 1 + passes.rank)
    ready = pass_node[left]

    total = 1 + order.pp + len(nodes)
    first, second, cost = (np.zeros(total, dtype=np.intp) for _ in range(3))
    cost[1 : 1 + order.pp] = [costs.head(rank) for rank in range(order.pp)]
    at_pass = np.array([[costs.run(chunk, kind) for kind in PASSES] for chunk in range(order.chunks)])
    cost[pass_node] = at_pass[passes.chunk, passes.kind]
    backward = passes.kind[made] != PASSES.index(Pass.FORWARD)
    at_send = np.array([[costs.send(chunk, way) for way in (False, True)] for chunk in range(order.chunks)])
    cost[send_node] = at_send[passes.chunk[made], backward.astype(np.intp)]

    local = passes.source >= 0
    local[fed] = False
    second[pass_node[local]] = pass_node[passes.released[passes.source[local]]]
    second[pass_node[fed]] = send_node
    first[pass_node] = previous
    if exposed:
        first[send_node], second[send_node] = previous[fed], ready
        if batched:
            carrier = np.full(count + 1, _NONE)  # the send that carries a pass's output; none for none
            carrier[made] = np.arange(len(made))
            mine = carrier[passes.before[fed]]
            waits = (mine >= 0) & (passes.rank[fed[mine]] == passes.rank[made])
            first[pass_node[fed[waits]]] = send_node[mine[waits]]
    else:
        first[send_node], second[send_node] = _previous_on_link(order, passes, fed, made, send_node), ready
    sizes = np.diff(passes.bounds) + np.bincount(owner, minlength=order.pp)
    spans = 1 + order.pp + np.cumsum([0, *sizes])
    return _Graph(first, second, cost, spans, pass_node, send_node, made)


def _previous_on_link(order: Order, passes: _Passes, fed: Ints, made: Ints, send_node: Ints) -> Ints:
    """Of each send, the one before it from the same rank to the same rank, or node 0."""
    link = passes.rank[made] * order.pp + passes.rank[fed]
    in_turn = np.lexsort((send_node, link))
    before = np.zeros(len(fed), dtype=np.intp)
    same = link[in_turn[1:]] == link[in_turn[:-1]]
    before[in_turn[1:][same]] = send_node[in_turn[:-1][same]]
    return before


def _levels(graph: _Graph, pp: int) -> list[int]:
    """How deep each node lies. Walks every rank as far as what it waits for is known, in turn."""
    first, second = graph.first.tolist(), graph.second.tolist()
    spans = graph.spans.tolist()
    level = [0, *[1] * pp, *[_NONE] * (len(first) - 1 - pp)]
    at = spans[:-1]
    moved = True
    while moved:
        moved = False
        for rank, stop in enumerate(spans[1:]):
            start = node = at[rank]
            while node < stop:
                a, b = level[first[node]], level[second[node]]
                if a < 0 or b < 0:
                    break
                level[node] = (a if a > b else b) + 1
                node += 1
            if node > start:
                at[rank], moved = node, True
    assert at == spans[1:], "a rank waits for what never comes"
    return level


def _finished(order: Order, passes: _Passes, graph: _Graph, exposed: bool) -> Program:
    """Add reduces and tails, and sort by level."""
    costs = Costs(order.pp, order.chunks)
    level = _levels(graph, order.pp)
    first, second, cost = [], [], []

    def add(one: int, other: int, row: int) -> int:
        first.append(one)
        second.append(other)
        cost.append(row)
        level.append(max(level[one], level[other]) + 1)
        return len(level) - 1

    ends = np.zeros(order.chunks, dtype=np.intp)  # of each chunk, its last pass
    np.maximum.at(ends, passes.chunk, np.arange(len(passes.chunk)))
    reduces, tails = [0] * order.chunks, []
    for rank, chunks in enumerate(order.chunks_of):
        newest = 0
        for chunk in sorted(chunks, key=lambda c: ends[c]):
            newest = reduces[chunk] = add(newest, int(graph.passes[ends[chunk]]), costs.reduce(chunk))
        tails.append(add(int(graph.passes[passes.bounds[rank + 1] - 1]), newest, costs.tail(rank)))

    depth = np.array(level)
    by_level = np.argsort(depth, kind="stable")
    place = np.empty_like(by_level)
    place[by_level] = np.arange(len(by_level))
    bounds = np.searchsorted(depth[by_level], np.arange(1, depth.max() + 2))
    sends = np.zeros(len(level), dtype=np.bool_)
    sends[graph.sends] = True
    sender = passes.rank[graph.made]
    return Program(
        order=order,
        exposed_sends=exposed,
        costs=costs,
        first=place[np.concatenate((graph.first, first)).astype(np.intp)[by_level]],
        second=place[np.concatenate((graph.second, second)).astype(np.intp)[by_level]],
        cost=np.concatenate((graph.cost, cost)).astype(np.intp)[by_level],
        levels=tuple(slice(start, stop) for start, stop in pairwise(bounds.tolist())),
        passes=tuple(place[graph.passes[start:stop]] for start, stop in pairwise(passes.bounds.tolist())),
        sends=sends[by_level],
        heads=place[1 + np.arange(order.pp)],
        tails=place[tails],
        reduces=place[reduces],
        carried=np.stack((place[graph.sends], sender, graph.made - passes.bounds[sender])),
    )

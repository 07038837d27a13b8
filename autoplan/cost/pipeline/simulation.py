"""The seconds of a step under a pipeline schedule: one plan in detail, or many at once.

Stages may be uneven in any way. The embedding is part of the first chunk's forward and the loss of the
last chunk's; what a pass waits for inside itself (tp collectives, FSDP gathers that compute does not
hide, see ``cost.pipeline.streams``) is part of its seconds.

A longer pass or a slower link never makes the step shorter: the order on each rank is fixed, and every
event starts at a maximum of the ends of others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autoplan.cost.pipeline.order import Pass
from autoplan.cost.pipeline.program import Program
from autoplan.errors import InputError

__all__ = ["RankParts", "Simulation", "StageSeconds", "simulate", "step_times_s"]

Floats = NDArray[np.float64]
_BLOCK_BYTES = 1 << 26
"""Event times held at once by ``step_times_s``: more falls out of the caches, less calls numpy too often."""


@dataclass(frozen=True, kw_only=True)
class StageSeconds:
    """Seconds of a plan, by chunk in the order of depth (``pp · vpp`` of them) or by rank (``pp``).

    Each is of shape (chunks,) or (ranks,); for ``step_times_s`` of shape (chunks, plans) or (ranks,
    plans), or (chunks, 1) for the same in every plan.

    Args:
        forward_s: a micro-batch's forward, communication that it waits for included.
        backward_s: its whole backward, likewise, with what it recomputes.
        weight_s: the part of ``backward_s`` that gives the gradients of weights, for schedules that
            run it apart (zb-h1, zbv, dualpipe-v).
        send_s: from each chunk to the next, one fewer than chunks; chunks that are neighbours on one rank
            send nothing whatever it says. A message also waits for those before it on its link.
        send_back_s: the same for gradients; ``send_s`` if None.
        head_s: by rank, before its first pass.
        tail_s: by rank, after its last pass and its reduces: what it waits for, and the optimizer.
        reduce_s: by chunk, gradients that travel on the second stream once its last backward has ended.
        forward_comm_s, backward_comm_s: the part of ``forward_s`` and ``backward_s`` that is waiting for
            communication; it changes how the seconds are told apart, not the step.
    """

    forward_s: ArrayLike
    backward_s: ArrayLike
    weight_s: ArrayLike | None = None
    send_s: ArrayLike = ()
    send_back_s: ArrayLike | None = None
    head_s: ArrayLike | None = None
    tail_s: ArrayLike | None = None
    reduce_s: ArrayLike | None = None
    forward_comm_s: ArrayLike | None = None
    backward_comm_s: ArrayLike | None = None


@dataclass(frozen=True, kw_only=True)
class RankParts:
    """Where each rank's step goes; every field has shape (ranks,), and they add up to the step.

    Args:
        compute_s: passes, less their communication.
        comm_s: communication inside passes that they wait for.
        send_s: waiting while the input is on the wire, or in line for it.
        reduce_s: waiting for the reduces of its chunks.
        head_s, tail_s: as given.
        bubble_s: waiting for other ranks to compute, and at the end for the slowest of them.
    """

    compute_s: Floats
    comm_s: Floats
    send_s: Floats
    reduce_s: Floats
    head_s: Floats
    tail_s: Floats
    bubble_s: Floats


@dataclass(frozen=True)
class Simulation:
    """One plan's step, event by event.

    Args:
        program: what ran.
        seconds: what it was given.
        step_s: seconds of the step.
        start_s, end_s: shape (nodes,), of every event (``Program`` says which is which).
    """

    program: Program
    seconds: StageSeconds
    step_s: float
    start_s: Floats
    end_s: Floats

    @cached_property
    def ends_s(self) -> Floats:
        """When each rank's last pass ends; shape (ranks,)."""
        return self.end_s[self.program.last]

    @cached_property
    def pace(self) -> Floats:
        """Seconds that every event took over those that it was given: 1 but where ranks share cores; shape (nodes,)."""
        given = _table(self.program, self.seconds)[self.program.cost]
        took = self.end_s - self.start_s
        return np.divide(took, given, out=np.ones_like(took), where=given > 0)

    @cached_property
    def busy_s(self) -> Floats:
        """What each rank works: head, passes and tail; shape (ranks,)."""
        parts = self.parts
        return parts.head_s + parts.compute_s + parts.comm_s + parts.tail_s

    @cached_property
    def parts(self) -> RankParts:
        """The step of each rank by cause."""
        program = self.program
        start, end = self.start_s, self.end_s
        # An overlapped send is ready to travel once its pass has ended; an exposed one when both ends are there.
        sent = start if program.exposed_sends else end[program.second]
        rows = []
        comm = _comm_table(program, self.seconds)
        for rank, nodes in enumerate(program.passes):
            before = end[np.concatenate((program.heads[rank : rank + 1], nodes[:-1]))]
            idle = start[nodes] - before
            # The event whose end the pass started at; if it is a send, the wait while that travelled is its.
            first, second = program.first[nodes], program.second[nodes]
            latest = np.where(end[first] > end[second], first, second)
            travel = start[nodes] - np.maximum(before, sent[latest])
            waited = np.where(program.sends[latest], np.clip(travel, 0.0, idle), 0.0).sum()
            inside = comm[program.cost[nodes]].sum()
            tail = program.tails[rank]
            reduced = start[tail] - end[nodes[-1]]
            rows.append(
                (
                    (end[nodes] - start[nodes]).sum() - inside,
                    inside,
                    waited,
                    reduced,
                    end[program.heads[rank]],
                    end[tail] - start[tail],
                    idle.sum() - waited + self.step_s - end[tail],
                )
            )
        columns = np.array(rows).T
        names = ("compute_s", "comm_s", "send_s", "reduce_s", "head_s", "tail_s", "bubble_s")
        return RankParts(**dict(zip(names, columns, strict=True)))


def simulate(program: Program, seconds: StageSeconds) -> Simulation:
    """Run ``program`` with ``seconds``. Raises InputError if a shape is wrong or a time is below zero."""
    table = _table(program, seconds)
    if table.ndim != 1:
        raise InputError("seconds", table.shape, "one plan", "use step_times_s for many")
    spent = table[program.cost]
    first, second = program.edges
    end = [0.0]
    add = end.append
    for one, other, took in zip(first, second, spent.tolist()[1:], strict=True):
        a, b = end[one], end[other]
        add((a if a > b else b) + took)
    ends = np.array(end)
    starts = np.maximum(ends[program.first], ends[program.second])
    return Simulation(program, seconds, float(ends[program.tails].max()), starts, ends)


def step_times_s(program: Program, seconds: StageSeconds) -> Floats:
    """The steps of many plans of one shape; shape (plans,). Raises InputError as ``simulate`` does."""
    table = _table(program, seconds)
    table = table.reshape(table.shape[0], -1)
    plans, nodes = table.shape[1], len(program.cost)
    block = max(1, _BLOCK_BYTES // (8 * nodes))
    steps = np.empty(plans)
    end = np.empty((nodes, min(block, plans)))
    end[0] = 0.0
    for start in range(0, plans, block):
        part = np.ascontiguousarray(table[:, start : start + block])
        ends = end[:, : part.shape[1]]
        for level in program.levels:
            now = np.maximum(ends[program.first[level]], ends[program.second[level]])
            now += part[program.cost[level]]
            ends[level] = now
        steps[start : start + part.shape[1]] = ends[program.tails].max(axis=0)
    return steps


def _table(program: Program, seconds: StageSeconds) -> Floats:
    """Every kind of seconds in the rows that ``Costs`` gives; shape (rows,) or (rows, plans)."""
    order, costs = program.order, program.costs
    given = {
        name: None if value is None else np.asarray(value, dtype=float)
        for name, value in ((name, getattr(seconds, name)) for name in _LENGTHS)
    }
    plans = max((a.shape[1] if a.ndim == 2 else 0 for a in given.values() if a is not None), default=0)
    for name, array in given.items():
        if array is not None:
            _check(name, array, _LENGTHS[name](order.pp, order.chunks), plans)
    table = np.zeros((costs.rows, plans) if plans else costs.rows)

    def fill(row: int, array: Floats | None) -> None:
        if array is not None and len(array):
            table[row : row + len(array)] = array[:, None] if plans and array.ndim == 1 else array

    backward, weight = given["backward_s"], given["weight_s"]
    assert backward is not None
    fill(costs.head(0), given["head_s"])
    fill(costs.tail(0), given["tail_s"])
    fill(costs.reduce(0), given["reduce_s"])
    fill(costs.send(0, False), given["send_s"])
    # A gradient leaves the chunk after the one that sent the activation.
    fill(costs.send(1, True), given["send_s"] if given["send_back_s"] is None else given["send_back_s"])
    fill(costs.run(0, Pass.FORWARD), given["forward_s"])
    fill(costs.run(0, Pass.BACKWARD), backward)
    fill(costs.run(0, Pass.WEIGHT), weight)
    inputs = (
        table[_rows(costs.run(0, Pass.BACKWARD), order.chunks)]
        - table[_rows(costs.run(0, Pass.WEIGHT), order.chunks)]
    )
    if (inputs < 0).any():
        raise InputError(
            "weight_s", float(inputs.min()), "no more than backward_s", "give a part of backward_s"
        )
    table[_rows(costs.run(0, Pass.INPUT), order.chunks)] = inputs
    return table


def _comm_table(program: Program, seconds: StageSeconds) -> Floats:
    """Of each row's seconds, those that are waiting for communication. Halves share as their seconds do."""
    costs, chunks = program.costs, program.order.chunks
    table = np.zeros(costs.rows)
    if seconds.forward_comm_s is not None:
        table[_rows(costs.run(0, Pass.FORWARD), chunks)] = seconds.forward_comm_s
    if seconds.backward_comm_s is not None:
        backward = np.asarray(seconds.backward_s, dtype=float)
        weight = np.zeros(chunks) if seconds.weight_s is None else np.asarray(seconds.weight_s, dtype=float)
        comm = np.asarray(seconds.backward_comm_s, dtype=float)
        table[_rows(costs.run(0, Pass.BACKWARD), chunks)] = comm
        # Collectives lie on the way of the input's gradient, unless they are more than it.
        inside = np.minimum(comm, backward - weight)
        table[_rows(costs.run(0, Pass.INPUT), chunks)] = inside
        table[_rows(costs.run(0, Pass.WEIGHT), chunks)] = comm - inside
    return table


def _rows(first: int, count: int) -> slice:
    return slice(first, first + count)


_LENGTHS = {
    "forward_s": lambda pp, chunks: chunks,
    "backward_s": lambda pp, chunks: chunks,
    "weight_s": lambda pp, chunks: chunks,
    "send_s": lambda pp, chunks: chunks - 1,
    "send_back_s": lambda pp, chunks: chunks - 1,
    "head_s": lambda pp, chunks: pp,
    "tail_s": lambda pp, chunks: pp,
    "reduce_s": lambda pp, chunks: chunks,
}


def _check(name: str, array: Floats, length: int, plans: int) -> None:
    if (
        array.ndim not in (1, 2)
        or len(array) != length
        or (array.ndim == 2 and array.shape[1] not in (1, plans))
    ):
        raise InputError(name, array.shape, f"{length} times, or that many for each plan", "mend its shape")
    if not (array >= 0).all():
        raise InputError(name, float(array.min()), "seconds from 0 up", "mend the times")

"""A simulated step as a list of what ran where, from when to when."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from autoplan.cost.pipeline.order import Action, Pass
from autoplan.cost.pipeline.simulation import Simulation
from autoplan.cost.pipeline.streams import StreamRun

__all__ = ["COMMUNICATION", "COMPUTE", "GRADIENTS", "Event", "Inside", "pass_name", "step_events"]

COMPUTE = "compute"
COMMUNICATION = "communication"
GRADIENTS = "gradients"

Inside = Mapping[tuple[int, Pass], StreamRun]
"""What a pass of a chunk does within itself, on its two streams."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that takes time.

    Args:
        rank: the pipeline rank where it runs; of a send, the sender.
        stream: ``compute``; ``communication`` that passes wait for; ``gradients``, reduced while later
            passes run; or ``send to rank r``. Two of one stream never overlap, but for ops inside a pass.
        name: ``F3.1 chunk 0`` is the forward of stage 3 for micro-batch 1, chunk 0 of its rank (left out
            where ranks have one chunk).
        action: the pass, or the pass whose output is sent; None for what runs once a step.
    """

    rank: int
    stream: str
    name: str
    start_s: float
    end_s: float
    action: Action | None = None


def step_events(run: Simulation, inside: Inside | None = None) -> list[Event]:
    """Every event of ``run`` that takes time, by rank and start; ops of passes too where ``inside`` tells them."""
    events = [*_once(run), *_passes(run, inside or {}), *_sends(run)]
    return sorted((e for e in events if e.end_s > e.start_s), key=lambda e: (e.rank, e.start_s, -e.end_s))


def pass_name(run: Simulation, action: Action) -> str:
    """``F3.1``, with the chunk where ranks have several."""
    order = run.program.order
    name = f"{action.kind.value}{action.chunk}.{action.micro_batch}"
    if order.vpp == 1:
        return name
    return f"{name} chunk {order.chunks_of[order.rank_of[action.chunk]].index(action.chunk)}"


def _once(run: Simulation) -> Iterator[Event]:
    program, start, end = run.program, run.start_s.tolist(), run.end_s.tolist()
    for rank, (head, tail) in enumerate(zip(program.heads.tolist(), program.tails.tolist(), strict=True)):
        yield Event(rank, COMMUNICATION, "before the first pass", start[head], end[head])
        yield Event(rank, COMPUTE, "after the last pass", start[tail], end[tail])
    for chunk, node in enumerate(program.reduces.tolist()):
        yield Event(program.order.rank_of[chunk], GRADIENTS, f"reduce {chunk}", start[node], end[node])


def _passes(run: Simulation, inside: Inside) -> Iterator[Event]:
    program = run.program
    for rank, (actions, nodes) in enumerate(zip(program.order.ranks, program.passes, strict=True)):
        times = (values[nodes].tolist() for values in (run.start_s, run.end_s, run.pace))
        for action, start, end, pace in zip(actions, *times, strict=True):
            yield Event(rank, COMPUTE, pass_name(run, action), start, end, action)
            ops = inside.get((action.chunk, action.kind))
            if ops is not None:
                for op, op_start, op_end in zip(ops.ops, ops.start_s, ops.end_s, strict=True):
                    stream = COMMUNICATION if op.beside or op.waited else COMPUTE
                    yield Event(rank, stream, op.name, start + pace * op_start, start + pace * op_end, action)


def _sends(run: Simulation) -> Iterator[Event]:
    start, end = run.start_s.tolist(), run.end_s.tolist()
    for node, (sender, receiver, action) in run.program.send_of.items():
        name = f"send {pass_name(run, action)}"
        yield Event(sender, f"send to rank {receiver}", name, start[node], end[node], action)

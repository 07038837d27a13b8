"""A simulated step in the Trace Event Format, which Perfetto and chrome://tracing open.

One process for each pipeline rank, one thread for each of its streams, a counter for what it keeps in
memory, and an arrow for each send. Format: the "Trace Event Format" document of the Chromium project.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autoplan.cost.pipeline.activations import MemoryCurve
from autoplan.cost.pipeline.events import (
    COMMUNICATION,
    COMPUTE,
    GRADIENTS,
    Event,
    Inside,
    pass_name,
    step_events,
)
from autoplan.cost.pipeline.order import Pass
from autoplan.cost.pipeline.simulation import Simulation

__all__ = ["step_trace"]

_COLOURS = {
    Pass.FORWARD: "thread_state_running",
    Pass.BACKWARD: "thread_state_iowait",
    Pass.INPUT: "thread_state_iowait",
    Pass.WEIGHT: "thread_state_runnable",
}
"""Of the names that the format reserves."""


def step_trace(
    run: Simulation,
    memory: Sequence[MemoryCurve] = (),
    fixed_bytes: Sequence[float] = (),
    inside: Inside | None = None,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The trace of ``run`` as an object for JSON; times in it are microseconds.

    Args:
        memory: what each rank keeps over the step.
        fixed_bytes: for each rank, what it holds all the time; none if empty.
        inside: the ops of passes, see ``step_events``.
        about: facts about the plan, kept in ``otherData``.
    """
    order = run.program.order
    records: list[dict[str, Any]] = []
    events = step_events(run, inside)
    threads = {rank: _threads(events, rank) for rank in range(order.pp)}
    for rank in range(order.pp):
        records.append(_about(rank, "process_name", {"name": f"pipeline rank {rank}"}))
        records.append(_about(rank, "process_sort_index", {"sort_index": rank}))
        for stream, thread in threads[rank].items():
            records.append({**_about(rank, "thread_name", {"name": stream}), "tid": thread})
            records.append({**_about(rank, "thread_sort_index", {"sort_index": thread}), "tid": thread})
    records += [_slice(event, threads[event.rank][event.stream]) for event in events]
    records += _arrows(run, threads)
    for curve in memory:
        held = {"all else": fixed_bytes[curve.rank]} if fixed_bytes else {}
        for at, kept in zip(curve.at_s.tolist(), curve.kept_bytes.tolist(), strict=True):
            counted = {"activations": kept, **held}
            records.append({"ph": "C", "pid": curve.rank, "name": "bytes", "ts": at * 1e6, "args": counted})
    facts = {
        "schedule": order.schedule,
        "pp": order.pp,
        "vpp": order.vpp,
        "micro_batches": order.micro_batches,
    }
    return {
        "traceEvents": records,
        "displayTimeUnit": "ms",
        "otherData": {**facts, "step_time_s": run.step_s, **(about or {})},
    }


def _threads(events: Sequence[Event], rank: int) -> dict[str, int]:
    """Streams of a rank, by the thread that shows them; compute first, sends last."""
    used = {event.stream for event in events if event.rank == rank}
    always = [COMPUTE, COMMUNICATION]
    sends = sorted(used.difference(always, [GRADIENTS]), key=lambda name: int(name.split()[-1]))
    streams = [*always, *([GRADIENTS] if GRADIENTS in used else []), *sends]
    return {stream: thread for thread, stream in enumerate(streams)}


def _about(rank: int, name: str, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "pid": rank, "name": name, "args": args}


def _slice(event: Event, thread: int) -> dict[str, Any]:
    record: dict[str, Any] = {
        "ph": "X",
        "pid": event.rank,
        "tid": thread,
        "name": event.name,
        "ts": event.start_s * 1e6,
        "dur": (event.end_s - event.start_s) * 1e6,
    }
    if event.action is not None:
        action = event.action
        record["cat"] = event.stream
        record["args"] = {"stage": action.chunk, "pass": action.kind.value, "micro_batch": action.micro_batch}
        if event.stream == COMPUTE:
            record["cname"] = _COLOURS[action.kind]
    return record


def _arrows(run: Simulation, threads: dict[int, dict[str, int]]) -> list[dict[str, Any]]:
    """From each send to the pass that it feeds."""
    order, program = run.program.order, run.program
    fed: dict[tuple[int, bool, int], tuple[int, float]] = {}
    for rank, (actions, nodes) in enumerate(zip(order.ranks, program.passes, strict=True)):
        for action, start in zip(actions, run.start_s[nodes].tolist(), strict=True):
            if action.kind is not Pass.WEIGHT:
                fed[action.chunk, action.kind is not Pass.FORWARD, action.micro_batch] = (rank, start)
    records: list[dict[str, Any]] = []
    for number, (node, (sender, receiver, action)) in enumerate(program.send_of.items()):
        if run.end_s[node] <= run.start_s[node]:
            continue
        backward = action.kind is not Pass.FORWARD
        to = action.chunk - 1 if backward else action.chunk + 1
        rank, start = fed[to, backward, action.micro_batch]
        shared = {"cat": "send", "name": f"send {pass_name(run, action)}", "id": number}
        thread = threads[sender][f"send to rank {receiver}"]
        records.append(
            {"ph": "s", "pid": sender, "tid": thread, "ts": float(run.start_s[node]) * 1e6, **shared}
        )
        records.append({"ph": "f", "bp": "e", "pid": rank, "tid": 0, "ts": start * 1e6, **shared})
    return records

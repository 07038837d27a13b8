"""Two streams of one device: compute, and the communication that runs beside it.

Each stream runs its ops in the order given; an op starts when its stream is free and those it waits for
have ended. While both streams run, each is slower than alone: communication takes SMs and memory
bandwidth from compute, and the other way round.

    progress per second    compute 1 - u_c, communication 1 - u_n    while both run
                           1                                         while one runs

With u_c + u_n ≤ 1 (running together is no worse than one after the other), nothing longer makes the end
earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autoplan.errors import InputError

__all__ = ["LayerSeconds", "StreamOp", "StreamRun", "pass_ops", "run_streams", "together_s"]


@dataclass(frozen=True, slots=True)
class StreamOp:
    """An op of one pass.

    Args:
        name: for traces.
        seconds: alone on the device.
        beside: True for the communication stream, False for compute's.
        waited: on compute's stream, communication that compute waits for (a tp collective).
        after: places in the list of earlier ops that must have ended.
    """

    name: str
    seconds: float
    beside: bool = False
    waited: bool = False
    after: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamRun:
    """What a pass took.

    Args:
        ops: as given.
        start_s, end_s: of each op.
        total_s: until both streams are done.
        compute_s: compute as if alone.
        slowed_s: what communication beside it added to that.
        exposed_s: communication that compute waited for, on either stream; the three add up to total_s.
    """

    ops: tuple[StreamOp, ...]
    start_s: tuple[float, ...]
    end_s: tuple[float, ...]
    total_s: float
    compute_s: float
    slowed_s: float
    exposed_s: float


@dataclass(frozen=True, slots=True)
class LayerSeconds:
    """What one layer does in a pass.

    Args:
        compute_s: its own ops.
        waited_s: collectives on the way (tp), which compute waits for.
        gather_s: parameters gathered before it (ZeRO-3).
        scatter_s: gradients scattered after it.
    """

    compute_s: float
    waited_s: float = 0.0
    gather_s: float = 0.0
    scatter_s: float = 0.0


def pass_ops(layers: Sequence[LayerSeconds], gathered_at_once: int = 2) -> list[StreamOp]:
    """The ops of a pass over ``layers``, in the order in which they run.

    As FSDP2 runs them: a layer's parameters are gathered while the one before computes, and no more than
    ``gathered_at_once`` layers are gathered; gradients are scattered after the gather that is under way.
    """
    ops: list[StreamOp] = []
    gathers: dict[int, int] = {}
    done: list[int] = []  # the last op of each layer

    def gather(index: int) -> None:
        if index < len(layers) and layers[index].gather_s > 0:
            free = index - gathered_at_once
            ops.append(
                StreamOp(
                    f"gather {index}", layers[index].gather_s, True, after=(done[free],) if free >= 0 else ()
                )
            )
            gathers[index] = len(ops) - 1

    for index in range(min(gathered_at_once - 1, len(layers))):
        gather(index)
    for index, layer in enumerate(layers):
        gather(index + gathered_at_once - 1)
        ready = (gathers[index],) if index in gathers else ()
        ops.append(StreamOp(f"layer {index}", layer.compute_s, after=ready))
        if layer.waited_s > 0:
            ops.append(StreamOp(f"collectives {index}", layer.waited_s, waited=True))
        done.append(len(ops) - 1)
        if layer.scatter_s > 0:
            ops.append(StreamOp(f"scatter {index}", layer.scatter_s, True, after=(done[-1],)))
    return ops


def together_s(
    compute_s: ArrayLike,
    beside_s: ArrayLike,
    compute_slowdown: float = 0.0,
    communication_slowdown: float = 0.0,
) -> NDArray[np.float64]:
    """Seconds until both are done when compute and communication start together; of any shape.

    What ``run_streams`` gives for one op on each stream: with c and n their seconds alone, they share
    t = min(c / (1 - u_c), n / (1 - u_n)), in which (1 - u_c) t of c and (1 - u_n) t of n are done, so

        c + n - (1 - u_c - u_n) t
    """
    c, n = np.asarray(compute_s, dtype=float), np.asarray(beside_s, dtype=float)
    u, w = compute_slowdown, communication_slowdown
    shared = np.minimum(
        c / (1 - u) if u < 1 else np.where(c > 0, np.inf, 0.0),
        n / (1 - w) if w < 1 else np.where(n > 0, np.inf, 0.0),
    )
    return c + n - shared * (1 - u - w)


def run_streams(
    ops: Sequence[StreamOp], compute_slowdown: float = 0.0, communication_slowdown: float = 0.0
) -> StreamRun:
    """Run ``ops``, the two slowdowns being u_c and u_n. Raises InputError if u_c + u_n is not in [0, 1],
    a time is below zero, or an op waits for a later one."""
    _check(ops, compute_slowdown, communication_slowdown)
    queues = [[i for i, op in enumerate(ops) if op.beside == beside] for beside in (False, True)]
    rates = (1 - compute_slowdown, 1 - communication_slowdown)
    left = [op.seconds for op in ops]
    start, end = [0.0] * len(ops), [float("inf")] * len(ops)
    now, at = 0.0, [0, 0]
    started: list[int | None] = [None, None]
    while at[0] < len(queues[0]) or at[1] < len(queues[1]):
        for stream, queue in enumerate(queues):
            if started[stream] is None and at[stream] < len(queue):
                op = queue[at[stream]]
                if all(end[other] <= now for other in ops[op].after):
                    started[stream], start[op] = op, now
        running = [(stream, op) for stream, op in enumerate(started) if op is not None]
        speed = [rates[stream] if len(running) == 2 else 1.0 for stream, _ in running]
        # At a rate of zero an op stands still until the other is done.
        lasts = [
            left[op] / rate if rate > 0 else float("inf")
            for (_, op), rate in zip(running, speed, strict=True)
        ]
        lasts = [0.0 if left[op] == 0 else last for (_, op), last in zip(running, lasts, strict=True)]
        step = min(lasts)
        now += step
        for (stream, op), rate, last in zip(running, speed, lasts, strict=True):
            left[op] -= step * rate
            if last == step:
                end[op], started[stream] = now, None
                at[stream] += 1
    busy = sum(e - s for s, e, op in zip(start, end, ops, strict=True) if not op.beside and not op.waited)
    compute = sum(op.seconds for op in ops if not op.beside and not op.waited)
    return StreamRun(tuple(ops), tuple(start), tuple(end), now, compute, busy - compute, now - busy)


def _check(ops: Sequence[StreamOp], compute_slowdown: float, communication_slowdown: float) -> None:
    both = compute_slowdown + communication_slowdown
    if not (compute_slowdown >= 0 and communication_slowdown >= 0 and both <= 1):
        raise InputError(
            "slowdown",
            f"{compute_slowdown} + {communication_slowdown}",
            "two shares that are together at most 1",
            "measure them again: beyond that, overlapping costs more than it hides",
        )
    for place, op in enumerate(ops):
        if not op.seconds >= 0:
            raise InputError(op.name, op.seconds, "seconds from 0 up", "mend the times")
        if any(not 0 <= other < place for other in op.after):
            raise InputError(op.name, op.after, "places of earlier ops", "put the op after what it waits for")

"""What compute and communication lose to each other: each is timed alone, then both at once."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from autoplan.hardware.measure_clock import Clock
from autoplan.hardware.measure_collectives import Ring, collective_call
from autoplan.hardware.measure_compute import compute_call
from autoplan.hardware.measure_points import Beside, Gemm, Memory

__all__ = ["measure_beside"]

MOST_MESSAGES = 200
IN_FLIGHT = 4  # calls that a GPU may have waiting before the host waits for it

# Work that takes a fraction of the message's time, so that ends fall close together.
COMPUTE = {
    ("cpu", "gemm"): Gemm("float32", 1, 128, 128, 128),
    ("cpu", "memory"): Memory(256 << 10),
    ("cuda", "gemm"): Gemm("bfloat16", 1, 2048, 2048, 2048),
    ("cuda", "memory"): Memory(16 << 20),
}


def measure_beside(point: Beside, clock: Clock, ring: Ring | None) -> list[float]:
    """Samples of the factor by which ``point.part`` takes longer while the other runs all the while.

    Both sides are timed by the wall clock with all ranks at work. The messages are all issued first and
    compute goes on until the last of them is done: the time for the messages, and for one call of
    compute, are then those beside the other.
    """
    compute = compute_call(COMPUTE[clock.device.type, point.compute], clock.device)
    send: Callable[[], Any] | None = None
    if ring is not None:
        share = -(-point.message_bytes // (4 * ring.size))
        send = collective_call(point.kind, share, ring, clock.device, asynchronous=True)
    compute()
    (one_s,) = clock.worst([_messages_s(clock, send, 2) / 2])  # all ranks must send as many
    count = max(2, min(MOST_MESSAGES, math.ceil(clock.window_s / max(one_s, 1e-6))))
    factors = []
    for _ in range(clock.samples):
        alone_s = _messages_s(clock, send, count)
        both_s, compute_both_s = _both_s(clock, send, count, compute)
        compute_s = _compute_s(clock, compute, alone_s)
        values = clock.worst([alone_s, both_s, compute_both_s, compute_s])
        alone_s, both_s, compute_both_s, compute_s = values
        ratio = both_s / alone_s if point.part == "communication" else compute_both_s / compute_s
        factors.append(ratio)
    return factors


def _messages_s(clock: Clock, send: Callable[[], Any] | None, count: int) -> float:
    clock.together()
    start_s = time.perf_counter()
    if send is not None:
        _wait([send() for _ in range(count)], clock)
    return time.perf_counter() - start_s


def _both_s(
    clock: Clock, send: Callable[[], Any] | None, count: int, compute: Callable[[], object]
) -> tuple[float, float]:
    """Seconds until the messages are done, and seconds of one call of compute in that time."""
    clock.together()
    start_s = time.perf_counter()
    works = [send() for _ in range(count)] if send is not None else []
    done = _completion(works, clock)
    pace = _Pace(clock)
    calls = 0
    while not calls or not done():
        compute()
        pace.step()
        calls += 1
    pace.finish()
    compute_s = (time.perf_counter() - start_s) / calls
    clock.finish()
    return time.perf_counter() - start_s, compute_s


def _completion(works: list[Any], clock: Clock) -> Callable[[], bool]:
    """Tells whether the messages are done. gloo finishes some of them only when they are waited for, so a
    thread does; NCCL's wait returns at once, but its works say when they are done."""
    if clock.device.type == "cuda":
        return lambda: all(work.is_completed() for work in works)
    waiter = threading.Thread(target=lambda: [work.wait() for work in works], daemon=True)
    waiter.start()
    return lambda: not waiter.is_alive()


def _compute_s(clock: Clock, compute: Callable[[], object], window_s: float) -> float:
    """Seconds of one call alone, over about the same time."""
    clock.together()
    start_s = time.perf_counter()
    pace = _Pace(clock)
    calls = 0
    while not calls or time.perf_counter() - start_s < window_s:
        compute()
        pace.step()
        calls += 1
    pace.finish()
    return (time.perf_counter() - start_s) / calls


def _wait(works: list[Any], clock: Clock) -> None:
    for work in works:
        work.wait()
    clock.finish()


class _Pace:
    """Keeps the host at most a few calls ahead of a GPU, so that what was issued is nearly what is done."""

    def __init__(self, clock: Clock) -> None:
        self._cuda = clock.device.type == "cuda"
        self._events: list[torch.cuda.Event] = []

    def step(self) -> None:
        if self._cuda:
            event = torch.cuda.Event()
            event.record()
            self._events.append(event)
            if len(self._events) > IN_FLIGHT:
                self._events.pop(0).synchronize()

    def finish(self) -> None:
        for event in self._events:
            event.synchronize()

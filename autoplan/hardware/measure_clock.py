"""Timing of work that every rank does at the same time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

__all__ = ["Clock", "Timing"]

MAX_REPEATS = 2000


@dataclass(frozen=True, slots=True)
class Timing:
    """Median seconds of one call, and (third quartile - first quartile) / median of the samples."""

    time_s: float
    spread: float


@dataclass(frozen=True, slots=True)
class Clock:
    """Times calls on ``device`` with all ranks at work, so that shared cores and links show.

    One sample is a run of equal calls that lasts about ``window_s``: long against a scheduler's time
    slice and against the ranks' uneven start. Of each sample the slowest rank counts, since a step
    waits for it. ``world`` is 1 where there is no process group.
    """

    device: torch.device
    world: int
    samples: int
    window_s: float

    def measure(self, call: Callable[[], object]) -> Timing:
        """The time of ``call``; every rank must call this with the same kind of work."""
        call()
        self._together()
        first_s = self._slowest([self._run(call, 1)])[0]
        repeats = max(1, min(MAX_REPEATS, math.ceil(self.window_s / max(first_s, 1e-7))))
        times_s = []
        for _ in range(self.samples):
            self._together()
            times_s.append(self._run(call, repeats) / repeats)
        return _summary(self._slowest(times_s))

    def _run(self, call: Callable[[], object], repeats: int) -> float:
        if self.device.type == "cuda":
            return self._run_cuda(call, repeats)
        start_s = time.perf_counter()
        for _ in range(repeats):
            call()
        return time.perf_counter() - start_s

    def _run_cuda(self, call: Callable[[], object], repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.device)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def _together(self) -> None:
        """Wait until every rank is here. An all-reduce, which unlike NCCL's barrier names its device."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1, device=self.device))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _slowest(self, times_s: list[float]) -> list[float]:
        if self.world == 1:
            return times_s
        gathered = torch.tensor(times_s, dtype=torch.float64, device=self.device)
        dist.all_reduce(gathered, op=dist.ReduceOp.MAX)
        return gathered.tolist()


def _summary(times_s: list[float]) -> Timing:
    median_s = statistics.median(times_s)
    if len(times_s) < 2:
        return Timing(median_s, 0.0)
    first, _, third = statistics.quantiles(times_s, n=4, method="inclusive")
    return Timing(median_s, round((third - first) / median_s, 3))

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
    slice and against the ranks' uneven start. It counts from the first start to the last end among
    the ranks of a node, and the slowest node counts, since a training step waits for all. Without a
    process group ``world`` is 1.
    """

    device: torch.device
    world: int
    node_size: int
    samples: int
    window_s: float

    def measure(self, call: Callable[[], object]) -> Timing:
        """The time of ``call``; every rank must call this with the same kind of work."""
        call()
        first_s = self._sample([self._run(call, 1)])[0]
        repeats = max(1, min(MAX_REPEATS, math.ceil(self.window_s / max(first_s, 1e-7))))
        runs = [self._run(call, repeats) for _ in range(self.samples)]
        return _summary([time_s / repeats for time_s in self._sample(runs)])

    def _run(self, call: Callable[[], object], repeats: int) -> tuple[float, float]:
        """Start and end of ``repeats`` calls, in seconds of a clock that the ranks of a node share."""
        self._together()
        start_s = time.perf_counter()
        if self.device.type == "cuda":
            return start_s, start_s + self._cuda_s(call, repeats)
        for _ in range(repeats):
            call()
        return start_s, time.perf_counter()

    def _cuda_s(self, call: Callable[[], object], repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
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

    def _sample(self, runs: list[tuple[float, float]]) -> list[float]:
        """Seconds of each run over all ranks; the same list on every rank."""
        mine = torch.tensor(runs, dtype=torch.float64, device=self.device)
        if self.world == 1:
            return (mine[:, 1] - mine[:, 0]).tolist()
        everyone = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(everyone, mine)
        times = torch.stack(everyone).view(-1, self.node_size, len(runs), 2)
        if self.device.type == "cuda":  # each GPU times itself; the starts are the host's
            return (times[..., 1] - times[..., 0]).amax(dim=(0, 1)).tolist()
        return (times[..., 1].amax(dim=1) - times[..., 0].amin(dim=1)).amax(dim=0).tolist()


def _summary(times_s: list[float]) -> Timing:
    median_s = statistics.median(times_s)
    if len(times_s) < 2:
        return Timing(median_s, 0.0)
    first, _, third = statistics.quantiles(times_s, n=4, method="inclusive")
    return Timing(median_s, round((third - first) / median_s, 3))

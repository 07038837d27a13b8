"""Timing of work that every rank does at the same time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from autoplan.hardware.machine import cores

__all__ = ["Clock"]

MAX_REPEATS = 2000
UNSTEADY = 0.1  # (largest - smallest) / median of a visit's samples above which it takes as many again
QUEUED_CYCLES = 20_000_000  # about 10 ms in which a GPU's queue fills
QUEUED_REPEATS = 8  # of what issues some dozens of kernels: the queue holds about a thousand

Span = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Clock:
    """Times calls on ``device`` with all ranks at work, so that shared cores and links show.

    One sample is a run of equal calls that lasts about ``window_s``: long against a scheduler's time
    slice and against the ranks' uneven start. A training step waits for the last rank, so a sample
    counts to the last end; the slowest node counts. Without a process group ``world`` is 1.

    Args:
        world, node_size: ranks in all, and of a node: they share its clock and its cores.
        samples: at least so many a visit, while they take no longer than ``budget_s`` together.
    """

    device: torch.device
    world: int
    node_size: int
    samples: int
    window_s: float
    budget_s: float = 2.0

    def measure(
        self, call: Callable[[], object], *, computes: bool, warm: bool = False, queued: bool = False
    ) -> list[float]:
        """Samples of the seconds of one ``call``; every rank must call this with the same kind of work.

        On a CPU, work that only ``computes`` is timed by the CPU seconds that it takes, spread over
        the cores: what else runs on the machine then matters little. Work that also waits for
        others is timed by the wall clock.

        Args:
            warm: the call has been made before.
            queued: on a GPU, start the clock when the queue is full, so that issuing takes no time.
        """
        if not warm:
            call()
        first_s = self._samples([self._run(call, 1, queued)], computes)[0]
        most = QUEUED_REPEATS if queued and self.device.type == "cuda" else MAX_REPEATS
        repeats = max(1, min(most, math.ceil(self.window_s / max(first_s, 1e-7))))
        wanted = max(1, min(self.samples, round(self.budget_s / (repeats * max(first_s, 1e-7)))))
        times_s: list[float] = []
        while len(times_s) < wanted:
            runs = [self._run(call, repeats, queued) for _ in range(wanted - len(times_s))]
            times_s += [time_s / repeats for time_s in self._samples(runs, computes)]
            scatter = (max(times_s) - min(times_s)) / max(statistics.median(times_s), 1e-12)
            if len(times_s) == self.samples and scatter > UNSTEADY:
                wanted = 2 * self.samples
        return times_s

    def together(self) -> None:
        """Wait until every rank is here. An all-reduce, which unlike NCCL's barrier names its device."""
        if self.world > 1:
            dist.all_reduce(torch.zeros(1, device=self.device))
        self.finish()

    def finish(self) -> None:
        """Wait for what this rank's device has been given to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def worst(self, values: list[float]) -> list[float]:
        """For each value the largest of any rank; the same list on every rank."""
        mine = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world > 1:
            dist.all_reduce(mine, op=dist.ReduceOp.MAX)
        return mine.tolist()

    def _run(self, call: Callable[[], object], repeats: int, queued: bool) -> Span:
        """Start and end of ``repeats`` calls by a clock that the ranks of a node share; CPU seconds."""
        self.together()
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        if self.device.type == "cuda":
            return start_s, start_s + self._cuda_s(call, repeats, queued), 0.0
        for _ in range(repeats):
            call()
        return start_s, time.perf_counter(), time.process_time() - start_cpu_s

    def _cuda_s(self, call: Callable[[], object], repeats: int, queued: bool) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if queued:
            torch.cuda._sleep(QUEUED_CYCLES)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def _samples(self, runs: list[Span], computes: bool) -> list[float]:
        """Seconds of each run over all ranks; the same list on every rank."""
        mine = torch.tensor(runs, dtype=torch.float64, device=self.device)
        everyone = [mine]
        if self.world > 1:
            everyone = [torch.empty_like(mine) for _ in range(self.world)]
            dist.all_gather(everyone, mine)
        # (node, rank of the node, run): its start, its end, its CPU seconds
        start, end, cpu = torch.stack(everyone).view(-1, self.node_size, len(runs), 3).unbind(-1)
        if self.device.type == "cuda":  # each GPU times itself; the starts are the host's
            times = (end - start).amax(dim=1)
        elif computes:
            alone = cpu if torch.get_num_threads() == 1 else end - start
            times = torch.maximum(alone.amax(dim=1), cpu.sum(dim=1) / cores())
        else:
            times = end.amax(dim=1) - start.amin(dim=1)
        return times.amax(dim=0).tolist()

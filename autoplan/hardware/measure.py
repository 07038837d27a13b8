"""Measure the machine: every rank runs this together, and every rank gets the same profile."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from autoplan.hardware.cluster import Cluster
from autoplan.hardware.level import COLLECTIVES
from autoplan.hardware.machine import measured_source
from autoplan.hardware.measure_clock import Clock, Timing
from autoplan.hardware.measure_collectives import Ring, group_sizes, make_ring, measure_message
from autoplan.hardware.measure_compute import (
    measure_attention,
    measure_gemm,
    measure_launch,
    measure_memory,
)
from autoplan.hardware.measure_profile import Measured, assemble
from autoplan.hardware.measure_progress import Task, run_tasks
from autoplan.hardware.measure_sizes import Sizes, sizes_for

__all__ = ["World", "measure_cluster"]


@dataclass(frozen=True, slots=True)
class World:
    """The ranks that measure: this one's number, how many there are, and how many share a node."""

    rank: int
    size: int
    node_size: int

    @classmethod
    def here(cls) -> World:
        """From the initialised process group, or one rank alone. Ranks per node as torchrun tells."""
        if not dist.is_initialized():
            return cls(0, 1, 1)
        size = dist.get_world_size()
        node_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        return cls(dist.get_rank(), size, node_size if size % node_size == 0 else size)

    @property
    def device(self) -> torch.device:
        """Where this rank computes and sends from: its GPU where NCCL serves the group (or it is alone)."""
        served = "nccl" in str(dist.get_backend()) if dist.is_initialized() else True
        if served and torch.cuda.is_available():
            return torch.device("cuda", self.rank % self.node_size)
        return torch.device("cpu")


@dataclass(slots=True)
class _Bench:
    """The tasks of one measurement and the results so far."""

    clock: Clock
    world: World
    sizes: Sizes
    measured: Measured
    launch: Timing = field(default_factory=lambda: Timing(0.0, 0.0))
    rings: list[Ring] = field(default_factory=list)

    def tasks(self) -> list[Task]:
        return [
            ("launch", self._launch),
            *self._gemm(),
            *self._memory(),
            *self._attention(),
            *self._messages(),
        ]

    def _launch(self) -> None:
        self.launch = measure_launch(self.clock)
        self.measured.launch_s = self.launch.time_s

    def _gemm(self) -> list[Task]:
        def task(dtype: str, m: int, n: int, k: int) -> Task:
            def run() -> None:
                point = measure_gemm(self.clock, m, n, k, dtype, self.launch.time_s)
                self.measured.gemm.setdefault(dtype, []).append(point)

            return f"gemm {dtype} {m} x {n} x {k}", run

        return [
            task(dtype, m, n, k)
            for dtype, sizes in self.sizes.gemm.items()
            for m, n, k in itertools.product(sizes, repeat=3)
        ]

    def _memory(self) -> list[Task]:
        def task(nbytes: int) -> Task:
            def run() -> None:
                self.measured.memory.append(measure_memory(self.clock, nbytes, self.launch.time_s))

            return f"memory {nbytes} B", run

        return [task(nbytes) for nbytes in self.sizes.memory]

    def _attention(self) -> list[Task]:
        batch = self.sizes.attention_batch

        def task(dtype: str, causal: bool, length: int, head: int) -> Task:
            def run() -> None:
                point = measure_attention(self.clock, batch, length, head, dtype, causal, self.launch.time_s)
                self.measured.attention.setdefault((dtype, causal), []).append(point)

            return f"attention {dtype} {length} x {head}", run

        return [
            task(dtype, causal, length, head)
            for dtype, lengths in self.sizes.attention.items()
            for causal in (False, True)
            for head in self.sizes.head_sizes
            for length in lengths
        ]

    def _messages(self) -> list[Task]:
        world, tasks = self.world, []
        levels = [(world.node_size, 1), (world.size // world.node_size, world.node_size)]
        for level, (level_size, stride) in enumerate(levels):
            for size in group_sizes(level_size):
                tasks += self._group(level, level_size, size, stride)
        return tasks

    def _group(self, level: int, level_size: int, size: int, stride: int) -> list[Task]:
        ring = make_ring(size, stride, level_size * stride, self.world.size, self.world.rank)
        if ring is not None:
            self.rings.append(ring)

        def task(kind: str, nbytes: int) -> Task:
            def run() -> None:
                point = measure_message(self.clock, ring, kind, nbytes, size)
                self.measured.messages.setdefault((level, kind, size), []).append(point)

            return f"{kind} of {size}, {nbytes} B", run

        kinds = [kind for kind in COLLECTIVES if kind != "send_recv" or size == 2]
        return [task(kind, nbytes) for kind in kinds for nbytes in self.sizes.messages]


def measure_cluster(
    name: str, *, quick: bool, max_bytes: int | None = None, progress: bool = True
) -> Cluster:
    """Measure the machine with every rank of the default process group (or this process alone).

    All ranks must call it together; each returns the same profile, that of rank 0. A quick run
    takes less than a minute for 4 ranks on 2 cores, a full one some minutes.
    """
    world = World.here()
    device = world.device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    sizes = sizes_for(device.type, quick=quick, max_bytes=max_bytes)
    clock = Clock(device, world.size, world.node_size, sizes.samples, sizes.window_s)
    source = measured_source(device, world.size, sizes.samples)
    bench = _Bench(clock, world, sizes, Measured(device=device, node_size=world.node_size, world=world.size))
    with torch.enable_grad():
        run_tasks(bench.tasks(), show=progress and world.rank == 0)
    for ring in bench.rings:
        dist.destroy_process_group(ring.group)
    return _same_everywhere(assemble(name, bench.measured, source), world)


def _same_everywhere(cluster: Cluster, world: World) -> Cluster:
    if world.size == 1:
        return cluster
    box: list[object] = [cluster if world.rank == 0 else None]
    dist.broadcast_object_list(box, src=0)
    shared = box[0]
    assert isinstance(shared, Cluster)
    return shared

"""Measure the machine: every rank runs this together, and every rank gets the same profile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import autoplan
from autoplan.errors import AutoplanError
from autoplan.hardware.cluster import Cluster
from autoplan.hardware.machine import available_bytes, device_name, local_gpu, measured_source
from autoplan.hardware.measure_beside import measure_beside
from autoplan.hardware.measure_clock import Clock
from autoplan.hardware.measure_collectives import Ring, make_rings, message_call
from autoplan.hardware.measure_compute import LAUNCH_OPS, compute_call
from autoplan.hardware.measure_journal import Journal
from autoplan.hardware.measure_points import Beside, Launch, Message, Point, points_of
from autoplan.hardware.measure_profile import Findings, assemble
from autoplan.hardware.measure_run import CannotMeasure, run_points
from autoplan.hardware.measure_sizes import Sizes, sizes_for
from autoplan.hardware.topology import Topology, TopologyLevel, discover, here, launcher_node

__all__ = ["Bench", "World", "find", "measure_cluster"]

VISIT_OVERHEAD_S = 0.01
FASTER_GPU = 50.0  # than the CPU whose times the points' guesses are


@dataclass(frozen=True, slots=True)
class World:
    """The ranks that measure: this one's number, how many there are, and how many share a node."""

    rank: int
    size: int
    node_size: int

    @classmethod
    def here(cls) -> World:
        """From the initialised process group, or one rank alone. Ranks per node as the launcher tells."""
        if not dist.is_initialized():
            return cls(0, 1, 1)
        size = dist.get_world_size()
        node_size = launcher_node()[1] or size
        return cls(dist.get_rank(), size, node_size if size % node_size == 0 else size)

    @property
    def device(self) -> torch.device:
        """Where this rank computes and sends from: its GPU where NCCL serves the group (or it is alone)."""
        served = "nccl" in str(dist.get_backend()) if dist.is_initialized() else True
        if served and torch.cuda.is_available():
            return torch.device("cuda", local_gpu(self.rank % self.node_size))
        return torch.device("cpu")


@dataclass(slots=True)
class Bench:
    """Measures one point after the other, with all ranks."""

    clock: Clock
    rings: dict[tuple[int, int], Ring | None] = field(default_factory=dict)

    def measure(self, point: Point) -> list[float]:
        """Samples of the seconds of ``point`` (of its factor, if two things run beside each other).

        Raises CannotMeasure, on every rank, where memory does not suffice on one.
        """
        self._refuse_beyond_memory(point)
        if isinstance(point, Beside):
            return measure_beside(point, self.clock, self.rings[point.level, point.group])
        call, problem = None, ""
        try:
            if isinstance(point, Message):
                call = message_call(point, self.rings[point.level, point.group], self.clock.device)
            else:
                call = compute_call(point, self.clock.device)
                call()  # may need memory of its own
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            problem = str(error).partition("\n")[0]
        self._refuse(problem)
        assert call is not None
        queued = isinstance(point, Launch) and point.part == "queued"
        computes = not isinstance(point, Message)
        samples = self.clock.measure(call, computes=computes, warm=computes, queued=queued)
        parts = LAUNCH_OPS if isinstance(point, Launch) else 1
        if isinstance(point, Message) and point.kind == "send_recv":
            parts = 2  # there and back
        return [sample / parts for sample in samples]

    def _refuse_beyond_memory(self, point: Point) -> None:
        """A CPU's allocator does not fail: the system ends processes instead. So ask beforehand."""
        if self.clock.device.type == "cuda":
            return
        need, free = point.nbytes * self.clock.node_size, available_bytes(self.clock.device)
        text = f"out of memory: the ranks of a node need {need} bytes, and {free} are free"
        self._refuse(text if need > 0.8 * free else "")

    def _refuse(self, problem: str) -> None:
        """Raise CannotMeasure on every rank if there is a problem on any."""
        if self.clock.worst([float(bool(problem))])[0]:
            if self.clock.device.type == "cuda":
                torch.cuda.empty_cache()
            raise CannotMeasure(problem or "out of memory on another rank")


def measure_cluster(
    name: str,
    *,
    quick: bool = False,
    sizes: Sizes | None = None,
    max_bytes: int | None = None,
    messages: Sequence[int] = (),
    levels: Sequence[TopologyLevel] = (),
    journal: Path | None = None,
    fresh: bool = False,
    progress: bool = True,
) -> Cluster:
    """Measure the machine with every rank of the default process group (or this process alone).

    All ranks must call it together; each returns the same profile, that of rank 0. A quick run
    takes less than a minute for 4 ranks on 2 cores, a full one some minutes.

    Args:
        sizes: what to measure, in place of the quick or full set for this kind of device.
        max_bytes, messages: the largest message, or all of them.
        levels: the topology, in place of the one that is found.
        journal: file of rank 0 in which finished points are kept until the caller has the profile; the
            run goes on from it if it was begun before, unless ``fresh``. The caller removes it.

    Raises:
        InputError: ``levels`` do not fit the ranks, or the ranks make no nested levels.
        ProfileError: the journal cannot be read or written.
    """
    world = World.here()
    sizes = sizes or sizes_for(world.device.type, quick=quick, max_bytes=max_bytes, messages=messages)
    load = os.getloadavg()[0]
    found = find(sizes, levels=levels, journal=journal, fresh=fresh, progress=progress)
    source = measured_source(
        world.device, found.topology, visits=sizes.visits, samples=sizes.samples, load=load, gpu=found.gpu
    )
    return _from_first(assemble(name, found, source), world)


def find(
    sizes: Sizes,
    *,
    levels: Sequence[TopologyLevel] = (),
    journal: Path | None = None,
    fresh: bool = False,
    progress: bool = True,
) -> Findings:
    """The figures of every point of ``sizes``; all ranks together, as for ``measure_cluster``."""
    world = World.here()
    device = world.device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    topology = discover(device, levels)
    clock = Clock(device, world.size, topology.node_size, sizes.samples, sizes.window_s)
    points = points_of(sizes, topology, device.type)
    with (
        _journal(journal, _fingerprint(device, topology, sizes), world, fresh=fresh) as kept,
        _rings(topology, world) as rings,
        torch.enable_grad(),
    ):
        results = run_points(
            points,
            sizes.visits,
            Bench(clock, rings).measure,
            kept,
            most_visits=sizes.most_visits,
            guess_s=lambda point: _guess_s(point, sizes, device),
            show=progress and world.rank == 0,
        )
    return Findings(device, topology, points, results, here(device).gpu)


def _guess_s(point: Point, sizes: Sizes, device: torch.device) -> float:
    call_s = 1e-9 * point.guess_ns / (FASTER_GPU if device.type == "cuda" else 1.0)
    return VISIT_OVERHEAD_S + 2 * call_s + sizes.samples * max(sizes.window_s, min(call_s, 2.0))


def _fingerprint(device: torch.device, topology: Topology, sizes: Sizes) -> dict[str, Any]:
    """What the samples of a journal depend on."""
    return {
        "tool": autoplan.__version__,
        "torch": str(torch.__version__),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "levels": [[level.name, level.size] for level in topology.levels],
        "node_size": topology.node_size,
        "sizes": asdict(sizes),
    }


@contextlib.contextmanager
def _journal(path: Path | None, run: dict[str, Any], world: World, *, fresh: bool) -> Iterator[Journal]:
    """The journal, written by rank 0 and known to all ranks; what is wrong with it is raised on all."""
    problem, journal = None, Journal(None, run)
    if world.rank == 0:
        try:
            journal = Journal(path, run, fresh=fresh)
        except AutoplanError as error:
            problem = error
    known = _from_first((problem, journal.samples, journal.failed), world)
    if known[0] is not None:
        raise known[0]
    journal.samples, journal.failed = known[1:]
    try:
        yield journal
    finally:
        journal.close()


@contextlib.contextmanager
def _rings(topology: Topology, world: World) -> Iterator[dict[tuple[int, int], Ring | None]]:
    rings = make_rings(topology, world.rank) if world.size > 1 else {}
    yield rings
    for ring in rings.values():
        if ring is not None:
            dist.destroy_process_group(ring.group)


def _from_first(value: Any, world: World) -> Any:
    """What rank 0 has."""
    if world.size == 1:
        return value
    box: list[object] = [value if world.rank == 0 else None]
    dist.broadcast_object_list(box, src=0, device=world.device)
    return box[0]


def _out_of_memory(error: BaseException) -> bool:
    known = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, known) or "allocate memory" in str(error) or "not enough memory" in str(error)

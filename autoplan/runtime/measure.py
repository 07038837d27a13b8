"""``Program.measure``: some steps, taken apart on every rank, beside the cost model's prediction."""

from __future__ import annotations

import contextlib
import datetime
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

import autoplan
from autoplan.cost.degrees import Degrees
from autoplan.cost.parts import PredictedParts, predicted_parts
from autoplan.errors import InputError, ProfileError
from autoplan.hardware import AnyCluster, Cluster
from autoplan.hardware.machine import device_name
from autoplan.hardware.measurement import Computed, Measurement, Part, Sent, StageParts, profile_digest
from autoplan.plan import Job
from autoplan.runtime.live_bytes import LiveBytes
from autoplan.runtime.observe import Call, Observer
from autoplan.runtime.timeline import Timing
from autoplan.runtime.world import cluster_at_hand, from_all, world_size

if TYPE_CHECKING:
    from autoplan.runtime.program import Program

__all__ = ["measure"]

WARM_STEPS = 2
ROUND_TRIPS = 6
_DATA_AXES = {"fsdp": "fsdp", "dp": "dp", "tp": "tp", "cp": "cp", "ep": "ep"}


@dataclass(frozen=True, slots=True)
class _Rank:
    """What one rank saw: its steps, its calls with their seconds in each step, and its memory."""

    pp_rank: int
    steps: list[Timing]
    calls: list[tuple[Call, list[float]]]
    memory: int
    messages: list[tuple[int, float]]  # to the next pipeline rank: bytes, seconds one way


def measure(program: Program, batch: Any, steps: int, cluster: AnyCluster | str | Path | None) -> Measurement:
    """See ``Program.measure``."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError("steps", steps, "a whole number of at least 1", "measure 5 steps")
    found = cluster_at_hand(cluster if cluster is not None else program.cluster)
    if not isinstance(found, Cluster):
        raise ProfileError("cluster", found.name, "one type of device", "measure on nodes of one type")
    predicted = predicted_parts(program.graph, program.plan, _job(program), found)
    seen: list[_Rank] = from_all(_watch(program, batch, steps))
    return _table(program, found, predicted, seen)


def _job(program: Program) -> Job:
    plan = program.plan
    states = [
        sum(isinstance(value, Tensor) and value.shape == parameter.shape for value in state.values())
        for parameter, state in program.optimizer.state.items()
    ]
    kept = round(statistics.mean(states)) if states else 2
    return Job(global_batch=plan.global_batch, precision=plan.precision, optimizer_states=kept)


def _watch(program: Program, batch: Any, steps: int) -> _Rank:
    """Take the steps. The first warms up; on a CPU the second counts bytes, and both stay out of the times."""
    cuda = program.world.device.type == "cuda"
    program.step(batch)
    memory = 0
    with contextlib.nullcontext() if cuda else LiveBytes(_held(program)) as live:
        program.step(batch)
        if live is not None:
            memory = live.peak
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    observer = Observer(program)
    taken = [observer.step(batch) for _ in range(steps)]
    if cuda:
        memory = torch.cuda.max_memory_allocated()
    calls = [
        (call, [_call_seconds(timing, index) for timing, _ in taken])
        for index, call in enumerate(taken[0][1])
    ]
    timings = [timing for timing, _ in taken]
    return _Rank(program.world.pp_rank, timings, calls, memory, _messages(program))


def _held(program: Program) -> Iterable[Tensor]:
    """What lives from step to step."""
    yield from program.parameters()
    yield from program.buffers()
    for state in program.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


def _call_seconds(timing: Timing, index: int) -> float:
    label = ("sent", index)
    return timing.by_label.get(label, 0.0) + timing.beside.get(label, 0.0)


def _messages(program: Program) -> list[tuple[int, float]]:
    """What a micro-batch sends from each pipeline rank to the next, there and back, while nothing else runs."""
    plan, axis = program.plan, program.world.axis("pp")
    if plan.pp == 1 or axis is None:
        return []
    sizes = [
        sum(torch.Size(w.shape).numel() * getattr(torch, w.dtype).itemsize for w in stage.reads)
        for stage in program.stages
    ]
    by_rank = dict(from_all((program.world.pp_rank, max(sizes))))
    group, me = axis.get_group(), program.world.pp_rank
    found = []
    for first in range(plan.pp - 1):
        nbytes = by_rank[first + 1]
        if nbytes and me in (first, first + 1):
            found += [(nbytes, _one_way_s(program, group, nbytes, me == first, 2 * first + 1 - me))]
        dist.barrier()
    return [message for message in found[-1:] if me < plan.pp - 1]


def _one_way_s(program: Program, group: Any, nbytes: int, leads: bool, peer: int) -> float:
    buffer = torch.zeros(nbytes, dtype=torch.uint8, device=program.world.device)
    cuda = buffer.is_cuda
    trips = []
    for _ in range(ROUND_TRIPS):
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        if leads:
            dist.send(buffer, group=group, group_dst=peer)
            dist.recv(buffer, group=group, group_src=peer)
        else:
            dist.recv(buffer, group=group, group_src=peer)
            dist.send(buffer, group=group, group_dst=peer)
        if cuda:
            torch.cuda.synchronize()
        trips.append(time.perf_counter() - begin)
    return statistics.median(trips[1:]) / 2


def _table(program: Program, cluster: Cluster, predicted: PredictedParts, seen: list[_Rank]) -> Measurement:
    totals = [max(rank.steps[i].total_s for rank in seen) for i in range(len(seen[0].steps))]
    middle = totals.index(sorted(totals)[len(totals) // 2])
    transfers = _transfers(seen)
    plan, device = program.plan, program.world.device
    return Measurement(
        model=plan.model,
        plan=plan.hash(),
        device=device_name(device),
        world_size=world_size(),
        levels=tuple((level.name, level.size) for level in cluster.levels),
        profile=cluster.name,
        profile_digest=profile_digest(cluster),
        date=datetime.date.today().isoformat(),
        tool=f"autoplan {autoplan.__version__}",
        versions={"torch": str(torch.__version__)},
        dtype=plan.precision.compute_dtype,
        steps=len(totals),
        step_s=statistics.median(totals),
        step_spread=_spread(totals),
        predicted_step_s=predicted.step_s,
        stages=tuple(_stage(p, seen, transfers, middle, predicted) for p in range(plan.pp)),
        computed=tuple(_computed(program, seen, predicted)),
        sent=tuple(_sent(program, cluster, seen, transfers)),
    )


def _transfers(seen: list[_Rank]) -> list[list[list[float]]]:
    """Of each rank and call, its seconds in each step from when the last of its ranks had come to it: the least of
    what its ranks saw, since they all end together."""
    least: dict[tuple[Any, int], list[float]] = {}
    keys: list[list[tuple[Any, int]]] = []
    for rank in seen:
        numbers: dict[Any, int] = defaultdict(int)
        keys.append([])
        for call, times in rank.calls:
            key = (call.axis, call.ranks), numbers[call.axis, call.ranks]
            numbers[call.axis, call.ranks] += 1
            keys[-1].append(key)
            known = least.get(key, times)
            least[key] = [min(a, b) for a, b in zip(known, times, strict=True)]
    return [[least[key] for key in of_rank] for of_rank in keys]


def _stage(
    pp_rank: int,
    seen: list[_Rank],
    transfers: list[list[list[float]]],
    step: int,
    predicted: PredictedParts,
) -> StageParts:
    here = [index for index, rank in enumerate(seen) if rank.pp_rank == pp_rank]
    sums: dict[str, float] = defaultdict(float)
    for index in here:
        for name, value in _rank_parts(seen[index], transfers[index], step).items():
            sums[name] += value / len(here)
    wanted = predicted.stages[pp_rank]
    names = [*wanted, *(name for name in sums if name not in wanted)]
    return StageParts(
        pp_rank=pp_rank,
        parts=tuple(
            Part(name=name, measured_s=max(sums.get(name, 0.0), 0.0), predicted_s=wanted.get(name, 0.0))
            for name in names
        ),
        memory_bytes=max(seen[index].memory for index in here),
        predicted_memory_bytes=predicted.memory[pp_rank],
    )


def _rank_parts(rank: _Rank, transfers: list[list[float]], step: int) -> dict[str, float]:
    """One rank's step by cause; waiting for slower ranks in a collective is ``waiting``, as is that for messages."""
    parts: dict[str, float] = defaultdict(float)
    for label, value in rank.steps[step].by_label.items():
        if isinstance(label, str):
            parts[label] += value
            continue
        assert isinstance(label, tuple)
        if label[0] != "sent":
            parts[label[1]] += value
            continue
        call = rank.calls[label[1]][0]
        moved = min(transfers[label[1]][step], value)
        parts[_DATA_AXES.get(call.axis, "other")] += moved
        parts["waiting"] += value - moved
    return dict(parts)


def _computed(program: Program, seen: list[_Rank], predicted: PredictedParts) -> Iterable[Computed]:
    kinds = {unit.name: unit.kind for unit in program.graph.units}
    m = program.plan.num_micro_batches
    samples: dict[tuple[str, str], list[float]] = defaultdict(list)
    for rank in seen:
        for timing in rank.steps:
            for label, value in timing.by_label.items():
                if isinstance(label, tuple) and label[0] in kinds:
                    samples[kinds[label[0]], label[1]].append(value / m)
    for (kind, phase), found in sorted(samples.items()):
        yield Computed(
            name=kind,
            phase=phase,
            count=m * len(found) / (len(seen) * len(seen[0].steps)),
            measured_s=statistics.median(found),
            predicted_s=dict(predicted.units[kind, "forward" if phase == "recompute" else phase]),
            spread=_spread(found),
            samples=len(found),
        )
    for pp_rank, wanted in enumerate(predicted.optimizer):
        ranks = [rank for rank in seen if rank.pp_rank == pp_rank]
        found = [timing.by_label.get("optimizer", 0.0) for rank in ranks for timing in rank.steps]
        yield Computed(
            name="optimizer",
            phase="step",
            count=len(ranks) / len(seen),
            measured_s=statistics.median(found),
            predicted_s=dict(wanted),
            spread=_spread(found),
            samples=len(found),
        )


def _sent(
    program: Program, cluster: Cluster, seen: list[_Rank], transfers: list[list[list[float]]]
) -> Iterable[Sent]:
    samples: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for rank, moved in zip(seen, transfers, strict=True):
        for (call, _), times in zip(rank.calls, moved, strict=True):
            stride = call.ranks[1] - call.ranks[0]
            samples[call.axis, call.kind, len(call.ranks), stride, call.nbytes] += times
    steps = len(seen[0].steps)
    degrees = Degrees.of(program.plan)
    micro = {"send_recv": program.plan.num_micro_batches * steps}
    for rank in seen:
        for nbytes, value in rank.messages:
            samples["pp", "send_recv", degrees.pp, degrees.pp_stride, nbytes].append(value)
    for (axis, kind, size, stride, nbytes), found in sorted(samples.items()):
        yield Sent(
            kind=kind,
            axis=axis,
            size=size,
            stride=stride,
            nbytes=nbytes,
            count=len(found) * micro.get(kind, 1) / (len(seen) * steps),
            measured_s=statistics.median(found),
            predicted_s=float(cluster.collective_time_s(kind, nbytes, size, stride)),
            spread=_spread(found),
            samples=len(found),
        )


def _spread(samples: Sequence[float]) -> float:
    middle = statistics.median(samples)
    if len(samples) < 2 or middle <= 0:
        return 0.0
    quarters = statistics.quantiles(samples, n=4)
    return max(0.0, quarters[2] - quarters[0]) / middle

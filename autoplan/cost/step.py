"""The price of a complete plan.

step = makespan of the schedule over the stages, where a stage's forward and backward hold its compute,
       its tp collectives and the parameter traffic that it waits for,
       and after its rank's last backward come the gradients' reduction and the optimizer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from autoplan.cost.degrees import Degrees
from autoplan.cost.estimate import Estimate, MemoryEstimate, StageEstimate
from autoplan.cost.flops import model_flops
from autoplan.cost.keep import FULL, NONE, Keep
from autoplan.cost.memory import StageLoad, activation_bytes, limit_bytes, rank_memory
from autoplan.cost.pipeline import Simulation, StageSeconds, compiled, relieved, simulate
from autoplan.cost.stage import StageTimes, stage_times
from autoplan.cost.tied import stage_units, tied_s
from autoplan.cost.unit import UnitCost
from autoplan.plan.schedule import SCHEDULE_NEEDS

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Job

__all__ = ["Assignment", "StagePrice", "shares_cores", "simulated", "stage_prices", "step_estimate"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which units a stage runs (a range of the chain), which of them it recomputes, and the names of the policies of
    others (see ``UnitCost.keeps``)."""

    start: int
    stop: int
    recompute: frozenset[int] = frozenset()
    policies: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, start: int, stop: int, ways: Mapping[int, str]) -> Assignment:
        """With the ``ways`` of units that do not keep everything."""
        full = frozenset(unit for unit, way in ways.items() if way == FULL)
        return cls(start, stop, full, {unit: way for unit, way in ways.items() if way not in (FULL, NONE)})

    def way(self, unit: int) -> str:
        """``none``, ``full``, or the name of the unit's policy."""
        return FULL if unit in self.recompute else self.policies.get(unit, NONE)


@dataclass(frozen=True, slots=True)
class StagePrice:
    """One stage: its units with what each keeps, its seconds, what it holds, the memory of its rank, and the seconds
    to send one micro-batch to the next stage (0 on the last, and to one on the same rank), and the bytes of its rank's
    device that a plan may use."""

    units: tuple[tuple[UnitCost, Keep], ...]
    times: StageTimes
    load: StageLoad
    memory: MemoryEstimate
    send_s: float
    limit_bytes: float


def step_estimate(
    graph: ModelGraph,
    costs: Sequence[Mapping[str, UnitCost]],
    sent_bytes: Sequence[float],
    stages: Sequence[Assignment],
    degrees: Degrees,
    job: Job,
    cluster: AnyCluster,
) -> Estimate:
    """Price ``stages`` of ``graph``; arguments as for ``stage_prices``."""
    priced = stage_prices(graph, costs, sent_bytes, stages, degrees, job, cluster)
    step_s, parts = _step_parts(priced, degrees, cluster)
    estimates = tuple(
        StageEstimate(
            forward_s=p.times.forward_s,
            backward_s=p.times.backward_s,
            memory=p.memory,
            memory_limit_bytes=p.limit_bytes,
        )
        for p in priced
    )
    m = degrees.num_micro_batches
    busy = [m * (p.times.times.forward_s + p.times.times.backward_s + p.times.recompute_s) for p in priced]
    busy_s = (sum(busy) + sum(p.times.optimizer_s for p in priced)) / degrees.pp
    return _estimate(graph, job, cluster, step_s, parts, estimates, busy_s)


def stage_prices(
    graph: ModelGraph,
    costs: Sequence[Mapping[str, UnitCost]],
    sent_bytes: Sequence[float],
    stages: Sequence[Assignment],
    degrees: Degrees,
    job: Job,
    cluster: AnyCluster,
) -> list[StagePrice]:
    """Price each of ``stages``, on its rank's type of device. Between two types, the slower sets the pace of a send.

    Args:
        costs: for each of ``cluster.types``, the price of a unit of each kind.
        sent_bytes: what a cut after each unit sends (``crossing_bytes``).
    """
    ranges = [(stage.start, stage.stop) for stage in stages]
    summed = tied_s(graph, costs[0], ranges, degrees, job.precision, cluster)
    ranks = degrees.stage_ranks
    types = [cluster.type_of(rank, degrees.pp) for rank in range(degrees.pp)]
    loads, times, sends = [], [], []
    for index, stage in enumerate(stages):
        here = types[ranks[index]]
        units = stage_units(graph, costs[here], stage.start, stage.stop)
        keeps = [unit.keep(stage.way(stage.start + place)) for place, unit in enumerate(units)]
        sent = sent_bytes[stage.stop - 1] if index + 1 < len(stages) else 0.0
        away = index + 1 < len(stages) and ranks[index] != ranks[index + 1]
        loads.append(StageLoad(units, keeps, sent))
        times.append(stage_times(units, keeps, summed[index], degrees, job, cluster.types[here]))
        ends = {here, types[ranks[index + 1]]} if away else ()
        sends.append(
            max(
                (cluster.types[one].p2p_time_s(sent, degrees.pp_stride, degrees.pp) for one in ends),
                default=0.0,
            )
        )
    activations = activation_bytes(loads, degrees)
    memory = [
        rank_memory(
            [load for load, home in zip(loads, ranks, strict=True) if home == rank],
            activations[rank],
            degrees,
            job,
            cluster.types[types[rank]].device,
        )
        for rank in range(degrees.pp)
    ]
    return [
        StagePrice(
            units=tuple(zip(load.units, load.keeps, strict=True)),
            times=stage_s,
            load=load,
            memory=memory[rank],
            send_s=send_s,
            limit_bytes=limit_bytes(cluster.types[types[rank]].device),
        )
        for load, stage_s, send_s, rank in zip(loads, times, sends, ranks, strict=True)
    ]


def simulated(
    stages: Sequence[StagePrice], degrees: Degrees, cluster: AnyCluster, free_sends: bool = False
) -> Simulation:
    """The step of ``stages`` under the schedule of ``degrees``."""
    run = _simulated(stages, degrees, free_sends)
    if not shares_cores(cluster, degrees):
        return run
    return relieved(run, lambda busy: cluster.relief(busy * cluster.world_size / degrees.pp))


def shares_cores(cluster: AnyCluster, degrees: Degrees) -> bool:
    """True if a stage is faster while others wait."""
    return bool(cluster.relief(cluster.world_size / degrees.pp) < 1)


def _simulated(stages: Sequence[StagePrice], degrees: Degrees, free_sends: bool) -> Simulation:
    times, ranks = [stage.times for stage in stages], degrees.stage_ranks
    head, tail = np.zeros(degrees.pp), np.zeros(degrees.pp)
    for one, rank in zip(times, ranks, strict=True):
        head[rank] += one.head_s
        tail[rank] += one.tail_s
    return simulate(
        compiled(degrees.schedule, degrees.pp, degrees.vpp, degrees.num_micro_batches),
        StageSeconds(
            forward_s=[t.forward_s for t in times],
            backward_s=[t.backward_s for t in times],
            weight_s=[t.weight_s for t in times] if SCHEDULE_NEEDS[degrees.schedule].halves else None,
            send_s=[0.0 if free_sends else stage.send_s for stage in stages[:-1]],
            head_s=head,
            tail_s=tail,
        ),
    )


def _step_parts(
    stages: Sequence[StagePrice], degrees: Degrees, cluster: AnyCluster
) -> tuple[float, dict[str, float]]:
    """The makespan, and its seconds by cause on the rank that works most."""
    m, ranks = degrees.num_micro_batches, degrees.stage_ranks
    run = simulated(stages, degrees, cluster)
    step_s = run.step_s
    unsent_s = simulated(stages, degrees, cluster, free_sends=True).step_s if len(stages) > 1 else step_s
    of_rank = [
        [stage.times for stage, home in zip(stages, ranks, strict=True) if home == rank]
        for rank in range(degrees.pp)
    ]
    work_s = [sum(s.head_s + m * (s.forward_s + s.backward_s) + s.tail_s for s in held) for held in of_rank]
    rank = max(range(degrees.pp), key=work_s.__getitem__)
    busiest = of_rank[rank]
    parts = {
        "compute": m * sum(s.times.forward_s + s.times.backward_s for s in busiest),
        "recompute": m * sum(s.recompute_s for s in busiest),
        "tp_comm": m * sum(s.times.comm_s - s.times.cp_comm_s for s in busiest),
        "pp_comm": max(step_s - unsent_s, 0.0),
        "bubble": 0.0,
        "fsdp_comm": sum(
            m * (s.forward_fsdp_s + s.backward_fsdp_s) + s.head_s + s.tail_fsdp_s for s in busiest
        ),
        "dp_comm": sum(s.tail_dp_s + s.tied_s for s in busiest),
        "optimizer": sum(s.optimizer_s for s in busiest),
    }
    if copied_s := sum(s.away_s + s.back_s for s in busiest):
        parts["host_copies"] = m * copied_s
    if degrees.cp > 1 or degrees.ep > 1:
        parts["cp_comm" if degrees.cp > 1 else "ep_comm"] = m * sum(s.times.cp_comm_s for s in busiest)
    if shares_cores(cluster, degrees):
        share = float(run.busy_s[rank]) / work_s[rank]
        parts |= {name: seconds * share for name, seconds in parts.items() if name != "pp_comm"}
    idle_s = step_s - sum(parts.values())
    parts["bubble"] = idle_s if idle_s > 1e-9 * step_s else 0.0
    return step_s, parts


def _estimate(
    graph: ModelGraph,
    job: Job,
    cluster: AnyCluster,
    step_s: float,
    parts: dict[str, float],
    stages: tuple[StageEstimate, ...],
    busy_s: float,
) -> Estimate:
    graph = graph.whole or graph
    per_rank = job.global_batch / graph.micro_batch / cluster.world_size / step_s
    dtype = job.precision.compute_dtype
    peak = sum(share * of.device.peak(dtype) for share, of in zip(cluster.shares, cluster.types, strict=True))
    flops_per_s = model_flops(graph, full_attention=False) * per_rank
    tokens_per_s = job.global_batch * max(job.tokens_per_sample, 1) / step_s
    worst = max(stages, key=lambda stage: stage.filled)
    return Estimate(
        step_time_s=step_s,
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_gpu=tokens_per_s / cluster.world_size,
        model_tflops_per_gpu=flops_per_s / 1e12,
        mfu=flops_per_s / peak,
        mfu_full_attention=model_flops(graph, full_attention=True) * per_rank / peak,
        peak_memory_bytes=worst.memory.total,
        memory_limit_bytes=worst.memory_limit_bytes,
        fits=worst.memory.total <= worst.memory_limit_bytes,
        parts=parts,
        stages=stages,
        busy_s=busy_s,
    )

"""The price of a complete plan.

step = makespan of 1F1B over the stages, where a stage's forward and backward hold its compute,
       its tp collectives and the parameter traffic that it waits for,
       and after its last backward the gradients' reduction and the optimizer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoplan.cost.degrees import Degrees
from autoplan.cost.estimate import Estimate, MemoryEstimate, StageEstimate
from autoplan.cost.flops import model_flops
from autoplan.cost.memory import limit_bytes, stage_memory
from autoplan.cost.pipeline import Simulation, StageSeconds, compiled, simulate
from autoplan.cost.stage import StageTimes, stage_times
from autoplan.cost.tied import stage_units, tied_s
from autoplan.cost.unit import UnitCost

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import Cluster
    from autoplan.plan import Job

__all__ = ["Assignment", "StagePrice", "one_f_one_b", "stage_prices", "step_estimate"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which units a stage runs (a range of the chain), and which of them it recomputes."""

    start: int
    stop: int
    recompute: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class StagePrice:
    """One stage by itself: its units with whether each runs its forward again, its seconds and memory,
    and the seconds to send one micro-batch to the next stage (0 on the last)."""

    units: tuple[tuple[UnitCost, bool], ...]
    times: StageTimes
    memory: MemoryEstimate
    send_s: float


def step_estimate(
    graph: ModelGraph,
    costs: Mapping[str, UnitCost],
    sent_bytes: Sequence[float],
    stages: Sequence[Assignment],
    degrees: Degrees,
    job: Job,
    cluster: Cluster,
) -> Estimate:
    """Price ``stages`` of ``graph``; arguments as for ``stage_prices``."""
    priced = stage_prices(graph, costs, sent_bytes, stages, degrees, job, cluster)
    step_s, parts = _step_parts(priced, degrees.num_micro_batches)
    estimates = tuple(
        StageEstimate(forward_s=p.times.forward_s, backward_s=p.times.backward_s, memory=p.memory)
        for p in priced
    )
    return _estimate(graph, job, cluster, step_s, parts, estimates)


def stage_prices(
    graph: ModelGraph,
    costs: Mapping[str, UnitCost],
    sent_bytes: Sequence[float],
    stages: Sequence[Assignment],
    degrees: Degrees,
    job: Job,
    cluster: Cluster,
) -> list[StagePrice]:
    """Price each of ``stages`` by itself.

    Args:
        costs: the price of a unit of each kind.
        sent_bytes: what a cut after each unit sends (``crossing_bytes``).
    """
    priced = []
    ranges = [(stage.start, stage.stop) for stage in stages]
    summed = tied_s(graph, costs, ranges, degrees, job.precision, cluster)
    for index, stage in enumerate(stages):
        units = stage_units(graph, costs, stage.start, stage.stop)
        again = [i in stage.recompute for i in range(stage.start, stage.stop)]
        sends = index + 1 < len(stages)
        sent = sent_bytes[stage.stop - 1] if sends else 0.0
        priced.append(
            StagePrice(
                units=tuple(zip(units, again, strict=True)),
                times=stage_times(units, again, summed[index], degrees, job, cluster),
                memory=stage_memory(units, again, sent, index, degrees, job, cluster.device),
                send_s=cluster.p2p_time_s(sent, degrees.pp_stride, degrees.pp) if sends else 0.0,
            )
        )
    return priced


def one_f_one_b(stages: Sequence[StagePrice], micro_batches: int, free_sends: bool = False) -> Simulation:
    """The step of ``stages`` under 1F1B."""
    times = [stage.times for stage in stages]
    return simulate(
        compiled("1f1b", len(stages), 1, micro_batches),
        StageSeconds(
            forward_s=[t.forward_s for t in times],
            backward_s=[t.backward_s for t in times],
            send_s=[0.0 if free_sends else stage.send_s for stage in stages[:-1]],
            head_s=[t.head_s for t in times],
            tail_s=[t.tail_s for t in times],
        ),
    )


def _step_parts(stages: Sequence[StagePrice], m: int) -> tuple[float, dict[str, float]]:
    """The makespan, and its seconds by cause on the stage that works most."""

    step_s = one_f_one_b(stages, m).step_s
    unsent_s = one_f_one_b(stages, m, free_sends=True).step_s if len(stages) > 1 else step_s
    busiest = max(
        (stage.times for stage in stages),
        key=lambda s: s.head_s + m * (s.forward_s + s.backward_s) + s.tail_s,
    )
    times = busiest.times
    parts = {
        "compute": m * (times.forward_s + times.backward_s),
        "recompute": m * busiest.recompute_s,
        "tp_comm": m * (times.forward_comm_s + times.backward_comm_s),
        "pp_comm": step_s - unsent_s,
        "bubble": 0.0,
        "fsdp_comm": m * (busiest.forward_fsdp_s + busiest.backward_fsdp_s)
        + busiest.head_s
        + busiest.tail_fsdp_s,
        "dp_comm": busiest.tail_dp_s + busiest.tied_s,
        "optimizer": busiest.optimizer_s,
    }
    idle_s = step_s - sum(parts.values())
    parts["bubble"] = idle_s if idle_s > 1e-9 * step_s else 0.0
    return step_s, parts


def _estimate(
    graph: ModelGraph,
    job: Job,
    cluster: Cluster,
    step_s: float,
    parts: dict[str, float],
    stages: tuple[StageEstimate, ...],
) -> Estimate:
    per_rank = job.global_batch / graph.micro_batch / cluster.world_size / step_s
    peak = cluster.device.peak(job.precision.compute_dtype)
    flops_per_s = model_flops(graph, full_attention=False) * per_rank
    tokens_per_s = job.global_batch * max(job.tokens_per_sample, 1) / step_s
    worst = max(stage.memory.total for stage in stages)
    limit = limit_bytes(cluster.device)
    return Estimate(
        step_time_s=step_s,
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_gpu=tokens_per_s / cluster.world_size,
        model_tflops_per_gpu=flops_per_s / 1e12,
        mfu=flops_per_s / peak,
        mfu_full_attention=model_flops(graph, full_attention=True) * per_rank / peak,
        peak_memory_bytes=worst,
        memory_limit_bytes=limit,
        fits=worst <= limit,
        parts=parts,
        stages=stages,
    )

"""A plan's step as a trace: the simulation that priced it, with what each pass does inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from autoplan.cost.degrees import Degrees
from autoplan.cost.pipeline import Pass, StreamOp, StreamRun, memory_curves, run_streams, step_trace
from autoplan.cost.price import plan_stages
from autoplan.cost.step import StagePrice, simulated
from autoplan.cost.unit import StrategiesOf

if TYPE_CHECKING:
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Job, Plan

__all__ = ["plan_trace"]


def plan_trace(
    graph: ModelGraph, plan: Plan, job: Job, cluster: AnyCluster, *, strategies_of: StrategiesOf | None = None
) -> dict[str, Any]:
    """The step of ``plan`` in the Trace Event Format (see ``cost.pipeline.chrome_trace``).

    Arguments and errors as for ``price``; the step of the trace is its ``step_time_s``.
    """
    stages = plan_stages(graph, plan, job, cluster, strategies_of=strategies_of)
    degrees = Degrees.of(plan)
    run = simulated(stages, degrees, cluster)
    inside: dict[tuple[int, Pass], StreamRun] = {}
    for index, (stage, names) in enumerate(zip(stages, (s.units for s in plan.stages), strict=True)):
        inside[index, Pass.FORWARD] = run_streams(list(_forward(stage, names)))
        inside[index, Pass.BACKWARD] = run_streams(list(_backward(stage, names)))
    homes = [plan.stage_ranks.index(rank) for rank in range(plan.pp)]
    fixed = [stages[home].memory.total - stages[home].memory.activations for home in homes]
    kept = [stage.load.kept_bytes for stage in stages]
    halves = [stage.load.half_bytes for stage in stages]
    about = {"model": plan.model, "plan": plan.hash()}
    return step_trace(run, memory_curves(run, kept, halves), fixed, inside, about)


def _forward(stage: StagePrice, names: Sequence[str]) -> Iterator[StreamOp]:
    for (unit, _), name in zip(stage.units, names, strict=True):
        yield StreamOp(name, unit.times.forward_s)
        yield StreamOp(f"{name} tp", unit.times.forward_comm_s, waited=True)
    if stage.times.away_s:
        yield StreamOp("copies to the host, not hidden", stage.times.away_s, waited=True)
    yield StreamOp("fsdp, not hidden", stage.times.forward_fsdp_s, waited=True)


def _backward(stage: StagePrice, names: Sequence[str]) -> Iterator[StreamOp]:
    for (unit, keep), name in zip(reversed(stage.units), reversed(names), strict=True):
        if keep.rerun_s:
            yield StreamOp(f"{name} again", keep.again_s)
            yield StreamOp(f"{name} again tp", keep.again_comm_s, waited=True)
        yield StreamOp(f"{name} backward", unit.times.backward_s)
        yield StreamOp(f"{name} backward tp", unit.times.backward_comm_s, waited=True)
    if stage.times.back_s:
        yield StreamOp("copies from the host, not hidden", stage.times.back_s, waited=True)
    yield StreamOp("fsdp, not hidden", stage.times.backward_fsdp_s, waited=True)

"""The price of any valid plan of a model: the same figures that the search compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoplan.cost.crossing import crossing_bytes
from autoplan.cost.degrees import Degrees
from autoplan.cost.step import Assignment, StagePrice, stage_prices, step_estimate
from autoplan.cost.unit import StrategiesOf, UnitCost, unit_cost
from autoplan.errors import PlanError
from autoplan.graph.layout import Layout
from autoplan.plan.policies import check_policies

if TYPE_CHECKING:
    from autoplan.cost.estimate import Estimate
    from autoplan.graph.ir import ModelGraph
    from autoplan.hardware import AnyCluster
    from autoplan.plan import Job, Plan

__all__ = ["plan_stages", "price", "unit_prices"]

_AGAIN = "search again for this model and cluster"


def price(
    graph: ModelGraph, plan: Plan, job: Job, cluster: AnyCluster, *, strategies_of: StrategiesOf | None = None
) -> Estimate:
    """Predict the step time and memory of ``plan``.

    Args:
        graph: the model, traced for ``plan.micro_batch`` samples.
        strategies_of: where the strategies of an op come from; ``graph.axes.strategies`` if None.

    Raises PlanError if the plan is for another model, batch, world size or micro-batch.
    """
    graph, costs, sent = unit_prices(graph, plan, job, cluster, strategies_of)
    return step_estimate(graph, costs, sent, _assignments(graph, plan), Degrees.of(plan), job, cluster)


def plan_stages(
    graph: ModelGraph, plan: Plan, job: Job, cluster: AnyCluster, *, strategies_of: StrategiesOf | None = None
) -> list[StagePrice]:
    """The price of each stage of ``plan``; arguments and errors as for ``price``."""
    graph, costs, sent = unit_prices(graph, plan, job, cluster, strategies_of)
    return stage_prices(graph, costs, sent, _assignments(graph, plan), Degrees.of(plan), job, cluster)


def unit_prices(
    graph: ModelGraph, plan: Plan, job: Job, cluster: AnyCluster, strategies_of: StrategiesOf | None = None
) -> tuple[ModelGraph, list[dict[str, UnitCost]], Sequence[float]]:
    """One cp rank's graph, for each of ``cluster.types`` the price of a unit of each kind, and what a cut after each unit sends."""
    _check(graph, plan, job, cluster)
    if plan.cp > 1:
        from autoplan.graph.cut import cut_graph

        graph = cut_graph(graph, plan.cp_layouts, Layout.parse(plan.cp_boundary), plan.cp, plan.cp_order)
    if plan.ep > 1:
        from autoplan.graph.expert_cut import cut_experts

        graph = cut_experts(graph, plan.ep)
    check_policies(graph, plan)
    if strategies_of is None:
        from autoplan.graph.axes import strategies

        strategies_of = strategies
    boundary = Layout.parse(plan.boundary)
    costs = [
        {
            kind: unit_cost(
                block,
                plan.layouts.get(kind, {}),
                boundary,
                plan.tp,
                only,
                strategies_of,
                plan.policies.get(kind),
            )
            for kind, block in graph.kinds.items()
        }
        for only in cluster.types
    ]
    return graph, costs, crossing_bytes(graph, boundary, plan.tp)


def _assignments(graph: ModelGraph, plan: Plan) -> list[Assignment]:
    position = {unit.name: index for index, unit in enumerate(graph.units)}
    stages, start = [], 0
    for stage in plan.stages:
        stop = start + len(stage.units)
        policies = {position[name]: policy for name, policy in stage.policies.items()}
        stages.append(Assignment(start, stop, frozenset(position[n] for n in stage.recompute), policies))
        start = stop
    return stages


def _check(graph: ModelGraph, plan: Plan, job: Job, cluster: AnyCluster) -> None:
    for field, value, expected in (
        ("fingerprint", plan.fingerprint, graph.fingerprint),
        ("micro_batch", plan.micro_batch, graph.micro_batch),
        ("global_batch", plan.global_batch, job.global_batch),
        ("precision", plan.precision, job.precision),
        ("world size", plan.world_size, cluster.world_size),
    ):
        if value != expected:
            raise PlanError(field, value, str(expected), _AGAIN)
    if plan.pp % cluster.stage_multiple:
        expected = f"a multiple of {cluster.stage_multiple}, so that no stage has devices of two types"
        raise PlanError("pp", plan.pp, expected, _AGAIN)
    for index, (stage, rank) in enumerate(zip(plan.stages, plan.stage_ranks, strict=True)):
        name = cluster.types[cluster.type_of(rank, plan.pp)].name
        if stage.device not in ("", name):
            raise PlanError(f"stages[{index}].device", stage.device, f"{name}, that of its ranks", _AGAIN)
    planned = [name for stage in plan.stages for name in stage.units]
    chain = [unit.name for unit in graph.units]
    if planned != chain:
        wrong = next((p for p, c in zip(planned, chain, strict=False) if p != c), None)
        raise PlanError(
            "stages",
            wrong or f"{len(planned)} units",
            f"the {len(chain)} units of {graph.name} in order",
            _AGAIN,
        )
